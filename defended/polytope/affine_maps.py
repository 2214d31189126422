"""The affine maps of a network, in every form that bounding needs: forward, transposed, and with magnitudes of weights.

Values are rows: `[rows, *shape]` float32. `roundings` is the number of float32 operations on the way from a product to
an output entry, forward (the bias included) and transposed; it enters the budget of `defended.polytope.rounding`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers, ops

from defended.numerics.sliding_windows import axes_of
from defended.polytope.reductions import Shape


class AffineMap:
    """`z -> W z + b`.

    Attributes:
        input_shape, output_shape: without the batch axis.
        roundings: `(forward, transposed)`.
        largest: entries that meet in one output entry, forward or transposed, whichever are more.
    """

    roundings: tuple[int, int] = (0, 0)
    largest: int = 1

    def __init__(self, input_shape: Shape, output_shape: Shape):
        self.input_shape, self.output_shape = input_shape, output_shape

    def forward(self, values: Any, blocked: bool = True) -> Any:
        """Return `W z + b`, `[rows, *output_shape]`; `blocked` as the budget for rounding counts, else in one go."""
        raise NotImplementedError

    def linear(self, values: Any, blocked: bool = True) -> Any:
        """Return `W z`."""
        return self.forward(values, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        """Return `|W| z`."""
        return self.linear(values, blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        """Return `W² z`, the weights squared entry by entry."""
        raise NotImplementedError

    def bias_magnitudes(self) -> Any:
        """Return `|b|`, which broadcasts against the output."""
        return 0.0

    def transposed(self, rows: Any) -> Any:
        """Return `Wᵀ a`, `[rows, *input_shape]`."""
        raise NotImplementedError

    def matrix_rows(self) -> Any:
        """Return the rows of W, `[outputs, *input_shape]`."""
        size = math.prod(self.output_shape)
        return self.transposed(ops.reshape(identity(size), (size, *self.output_shape)))

    def largest_bias(self) -> Any:
        """Return `max |b|`."""
        return ops.convert_to_numpy(ops.max(self.bias_magnitudes()))

    def row_sums(self) -> Any:
        """Return `|W| 1`, float32 `[1, *output_shape]`: the l1 norms of the rows."""
        return self.magnitudes(ops.ones((1, *self.input_shape)))

    def check(self) -> None:
        """Raise `ValueError` where the weights, as they are now, are not those that rounding is counted for."""


class ReshapeMap(AffineMap):
    """A change of shape: entries keep their values."""

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return ops.reshape(values, (-1, *self.output_shape))

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self.forward(values)

    def transposed(self, rows: Any) -> Any:
        return ops.reshape(rows, (-1, *self.input_shape))


class PoolMap(AffineMap):
    """Averages over windows of maps; with `same` padding each window averages the entries it holds.

    Sums over windows are sums over rows and then over columns: two products with matrices of 0 and 1. Windows over one
    axis are those of maps `[length, 1, channels]`.
    """

    def __init__(
        self, layer: layers.AveragePooling2D | layers.AveragePooling1D, input_shape: Shape, output_shape: Shape
    ):
        super().__init__(input_shape, output_shape)
        size, strides = (*layer.pool_size, 1)[:2], (*layer.strides, 1)[:2]
        self.geometry = size, strides, layer.padding
        axes = axes_of(size, input_shape[:2], strides, layer.padding)
        # [output rows, rows] and [output columns, columns]: which of them each window holds.
        self._windows = [axis.coverage().astype("float32") for axis in axes]
        counts = [matrix.sum(axis=1, dtype="float64") for matrix in self._windows]
        shares = (1.0 / np.outer(*counts))[None, :, :, None]
        self._shares, self._squares = shares.astype("float32"), (shares**2).astype("float32")
        covers = [-(-k // s) for k, s in zip(size, strides, strict=True)]
        # Adding k numbers takes k - 1 roundings, however many zeros are among them; the share brings two.
        self.largest, self.roundings = math.prod(size), (sum(size), sum(covers))

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return self._sums(values) * self._shares

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self._sums(values) * self._squares

    def transposed(self, rows: Any) -> Any:
        height, width, channels = self.output_shape
        by_row, by_column = (np.ascontiguousarray(matrix.T) for matrix in self._windows)
        columns = ops.matmul(by_column, ops.reshape(rows * self._shares, (-1, width, channels)))
        found = ops.matmul(by_row, ops.reshape(columns, (-1, height, self.input_shape[1] * channels)))
        return ops.reshape(found, (-1, *self.input_shape))

    def _sums(self, values: Any) -> Any:
        height, width, channels = self.input_shape
        by_row, by_column = self._windows
        rows = ops.matmul(by_row, ops.reshape(values, (-1, height, width * channels)))
        found = ops.matmul(by_column, ops.reshape(rows, (-1, width, channels)))
        return ops.reshape(found, (-1, *self.output_shape))


class GlobalPoolMap(AffineMap):
    """The average of each channel of a map."""

    def __init__(self, layer: layers.Layer, input_shape: Shape, output_shape: Shape):
        super().__init__(input_shape, output_shape)
        height, width, channels = input_shape
        self._share = np.float32(1.0 / (height * width))
        self._spread = (1, height, width, channels)
        self._middle = output_shape if len(output_shape) == 3 else (1, 1, channels)
        self.largest, self.roundings = height * width, (height + width + 2, 3)

    def forward(self, values: Any, blocked: bool = True) -> Any:
        total = ops.sum(ops.sum(values, axis=2), axis=1) * self._share
        return ops.reshape(total, (-1, *self.output_shape))

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self.forward(values) * self._share

    def transposed(self, rows: Any) -> Any:
        return ops.reshape(rows * self._share, (-1, *self._middle)) * ops.ones(self._spread)


def identity(size: int) -> Any:
    """Return the identity matrix, made of operations that a deployed graph may hold."""
    return ops.one_hot(ops.arange(size), size, dtype="float32")
