"""The layers of legacy Keras networks that are rebuilt in Keras 3, each with its settings and weights checked.

A rule makes the Keras 3 layer and its weights' values; it takes each weight with the shape that it must have, before
any variable of that shape is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import layers

from defended.gloro.legacy.settings import MAX_BLOCK, MAX_UNITS, Settings
from defended.gloro.legacy.weights import Array, Shape
from defended.layers.invertible_downsampling import InvertibleDownsampling
from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax

Take = Callable[[str, Shape], Array]
Built = tuple[layers.Layer, dict[str, Array]]
Rule = Callable[[Settings, Sequence[Shape], Take], Built]

MAX_TRANSFER = 2**28
"""Most numbers (places of the input times pairs of channels) that bounding a convolution may take."""


def _kernel_and_bias(settings: Settings, take: Take, shape: Shape) -> tuple[bool, dict[str, Array]]:
    use_bias = settings.flag("use_bias", True)
    values = {"kernel": take("kernel", shape)}
    return use_bias, {**values, "bias": take("bias", shape[-1:])} if use_bias else values


def _dense(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    units, activation = settings.whole("units", MAX_UNITS), settings.activation()
    use_bias, values = _kernel_and_bias(settings, take, (shapes[0][-1], units))
    return layers.Dense(units, activation=activation, use_bias=use_bias), values


def _check_convolution(shape: Shape, filters: int) -> None:
    if len(shape) != 3:
        raise ValueError(f"it convolves [height, width, channels]. Received: an input of shape {shape}")
    if math.prod(shape) * filters > MAX_TRANSFER:
        raise ValueError(f"with {filters} filters on an input of shape {shape} it is too large to be bounded.")


def _conv2d(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    settings.channels_last()
    filters, size, groups = (
        settings.whole("filters", MAX_UNITS), settings.pair("kernel_size"), settings.whole("groups", MAX_UNITS, 1)
    )  # fmt: skip
    _check_convolution(shapes[0], filters)
    if shapes[0][-1] % groups or filters % groups:
        raise ValueError(f"it cannot convolve an input of shape {shapes[0]} with {filters} filters in {groups} groups.")
    options = {
        "strides": settings.pair("strides", 1),
        "padding": settings.one_of("padding", ("valid", "same")),
        "dilation_rate": settings.pair("dilation_rate", 1),
        "groups": groups,
        "activation": settings.activation(),
    }
    use_bias, values = _kernel_and_bias(settings, take, (*size, shapes[0][-1] // groups, filters))
    return layers.Conv2D(filters, size, use_bias=use_bias, **options), values


def _liresnet_block(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    size = settings.pair("kernel_size")
    use_bias, use_affine = settings.flag("use_bias", True), settings.flag("use_affine", True)
    settings.number("residual_scale", -1e30)  # where it started; what it is now is a weight
    if any(side % 2 == 0 for side in size):
        settings.refuse("kernel_size", "odd, so that the identity sits in the kernel's centre", size)
    channels = shapes[0][-1]
    _check_convolution(shapes[0], channels)
    values = {"branch_kernel": take("conv_kernel", (*size, channels, channels))}
    if use_bias:
        values["bias"] = take("bias", (channels,))
    if use_affine:
        values["affine"] = take("affine", (1, 1, 1, channels)).reshape(channels)
    scale = float(take("scale", ()))
    return LiResNetBlock(size, residual_scale=scale, use_bias=use_bias, use_affine=use_affine), values


def _minmax(settings: Settings) -> layers.Layer:
    # gloro sorts neighbours of the flattened input; with an even last axis these are neighbouring channels.
    settings.one_of("absolute_value", (False,), False)
    return MinMax()


def _flatten(settings: Settings) -> layers.Layer:
    settings.channels_last()
    return layers.Flatten()


def _relu(settings: Settings) -> layers.Layer:
    most = settings.number("max_value", 0.0, optional=True)
    slope, threshold = settings.number("negative_slope", 0.0, 0.0), settings.number("threshold", 0.0, 0.0)
    return layers.ReLU(max_value=most, negative_slope=slope, threshold=threshold)


def _pooling(settings: Settings) -> dict[str, Any]:
    settings.channels_last()
    pool = settings.pair("pool_size")
    strides = settings.pair("strides", pool)
    return {"pool_size": pool, "strides": strides, "padding": settings.one_of("padding", ("valid", "same"))}


def _global_average_pooling(settings: Settings) -> layers.Layer:
    settings.channels_last()
    return layers.GlobalAveragePooling2D(keepdims=settings.flag("keepdims", False))


def _batch_normalisation(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    axis = settings.axis("axis", len(shapes[0]))
    momentum, epsilon = settings.number("momentum", 0.0, 0.99), settings.number("epsilon", 0.0, 1e-3)
    scale, center = settings.flag("scale", True), settings.flag("center", True)
    names = [*(["gamma"] if scale else []), *(["beta"] if center else []), "moving_mean", "moving_variance"]
    values = {name: take(name, shapes[0][-1:]) for name in names}
    if np.min(values["moving_variance"]) < 0:
        raise ValueError("its weight 'moving_variance' holds negative numbers. Restore it from a checkpoint.")
    return layers.BatchNormalization(axis, momentum, epsilon, center=center, scale=scale), values


# Layers without weights.
_WEIGHTLESS: dict[str, Callable[[Settings], layers.Layer]] = {
    "MinMax": _minmax,
    "InvertibleDownsampling": lambda settings: InvertibleDownsampling(settings.pair("pool_size", most=MAX_BLOCK)),
    "Flatten": _flatten,
    "Reshape": lambda settings: layers.Reshape(settings.target("target_shape")),
    "Dropout": lambda settings: layers.Dropout(settings.number("rate", 0.0, below=1.0)),
    "Activation": lambda settings: layers.Activation(settings.activation()),
    "ReLU": _relu,
    "LeakyReLU": lambda settings: layers.LeakyReLU(negative_slope=settings.number("alpha", 0.0)),
    "AveragePooling2D": lambda settings: layers.AveragePooling2D(**_pooling(settings)),
    "MaxPooling2D": lambda settings: layers.MaxPooling2D(**_pooling(settings)),
    "GlobalAveragePooling2D": _global_average_pooling,
    "Add": lambda settings: layers.Add(),
}


def _weightless(make: Callable[[Settings], layers.Layer]) -> Rule:
    return lambda settings, shapes, take: (make(settings), {})


LAYERS: dict[str, Rule] = {
    "Dense": _dense,
    "Conv2D": _conv2d,
    "LiResNetBlock": _liresnet_block,
    "BatchNormalization": _batch_normalisation,
    **{name: _weightless(make) for name, make in _WEIGHTLESS.items()},
}
"""Rules by legacy class name. Each takes the settings, the shapes of the inputs and a way to take weights, and returns
the layer and the values of its variables."""
