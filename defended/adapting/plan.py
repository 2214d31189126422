"""A network taken apart into layers that can be exchanged, and put together again with its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from defended.adapting.operations import layer_of
from defended.adapting.stand_ins import Copied, copied, stand_in
from defended.gloro.rules import has_rule
from defended.networks.checks import acts_as_in_training, check_plain_weights, checked_graph
from defended.networks.layer_kinds import LINEAR
from defended.networks.tracing import Shape, Step, trace

Array = np.ndarray[Any, np.dtype[Any]]


class Change(NamedTuple):
    """One thing that was changed, and why."""

    kind: str
    """`"input"`, `"operation"`, `"ending"`, `"activation"`, `"max pooling"`, `"batch normalisation"`,
    `"normalisation"`."""
    layer: str
    """The layer's name in the user's network."""
    was: str
    now: str
    why: str


@dataclass
class Node:
    """One use of a layer in the network that is being made; values are numbered as in `Step`."""

    layer: Any
    """A layer that was not called yet."""
    weights: list[Array]
    inputs: tuple[int, ...]
    output: int
    name: str
    """Of the layer in the user's network."""
    kind: str
    """The layer's class there."""
    refused: str = ""
    """Why the layer cannot be part of a new network; empty where it can."""


class Plan:
    """The layers of a network in order, with the changes so far; `build` makes a network of them.

    Args:
        network: a built functional or sequential model with one input and one output.

    Raises:
        ValueError: for a model that is no graph of layers, naming what is in the way.
    """

    def __init__(self, network: keras.Model):
        network = checked_graph(network)
        steps, self.output = trace(network)
        for step in steps:
            check_plain_weights(step.layer)
        self.input_shape: Shape = tuple(network.inputs[0].shape[1:])
        self.network_name = network.name
        self.changes: list[Change] = []
        self._copies: dict[int, Copied] = {}
        self._uses = Counter(id(step.layer) for step in steps)
        self._next = len(steps)
        self._names: set[str] = set()
        self.shapes: dict[int, Shape] = {0: self.input_shape} | {step.output: step.shape for step in steps}
        self.shared = {step.layer.name for step in steps if self._uses[id(step.layer)] > 1}
        self.nodes = [self._node(step) for step in steps]
        if str(network.inputs[0].dtype) != "float32":
            self.record(
                "input", "input", f"{network.inputs[0].dtype}", "float32", "certificates are about float32 inputs"
            )

    def _node(self, step: Step) -> Node:
        if id(step.layer) not in self._copies:
            self._copies[id(step.layer)] = self._copy(step)
        layer, weights, why_not = self._copies[id(step.layer)]
        kind = type(step.layer).__name__
        return Node(layer, list(weights), step.inputs, step.output, step.layer.name, kind, why_not)

    def _copy(self, step: Step) -> Copied:
        if not isinstance(step.layer, layers.Layer):
            made = layer_of(step.layer)
            if made is None:
                name = self._unused(step.layer.name)
                return Copied(stand_in(type(step.layer).__name__, name, step.shape), [], "")
            kind, was = type(made).__name__, f"operation {type(step.layer).__name__}"
            made.name = self._unused(step.layer.name)
            self.record("operation", step.layer.name, was, kind, "rules are stated for layers")
            return Copied(made, [], "")
        if acts_as_in_training(step.layer):
            self.record(
                "operation", step.layer.name, "called with training=True", "called as it is at inference",
                "an answer must not depend on chance or on a batch",
            )  # fmt: skip
        return copied(step, self._unused(step.layer.name))

    def _unused(self, name: str) -> str:
        """Return a name that no layer has yet: nested models may repeat one."""
        found, number = name, 1
        while found in self._names:
            found, number = f"{name}_{number}", number + 1
        self._names.add(found)
        return found

    def _name(self, node: Node) -> str:
        """Return a name for a node's layer that no other use of it has."""
        alone = sum(other.layer is node.layer for other in self.nodes) == 1
        return node.layer.name if alone else self._unused(node.layer.name)

    def record(self, kind: str, layer: str, was: str, now: str, why: str) -> None:
        """Note a change."""
        self.changes.append(Change(kind, layer, was, now, why))

    def users(self, value: int) -> list[Node]:
        """Return the nodes that take a value."""
        return [node for node in self.nodes if value in node.inputs]

    def maker(self, value: int) -> Node | None:
        """Return the node that makes a value; None for the input."""
        return next((node for node in self.nodes if node.output == value), None)

    def is_free(self, node: Node) -> bool:
        """Return whether a node's layer may be changed for the sake of the one that follows it."""
        return node.name not in self.shared and len(self.users(node.output)) == 1 and node.output != self.output

    def reconfigured(self, node: Node, **settings: Any) -> None:
        """Give a node, and every other use of its layer, a layer with other settings."""
        old = node.layer
        new = type(old).from_config({**old.get_config(), **settings})
        for other in self.nodes:
            if other.layer is old:
                other.layer = new

    def replaced(self, node: Node, layer: layers.Layer) -> None:
        """Put another layer, without weights, in a node's place, keeping its name where no other use has it."""
        layer.name = self._name(node)
        node.layer, node.weights = layer, []

    def removed(self, node: Node) -> None:
        """Take a node with one input out."""
        self.nodes.remove(node)
        source = node.inputs[0]
        for user in self.nodes:
            user.inputs = tuple(source if value == node.output else value for value in user.inputs)
        self.output = source if self.output == node.output else self.output

    def appended(self, node: Node, layer: layers.Layer) -> Node:
        """Insert a layer behind a node and return its node."""
        self._next += 1
        value = self._next
        layer.name = self._unused(layer.name)
        for user in self.nodes:
            user.inputs = tuple(value if used == node.output else used for used in user.inputs)
        self.output = value if self.output == node.output else self.output
        new = Node(layer, [], (node.output,), value, node.name, type(layer).__name__)
        self.shapes[value] = self.shapes[node.output]
        self.nodes.insert(self.nodes.index(node) + 1, new)
        return new

    def build(self) -> keras.Model:
        """Return the network that the nodes make, with their weights; no rule is known for the layers refused."""
        inputs = keras.Input(self.input_shape, dtype="float32")
        values: dict[int, Any] = {0: inputs}
        for node in self.nodes:
            given = [values[number] for number in node.inputs]
            layer = (
                node.layer if has_rule(node.layer) else stand_in(node.kind, self._name(node), self.shapes[node.output])
            )
            values[node.output] = layer(given if len(given) > 1 else given[0])
            if layer is not node.layer:
                continue
            if node.weights:
                node.layer.set_weights(node.weights)
            if isinstance(node.layer, layers.Normalization) and node.layer.input_mean is None:
                node.layer.finalize_state()
        return keras.Model(inputs, values[self.output], name=f"{self.network_name}_adapted")


@contextmanager
def in_float32() -> Iterator[None]:
    """Make layers in float32 inside of the block, whatever the global dtype policy."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def has_activation(layer: Any) -> bool:
    """Return whether a layer has an `activation=` that is not the identity."""
    return getattr(layer, "activation", None) not in LINEAR
