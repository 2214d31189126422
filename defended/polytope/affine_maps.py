"""The affine maps of a network, in every form that bounding needs: forward, transposed, and with magnitudes of weights.

Values are rows: `[rows, *shape]` float32. `roundings` is the number of float32 operations on the way from a product to
an output entry, forward (the bias included) and transposed; it enters the budget of `defended.polytope.rounding`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers, ops

from defended.networks.transposed_convolution import transposed_convolution
from defended.numerics.sliding_windows import axes_of
from defended.polytope.reductions import TERMS, Shape, product, product_roundings

_LARGEST_PATCH = 512


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


class ReshapeMap(AffineMap):
    """A change of shape: entries keep their values."""

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return ops.reshape(values, (-1, *self.output_shape))

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self.forward(values)

    def transposed(self, rows: Any) -> Any:
        return ops.reshape(rows, (-1, *self.input_shape))


class KernelMap(AffineMap):
    """A layer with a kernel and perhaps a bias, as they are now; long inner products are evaluated in blocks."""

    layer: Any

    @property
    def kernel(self) -> Any:
        """The layer's kernel, as a tensor."""
        return ops.convert_to_tensor(self.layer.kernel)

    def forward(self, values: Any, blocked: bool = True) -> Any:
        result = self.linear(values, blocked)
        return result + ops.convert_to_tensor(self.layer.bias) if self.layer.use_bias else result

    def linear(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, self.kernel, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, ops.abs(self.kernel), blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, ops.square(self.kernel), blocked)

    def bias_magnitudes(self) -> Any:
        return ops.abs(ops.convert_to_tensor(self.layer.bias)) if self.layer.use_bias else 0.0

    def _times(self, values: Any, kernel: Any, blocked: bool) -> Any:
        """Apply the linear map with another kernel."""
        raise NotImplementedError


class DenseMap(KernelMap):
    """A Dense layer on vectors."""

    def __init__(self, layer: layers.Dense):
        self.layer = layer
        fan_in, units = (int(size) for size in layer.kernel.shape)
        super().__init__((fan_in,), (units,))
        self.roundings = product_roundings(fan_in), product_roundings(units)
        self.largest = max(fan_in, units)

    def transposed(self, rows: Any) -> Any:
        return product(rows, ops.transpose(self.kernel))

    def matrix_rows(self) -> Any:
        return ops.transpose(self.kernel)

    def _times(self, values: Any, kernel: Any, blocked: bool) -> Any:
        return product(values, kernel, blocked)


class ConvMap(KernelMap):
    """A Conv2D layer, channels last, any strides, either padding; kernel `[height, width, channels, filters]`."""

    def __init__(self, layer: layers.Conv2D, input_shape: Shape, output_shape: Shape):
        super().__init__(input_shape, output_shape)
        self.layer = layer
        self.kernel_size: tuple[int, int] = tuple(layer.kernel_size)
        self.strides: tuple[int, int] = tuple(layer.strides)
        self.padding = layer.padding
        rows, columns = axes_of(self.kernel_size, input_shape[:2], self.strides, self.padding)
        self.offsets = rows.before, columns.before
        area, (channels, filters) = math.prod(self.kernel_size), layer.kernel.shape[2:]
        covers = math.prod(-(-k // s) for k, s in zip(self.kernel_size, self.strides, strict=True))
        self.largest = area * max(int(channels), int(filters))
        # Channels in blocks: fewer roundings of the values themselves, which count most.
        self._block = max(1, min(int(channels), TERMS // area))
        parts = -(-int(channels) // self._block)
        self.roundings = (area * self._block + parts, covers * int(filters) + 1)

    def transposed(self, rows: Any) -> Any:
        # Rows and columns behind the last window, which ONNX's operation does not know, are added as zeros.
        sizes = zip(self.input_shape, self.output_shape, self.kernel_size, self.strides, self.offsets, strict=False)
        height, width = (min(n, (m - 1) * s + k - o) for n, m, k, s, o in sizes)
        unseen = (0, self.input_shape[0] - height), (0, self.input_shape[1] - width)
        shape = height, width, self.input_shape[2]
        found = transposed_convolution(rows, self.kernel, self.strides, self.padding, self.offsets, shape)
        return ops.pad(found, ((0, 0), *unseen, (0, 0))) if shape != self.input_shape else found

    def transposed_patches(self, rows: Any) -> Any:
        """Return `Wᵀ a` of coefficients on a patch `[rows, h, w, filters]` of the output: on the input's patch."""
        height, width, filters = rows.shape[1:]
        size = [(n - 1) * s + k for n, s, k in zip((height, width), self.strides, self.kernel_size, strict=True)]
        shape = (*size, self.input_shape[-1])

        def carried(rows: Any) -> Any:
            return transposed_convolution(rows, self.kernel, self.strides, "valid", (0, 0), shape)

        entries = height * width * filters
        if entries > _LARGEST_PATCH:
            return carried(rows)
        # For many small patches one product with the map's matrix is faster, most of its entries being 0.
        matrix = ops.reshape(carried(ops.reshape(identity(entries), (entries, height, width, filters))), (entries, -1))
        return ops.reshape(ops.matmul(ops.reshape(rows, (-1, entries)), matrix), (-1, *shape))

    def _times(self, values: Any, kernel: Any, blocked: bool) -> Any:
        total, block = None, self._block if blocked else self.input_shape[-1]
        strides, padding = self.strides, self.padding
        if self.output_shape[1] == 1 and strides[1] > 1:
            # TensorFlow 2.21 reads wrong memory here, of one channel; a single column of windows needs no stride.
            values, strides, padding = self._only_column(values), (strides[0], 1), "valid"
        for first in range(0, self.input_shape[-1], block):
            last = first + block
            part = ops.conv(
                values[..., first:last], kernel[:, :, first:last], strides=strides, padding=padding,
                data_format="channels_last",
            )  # fmt: skip
            total = part if total is None else total + part
        return total

    def _only_column(self, values: Any) -> Any:
        """Return what the windows of a single column see, with zeros where they reach beyond the map."""
        (top, left), width = self.offsets, self.kernel_size[1]
        bottom = (self.output_shape[0] - 1) * self.strides[0] + self.kernel_size[0] - self.input_shape[0] - top
        seen = values[:, :, : width - left]
        sides = (top, max(bottom, 0)), (left, width - left - seen.shape[2])
        return ops.pad(seen, ((0, 0), *sides, (0, 0)))


class PoolMap(AffineMap):
    """An AveragePooling2D layer, channels last; with `same` padding each window averages the entries it holds.

    Sums over windows are sums over rows and then over columns: two products with matrices of 0 and 1.
    """

    def __init__(self, layer: layers.AveragePooling2D, input_shape: Shape, output_shape: Shape):
        super().__init__(input_shape, output_shape)
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
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
    """A GlobalAveragePooling2D layer, channels last."""

    def __init__(self, layer: layers.GlobalAveragePooling2D, input_shape: Shape, output_shape: Shape):
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
