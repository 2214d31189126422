"""The affine maps of a network, each with what bounding it takes: forward, transposed, and with magnitudes of weights.

Values are rows: `[rows, *shape]` float32. `roundings` is the number of float32 operations on the way from a product to
an output entry, forward (the bias included) and transposed; it enters the budget of `defended.polytope.rounding`.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

_LARGEST_PATCH = 512
_TERMS = 64  # a convolution's inner products are evaluated in blocks of at most so many terms, where they can be


class AffineMap:
    """`z -> W z + b`.

    Attributes:
        input_shape, output_shape: without the batch axis.
        roundings: `(forward, transposed)`.
        largest: entries that meet in one output entry, forward or transposed, whichever are more.
    """

    input_shape: Shape
    output_shape: Shape
    roundings: tuple[int, int] = (0, 0)
    largest: int = 1

    def forward(self, values: Any, blocked: bool = True) -> Any:
        """`W z + b`, `[rows, *output_shape]`; `blocked` as the budget for rounding counts, otherwise at one go."""
        raise NotImplementedError

    def linear(self, values: Any, blocked: bool = True) -> Any:
        """`W z`."""
        return self.forward(values, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        """`|W| z`."""
        return self.linear(values, blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        """`W² z`, the weights squared entry by entry."""
        raise NotImplementedError

    def bias_magnitudes(self) -> Any:
        """`|b|`, broadcasting against the output."""
        return 0.0

    def transposed(self, rows: Any) -> Any:
        """`Wᵀ a`, `[rows, *input_shape]`."""
        raise NotImplementedError

    def matrix_rows(self) -> Any:
        """The rows of W, `[outputs, *input_shape]`."""
        size = math.prod(self.output_shape)
        return self.transposed(ops.reshape(identity(size), (size, *self.output_shape)))

    def largest_bias(self) -> Any:
        """`max |b|`."""
        return ops.convert_to_numpy(ops.max(self.bias_magnitudes()))

    def row_sums(self) -> Any:
        """`|W| 1`, float32 `[1, *output_shape]`: the l1 norms of the rows."""
        return self.magnitudes(ops.ones((1, *self.input_shape)))


class ReshapeMap(AffineMap):
    """Entries keep their values and get other places."""

    def __init__(self, input_shape: Shape, output_shape: Shape):
        self.input_shape, self.output_shape = input_shape, output_shape

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return ops.reshape(values, (-1, *self.output_shape))

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self.forward(values)

    def transposed(self, rows: Any) -> Any:
        return ops.reshape(rows, (-1, *self.input_shape))


class DenseMap(AffineMap):
    """A Dense layer on vectors. Long inner products are evaluated in blocks, which keeps their roundings few."""

    def __init__(self, layer: Any):
        self.layer = layer
        fan_in, units = (int(size) for size in layer.kernel.shape)
        self.input_shape, self.output_shape = (fan_in,), (units,)
        self.roundings = product_roundings(fan_in), product_roundings(units)
        self.largest = max(fan_in, units)

    @property
    def _kernel(self) -> Any:
        return ops.convert_to_tensor(self.layer.kernel)

    def forward(self, values: Any, blocked: bool = True) -> Any:
        result = self.linear(values, blocked)
        return result + ops.convert_to_tensor(self.layer.bias) if self.layer.use_bias else result

    def linear(self, values: Any, blocked: bool = True) -> Any:
        return product(values, self._kernel, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return product(values, ops.abs(self._kernel), blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return product(values, ops.square(self._kernel), blocked)

    def bias_magnitudes(self) -> Any:
        return ops.abs(ops.convert_to_tensor(self.layer.bias)) if self.layer.use_bias else 0.0

    def transposed(self, rows: Any) -> Any:
        return product(rows, ops.transpose(self._kernel))

    def matrix_rows(self) -> Any:
        return ops.transpose(self._kernel)


class ConvMap(AffineMap):
    """A Conv2D layer, channels last, any strides, either padding."""

    def __init__(self, layer: Any, input_shape: Shape, output_shape: Shape):
        self.layer = layer
        self.input_shape, self.output_shape = input_shape, output_shape
        self.kernel_size: tuple[int, int] = tuple(layer.kernel_size)
        self.strides: tuple[int, int] = tuple(layer.strides)
        self.padding = layer.padding
        self.offsets = _offsets(input_shape, output_shape, self.kernel_size, self.strides, self.padding)
        area, (channels, filters) = math.prod(self.kernel_size), layer.kernel.shape[2:]
        covers = math.prod(-(-k // s) for k, s in zip(self.kernel_size, self.strides, strict=True))
        self.largest = area * max(int(channels), int(filters))
        # Channels in blocks: fewer roundings of the values themselves, which count most.
        self._block = max(1, min(int(channels), _TERMS // area))
        parts = -(-int(channels) // self._block)
        self.roundings = (area * self._block + parts, covers * int(filters) + 1)

    @property
    def kernel(self) -> Any:
        """`[height, width, channels, filters]`."""
        return ops.convert_to_tensor(self.layer.kernel)

    def forward(self, values: Any, blocked: bool = True) -> Any:
        result = self.linear(values, blocked)
        return result + ops.convert_to_tensor(self.layer.bias) if self.layer.use_bias else result

    def linear(self, values: Any, blocked: bool = True) -> Any:
        return self._convolve(values, self.kernel, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return self._convolve(values, ops.abs(self.kernel), blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self._convolve(values, ops.square(self.kernel), blocked)

    def bias_magnitudes(self) -> Any:
        return ops.abs(ops.convert_to_tensor(self.layer.bias)) if self.layer.use_bias else 0.0

    def transposed(self, rows: Any) -> Any:
        return transposed_convolution(rows, self.kernel, self.strides, self.padding, self.offsets, self.input_shape)

    def transposed_patches(self, rows: Any) -> Any:
        """`Wᵀ a` of coefficients on a patch `[rows, h, w, filters]` of the output: on the patch of the input below."""
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

    def _convolve(self, values: Any, kernel: Any, blocked: bool) -> Any:
        total, block = None, self._block if blocked else self.input_shape[-1]
        for first in range(0, self.input_shape[-1], block):
            last = first + block
            part = ops.conv(
                values[..., first:last], kernel[:, :, first:last], strides=self.strides, padding=self.padding,
                data_format="channels_last",
            )  # fmt: skip
            total = part if total is None else total + part
        return total


class PoolMap(AffineMap):
    """An AveragePooling2D layer, channels last; with `same` padding each window averages the entries it holds."""

    def __init__(self, layer: Any, input_shape: Shape, output_shape: Shape):
        self.input_shape, self.output_shape = input_shape, output_shape
        self.pool_size: tuple[int, int] = tuple(layer.pool_size)
        self.strides: tuple[int, int] = tuple(layer.strides)
        self.padding = layer.padding
        self._offsets = _offsets(input_shape, output_shape, self.pool_size, self.strides, self.padding)
        area = math.prod(self.pool_size)
        covers = math.prod(-(-k // s) for k, s in zip(self.pool_size, self.strides, strict=True))
        self.largest, self.roundings = area, (area + 2, covers + 2)
        counts = [
            np.array([min(i * s - o + k, n) - max(i * s - o, 0) for i in range(m)])
            for n, m, k, s, o in zip(
                input_shape, output_shape, self.pool_size, self.strides, self._offsets, strict=False
            )
        ]
        self._shares = (1.0 / (counts[0][:, None] * counts[1][None, :]))[None, :, :, None].astype("float32")

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return self._sums(values) * self._shares

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self._sums(values) * self._shares**2

    def transposed(self, rows: Any) -> Any:
        kernel = ops.ones((*self.pool_size, 1, 1))
        height, width, channels = self.input_shape
        single = _channels_to_rows(rows * self._shares)
        single = transposed_convolution(
            single, kernel, self.strides, self.padding, self._offsets, (height, width, 1)
        )  # fmt: skip
        return _rows_to_channels(single, channels)

    def _sums(self, values: Any) -> Any:
        kernel, channels = ops.ones((*self.pool_size, 1, 1)), self.input_shape[-1]
        single = ops.conv(_channels_to_rows(values), kernel, strides=self.strides, padding=self.padding)
        return _rows_to_channels(single, channels)


class GlobalPoolMap(AffineMap):
    """A GlobalAveragePooling2D layer, channels last."""

    def __init__(self, layer: Any, input_shape: Shape, output_shape: Shape):
        self.input_shape, self.output_shape = input_shape, output_shape
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
    """The identity matrix, of operations that a deployed graph may hold."""
    return ops.one_hot(ops.arange(size), size, dtype="float32")


def transposed_convolution(
    rows: Any, kernel: Any, strides: tuple[int, int], padding: str, offsets: tuple[int, int], shape: Shape
) -> Any:
    """The transpose of a convolution, applied to `[rows, h, w, filters]`: `[rows, *shape]`, `shape` its input's."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        size = tf.stack([tf.shape(rows)[0], *shape])
        return tf.ensure_shape(
            tf.nn.conv2d_transpose(rows, kernel, size, list(strides), padding.upper()), (None, *shape)
        )
    full = ops.conv_transpose(rows, kernel, strides=strides, padding="valid", data_format="channels_last")
    missing = [
        (0, max(0, offset + want - got)) for offset, want, got in zip(offsets, shape[:2], full.shape[1:3], strict=True)
    ]
    full = ops.pad(full, [(0, 0), *missing, (0, 0)])
    (top, left), (height, width) = offsets, shape[:2]
    return full[:, top : top + height, left : left + width]


