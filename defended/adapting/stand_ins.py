"""Copies of a user's layers, whose own are never called again, and what stands for those that cannot be copied."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import keras
from keras import layers

from defended.networks.tracing import Shape, Step


class Copied(NamedTuple):
    """A layer that was not called yet, its weights, and why it is only a stand-in, where it is."""

    layer: Any
    weights: list[Any]
    refused: str


class _StandIn(layers.Layer):
    """In the place of what cannot be copied: it has a name and a shape, and is never evaluated."""

    def __init__(self, shape: Shape, **kwargs: Any):
        super().__init__(**kwargs)
        self.shape = shape

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *self.shape), "float32")

    def call(self, inputs: Any) -> Any:
        raise NotImplementedError


def stand_in(kind: str, name: str, shape: Shape) -> layers.Layer:
    """Return a layer of no known rule, whose class has the name `kind`."""
    made: Any = type(kind, (_StandIn,), {})
    return made(shape, name=name, dtype="float32")


def copied(step: Step, name: str) -> Copied:
    """Return a layer's copy in float32, under a name."""
    layer = step.layer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about functions that are left out below
            config = layer.get_config()
        config = {**config, "dtype": "float32", "name": name}
        # Weights are copied: what they began with is not needed, and may be a function that cannot be read back.
        functions = [key for key in config if key.endswith("_initializer") and _is_function(config[key])]
        copy = type(layer).from_config({**config, **dict.fromkeys(functions, "zeros")})
        return Copied(copy, layer.get_weights(), "")
    except Exception:  # a user's `get_config` and `__init__` may raise anything
        made = stand_in(type(layer).__name__, name, step.shape)
        return Copied(made, [], "" if isinstance(layer, layers.Lambda) else _NO_COPY)


_NO_COPY = (
    "cannot be copied: give its class a `get_config()` and an `__init__` that takes what that returns, and register "
    "functions with `@keras.saving.register_keras_serializable()`"
)


def _is_function(config: Any) -> bool:
    return callable(config) or (isinstance(config, dict) and config.get("class_name") in ("__lambda__", "function"))
