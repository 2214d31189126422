"""What activations compute, in float64 NumPy, as functions and as layers; see `defended.networks.exact`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.layers.minmax import MinMax
from defended.networks.exact_value import FEW, FLUSHED, Exact, Rule, added_up, float64
from defended.networks.exact_windows import Array
from defended.numerics.float32 import SMALLEST_NORMAL, gamma


def _sloped(slope: float) -> Callable[[Array], Array]:
    return lambda z: np.where(z >= 0, z, slope * z)


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(z / 2))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "hard_tanh": lambda z: np.clip(z, -1, 1),
    "leaky_relu": _sloped(0.2),
    "soft_shrink": lambda z: z - np.clip(z, -0.5, 0.5),
    "softsign": lambda z: z / (1 + np.abs(z)),
    "elu": lambda z: np.where(z >= 0, z, np.expm1(np.minimum(z, 0))),
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(z, 0),
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda z: np.clip(z + 3, 0, 6) / 6,
}

_ASSUMED = frozenset({"elu", "tanh", "softplus", "sigmoid"})
"""Functions that are assumed to keep a few units of roundoff relative to 1 + |z|."""


def activated(activation: Any, argument: Exact) -> Exact:
    """Return an activation of an argument that float32 computed within a tolerance."""
    if isinstance(activation, keras.layers.Layer):
        rule = RULES.get(type(activation))
        made = rule(activation, [argument.value]) if rule is not None else None
        slopes = [getattr(activation, name, None) for name in ("negative_slope", "alpha")]
        steepest = max([1.0, *(float(np.abs(float64(slope)).max()) for slope in slopes if slope is not None)])
    else:
        function = _ACTIVATIONS.get(getattr(activation, "__name__", ""))
        assumed = getattr(activation, "__name__", "") in _ASSUMED
        made = None if function is None else _elementwise(function, argument.value, assumed)
        steepest = 1.0
    if made is None:
        raise KeyError(activation)
    return Exact(made.value, made.tolerance + steepest * argument.tolerance)


def _elementwise(function: Callable[[Array], Array], z: Array, assumed: bool = False) -> Exact:
    """Return a function of each entry; where its accuracy is `assumed`, with the tolerance that is assumed."""
    value = function(z)
    # At 0, too, exp(z) - 1 is off by a unit of roundoff of 1.
    scale = 1.0 + np.abs(z) if assumed else np.abs(value) + np.minimum(np.abs(z), 1.0)
    return Exact(value, gamma(FEW) * scale + FEW * SMALLEST_NORMAL)


def _activation(layer: Any, inputs: list[Array]) -> Exact:
    return activated(layer.activation, Exact(inputs[0])) if layer.activation is not None else Exact(inputs[0])


def _relu(layer: Any, inputs: list[Array]) -> Exact:
    def function(z: Array) -> Array:
        z = _sloped(float(layer.negative_slope or 0.0))(z)
        return z if layer.max_value is None else np.minimum(z, float(layer.max_value))

    return _elementwise(function, inputs[0])


def _elu(layer: Any, inputs: list[Array]) -> Exact:
    alpha = float(layer.alpha)
    found = _elementwise(lambda z: np.where(z >= 0, z, alpha * np.expm1(np.minimum(z, 0))), inputs[0], assumed=True)
    return Exact(found.value, found.tolerance * max(1.0, abs(alpha)))


def _prelu(layer: Any, inputs: list[Array]) -> Exact:
    alpha, above, below = float64(layer.alpha), np.maximum(inputs[0], 0), np.minimum(inputs[0], 0)
    return added_up(above + alpha * below, above - (np.abs(alpha) + FLUSHED) * below, 8)


def _minmax(layer: Any, inputs: list[Array]) -> Exact:
    pairs = inputs[0].reshape(*inputs[0].shape[:-1], -1, 2)
    return Exact(np.sort(pairs, axis=-1).reshape(inputs[0].shape))


RULES: dict[type, Rule] = {
    MinMax: _minmax,
    layers.ReLU: _relu,
    layers.LeakyReLU: lambda layer, inputs: _elementwise(_sloped(float(layer.negative_slope)), inputs[0]),
    layers.ELU: _elu,
    layers.PReLU: _prelu,
    layers.Activation: _activation,
    layers.Identity: lambda layer, inputs: Exact(inputs[0]),
}
"""Layers that may be a layer's `activation=`, and what each makes of its inputs."""
