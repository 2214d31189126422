"""MembershipGuard: a defended model that also asks an oracle of valid inputs (Leino et al. 2022, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.arguments import one_of
from defended.defended_model import DefendedModel, Judgement, Verdicts
from defended.margins import finite_rows, leader
from defended.membership.decision import Reach, decide, guarded_radii
from defended.membership.oracle import MembershipOracle, Nearest
from defended.networks.inputs import float32_tensor, whole_batch_size
from defended.training.training_batch import TrainingBatch

Array = np.ndarray[Any, np.dtype[Any]]

REASONS = ("answered", "not certified", "not finite", "adversarial")
"""What the output `reason` means, by its number."""

_MODES = ("strict", "separated")
# Of the separation of classes, beyond 2 epsilon: so that a point on the ball's surface is found in any arithmetic.
_ROOM = 2.0**-10


@keras.saving.register_keras_serializable(package="defended")
class MembershipGuard(TrainingBatch, DefendedModel):
    """A defended model that looks for valid inputs around what it receives (Leino et al. 2022, section 4.2).

    On receiving x', the guard searches the closed ball of radius epsilon for a valid input that the model labels
    differently. One found proves that x' is in reach of two classes: rejected for certain, with the reason
    `"adversarial"`. Otherwise the robustness check of the model decides, as it would alone.

    **What a guard can change.** A certificate that holds leaves no differently labelled valid input in the ball. So
    with labels of the model's own, `accept="strict"` answers exactly what the model answers, and tells of a rejection
    whether it is certainly in reach of two classes. With given classes (`StoredPoints(x, y)`) it also rejects answers
    that contradict a stored point within epsilon.

    **Answering more.** `accept="separated"` also answers, with the model's label, an input that the check rejects, when
    a stored point of that label lies within `reach = separation - epsilon`, and none of another. Under the assumption
    that valid inputs of different classes lie more than `separation` apart, whether stored or not, the answer is the
    class of the valid input that x' was made from, as both lie within `separation` of the stored point. That the
    stored points keep the distance is checked by every `finalize()`, on all pairs; of inputs that are not stored it
    stays an assumption, and `certificate_assumptions` says so. A score cannot do this: not finding is no proof.

    `certified_radius` is in any case what the own certificate proves: within it the class does not change. For an input
    that only its neighbours answer it is at most epsilon. How far such an input may move and still be answered so is
    told apart: `neighbour_radius` is epsilon plus that distance, and 0 elsewhere. `availability_radius` has both.

    The guard falls back to the check, never to an answer: while nothing is proven (`is_final`), where no valid input is
    near, and where the search did not end.

    Args:
        model: a `DefendedModel` whose verdicts are not drawn at random; its norm and epsilon are the guard's.
        oracle: a `MembershipOracle`, such as `StoredPoints(x_train)`.
        budget: steps of the search, at least 1: of a descent for a score; a search of points is one step.
        accept: `"strict"` or `"separated"`.
        separation: for `"separated"`: the distance, in input units, that valid inputs of different classes keep; at
            least `2 epsilon`. None for hardly more (a thousandth) than that.

    Raises:
        TypeError: for a model that is not defended, draws its verdicts or is a guard itself, or an oracle that is none.
        ValueError: for a budget of 0, a separation below 2 epsilon, an oracle of other shapes, classes or another norm.
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
        self._check_separation(_number(self.epsilon))
        # The separation of classes that was found to hold among the stored points; 0 before.
        self._proof.add("checked_separation")
        self.supports_jit = oracle.in_graph

    def __getattr__(self, name: str) -> Any:
        # What the model's own losses, metrics and reports ask for, such as `lipschitz_rows`.
        # A property of its own that could not be read is none of the model's.
        if name.startswith("_") or "base" not in self.__dict__ or hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["base"], name)

    # The radius.

    @property
    def epsilon(self) -> Any:
        """The radius defended at run time, in input units: a scalar float32 variable; assign a number to change it.

        With `accept="separated"`, a larger one needs `finalize()`, which checks the separation that it assumes.

        Raises:
            ValueError: when assigned more than half of the separation.
        """
        return self._settings.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._check_separation(float(value))
        self.base.epsilon = value

    @property
    def reach(self) -> float:
        """How far away a stored point may be and still answer: `separation - epsilon`, in input units."""
        return float(ops.convert_to_numpy(self._reach(ops.convert_to_tensor(self.epsilon))))

    def _reach(self, epsilon: Any) -> Any:
        return epsilon * (1 + 2 * _ROOM) if self.separation is None else self.separation - epsilon

    def _assumed(self) -> float:
        """The separation that answers by neighbours rest on, rounded up."""
        return (self.reach + _number(self.epsilon)) * (1 + 2.0**-18)

    def _check_separation(self, epsilon: float) -> None:
        if self.separation is not None and not (np.isfinite(self.separation) and self.separation > 2 * epsilon):
            raise ValueError(
                f"`separation` must be finite and more than 2 epsilon = {2 * epsilon:g}: otherwise an input between "
                f"two classes could belong to either. Received: separation={self.separation!r}"
            )

    # Verdicts.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if training or self._is_estimating():
            return super().call(inputs, training)
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("scores", lambda part: self._judgement(part, frozen=False).scores, inputs)

    def verdicts(self, x: Any, batch_size: int | None = None) -> Verdicts:
        """As for every defended model; a batch is at most what fits the memory that the model inside may use."""
        return super().verdicts(x, batch_size=self._batch_size(batch_size))

    def reasons(self, x: Any, batch_size: int | None = None) -> Array:
        """Why each input `[n, *input shape]` was answered or rejected: `[n]` of `REASONS`; batches as in `verdicts`."""
        x, batch_size = self._checked_inputs(x), self._batch_size(batch_size)
        self.ensure_proven()
        reason = self._compiled("reasons", lambda batch: self._outputs(batch, frozen=False)["reason"])
        parts = [
            ops.convert_to_numpy(reason(float32_tensor(x[first : first + batch_size])))
            for first in range(0, len(x), batch_size)
        ]
        return np.array(REASONS)[np.concatenate([np.zeros(0, np.int64), *parts])]

    def _batch_size(self, asked: int | None) -> int:
        most = int(getattr(self.base, "rows_at_once", 256))
        return most if asked is None else min(whole_batch_size(asked), most)

    def _in_parts(self, function: Any, inputs: Any, *others: Any) -> Any:
        return self.base._in_parts(function, inputs, *others)

    def deployed(self, inputs: Any) -> dict[str, Any]:
        """As `DefendedModel.deployed`; `reason` is an int32 index into `REASONS`.

        Raises:
            RuntimeError: when the model is not final, or its oracle searches outside of the graph.
        """
        if not self.oracle.in_graph:
            raise RuntimeError(
                f"The oracle ({self.oracle.describe()}) is searched outside of the graph and cannot be exported. Store "
                f"fewer points, or raise `StoredPoints(max_in_graph=...)` where the artefact may be that large."
            )
        return super().deployed(inputs)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        scores, radius, details = self.base._judgement(inputs, frozen)
        m = self.num_classes
        logits, bottom = scores[:, :m], scores[:, m]
        first = leader(logits)
        near, reach = self._nearest(inputs, first.predicted, frozen)
        guarded = decide(radius, near, reach)
        # In units of the logits where the check decides; elsewhere only the sign matters.
        slack = first.top[:, 0] - bottom
        neighbourly = guarded.neighbour_radius - reach.epsilon
        enough = ops.maximum(neighbourly, ops.abs(first.top[:, 0]) * 2.0**-20)
        slack = ops.where(guarded.by_check, slack, ops.where(guarded.by_neighbours, enough, -ops.abs(slack)))
        # The model's head writes such a row where inputs or logits are not finite.
        known = True if frozen else self._is_sealed()  # where nothing is proven of the guard, nothing is answered
        finite = known & finite_rows(inputs) & ~(ops.all(ops.equal(logits, 0.0), axis=-1) & ops.equal(bottom, 1.0))
        scores = self.head(logits, slack, finite)
        rejected = ops.equal(leader(scores).predicted, m)
        why = ops.where(finite, ops.where(guarded.adversarial, 3, 1), 2)
        reason = ops.where(rejected, why, 0)
        zero = ops.zeros_like(guarded.radius)
        radius, neighbourly = (ops.where(finite, found, zero) for found in (guarded.radius, guarded.neighbour_radius))
        details = {**details, "reason": ops.cast(reason, "int32")}
        if self.accept == "separated":
            answering = ops.maximum(radius, neighbourly) - reach.epsilon
            details |= {"neighbour_radius": neighbourly, "availability_radius": ops.maximum(answering, 0.0)}
        return Judgement(scores, radius, details)

    def _nearest(self, inputs: Any, predicted: Any, frozen: bool) -> tuple[Nearest, Reach]:
        epsilon = ops.convert_to_tensor(self.epsilon)
        reach = Reach(epsilon, self._reach(epsilon), accepting=self.accept == "separated")
        far = 2 * (reach.neighbours + epsilon)  # up to where the radius says something
        near = self.oracle.nearest(self.base, inputs, predicted, epsilon, far, self.budget)
        if not frozen:
            # Before `finalize` nothing is known of the valid inputs' labels: the check alone decides.
            known, infinite = self._is_sealed(), float("inf")
            near = Nearest(*(ops.where(known, value, infinite) for value in near))
        return near, reach

    def competitor_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: radius within which class i provably cannot overtake; differentiable in x, through the oracle.

        The smallest entry is the certified radius where that is positive.
        """
        return self._guarded_radii(inputs, accepting=False)

    def answering_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: as `competitor_radii`, with what neighbours answer: for attacks, which descend it."""
        return self._guarded_radii(inputs, accepting=self.accept == "separated")

    def _guarded_radii(self, inputs: Any, accepting: bool) -> Any:
        inputs = self._pass_gate(float32_tensor(inputs))
        radii = self.base.competitor_radii(inputs)
        if not self.oracle.is_complete:
            # What a descent finds lies beyond the model's own radius: the search would cost, and change nothing.
            return radii
        # The predicted class is the one that nothing competes with.
        predicted = leader(radii).predicted
        near, reach = self._nearest(inputs, predicted, frozen=False)
        return guarded_radii(radii, near, reach._replace(accepting=accepting))

    def certified_radius(self, inputs: Any) -> Any:
        """`[batch]` float32, finite: no smaller perturbation changes the class; 0 where nothing is certified."""
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("radius", lambda part: self._judgement(part, frozen=False).radius, inputs)

    def availability_radius(self, inputs: Any) -> Any:
        """`[batch]` float32: no perturbation of smaller norm can force ⊥, by the certificate or by neighbours."""
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry(
            "availability", lambda part: self._outputs(part, frozen=False)["availability_radius"], inputs
        )

    def neighbour_radius(self, inputs: Any) -> Any:
        """`[batch]` float32: where stored neighbours answer, epsilon plus the distance by which an input may move and
        still be answered by them; 0 elsewhere. The answer rests on the separation that is assumed of valid inputs.
        """

        def found(part: Any) -> Any:
            details = self._judgement(part, frozen=False).details
            return details.get("neighbour_radius", ops.zeros(ops.shape(part)[:1]))

        return self._at_entry("neighbours", found, self._pass_gate(float32_tensor(inputs)))

    def radius_from_scores(self, scores: Any) -> Any:
        """The certified radius of the robustness check alone, `[batch]`, from scores `[batch, m + 1]`."""
        return self.base.radius_from_scores(scores)

    def undefended_logits(self, inputs: Any) -> Any:
        """`[batch, m]`: the network's logits at the inputs themselves, in inference mode."""
        return self.base.undefended_logits(inputs)

    def covered_drift(self, x: Any) -> Array | None:
        """The model's: neighbours answer only where its radius is positive, so its label stands too."""
        return self.base.covered_drift(x)

    @property
    def evaluation_drift(self) -> float:
        """What is taken off every margin of the model, as `DefendedModel.evaluation_drift`."""
        return self.base.evaluation_drift

    @evaluation_drift.setter
    def evaluation_drift(self, value: float) -> None:
        self.base.evaluation_drift = value
        self._aside.functions.clear()

    # Training is the model's: the guard enters at run time.

    def _batches(self) -> dict[int, Any]:
        # What losses and metrics ask of the model inside, it answers of the guard's batch.
        return self.base._batches() if isinstance(self.base, TrainingBatch) else super()._batches()

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        return self.base._slack(inputs, logits, epsilon, training, frozen)

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        return self.base._radii(inputs, logits, frozen)

    def _estimated_slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool) -> Any:
        return self.base._estimated_slack(inputs, logits, epsilon, training)

    def _logits(self, inputs: Any, training: bool) -> Any:
        return self.base._logits(inputs, training)

    def _valid(self, inputs: Any) -> Any:
        return self.base._valid(inputs)

    def _thaw(self) -> None:
        super()._thaw()
        self.base._thaw()

    def _begin_training(self) -> None:
        self.base._begin_training()
        super()._begin_training()

    def _end_training(self) -> None:
        self.base._end_training()
        super()._end_training()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with super()._entered(), self.base._entered():
            yield

    def _sealed_variables(self) -> list[Any]:
        return [*super()._sealed_variables(), *self.oracle.variables]

    @contextmanager
    def _estimating(self) -> Iterator[None]:
        with super()._estimating(), self.base._estimating():
            yield

    def _refine_estimates(self) -> None:
        self.base._refine_estimates()

    # The certificate's state.

    def finalize(self) -> None:
        """Prove the model's bounds, label the oracle's points or calibrate its score, and check the separation.

        Raises:
            ValueError: when stored points of different classes lie closer than the separation that is assumed: how
                many pairs, and the largest epsilon that holds.
        """
        super().finalize()

    def _retrace(self) -> None:
        """The model inside reads its network itself."""

    def _prove(self) -> None:
        self.base.ensure_proven()
        self.oracle.prove(self.base)
        if self.accept != "separated":
            return
        assumed = self._assumed()
        found = self.oracle.separation(assumed, self.norm)
        if found.pairs:
            raise ValueError(_too_close(found.pairs, found.smallest, assumed, self.separation))
        self._proof.named.checked_separation.assign(np.nextafter(np.float32(assumed), np.float32(np.inf)))

    def _check_evaluation(self, thorough: bool = True) -> None:
        self.base._check_evaluation(thorough)

    def trust_file(self) -> bool:
        """As for every defended model, of the model inside and of the guard."""
        return self.base.trust_file() and super().trust_file()

    def _values(self) -> list[Any]:
        return [*self.base._values(), *super()._values(), *self.oracle.variables]

    def _watched(self) -> list[Any]:
        return [*super()._watched(), *self.base._watched(), *self.oracle.variables]

    def _further_identity(self) -> list[Any]:
        about = f"{self.budget} {self.accept} {self.separation}"
        return [about, *self.base._further_identity(), *self.base._proof.values().values(), *self.oracle.variables]

    def _is_current(self) -> bool:
        if not (self.base._is_current() and super()._is_current()):
            return False
        return self.accept != "separated" or self._assumed() <= _number(self._proof.named.checked_separation)

    @property
    def certificate_method(self) -> str:  # type: ignore[override]
        """The model's, and the oracle."""
        how = (
            f"valid inputs of another class within epsilon are looked for ({self.oracle.describe()}); none found, the "
            f"robustness check decides"
        )
        if self.accept == "separated":
            how += f", or a stored point within {self.reach:g} of the predicted class, where none of another one is"
        return f"{self.base.certificate_method}; membership guard: {how}"

    @property
    def certificate_assumptions(self) -> tuple[str, ...]:  # type: ignore[override]
        """The model's, and what answers by neighbours rest on."""
        if self.accept != "separated":
            return tuple(self.base.certificate_assumptions)
        return (
            *self.base.certificate_assumptions,
            f"Answers that the robustness check alone would not give assume that every input lies within epsilon of a "
            f"valid one, and that valid inputs of different classes lie more than {self._assumed():.6g} ({self.norm}) "
            f"apart, whether stored or not. Of the {self.oracle.describe()}, all pairs were checked.",
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
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MembershipGuard:
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


def _number(variable: Any) -> float:
    return float(ops.convert_to_numpy(variable))


def _too_close(pairs: int, smallest: float, assumed: float, separation: float | None) -> str:
    largest = smallest / 2 * (1 - 4 * _ROOM)
    remedy = (
        f"set epsilon to at most {largest:.6g}, the largest that holds"
        if separation is None
        else f"assume a separation below {smallest:.6g} (so epsilon at most {largest:.6g})"
    )
    return (
        f'`accept="separated"` assumes that valid inputs of different classes lie more than {assumed:.6g} apart, and '
        f"{pairs} pairs of stored points do not: the closest two are {smallest:.6g} apart. Either {remedy}, or leave "
        f"out points that are labelled wrongly, or use accept='strict'."
    )
