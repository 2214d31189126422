"""Layers in float64, from the float32 weights as they are: what a second look evaluates a network by.

Made of gathering, products of matrices and element-wise operations, which TensorFlow, its C++ loader and ONNX Runtime
all have in float64; ONNX Runtime has no convolutions and no pooling. Layers whose own code rounds to float32 are
written anew here, or not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro.rounding import BLOCK
from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.networks.exact_windows import entries_of_windows
from defended.networks.layer_kinds import (
    FRAMING,
    GLOBAL_AVERAGING,
    GLOBAL_MAXIMA,
    INERT,
    MOVING,
    WINDOW_AVERAGING,
    WINDOW_MAXIMA,
)
from defended.networks.tracing import Step
from defended.numerics.float32 import SMALLEST_NORMAL
from defended.numerics.sliding_windows import Array

LONGEST = 2**12 * BLOCK
"""The longest inner product for which errors are as small as a second look takes them to be."""

_AS_THEY_ARE = (
    MinMax, layers.Add, layers.Subtract, layers.Average, layers.Concatenate, layers.RepeatVector, layers.UpSampling1D,
    layers.UpSampling2D, layers.UpSampling3D, *GLOBAL_AVERAGING, *GLOBAL_MAXIMA, *MOVING, *FRAMING,
)  # fmt: skip
"""Layers without weights, whose own code computes in the type of what it is given."""


class Float64Evaluation:
    """A network's logits in float64, from the float32 weights as they are now.

    Args:
        steps: the network's layers in the order in which they run.

    Raises:
        ValueError: a layer is not one that can be evaluated so; the message names it.
    """

    def __init__(self, steps: Sequence[Step]):
        self._steps = steps
        for step in steps:
            _check(step.layer)

    def __call__(self, inputs: Any) -> Any:
        """Return the logits `[k, m]` float64 of inputs `[k, ...]` float32."""
        values: dict[int, Any] = {0: ops.cast(inputs, "float64")}
        for step in self._steps:
            values[step.output] = _evaluated(step.layer, [values[slot] for slot in step.inputs])
        return values[self._steps[-1].output]

    def check_weights(self) -> None:
        """Raise where a weight may be flushed to zero.

        Raises:
            ValueError: naming the layer.
        """
        for step in self._steps:
            activation = getattr(step.layer, "activation", None)
            weights = [*getattr(step.layer, "weights", ()), *getattr(activation, "weights", ())]
            for weight in weights:
                value = np.abs(ops.convert_to_numpy(weight))
                if value.dtype == np.float32 and ((value > 0) & (value < SMALLEST_NORMAL)).any():
                    raise ValueError(
                        f"Layer {step.layer.name!r} has weights between 0 and 2^-126, which a processor may take for 0 "
                        f"before a second look in float64. Set them to 0, or leave `second_look` out."
                    )


def _check(layer: layers.Layer) -> None:
    activation = getattr(layer, "activation", None)
    fits = type(layer) in (*_AS_THEY_ARE, *_FUNCTIONS, *INERT) and getattr(layer, "groups", 1) == 1
    fits = fits and getattr(layer, "data_format", "channels_last") == "channels_last"
    fits = fits and (activation is None or activation in _ACTIVATIONS or type(activation) in _SLOPED)
    if not fits:
        raise ValueError(
            f"A second look in float64 does not know layer {layer.name!r} ({type(layer).__name__}) or its activation. "
            f"Leave `second_look` out, or use Dense, convolutions of one group, BatchNormalization, Rescaling, "
            f"pooling, MinMax, ReLU and its kin, ELU, and layers that move, frame, repeat, add or concatenate."
        )
    for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        kernel = getattr(layer, name, None)
        terms = 0 if kernel is None else int(np.prod(kernel.shape[:-1]))
        if terms > LONGEST:
            raise ValueError(
                f"A second look in float64 adds up at most {LONGEST} products, and layer {layer.name!r} has {terms} in "
                f"one output. Leave `second_look` out."
            )


def _evaluated(layer: Any, inputs: list[Any]) -> Any:
    if isinstance(layer, INERT):
        return inputs[0]
    function = _FUNCTIONS.get(type(layer))
    if function is None:
        return layer.call(inputs[0] if len(inputs) == 1 else inputs)
    value = function(layer, inputs[0])
    activation = getattr(layer, "activation", None)
    return value if activation is None else _activated(activation, value)


def _exactly(weights: Any) -> Any:
    return ops.cast(ops.convert_to_tensor(weights), "float64")


# Linear maps.


def _finished(layer: Any, value: Any) -> Any:
    """A value with the layer's bias."""
    return value if layer.bias is None else value + _exactly(layer.bias)


