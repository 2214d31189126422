"""Affine maps with a kernel: products with a matrix, and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import layers, ops

from defended.networks.transposed_convolution import transposed_convolution
from defended.numerics.sliding_windows import axes_of
from defended.polytope.affine_maps import AffineMap, identity
from defended.polytope.reductions import TERMS, Shape, product, product_roundings

_LARGEST_PATCH = 512


class KernelMap(AffineMap):
    """A layer with a kernel and perhaps a bias, as they are now; long inner products are evaluated in blocks."""

    layer: Any

    @property
    def kernel(self) -> Any:
        """The layer's kernel, as a tensor."""
        return ops.convert_to_tensor(self.layer.kernel)

    @property
    def bias(self) -> Any:
        """The layer's bias, as a tensor; None where it has none."""
        return ops.convert_to_tensor(self.layer.bias) if self.layer.use_bias else None

    def forward(self, values: Any, blocked: bool = True) -> Any:
        result, bias = self.linear(values, blocked), self.bias
        return result if bias is None else result + bias

    def linear(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, self.kernel, blocked)

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, ops.abs(self.kernel), blocked)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self._times(values, ops.square(self.kernel), blocked)

    def bias_magnitudes(self) -> Any:
        return 0.0 if self.bias is None else ops.abs(self.bias)

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


class Windows(NamedTuple):
    """What a convolution is: its kernel `[height, width, channels, filters]`, its bias, and where it is applied."""

    kernel: Callable[[], Any]
    bias: Callable[[], Any]
    """Returns None where there is none."""
    strides: tuple[int, int]
    padding: str
    groups: int = 1
    """Groups of channels; where there are several, the kernel is 0 between channels and filters of different ones."""


class ConvMap(KernelMap):
    """A convolution of maps `[height, width, channels]`, any strides, either padding."""

    def __init__(self, windows: Windows, input_shape: Shape, output_shape: Shape):
        super().__init__(input_shape, output_shape)
        self._windows = windows
        self.strides, self.padding = windows.strides, windows.padding
        height, width, channels, filters = (int(size) for size in self.kernel.shape)
        self.kernel_size = height, width
        rows, columns = axes_of(self.kernel_size, input_shape[:2], self.strides, self.padding)
        self.offsets = rows.before, columns.before
        area, per_in, per_out = height * width, channels // windows.groups, filters // windows.groups
        covers = math.prod(-(-k // s) for k, s in zip(self.kernel_size, self.strides, strict=True))
        self.largest = area * max(per_in, per_out)
        # Channels in blocks: fewer roundings of the values themselves, which count most. Products that are 0 cost none.
        self._block = max(1, min(per_in, TERMS // area)) if windows.groups == 1 else channels
        parts = -(-channels // self._block)
        self.roundings = (area * min(per_in, self._block) + parts, covers * per_out + 1)

    @property
    def kernel(self) -> Any:
        return self._windows.kernel()

    @property
    def bias(self) -> Any:
        return self._windows.bias()

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
