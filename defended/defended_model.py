"""A network, a local-robustness check and ⊥: what every certified run-time defence shares."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.gate import Gate, in_stateless_scope
from defended.jax_steps import VisibleSteps
from defended.margins import FLOAT_MAX, finite_rows, predicted_class
from defended.networks.checks import checked_network, checked_radius, require_float32_policy
from defended.networks.inputs import float32_array, float32_tensor, whole_batch_size
from defended.provenance import describe_data, read_training_data, write_training_data
from defended.rejection_head import RejectionHead
from defended.settings import ProvenConstants, Settings

Array = np.ndarray[Any, np.dtype[Any]]


_SETTLED = frozenset(
    {
        "num_classes", "rounding", "slope", "sigma", "alpha", "samples", "selection_samples", "mode",
        "precision", "budget", "accept", "separation",
    }
)  # fmt: skip


class Verdicts(NamedTuple):
    """What a defended model says of each input, all of it proven of the network as it is."""

    label: Array
    """`[n]` int64, the answer, or -1 where the input was rejected."""
    rejected: Array
    """`[n]` bool."""
    radius: Array
    """`[n]` float32, certified radius in the model's norm; 0 where nothing is certified."""


class Judgement(NamedTuple):
    """What a defence found about a batch in one evaluation; tensors."""

    scores: Any
    """`[batch, m + 1]`, ⊥ last."""
    radius: Any
    """`[batch]` float32, finite, 0 where nothing is certified."""
    details: Mapping[str, Any] = MappingProxyType({})
    """Further outputs of the deployed model, `[batch, ...]` each, by their names in `DefendedModel.details`."""


