"""Operations of `keras.ops` in a functional model, and the layers that do the same."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

_PLAIN = ("relu", "silu", "tanh", "sigmoid")


def layer_of(operation: Any) -> Any:
    """Return the layer that does what an operation of `keras.ops` does in a functional model; None for most."""
    name, nodes = type(operation).__name__.lower(), operation._inbound_nodes
    if len(nodes) != 1 or not type(operation).__module__.startswith("keras.src.ops"):
        return None
    given = [*nodes[0].arguments.args, *nodes[0].arguments.kwargs.values()]
    tensors = [value for value in given if isinstance(value, keras.KerasTensor)]
    if len(tensors) == 2 and name in ("add", "subtract"):
        return {"add": layers.Add, "subtract": layers.Subtract}[name]()
    if len(tensors) == 1 and (found := _function(name, operation)) is not None:
        return found
    return _scaling(name, given, tensors)


def _function(name: str, operation: Any) -> Any:
    """Return the layer of an activation, with the operation's own settings; None for what is none."""
    if name == "gelu":
        return layers.Activation("gelu")  # the approximation by tanh is within 5e-4 of it
    if name == "leakyrelu":
        return layers.LeakyReLU(negative_slope=operation.negative_slope)
    if name == "elu":
        return layers.ELU(alpha=operation.alpha)
    if name == "softmax":
        return layers.Softmax(axis=operation.axis) if isinstance(operation.axis, int) else None
    if name == "cast":
        return layers.Identity() if str(operation.dtype) == "float32" else None
    return layers.Activation(name) if name in _PLAIN else None


def _scaling(name: str, given: list[Any], tensors: list[Any]) -> Any:
    """Return the `Rescaling` that arithmetic with one number is; None where it is something else."""
    numbers = [value for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(tensors) != 1 or len(numbers) != 1 or len(given) != 2:
        return None
    if "int" in str(tensors[0].dtype) and name not in ("divide", "truedivide"):
        return None  # whole numbers that go beyond their type wrap around
    number, first = float(numbers[0]), given[0] is tensors[0]
    scales = {
        "add": (1.0, number),
        "multiply": (number, 0.0),
        "subtract": (1.0, -number) if first else (-1.0, number),
        "truedivide": (1 / number, 0.0) if first and number else None,
        "divide": (1 / number, 0.0) if first and number else None,
    }
    found = scales.get(name)
    return None if found is None else layers.Rescaling(*found)