def _dense(layer: Any, value: Any) -> Any:
    return _finished(layer, ops.matmul(value, _exactly(layer.kernel)))


def _convolution(layer: Any, value: Any) -> Any:
    seen, places = _seen(value, *_geometry(layer))
    product = ops.matmul(seen, ops.reshape(_exactly(layer.kernel), (-1, layer.kernel.shape[-1])))
    return _finished(layer, ops.reshape(product, (-1, *places, product.shape[-1])))


def _depthwise(layer: Any, value: Any) -> Any:
    return _finished(layer, _by_channels(layer, value, layer.kernel))


def _separable(layer: Any, value: Any) -> Any:
    between = _by_channels(layer, value, layer.depthwise_kernel)
    mixing = _exactly(layer.pointwise_kernel)
    return _finished(layer, ops.matmul(between, ops.reshape(mixing, mixing.shape[-2:])))


def _by_channels(layer: Any, value: Any, kernel: Any) -> Any:
    """Return a convolution of each channel with kernels of its own, `[*taps, channels, multiple]`."""
    seen, places = _seen(value, *_geometry(layer, kernel))
    channels, multiple = kernel.shape[-2:]
    weights = ops.reshape(_exactly(kernel), (-1, channels, multiple))
    seen = ops.reshape(seen, (-1, int(np.prod(places)), weights.shape[0], channels, 1))
    return ops.reshape(ops.sum(seen * weights, axis=2), (-1, *places, channels * multiple))


def _liresnet_block(layer: Any, value: Any) -> Any:
    kernel = layer.residual_scale * _exactly(layer.branch_kernel)
    kernel = kernel if layer.affine is None else kernel * _exactly(layer.affine)
    whole = kernel + layer.identity.astype("float64")
    seen, places = _seen(value, whole.shape[:2], (1, 1), "same", (1, 1))
    product = ops.matmul(seen, ops.reshape(whole, (-1, whole.shape[3])))
    return _finished(layer, ops.reshape(product, (-1, *places, whole.shape[3])))


def _geometry(layer: Any, kernel: Any = None) -> tuple[Any, Any, str, Any]:
    """Return a convolution's taps, strides, padding and dilation."""
    taps = (layer.kernel if kernel is None else kernel).shape[:-2]
    return taps, layer.strides, layer.padding, layer.dilation_rate


