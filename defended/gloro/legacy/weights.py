"""Weights of a legacy Keras model: kept as they were found, and handed out once each, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]
Weights = dict[str, dict[tuple[str, ...], Array]]
"""Float32 values: under each top-level layer's name, by the parts of their own names."""


class StoredWeights:
    """The weights that were found and not yet taken."""

    def __init__(self, found: Weights):
        self._left = {layer: dict(weights) for layer, weights in found.items()}

    def take(self, path: tuple[str, ...], role: str, shape: Shape) -> Array:
        """Return the weight `role` of the layer at `path`, of exactly `shape`, finite; each can be taken once."""
        below = self._left.get(path[0], {})
        # A nested network's weights lie with the network, each below its layer's name.
        names = [
            parts for parts in below
            if parts[-1].partition(":")[0] == role and (len(path) == 1 or parts[-2:-1] == path[-1:])
        ]  # fmt: skip
        if len(names) != 1:
            what = "is missing" if not names else f"is there {len(names)} times"
            raise ValueError(f"its weight {role!r} {what}. Save the model again with gloro's `GloroNet.save`.")
        value = below.pop(names[0])
        label = "/".join(names[0])
        if value.shape != shape:
            raise ValueError(f"its weight {label!r} must have shape {shape}. Received: shape {value.shape}")
        if not np.all(np.isfinite(value)):
            raise ValueError(f"its weight {label!r} holds NaN or infinite numbers. Restore it from a checkpoint.")
        return value

    def refuse_the_rest(self) -> None:
        """Refuse weights that no layer took."""
        rest = [f"{layer}: {'/'.join(parts)}" for layer, weights in self._left.items() for parts in weights]
        if rest:
            raise ValueError(f"there are weights that no layer takes: {', '.join(map(repr, rest[:5]))}.")
