"""Networks that read numbers of words: noise on those means nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import layers, ops

_READING = (layers.Embedding, layers.IntegerLookup, layers.CategoryEncoding, layers.Hashing)

REMEDY = (
    "Smooth the part behind the embedding, `SmoothedNet(keras.Model(vectors, logits), ...)`, and embed each text "
    "before it is asked; a radius is then a distance between vectors, and says nothing of words."
)


def refuse_tokens(network: Any) -> None:
    """Refuse a network whose input are whole numbers that stand for something, such as words of a vocabulary.

    Raises:
        ValueError: when the input is declared as whole numbers, or a layer looks its entries up in a table.
    """
    if not isinstance(network, keras.Model) or len(getattr(network, "inputs", None) or ()) != 1:
        return  # refused elsewhere, with the reason
    reading = reads_tokens(network)
    dtype = str(network.inputs[0].dtype)
    if reading is not None:
        raise ValueError(
            f"Layer {reading!r} of `network` looks the input's numbers up in a table: they are names of words or "
            f"categories. Gaussian noise makes other words of them, so a vote under noise means nothing. {REMEDY}"
        )
    if dtype.startswith(("int", "uint", "bool", "string")):
        raise ValueError(
            f"The input of `network` {network.name!r} is declared as {dtype}, and Gaussian noise makes fractions of "
            f"whole numbers. For pixels, build it with `keras.Input(shape)`, whose dtype is float32: bytes are "
            f"converted. If the numbers are names of words: {REMEDY[0].lower()}{REMEDY[1:]}"
        )


def reads_tokens(network: keras.Model) -> str | None:
    """Return the name of a layer that looks the network's input up in a table; None where there is none.

    It is asked on inputs of zeros and of ones: such a layer is given one number then, and the next. A table of
    positions, which is given the same numbers, is none, and neither is one of codes that layers before it computed.
    """
    found = [layer for layer in network._flatten_layers(include_self=False) if isinstance(layer, _READING)]
    if not found:
        return None
    shape = [1 if size is None else size for size in network.inputs[0].shape[1:]]
    with _watched(found) as given:
        for number in (0, 1):
            network(ops.full((1, *shape), number, dtype=network.inputs[0].dtype), training=False)
    for layer in found:
        numbers = given[id(layer)]
        middle = len(numbers) // 2
        for first, then in zip(numbers[:middle], numbers[middle:], strict=True):
            if np.ptp(first) == np.ptp(then) == 0 and then.flat[0] - first.flat[0] == 1:
                return str(layer.name)
    return None


@contextmanager
def _watched(found: list[Any]) -> Iterator[dict[int, list[Any]]]:
    """Yield what layers are given, call by call, by their identities."""
    given: dict[int, list[Any]] = {id(layer): [] for layer in found}

    def watching(layer: Any, call: Any) -> Any:
        def watch(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            given[id(layer)].append(np.asarray(ops.convert_to_numpy(inputs)).astype(int))
            return call(inputs, *args, **kwargs)

        return watch

    for layer in found:
        # Past Keras's own `__setattr__`, which would track it.
        object.__setattr__(layer, "call", watching(layer, layer.call))
    try:
        yield given
    finally:
        for layer in found:
            object.__delattr__(layer, "call")
