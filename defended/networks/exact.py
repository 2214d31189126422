"""What layers compute, in float64 NumPy, and how far a float32 evaluation of one layer may stray from it.

It is written from the layers' documentation and their weights, with none of a layer's own code, so a layer whose code
does something else is found out. An entry that adds up n terms, in any order, strays by at most `gamma_n` times the sum
of their magnitudes, `gamma_n = n u / (1 - n u)`, u = 2^-24 (Higham 2002, section 3.1). Tolerances count a few
operations more than any evaluation takes, and numbers that are flushed to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.layers.invertible_downsampling import InvertibleDownsampling
from defended.layers.liresnet_block import LiResNetBlock
from defended.networks import exact_activations
from defended.networks.exact_activations import activated
from defended.networks.exact_value import FEW, FLUSHED, Exact, Rule, added_up, float64
from defended.networks.exact_windows import Array, convolution, windows
from defended.networks.layer_kinds import (
    GLOBAL_AVERAGING,
    GLOBAL_MAXIMA,
    INERT,
    WINDOW_AVERAGING,
    WINDOW_MAXIMA,
)


def exact_layer(layer: layers.Layer, inputs: Sequence[Array]) -> Exact | None:
    """Return what a layer makes of float64 inputs `[n, ...]` at inference; None where the class is not known here."""
    rule = _RULES.get(type(layer))
    return None if rule is None else rule(layer, list(inputs))


# Linear maps.


def _dense(layer: Any, inputs: list[Array]) -> Exact:
    kernel = float64(layer.kernel)
    return _with_bias(layer, inputs[0] @ kernel, np.abs(inputs[0]) @ np.abs(kernel), len(kernel))


def _convolution(layer: Any, inputs: list[Array]) -> Exact:
    geometry = layer.strides, layer.padding, layer.dilation_rate, layer.groups
    kernel = float64(layer.kernel)
    value, magnitudes = (
        convolution(part, weights, *geometry)
        for part, weights in ((inputs[0], kernel), (np.abs(inputs[0]), np.abs(kernel)))
    )
    return _with_bias(layer, value, magnitudes, math.prod(kernel.shape[:-1]))


def _depthwise(layer: Any, inputs: list[Array]) -> Exact:
    value, magnitudes, taps = _by_channels(layer, layer.kernel, inputs[0])
    return _with_bias(layer, value, magnitudes, taps)


def _separable(layer: Any, inputs: list[Array]) -> Exact:
    pointwise = float64(layer.pointwise_kernel)
    pointwise = pointwise.reshape(pointwise.shape[-2:])
    value, magnitudes, taps = _by_channels(layer, layer.depthwise_kernel, inputs[0])
    # What is flushed to zero on the way is multiplied by the second kernel.
    magnitudes = (magnitudes + FLUSHED * (1 + taps)) @ np.abs(pointwise)
    return _with_bias(layer, value @ pointwise, magnitudes, taps + len(pointwise))


def _by_channels(layer: Any, variable: Any, inputs: Array) -> tuple[Array, Array, int]:
    """Return a convolution of each channel with kernels of its own, the same of magnitudes, and its number of taps."""
    kernel = float64(variable)
    *taps, channels, multiple = kernel.shape
    kernel = kernel.reshape(*taps, 1, channels * multiple)
    geometry = layer.strides, layer.padding, layer.dilation_rate, channels
    value, magnitudes = (
        convolution(part, weights, *geometry) for part, weights in ((inputs, kernel), (np.abs(inputs), np.abs(kernel)))
    )
    return value, magnitudes, math.prod(taps)


def _liresnet_block(layer: Any, inputs: list[Array]) -> Exact:
    branch = layer.residual_scale * float64(layer.branch_kernel)
    if layer.affine is not None:
        branch = branch * float64(layer.affine)
    identity = np.zeros_like(branch)
    identity[branch.shape[0] // 2, branch.shape[1] // 2] = np.eye(branch.shape[2])
    value = convolution(inputs[0], branch + identity, (1, 1), "same")
    # The kernel is a product of three: two of them may be flushed to zero before the third would bring them back.
    factors = np.maximum(np.abs(float64(layer.branch_kernel)), 1.0) * max(abs(layer.residual_scale), 1.0)
    if layer.affine is not None:
        factors = factors * np.maximum(np.abs(float64(layer.affine)), 1.0)
    kernel = np.abs(branch) + identity + FLUSHED * factors
    magnitudes = convolution(np.abs(inputs[0]), kernel, (1, 1), "same")
    return _with_bias(layer, value, magnitudes, math.prod(branch.shape[:3]) + 8)


def _with_bias(layer: Any, value: Array, magnitudes: Array, terms: int) -> Exact:
    if layer.bias is not None:
        bias = float64(layer.bias)
        value, magnitudes = value + bias, magnitudes + np.abs(bias)
    added = added_up(value, magnitudes, terms)
    activation = getattr(layer, "activation", None)
    return added if activation is None else activated(activation, added)


def _average_pooling(layer: Any, inputs: list[Array]) -> Exact:
    total, magnitudes, count = (
        windows(part, layer.pool_size, layer.strides, layer.padding).sum(axis=0)
        for part in (inputs[0], np.abs(inputs[0]), np.ones((1, *inputs[0].shape[1:])))
    )
    return added_up(total / count, magnitudes / count, math.prod(layer.pool_size))


def _max_pooling(layer: Any, inputs: list[Array]) -> Exact:
    return Exact(windows(inputs[0], layer.pool_size, layer.strides, layer.padding, fill=-np.inf).max(axis=0))


def _global_average_pooling(layer: Any, inputs: list[Array]) -> Exact:
    places, keep = tuple(range(1, inputs[0].ndim - 1)), bool(layer.keepdims)
    value, magnitudes = (part.mean(axis=places, keepdims=keep) for part in (inputs[0], np.abs(inputs[0])))
    return added_up(value, magnitudes, math.prod(inputs[0].shape[1:-1]))


def _global_max_pooling(layer: Any, inputs: list[Array]) -> Exact:
    return Exact(inputs[0].max(axis=tuple(range(1, inputs[0].ndim - 1)), keepdims=bool(layer.keepdims)))


def _rescaling(layer: Any, inputs: list[Array]) -> Exact:
    scale, offset = (np.asarray(part, np.float64) for part in (layer.scale, layer.offset))
    magnitudes = np.abs(inputs[0]) * (np.abs(scale) + FLUSHED) + np.abs(offset)
    return added_up(inputs[0] * scale + offset, magnitudes, 8)


def _standardisation(layer: Any, inputs: list[Array]) -> Exact:
    mean = float64(layer.mean)
    deviation = np.maximum(np.sqrt(float64(layer.variance)), keras.backend.epsilon())
    if layer.invert:
        value, magnitudes = mean + inputs[0] * deviation, np.abs(mean) + np.abs(inputs[0]) * (deviation + FLUSHED)
    else:
        value, magnitudes = (inputs[0] - mean) / deviation, (np.abs(inputs[0]) + np.abs(mean)) / deviation
    return added_up(value, magnitudes, 16)


def _normalisation(layer: Any, inputs: list[Array]) -> Exact:
    inverse = 1 / np.sqrt(float64(layer.moving_variance) + layer.epsilon)
    scale = inverse * float64(layer.gamma) if layer.scale else inverse
    shift = -float64(layer.moving_mean) * scale
    # A factor may be flushed to zero, before it is multiplied or after.
    size = np.maximum(np.abs(scale), FLUSHED * np.maximum(inverse, 1.0))
    value = inputs[0] * scale + shift
    magnitudes = np.abs(inputs[0]) * size + np.maximum(np.abs(shift), np.abs(float64(layer.moving_mean)) * size)
    if layer.center:
        value, magnitudes = value + float64(layer.beta), magnitudes + np.abs(float64(layer.beta))
    return added_up(value, magnitudes, FEW)


# What moves entries, and what joins values.


def _space_to_depth(layer: Any, inputs: list[Array]) -> Exact:
    rows, columns = layer.pool_size
    places = [inputs[0][:, i::rows, j::columns] for i in range(rows) for j in range(columns)]
    return Exact(np.concatenate(places, axis=-1))


def _zero_padding(layer: Any, inputs: list[Array]) -> Exact:
    return Exact(np.pad(inputs[0], [(0, 0), *_ends(layer.padding), (0, 0)]))


def _cropping(layer: Any, inputs: list[Array]) -> Exact:
    sides = inputs[0].shape[1:-1]
    kept = (slice(first, side - last) for side, (first, last) in zip(sides, _ends(layer.cropping), strict=True))
    return Exact(inputs[0][:, *kept])


def _ends(amounts: Any) -> list[tuple[int, int]]:
    """Return what is added or cut at both ends of each axis; of one axis, Keras keeps a single pair."""
    return [tuple(amounts)] if np.ndim(amounts) == 1 else [tuple(pair) for pair in amounts]


def _center_crop(layer: Any, inputs: list[Array]) -> Exact:
    top, left = (
        (side - kept) // 2 for side, kept in zip(inputs[0].shape[1:3], (layer.height, layer.width), strict=True)
    )
    return Exact(inputs[0][:, top : top + layer.height, left : left + layer.width])


def _up_sampling(layer: Any, inputs: list[Array]) -> Exact:
    value = inputs[0]
    sizes = [layer.size] if isinstance(layer.size, int) else layer.size
    for axis, times in enumerate(sizes):
        value = np.repeat(value, times, axis=1 + axis)
    return Exact(value)


def _sum(signs: Callable[[int], list[float]]) -> Rule:
    def rule(layer: Any, inputs: list[Array]) -> Exact:
        parts = [sign * part for sign, part in zip(signs(len(inputs)), inputs, strict=True)]
        return added_up(sum(parts), sum(map(np.abs, parts)), len(parts) + 4)  # type: ignore[arg-type]

    return rule


def _same(layer: Any, inputs: list[Array]) -> Exact:
    return Exact(inputs[0])


_RULES: dict[type, Rule] = {
    layers.Dense: _dense,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), _convolution),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    LiResNetBlock: _liresnet_block,
    layers.BatchNormalization: _normalisation,
    layers.Rescaling: _rescaling,
    layers.Normalization: _standardisation,
    **dict.fromkeys(WINDOW_AVERAGING, _average_pooling),
    **dict.fromkeys(WINDOW_MAXIMA, _max_pooling),
    **dict.fromkeys(GLOBAL_AVERAGING, _global_average_pooling),
    **dict.fromkeys(GLOBAL_MAXIMA, _global_max_pooling),
    InvertibleDownsampling: _space_to_depth,
    **dict.fromkeys(INERT, _same),
    **exact_activations.RULES,
    layers.Flatten: lambda layer, inputs: Exact(inputs[0].reshape(len(inputs[0]), -1)),
    layers.Reshape: lambda layer, inputs: Exact(inputs[0].reshape(len(inputs[0]), *layer.target_shape)),
    layers.Permute: lambda layer, inputs: Exact(inputs[0].transpose(0, *layer.dims)),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), _zero_padding),
    **dict.fromkeys((layers.Cropping1D, layers.Cropping2D, layers.Cropping3D), _cropping),
    layers.CenterCrop: _center_crop,
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), _up_sampling),
    layers.RepeatVector: lambda layer, inputs: Exact(np.repeat(inputs[0][:, None], layer.n, axis=1)),
    layers.Add: _sum(lambda n: [1.0] * n),
    layers.Subtract: _sum(lambda n: [1.0, -1.0]),
    layers.Average: _sum(lambda n: [1.0 / n] * n),
    layers.Concatenate: lambda layer, inputs: Exact(np.concatenate(inputs, axis=layer.axis)),
}