def _seen(value: Any, taps: Any, strides: Any, padding: str, dilation: Any) -> tuple[Any, tuple[int, ...]]:
    """Return what windows see of maps `[k, *sides, channels]`, `[k, places, taps * channels]`, and places by axis."""
    sides, channels = value.shape[1:-1], value.shape[-1]
    reads = [_reads(*axis, padding) for axis in zip(sides, taps, strides, dilation, strict=True)]
    places = tuple(len(axis) for axis in reads)
    index, inside = np.zeros((1,) * 2 * len(sides), int), np.ones((1,) * 2 * len(sides), bool)
    for axis, (side, read) in enumerate(zip(sides, reads, strict=True)):
        shape = [1] * (2 * len(sides))
        shape[axis], shape[len(sides) + axis] = read.shape
        read = read.reshape(shape)
        index, inside = index * side + read, inside & (read >= 0) & (read < side)
    entries = int(np.prod(sides))
    index = np.where(inside, index, entries)  # the place behind the last one is 0
    flat = ops.pad(ops.reshape(value, (-1, entries, channels)), ((0, 0), (0, 1), (0, 0)))
    return ops.reshape(
        ops.take(flat, index.reshape(-1), axis=1),
        (-1, int(np.prod(places)), index.size // int(np.prod(places)) * channels),
    ), places


def _reads(side: int, taps: int, step: int, apart: int, padding: str) -> Array:
    """Return `[places, taps]`, which entry of an axis each tap reads; those below 0 or behind the end are zeros."""
    reach = (taps - 1) * apart + 1
    places = (side - reach) // step + 1 if padding == "valid" else -(-side // step)
    missing = max((places - 1) * step + reach - side, 0)
    before = {"valid": 0, "same": missing // 2, "causal": reach - 1}[padding]
    return np.arange(places)[:, None] * step - before + np.arange(taps)[None] * apart


def _batch_normalization(layer: Any, value: Any) -> Any:
    scale = 1.0 / ops.sqrt(_exactly(layer.moving_variance) + float(layer.epsilon))
    scale = scale * _exactly(layer.gamma) if layer.scale else scale
    value = (value - _exactly(layer.moving_mean)) * scale
    return value + _exactly(layer.beta) if layer.center else value


def _normalization(layer: Any, value: Any) -> Any:
    mean, deviation = _exactly(layer.mean), ops.sqrt(_exactly(layer.variance))
    deviation = ops.maximum(deviation, float(keras.backend.epsilon()))
    return mean + value * deviation if layer.invert else (value - mean) / deviation


def _rescaling(layer: Any, value: Any) -> Any:
    scale, offset = (np.asarray(part, np.float64) for part in (layer.scale, layer.offset))
    return value * scale + offset


# Windows.


def _average_pooling(layer: Any, value: Any) -> Any:
    held, counts = _held(layer, value, False)
    return ops.sum(held, axis=1) / counts


def _max_pooling(layer: Any, value: Any) -> Any:
    return ops.max(_held(layer, value, True)[0], axis=1)


def _held(layer: Any, value: Any, again: bool) -> tuple[Any, Array]:
    """Return what windows hold, `[k, taps, *places, channels]`, and how many entries that are.

    Beyond the map it is 0, or `again` an entry that the window holds.
    """
    entries = int(np.prod(value.shape[1:]))
    index = entries_of_windows(value.shape[1:], layer.pool_size, layer.strides, layer.padding)
    counts = (index >= 0).sum(axis=0).astype("float64")
    index = np.where(index < 0, index.max(axis=0) if again else entries, index)
    flat = ops.pad(ops.reshape(value, (-1, entries)), ((0, 0), (0, 1)))
    return ops.reshape(ops.take(flat, index.reshape(-1), axis=1), (-1, *index.shape)), counts


# Activations.


def _rectified(value: Any, slope: Any = 0.0, largest: float | None = None) -> Any:
    """ReLU and its kin. TensorFlow's own take a slope as a float32 number, in float64 too."""
    value = ops.maximum(value, 0.0) + slope * ops.minimum(value, 0.0)
    return value if largest is None else ops.minimum(value, float(largest))


def _elu(value: Any, alpha: float = 1.0) -> Any:
    return ops.where(value >= 0, value, alpha * (ops.exp(ops.minimum(value, 0.0)) - 1.0))


def _activated(activation: Any, value: Any) -> Any:
    sloped = _SLOPED.get(type(activation))
    return _ACTIVATIONS[activation](value) if sloped is None else sloped(activation, value)


_ACTIVATIONS: dict[Any, Callable[[Any], Any]] = {
    keras.activations.linear: lambda value: value,
    keras.activations.relu: _rectified,
    keras.activations.leaky_relu: lambda value: _rectified(value, 0.2),
    keras.activations.elu: _elu,
}

_Function = Callable[[Any, Any], Any]

_SLOPED: dict[type, _Function] = {
    layers.ReLU: lambda layer, value: _rectified(value, float(layer.negative_slope or 0.0), layer.max_value),
    layers.LeakyReLU: lambda layer, value: _rectified(value, float(layer.negative_slope)),
    layers.PReLU: lambda layer, value: _rectified(value, _exactly(layer.alpha)),
    layers.ELU: lambda layer, value: _elu(value, float(layer.alpha)),
}

_FUNCTIONS: dict[type, _Function] = {
    layers.Dense: _dense,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    LiResNetBlock: _liresnet_block,
    layers.BatchNormalization: _batch_normalization,
    layers.Normalization: _normalization,
    layers.Rescaling: _rescaling,
    **dict.fromkeys(WINDOW_AVERAGING, _average_pooling),
    **dict.fromkeys(WINDOW_MAXIMA, _max_pooling),
    layers.Activation: lambda layer, value: value,
    **_SLOPED,
}
"""What comes before the layer's own activation."""
