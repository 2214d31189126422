"""Networks of the `gloro` library and their radii: of its `.gloronet` files, and of live models of legacy Keras."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np

from defended.gloro.legacy.archive import parsed_object, read_archive
from defended.gloro.legacy.network import MAX_NESTING, NETWORKS, from_known_source, rebuilt_network
from defended.gloro.legacy.weights import StoredWeights, Weights
from defended.networks.checks import checked_radius

M = TypeVar("M")

# What 1.1.1 and its predecessors wrote, and what later versions write. The saved constant is not believed: it is a
# lower estimate, and bounds are proven anew.
_SETTINGS = {"epsilon", "num_iterations", "_lc_frozen", "_hardcoded_lc"}
_RELAXED = ("k", "top_n", "affinity_sets")


def read_gloronet(path: str | os.PathLike[str], epsilon: float | None, defend: Callable[[keras.Model, float], M]) -> M:
    """Return `defend(network, radius)` of what a `.gloronet` file holds; see `defended.gloro.load_gloronet`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for anything else that is in the way, in `defend` too, naming the file.
    """
    try:
        archive = read_archive(path)
        radius = _saved_radius(archive.config, epsilon, f"member {f'{archive.folder}/config.json'!r}")
        member = f"member {f'{archive.folder}/f.h5'!r}"
        try:
            description = parsed_object(archive.architecture, "its attribute 'model_config'")
            return defend(rebuilt_network(description, StoredWeights(archive.weights)), radius)
        except ValueError as error:
            raise ValueError(f"{member}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {error}") from None


def read_live(live_model: Any, epsilon: float | None, defend: Callable[[keras.Model, float], M]) -> M:
    """Return `defend(network, radius)` of what a live model of `gloro` holds; see `GloroNet.from_gloro`."""
    if isinstance(live_model, keras.Model) or not all(hasattr(live_model, name) for name in ("f", "epsilon")):
        raise TypeError(
            f"`live_model` must be a `gloro.GloroNet`, which has `.f` and `.epsilon`. "
            f"Received: {type(live_model).__name__}. A Keras 3 network is wrapped by `GloroNet(network, epsilon=...)`."
        )
    try:
        _refuse_relaxed({name: getattr(live_model, name, None) for name in _RELAXED}, "")
        radius = checked_radius(np.asarray(live_model.epsilon).item() if epsilon is None else epsilon)
        live = live_model.f
        if type(live).__name__ not in NETWORKS or not from_known_source(type(live).__module__):
            raise ValueError(
                f"its network must be a legacy Keras Sequential or functional model. Received: {type(live)}"
            )
        return defend(rebuilt_network(_described(live), StoredWeights(_live_weights(live))), radius)
    except ValueError as error:
        raise ValueError(f"the live gloro model cannot be taken over: {error}") from None


def _saved_radius(config: dict[str, Any], epsilon: float | None, member: str) -> float:
    _refuse_relaxed(config, f"{member}: ")
    unknown = sorted(set(config) - _SETTINGS - set(_RELAXED))
    if unknown:
        raise ValueError(f"{member} has settings that gloro does not write: {', '.join(map(repr, unknown))[:200]}.")
    if epsilon is not None:
        return checked_radius(epsilon)
    saved = config.get("epsilon")
    if isinstance(saved, bool) or not isinstance(saved, int | float) or not 0 < saved < 1e30:
        raise ValueError(
            f"{member}: 'epsilon' must be a positive finite number. Received: {str(saved)[:80]!r}. "
            f"Name the radius: load_gloronet(path, epsilon=...)."
        )
    return checked_radius(saved)


def _refuse_relaxed(settings: dict[str, Any], where: str) -> None:
    for name in _RELAXED:
        if settings.get(name) is not None:
            raise ValueError(
                f"{where}{name!r} is set: this is a relaxed GloRo net (top-k or affinity sets), whose guarantee is "
                f"another one. Load the network alone from its `f` and wrap it."
            )


# A live model, described as its own file would.


def _described(network: Any, depth: int = 0) -> dict[str, Any]:
    """Return the `model_config` of a built legacy network, by duck typing.

    Legacy Keras writes it with `get_config()`, which fails for blocks whose settings are objects.
    """
    if len(getattr(network, "inputs", None) or ()) != 1 or len(getattr(network, "outputs", None) or ()) != 1:
        raise ValueError("its network must be built, with one input and one output.")
    if depth > MAX_NESTING:
        raise ValueError(f"its networks are nested more than {MAX_NESTING} deep.")
    entries: dict[int, dict[str, Any]] = {}
    calls: dict[tuple[int, int], list[Any]] = {}

    def reference(tensor: Any) -> list[Any]:
        """Return `[layer, call, output]`, once the layer and all before it are in `entries`."""
        layer, index, which = tensor._keras_history
        key = (id(layer), index)
        if key not in calls:
            node = layer._inbound_nodes[index]
            is_input = type(layer).__name__ == "InputLayer"
            arguments = {name: value for name, value in (node.call_kwargs or {}).items() if value is not None}
            sources = [] if is_input else [[*reference(source), arguments] for source in node.keras_inputs]
            if id(layer) not in entries:
                entries[id(layer)] = _described_layer(layer, depth)
            entry = entries[id(layer)]
            # Legacy Keras counts the making of a nested network as its first call.
            made = int(entry["class_name"] in NETWORKS)
            calls[key] = [layer.name, made + len(entry["inbound_nodes"])]
            if not is_input:
                entry["inbound_nodes"].append(sources)
        return [*calls[key], which]

    output, source = reference(network.outputs[0]), reference(network.inputs[0])
    config = {"layers": list(entries.values()), "input_layers": [source], "output_layers": [output]}
    return {"class_name": "Functional", "config": config, "name": network.name, "module": type(network).__module__}


def _described_layer(layer: Any, depth: int) -> dict[str, Any]:
    if type(layer).__name__ in NETWORKS:
        return {**_described(layer, depth + 1), "inbound_nodes": []}
    source = {"class_name": type(layer).__name__, "module": type(layer).__module__}
    return {**source, "name": layer.name, "config": layer.get_config(), "inbound_nodes": []}


def _live_weights(network: Any) -> Weights:
    """Return the weights of every layer of a live network, by the parts of their names, as its file would hold them."""
    found: Weights = {}
    for layer in network.layers:
        below = found.setdefault(layer.name, {})
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
            parts = tuple(variable.name.split("/"))
            if parts in below:
                raise ValueError(f"layer {layer.name!r} has two weights of the name {variable.name!r}.")
            below[parts] = np.asarray(value)
            if below[parts].dtype != np.float32:
                raise ValueError(f"its weights must be float32. Received: {below[parts].dtype}")
    return found
