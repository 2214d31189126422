"""Bounds on the entries of a convolution, each followed back on its own patch of the values below."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from keras import ops

from defended.polytope.affine_maps import identity
from defended.polytope.chain import Chain
from defended.polytope.element_maps import ScaleMap
from defended.polytope.graph import Node, PolytopeGraph
from defended.polytope.kernel_maps import ConvMap
from defended.polytope.reductions import Shape, as_map, dual_norm, product, total


class _Level:
    """Where the patches of all positions lie in the map of one value below.

    The patch of position p begins at `p * step - offset`, in rows and in columns, and may reach beyond the map.
    """

    def __init__(self, node: Node, positions: tuple[int, int], size: Any, step: Any, offset: Any):
        height, width, self.channels = as_map(node.shape)
        self.size = int(size[0]), int(size[1])
        self._area = height * width
        axes = []
        for count, n, s, o, length in zip(positions, size, step, offset, (height, width), strict=True):
            at = np.arange(count)[:, None] * s - o + np.arange(n)[None, :]
            axes.append((at, (at >= 0) & (at < length)))
        (rows, row_inside), (columns, column_inside) = axes
        index = rows[:, None, :, None] * width + columns[None, :, None, :]
        inside = row_inside[:, None, :, None] & column_inside[None, :, None, :]
        self._places = np.where(inside, index, self._area).reshape(-1).astype("int32")
        self.positions = math.prod(positions)
        self._inside = inside.reshape(self.positions, *self.size, 1).astype("float32")

    def gather(self, values: Any) -> Any:
        """Cut `[batch, height, width, channels]` into patches `[batch, positions, h * w * channels]`, padded with 0."""
        flat = ops.reshape(values, (-1, self._area, self.channels))
        flat = ops.pad(flat, ((0, 0), (0, 1), (0, 0)))
        taken = ops.take(flat, self._places, axis=1)
        return ops.reshape(taken, (-1, self.positions, math.prod(self.size) * self.channels))

    def inside(self, coefficients: Any) -> Any:
        """Return coefficients `[..., positions, targets, h, w, channels]`, 0 outside the map."""
        return coefficients * self._inside[:, None]


class Patches:
    """The entries of one value, a convolution, its multiple or what a map leaves as it is, carried back to the input.

    Args:
        graph: the network.
        chain: the nodes from the value down to the input, as `PolytopeGraph.chain_of_patches` gives them.
        norm: of the ball.
    """

    def __init__(self, graph: PolytopeGraph, chain: list[int], norm: str):
        self.norm = norm
        self._nodes = [(index, graph.nodes[index]) for index in chain]
        target = self._nodes[0][1]
        self._shape = target.shape
        rows, columns, _ = as_map(target.shape)
        positions = rows, columns
        size, step, offset = np.ones(2, int), np.ones(2, int), np.zeros(2, int)
        self._levels: dict[int, _Level] = {}
        for (index, node), (_, above) in zip(self._nodes[1:], self._nodes[:-1], strict=True):
            if isinstance(above.map, ConvMap):
                strides, kernel = np.array(above.map.strides), np.array(above.map.kernel_size)
                size, step = (size - 1) * strides + kernel, step * strides
                offset = offset * strides + np.array(above.map.offsets)
            self._levels[index] = _Level(node, positions, size, step, offset)

    @property
    def largest(self) -> int:
        """The number of entries of the largest patch."""
        return max(math.prod(shape) for shape in self.shapes)

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the patches, each on the map of one value below."""
        return [(*level.size, level.channels) for level in self._levels.values()]

    def carried_back(self, chain: Chain, side: str) -> tuple[Any, Any]:
        """Return what lines take from each entry, and the dual norm of what reaches the input: `[batch, *shape]`."""
        first, filters = self._nodes[0][1].map, self._shape[-1]
        single = ops.reshape(identity(filters), (1, 1, filters, filters))
        if isinstance(first, ScaleMap):
            single = single * ops.reshape(first.factor, (-1,))
        # One row of coefficients for each filter, the same at all positions: [1, 1, filters, h, w, channels].
        coefficients = ops.transpose(first.kernel if isinstance(first, ConvMap) else single, (3, 0, 1, 2))[None, None]
        spent: list[Any] = []
        for (_, above), (index, node) in itertools.pairwise(self._nodes):
            level = self._levels[index]
            if node.kind == "relu":
                coefficients, taken = self._through_relu(chain, index, level, coefficients, side)
                spent.append(taken)
                continue
            if above.kind != "relu":
                coefficients = level.inside(coefficients)
            if isinstance(node.map, ConvMap):
                flat = ops.reshape(coefficients, (-1, *level.size, level.channels))
                below = node.map.transposed_patches(flat)
                coefficients = ops.reshape(below, (-1, level.positions, filters, *below.shape[1:]))
            elif isinstance(node.map, ScaleMap):
                coefficients = coefficients * ops.reshape(node.map.factor, (-1,))
        norm = dual_norm(coefficients, tuple(coefficients.shape[3:]), self.norm)
        taken = sum(spent, ops.zeros_like(norm))
        return ops.reshape(taken, (-1, *self._shape)), ops.reshape(norm, (-1, *self._shape))

    def _through_relu(self, chain: Chain, index: int, level: _Level, coefficients: Any, side: str) -> tuple[Any, Any]:
        shape = (*level.size, level.channels)
        flat = ops.reshape(coefficients, (*[-1 if n is None else n for n in coefficients.shape[:3]], math.prod(shape)))

        def weighted(rows: Any, weights: Any) -> Any:
            gathered = level.gather(weights)
            if rows.shape[0] == 1 and rows.shape[1] == 1:
                return product(gathered, ops.transpose(rows[0, 0]))
            shaped = ops.reshape(rows * gathered[:, :, None], (-1, level.positions, rows.shape[2], *shape))
            return total(shaped, shape)

        left, taken = chain.through_relu(index, flat, side, weighted, lambda values: level.gather(values)[:, :, None])
        return ops.reshape(left, (-1, level.positions, flat.shape[2], *shape)), taken
