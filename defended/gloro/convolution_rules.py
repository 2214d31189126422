"""Rules of convolutions over one, two and three axes, of each channel by itself, and of pairs of them.

Each is brought to a convolution over two axes, whose norm is bounded in `numerics.convolution_norms`: one axis gets a
second of length 1, and of three the first is unrolled into channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.gloro.layer_rules import activation_rule, bias_of, kernel_of, linear_rule
from defended.gloro.operators import Array, Conv2DOperator, Kernel, LinearOperator, in_float64
from defended.gloro.rounding import Evaluated
from defended.gloro.rules import LipschitzRule, lipschitz_rule
from defended.networks.checks import check_channels_last
from defended.networks.tracing import Shape
from defended.numerics.convolution_norms import bound_conv2d_norm, bound_nonnegative_conv2d_norm, conv2d_norm_method
from defended.numerics.matrix_norms import bound_nonnegative_norm, bound_norm
from defended.numerics.sliding_windows import Axis, axes_of

_LARGEST_UNROLLED = 2**26
"""Entries of the kernel of a convolution over three axes, once the first is unrolled."""


def _on_rows(read: Callable[[], Any]) -> Kernel:
    """Return the kernel of a convolution over one axis, `read` anew each time, with a second axis of length 1."""
    return Kernel(lambda: ops.expand_dims(ops.convert_to_tensor(read()), 1))


def _ruled(layer: Any, operator: LinearOperator, terms: int) -> LipschitzRule:
    """Return the rule of a layer whose inner products of so many terms Keras adds up as it likes."""
    return linear_rule(operator, bias_of(layer), terms + 1, then=activation_rule(layer))


@lipschitz_rule(layers.Conv2D)
def _conv2d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    operator = Conv2DOperator(kernel_of(layer), shape, layer.strides, layer.padding, layer.dilation_rate, layer.groups)
    height, width, channels, _ = layer.kernel.shape
    taps = height * width
    parts = rounding.blocks(channels, taps) if layer.groups == 1 else 1
    roundings = rounding.roundings_of_sum(channels, taps, parts)
    return linear_rule(operator, bias_of(layer), roundings, then=activation_rule(layer))


@lipschitz_rule(layers.Conv1D)
def _conv1d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    kernel = _on_rows(lambda: layer.kernel)
    (length, channels), taps, padding = shape, layer.kernel.shape[0], layer.padding
    if padding == "causal":  # zeros in front, which leave the norm as it is, and no others
        length, padding = length + (taps - 1) * layer.dilation_rate[0], "valid"
    geometry = (layer.strides[0], 1), padding, (layer.dilation_rate[0], 1), layer.groups
    return _ruled(layer, Conv2DOperator(kernel, (length, 1, channels), *geometry), math.prod(layer.kernel.shape[:-1]))


@lipschitz_rule(layers.Conv3D)
def _conv3d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    depth, height, width, channels = shape
    taps, (stride, *strides), (apart, *dilation) = layer.kernel.shape[0], layer.strides, layer.dilation_rate
    axis = Axis((taps - 1) * apart + 1, depth, stride, layer.padding)
    entries = math.prod(layer.kernel.shape[1:]) * depth * axis.outputs
    if layer.groups != 1:
        raise ValueError(
            f"Layer {layer.name!r} (Conv3D) has groups={layer.groups}; bounds know one group. Build it with groups=1."
        )
    if entries > _LARGEST_UNROLLED:
        raise ValueError(
            f"Layer {layer.name!r} (Conv3D) has, with its first axis unrolled into channels, a kernel of {entries} "
            f"entries; bounds know at most {_LARGEST_UNROLLED}. Shorten the first axis, or use Conv2D with its entries "
            f"as channels."
        )
    # [taps, depth, places]: where each tap reads at each place.
    reads = np.zeros((taps, depth, axis.outputs), "float32")
    for tap in range(taps):
        places, entries_read = axis.reads(tap * apart)
        reads[tap, entries_read, places] = 1
    shapes = *layer.kernel.shape[1:3], depth * channels, axis.outputs * layer.kernel.shape[4]

    def unrolled(kernel: Any, xp: Any) -> Any:
        return xp.reshape(xp.einsum("thwio,tdp->hwdipo", kernel, reads), shapes)

    kernel = Kernel(
        lambda: unrolled(ops.convert_to_tensor(layer.kernel), ops), lambda: unrolled(in_float64(layer.kernel), np)
    )
    operator = Conv2DOperator(kernel, (height, width, depth * channels), tuple(strides), layer.padding, tuple(dilation))
    return _ruled(layer, operator, math.prod(layer.kernel.shape[:-1]))


class DepthwiseOperator(LinearOperator):
    """A convolution of each channel with kernels of its own, `[kh, kw, channels, multiple]`.

    Its norm is the largest of the channels' norms.
    """

    def __init__(
        self,
        kernel: Kernel,
        input_shape: tuple[int, ...],
        strides: tuple[int, int],
        padding: str,
        dilation: tuple[int, int],
    ):
        self.kernel, self.input_shape = kernel, input_shape
        self.strides, self.padding, self.dilation = strides, padding, dilation
        *self._taps, self._channels, self._multiple = (int(side) for side in kernel.tensor().shape)
        self._reach = [(taps - 1) * apart + 1 for taps, apart in zip(self._taps, dilation, strict=True)]
        self._axes = axes_of(self._reach, input_shape[:2], strides, padding)
        self.fan_in = math.prod(self._taps)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*(axis.outputs for axis in self._axes), self._channels * self._multiple)

    @property
    def method(self) -> str:
        shape = (*self._reach, 1, self._multiple)
        return f"{conv2d_norm_method(shape, self.input_shape[:2], self.strides, self.padding)} of each channel"

    def apply(self, inputs: Any) -> Any:
        return ops.depthwise_conv(
            inputs, self.kernel.tensor(), self.strides, self.padding, "channels_last", self.dilation
        )

    def adjoint(self, outputs: Any) -> Any:
        kernel, (rows, columns) = self.kernel.tensor(), self._axes
        values = ops.reshape(outputs, (1, rows.outputs, columns.outputs, self._channels, self._multiple))
        total: Any = 0.0
        for tap in np.ndindex(*self._taps):
            part = ops.sum(values * kernel[tap], axis=-1)
            for axis, (at, stride, apart, reach) in enumerate(
                zip(tap, self.strides, self.dilation, self._reach, strict=True), start=1
            ):
                part = _spread(part, axis, stride, at * apart, reach - 1 - at * apart)
            total = total + part
        for axis, (one, side) in enumerate(zip(self._axes, self.input_shape, strict=False), start=1):
            missing = max(one.before + side - total.shape[axis], 0)
            pads = [(0, 0)] * 4
            pads[axis] = (0, missing)
            total = ops.take(ops.pad(total, pads), np.arange(one.before, one.before + side), axis=axis)
        return total

    def bound(self, claimed: float | None = None) -> float:
        kernel, size = self._dilated(self.kernel.exact()), self.input_shape[:2]
        found = (
            bound_conv2d_norm(kernel[:, :, channel : channel + 1], size, self.strides, self.padding, claimed)
            for channel in range(self._channels)
        )
        return max(found)

    def bound_of_magnitudes(self) -> float:
        kernel = self._dilated(self.kernel.magnitude())
        channels = (kernel[:, :, channel : channel + 1] for channel in range(self._channels))
        return max(bound_nonnegative_conv2d_norm(channel, self.strides) for channel in channels)

    def _dilated(self, kernel: Array) -> Array:
        """Return the kernel with zeros where a dilated one reads nothing."""
        found = np.zeros((*self._reach, *kernel.shape[2:]))
        found[:: self.dilation[0], :: self.dilation[1]] = kernel
        return found


def _spread(values: Any, axis: int, stride: int, before: int, behind: int) -> Any:
    """Return `[1, rows, columns, channels]` with zeros between the entries along an axis, and at both of its ends."""
    size = values.shape[axis]
    if stride > 1:
        values = ops.expand_dims(values, axis + 1)
        pads = [(0, 0)] * 5
        pads[axis + 1] = (0, stride - 1)
        shape = [*values.shape[:axis], size * stride, *values.shape[axis + 2 :]]
        values = ops.reshape(ops.pad(values, pads), shape)
    pads = [(0, 0)] * 4
    pads[axis] = (before, behind)
    return ops.pad(values, pads)


@lipschitz_rule(layers.DepthwiseConv2D)
def _depthwise_conv2d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    operator = DepthwiseOperator(kernel_of(layer), shape, layer.strides, layer.padding, layer.dilation_rate)
    return _ruled(layer, operator, operator.fan_in)


@lipschitz_rule(layers.DepthwiseConv1D)
def _depthwise_conv1d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    kernel = _on_rows(lambda: layer.kernel)
    geometry = (layer.strides[0], 1), layer.padding, (layer.dilation_rate[0], 1)
    operator = DepthwiseOperator(kernel, (shape[0], 1, shape[1]), *geometry)
    return _ruled(layer, operator, operator.fan_in)


class SeparableRule(LipschitzRule):
    """The rule of a convolution of each channel, then a mixing of channels.

    Its norm is that of the one convolution that both make; float32 takes two steps, and errs in each.
    """

    first: DepthwiseOperator
    mixing: Callable[[], Array]
    """Returns the second kernel, `[channels * multiple, filters]`, in float64."""

    def evaluated(
        self, inputs: Sequence[Evaluated], sizes: tuple[int, int], norms: tuple[float, float] | None = None
    ) -> Evaluated:
        """Return bounds on the output: its magnitude by the composed norm, its error step by step."""
        (value,), mixing = inputs, np.abs(self.mixing())
        between, terms = math.prod(self.first.output_shape), self.first.fan_in
        norm = self.first.bound_of_magnitudes()
        middle = rounding.linear(value, norm, norm, 0.0, terms + 1, terms, (sizes[0], between))
        norm, terms = bound_nonnegative_norm(mixing), len(mixing)
        result = rounding.linear(middle, norm, norm, self.offset, terms + 1, terms, (between, sizes[1]))
        composed = norms[0] if norms is not None else norm * self.first.bound_of_magnitudes()
        magnitude = (composed * value.magnitude + rounding.affine(self.offset)) * (1 + 2.0**-44)
        # No sum of either step exceeds these, nor does what a layer behind them is relative to.
        result = result._replace(magnitude=magnitude, terms=np.maximum(middle.terms, result.terms))
        return result if self.then is None else self.then.evaluated([result], (sizes[1], sizes[1]))


@lipschitz_rule(layers.SeparableConv2D)
def _separable_conv2d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    kernel = Kernel(lambda: ops.convert_to_tensor(layer.depthwise_kernel))
    return _separable(layer, DepthwiseOperator(kernel, shape, layer.strides, layer.padding, layer.dilation_rate))


@lipschitz_rule(layers.SeparableConv1D)
def _separable_conv1d(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    kernel = _on_rows(lambda: layer.depthwise_kernel)
    geometry = (layer.strides[0], 1), layer.padding, (layer.dilation_rate[0], 1)
    return _separable(layer, DepthwiseOperator(kernel, (shape[0], 1, shape[1]), *geometry))


def _separable(layer: Any, first: DepthwiseOperator) -> LipschitzRule:
    filters = layer.pointwise_kernel.shape[-1]

    def composed(depthwise: Any, pointwise: Any, xp: Any) -> Any:
        mixing = xp.reshape(pointwise, (*depthwise.shape[2:], filters))
        return xp.einsum("hwcm,cmo->hwco", depthwise, mixing)

    def mixing() -> Array:
        return in_float64(layer.pointwise_kernel).reshape(-1, filters)

    kernel = Kernel(
        lambda: composed(first.kernel.tensor(), ops.convert_to_tensor(layer.pointwise_kernel), ops),
        lambda: composed(first.kernel.exact(), mixing(), np),
        lambda: composed(np.abs(first.kernel.exact()), np.abs(mixing()), np) * (1 + 2.0**-40),
    )
    operator = Conv2DOperator(kernel, first.input_shape, first.strides, first.padding, first.dilation)
    bias = bias_of(layer)
    places = math.prod(operator.output_shape) / filters
    rule = SeparableRule(
        operator=operator,
        offset=lambda: 0.0 if bias is None else bound_norm(bias(), places),
        roundings=first.fan_in + len(mixing()) + 2,
        then=activation_rule(layer),
    )
    rule.first, rule.mixing = first, mixing
    return rule
