"""Legacy Keras networks, rebuilt in Keras 3 from a description and weights, by an allowlist of layers.

A description is what legacy Keras writes as `model_config`: class names, settings and connections, plain data. None of
it is handed to a deserialiser: every layer class here is one that `layers` names, every setting was checked,
and no variable is made before weights of exactly its shape are there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from defended.gloro.legacy.layers import LAYERS
from defended.gloro.legacy.settings import MAX_SIDE, Settings
from defended.gloro.legacy.weights import Array, Shape, StoredWeights

MAX_LAYERS = 1000
"""Most layers of a network, and most calls of layers, those within inner networks included."""
MAX_ENTRIES = 2**24
"""Most numbers that a layer may hand to the next one, for one input."""
MAX_NESTING = 4

NETWORKS = ("Functional", "Model", "Sequential")
_SOURCES = ("keras", "tf_keras", "tensorflow", "gloro")
_ELSEWHERE = (
    "Rebuild the network with Keras 3 layers, give it the weights with `set_weights`, and wrap it: "
    "`GloroNet(network, epsilon=...)`."
)
_FOLD = "It has no counterpart here: fold its number into the weights of the layer before it, and save again."
_CODE = "It holds code, and code that a file brings is never run: write it as one of the known layers."
_REMEDIES = {
    "Scaling": _FOLD, "Bias": _FOLD, "Lambda": _CODE, "TFOpLambda": _CODE, "SlicingOpLambda": _CODE,
    "TensorFlowOpLayer": _CODE,
}  # fmt: skip


def known_classes() -> list[str]:
    """Return the names of the legacy layer classes that are rebuilt."""
    return sorted({*LAYERS, "InputLayer", "Functional", "Sequential"})


def from_known_source(module: Any) -> bool:
    """Return whether the names of a module's classes say what they compute: those of legacy Keras and gloro do."""
    return str(module).partition(".")[0] in _SOURCES


def rebuilt_network(description: dict[str, Any], weights: StoredWeights) -> keras.Model:
    """Return the Keras 3 network of a legacy `model_config`, with its weights.

    Args:
        description: `{"class_name": "Functional" or "Sequential", "config": {...}}`.
        weights: each is taken once, and those that are left over are refused.

    Raises:
        ValueError: naming the layer, the setting or weight, and the reason.
    """
    if (name := description.get("class_name")) not in NETWORKS:
        raise ValueError(
            f"the network must be one of {', '.join(NETWORKS)}. Received: {str(name)[:80]!r}. {_ELSEWHERE}"
        )
    network = _Rebuilding(weights).network(description, ())
    weights.refuse_the_rest()
    return network


@dataclass
class _Entry:
    """A layer of a description: its calls, each a list of (layer, call) whose outputs it receives."""

    name: str
    class_name: str
    description: dict[str, Any]
    calls: list[list[tuple[str, int]]]

    @property
    def label(self) -> str:
        return f"layer {self.name!r} ({self.class_name})"

    @property
    def plain_name(self) -> str:
        """The name as Keras 3 takes it."""
        return self.name.replace("/", "_")

    @property
    def first_call(self) -> int:
        # Legacy Keras counts the making of a network with an input layer as its first call.
        if self.class_name not in NETWORKS:
            return 0
        inner = _listed(self.description["config"], self.label)
        return int(isinstance(inner[0], dict) and inner[0].get("class_name") == "InputLayer")


