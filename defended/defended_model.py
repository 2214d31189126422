"""A network, a local-robustness check and ⊥: what every certified run-time defence shares."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.answering import Answering
from defended.answering import Verdicts as Verdicts  # its earlier place
from defended.certificate import Array, Certificate
from defended.claims import ClaimsInFiles
from defended.fitting import Fitting
from defended.hooked_certificate import HookedCertificate
from defended.keras_face import KerasFace
from defended.networks.checks import checked_network, checked_radius, network_and_radius, require_float32_policy
from defended.networks.inputs import float32_tensor
from defended.progress import Forecast
from defended.rejection_head import RejectionHead
from defended.settings import ProvenConstants, Settings
from defended.tracing import CompiledFunctions, is_at_hand

_SETTLED = frozenset(
    {
        "num_classes", "rounding", "second_look", "slope", "sigma", "alpha", "samples", "selection_samples", "mode",
        "precision", "budget", "accept", "separation",
    }
)  # fmt: skip


class DefendedModel(Fitting, Answering, ClaimsInFiles, KerasFace):
    """A classifier that answers only what it can prove (Algorithm 2.1 of Leino et al. 2022).

    `model(x)` is `[batch, m + 1]`: the network's logits and, last, the score of ⊥, `top score - certified slack`.
    `argmax == m` means rejected. Inputs or logits that are not finite, ties, and a slack of exactly 0 are rejected.

    **Every answer is proven.** Every path to an answer or a radius gives what is proven for the network as it is now:
    where nothing is proven, or weights or settings of layers have changed since, the bounds are proven first
    (`finalize`), and a line in the log says so. Compiled graphs, which cannot do so, reject everything until then. Only
    training rests on estimates: calls with `training=True`, `fit` and its validation, and what is inside `with
    model.estimates()`.

    The mathematics of a defence is its `Certificate`. A kind sets `self._certificate` after this constructor has run,
    or has the methods that `HookedCertificate` names. Training is in `Fitting`, the formula of the answers in
    `Answering`, the state of the proof in `Gate`.

    The model computes in float32, whatever the global dtype policy; inputs of other real types are converted first.

    Args:
        network: a built Keras model with one float32 input and logits `[batch, m]` as its output; or, together with
            `outputs`, the input tensor of the functional API.
        outputs: the output tensor, where `network` is the input tensor; after a model, the place of epsilon.
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
    """How verdicts are drawn where they are random, so that an input may be judged differently the next time: among
    others `alpha`, the probability of a wrong one. None where they are not random."""

    def __init__(
        self,
        network: keras.Model | keras.KerasTensor,
        outputs: keras.KerasTensor | float | None = None,
        epsilon: float | Settings | None = None,
        *,
        norm: str,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, dtype=require_float32_policy(kwargs.pop("dtype", None)), autocast=False, **kwargs)
        network, epsilon = network_and_radius(network, outputs, epsilon)
        self.network = checked_network(network)
        self.norm = self._certified_norm = norm
        self.num_classes = int(self.network.outputs[0].shape[-1])
        self.head = RejectionHead(name="rejection_head")
        self.head.build((None, self.num_classes))
        # A plain namespace: Keras would track a list of metrics, and save it with the weights.
        self._aside = SimpleNamespace(
            monitors=[], training_data=(), radii=None, certified=None, claims=None, settings=None, fitting=False,
            trained=False,
        )  # fmt: skip
        self._local = threading.local()
        self._proof = ProvenConstants()
        self._compiled = CompiledFunctions(tuple(self.network.input_shape[1:]))
        self._certificate: Certificate = HookedCertificate(self)
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

    # The radius.

    @property
    def epsilon(self) -> keras.Variable:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        It belongs to the model and not to its weights: no file of weights changes it.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._settings.epsilon.assign(checked_radius(value))

    _epsilon = property(lambda self: self._settings.epsilon)  # for kinds of defence that others wrote

    @property
    def evaluation_drift(self) -> float:
        """What is subtracted from every margin `y_j - y_i` at inference, in units of the logits; 0 by default.

        An export sets it, where the certificate does not pay for rounding itself, so that Keras, the SavedModel and
        ONNX answer from one reduced radius although their logits differ. It is not saved with the model. Defences whose
        `covered_drift` is None subtract it from their slack and radii; an export checks that they do.
        """
        return float(self._certificate.drift)

    @evaluation_drift.setter
    def evaluation_drift(self, value: float) -> None:
        drift = float(value)
        if not (np.isfinite(drift) and drift >= 0):
            raise ValueError(f"`evaluation_drift` must be finite and not negative. Received: {value!r}")
        if drift != self._certificate.drift:
            self._certificate.drift = drift
            self._compiled.clear()  # graphs hold it as a constant

    def covered_drift(self, x: ArrayLike) -> Array | None:
        """Return how much two evaluations of `y_j - y_i`, j the predicted class, may differ at inputs `[n, ...]`.

        Returns:
            `[n, m]`, what the certificate has paid for already, infinity where a difference voids nothing; or None
            where it pays for nothing, so that an export folds what it measured into `evaluation_drift`.
        """
        return self._certificate.covered_drift(self._pass_gate(float32_tensor(x)))

    # Verdicts.

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Call as `keras.Model`; what is not a tensor becomes one first: Keras would take a list for several inputs."""
        if not (ops.is_tensor(inputs) or hasattr(inputs, "_keras_history")):
            inputs = float32_tensor(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if training or self._is_estimating():
            return self._estimated_scores(float32_tensor(inputs), bool(training))
        return self._at_entry("scores", lambda part: self._scores(self._finding(part)), inputs)

    def competitor_radii(self, inputs: Any) -> Any:
        """Return the radius within which class i provably cannot overtake the predicted class, `[batch, m]`.

        It is differentiable in x, and the largest float32 where i is the predicted class. The certified radius is the
        smallest entry.
        """
        return self._at_entry("radii", self._competitor_radii, inputs)

    def _competitor_radii(self, inputs: Any) -> Any:
        epsilon = ops.convert_to_tensor(self.epsilon)
        return self._if_proven(self._certificate.competitor_radii(inputs, epsilon), -1.0)

    def answering_radii(self, inputs: Any) -> Any:
        """Return `competitor_radii` of the verdict, `[batch, m]`: answered where the smallest exceeds epsilon.

        For attacks, which descend it. It is the same, except where something other than the model's own certificate
        answers, or a second look in float64: then it is what float32 finds of that, a rounding off.
        """

        def radii(part: Any) -> Any:
            epsilon = ops.convert_to_tensor(self.epsilon)
            return self._if_proven(self._certificate.answering_radii(part, epsilon), -1.0)

        return self._at_entry("answering radii", radii, inputs)

    def certified_radius(self, inputs: Any) -> Any:
        """Return the certified radius, `[batch]` float32: no perturbation of smaller norm changes the predicted class.

        It is 0 where nothing is certified. Always finite: 0 for inputs that are not, the largest float32 where every
        perturbation is certified.
        """

        def of_verdicts() -> Any:
            judge = self._judge()
            return lambda part: judge(part)[2]

        return self._at_entry("radius", lambda part: self._judgement(part).radius, inputs, made=of_verdicts)

    def availability_radius(self, inputs: Any) -> Any:
        """Return the availability radius, `[batch]` float32: no perturbation of smaller norm can force ⊥.

        It is 0 where the input is rejected. An exact certificate's radius falls by at most t while the input moves by
        t, which leaves `r - eps`. As float32 computes it, a radius may fall faster, by what rounding costs at both
        ends: a certificate that pays for rounding subtracts that, too, so that what it promises is what is computed
        (`gloro.certificate.lasting`).
        """
        return self._at_entry("availability", lambda part: self._judgement(part).availability(), inputs)

    def undefended_logits(self, inputs: Any) -> Any:
        """Return the network's logits at the inputs themselves, `[batch, m]`, in inference mode."""
        return self.network(float32_tensor(inputs), training=False)

    def forecast(self, x: ArrayLike, answers: int) -> Forecast | None:
        """Return how long so many answers to inputs such as `x` `[n, *input shape]` are likely to take.

        None where an answer is cheap: for all but smoothed models, whose answers take thousands of evaluations.
        """
        x = self._checked_inputs(x)
        self.ensure_proven()
        return self._certificate.forecast(x, answers)

    def disagreements(self, x: Array, outputs: Mapping[str, Array], batch_size: int = 256) -> Array:
        """Return which inputs have a verdict in `outputs`, a deployed graph's answers to `x`, that is not this model's.

        Args:
            x: `[n, *input shape]`.
            outputs: arrays by the names of `deployed`.
            batch_size: inputs judged at a time.

        Returns:
            `[k]` int64, indices; where verdicts are drawn at random, those that chance does not explain.
        """
        return np.flatnonzero(outputs["label"] != self.verdicts(x, batch_size=batch_size).label)

    def deployed(self, inputs: Any) -> dict[str, Any]:
        """Return the outputs of a deployed model, computed from proven constants only: the graph that is exported.

        Returns:
            `label` int64 (-1 = rejected), `rejected` bool, `scores` `[batch, m]`, `scores_with_bottom`
            `[batch, m + 1]`, `certified_radius`, `availability_radius` and `epsilon` `[batch]`, and what `details`
            names.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        inputs = float32_tensor(inputs)
        if not is_at_hand(inputs):
            return self._outputs(inputs, frozen=True)
        self._pass_gate(inputs)
        return self._compiled("deployed", lambda batch: self._outputs(batch, frozen=True), of_inputs=True)(inputs)

    def __repr__(self) -> str:
        state = "final: bounds proven" if self.is_final else "not final: bounds are proven before the first answer"
        return (
            f"<{type(self).__name__} name={self.name}, classes={self.num_classes}, "
            f"epsilon={float(ops.convert_to_numpy(self.epsilon)):g} ({self.norm}), {state}>"
        )

    # Keras.

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "epsilon": float(ops.convert_to_numpy(self.epsilon)),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> DefendedModel:
        config = dict(config)
        network = keras.saving.deserialize_keras_object(config.pop("network"), custom_objects=custom_objects)
        return cls(network, **config)
