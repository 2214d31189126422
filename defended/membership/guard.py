"""MembershipGuard: a defended model that also asks an oracle of valid inputs (Leino et al. 2022, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.arguments import one_of
from defended.certificate import Array
from defended.defended_model import DefendedModel
from defended.gate import ProvingProperty
from defended.membership.guard_certificate import GuardCertificate
from defended.membership.oracle import MembershipOracle
from defended.training.training_batch import TrainingBatch

REASONS = ("answered", "not certified", "not finite", "adversarial")
"""What the output `reason` means, by its number."""

_MODES = ("strict", "separated")


def _of_the_model(name: str) -> ProvingProperty:
    """Return a property that reads an attribute of the model inside; the guard has it only where the model does."""
    return ProvingProperty(lambda guard: getattr(guard.base, name))


@keras.saving.register_keras_serializable(package="defended")
class MembershipGuard(TrainingBatch, DefendedModel):
    """A defended model that looks for valid inputs around what it receives (Leino et al. 2022, section 4.2).

    On receiving x', the guard searches the closed ball of radius epsilon for a valid input that the model labels
    differently. One that is found proves that x' is in reach of two classes: it is rejected for certain, with the
    reason `"adversarial"`. Otherwise the model's robustness check decides, as it would alone.

    **What a guard can change.** A certificate that holds leaves no differently labelled valid input in the ball. So
    with the model's own labels, `accept="strict"` answers exactly what the model answers, and says of each rejected
    input whether it is certainly in reach of two classes. With given classes (`StoredPoints(x, y)`) it also rejects
    answers that contradict a stored point within epsilon.

    **Answering more.** `accept="separated"` also answers, with the model's label, an input that the check rejects, when
    a stored point of that label lies within `reach = separation - epsilon`, and none of another label. Under the
    assumption that valid inputs of different classes lie more than `separation` apart, whether stored or not, the
    answer is the class of the valid input that x' was made from, since both lie within `separation` of the stored
    point. Every `finalize()` checks, on all pairs, that the stored points keep this distance; for inputs that are not
    stored it stays an assumption, and `certificate_assumptions` says so. A score cannot do this: to find nothing is no
    proof.

    `certified_radius` is in any case what the certificate itself proves: within it the class does not change. For an
    input that only neighbours answer, it is at most epsilon. How far such an input may move and still be answered by
    them is reported separately: `neighbour_radius` is epsilon plus that distance (a rounding above epsilon where it is
    0), and 0 elsewhere. `availability_radius` covers both.

    The guard falls back to the check, never to an answer: while nothing is proven (`is_final`), where no valid input is
    near, and where the search did not end.

    Args:
        model: a `DefendedModel` whose verdicts are not drawn at random; its norm and epsilon are the guard's.
        oracle: a `MembershipOracle`, such as `StoredPoints(x_train)`.
        budget: steps of the search, at least 1: those of a descent for a score; a search of points is one step.
        accept: `"strict"` or `"separated"`.
        separation: for `"separated"`: the distance, in input units, that valid inputs of different classes keep; more
            than `2 epsilon`. None for slightly more (a thousandth) than that.

    Raises:
        TypeError: for a model that is not defended, draws its verdicts or is a guard, or an oracle of another type.
        ValueError: for a budget below 1, a separation of at most 2 epsilon, an oracle of other shapes, classes or norm.
        RuntimeError: when Keras does not run on TensorFlow.

    Example:
        >>> guard = MembershipGuard(model, StoredPoints(x_train, y_train), accept="separated", separation=2.0)
        >>> guard.finalize()
        >>> guard.reasons(x_test)
    """

    @property
    def details(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of further outputs of `deployed`."""
        return ("reason", "neighbour_radius") if self.accept == "separated" else ("reason",)

    def __init__(
        self,
        model: DefendedModel,
        oracle: MembershipOracle,
        budget: int = 20,
        *,
        accept: str = "strict",
        separation: float | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        _check(model, oracle, accept)
        if isinstance(budget, bool) or int(budget) != budget or budget < 1:
            raise ValueError(
                f"`budget` must be a whole number of at least 1: a guard that never searches is the model itself. "
                f"Received: budget={budget!r}"
            )
        super().__init__(model.network, epsilon=model._settings, norm=model.norm, name=name, **kwargs)
        oracle.bind(model)
        if accept == "separated" and not oracle.is_complete:
            raise ValueError(
                f'`accept="separated"` needs an oracle that searches all it knows, such as StoredPoints: that '
                f"{type(oracle).__name__} finds nothing proves nothing. Use accept='strict'."
            )
        if separation is not None and accept != "separated":
            raise ValueError('`separation` is the assumption of `accept="separated"`. Leave it None otherwise.')
        self.base, self.oracle, self.budget, self.accept = model, oracle, int(budget), accept
        self.separation = None if separation is None else float(separation)
        self._check_separation(float(ops.convert_to_numpy(self.epsilon)))
        self._certificate: GuardCertificate = GuardCertificate(
            model, self._proof, oracle, self.budget, accept == "separated", self.separation
        )
        self.supports_jit = oracle.in_graph

    def _inside(self) -> tuple[DefendedModel, ...]:
        return (self.base,)

    # What losses, metrics and reports read from the model inside, where it has it.
    lipschitz_rows = _of_the_model("lipschitz_rows")
    margin_lipschitz = _of_the_model("margin_lipschitz")
    certificate_report = _of_the_model("certificate_report")
    margin_lower_bounds = _of_the_model("margin_lower_bounds")
    rounding_slack = _of_the_model("rounding_slack")
    worst_case_logits = _of_the_model("worst_case_logits")
    rows_at_once = _of_the_model("rows_at_once")

    # The radius.

    @property
    def epsilon(self) -> Any:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        With `accept="separated"`, a larger one needs `finalize()`, which checks the separation that it assumes.

        Raises:
            ValueError: when assigned half of the separation or more.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._check_separation(float(value))
        self.base.epsilon = value

    @property
    def reach(self) -> float:
        """How far away a stored point may be and still answer: `separation - epsilon`, in input units."""
        return float(ops.convert_to_numpy(self._certificate.reach(ops.convert_to_tensor(self.epsilon))))

    def _check_separation(self, epsilon: float) -> None:
        if self.separation is not None and not (np.isfinite(self.separation) and self.separation > 2 * epsilon):
            raise ValueError(
                f"`separation` must be finite and more than 2 epsilon = {2 * epsilon:g}: otherwise an input between "
                f"two classes could belong to either. Received: separation={self.separation!r}"
            )

    # Verdicts.

    def reasons(self, x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return why each input `[n, *input shape]` was answered or rejected: `[n]` of `REASONS`; batches are as in
        `verdicts`.
        """
        return np.array(REASONS)[self.audit(x, batch_size)["reason"]]

    def deployed(self, inputs: Any) -> dict[str, Any]:
        """Return what `DefendedModel.deployed` does; `reason` is an int32 index into `REASONS`.

        Raises:
            RuntimeError: when the model is not final, or its oracle searches outside of the graph.
        """
        if not self.oracle.in_graph:
            raise RuntimeError(
                f"The oracle ({self.oracle.describe()}) is searched outside of the graph and cannot be exported. Store "
                f"fewer points, or raise `StoredPoints(max_in_graph=...)` where the artefact may be that large."
            )
        return super().deployed(inputs)

    def availability_radius(self, inputs: Any) -> Any:
        """Return the norm below which no perturbation can force ⊥, by certificate or neighbours, `[batch]` float32."""
        return super().availability_radius(inputs)

    def neighbour_radius(self, inputs: Any) -> Any:
        """Return, where stored neighbours answer, epsilon plus the distance by which an input may move and still be
        answered by them, `[batch]` float32; 0 elsewhere. Such answers rest on the separation assumed of valid inputs.
        """

        def found(part: Any) -> Any:
            details = self._judgement(part).details
            return details.get("neighbour_radius", ops.zeros(ops.shape(part)[:1]))

        return self._at_entry("neighbours", found, inputs)

    def radius_from_scores(self, scores: Any) -> Any:
        """Return the certified radius of the robustness check alone, `[batch]`, from scores `[batch, m + 1]`."""
        return self.base.radius_from_scores(scores)

    def undefended_logits(self, inputs: Any) -> Any:
        """Return the network's logits `[batch, m]` at the inputs themselves, in inference mode."""
        return self.base.undefended_logits(inputs)

    # Training is the model's: the guard enters at run time.

    def _batches(self) -> dict[int, Any]:
        # Where losses and metrics ask the model inside, it answers for the guard's batch.
        return self.base._batches() if isinstance(self.base, TrainingBatch) else super()._batches()

    # The certificate's state.

    def finalize(self, progress: bool | None = None) -> None:
        """Prove the model's bounds, label the oracle's points or calibrate its score, and check the separation.

        Args:
            progress: as for every defended model.

        Raises:
            ValueError: when stored points of different classes lie closer than the separation that is assumed; it
                says how many pairs do, and the largest epsilon that holds.
        """
        super().finalize(progress)

    @property
    def certificate_method(self) -> str:  # type: ignore[override]
        """The model's method, and the oracle."""
        how = (
            f"valid inputs of another class within epsilon are looked for ({self.oracle.describe()}); none found, the "
            f"robustness check decides"
        )
        if self.accept == "separated":
            how += f", or a stored point within {self.reach:g} of the predicted class, where none of another one is"
        return f"{self.base.certificate_method}; membership guard: {how}"

    @property
    def certificate_assumptions(self) -> tuple[str, ...]:  # type: ignore[override]
        """The model's assumptions, and those that answers by neighbours rest on."""
        if self.accept != "separated":
            return tuple(self.base.certificate_assumptions)
        return (
            *self.base.certificate_assumptions,
            f"Answers that the robustness check alone would not give assume that every input lies within epsilon of a "
            f"valid one, and that valid inputs of different classes lie more than "
            f"{self._certificate.assumed():.6g} ({self.norm}) apart, whether stored or not. Of the "
            f"{self.oracle.describe()}, all pairs were checked.",
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.base),
            "oracle": keras.saving.serialize_keras_object(self.oracle),
            "budget": self.budget,
            "accept": self.accept,
            "separation": self.separation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> MembershipGuard:
        config = dict(config)
        parts = {
            name: keras.saving.deserialize_keras_object(config.pop(name), custom_objects=custom_objects)
            for name in ("model", "oracle")
        }
        return cls(**parts, **config)


def _check(model: Any, oracle: Any, accept: str) -> None:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"A guard searches in float64 and in the graph, by TensorFlow, and Keras runs on "
            f"{keras.backend.backend()!r}. Set the variable KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if not isinstance(model, DefendedModel):
        raise TypeError(f"`model` must be a defended model, such as GloroNet. Received: {type(model).__name__}")
    if isinstance(model, MembershipGuard):
        raise TypeError("`model` is guarded already. Pass the model inside, `guard.base`, with another oracle.")
    if model.sampling is not None:
        raise TypeError(
            f"`model` must answer the same each time: {type(model).__name__} draws its verdicts, and has no label of a "
            f"stored point to compare with. Guard a GloroNet or another deterministic model."
        )
    if not isinstance(oracle, MembershipOracle):
        raise TypeError(f"`oracle` must be a MembershipOracle, such as StoredPoints. Received: {type(oracle).__name__}")
    one_of("accept", accept, _MODES)
