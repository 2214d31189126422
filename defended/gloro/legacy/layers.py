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

LAYERS: dict[str, Rule] = {}
"""Rules by legacy class name: the settings, the shapes of the inputs and a way to take weights in; the layer and the
values of its variables out."""


def _rebuilds(class_name: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        LAYERS[class_name] = function
        return function

    return register


def _kernel_and_bias(settings: Settings, take: Take, shape: Shape) -> tuple[bool, dict[str, Array]]:
    use_bias = settings.flag("use_bias", True)
    values = {"kernel": take("kernel", shape)}
    return use_bias, {**values, "bias": take("bias", shape[-1:])} if use_bias else values


@_rebuilds("Dense")
def _dense(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    units, activation = settings.whole("units", MAX_UNITS), settings.activation()
    use_bias, values = _kernel_and_bias(settings, take, (shapes[0][-1], units))
    return layers.Dense(units, activation=activation, use_bias=use_bias), values


def _check_convolution(shape: Shape, filters: int) -> None:
    if len(shape) != 3:
        raise ValueError(f"it convolves [height, width, channels]. Received: an input of shape {shape}")
    if math.prod(shape) * filters > MAX_TRANSFER:
        raise ValueError(f"with {filters} filters on an input of shape {shape} it is too large to be bounded.")


@_rebuilds("Conv2D")
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


@_rebuilds("LiResNetBlock")
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


@_rebuilds("MinMax")
def _minmax(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    # gloro sorts neighbours of the flattened input; with an even last axis these are neighbouring channels.
    settings.one_of("absolute_value", (False,), False)
    return MinMax(), {}


@_rebuilds("InvertibleDownsampling")
def _invertible_downsampling(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return InvertibleDownsampling(settings.pair("pool_size", most=MAX_BLOCK)), {}


@_rebuilds("Flatten")
def _flatten(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    settings.channels_last()
    return layers.Flatten(), {}


@_rebuilds("Reshape")
def _reshape(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.Reshape(settings.target("target_shape")), {}


@_rebuilds("Dropout")
def _dropout(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    rate = settings.number("rate", 0.0)
    if rate is None or rate >= 1:
        settings.refuse("rate", "below 1", rate)
    return layers.Dropout(rate), {}


@_rebuilds("Activation")
def _activation(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.Activation(settings.activation()), {}


@_rebuilds("ReLU")
def _relu(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    most = settings.number("max_value", 0.0, optional=True)
    slope, threshold = settings.number("negative_slope", 0.0, 0.0), settings.number("threshold", 0.0, 0.0)
    return layers.ReLU(max_value=most, negative_slope=slope, threshold=threshold), {}


@_rebuilds("LeakyReLU")
def _leaky_relu(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.LeakyReLU(negative_slope=settings.number("alpha", 0.0)), {}


def _pooling(settings: Settings) -> dict[str, Any]:
    settings.channels_last()
    pool = settings.pair("pool_size")
    strides = settings.pair("strides", pool)
    return {"pool_size": pool, "strides": strides, "padding": settings.one_of("padding", ("valid", "same"))}


@_rebuilds("AveragePooling2D")
def _average_pooling(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.AveragePooling2D(**_pooling(settings)), {}


@_rebuilds("MaxPooling2D")
def _max_pooling(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.MaxPooling2D(**_pooling(settings)), {}


@_rebuilds("GlobalAveragePooling2D")
def _global_average_pooling(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    settings.channels_last()
    return layers.GlobalAveragePooling2D(keepdims=settings.flag("keepdims", False)), {}


@_rebuilds("Add")
def _add(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    return layers.Add(), {}


@_rebuilds("BatchNormalization")
def _batch_normalisation(settings: Settings, shapes: Sequence[Shape], take: Take) -> Built:
    axis = settings.axis("axis", len(shapes[0]))
    momentum, epsilon = settings.number("momentum", 0.0, 0.99), settings.number("epsilon", 0.0, 1e-3)
    scale, center = settings.flag("scale", True), settings.flag("center", True)
    names = [*(["gamma"] if scale else []), *(["beta"] if center else []), "moving_mean", "moving_variance"]
    values = {name: take(name, shapes[0][-1:]) for name in names}
    if np.min(values["moving_variance"]) < 0:
        raise ValueError("its weight 'moving_variance' holds negative numbers. Restore it from a checkpoint.")
    return layers.BatchNormalization(axis, momentum, epsilon, center=center, scale=scale), values
