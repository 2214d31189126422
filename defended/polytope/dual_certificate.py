"""The certificate of a polytope net: dual bounds on differences of logits, and the radius that they prove."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.certificate import Array, Certificate, Claims, Finding, Judge
from defended.margins import Leader, finite_rows, leader
from defended.numerics.float32 import FLOAT_MAX, SMALLEST_NORMAL
from defended.polytope.dual_bounds import DualBounds, Margins
from defended.polytope.graph import PolytopeGraph
from defended.polytope.memory import bytes_per_input
from defended.polytope.projections import projected_chain
from defended.polytope.radius import search_radius, traced_once
from defended.polytope.rounding import LARGEST_COEFFICIENTS, LARGEST_VALUE, largest_coefficients
from defended.polytope.self_check import Subject, check_evaluation
from defended.settings import ProvenConstants
from defended.tracing import CompiledFunctions

_REACH = 1.0 + 2.0**-20
_DOWN = 1.0 - 2.0**-20
_VERSION = 1  # of the bounds: what another version proved is not final here


@dataclass(eq=False, kw_only=True)
class DualCertificate(Certificate):
    """j wins within a ball where the lower bounds on `y_j - y_i` are positive for all i (Wong and Kolter 2018).

    Nothing is proven in advance but that sums cannot overflow. Arguments are those of `PolytopeNet`, and

    Args:
        network: the undefended classifier.
        proof: the model's constants, to which `safe` is added.
        compiled: compiles functions of the model.
        seeds: of random projections, where training draws them.
    """

    network: keras.Model
    proof: ProvenConstants
    compiled: CompiledFunctions
    norm: str
    slope: str
    rounding: bool
    training_bounds: str
    projections: int
    radius_steps: int
    memory_budget: int
    seeds: keras.random.SeedGenerator | None

    def __post_init__(self) -> None:
        # 1 where no sum of coefficients can overflow or vanish for the weights that were proven, otherwise 0.
        self.proof.add("safe")
        self.retrace(self.network)

    @property
    def rows_at_once(self) -> int:  # type: ignore[override]
        """Inputs that are evaluated together within the memory budget."""
        return max(1, min(256, self.memory_budget // bytes_per_input(self.graph, self._proven)))

    # Judging.

    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        logits = self.logits(inputs, training=False)
        first = leader(logits)
        epsilon = ops.broadcast_to(epsilon, ops.shape(inputs)[:1])

        def bounds(radius: Any) -> tuple[Any, Any]:
            return self.certify(inputs, first, radius)

        certify = bounds if deployed else traced_once(bounds)  # what is exported stays one flat graph
        at_epsilon = certify(epsilon)

        def radius() -> Any:
            return search_radius(certify, epsilon, self.radius_steps, at_epsilon)

        return Finding(logits, at_epsilon[0], radius, finite_rows(inputs))

    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        """Return the zeros of the bounds on `y_j - y_i` along the lines that are made for epsilon, `[batch, m]`."""
        first = leader(self.logits(inputs, training=False))
        radius = _enlarged(ops.broadcast_to(epsilon, ops.shape(inputs)[:1]))
        margins, valid = self._margins(inputs, first, radius, self._proven)
        best = _largest([margin.kept / ops.maximum(margin.steepness, SMALLEST_NORMAL) for margin in margins[:2]])
        if len(margins) > 2:
            # Boxes do not shrink with the radius; their bound is measured by the slope of the lines.
            bound = margins[2].kept - radius[:, None] * margins[2].steepness
            boxes = radius[:, None] + bound / ops.maximum(margins[1].steepness, SMALLEST_NORMAL)
            best = ops.maximum(best, boxes)
        best = ops.clip(best, -FLOAT_MAX, FLOAT_MAX)
        best = ops.where(ops.logical_and(valid[:, None], best >= -FLOAT_MAX), best, -1.0)  # NaN is not at least that
        return ops.where(first.rivals, best, FLOAT_MAX)

    def logits(self, inputs: Any, training: bool) -> Any:
        # Long inner products in blocks, which the budget for rounding counts on.
        return self.graph.values(ops.convert_to_tensor(inputs), blocked=not training)[-1]

    def margin_bounds(self, inputs: Any, radius: Any, counted: bool = True) -> Any:
        """Return lower bounds `[batch, m]` on `y_j - y_i` within radii `[batch]`; `counted` ones pay for rounding."""
        first = leader(self.logits(inputs, training=False))
        margins, valid = self._margins(inputs, first, radius, self._proven if counted else self._estimated)
        value = ops.where(valid[:, None], _best(margins, radius), -FLOAT_MAX)
        return ops.where(first.rivals, ops.maximum(value, -FLOAT_MAX), 0.0)

    def certify(self, inputs: Any, first: Leader, radius: Any) -> tuple[Any, Any]:
        """Return slack `[batch]` proven at radii `[batch]`, and the radius that the lines made for them prove alone."""
        reach = _enlarged(radius)
        margins, valid = self._margins(inputs, first, reach, self._proven)
        slack = ops.min(ops.where(first.rivals, _best(margins, reach), FLOAT_MAX), axis=-1)
        roots = [margin.kept / ops.maximum(margin.steepness, SMALLEST_NORMAL) for margin in margins]
        root = ops.minimum(ops.min(ops.where(first.rivals, _largest(roots), FLOAT_MAX), axis=-1), radius) * _DOWN
        return ops.where(valid, slack, -1.0), ops.where(ops.logical_and(valid, root > 0), root, 0.0)

    def _margins(self, inputs: Any, first: Leader, radius: Any, bounds: DualBounds) -> tuple[list[Margins], Any]:
        """Return bounds for the predicted classes over balls of radius `[batch]`, and where they hold: where a proof
        has looked at the weights, and nothing can overflow.
        """
        rows = ops.cast(ops.logical_not(first.rivals), "float32")
        chains = bounds.chains(inputs, radius)
        valid = ops.logical_or(ops.convert_to_tensor(self.proof.named.safe) > 0, ops.zeros_like(radius) > 0)
        for chain in chains:
            if chain.largest is not None:
                valid = ops.logical_and(valid, chain.largest <= LARGEST_VALUE)
        margins = [bounds.margins(chain, rows) for chain in chains]
        if self.slope == "adaptive":
            margins.append(bounds.margins(chains[-1], rows, boxes=True))
        if self.drift and not self.rounding:
            margins = [margin._replace(kept=margin.kept - self.drift) for margin in margins]
        return margins, valid

    def covered_drift(self, inputs: Any) -> Array | None:
        """Return what the bounds pay for rounding at x itself, in a ball of radius 0, `[n, m]`.

        No float32 evaluation of `y_j - y_i` is below any other by more than this, so no two are further apart.
        None where the certificate does not pay for rounding.
        """
        if not self.rounding:
            return None
        logits, bounds = [], []
        for first in range(0, len(inputs), self.rows_at_once):
            part = inputs[first : first + self.rows_at_once]
            logits.append(np.asarray(ops.convert_to_numpy(self.logits(part, training=False)), np.float64))
            bounds.append(np.asarray(ops.convert_to_numpy(self._bounds_at(part)), np.float64))
        values = np.concatenate(logits)
        return np.maximum(values.max(axis=1, keepdims=True) - values - np.concatenate(bounds), 0.0)

    def _bounds_at(self, inputs: Any) -> Any:
        """Return the bounds in a ball of radius 0."""
        return self.margin_bounds(inputs, ops.zeros(ops.shape(inputs)[:1]))

    # Training.

    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        logits = self.logits(inputs, training)
        return logits, self.estimated_slack(inputs, leader(logits), ops.broadcast_to(epsilon, ops.shape(inputs)[:1]))

    def estimated_slack(self, inputs: Any, first: Leader, radius: Any) -> Any:
        """Return the slack `[batch]` by the bounds that training uses."""
        rows = ops.cast(ops.logical_not(first.rivals), "float32")
        margins = self.estimated_margins(inputs, rows, radius)
        return ops.min(ops.where(first.rivals, margins, FLOAT_MAX), axis=-1)

    def estimated_margins(self, inputs: Any, rows: Any, radius: Any) -> Any:
        """Return bounds `[batch, m]` on `y_j - y_i` for one class j of each input, as `training_bounds` says."""
        bounds, radius = self._estimated, ops.reshape(radius, (-1,))
        boxes = self.training_bounds == "interval"
        if self.training_bounds == "projected":
            chains = [projected_chain(bounds, inputs, radius, self.projections, self.seeds)]
        else:
            chains = bounds.chains(inputs, radius, "dual" if self.training_bounds == "dual" else "interval")
        return _best([bounds.margins(chain, rows, boxes) for chain in chains], radius)

    # Proving.

    def retrace(self, network: keras.Model) -> None:
        super().retrace(network)
        self.graph = PolytopeGraph(network)
        self._proven = DualBounds(self.graph, self.norm, self.slope, counted=self.rounding)
        self._estimated = DualBounds(self.graph, self.norm, self.slope, counted=False)

    def prove(self, claims: Claims) -> None:
        self.graph.check_layers()
        sums = {}
        for index, node in enumerate(self.graph.nodes):
            if node.map is None:
                continue
            try:
                node.map.check()
            except ValueError as error:
                raise ValueError(f"Layer {node.layer!r} cannot be bounded: {error}") from None
            sums[index] = ops.convert_to_numpy(node.map.row_sums()).astype(np.float64)
            if not np.all(np.isfinite(sums[index])) or not np.all(np.isfinite(np.asarray(node.map.largest_bias()))):
                raise ValueError(
                    f"Layer {node.layer!r} cannot be bounded: the weights are not all finite, or too large to add up. "
                    f"Restore them from a checkpoint before certifying."
                )
        safe = self._proven.shares.holds and largest_coefficients(self.graph, sums) <= LARGEST_COEFFICIENTS
        self.proof.named.safe.assign(1.0 if safe or not self.rounding else 0.0)

    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        subject = Subject(
            name, self.network, self.graph, self.rounding, self.rows_at_once,
            lambda inputs: self.logits(inputs, training=False), self._bounds_at, self.compiled, judge(),
        )  # fmt: skip
        check_evaluation(subject, thorough)

    def identity(self) -> list[Any]:
        return [f"PolytopeNet {_VERSION} {self.norm} {self.slope} rounding={self.rounding}"]


def _best(margins: list[Margins], radius: Any) -> Any:
    """Return the largest of several lower bounds at radii `[batch]`, `[batch, m]`."""
    return _largest([margin.kept - radius[:, None] * margin.steepness for margin in margins])


def _largest(values: list[Any]) -> Any:
    """Return the largest of several tensors, entry by entry."""
    return functools.reduce(ops.maximum, values)


def _enlarged(radius: Any) -> Any:
    """Return a little more than the radius, so that the open ball of `radius * ABOVE` is certified with it."""
    return radius * _REACH