class _Rebuilding:
    """The networks of a description, inner ones included, as they are rebuilt."""

    def __init__(self, weights: StoredWeights):
        self._weights = weights
        self._calls: dict[int, int] = {}

    def network(self, description: dict[str, Any], path: tuple[str, ...]) -> keras.Model:
        """Return the network at `path`, the names of the networks that it is nested in."""
        label = f"network {'/'.join(path)!r}" if path else "the network"
        if len(path) > MAX_NESTING:
            raise ValueError(f"{label} is nested more than {MAX_NESTING} deep. {_ELSEWHERE}")
        entries, output = _parsed(description, label)
        values: dict[tuple[str, int], Any] = {}
        built: dict[str, Any] = {}
        sources = []
        calls = 0
        for entry, number in _in_order(entries, label):
            inputs = [values[key] for key in entry.calls[number]] if entry.calls else []
            try:
                if entry.class_name == "InputLayer":
                    result = _input(entry)
                    sources.append(result)
                else:
                    if entry.name not in built:
                        built[entry.name] = self._layer(entry, inputs, (*path, entry.name))
                    calls += self._calls.get(id(built[entry.name]), 1)
                    if calls > MAX_LAYERS:
                        raise ValueError(f"with it, layers are called more than {MAX_LAYERS} times. {_ELSEWHERE}")
                    result = _called(built[entry.name], inputs)
            except (ValueError, TypeError) as error:
                # An inner network has named its own layer already.
                named = str(error).startswith(("layer ", "network "))
                raise ValueError(str(error) if named else f"{entry.label} cannot be rebuilt: {error}") from None
            values[entry.name, entry.first_call + number] = result
        if len(sources) != 1 or output not in values:
            raise ValueError(f"{label} must have one input layer, and end in one of its layers: {output[0]!r}.")
        network = keras.Model(sources[0], values[output], name=path[-1].replace("/", "_") if path else None)
        # An inner network runs all its layers whenever it is called.
        self._calls[id(network)] = max(calls, 1)
        return network

    def _layer(self, entry: _Entry, inputs: list[Any], path: tuple[str, ...]) -> Any:
        """Return the layer at `path`, built for the shapes of its first inputs, with its weights."""
        if not inputs:
            raise ValueError("it receives nothing.")
        if entry.class_name in NETWORKS:
            return self.network(entry.description, path)
        rule = LAYERS.get(entry.class_name)
        if rule is None:
            remedy = _REMEDIES.get(entry.class_name, _ELSEWHERE)
            raise ValueError(f"its class is not one of those that are rebuilt: {', '.join(known_classes())}. {remedy}")
        settings = Settings("its config", entry.description["config"])

        def take(role: str, shape: Shape) -> Array:
            return self._weights.take(path, role, shape)

        layer, values = rule(settings, [tuple(value.shape[1:]) for value in inputs], take)
        settings.finish()
        layer.name = entry.plain_name
        if values:
            layer.build(inputs[0].shape)
        for name, value in values.items():
            getattr(layer, name).assign(value)
        return layer


def _in_order(entries: list[_Entry], label: str) -> Iterator[tuple[_Entry, int]]:
    """Yield each call of each layer, after those whose outputs it receives."""
    done: set[tuple[str, int]] = set()
    waiting = [(entry, number) for entry in entries for number in range(max(len(entry.calls), 1))]
    if len(waiting) > MAX_LAYERS:
        raise ValueError(f"{label} calls its layers more than {MAX_LAYERS} times. {_ELSEWHERE}")
    while waiting:
        later = []
        for entry, number in waiting:
            if entry.calls and not done.issuperset(entry.calls[number]):
                later.append((entry, number))
            else:
                done.add((entry.name, entry.first_call + number))
                yield entry, number
        if len(later) == len(waiting):
            entry, number = waiting[0]
            key = next(key for key in entry.calls[number] if key not in done)
            raise ValueError(f"{entry.label} receives call {key[1]} of {key[0]!r}, which is not there before it.")
        waiting = later


def _called(layer: Any, inputs: list[Any]) -> Any:
    """Return the symbolic output of a layer."""
    several = isinstance(layer, layers.Add)
    if len(inputs) > 1 and not several:
        raise ValueError(f"it receives {len(inputs)} inputs, and takes one.")
    result = layer(inputs if several else inputs[0])
    if math.prod(result.shape[1:]) > MAX_ENTRIES:
        raise ValueError(f"its output of shape {tuple(result.shape[1:])} has more than {MAX_ENTRIES} entries.")
    return result


