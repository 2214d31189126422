"""The affine maps and ReLUs that each layer is made of, by its exact class; all other classes are refused.

A layer that is linear needs a row in `_PIECES` and a function in `linear_rules` that returns its maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.layers.invertible_downsampling import InvertibleDownsampling
from defended.layers.minmax import MinMax
from defended.networks.checks import check_channels_last, check_plain_weights
from defended.networks.exact_windows import entries_of_windows
from defended.networks.layer_kinds import FRAMING, GLOBAL_MAXIMA, INERT, LINEAR, MAXIMA
from defended.polytope import linear_rules
from defended.polytope.affine_maps import AffineMap, ReshapeMap
from defended.polytope.kernel_maps import DenseMap
from defended.polytope.pieces import Pieces, maxima, sloped, sorted_pairs
from defended.polytope.reductions import Shape

Rule = Callable[[Any, Sequence[Shape], Shape], Pieces]
"""Makes the pieces of a layer from the shapes of its inputs and of its output."""


def known_layers() -> list[str]:
    """Return the names of the layer classes that have bounds."""
    return sorted(cls.__name__ for cls in _PIECES)


def pieces_of(layer: layers.Layer, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    """Return the affine maps, ReLUs and bends of a built layer.

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
    return [DenseMap(layer), *_activation_of(layer, output_shape)]


def _linear(maps: Callable[[Any, Shape, Shape], Sequence[AffineMap]]) -> Rule:
    """Return the rule of a layer that is affine maps and perhaps an activation."""

    def rule(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
        made = maps(layer, shapes[0], output_shape)
        return [*made, *(_activation_of(layer, output_shape) if hasattr(layer, "activation") else [])]

    return rule


def _maxima(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    check_channels_last(layer)
    if isinstance(layer, GLOBAL_MAXIMA):
        taps = np.arange(np.prod(shapes[0])).reshape(-1, *output_shape)
    else:
        found = entries_of_windows(shapes[0], layer.pool_size, layer.strides, layer.padding)
        taps = np.where(found < 0, found.max(axis=0), found)  # beyond the map, one that the window holds anyway
    return maxima(shapes[0], output_shape, taps)


def _relu(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    if layer.max_value is not None or layer.threshold:
        settings = {name: getattr(layer, name) for name in ("max_value", "negative_slope", "threshold")}
        raise ValueError(
            f"Layer {layer.name!r} is not a plain ReLU but {settings}; polytope bounds know max(z, 0) and slopes below "
            f"0 only. Use `layers.ReLU()`."
        )
    return _sloped(layer, shapes, output_shape)


def _sloped(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    return [sloped(output_shape, layer.negative_slope) if layer.negative_slope else None]


def _prelu(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    return [sloped(output_shape, layer.alpha)]


def _minmax(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    return [sorted_pairs(output_shape)]


def _activation_of(layer: Any, shape: Shape) -> Pieces:
    activation = layer.activation
    if activation in LINEAR:
        return []
    if activation is keras.activations.relu:
        return [None]
    if activation is keras.activations.leaky_relu:
        return [sloped(shape, 0.2)]
    if type(activation) in (layers.ReLU, layers.LeakyReLU, layers.PReLU, MinMax):
        return _PIECES[type(activation)](activation, [shape], shape)
    name = getattr(activation, "__name__", str(activation))
    raise ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has the activation {name!r}; polytope bounds know 'relu', "
        f"'leaky_relu' and 'linear' only. Use `activation='relu'`, or defend the network with GloroNet, which knows "
        f"more activations."
    )


def _reshape(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    if len(shapes[0]) > 1:
        check_channels_last(layer)
    return [ReshapeMap(shapes[0], output_shape)]


def _nothing(layer: Any, shapes: Sequence[Shape], output_shape: Shape) -> Pieces:
    return []


_PIECES: dict[type, Rule] = {
    layers.InputLayer: _nothing,
    **dict.fromkeys(INERT, _nothing),
    layers.Dense: _dense,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D), _linear(linear_rules.convolved)),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _linear(linear_rules.convolved_by_channel)),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _linear(linear_rules.convolved_in_two_steps)),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D), _linear(linear_rules.averaged)),
    **dict.fromkeys(
        (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D), _linear(linear_rules.averaged_everywhere)
    ),
    **dict.fromkeys(MAXIMA, _maxima),
    layers.BatchNormalization: _linear(linear_rules.normalised_by_statistics),
    layers.Normalization: _linear(linear_rules.standardised),
    layers.Rescaling: _linear(linear_rules.rescaled),
    **dict.fromkeys(
        (*FRAMING, layers.CenterCrop, layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
         layers.RepeatVector, layers.Permute, InvertibleDownsampling),
        _linear(linear_rules.moved),
    ),
    layers.ReLU: _relu,
    layers.LeakyReLU: _sloped,
    layers.PReLU: _prelu,
    MinMax: _minmax,
    layers.Activation: lambda layer, shapes, output_shape: _activation_of(layer, output_shape),
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.Add: _nothing,
}  # fmt: skip


def _remedy(layer: Any) -> str:
    if not isinstance(layer, layers.Layer):
        return "Write the operation as a layer, such as `keras.layers.Add()` in place of `x + y`."
    if type(layer).__name__ in ("ELU", "Softmax"):
        return "Use `layers.ReLU()`, or defend the network with GloroNet, which knows more activations."
    return "Replace it by known layers, or defend the network with GloroNet, which takes rules for your own layers."
