"""Linear maps with trainable weights: their action, their adjoint, an estimate and a bound of their norm.

`estimate` is one power-iteration step on a persistent iterate and may be low; it is what training differentiates.
`bound` is proven and is what a finalized model uses.

Weights reach an operator as a `Kernel`: a tensor for training, and float64 arrays for proofs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from keras import ops

from defended.networks.transposed_convolution import transposed_convolution
from defended.numerics.convolution_norms import bound_conv2d_norm, bound_nonnegative_conv2d_norm, conv2d_norm_method
from defended.numerics.eigenvalues import EXACT_SIZE
from defended.numerics.matrix_norms import bound_matrix_norm, bound_nonnegative_norm
from defended.numerics.sliding_windows import Axis, axes_of

Array = np.ndarray[Any, np.dtype[Any]]


def in_float64(variable: Any) -> Array:
    """Return the exact value of a float32 variable in float64."""
    return ops.convert_to_numpy(variable).astype(np.float64)


def without_overflow(magnitudes: Array) -> Array:
    """Return `magnitudes`, those of products that float32 forms of weights alone, if none can overflow.

    Raises:
        ValueError: when one is so large that a float32 result may be infinite.
    """
    if not np.all(magnitudes <= 2.0**126):
        raise ValueError("products of its weights may overflow. Bring its factors to a common scale.")
    return magnitudes


class Kernel:
    """A kernel that may be computed from several variables.

    Args:
        tensor: returns it as a float32 tensor, differentiable in the variables.
        exact: returns it in float64, each entry within `2^-49` of its `magnitude`; None: the tensor itself is exact.
        magnitude: returns float64 entries never below those of `exact` nor below the sum of the magnitudes of the terms
            that make an entry up; None: the magnitudes of `exact`.
        roundings: how many float32 operations lie between the variables and an entry of the tensor.
    """

    def __init__(
        self,
        tensor: Callable[[], Any],
        exact: Callable[[], Array] | None = None,
        magnitude: Callable[[], Array] | None = None,
        roundings: int = 0,
    ):
        self.tensor = tensor
        self.computed = exact is not None
        self.exact = exact or (lambda: in_float64(tensor()))
        self.magnitude = magnitude or (lambda: np.abs(self.exact()))
        self.roundings = roundings

    def scaled(self, scale: Kernel) -> Kernel:
        """Return the kernel times a factor for each output channel, as a normalisation behind the layer needs it."""
        return Kernel(
            lambda: self.tensor() * scale.tensor(),
            lambda: self.exact() * scale.exact(),
            lambda: without_overflow(self.magnitude() * scale.magnitude() * (1 + 2.0**-50)),
        )


class LinearOperator(ABC):
    """A linear map on arrays of `input_shape` (no batch axis)."""

    kernel: Kernel
    input_shape: tuple[int, ...]
    fan_in: int
    """The number of products in an entry of the output."""
    iterate: Any = None
    """The persistent iterate, `[1, *input_shape]`, a unit vector; made by the model that owns the operator."""

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, without the batch axis."""

    @property
    @abstractmethod
    def method(self) -> str:
        """How `bound` finds its value, in words."""

    @abstractmethod
    def apply(self, inputs: Any) -> Any:
        """Apply the map to a batch of one."""

    @abstractmethod
    def adjoint(self, outputs: Any) -> Any:
        """Apply the transposed map to a batch of one."""

    @abstractmethod
    def bound(self, claimed: float | None = None) -> float:
        """Return a proven upper bound on the norm for the weights as they are now; a claimed one is verified first."""

    @abstractmethod
    def bound_of_magnitudes(self) -> float:
        """Return a proven upper bound on the norm of the map whose weights are the magnitudes of this one's."""

    def lower_estimate(self, steps: int = 60) -> float:
        """Return `|A v|` after power iteration from a fixed random start: at most the norm, but for rounding."""
        start = np.random.default_rng(0).standard_normal((1, *self.input_shape)).astype("float32")
        vector, norm = ops.convert_to_tensor(start), ops.convert_to_tensor(0.0)
        for _ in range(steps):
            vector = vector / ops.maximum(_norm(vector), _TINY)
            image = self.apply(vector)
            norm = _norm(image)
            vector = self.adjoint(image / ops.maximum(norm, _TINY))
        return float(norm)

    def estimate(self, training: bool) -> Any:
        """Return `|A v|` for the iterate v, a *lower* estimate of the norm, differentiable in the weights.

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
    """`x -> x W` for a kernel `[d, k]`, at each of `places`: the axes before the last one."""

    def __init__(self, kernel: Kernel, places: tuple[int, ...] = ()):
        self.kernel = kernel
        self.fan_in, units = (int(side) for side in kernel.tensor().shape)
        # The same map acts at every place, so its norm is found on a single one.
        self.input_shape = (self.fan_in,)
        self._output_shape = (*places, units)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self._output_shape

    @property
    def method(self) -> str:
        small = min(self.kernel.tensor().shape) <= EXACT_SIZE
        return "float64 factorisation" if small else "Gram iteration"

    def apply(self, inputs: Any) -> Any:
        return ops.matmul(inputs, self.kernel.tensor())

    def adjoint(self, outputs: Any) -> Any:
        return ops.matmul(outputs, ops.transpose(self.kernel.tensor()))

    def bound(self, claimed: float | None = None) -> float:
        excess = _excess(self)
        claimed = None if claimed is None else claimed - excess
        return bound_matrix_norm(self.kernel.exact(), claimed) + excess

    def bound_of_magnitudes(self) -> float:
        return bound_nonnegative_norm(self.kernel.magnitude())


class Conv2DOperator(LinearOperator):
    """Zero-padded, strided convolution, channels last, on inputs of one size.

    Groups and dilation are absorbed into an equivalent dense kernel, with zeros where nothing is read.
    """

    def __init__(
        self,
        kernel: Kernel,
        input_shape: tuple[int, ...],
        strides: tuple[int, int] = (1, 1),
        padding: str = "valid",
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ):
        self.kernel = kernel
        self.input_shape = input_shape
        self.strides, self.padding = strides, padding
        self.groups = groups
        shape = [int(side) for side in kernel.tensor().shape]
        taps = shape[:2]
        self.fan_in = shape[0] * shape[1] * shape[2]
        self._channels = shape[3]
        # Row k of `spread` puts tap k at its dilated place.
        self._spread = None
        if dilation != (1, 1):
            self._spread = [np.eye((n - 1) * d + 1)[::d].astype("float32") for n, d in zip(taps, dilation, strict=True)]
        self.taps = [(n - 1) * d + 1 for n, d in zip(taps, dilation, strict=True)]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*(axis.outputs for axis in self._axes), self._channels)

    @property
    def _axes(self) -> tuple[Axis, Axis]:
        return axes_of(self.taps, self.input_shape[:2], self.strides, self.padding)

    def dense_kernel(self, kernel: Any, xp: ModuleType) -> Any:
        """Return the equivalent dense kernel `[kh, kw, c_in, c_out]`; `xp` is `keras.ops` or NumPy."""
        if self._spread is not None:
            kernel = xp.einsum("ka,lb,klio->abio", *self._spread, kernel)
        if self.groups > 1:
            per_in, per_out = kernel.shape[2], kernel.shape[3] // self.groups
            blocks = np.kron(np.eye(self.groups), np.ones((per_in, per_out))).astype("float32")
            kernel = xp.tile(kernel, (1, 1, self.groups, 1)) * blocks
        return kernel

    @property
    def method(self) -> str:
        shape = (*self.taps, self.input_shape[2], self._channels)
        return conv2d_norm_method(shape, self.input_shape[:2], self.strides, self.padding)

    def apply(self, inputs: Any) -> Any:
        kernel = self.dense_kernel(self.kernel.tensor(), ops)
        return ops.conv(inputs, kernel, strides=self.strides, padding=self.padding, data_format="channels_last")

    def adjoint(self, outputs: Any) -> Any:
        kernel, (rows, columns) = self.dense_kernel(self.kernel.tensor(), ops), self._axes
        offsets = rows.before, columns.before
        return transposed_convolution(outputs, kernel, self.strides, self.padding, offsets, self.input_shape)

    def bound(self, claimed: float | None = None) -> float:
        kernel, excess = self.dense_kernel(self.kernel.exact(), np), _excess(self)
        claimed = None if claimed is None else claimed - excess
        return bound_conv2d_norm(kernel, self.input_shape[:2], self.strides, self.padding, claimed) + excess

    def bound_of_magnitudes(self) -> float:
        return bound_nonnegative_conv2d_norm(self.dense_kernel(self.kernel.magnitude(), np), self.strides)


class ChannelScale(LinearOperator):
    """`x -> s * x` with a factor for each channel; its norm is the largest factor."""

    fan_in = 1

    def __init__(self, scale: Kernel, input_shape: tuple[int, ...]):
        self.kernel = scale
        self.input_shape = input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.input_shape

    @property
    def method(self) -> str:
        return "largest factor"

    def apply(self, inputs: Any) -> Any:
        return inputs * self.kernel.tensor()

    def adjoint(self, outputs: Any) -> Any:
        return self.apply(outputs)

    def estimate(self, training: bool) -> Any:
        """Return the norm itself, which needs no iterate."""
        return ops.max(ops.abs(self.kernel.tensor()))

    def bound(self, claimed: float | None = None) -> float:
        return self.bound_of_magnitudes()

    def bound_of_magnitudes(self) -> float:
        return float(self.kernel.magnitude().max()) * (1 + 2.0**-50)


def _excess(operator: LinearOperator) -> float:
    """Return what the float64 rounding of a computed kernel may add to its norm."""
    return operator.bound_of_magnitudes() * 2.0**-48 if operator.kernel.computed else 0.0


_TINY = 2.0**-100


def _norm(values: Any) -> Any:
    """Return the Euclidean norm, which neither overflows nor underflows; its gradient is finite everywhere, 0 at 0."""
    largest = ops.stop_gradient(ops.max(ops.abs(values)))
    scale = ops.where(largest > 0, largest, ops.ones_like(largest))
    return ops.sqrt(ops.maximum(ops.sum(ops.square(values / scale)), _TINY)) * ops.where(largest > 0, scale, 0.0)
