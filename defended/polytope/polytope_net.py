"""Polytope nets: l∞ and l2 certificates by the dual bounds of Wong and Kolter."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from defended.defended_model import DefendedModel, Judgement, Verdicts, is_at_hand
from defended.margins import FLOAT_MAX, Leader, finite_rows, leader
from defended.networks.inputs import float32_tensor, whole_batch_size
from defended.polytope.dual_bounds import SLOPES, DualBounds, Margins
from defended.polytope.graph import PolytopeGraph
from defended.polytope.memory import bytes_per_input
from defended.polytope.projections import projected_chain
from defended.polytope.radius import ABOVE, search_radius, traced_once
from defended.polytope.rounding import LARGEST_COEFFICIENTS, LARGEST_VALUE, largest_coefficients
from defended.polytope.self_check import check_evaluation
from defended.training.training_batch import TrainingBatch

Array = np.ndarray[Any, np.dtype[Any]]

NORMS = ("linf", "l2")
TRAINING_BOUNDS = ("dual", "crown-ibp", "interval", "projected")
_TINY = 2.0**-126
_REACH = 1.0 + 2.0**-20
_DOWN = 1.0 - 2.0**-20
_VERSION = 1  # of the bounds: what another version proved is not final here


@keras.saving.register_keras_serializable(package="defended")
class PolytopeNet(TrainingBatch, DefendedModel):
    """A ReLU classifier with an l∞ or l2 certificate from dual bounds (Wong and Kolter 2018).

    A point x is certified at eps when the lower bounds on `y_j - y_i` over the closed ball around it are positive, for
    the predicted class j and every other class i. They bound the logits as float32 computes them anywhere in the ball,
    and the exact ones too. The score of ⊥ is `top score - smallest bound`, differentiable, so `fit`
    trains the certificate. The bounds need one backward pass for every hidden ReLU and class; nothing is proven in
    advance but that sums cannot overflow (`finalize`).

    Args:
        network: a built Sequential or functional model with logits out, of Dense, Conv2D, ReLU, Flatten, Reshape,
            AveragePooling2D, GlobalAveragePooling2D and Add layers; or, together with `outputs`, the input tensor of
            the functional API.
        outputs: the output tensor, where `network` is the input tensor.
        epsilon: radius defended at run time, in input units; positive.
        norm: `"linf"` or `"l2"`.
        slope: of the line below a ReLU whose sign is open: `"wong-kolter"`, the paper's u / (u - l), or `"adaptive"`:
            0 or 1, whichever leaves less (CROWN, Zhang et al. 2018), and everywhere the tightest of these bounds, the
            paper's own and interval arithmetic's. So it is never looser than the paper's, at about three times the
            cost.
        training_bounds: which bounds `fit` trains and validates by; they are estimates, as rounding is not counted.
            `"dual"`: the deployed ones. `"crown-ibp"`: interval arithmetic for hidden values and the dual for the
            logits (Zhang et al. 2020). `"interval"`: interval arithmetic (Gowal et al. 2018), the cheapest.
            `"projected"`: the paper's slope, with hidden bounds estimated by random projections (Wong et al. 2018).
        projections: numbers drawn for each such estimate.
        rounding: whether the certificate pays for rounding. False certifies real arithmetic only, and says so among its
            assumptions.
        radius_steps: evaluations that search the certified radius, after the one at epsilon; the first of them is at
            2 eps where epsilon is certified.
        memory_budget: bytes that one evaluation may hold; larger batches are evaluated in parts.

    Raises:
        ValueError: for a layer that has no bounds (named, with the remedy), several inputs or outputs, a network that
            ends in softmax, or an argument out of range.

    Example:
        >>> model = PolytopeNet(network, epsilon=0.1, training_bounds="interval")
        >>> model.compile("adam", loss="certified_crossentropy", metrics=["clean_accuracy", "vra"])
        >>> model.fit(x, y, epochs=20, callbacks=[EpsilonSchedule("linear", by_batch=True)])
        >>> model.verdicts(x_test).rejected.mean()
    """

    _graph: PolytopeGraph
    _proven: DualBounds
    _estimated: DualBounds

    def __init__(
        self,
        network: Any,
        outputs: Any = None,
        *,
        epsilon: float,
        norm: str = "linf",
        slope: str = "adaptive",
        training_bounds: str = "dual",
        projections: int = 50,
        rounding: bool = True,
        radius_steps: int = 5,
        memory_budget: int = 2**28,
        name: str | None = None,
        **kwargs: Any,
    ):
        for argument, value, known in (
            ("norm", norm, NORMS), ("slope", slope, SLOPES), ("training_bounds", training_bounds, TRAINING_BOUNDS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, known))}. Received: {value!r}")
        for argument, number, least in (
            ("projections", projections, 1), ("radius_steps", radius_steps, 1), ("memory_budget", memory_budget, 1),
        ):  # fmt: skip
            if isinstance(number, bool) or int(number) != number or number < least:
                raise ValueError(f"`{argument}` must be a whole number of at least {least}. Received: {number!r}")
        super().__init__(network, outputs, epsilon=epsilon, norm=norm, name=name, **kwargs)
        self.slope, self.training_bounds, self.rounding = slope, training_bounds, bool(rounding)
        self.projections, self.radius_steps = int(projections), int(radius_steps)
        self.memory_budget = int(memory_budget)
        self._retrace()
        self._seeds = keras.random.SeedGenerator(0) if training_bounds == "projected" else None
        # 1 where no sum of coefficients can overflow or vanish for the weights that were proven, otherwise 0.
        self._proof.add("safe")

    @property
    def certificate_method(self) -> str:  # type: ignore[override]
        """The method, for manifests and reports."""
        lines = "the paper's slope" if self.slope == "wong-kolter" else "the tighter of its slope and CROWN's"
        return f"dual bounds on differences of logits (Wong and Kolter 2018), {lines}"

    @property
    def certificate_assumptions(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the certificate takes for granted."""
        distance = "the largest change of an entry (l-infinity)" if self.norm == "linf" else "Euclidean (l2)"
        return (
            f"Distances are {distance} on the model's input, in the units of that input; the ball is not cut at a box.",
            "The network and its bounds are evaluated in IEEE float32: inner products in the blocks in which the graph "
            "states them, each in any order, with or without fused multiply-add, subnormal numbers kept or flushed; no "
            "TF32, bfloat16 or half precision, and no convolution by Winograd's or Fourier's method."
            if self.rounding
            else "The network and its bounds are evaluated in real arithmetic: the rounding of float32 is not counted.",
        )

    # Bounds.

    def margin_lower_bounds(self, inputs: Any, epsilon: Any = None) -> Any:
        """`[batch, m]`: lower bounds on `y_j - y_i` over the closed ball, for the predicted class j and each class i.

        They hold of the exact logits and of those that float32 computes, anywhere in the ball; proven where the model
        is final. 0 for i = j; minus the largest float32 where nothing can be said: an input that is not finite, or
        values that could overflow.

        Args:
            inputs: `[batch, *input shape]`.
            epsilon: radius, a number or `[batch]`, not negative; None for `model.epsilon`.
        """
        inputs = self._pass_gate(float32_tensor(inputs))
        if epsilon is None:
            radius = ops.convert_to_tensor(self.epsilon)
        elif ops.is_tensor(epsilon):
            radius = epsilon
        else:
            radius = np.asarray(epsilon, "float32")
            if not (np.all(np.isfinite(radius)) and np.all(radius >= 0) and radius.ndim <= 1):
                raise ValueError(
                    f"`epsilon` must be a finite number that is not negative, or one for each input. "
                    f"Received: {epsilon!r}"
                )
        radius = ops.broadcast_to(ops.cast(radius, "float32"), ops.shape(inputs)[:1])
        return self._in_parts(self._margin_bounds, inputs, radius)

    def _margin_bounds(self, inputs: Any, radius: Any) -> Any:
        first = leader(self._logits(inputs, training=False))
        margins, valid = self._margins(inputs, first, radius)
        value = ops.where(valid[:, None], _best(margins, radius), -FLOAT_MAX)
        return ops.where(first.rivals, ops.maximum(value, -FLOAT_MAX), 0.0)

    def competitor_radii(self, inputs: Any) -> Any:
        """`[batch, m]`: radius at which class i might overtake, by the lines made for epsilon; differentiable in x.

        The lines hold within epsilon, where the bound on `y_j - y_i` falls linearly with the radius: this is its zero.
        So it is above epsilon exactly where class i is excluded at epsilon; below epsilon it is proven, above it
        an extrapolation. For attacks, which descend it. The largest float32 for the predicted class.
        """
        return self._at_entry("radii", self._competitor_radii, self._pass_gate(float32_tensor(inputs)))

    def _competitor_radii(self, inputs: Any) -> Any:
        first = leader(self._logits(inputs, training=False))
        radius = _enlarged(ops.broadcast_to(ops.convert_to_tensor(self.epsilon), ops.shape(inputs)[:1]))
        margins, valid = self._margins(inputs, first, radius)
        best = _largest([margin.kept / ops.maximum(margin.steepness, _TINY) for margin in margins[:2]])
        if len(margins) > 2:
            # Boxes do not shrink with the radius; their bound is measured by the slope of the lines.
            bound = margins[2].kept - radius[:, None] * margins[2].steepness
            boxes = radius[:, None] + bound / ops.maximum(margins[1].steepness, _TINY)
            best = ops.maximum(best, boxes)
        best = ops.clip(best, -FLOAT_MAX, FLOAT_MAX)
        best = ops.where(ops.logical_and(valid[:, None], best >= -FLOAT_MAX), best, -1.0)  # NaN is not at least that
        return ops.where(first.rivals, best, FLOAT_MAX)

    def certified_radius(self, inputs: Any) -> Any:
        """`[batch]` float32: no perturbation of smaller norm changes the predicted class; 0 where nothing is certified.

        Found by bisection on [0, 4 eps]: a lower bound, never below what the bounds at eps and at 2 eps prove, and at
        most 3.94 eps with the default number of steps.
        """
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._at_entry("radius", lambda part: self._judgement(part, frozen=False).radius, inputs)

    def availability_radius(self, inputs: Any) -> Any:
        """`[batch]` float32 `max(r - eps, 0)`: within it, no perturbation should force ⊥.

        Not a proof: over a ball inside another one the bounds are as a rule tighter, but lines follow their bounds, and
        need not leave less. A wrong *answer* stays impossible.
        """
        return super().availability_radius(inputs)

    def verdicts(self, x: Any, batch_size: int | None = None) -> Verdicts:
        """As for every defended model; `batch_size` is at most what fits the memory budget, and by default that."""
        most = self.rows_at_once
        return super().verdicts(x, batch_size=most if batch_size is None else min(whole_batch_size(batch_size), most))

    @property
    def rows_at_once(self) -> int:
        """Inputs that are evaluated together within the memory budget."""
        return max(1, min(256, self.memory_budget // bytes_per_input(self._graph, self._proven)))

    def rounding_slack(self, inputs: Any, epsilon: Any = None) -> Any:
        """`[batch, m]`: what rounding takes off `margin_lower_bounds`, against the same bounds without it."""
        exact, counted = self._estimated, self._proven
        with_rounding = self.margin_lower_bounds(inputs, epsilon)
        try:
            self._proven = exact
            self._aside.functions.pop("margins", None)
            without = self.margin_lower_bounds(inputs, epsilon)
        finally:
            self._proven = counted
            self._aside.functions.pop("margins", None)
        return without - with_rounding

    def _margins(self, inputs: Any, first: Leader, radius: Any, frozen: bool = False) -> tuple[list[Margins], Any]:
        """Bounds for the predicted classes over balls of radius `[batch]`, and where they are proven: where a proof has
        looked at the weights, and nothing can overflow.
        """
        rows = ops.cast(ops.logical_not(first.rivals), "float32")
        chains = self._proven.chains(inputs, radius)
        valid = ops.logical_or(self._safe_for_weights(frozen), ops.zeros_like(radius) > 0)
        for chain in chains:
            if chain.largest is not None:
                valid = ops.logical_and(valid, chain.largest <= LARGEST_VALUE)
        margins = [self._proven.margins(chain, rows) for chain in chains]
        if self.slope == "adaptive":
            margins.append(self._proven.margins(chains[-1], rows, boxes=True))
        if self.evaluation_drift and not self.rounding:
            margins = [margin._replace(kept=margin.kept - self.evaluation_drift) for margin in margins]
        return margins, valid

    def covered_drift(self, x: Any) -> Array | None:
        """`[n, m]`: what the bounds pay for rounding at x itself, in a ball of radius 0.

        No float32 evaluation of `y_j - y_i` is further below any other than this, and so no two are further apart.
        None where the certificate does not pay for rounding.
        """
        if not self.rounding:
            return None
        inputs = float32_tensor(x)
        logits = np.asarray(ops.convert_to_numpy(self._logits(inputs, training=False)), np.float64)
        bounds = np.asarray(ops.convert_to_numpy(self.margin_lower_bounds(inputs, 0.0)), np.float64)
        return np.maximum(logits.max(axis=1, keepdims=True) - logits - bounds, 0.0)

    def _safe_for_weights(self, frozen: bool) -> Any:
        safe = ops.convert_to_tensor(self._proof.named.safe) > 0
        return safe if frozen else ops.logical_and(safe, self._is_sealed())

    def _estimated_margins(self, inputs: Any, rows: Any, radius: Any) -> Any:
        """`[batch, m]` bounds on `y_j - y_i` for one class of each input, as `training_bounds` says."""
        bounds, radius = self._estimated, ops.reshape(radius, (-1,))
        boxes = self.training_bounds == "interval"
        if self.training_bounds == "projected":
            chains = [projected_chain(bounds, inputs, radius, self.projections, self._seeds)]
        else:
            chains = bounds.chains(inputs, radius, "dual" if self.training_bounds == "dual" else "interval")
        return _best([bounds.margins(chain, rows, boxes) for chain in chains], radius)

    def _certify(self, inputs: Any, first: Leader, radius: Any, frozen: bool = False) -> tuple[Any, Any]:
        """Proven slack `[batch]` at radii `[batch]`, and the radius that the lines made for it prove by themselves."""
        reach = _enlarged(radius)
        margins, valid = self._margins(inputs, first, reach, frozen)
        slack = ops.min(ops.where(first.rivals, _best(margins, reach), FLOAT_MAX), axis=-1)
        roots = [margin.kept / ops.maximum(margin.steepness, _TINY) for margin in margins]
        root = ops.minimum(ops.min(ops.where(first.rivals, _largest(roots), FLOAT_MAX), axis=-1), radius) * _DOWN
        return ops.where(valid, slack, -1.0), ops.where(ops.logical_and(valid, root > 0), root, 0.0)

    def _estimate(self, inputs: Any, first: Leader, radius: Any) -> tuple[Any, Any]:
        rows = ops.cast(ops.logical_not(first.rivals), "float32")
        margins = self._estimated_margins(inputs, rows, radius)
        slack = ops.min(ops.where(first.rivals, margins, FLOAT_MAX), axis=-1)
        return slack, ops.zeros_like(slack)

    # What a defended model is asked.

    def _logits(self, inputs: Any, training: bool) -> Any:
        # Long inner products in blocks, which the budget for rounding counts on.
        return self._graph.values(ops.convert_to_tensor(inputs), blocked=not training)[-1]

    def _estimated_slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool) -> Any:
        return self._estimate(inputs, leader(logits), ops.broadcast_to(epsilon, ops.shape(inputs)[:1]))[0]

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        return self._in_parts(
            lambda inputs, radius: self._certify(inputs, leader(self._logits(inputs, False)), radius, frozen)[0],
            inputs, ops.broadcast_to(epsilon, ops.shape(inputs)[:1]),
        )  # fmt: skip

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        """The certified radius for every rival: what the smallest of them is known to be."""
        radius = self._judgement(inputs, frozen).radius
        return ops.where(leader(logits).rivals, radius[:, None], FLOAT_MAX)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        logits = self._logits(inputs, training=False)
        first = leader(logits)
        epsilon = ops.broadcast_to(ops.convert_to_tensor(self.epsilon), ops.shape(inputs)[:1])

        def certify(radius: Any) -> tuple[Any, Any]:
            return self._certify(inputs, first, radius, frozen)

        # What is exported stays one flat graph.
        slack, radius = search_radius(certify if frozen else traced_once(certify), epsilon, self.radius_steps)
        valid = self._valid(inputs)
        proven = ops.logical_and(valid, finite_rows(logits))
        radius = ops.where(ops.logical_and(proven, radius > 0), ops.minimum(radius, FLOAT_MAX), 0.0)
        return Judgement(self.head(logits, slack, valid), radius)

    def _retrace(self) -> None:
        self._graph = PolytopeGraph(self.network)
        self._proven = DualBounds(self._graph, self.norm, self.slope, counted=self.rounding)
        self._estimated = DualBounds(self._graph, self.norm, self.slope, counted=False)

    def _prove(self) -> None:
        self._graph.check_layers()
        sums = {}
        for index, node in enumerate(self._graph.nodes):
            if node.map is None:
                continue
            sums[index] = ops.convert_to_numpy(node.map.row_sums()).astype(np.float64)
            if not np.all(np.isfinite(sums[index])) or not np.all(np.isfinite(np.asarray(node.map.largest_bias()))):
                raise ValueError(
                    f"Layer {node.layer!r} cannot be bounded: the weights are not all finite, or too large to add up. "
                    f"Restore them from a checkpoint before certifying."
                )
        safe = self._proven.shares.holds and largest_coefficients(self._graph, sums) <= LARGEST_COEFFICIENTS
        self._proof.named.safe.assign(1.0 if safe or not self.rounding else 0.0)

    def _check_evaluation(self, thorough: bool = True) -> None:
        check_evaluation(self, thorough)

    def _further_identity(self) -> list[Any]:
        return [f"PolytopeNet {_VERSION} {self.norm} {self.slope} rounding={self.rounding}"]

    # Training.

    def worst_case_logits(self, rows: Any) -> Any:
        """`[batch, m]`: minus the bounds on `y_t - y_i`, for the batch whose loss or metrics are being computed.

        Args:
            rows: `[batch, m]`, one-hot rows of the classes t.

        Raises:
            RuntimeError: outside of `fit`, `evaluate` and their like.
        """
        inputs, radius = self._batch_inputs(), self._batch_radius()
        return (rows - 1.0) * self._estimated_margins(inputs, rows, radius)

    def radius_from_scores(self, scores: Any) -> Any:
        """`[batch]`: the radii at which the batch at hand is certified: 0, eps or 2 eps (and a trifle).

        Metrics use it. In a training step it is the training radius or 0, and so it is outside of `fit` and `evaluate`,
        where scores come without inputs (for `model.epsilon`).
        """
        epsilon = ops.convert_to_tensor(self.epsilon)
        if not self._batch_is_known() or self._batch_is_training():
            slack = ops.max(scores[:, :-1], axis=-1) - scores[:, -1]
            return ops.where(slack > 0, self._batch_radius() * ABOVE, 0.0)
        inputs = self._batch_inputs()
        first = leader(scores[:, :-1])
        found: Any = 0.0
        for factor in (1.0, 2.0):
            radius = ops.broadcast_to(factor * epsilon, ops.shape(inputs)[:1])
            slack, _ = (self._estimate if self._is_estimating() else self._certify)(inputs, first, radius)
            found = ops.where(slack > 0, radius * ABOVE, found)
        return found

    # Memory.

    def _in_parts(self, function: Any, inputs: Any, *others: Any) -> Any:
        """`function`, in parts that fit the memory budget where inputs are at hand; inside a graph as it is."""
        if not is_at_hand(inputs):
            return function(inputs, *others)
        rows, count = self.rows_at_once, int(inputs.shape[0])
        if count <= rows:
            return function(inputs, *others)
        parts = [
            function(*(value[first : first + rows] for value in (inputs, *others))) for first in range(0, count, rows)
        ]
        return ops.concatenate(parts, axis=0)

    def get_config(self) -> dict[str, Any]:
        names = (
            "norm", "slope", "training_bounds", "projections", "rounding", "radius_steps", "memory_budget",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _best(margins: list[Margins], radius: Any) -> Any:
    """The largest of several lower bounds at radii `[batch]`, `[batch, m]`."""
    return _largest([margin.kept - radius[:, None] * margin.steepness for margin in margins])


def _largest(values: list[Any]) -> Any:
    """The largest of several tensors, entry by entry."""
    best = values[0]
    for value in values[1:]:
        best = ops.maximum(best, value)
    return best


def _enlarged(radius: Any) -> Any:
    """A little more than the radius, so that the open ball of `radius * ABOVE` is certified with it."""
    return radius * _REACH
