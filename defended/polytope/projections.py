"""Random projections (Wong et al. 2018): *estimates* of the paper's bounds, for training wide nets.

With parallel lines, a value deviates from the centre of the relaxation by a sum of generators: one for each entry of
the input (the ball) and one for each ReLU whose sign is open (half the distance of its lines). The bound is the sum
of their magnitudes. Multiplied by independent Cauchy numbers and added up, they give a Cauchy number of that scale,
and the median of the magnitudes of K such numbers estimates it (section 3.2 there; for l2 balls, the root of the mean
square under normal numbers). K forward passes are enough for all entries of all layers, where exact bounds take a
backward pass for every entry. Nothing is proven by them.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from defended.polytope.chain import Chain
from defended.polytope.dual_bounds import DualBounds

_MARGIN = 1e-4  # cuts Cauchy numbers at 3000, beyond which float32 sums suffer and medians do not change


def projected_chain(
    bounds: DualBounds, inputs: Any, epsilon: Any, count: int, seeds: keras.random.SeedGenerator | None
) -> Chain:
    """Return a chain of parallel lines between estimated bounds.

    Args:
        bounds: of the network; rounding is not counted.
        inputs: `[batch, *shape]`.
        epsilon: `[batch]` or `[1]`.
        count: K, the number of projections.
        seeds: of the random numbers.
    """
    graph, norm = bounds.graph, bounds.norm
    chain = Chain("wong-kolter", centred=True)
    ball: dict[int, Any] = {}
    drawn: dict[int, Any] = {}
    for index, node in enumerate(graph.nodes):
        column = ops.reshape(epsilon, (-1, *[1] * len(node.shape)))
        if node.kind == "input":
            chain.bound(index, inputs - column, inputs + column)
            chain.reference[index] = inputs
            noise = _noise(norm, (1, count, *node.shape), seeds)
            ball[index] = noise * column[:, None]
            drawn[index] = ops.zeros((1, count, *node.shape))
        elif node.kind == "relu":
            source = node.sources[0]
            if not graph.nodes[source].exact:
                reach = _estimate(norm, ball[source], drawn[source])
                chain.bound(source, chain.reference[source] - reach, chain.reference[source] + reach)
            chain.reference[index] = bounds.through_relu(chain, index, column, dual=False)
            slope, half = chain.lines[index].slope[:, None], chain.reach[index][0][:, None]
            ball[index] = ball[source] * slope
            drawn[index] = drawn[source] * slope + _noise("linf", (1, count, *node.shape), seeds) * half
        elif node.kind == "add":
            chain.reference[index] = bounds.add_branches(chain, index)
            for parts in (ball, drawn):
                first, *others = (parts[source] for source in node.sources)
                parts[index] = sum(others, first)
        else:
            chain.reference[index] = bounds.through_map(chain, index, column)
            for parts in (ball, drawn):
                part = parts[node.sources[0]]
                flat = ops.reshape(part, (-1, *graph.nodes[node.sources[0]].shape))
                parts[index] = ops.reshape(node.map.linear(flat), (-1, count, *node.shape))  # type: ignore[union-attr]
    return chain


def _noise(norm: str, shape: tuple[int, ...], seeds: Any) -> Any:
    """Draw Cauchy numbers for sums of magnitudes, normal ones for roots of sums of squares."""
    if norm == "l2":
        return keras.random.normal(shape, seed=seeds)
    return ops.tan(math.pi * (keras.random.uniform(shape, _MARGIN, 1 - _MARGIN, seed=seeds) - 0.5))


def _estimate(norm: str, ball: Any, drawn: Any) -> Any:
    """Estimate how far values deviate, `[batch, *shape]`."""
    if norm == "linf":
        return _median(ops.abs(ball + drawn))
    return ops.sqrt(ops.mean(ops.square(ball), axis=1) + 1e-12) + _median(ops.abs(drawn))


def _median(values: Any) -> Any:
    count = values.shape[1]
    ordered = ops.sort(values, axis=1)
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