class DefendedModel(VisibleSteps, Gate, keras.Model):
    """A classifier that answers only what it can prove (Algorithm 2.1 of Leino et al. 2022).

    `model(x)` is `[batch, m + 1]`: the network's logits and, last, the score of ⊥, `top score - certified slack`.
    `argmax == m` means rejected. Inputs or logits that are not finite, ties, and a slack of exactly 0 are rejected.

    **An answer is a proven one.** Every way to an answer or a radius gives what is proven of the network as it is now:
    where nothing is proven, or weights or settings of layers were changed since, the bounds are proven first
    (`finalize`), and a line of log says so. Compiled graphs, which cannot do so, reject everything until then. Only
    training rests on estimates: calls with `training=True`, `fit` and its validation, and what is inside `with
    model.estimates()`.

    Whatever the global dtype policy, it computes in float32; inputs of other real types are converted first.

    Args:
        network: a built Keras model with one float32 input and logits `[batch, m]` out; or, together with `outputs`,
        the input
            tensor of the functional API.
        outputs: the output tensor, where `network` is the input tensor.
        epsilon: radius defended at run time, in input units; positive.
        norm: `"l2"` or `"linf"`.

    Attributes:
        network: the undefended classifier.
        num_classes: m.
    """

    certificate_method: str
    certificate_assumptions: tuple[str, ...]
    details: tuple[str, ...] = ()
    """Names of further outputs of `deployed`, which the artefact's audit signature gives too."""
    sampling: Mapping[str, Any] | None = None
    """Where verdicts are drawn at random, so that an input may be judged differently the next time: how (`alpha`, the
    probability of a wrong one, among it). None where they are not."""

    def __init__(
        self,
        network: Any,
        outputs: Any = None,
        *,
        epsilon: float | Settings,
        norm: str,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, dtype=require_float32_policy(kwargs.pop("dtype", None)), autocast=False, **kwargs)
        self.network = checked_network(network if outputs is None else keras.Model(network, outputs))
        self.norm = self._certified_norm = norm
        self.num_classes = int(self.network.outputs[0].shape[-1])
        self.head = RejectionHead(name="rejection_head")
        # A plain namespace: Keras would track a list of metrics, and save it with the weights.
        self._aside = SimpleNamespace(
            monitors=[], functions={}, drift=0.0, training_data=(), radii=None,
            certified=None, claims=None, settings=None, offered=None, fitting=False, trained=False,
        )  # fmt: skip
        self._local = threading.local()
        self._proof = ProvenConstants()
        # A guard has the settings of the model that it guards.
        self._settings = epsilon if isinstance(epsilon, Settings) else Settings(checked_radius(epsilon))
        self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTLED and name in self.__dict__:
            raise AttributeError(
                f"`{name}` was settled when the model was made, and what it answers was proven for it. Make another: "
                f"type(model).from_config({{**model.get_config(), {name!r}: {value!r}}})."
            )
        super().__setattr__(name, value)

    # What a kind of defence provides.

    @abstractmethod
    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        """Slack `[batch]` at radius epsilon by the proven constants; positive: certified."""

    @abstractmethod
    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        """`[batch, m]` certified radius against each competitor, see `competitor_radii`."""

    def _estimated_slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool) -> Any:
        """Slack `[batch]` by training-time estimates, differentiable; `training` moves them on."""
        return self._slack(inputs, logits, epsilon, training)

    def _logits(self, inputs: Any, training: bool) -> Any:
        """The network's logits, `[batch, m]`; a defence may evaluate the network more exactly."""
        return self.network(inputs, training=training)

    def _valid(self, inputs: Any) -> Any:
        """`[batch]` bool, False where the input is not finite; None where the slack sees to it."""
        return finite_rows(inputs)

    def _refine_estimates(self) -> None:
        """Bring training-time estimates close to the constants that `_prove` would find; cheap."""

    def covered_drift(self, x: Any) -> Array | None:
        """By how much two evaluations of `y_j - y_i`, j the predicted class, may differ at inputs `[n, ...]`.

        Returns:
            `[n, m]`, what the certificate has paid for already, infinity where a difference voids nothing; or None
            where it pays for nothing, so that an export folds what it measured into `evaluation_drift`.
        """
        return None

    def radius_from_scores(self, scores: Any) -> Any:
        """Certified radius `[batch]` from the scores `[batch, m + 1]` alone, where the defence allows it.

        Metrics use it, since Keras gives them no inputs.
        """
        raise ValueError(
            f"{type(self).__name__} cannot tell a radius from scores alone; "
            f"use `metrics` with radius_scale=1 and `certified_radius(x)` for other radii."
        )

    # The radius.

    @property
    def epsilon(self) -> Any:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        It belongs to the model and not to its weights: no file of weights moves it.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._settings.epsilon.assign(checked_radius(value))

    @property
    def _epsilon(self) -> Any:
        # For kinds of defence that others wrote.
        return self._settings.epsilon

    @property
    def radius_scale(self) -> Any:
        """What training multiplies epsilon by, a variable; 1 when `fit` returns."""
        return self._settings.radius_scale

    @property
    def robust_weight_scale(self) -> Any:
        """What the loss multiplies its robust term by, a variable; 1 when `fit` returns."""
        return self._settings.robust_weight_scale

    @property
    def evaluation_drift(self) -> float:
        """What is taken off every margin `y_j - y_i` at inference, in units of the logits; 0 by default.

        An export sets it, where the certificate does not pay for rounding itself, so that Keras, the SavedModel and
        ONNX answer from one reduced radius although their logits differ. It is not saved with the model. Defences whose
        `covered_drift` is None subtract it in `_slack` and `_radii`; an export sees that they do.
        """
        return float(self._aside.drift)

    @evaluation_drift.setter
    def evaluation_drift(self, value: float) -> None:
        drift = float(value)
        if not (np.isfinite(drift) and drift >= 0):
            raise ValueError(f"`evaluation_drift` must be finite and not negative. Received: {value!r}")
        if drift != self._aside.drift:
            self._aside.drift = drift
            self._aside.functions.clear()  # graphs hold it as a constant

    # Verdicts.

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model`; what is no tensor becomes one first: Keras would take a list for several inputs."""
        if not (ops.is_tensor(inputs) or hasattr(inputs, "_keras_history")):
            inputs = float32_tensor(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs, training = float32_tensor(inputs), bool(training)
        epsilon = ops.convert_to_tensor(self.epsilon)
        if not (training or self._is_estimating()):
            self._pass_gate(inputs)
            return self._at_entry("scores", self._scores, inputs)
        if training:
            self._thaw()
            self._aside.trained = True
            epsilon = epsilon * ops.convert_to_tensor(self.radius_scale)
        logits = self._logits(inputs, training)
        return self.head(logits, self._estimated_slack(inputs, logits, epsilon, training), finite_rows(inputs))

    def _scores(self, inputs: Any) -> Any:
        logits = self._logits(inputs, training=False)
        slack = self._slack(inputs, logits, ops.convert_to_tensor(self.epsilon), training=False)
        return self.head(logits, self._if_proven(slack, -1.0, frozen=False), self._valid(inputs))

    def _in_parts(self, function: Any, inputs: Any, *others: Any) -> Any:
        """`function(inputs, *others)`; a defence that minds its memory evaluates in parts what is at hand."""
        return function(inputs, *others)

    def competitor_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: radius within which class i provably cannot overtake the predicted class; differentiable in x.

        The largest float32 where i is the predicted class. The certified radius is the smallest entry.
        """
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("radii", self._proven_radii, inputs)

    def _proven_radii(self, inputs: Any) -> Any:
        return self._if_proven(self._radii(inputs, self._logits(inputs, training=False)), -1.0, frozen=False)

    def answering_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: as `competitor_radii`, of the verdict: an answer is given where the smallest exceeds epsilon.

        For attacks, which descend it. The same, save where something else than the own certificate answers.
        """
        return self.competitor_radii(inputs)

    def certified_radius(self, inputs: Any) -> Any:
        """`[batch]` float32: no perturbation of smaller norm changes the predicted class; 0 where nothing is certified.

        Always finite: 0 for inputs that are not, the largest float32 where every perturbation is certified.
        """
        return self._at_entry("radius", self._proven_radius, self._pass_gate(float32_tensor(inputs)))

    def _proven_radius(self, inputs: Any) -> Any:
        logits = self._logits(inputs, training=False)
        radius = self._finite_radius(inputs, logits, self._radii(inputs, logits))
        return self._if_proven(radius, 0.0, frozen=False)

    def availability_radius(self, inputs: Any) -> Any:
        """`[batch]` float32 `max(r - eps, 0)`: no perturbation of smaller norm can force ⊥.

        In real arithmetic: the certified radius is 1-Lipschitz while the class holds, so r > 2 eps makes every point
        within eps certified at eps. The float32 radius may fall faster by what rounding costs; a wrong *answer* stays
        impossible.
        """
        return self._beyond_epsilon(self.certified_radius(inputs))

    def _beyond_epsilon(self, radius: Any) -> Any:
        """`max(radius - epsilon, 0)`, and 0 where somebody made epsilon something else than a positive number."""
        epsilon = ops.convert_to_tensor(self.epsilon)
        return ops.where(epsilon > 0, ops.maximum(radius - epsilon, 0.0), 0.0)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.predict`: scores `[n, m + 1]`, of proven bounds."""
        self.ensure_proven()
        with self._entered():
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """`keras.Model.predict_on_batch`: scores `[batch, m + 1]`, of proven bounds."""
        self.ensure_proven()
        with self._entered():
            return super().predict_on_batch(x)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.test_on_batch`, of proven bounds."""
        self.ensure_proven()
        with self._entered():
            return super().test_on_batch(*args, **kwargs)

    def verdicts(self, x: Any, batch_size: int = 256) -> Verdicts:
        """Judge inputs `[n, ...]`, in batches, and return NumPy arrays.

        Raises:
            TypeError: when `x` holds no real numbers, or `batch_size` is no whole number.
            ValueError: when the shape of `x` is not `[n, *input shape]`, or `batch_size` is below 1; whatever
                `finalize` raises, where bounds must be proven first.
        """
        batch_size = whole_batch_size(batch_size)
        x = self._checked_inputs(x)
        self.ensure_proven()
        if not len(x):
            empty = np.zeros(0)
            return Verdicts(empty.astype(np.int64), empty.astype(bool), empty.astype(np.float32))
        judge = self._judge()
        parts = []
        for start in range(0, len(x), batch_size):
            batch = float32_array(x[start : start + batch_size])
            # A constant batch shape keeps a compiled function compiled; NaN is rejected, whatever else a defence does.
            missing = min(batch_size, len(x)) - len(batch)
            filling = np.full((missing, *batch.shape[1:]), np.nan, "float32")
            padded = ops.convert_to_tensor(np.concatenate([batch, filling]) if missing else batch)
            parts.append([ops.convert_to_numpy(part)[: len(batch)] for part in judge(padded)])
        label, rejected, radius = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Verdicts(label.astype(np.int64), rejected, radius)

    def _pass_gate(self, inputs: Any) -> Any:
        """The inputs, once the bounds are proven: at hand, that is seen to; in graphs the seal decides."""
        if is_at_hand(inputs) and not in_stateless_scope():
            expected = tuple(self.network.input_shape[1:])
            if tuple(inputs.shape[1:]) != expected:
                raise ValueError(
                    f"Inputs must have shape [n, {', '.join(map(str, expected))}]. "
                    f"Received: shape {tuple(inputs.shape)}"
                )
            self.ensure_proven()
        return inputs

    def _at_entry(self, name: str, function: Any, inputs: Any) -> Any:
        """`function(inputs)`: of inputs at hand, for which the bounds were seen to be proven, compiled: eagerly, thirty
        small operations take ten times as long as the network.
        """
        if not is_at_hand(inputs) or in_stateless_scope():
            return function(inputs)
        with self._entered():
            return self._in_parts(self._compiled(name, function, of_inputs=True), inputs)

    def _checked_inputs(self, x: Any) -> Array:
        """`x` as an array `[n, *input shape]`; otherwise `ValueError`."""
        x = ops.convert_to_numpy(x) if ops.is_tensor(x) else x
        # Converted by batches: of a file that is mapped into memory, only a batch is ever there.
        x = x if isinstance(x, np.ndarray) else float32_array(x)
        float32_array(x[:0])
        expected = tuple(self.network.input_shape[1:])
        if x.ndim != len(expected) + 1 or any(
            size is not None and size != got for size, got in zip(expected, x.shape[1:], strict=True)
        ):
            raise ValueError(f"`x` must have shape [n, {', '.join(map(str, expected))}]. Received: shape {x.shape}")
        return x

    def undefended_logits(self, inputs: Any) -> Any:
        """`[batch, m]`: the network's logits at the inputs themselves, in inference mode."""
        return self.network(float32_tensor(inputs), training=False)

    def disagreements(self, x: Array, outputs: Mapping[str, Array], batch_size: int = 256) -> Array:
        """Inputs whose verdict in `outputs`, what a deployed graph answered to `x`, is not this model's.

        Args:
            x: `[n, *input shape]`.
            outputs: arrays by the names of `deployed`.
            batch_size: inputs judged at a time.

        Returns:
            `[k]` int64, indices; where verdicts are drawn at random, those that chance does not explain.
        """
        return np.flatnonzero(outputs["label"] != self.verdicts(x, batch_size=batch_size).label)

    def deployed(self, inputs: Any) -> dict[str, Any]:
        """The outputs of a deployed model, computed from proven constants only: the graph that is exported.

        Returns:
            `label` int64 (-1 = rejected), `rejected` bool, `scores` `[batch, m]`, `scores_with_bottom`
            `[batch, m + 1]`, `certified_radius` and `availability_radius` `[batch]`, and what `details` names.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        inputs = float32_tensor(inputs)
        if not is_at_hand(inputs):
            return self._outputs(inputs, frozen=True)
        self._pass_gate(inputs)
        return self._compiled("deployed", lambda batch: self._outputs(batch, frozen=True), of_inputs=True)(inputs)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        """Scores and radius of one evaluation, so that they agree; `frozen` reads proven constants only."""
        logits = self._logits(inputs, training=False)
        slack = self._slack(inputs, logits, ops.convert_to_tensor(self.epsilon), training=False, frozen=frozen)
        scores = self.head(logits, self._if_proven(slack, -1.0, frozen), self._valid(inputs))
        radius = self._finite_radius(inputs, logits, self._radii(inputs, logits, frozen=frozen))
        return Judgement(scores, self._if_proven(radius, 0.0, frozen))

    def _outputs(self, inputs: Any, frozen: bool) -> dict[str, Any]:
        scores, radius, details = self._judgement(inputs, frozen)
        choice = predicted_class(scores)  # `ops.argmax` reads bits, which ONNX cannot
        rejected = ops.equal(choice, self.num_classes)
        return {
            "label": ops.where(rejected, ops.cast(-1, "int64"), ops.cast(choice, "int64")),
            "rejected": rejected,
            "scores": scores[:, : self.num_classes],
            "scores_with_bottom": scores,
            "certified_radius": radius,
            "availability_radius": self._beyond_epsilon(radius),
            **details,
        }

    def _finite_radius(self, inputs: Any, logits: Any, radii: Any) -> Any:
        radius = ops.min(radii, axis=-1)
        proven = finite_rows(logits)
        valid = self._valid(inputs)
        if valid is not None:
            proven = ops.logical_and(proven, valid)
        # NaN > 0 is false, so a NaN radius becomes 0.
        return ops.where(ops.logical_and(proven, radius > 0), ops.minimum(radius, FLOAT_MAX), ops.zeros_like(radius))

    def _judge(self) -> Any:
        def judge(batch: Any) -> tuple[Any, Any, Any]:
            outputs = self._outputs(float32_tensor(batch), frozen=False)
            return outputs["label"], outputs["rejected"], outputs["certified_radius"]

        with self._entered():
            return self._compiled("judge", judge, of_inputs=True)

    def _compiled(self, name: str, function: Any, of_inputs: bool = False) -> Any:
        """`function`, or on TensorFlow the graph that was made of it at the first call under this name.

        `of_inputs`: it takes inputs `[batch, *input shape]` float32 and nothing else, so one graph serves all batches.
        """
        if keras.backend.backend() != "tensorflow":
            return function
        functions = self._aside.functions
        if name not in functions:
            import tensorflow as tf

            if of_inputs:
                signature = [tf.TensorSpec([None, *self.network.input_shape[1:]], tf.float32)]
                made = tf.function(function, input_signature=signature, autograph=False)
                functions[name] = made.get_concrete_function()
            else:
                functions[name] = tf.function(function, reduce_retracing=True, autograph=False)
        return functions[name]

    def __repr__(self) -> str:
        state = "final: bounds proven" if self.is_final else "not final: bounds are proven before the first answer"
        return (
            f"<{type(self).__name__} name={self.name}, classes={self.num_classes}, "
            f"epsilon={float(ops.convert_to_numpy(self.epsilon)):g} ({self.norm}), {state}>"
        )

    # Training.

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "crossentropy",
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training as in Keras, with shorthands for the losses and metrics of this package.

        Args:
            optimizer: as in Keras.
            loss: `"crossentropy"`, `"trades_kl.1.5"`, `"trades_ce.1"`, `"emma"`, `"certified_crossentropy"`, or a Keras
                loss over m + 1 scores.
            metrics: `"clean_accuracy"`, `"vra"`, `"rejection_rate"`, `"false_positive_bound"`, or Keras metrics.
            **kwargs: further arguments of `keras.Model.compile`.
        """
        from defended.training.losses import resolve_loss
        from defended.training.metrics import resolve_metrics

        super().compile(
            optimizer=optimizer,
            loss=resolve_loss(loss, self),
            metrics=resolve_metrics(metrics, self),
            **kwargs,
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.evaluate`, of proven bounds; as the validation of `fit`, of estimates that are refined first."""
        if not (self._aside.fitting or self._is_estimating()):
            self.ensure_proven()
        elif not self._is_current():
            self._refine_estimates()
        with self._entered():
            return super().evaluate(*args, **kwargs)

    def train_step(self, *arguments: Any) -> Any:
        """One step of training, as Keras calls it."""
        with self._estimating():
            return super().train_step(*arguments)

    def test_step(self, *arguments: Any) -> Any:
        """One step of evaluation, as Keras calls it: while fitting, by estimates."""
        with self._estimating() if self._aside.fitting else nullcontext():
            return super().test_step(*arguments)

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.fit`; afterwards the bounds are proven (`finalize`), and the scales of training are 1.

        Raises:
            ValueError: when integer labels lie outside [0, m).
            TypeError: when inputs hold no real numbers.
        """
        x = self._checked_data(x, y)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list) and len(validation) >= 2:
            kwargs["validation_data"] = (self._checked_data(*validation[:2]), *validation[1:])
        elif validation is not None:
            kwargs["validation_data"] = self._checked_data(validation)
        described = describe_data(x, y)
        self._begin_training()
        try:
            self._refine_estimates()
            history = super().fit(x, y, **kwargs)
        finally:
            self._end_training()
        self.finalize()
        if described is not None and described not in self.training_data:
            self._aside.training_data = (*self.training_data, described)
        return history

    def _begin_training(self) -> None:
        self._thaw()
        self._forget_graphs()  # what was traced by proven bounds is validated by estimates now
        self._aside.claims, self._aside.fitting = None, True

    def _end_training(self) -> None:
        self._aside.fitting = False
        self._forget_graphs()
        # Whatever schedules were there, in whatever order, and whichever epoch's weights they put back.
        self.radius_scale.assign(1.0)
        self.robust_weight_scale.assign(1.0)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: what Keras would write neither is checked nor says what it guarantees.

        Raises:
            RuntimeError: always; it names the export that there is.
        """
        raise RuntimeError(
            "`model.export` would write a graph without a manifest, unchecked. Use `defended.serving.export(model, "
            "directory, name, version)` for a SavedModel with ONNX, or `defended.serving.export_onnx(model, path)`."
        )

    @property
    def training_data(self) -> tuple[dict[str, Any], ...]:
        """`{"sha256", "points"}` of each data set, given as arrays, that `fit` has seen; saved with the model.

        The digest is `defended.provenance.data_digest(x, y)`. It is recorded when `fit` ends.
        """
        return tuple(self._aside.training_data)

    def _checked_data(self, x: Any, y: Any = None) -> Any:
        """`x` in float32, labels checked: now (arrays) or as they are read (`tf.data`); else bad labels give NaN."""
        from defended.training.labels import check_labels, checked_dataset

        if isinstance(y, list | np.ndarray):
            check_labels(np.asarray(y), self.num_classes)
        if isinstance(x, list | np.ndarray) or ops.is_tensor(x):
            return float32_array(x)
        return checked_dataset(x, self.num_classes)

    @property
    def metrics(self) -> list[Any]:
        return [*super().metrics, *self._aside.monitors]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        self._aside.radii = {}
        try:
            for metric in self._aside.monitors:
                metric.update_state(y, y_pred, sample_weight)
            return super().compute_metrics(x, y, y_pred, sample_weight)
        finally:
            self._aside.radii = None

    def radius_for_metrics(self, scores: Any) -> Any:
        """`radius_from_scores`, within `compute_metrics` written into the graph once for all metrics of a batch."""
        known = self._aside.radii
        if known is None:
            return self.radius_from_scores(scores)
        if id(scores) not in known:
            # The scores too: an id is theirs as long as they live.
            known[id(scores)] = scores, self.radius_from_scores(scores)
        return known[id(scores)][1]

    @contextmanager
    def _strategy_scope(self) -> Iterator[None]:
        strategy = getattr(self, "distribute_strategy", None)
        if strategy is None:
            yield
        else:
            with strategy.scope():
                yield

    def monitor(self, metrics: list[Any]) -> None:
        """Measure further metrics in every batch of training and validation; replaces the earlier ones.

        Callbacks use it: metrics that are compiled in cannot be added to later.
        """
        self._aside.monitors = metrics
        self.train_function = self.test_function = None

    # Keras.

    @property
    def input_shape(self) -> Any:
        return self.network.input_shape

    def save_assets(self, inner_path: str) -> None:
        """Keras's hook: what is saved with the weights and is none."""
        write_training_data(inner_path, self.training_data)

    def load_assets(self, inner_path: str | None) -> None:
        """Keras's hook, the way back."""
        self._aside.training_data = read_training_data(inner_path)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "epsilon": float(ops.convert_to_numpy(self.epsilon)),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DefendedModel:
        config = dict(config)
        network = keras.saving.deserialize_keras_object(config.pop("network"), custom_objects=custom_objects)
        return cls(network, **config)


def is_at_hand(inputs: Any) -> bool:
    """Whether a tensor holds numbers, and does not stand for those of a graph."""
    if hasattr(inputs, "_keras_history") or not ops.is_tensor(inputs):
        return False
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.executing_eagerly())
    if backend == "jax":
        import jax

        return not isinstance(inputs, jax.core.Tracer)
    return True