def _input(entry: _Entry) -> Any:
    settings = Settings("its config", entry.description["config"])
    for key in ("sparse", "ragged", "optional"):
        settings.one_of(key, (False, None), False)
    settings.finish()
    shape = entry.description["config"].get("batch_input_shape")
    if not isinstance(shape, list | tuple) or not shape or shape[0] is not None:
        settings.refuse("batch_input_shape", "[null, ...], an open batch of one fixed shape", shape)
    sides = settings.sides("batch_input_shape", shape[1:])
    if any(side > MAX_SIDE for side in sides[:-1]) or math.prod(sides) > MAX_ENTRIES:
        settings.refuse("batch_input_shape", f"of sides up to {MAX_SIDE} and {MAX_ENTRIES} entries", shape)
    return keras.Input(sides, name=entry.plain_name)


# Descriptions.


def _parsed(description: dict[str, Any], label: str) -> tuple[list[_Entry], tuple[str, int]]:
    """Return the layers of a network, and the (layer, call) that is its output."""
    found = _listed(description.get("config"), label)
    config = description["config"]
    entries = [_entry(layer, number, label) for number, layer in enumerate(found)]
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError(f"{label} has two layers of the same name.")
    if description["class_name"] == "Sequential":
        if entries[0].class_name != "InputLayer":
            shape = entries[0].description["config"].get("batch_input_shape")
            data = {"class_name": "InputLayer", "config": {"batch_input_shape": shape}}
            entries.insert(0, _Entry(f"{entries[0].name}_input", "InputLayer", data, []))
        for before, entry in itertools.pairwise(entries):
            entry.calls = [[(before.name, before.first_call)]]
        return entries, (entries[-1].name, entries[-1].first_call)
    for entry, layer in zip(entries, found, strict=True):
        calls = layer.get("inbound_nodes")
        if not isinstance(calls, list):
            raise ValueError(f"{entry.label} must list its inputs in 'inbound_nodes'.")
        entry.calls = [_references(call, entry.label) for call in calls]
    for key in ("input_layers", "output_layers"):
        if len(_references(config.get(key), f"{key!r} of {label}")) != 1:
            raise ValueError(f"{label} must have one input and one output: defend a model with a single head.")
    return entries, _references(config["output_layers"], label)[0]


def _listed(config: Any, label: str) -> list[Any]:
    found = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_LAYERS:
        raise ValueError(f"{label} must have a list of 1 to {MAX_LAYERS} 'layers'.")
    return found


def _entry(layer: Any, number: int, label: str) -> _Entry:
    config = layer.get("config") if isinstance(layer, dict) else None
    if not isinstance(config, dict) or not isinstance(layer.get("class_name"), str):
        raise ValueError(f"{label} has a layer without 'class_name' and 'config', at place {number}.")
    class_name = layer["class_name"][:80]
    name = layer.get("name", config.get("name", f"layer_{number}"))
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or config.get("name", name) != name:
        raise ValueError(f"{label} has a layer at place {number} ({class_name}) with an unusable name.")
    module, registered = layer.get("module"), layer.get("registered_name")
    if not (module is None or from_known_source(module)) or registered not in (None, class_name):
        raise ValueError(
            f"layer {name!r} is the class {str(registered or class_name)[:80]!r} of {str(module)[:80]!r}, which is "
            f"neither Keras's nor gloro's: its name does not say what it computes. {_ELSEWHERE}"
        )
    return _Entry(name, class_name, layer, [])


def _references(call: Any, label: str) -> list[tuple[str, int]]:
    """Return `[["a", 0, 0, {}], ...]`, or one such reference alone, as (layer, call) pairs."""
    if isinstance(call, list) and call and isinstance(call[0], str):
        call = [call]
    found = []
    for reference in call if isinstance(call, list) else [None]:
        if (
            not isinstance(reference, list)
            or len(reference) not in (3, 4)
            or not isinstance(reference[0], str)
            or not all(isinstance(index, int) and not isinstance(index, bool) for index in reference[1:3])
        ):
            raise ValueError(f"{label} has connections of an unknown form.")
        if reference[2] != 0 or reference[3:] not in ([], [{}]):
            raise ValueError(f"{label} is called with further arguments, or takes a second output: {_ELSEWHERE}")
        found.append((reference[0], reference[1]))
    return found
