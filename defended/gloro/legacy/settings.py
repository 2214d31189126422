"""The settings of one layer of a legacy Keras model: each that is read is checked, each that is not is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_SIDE = 4096
"""Largest height or width, kernel, stride or pool."""
MAX_UNITS = 2**20
"""Largest number of units, filters or channels."""
MAX_BLOCK = 64
"""Largest side of the blocks of invertible downsampling, which makes a part of each of their places."""

# They act while training only, or were already applied to the weights.
_IGNORED = {
    "name", "trainable", "dtype", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
    "activity_regularizer", "kernel_constraint", "bias_constraint", "batch_input_shape", "lc_strategy",
    "noise_shape", "seed", "beta_initializer", "gamma_initializer", "moving_mean_initializer",
    "moving_variance_initializer", "beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint",
    "synchronized",
}  # fmt: skip
# Those that mean the same in both generations of Keras.
_ACTIVATIONS = ("linear", "relu", "elu", "softplus", "softsign", "tanh", "sigmoid")


class Settings:
    """The `config` of a layer. Every method reads one key, returns it checked, and marks it as read.

    Raises:
        ValueError: in every method, naming the layer, the key, the constraint and what was received.
    """

    def __init__(self, layer: str, config: Any):
        self.layer = layer
        if not isinstance(config, dict):
            raise ValueError(f"{layer} must have a config that is an object. Received: {_shown(config)}")
        self._config = config
        self._unread = set(config) - _IGNORED
        dtype = config.get("dtype", "float32")
        if isinstance(dtype, dict):  # a dtype policy
            dtype = (dtype.get("config") or {}).get("name")
        if dtype != "float32":
            raise ValueError(f"{layer} computes in {_shown(dtype)}; certificates are made for float32.")

    def whole(self, key: str, most: int, default: Any = None) -> int:
        """Return an integer from 1 to `most`."""
        return self._checked_whole(key, self._take(key, default), most)

    def pair(self, key: str, default: Any = None, most: int = MAX_SIDE) -> tuple[int, int]:
        """Return two integers from 1 to `most`, for height and width; one integer stands for both."""
        value = self._take(key, default)
        sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2:
            self.refuse(key, "an integer or a pair of them", value)
        return self._checked_whole(key, sides[0], most), self._checked_whole(key, sides[1], most)

    def sides(self, key: str, value: Any) -> tuple[int, ...]:
        """Return `value`, one to four positive integers."""
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 4:
            self.refuse(key, "one to four sizes", value)
        return tuple(self._checked_whole(key, side, MAX_UNITS) for side in value)

    def target(self, key: str) -> tuple[int, ...]:
        """Return one to four sizes, of which one may be -1: the rest."""
        value = self._take(key, None)
        free = [-1] if isinstance(value, list | tuple) and list(value).count(-1) == 1 else []
        sizes = [size for size in value if size != -1] if free else value
        if sizes or not free:
            self.sides(key, sizes)
        return tuple(value)

    def axis(self, key: str, rank: int) -> int:
        """Return -1, the last axis of an input of `rank` axes beside the batch, counted from the front or the back."""
        value = self._take(key, -1)
        if (list(value) if isinstance(value, list | tuple) else [value]) not in ([-1], [rank]):
            self.refuse(key, f"the last axis, {rank} or -1", value)
        return -1

    def number(
        self, key: str, least: float, default: Any = None, optional: bool = False, below: float = 1e30
    ) -> float | None:
        """Return a finite number of at least `least` and below `below`, or None where `optional` allows it."""
        value = self._take(key, default)
        if value is None and optional:
            return None
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:  # a live layer's
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
            self.refuse(key, f"a finite number of at least {least:g} and below {below:g}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self.one_of(key, (True, False), default))

    def one_of(self, key: str, choices: tuple[Any, ...], default: Any = None) -> Any:
        """Return one of `choices`."""
        value = self._take(key, default)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            self.refuse(key, "one of " + ", ".join(map(repr, choices)), value)
        return value

    def channels_last(self) -> None:
        """Refuse any other data format."""
        self.one_of("data_format", ("channels_last", None), "channels_last")

    def activation(self) -> str | None:
        """Return the name of an activation, None where there is none."""
        name = self.one_of("activation", _ACTIVATIONS, "linear")
        return None if name == "linear" else name

    def finish(self) -> None:
        """Refuse settings that no method has read: they may change what the layer computes."""
        if self._unread:
            names = ", ".join(map(_shown, sorted(self._unread, key=str)))
            raise ValueError(f"{self.layer} has settings that are not known here: {names}.")

    def refuse(self, key: str, constraint: str, value: Any) -> None:
        """Raise the error of a setting `key` that breaks `constraint`."""
        raise ValueError(f"{self.layer}: {key!r} must be {constraint}. Received: {_shown(value)}")

    def _take(self, key: str, default: Any) -> Any:
        self._unread.discard(key)
        return self._config.get(key, default)

    def _checked_whole(self, key: str, value: Any, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
            self.refuse(key, f"an integer from 1 to {most}", value)
        return int(value)


def _shown(value: Any) -> str:
    return repr(value)[:80]
