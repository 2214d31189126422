"""Where code runs, at hand or in a graph that is being made; and the graphs that were compiled for a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras import ops


def is_at_hand(inputs: Any) -> bool:
    """Return whether a tensor holds numbers, and does not stand for those of a graph."""
    if hasattr(inputs, "_keras_history") or not ops.is_tensor(inputs):
        return False
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.executing_eagerly())
    if backend == "jax":
        import jax

        return not isinstance(inputs, jax.core.Tracer)
    return True


def in_stateless_scope() -> bool:
    """Return whether other values stand for variables, such as while JAX compiles, or in `stateless_call`."""
    from keras.src.backend.common import stateless_scope

    return bool(stateless_scope.in_stateless_scope())


def outside_of_graphs() -> AbstractContextManager[Any]:
    """Return a context in which variables can be read while a function is traced, as `deployed` is for an export."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope() if not tf.executing_eagerly() else nullcontext()


class CompiledFunctions:
    """Compiles functions for a model, and keeps the graphs by name until `clear`.

    Args:
        input_shape: the shape of one input.
    """

    def __init__(self, input_shape: tuple[int, ...]):
        self.input_shape = input_shape
        self.kept: dict[str, Any] = {}
        """What was compiled, and other constants that graphs hold."""

    def __call__(self, name: str, function: Callable[..., Any], of_inputs: bool = False) -> Callable[..., Any]:
        """Return `function`, or on TensorFlow the graph that was made of it at the first call under this name.

        `of_inputs`: it takes inputs `[batch, *input shape]` float32 and nothing else, so one graph serves all batches.
        """
        if keras.backend.backend() != "tensorflow":
            return function
        if name not in self.kept:
            import tensorflow as tf

            if of_inputs:
                signature = [tf.TensorSpec([None, *self.input_shape], tf.float32)]
                made = tf.function(function, input_signature=signature, autograph=False)
                self.kept[name] = made.get_concrete_function()
            else:
                self.kept[name] = tf.function(function, reduce_retracing=True, autograph=False)
        return self.kept[name]

    def clear(self) -> None:
        """Drop the graphs: they hold settings, or were made for estimates."""
        self.kept.clear()
