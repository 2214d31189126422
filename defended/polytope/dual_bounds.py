"""Lower bounds on differences of logits over a ball: the dual of Wong and Kolter (2018), layer by layer.

A row of coefficients a on a value v is carried back towards the input: through an affine map by its transpose, through
a ReLU by the slope of one of two lines, the lower one where the coefficient is positive and the upper one where it is
negative. Measured from a reference point (the values at x), what is left of `a · z_v(x')` is

    a · z_v(x) - sum over ReLUs of (positive part · reach below + negative part · reach above) - eps * |a_0|_dual,

with a_0 what arrives at the input, and the dual norm l1 for l∞ balls and l2 for l2 balls. The lines need bounds on
every ReLU's argument, which are found the same way, layer by layer from the input.

With the paper's slope both lines are parallel, so that coefficients do not depend on signs: one pass gives lower and
upper bounds, symmetric around the centre of the relaxation.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from keras import ops

from defended.numerics.float32 import UNIT_ROUNDOFF
from defended.polytope.affine_maps import AffineMap, ReshapeMap, identity
from defended.polytope.chain import Chain
from defended.polytope.graph import Node, PolytopeGraph
from defended.polytope.patches import Patches
from defended.polytope.reductions import dual_norm, weighted
from defended.polytope.relaxation import constant_lines, lines
from defended.polytope.rounding import Shares

SLOPES = ("adaptive", "wong-kolter")
_SMALLEST_SQUARE = 1e-30  # keeps the gradient of a root finite, and enlarges the root by 1e-15


class Margins(NamedTuple):
    """A lower bound `kept - eps * steepness` on a difference of logits, each `[batch, targets]`.

    It holds for every radius up to the one that the lines were made for.
    """

    kept: Any
    steepness: Any


class DualBounds:
    """The bounds of one network.

    Args:
        graph: the network.
        norm: of the ball, `"l2"` or `"linf"`.
        slope: `"wong-kolter"`, or `"adaptive"`: then all bounds are the tighter ones of both and of interval
            arithmetic, the paper's own among them, so that no bound is looser than the paper's.
        counted: whether bounds pay for rounding.
    """

    def __init__(self, graph: PolytopeGraph, norm: str, slope: str = "adaptive", counted: bool = True):
        self.graph, self.norm, self.slope = graph, norm, slope
        # Arguments of ReLUs that are carried back.
        refined = {graph.nodes[index].sources[0] for index in graph.relus}
        chains = {index: graph.chain_of_patches(index) for index in sorted(refined) if not graph.nodes[index].exact}
        self._patches = {index: Patches(graph, chain, norm) for index, chain in chains.items() if chain is not None}
        shapes = [shape for patches in self._patches.values() for shape in patches.shapes]
        self.shares = Shares(graph, counted, shapes)
        # The difference of logits is rounded twice, and what is spent four times.
        self._roundings = 4 * UNIT_ROUNDOFF if counted else 0.0

    def chains(self, inputs: Any, epsilon: Any, hidden: str = "dual") -> list[Chain]:
        """Return bounds on all values over the balls of radius `epsilon` `[batch]` around `inputs`.

        With the adaptive slope, these are the paper's chain and the tighter one. `hidden="interval"` bounds hidden
        values by interval arithmetic only, in one chain: looser, and much cheaper.
        """
        if hidden == "interval":
            chain = Chain(self.slope, reference=dict(enumerate(self.graph.values(inputs, self.shares.counted))))
            return [self._filled(chain, inputs, epsilon, dual=False)]
        paper = self._filled(Chain("wong-kolter", centred=True), inputs, epsilon)
        if self.slope == "wong-kolter":
            return [paper]
        tight = Chain("adaptive", reference=dict(enumerate(self.graph.values(inputs, self.shares.counted))))
        return [paper, self._filled(tight, inputs, epsilon, others=paper)]

    def margins(self, chain: Chain, rows: Any, boxes: bool = False) -> Margins:
        """Return lower bounds on `y_j - y_i` for one class j of each input and every i, `[batch, m]`.

        Args:
            chain: bounds on all values.
            rows: `[batch, m]`, one-hot rows of the classes j.
            boxes: carry coefficients back to the last ReLUs only, and take these in their boxes: interval arithmetic
                with the last layers merged.
        """
        output, m = self.graph.output, self.graph.num_classes
        targets = rows[:, None, :] - identity(m)[None]
        reference = chain.reference[output]
        difference = ops.sum(rows * reference, axis=-1, keepdims=True) - reference
        spent, norm = self._carried_back(chain, output, targets, "lower", boxes)
        if self.shares.counted:
            pending = ops.sum(rows * chain.pending[output], axis=-1, keepdims=True) + chain.pending[output]
            spent = spent + pending
            spent = spent + self._roundings * (ops.abs(difference) + spent) + self.shares.flushed
        return Margins(difference - spent, norm)

    def entries_of_coefficients(self, index: int) -> int:
        """Count the entries of the largest tensor of coefficients that carrying back a value makes for one input."""
        size = self.graph.nodes[index].size
        if index in self._patches:
            return size * self._patches[index].largest
        return size * max(node.size for node in self.graph.nodes[:index])

    # Bounds on all values, node by node.

    def _filled(self, chain: Chain, inputs: Any, epsilon: Any, others: Chain | None = None, dual: bool = True) -> Chain:
        """Compute a chain's bounds, and return it; `others` holds bounds that it may use besides its own."""
        for index, node in enumerate(self.graph.nodes):
            column = ops.reshape(epsilon, (-1, *[1] * len(node.shape)))
            if node.kind == "input":
                chain.bound(index, inputs - column, inputs + column)
                chain.largest = _largest(chain.size[index])
                reference = inputs
            elif node.kind == "relu":
                reference = self.through_relu(chain, index, column, others, dual)
            elif node.kind == "add":
                reference = self.add_branches(chain, index)
            else:
                reference = self.through_map(chain, index, column)
            if chain.centred:
                chain.reference[index] = reference
        return chain

    def through_relu(
        self, chain: Chain, index: int, column: Any, others: Chain | None = None, dual: bool = True
    ) -> Any:
        """Refine the bounds on a ReLU's argument and enclose it between lines; return its reference if centred."""
        source = self.graph.nodes[index].sources[0]
        if dual and not self.graph.nodes[source].exact:
            self._refine(chain, source, column)
        lower, upper = chain.lower[source], chain.upper[source]
        if others is not None:
            lower, upper = ops.maximum(lower, others.lower[source]), ops.minimum(upper, others.upper[source])
            chain.bound(source, lower, upper)
        made = lines(lower, upper, chain.pending.get(source, 0.0), chain.slope)
        chain.lines[index] = made
        chain.bound(index, ops.relu(lower), ops.relu(upper))
        argument = chain.reference[source]
        if not chain.centred:
            chain.reach[index] = made.reach(argument, chain.reference[index])
            return None
        # Parallel lines: the middle between them, and half of their distance.
        chain.reach[index] = ((made.lift + made.low_drop) / 2,) * 2
        return made.slope * argument + (made.lift - made.low_drop) / 2

    def add_branches(self, chain: Chain, index: int) -> Any:
        """Bound a sum of branches, and what rounding costs in it; return its reference if centred."""
        sources = self.graph.nodes[index].sources
        lower, upper = (_sum(bound[source] for source in sources) for bound in (chain.lower, chain.upper))
        if self.shares.counted:
            size = _sum(chain.size[source] for source in sources)
            rounding = self.shares.added[index] * size
            lower, upper = lower - rounding, upper + rounding
            chain.pending[index] = _sum([rounding, *(chain.pending[i] for i in sources if i in chain.pending)])
            chain.largest = ops.maximum(chain.largest, _largest(size))
        chain.bound(index, lower, upper)
        return _sum(chain.reference[source] for source in sources) if chain.centred else None

    def through_map(self, chain: Chain, index: int, column: Any) -> Any:
        """Bound an affine map by interval arithmetic, rounding included; return its reference if centred."""
        node = self.graph.nodes[index]
        affine, source = _map_of(node), node.sources[0]
        below, above = chain.lower[source], chain.upper[source]
        radius = spread = affine.magnitudes((above - below) / 2, self.shares.counted)
        if self.graph.nodes[source].moved and self.norm == "l2" and not isinstance(affine, ReshapeMap):
            squares = affine.squares(ops.ones((1, *affine.input_shape)))
            radius = column * ops.sqrt(ops.maximum(squares, _SMALLEST_SQUARE))
        centre = affine.forward((below + above) / 2, self.shares.counted)
        if self.shares.counted:
            sums = affine.magnitudes(chain.size[source]) + affine.bias_magnitudes()
            radius = radius + self.shares.interval[index] * sums + self.shares.flushed
            pending = self.shares.affine[index] * sums + self.shares.transposed[index] * spread
            if source in chain.pending:
                pending = pending + affine.magnitudes(chain.pending[source])
            chain.pending[index] = pending
            chain.largest = ops.maximum(chain.largest, _largest(sums))
        chain.bound(index, centre - radius, centre + radius)
        return affine.forward(chain.reference[source], self.shares.counted) if chain.centred else None

    def _refine(self, chain: Chain, index: int, column: Any) -> None:
        """Bound every entry of a ReLU's argument by carrying it back to the input."""
        reference = chain.reference[index]

        def spent(side: str) -> Any:
            away, norm = self._entries_carried_back(chain, index, side)
            away = away + column * norm
            if not self.shares.counted:
                return away
            away = away + chain.pending[index]
            return away + self._roundings * (ops.abs(reference) + away) + self.shares.flushed

        down = spent("lower")
        if chain.centred:
            # The paper's own bounds: interval arithmetic has no say in them.
            chain.bound(index, reference - down, reference + down)
        else:
            lower, upper = chain.lower[index], chain.upper[index]
            up = spent("upper")
            chain.bound(index, ops.maximum(lower, reference - down), ops.minimum(upper, reference + up))

    # Rows of coefficients, carried back to the input.

    def _entries_carried_back(self, chain: Chain, index: int, side: str) -> tuple[Any, Any]:
        """Return what `_carried_back` does for every entry of a value, `[batch, *shape]` twice."""
        if index in self._patches:
            spent, norm = self._patches[index].carried_back(chain, side)
            more = 1.0 + self.shares.sums
            return spent * more, norm * more
        node = self.graph.nodes[index]
        spent, norm = self._carried_back(chain, index, None, side)
        return (ops.reshape(part, (-1, *node.shape)) for part in (spent, norm))  # type: ignore[return-value]

    def _carried_back(self, chain: Chain, index: int, rows: Any, side: str, boxes: bool = False) -> tuple[Any, Any]:
        """Return what lines and ball may take from rows of coefficients on a value, `[batch, targets]` twice.

        Args:
            chain: lines for all ReLUs before.
            index: the value.
            rows: `[batch, targets, *shape]`; None for each of its entries.
            side: `"lower"` bounds the value from below, `"upper"` from above.
            boxes: stop at the last ReLUs, and take them in their boxes.

        Returns:
            what the lines take, and the dual norm of what arrives at the input, to be multiplied by the radius.
        """
        nodes = self.graph.nodes
        node = nodes[index]
        if rows is None and node.kind == "affine":
            waiting = {node.sources[0]: _map_of(node).matrix_rows()[None]}
        else:
            waiting = {index: identity(node.size)[None] if rows is None else rows}
            waiting[index] = ops.reshape(waiting[index], (-1, waiting[index].shape[1], *node.shape))
        targets = next(iter(waiting.values())).shape[1]
        spent: list[Any] = []
        for at in range(index, 0, -1):
            if at not in waiting:
                continue
            coefficients, node = waiting.pop(at), nodes[at]
            if node.kind == "relu" and boxes:
                spent.append(self._taken_by_boxes(chain, at, coefficients))
                continue
            if node.kind == "relu":
                sums = functools.partial(weighted, shape=node.shape)
                coefficients, taken = chain.through_relu(at, coefficients, side, sums, lambda values: values[:, None])
                spent.append(taken)
            elif node.kind == "affine":
                flat = ops.reshape(coefficients, (-1, *node.shape))
                below = nodes[node.sources[0]].shape
                coefficients = ops.reshape(_map_of(node).transposed(flat), (-1, targets, *below))
            for source in node.sources:
                waiting[source] = waiting[source] + coefficients if source in waiting else coefficients
        norm = dual_norm(waiting[0], nodes[0].shape, self.norm) if 0 in waiting else ops.zeros((1, targets))
        taken = _sum(spent) if spent else ops.zeros((1, targets))
        return taken * (1.0 + self.shares.sums), norm * (1.0 + self.shares.sums)

    def _taken_by_boxes(self, chain: Chain, index: int, rows: Any) -> Any:
        """Return what is taken from rows of coefficients on a ReLU that lies in its box, `[batch, targets]`."""
        shape, reference = self.graph.nodes[index].shape, chain.reference[index]
        below, above = constant_lines(chain.lower[index], chain.upper[index]).reach(reference, reference)
        positive = ops.relu(rows)
        return weighted(positive, below, shape) + weighted(positive - rows, above, shape)


def _largest(values: Any) -> Any:
    return ops.max(ops.abs(values), axis=tuple(range(1, len(values.shape))))


def _sum(values: Iterable[Any]) -> Any:
    return functools.reduce(operator.add, values)


def _map_of(node: Node) -> AffineMap:
    if node.map is None:
        raise ValueError(f"The value of layer {node.layer!r} is not an affine map of another.")
    return node.map
