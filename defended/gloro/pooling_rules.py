"""Rules of layers that average, take maxima, repeat and rescale, without trainable linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.gloro import rounding
from defended.gloro.operators import in_float64
from defended.gloro.rules import LipschitzRule, exact_rule, lipschitz_rule
from defended.networks.checks import check_channels_last, check_is_adapted, check_keeps_shape
from defended.networks.layer_kinds import GLOBAL_AVERAGING, GLOBAL_MAXIMA, WINDOW_AVERAGING, WINDOW_MAXIMA
from defended.networks.tracing import Shape
from defended.numerics.matrix_norms import average_pooling_norm, bound_norm, max_pooling_overlap

_UP = 1 + 2.0**-50


def _sides(layer: Any, shape: Shape) -> list[tuple[int, int, int, str]]:
    """Return length, window, stride and padding of each pooled axis."""
    check_channels_last(layer)
    axes = zip(shape[:-1], layer.pool_size, layer.strides, strict=True)
    return [(*axis, layer.padding) for axis in axes]


def _average_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    norm = math.prod(average_pooling_norm(*side) for side in _sides(layer, shape)) * _UP
    return exact_rule(norm, roundings=math.prod(layer.pool_size) + 2)


def _global_average_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    places = math.prod(shape[:-1])
    return exact_rule(places**-0.5 * _UP, roundings=places + 2)


def _max_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    # An entry is in so many windows, and the maximum of each moves by no more than what is in it.
    overlap = math.prod(max_pooling_overlap(*side) for side in _sides(layer, shape))
    return exact_rule(math.sqrt(overlap) * _UP)


def _global_max_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    return exact_rule()


_POOLING: dict[tuple[type, ...], Callable[[Any, Shape], LipschitzRule]] = {
    WINDOW_AVERAGING: _average_pooling,
    GLOBAL_AVERAGING: _global_average_pooling,
    WINDOW_MAXIMA: _max_pooling,
    GLOBAL_MAXIMA: _global_max_pooling,
}
for _classes, _rule in _POOLING.items():
    for _cls in _classes:
        lipschitz_rule(_cls)(_rule)


def _up_sampling(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    interpolation = getattr(layer, "interpolation", "nearest")
    if interpolation != "nearest":
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has interpolation={interpolation!r}, whose Lipschitz "
            f"constant is not known. Use 'nearest'."
        )
    return exact_rule(math.prod(np.ravel(layer.size)) ** 0.5 * _UP)


for _cls in (layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D):
    lipschitz_rule(_cls)(_up_sampling)


@lipschitz_rule(layers.RepeatVector)
def _repeat_vector(layer: Any, shape: Shape) -> LipschitzRule:
    return exact_rule(layer.n**0.5 * _UP)


@lipschitz_rule(layers.CenterCrop)
def _center_crop(layer: Any, shape: Shape) -> LipschitzRule:
    check_channels_last(layer)
    if layer.height > shape[0] or layer.width > shape[1]:
        raise ValueError(
            f"Layer {layer.name!r} (CenterCrop) enlarges inputs of {shape[0]} x {shape[1]} to {layer.height} x "
            f"{layer.width}: only cutting is known. Resize the images before the network."
        )
    return exact_rule()


@lipschitz_rule(layers.Rescaling)
def _rescaling(layer: Any, shape: Shape) -> LipschitzRule:
    check_keeps_shape(layer, shape)

    # Both are rounded to float32, then there are a product and a sum; a compiler may merge them with what follows.
    def scale() -> float:
        return _reasonable(np.abs(np.asarray(layer.scale, np.float64)), "scale", 2.0**100)

    def offset() -> float:
        return bound_norm(np.broadcast_to(np.asarray(layer.offset, np.float64), shape).ravel())

    return exact_rule(scale, offset=offset, roundings=8)


@lipschitz_rule(layers.Normalization)
def _normalization(layer: Any, shape: Shape) -> LipschitzRule:
    def deviation() -> Any:
        check_is_adapted(layer)
        return np.maximum(np.sqrt(in_float64(layer.variance)), keras.backend.epsilon())

    def factor() -> float:
        return _reasonable(deviation() if layer.invert else 1 / deviation(), "factor", 2.0**40)

    def offset() -> float:
        mean = in_float64(layer.mean) * (1.0 if layer.invert else 1 / deviation())
        return bound_norm(np.broadcast_to(mean, (1, *shape)).ravel()) * _UP

    # A root, its inverse, the mean's difference and a product, each within a few units of roundoff. `absolute` covers
    # a mean that is flushed to zero before it is multiplied: gamma(16) * 2^-60 > 2^40 * 2^-126.
    return exact_rule(factor, offset=offset, roundings=16, absolute=2.0**-60)


def _reasonable(factors: Any, what: str, largest: float) -> float:
    """Return the largest of positive factors, if float32 can multiply by all of them.

    Raises:
        ValueError: one is not finite, above `largest`, or near the lower end of float32's range.
    """
    fits = np.isfinite(factors) & ((factors == 0) | ((factors > 2.0**-100) & (factors < largest)))
    if not fits.all():
        raise ValueError(f"its {what} is {factors[~fits].flat[0]:.3g}: bring the inputs to a common scale first.")
    return float(factors.max()) * _UP


@lipschitz_rule(layers.ELU)
def _elu(layer: Any, shape: Shape) -> LipschitzRule:
    steepest = max(1.0, abs(float(layer.alpha)))
    return exact_rule(steepest * _UP, roundings=rounding.ELEMENTARY + 2, absolute=steepest * _UP)


@lipschitz_rule(layers.PReLU)
def _prelu(layer: Any, shape: Shape) -> LipschitzRule:
    def steepest() -> Any:
        return keras.ops.maximum(keras.ops.max(keras.ops.abs(keras.ops.convert_to_tensor(layer.alpha))), 1.0)

    return exact_rule(steepest, roundings=4)
