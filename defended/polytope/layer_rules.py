"""The affine maps and ReLUs that each layer is made of, by its exact class; all other classes are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from defended.networks.checks import check_channels_last, check_plain_weights
from defended.networks.layer_kinds import INERT, LINEAR
from defended.polytope.affine_maps import AffineMap, ConvMap, DenseMap, GlobalPoolMap, PoolMap, ReshapeMap
from defended.polytope.reductions import Shape

Pieces = list[AffineMap | None]
"""Affine maps in the order in which they run; None stands for a ReLU."""


def known_layers() -> list[str]:
    """Return the names of the layer classes that have bounds."""
    return sorted(cls.__name__ for cls in _PIECES)


def pieces_of(layer: layers.Layer, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    """Return the affine maps and ReLUs of a built layer.

    Args:
        layer: a Keras layer.
        shapes: of its inputs, without the batch axis.
        output_shape: of its output.

    Raises:
        ValueError: for a layer that has no bounds, naming it and the remedy.
    """
    rule = _PIECES.get(type(layer))
    if rule is None:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no polytope bounds, so nothing behind it can be "
            f"certified. {_remedy(layer)} Known layers: {', '.join(known_layers())}."
        )
    check_plain_weights(layer)
    return rule(layer, shapes, output_shape)


def _dense(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    if len(shapes[0]) != 1:
        raise ValueError(
            f"Layer {layer.name!r} (Dense) works on inputs of shape {shapes[0]}; polytope bounds know Dense on vectors "
            f"only. Put `layers.Flatten()` before it."
        )
    return [DenseMap(layer), *_activation_of(layer)]


def _conv(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    check_channels_last(layer)
    if layer.groups != 1 or tuple(layer.dilation_rate) != (1, 1):
        raise ValueError(
            f"Layer {layer.name!r} (Conv2D) has groups={layer.groups} and dilation_rate={tuple(layer.dilation_rate)}; "
            f"polytope bounds know plain convolutions only. Build it with groups=1 and dilation_rate=1."
        )
    return [ConvMap(layer, shapes[0], output_shape), *_activation_of(layer)]


def _pool(kind: type) -> Callable[[Any, Sequence[Shape], Shape], Pieces]:
    def rule(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
        check_channels_last(layer)
        return [kind(layer, shapes[0], output_shape)]

    return rule


def _relu(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    settings = {name: getattr(layer, name) for name in ("max_value", "negative_slope", "threshold")}
    if settings["max_value"] is not None or settings["negative_slope"] or settings["threshold"]:
        raise ValueError(
            f"Layer {layer.name!r} is not a plain ReLU but {settings}; polytope bounds know max(z, 0) only. "
            f"Use `layers.ReLU()`."
        )
    return [None]


def _activation_of(layer: Any) -> Pieces:
    if layer.activation in LINEAR:
        return []
    if layer.activation is keras.activations.relu:
        return [None]
    name = getattr(layer.activation, "__name__", str(layer.activation))
    raise ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has the activation {name!r}; polytope bounds know 'relu' and "
        f"'linear' only. Use `activation='relu'`, or defend the network with GloroNet, which knows more activations."
    )


def _reshape(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    if len(shapes[0]) > 1:
        check_channels_last(layer)
    return [ReshapeMap(shapes[0], output_shape)]


def _nothing(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    return []


_PIECES: dict[type, Callable[[Any, Sequence[Shape], Shape], Pieces]] = {
    layers.InputLayer: _nothing,
    **dict.fromkeys(INERT, _nothing),
    layers.Dense: _dense,
    layers.Conv2D: _conv,
    layers.AveragePooling2D: _pool(PoolMap),
    layers.GlobalAveragePooling2D: _pool(GlobalPoolMap),
    layers.ReLU: _relu,
    layers.Activation: lambda layer, shapes, output_shape: _activation_of(layer),
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.Add: _nothing,
}


def _remedy(layer: Any) -> str:
    if not isinstance(layer, layers.Layer):
        return "Write the operation as a layer, such as `keras.layers.Add()` in place of `x + y`."
    if isinstance(layer, layers.BatchNormalization):
        return "Fold it into the layer before it, or train without it."
    if isinstance(layer, layers.MaxPooling2D):
        return "Use `AveragePooling2D`, or a convolution with strides."
    if type(layer).__name__ in ("MinMax", "LeakyReLU", "ELU", "PReLU", "Softmax"):
        return "Use `layers.ReLU()`, or defend the network with GloroNet, which knows more activations."
    return "Replace it by known layers, or defend the network with GloroNet, which takes rules for your own layers."
