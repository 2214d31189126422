"""Batch normalisation at inference: `x -> s * x + t`, folded into the linear layer before it where there is one."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.gloro.layer_rules import linear_rule
from defended.gloro.operators import (
    Array,
    ChannelScale,
    Conv2DOperator,
    DenseOperator,
    Kernel,
    in_float64,
    without_overflow,
)
from defended.gloro.rules import LipschitzRule, exact_rule, lipschitz_rule
from defended.networks.checks import check_normalises_channels
from defended.networks.tracing import Shape
from defended.numerics.matrix_norms import bound_norm


@lipschitz_rule(layers.BatchNormalization)
def _batch_normalization(layer: Any, shape: Shape) -> LipschitzRule:
    """Return the rule at inference, with the statistics of training: `x -> s * x + t`, for each channel."""
    check_normalises_channels(layer, shape)
    scale = normalisation_scale(layer)
    return linear_rule(
        ChannelScale(scale, shape),
        lambda: normalisation_shift(layer),
        rounding.NORMALISATION,
        scale=lambda: max(1.0, float(scale.magnitude().max())),  # which enlarges a mean that was flushed to zero
    )


def normalisation_scale(layer: layers.BatchNormalization) -> Kernel:
    """Return the factor of each channel, `gamma / sqrt(moving_variance + epsilon)`."""

    def tensor() -> Any:
        scale = ops.rsqrt(ops.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        return scale * ops.convert_to_tensor(layer.gamma) if layer.scale else scale

    def root() -> Any:
        variance = in_float64(layer.moving_variance) + layer.epsilon
        if not np.all((variance > 2.0**-100) & (variance < 2.0**126)):
            raise ValueError(
                f"the moving variance of {layer.name!r} is not positive, or near the ends of float32's range. Restore "
                f"it from a checkpoint before certifying, and leave `epsilon` at Keras's default."
            )
        return np.sqrt(variance)

    def exact() -> Any:
        return (in_float64(layer.gamma) if layer.scale else 1.0) / root()

    def magnitude() -> Any:
        # gamma(NORMALISATION) > 2^-20 of the floor outweighs a factor that is flushed to zero, 2^-126, and one that
        # vanishes because `gamma` is, 2^-126 / root.
        floor = np.maximum(2.0**-100, 2.0**-104 / root())
        return without_overflow(np.maximum(np.abs(exact()) * (1 + 2.0**-50), floor))

    return Kernel(tensor, exact, magnitude)


def normalisation_shift(layer: layers.BatchNormalization) -> Array:
    """Return magnitudes, per channel, of the terms that the shift is computed from: `|beta| + |mean * s|`."""
    shift = np.abs(in_float64(layer.moving_mean)) * normalisation_scale(layer).magnitude()
    return shift + np.abs(in_float64(layer.beta)) if layer.center else shift


def fold_normalisation(
    rule: LipschitzRule, layer: layers.BatchNormalization, shape: Shape
) -> tuple[LipschitzRule, LipschitzRule] | None:
    """Merge the factors of a normalisation into the linear layer before it, and return the rules of both.

    The norm of the scaled map is smaller than the product of the norms. The result is None where `rule` is not that of
    a linear layer.
    """
    operator = rule.operator
    if not isinstance(operator, DenseOperator | Conv2DOperator) or rule.then is not None or rule.factor != 1.0:
        return None
    # Of a convolution over three axes the operator's channels are unrolled places; a separable one takes two steps.
    if operator.output_shape[-1] != shape[-1] or type(rule) is not LipschitzRule:
        return None
    check_normalises_channels(layer, shape)
    scaled = copy.copy(operator)
    scaled.kernel = operator.kernel.scaled(normalisation_scale(layer))
    largest = normalisation_scale(layer).magnitude
    first = exact_rule(
        operator=scaled,
        offset=lambda: rule.offset * float(largest().max()),
        roundings=rule.roundings,
        alone=rule,
        scale=lambda: max(1.0, float(largest().max())),
    )
    places = math.prod(shape) / shape[-1]
    second = exact_rule(
        offset=lambda: bound_norm(normalisation_shift(layer), places),
        roundings=rounding.NORMALISATION,
        of_terms=True,
    )
    return first, second
