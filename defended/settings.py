"""Numbers that control a defended model, and constants that were proven of it: variables, but not weights."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

Array = np.ndarray[Any, np.dtype[Any]]


class _NotWeights(keras.layers.Layer):
    """A layer whose variables compiled steps see, but which `get_weights`, `set_weights` and files pass over."""

    def __init__(self, name: str):
        super().__init__(name=name, dtype="float32", autocast=False, trainable=False)
        self.built = True

    def scalar(self, name: str, value: float, dtype: str = "float32") -> keras.Variable:
        """Return a new variable without axes, which one replica writes and all read."""
        return self.constant(name, (), value, dtype)

    def constant(self, name: str, shape: tuple[int, ...], value: float = 0.0, dtype: str = "float32") -> keras.Variable:
        """Return a new variable of a shape, filled with a number."""
        return self.add_weight(
            name=name, shape=shape, initializer=keras.initializers.Constant(value), dtype=dtype, trainable=False,
            autocast=False, aggregation="only_first_replica",
        )  # fmt: skip

    @property
    def weights(self) -> list[Any]:
        return []

    def _trackable_children(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Return nothing, so that checkpoints pass over the variables, too (TensorFlow's hook)."""
        return {}

    def save_own_variables(self, store: Any) -> None:
        """Store nothing: none of this is in a file of weights (Keras's hook)."""

    def load_own_variables(self, store: Any) -> None:
        """Read nothing: whatever a file holds here stays there (Keras's hook)."""


def _fingerprint(variables: Sequence[Any]) -> Any:
    """Return two sums over the bits of all values, each weighted by its place, modulo 2^32: `[2]` int32.

    For graphs, which cannot compute a digest. A change of weights goes unnoticed with a probability of about 2^-64.
    """
    import tensorflow as tf

    def bits_of(variable: Any) -> Any:
        value = tf.convert_to_tensor(ops.convert_to_tensor(variable))
        value = value if value.dtype.size == 4 else tf.cast(value, tf.float32)
        return tf.reshape(tf.bitcast(value, tf.int32), [-1])

    bits = tf.concat([tf.zeros([0], tf.int32), *map(bits_of, variables)], axis=0)
    places = tf.range(1, tf.size(bits) + 1) * 2 + 1
    mixed = bits * places
    return tf.reduce_sum(tf.stack([mixed, tf.bitwise.bitwise_xor(mixed, bits * -1640531535) * places]), axis=1)


class Settings(_NotWeights):
    """The radius, and the factors that schedules move while training. A model's configuration holds what is to last."""

    def __init__(self, epsilon: float):
        super().__init__("settings")
        self.epsilon = self.scalar("epsilon", epsilon)
        self.radius_scale = self.scalar("radius_scale", 1.0)
        self.robust_weight_scale = self.scalar("robust_weight_scale", 1.0)


class ProvenConstants(_NotWeights):
    """What was proven, where graphs read it; and a seal, without which they reject everything.

    The seal is a number of this object's own. So constants that came from a file, or from another model, mean nothing
    until something has proven them here.
    """

    def __init__(self) -> None:
        super().__init__("proof")
        self.named = SimpleNamespace()
        """The constants by their names. As attributes of a model, Keras would count them among its weights."""
        self._number = int(np.random.default_rng().integers(1, 2**31 - 1))
        self._seal = self.scalar("seal", 0, dtype="int32")
        self._print = self.constant("fingerprint", (2,), 0, dtype="int32")

    def add(self, name: str, shape: tuple[int, ...] = ()) -> None:
        """Add a constant, filled with zeros."""
        setattr(self.named, name, self.constant(name, shape))

    @property
    def sealed(self) -> Any:
        """A boolean tensor: whether the constants may be relied on."""
        return ops.equal(ops.convert_to_tensor(self._seal), self._number)

    @property
    def is_sealed(self) -> bool:
        """Whether the constants may be relied on, where a number can be read."""
        return int(ops.convert_to_numpy(self._seal)) == self._number

    def sealed_for(self, variables: Sequence[Any]) -> Any:
        """Return whether the constants may be relied on and the variables are as they were at `seal`, a boolean tensor.

        For graphs that others compile, in front of which no Python code checks; with TensorFlow only.
        """
        if keras.backend.backend() != "tensorflow":
            return self.sealed
        same = ops.all(ops.equal(_fingerprint(variables), ops.convert_to_tensor(self._print)))
        return ops.logical_and(self.sealed, same)

    def seal(self, variables: Sequence[Any]) -> None:
        """Let graphs rely on the constants, as long as the variables hold what they hold now."""
        if keras.backend.backend() == "tensorflow":
            self._print.assign(_fingerprint(variables))
        self._seal.assign(self._number)

    def unseal(self) -> None:
        """Make graphs reject everything."""
        self._seal.assign(0)

    def values(self) -> dict[str, Array]:
        """Return the constants by their names, without the seal."""
        return {name: np.asarray(ops.convert_to_numpy(variable)) for name, variable in vars(self.named).items()}

    def assign(self, values: dict[str, Array]) -> None:
        """Set the constants by their names."""
        for name, variable in vars(self.named).items():
            variable.assign(values[name])
