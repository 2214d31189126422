"""The layers of a network in the order in which they run, nested models taken apart: what every defence starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import layers

Shape = tuple[int, ...]


@dataclass
class Step:
    """One use of a layer. Values are numbered in the order in which they are computed; number 0 is the input."""

    layer: keras.Operation
    """A Keras layer, or an operation of `keras.ops` that was applied to a tensor of the functional API."""
    inputs: tuple[int, ...]
    output: int
    input_shapes: tuple[Shape, ...]
    """Without the batch axis, like all shapes."""
    shape: Shape
    """The shape of the output."""


class Trace(NamedTuple):
    """A network as a graph of layers."""

    steps: list[Step]
    output: int
    """The value that the network returns."""


def trace(network: keras.Model) -> Trace:
    """Take a built functional or sequential model with one input and one output apart into its layers.

    A shared layer or nested model has a step for each use.

    Raises:
        ValueError: for a model that may do more than its layers show, a nested one with several outputs, a layer that
            brings an input of its own, or a sum of different shapes, naming it.
    """
    steps: list[Step] = []
    return Trace(steps, _append(steps, network, 0))


def _append(steps: list[Step], network: Any, source: int) -> int:
    """Append the steps that compute `network`'s output from the value `source`, and return the output's number."""
    _check_is_graph(network)
    known = {id(network.inputs[0]): source}

    def visit(tensor: Any) -> int:
        if id(tensor) not in known:
            operation, node_index, _ = tensor._keras_history
            sources = operation._inbound_nodes[node_index].input_tensors
            if not sources:
                raise ValueError(
                    f"Layer {operation.name!r} brings an input of its own; a defended network has exactly one input."
                )
            inputs = tuple(visit(source) for source in sources)
            if isinstance(operation, keras.Model):
                known[id(tensor)] = _append(steps, operation, inputs[0])
            else:
                shapes = tuple(tuple(source.shape[1:]) for source in sources)
                _check_does_not_broadcast(operation, shapes)
                steps.append(Step(operation, inputs, len(steps) + 1, shapes, tuple(tensor.shape[1:])))
                _build_activation(operation, steps[-1].shape)
                known[id(tensor)] = len(steps)
        return known[id(tensor)]

    return visit(network.outputs[0])


def _build_activation(layer: Any, shape: Shape) -> None:
    """Build a layer that is another one's activation, as its first call would: convolutions of Keras do not before."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, layers.Layer) and not activation.built:
        activation.build((None, *shape))


def _check_is_graph(network: Any) -> None:
    """Refuse a model whose `call` may do something other than its graph of layers says, or with several outputs."""
    tensor = keras.Input((1,))
    functional = type(keras.Model(tensor, layers.Identity()(tensor)))
    if type(network).call not in (functional.call, keras.Sequential.call):
        raise ValueError(
            f"Model {network.name!r} ({type(network).__name__}) overrides `call`, so it may do more than its layers "
            f"show. Build it with `keras.Sequential` or the functional API."
        )
    if len(network.outputs) != 1:
        raise ValueError(
            f"Model {network.name!r} has {len(network.outputs)} outputs; a network, and each model inside it, must "
            f"have a single one. Use its layers instead."
        )


def _check_does_not_broadcast(layer: Any, shapes: tuple[Shape, ...]) -> None:
    """Refuse a sum of different shapes, in which one entry is added to many others."""
    if isinstance(layer, layers.Add | layers.Subtract | layers.Average) and len(set(shapes)) > 1:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) broadcasts its inputs, of shapes {list(shapes)}, which "
            f"enlarges distances by an unknown factor. Bring them to one shape first."
        )
