"""Linear maps with trainable weights: their action, their adjoint, an estimate and a bound of their norm.

`estimate` is one power-iteration step on a persistent iterate and may be low; it is what training differentiates.
`bound` is proven and is what a finalized model uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.gloro.bounds import bound_conv2d_norm, bound_matrix_norm


class LinearOperator(ABC):
    """A linear map on arrays of `input_shape` (no batch axis)."""

    input_shape: tuple[int, ...]
    iterate: Any = None
    """The persistent iterate, `[1, *input_shape]`, a unit vector; made by the model that owns the operator."""

    @abstractmethod
    def apply(self, inputs: Any) -> Any:
        """The map, on a batch of one."""

    @abstractmethod
    def adjoint(self, outputs: Any) -> Any:
        """The transposed map, on a batch of one."""

    @abstractmethod
    def bound(self) -> float:
        """Proven upper bound on the norm, from the weights as they are now."""

    def estimate(self, training: bool) -> Any:
        """`|A v|` for the iterate v, differentiable in the weights; a *lower* estimate of the norm.

        With `training=True` the iterate moves one step: `v <- A^T A v / |A^T A v|`.
        """
        iterate = ops.stop_gradient(ops.convert_to_tensor(self.iterate))
        image = self.apply(iterate)
        norm = _norm(image)
        if training:
            # Only a direction is wanted, so the image is scaled first: with weights of 1e-20, A^T A v would vanish.
            direction = self.adjoint(ops.stop_gradient(image) / ops.maximum(ops.stop_gradient(norm), _TINY))
            length = _norm(direction)
            self.iterate.assign(ops.where(length > 0, direction / ops.maximum(length, _TINY), iterate))
        return norm


class DenseOperator(LinearOperator):
    """`x -> x W` for the kernel `[d, k]` that `kernel()` returns."""

    def __init__(self, kernel: Callable[[], Any]):
        self.kernel = kernel
        self.input_shape = (int(kernel().shape[0]),)

    def apply(self, inputs: Any) -> Any:
        return ops.matmul(inputs, self.kernel())

    def adjoint(self, outputs: Any) -> Any:
        return ops.matmul(outputs, ops.transpose(self.kernel()))

    def bound(self) -> float:
        return bound_matrix_norm(keras.ops.convert_to_numpy(self.kernel()))


class Conv2DOperator(LinearOperator):
    """Zero-padded, strided convolution, channels last, on inputs of one size.

    Groups and dilation are absorbed into an equivalent dense kernel, with zeros where nothing is read.
    """

    def __init__(
        self,
        kernel: Callable[[], Any],
        input_shape: tuple[int, ...],
        strides: tuple[int, int] = (1, 1),
        padding: str = "valid",
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ):
        self._kernel = kernel
        self.input_shape = input_shape
        self.strides, self.padding = strides, padding
        self.groups = groups
        taps = [int(side) for side in kernel().shape[:2]]
        # Row k of `spread` puts tap k at its dilated place.
        self._spread = None
        if dilation != (1, 1):
            self._spread = [np.eye((n - 1) * d + 1)[::d].astype("float32") for n, d in zip(taps, dilation, strict=True)]
        self.taps = [(n - 1) * d + 1 for n, d in zip(taps, dilation, strict=True)]

    def kernel(self) -> Any:
        """The equivalent dense kernel `[kh, kw, c_in, c_out]`."""
        kernel = self._kernel()
        if self._spread is not None:
            kernel = ops.einsum("ka,lb,klio->abio", *self._spread, kernel)
        if self.groups > 1:
            per_in, per_out = kernel.shape[2], kernel.shape[3] // self.groups
            blocks = np.kron(np.eye(self.groups), np.ones((per_in, per_out))).astype("float32")
            kernel = ops.tile(kernel, (1, 1, self.groups, 1)) * blocks
        return kernel

    def apply(self, inputs: Any) -> Any:
        return ops.conv(inputs, self.kernel(), strides=self.strides, padding=self.padding, data_format="channels_last")

    def adjoint(self, outputs: Any) -> Any:
        # A transposed `valid` convolution reaches every position of the padded input that some tap reads; the padding
        # is cut off and positions behind the last tap, which nothing reads, are filled with zeros.
        full = ops.conv_transpose(
            outputs, self.kernel(), strides=self.strides, padding="valid", data_format="channels_last"
        )
        for axis in (1, 2):
            size, taps, stride = self.input_shape[axis - 1], self.taps[axis - 1], self.strides[axis - 1]
            count = int(outputs.shape[axis])
            before = max((count - 1) * stride + taps - size, 0) // 2 if self.padding == "same" else 0
            missing = max(before + size - int(full.shape[axis]), 0)
            if missing:
                full = ops.pad(full, [(0, missing) if a == axis else (0, 0) for a in range(4)])
            full = (
                ops.take(full, np.arange(before, before + size), axis=axis)
                if before or full.shape[axis] > size
                else full
            )
        return full

    def bound(self) -> float:
        kernel = keras.ops.convert_to_numpy(self.kernel())
        return bound_conv2d_norm(kernel, self.input_shape[:2], self.strides, self.padding)


_TINY = 2.0**-100


def _norm(values: Any) -> Any:
    """Euclidean norm that neither overflows nor underflows; its gradient is finite everywhere, 0 at 0."""
    largest = ops.stop_gradient(ops.max(ops.abs(values)))
    scale = ops.where(largest > 0, largest, ops.ones_like(largest))
    return ops.sqrt(ops.maximum(ops.sum(ops.square(values / scale)), _TINY)) * ops.where(largest > 0, scale, 0.0)
