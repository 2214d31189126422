"""Rules of Dense layers, activations, merges, and layers that only move or drop entries; importing registers them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.gloro.operators import Conv2DOperator, DenseOperator, Kernel, LinearOperator, in_float64, without_overflow
from defended.gloro.rules import LipschitzRule, exact_rule, lipschitz_rule, rule_for
from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.networks.checks import check_channels_last
from defended.networks.layer_kinds import FRAMING, INERT, MOVING
from defended.networks.tracing import Shape
from defended.numerics.matrix_norms import bound_norm

_EXP: dict[str, Any] = {"roundings": rounding.ELEMENTARY, "absolute": 1.0}
_ACTIVATIONS: dict[str, LipschitzRule | None] = {
    "linear": None, "relu": exact_rule(), "relu6": exact_rule(), "hard_tanh": exact_rule(),
    "leaky_relu": exact_rule(roundings=1), "soft_shrink": exact_rule(roundings=1),
    "softsign": exact_rule(roundings=3), "elu": exact_rule(**_EXP), "tanh": exact_rule(**_EXP),
    "softplus": exact_rule(at_zero=math.log(2) * (1 + 2.0**-50), **_EXP),
    "sigmoid": exact_rule(0.25, at_zero=0.5, **_EXP),
    "hard_sigmoid": exact_rule(1.0 / 6.0 * (1 + 2.0**-50), at_zero=0.5, roundings=4, absolute=0.5),
}  # fmt: skip


_AS_ACTIVATIONS = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU, layers.Activation, layers.Identity, MinMax)
"""Layers that may be a layer's `activation=`."""


def activation_rule(layer: keras.layers.Layer) -> LipschitzRule | None:
    """Return the rule of a layer's `activation=`, or None where there is none.

    Raises:
        ValueError: for an activation without a known constant.
    """
    activation = layer.activation
    if activation is None:
        return None
    name = getattr(activation, "__name__", type(activation).__name__)
    # A user's own function may bear a known name: the object must be Keras's.
    if isinstance(activation, keras.layers.Layer):
        # No layer that acts in training only: called without `training`, some draw at inference, too.
        if type(activation) in _AS_ACTIVATIONS or "lipschitz_bound" in vars(type(activation)):
            return rule_for(activation, ())
    elif name in _ACTIVATIONS and activation is keras.activations.get(name):
        return _ACTIVATIONS[name]
    raise ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has the activation {name!r}, whose Lipschitz constant is not "
        f"known. Use one of {', '.join(sorted(_ACTIVATIONS))}, or `MinMax` as a layer of its own."
    )


def _does_not_expand(layer: Any, shape: Shape) -> LipschitzRule:
    if type(layer) in (layers.Flatten, *FRAMING):
        check_channels_last(layer)
    return exact_rule()


for _cls in (*INERT, *MOVING, *FRAMING, MinMax):
    lipschitz_rule(_cls)(_does_not_expand)


@lipschitz_rule(layers.ReLU)
def _relu(layer: Any, shape: Shape) -> LipschitzRule:
    # A threshold above 0 makes the function jump.
    if float(layer.threshold) != 0.0:
        raise ValueError(
            f"Layer {layer.name!r} (ReLU) has threshold={layer.threshold}; only 0 is continuous. Set it to 0."
        )
    # A cap that is not a float32 number is rounded to one.
    capped = layer.max_value is not None and float(np.float32(layer.max_value)) != float(layer.max_value)
    return _sloped(layer.negative_slope, int(capped))


@lipschitz_rule(layers.LeakyReLU)
def _leaky_relu(layer: Any, shape: Shape) -> LipschitzRule:
    return _sloped(layer.negative_slope)


def _sloped(slope: Any, further: int = 0) -> LipschitzRule:
    # The slope itself is rounded to float32, then multiplied.
    slope = abs(float(slope))
    return exact_rule(max(1.0, slope * (1 + 2.0**-50)), roundings=(2 if slope else 0) + further)


@lipschitz_rule(layers.Activation)
def _activation(layer: Any, shape: Shape) -> LipschitzRule:
    return activation_rule(layer) or exact_rule()


def linear_rule(
    operator: LinearOperator, bias: Callable[[], Any] | None, roundings: int, **options: Any
) -> LipschitzRule:
    """Make the rule of a linear map with a bias `[channels]`, spread over all places of the output."""

    def offset() -> float:
        if bias is None:
            return 0.0
        places = math.prod(operator.output_shape) / operator.output_shape[-1]
        return bound_norm(bias(), places)

    return exact_rule(operator=operator, offset=offset, roundings=roundings, **options)


def kernel_of(layer: Any) -> Kernel:
    """Return a layer's kernel."""
    # Read anew each time: Keras replaces the variable where a layer is adapted or quantised.
    return Kernel(lambda: ops.convert_to_tensor(layer.kernel))


def bias_of(layer: Any) -> Callable[[], Any] | None:
    """Return a function that gives a layer's bias in float64; None where it has none."""
    return (lambda: in_float64(layer.bias)) if layer.use_bias else None


@lipschitz_rule(layers.Dense)
def _dense(layer: Any, shape: Shape) -> LipschitzRule:
    operator = DenseOperator(kernel_of(layer), shape[:-1])
    roundings = rounding.roundings_of_sum(operator.fan_in, parts=rounding.blocks(operator.fan_in))
    return linear_rule(operator, bias_of(layer), roundings, then=activation_rule(layer))


@lipschitz_rule(LiResNetBlock)
def _liresnet_block(layer: Any, shape: Shape) -> LipschitzRule:
    def branch() -> Any:
        scale = 1.0 if layer.affine is None else in_float64(layer.affine)
        return layer.residual_scale * in_float64(layer.branch_kernel) * scale

    def magnitude() -> Any:
        scale = 1.0 if layer.affine is None else np.maximum(np.abs(in_float64(layer.affine)), 1.0)
        # No product of some of the three factors, in whatever order they are taken, passes this.
        factors = max(abs(layer.residual_scale), 1.0) * np.maximum(np.abs(in_float64(layer.branch_kernel)), 1.0) * scale
        # gamma(4) of the last term outweighs products that are flushed to zero.
        return (np.abs(branch()) + layer.identity + 2.0**-100 * without_overflow(factors)) * (1 + 2.0**-50)

    kernel = Kernel(lambda: layer.kernel, lambda: branch() + layer.identity, magnitude, roundings=4)
    operator = Conv2DOperator(kernel, shape, padding="same")
    return linear_rule(operator, bias_of(layer), rounding.roundings_of_sum(operator.fan_in) + kernel.roundings)


def _merges(how: str) -> Callable[[Any, Shape], LipschitzRule]:
    return lambda layer, shape: exact_rule(merge=how)


for _cls, _how in (
    (layers.Add, "sum"), (layers.Subtract, "sum"), (layers.Average, "mean"), (layers.Concatenate, "hypot"),
):  # fmt: skip
    lipschitz_rule(_cls)(_merges(_how))