def _offsets(
    input_shape: Shape, output_shape: Shape, size: tuple[int, int], strides: tuple[int, int], padding: str
) -> tuple[int, int]:
    """Rows and columns of padding before the first entry."""
    if padding == "valid":
        return 0, 0
    total = (
        max((out - 1) * s + k - n, 0) for n, out, k, s in zip(input_shape, output_shape, size, strides, strict=False)
    )
    top, left = (value // 2 for value in total)
    return top, left


def block_of(terms: int) -> int:
    """Terms of a block in which an inner product is evaluated: all of them, or the root, so that roundings are few."""
    return terms if terms <= 2 * _TERMS else math.isqrt(terms - 1) + 1


def product_roundings(terms: int) -> int:
    """Roundings on the way of a product through `product`, and through adding a bias."""
    block = block_of(terms)
    return block + -(-terms // block)


def product(values: Any, kernel: Any, blocked: bool = True) -> Any:
    """`values kernel` of `[..., n]` and `[n, k]`, long inner products in blocks that are added up afterwards."""
    terms, width = kernel.shape
    block = block_of(terms)
    parts = -(-terms // block)
    if parts == 1 or not blocked:
        return ops.matmul(values, kernel)
    lead = [-1 if size is None else size for size in values.shape[:-1]]
    missing = parts * block - terms
    rows = ops.reshape(values, (-1, terms))
    if missing:
        rows, kernel = ops.pad(rows, ((0, 0), (0, missing))), ops.pad(kernel, ((0, missing), (0, 0)))
    rows = ops.transpose(ops.reshape(rows, (-1, parts, block)), (1, 0, 2))
    pieces = ops.matmul(rows, ops.reshape(kernel, (parts, block, width)))
    return ops.reshape(ops.sum(pieces, axis=0), (*lead, width))


def _channels_to_rows(values: Any) -> Any:
    height, width = values.shape[1:3]
    return ops.reshape(ops.transpose(values, (0, 3, 1, 2)), (-1, height, width, 1))


def _rows_to_channels(values: Any, channels: int) -> Any:
    height, width = values.shape[1:3]
    return ops.transpose(ops.reshape(values, (-1, channels, height, width)), (0, 2, 3, 1))
