"""How a defended model is trained: by estimates, within `fit`, which ends with a proof."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from defended import input_range
from defended import standardisation as scaling
from defended.gate import Gate
from defended.jax_steps import VisibleSteps
from defended.margins import finite_rows
from defended.networks.inputs import float32_array
from defended.provenance import describe_data, read_training_data, write_training_data
from defended.rejection_head import RejectionHead
from defended.standardisation import Standardisation
from defended.training.fit_arguments import arguments_of_fit
from defended.training.optimizers import make_variables


class Fitting(VisibleSteps, Gate, keras.Model):
    """The training of a defended model: compiling, the steps, the scales that schedules move, and metrics."""

    num_classes: int
    head: RejectionHead

    @property
    def radius_scale(self) -> keras.Variable:
        """The factor of epsilon in training, a variable; 1 when `fit` returns."""
        return self._settings.radius_scale

    @property
    def robust_weight_scale(self) -> keras.Variable:
        """The factor of the loss's robust term, a variable; 1 when `fit` returns."""
        return self._settings.robust_weight_scale

    def radius_from_scores(self, scores: Any) -> Any:
        """Return the certified radius `[batch]` from the scores `[batch, m + 1]` alone, where the defence allows it.

        Metrics use it, since Keras gives them no inputs.
        """
        raise ValueError(
            f"{type(self).__name__} cannot tell a radius from scores alone; "
            f"use `metrics` with radius_scale=1 and `certified_radius(x)` for other radii."
        )

    def _estimated_scores(self, inputs: Any, training: bool) -> Any:
        """Return the scores `[batch, m + 1]` by estimates; in training, at the training radius."""
        epsilon = ops.convert_to_tensor(self._settings.epsilon)
        if training:
            self._thaw()
            self._aside.trained = True
            epsilon = epsilon * ops.convert_to_tensor(self.radius_scale)
        logits, slack = self._certificate.estimate(inputs, epsilon, training)
        return self.head(logits, slack, finite_rows(inputs))

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: str | keras.losses.Loss | Callable[..., Any] | None = "crossentropy",
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Configure training as in Keras, with shorthands for the losses and metrics of this package.

        Args:
            optimizer: as in Keras.
            loss: `"crossentropy"`, `"trades_kl.1.5"`, `"trades_ce.1"`, `"emma"`, `"certified_crossentropy"`, or a Keras
                loss over m + 1 scores.
            metrics: `"clean_accuracy"`, `"vra"`, `"rejection_rate"`, `"false_positive_bound"`; or Keras metrics and
                functions, which get the m logits without ⊥ (those with a method `attach(model)`: all scores).
            **kwargs: further arguments of `keras.Model.compile`; `weighted_metrics` as `metrics`.

        Raises:
            ValueError: for losses and metrics that read scores as probabilities, naming what to pass instead.
        """
        from defended.training.losses import resolve_loss
        from defended.training.metrics import resolve_metrics

        kwargs["weighted_metrics"] = resolve_metrics(kwargs.get("weighted_metrics"), self)
        super().compile(
            optimizer=optimizer, loss=resolve_loss(loss, self), metrics=resolve_metrics(metrics, self), **kwargs
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as it was when it was saved, without loss and metrics where one of them is refused by now."""
        given = keras.saving.deserialize_keras_object(config)
        try:
            self.compile(**given)
        except ValueError as error:
            logging.getLogger("defended").warning("%s: compile it anew. %s", self.name, error)
            self.compile(given["optimizer"], loss=None)
        make_variables(self)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch; Keras's own losses get a column for ⊥ beside rows of m probabilities."""
        kerass = all(type(loss).__module__.startswith("keras.") for loss in keras.tree.flatten(self.loss))
        if kerass and tuple(getattr(y, "shape", ())[1:]) == (self.num_classes,):
            y = ops.pad(y, ((0, 0), (0, 1)))
        return super().compute_loss(x, y, y_pred, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as `keras.Model`, by proven bounds; as validation of `fit`, by estimates that are refined first."""
        if not (self._aside.fitting or self._is_estimating()):
            self.ensure_proven()
        elif not self._is_current():
            self._certificate.refine()
        with self._entered():
            return super().evaluate(*args, **kwargs)

    def train_step(self, *arguments: Any) -> Any:
        """Make one step of training, as Keras calls it."""
        with self._estimating():
            return super().train_step(*arguments)

    def test_step(self, *arguments: Any) -> Any:
        """Make one step of evaluation, as Keras calls it; while fitting, by estimates."""
        with self._estimating() if self._aside.fitting else nullcontext():
            return super().test_step(*arguments)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `keras.Model`; afterwards the bounds are proven (`finalize`), and the scales of training are 1.

        Raises:
            ValueError: when integer labels lie outside [0, m).
            TypeError: when inputs do not hold real numbers, or labels no numbers.
        """
        kwargs = arguments_of_fit(*args, **kwargs)
        x = self._checked_data(x, y)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list) and len(validation) >= 2:
            kwargs["validation_data"] = (self._checked_data(*validation[:2]), *validation[1:])
        elif validation is not None:
            kwargs["validation_data"] = self._checked_data(validation)
        described = describe_data(x, y)
        self._begin_training()
        try:
            self._certificate.refine()
            make_variables(self)
            history = super().fit(x, y, **kwargs)
        finally:
            self._end_training()
        input_range.note_training(self.network, x)
        self.finalize()
        if described is not None and described not in self.training_data:
            self._aside.training_data = (*self.training_data, described)
        return history

    def _begin_training(self) -> None:
        for model in self._inside():
            model._begin_training()
        self._thaw()
        self._forget_graphs()  # what was traced by proven bounds is validated by estimates now
        self._aside.claims, self._aside.fitting = None, True

    def _end_training(self) -> None:
        for model in self._inside():
            model._end_training()
        self._aside.fitting = False
        self._forget_graphs()
        # Whatever schedules there were, in whatever order, and whichever epoch's weights they restored.
        self.radius_scale.assign(1.0)
        self.robust_weight_scale.assign(1.0)

    @property
    def training_data(self) -> tuple[dict[str, Any], ...]:
        """`{"sha256", "points"}` of each data set, given as arrays, that `fit` has seen; saved with the model.

        The digest is `defended.provenance.data_digest(x, y)`. It is recorded when `fit` ends.
        """
        return tuple(self._aside.training_data)

    @property
    def training_range(self) -> input_range.InputRange | None:
        """The range of the inputs that the network was trained on, saved with the model; None where it is not recorded.

        `fit` finds it in arrays, and `train` in the data that it loads. After training on `tf.data` or a generator it
        is not known; assign `(low, high)` where you know it. All defences of one network share it.
        """
        return input_range.RECORD.of(self.network)

    @training_range.setter
    def training_range(self, value: input_range.InputRange | Sequence[float] | None) -> None:
        input_range.note(self.network, value)

    @property
    def standardisation(self) -> Standardisation | None:
        """How features are standardised before they reach the network, saved with the model; None where they are not.

        The model itself takes standardised inputs: `model.verdicts(model.standardisation(x))`. `train` sets it for
        tabular data; the commands apply it, and exports write it down.
        """
        return scaling.RECORD.of(self.network)

    @standardisation.setter
    def standardisation(self, value: Standardisation | None) -> None:
        scaling.RECORD.note(self.network, value)

    def _checked_data(self, x: Any, y: Any = None) -> Any:
        """Return `x` in float32, with labels checked now (arrays) or as they are read (`tf.data`).

        In other data, bad labels give NaN.
        """
        from defended.training.labels import check_labels, checked_dataset, refuse_containers

        refuse_containers(x=x, y=y)
        if isinstance(y, list | np.ndarray):
            check_labels(np.asarray(y), self.num_classes)
        if isinstance(x, list | np.ndarray) or ops.is_tensor(x):
            return float32_array(x)
        return checked_dataset(x, self.num_classes)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
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
        """Return `radius_from_scores`; within `compute_metrics`, the graph holds it once for all metrics of a batch."""
        known = self._aside.radii
        if known is None:
            return self.radius_from_scores(scores)
        if id(scores) not in known:
            # The scores too: an id is theirs only as long as they live.
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

    def monitor(self, metrics: list[keras.metrics.Metric]) -> None:
        """Measure further metrics in every batch of training and validation; they replace the earlier ones.

        Callbacks use it: metrics that are compiled in cannot be added to later.
        """
        self._aside.monitors = metrics
        self.train_function = self.test_function = None

    def save_assets(self, inner_path: str) -> None:
        """Save the record of training data beside the weights (Keras's hook)."""
        write_training_data(inner_path, self.training_data)
        input_range.RECORD.write(inner_path, self.network)
        scaling.RECORD.write(inner_path, self.network)

    def load_assets(self, inner_path: str | None) -> None:
        """Read the record back (Keras's hook)."""
        self._aside.training_data = read_training_data(inner_path)
        input_range.RECORD.read(inner_path, self.network)
        scaling.RECORD.read(inner_path, self.network)
