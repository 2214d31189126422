"""MinMax, the gradient-norm-preserving activation of GloRo Nets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="defended")
class MinMax(keras.layers.Layer):
    """Sort neighbouring pairs of features: `(a, b) -> (min(a, b), max(a, b))`, also known as GroupSort2.

    Input and output: `[batch, ..., d]` with `d` even; pairs are the features (channels) 2k and 2k + 1. The map is
    1-Lipschitz in every l_p norm and preserves the norm of gradients.

    Raises:
        ValueError: when the number of features is odd.

    Reference: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", 2019.
    """

    def build(self, input_shape: Any) -> None:
        features = input_shape[-1]
        if features is None or features % 2:
            raise ValueError(
                f"`MinMax` sorts pairs of features, so the last axis must have a known even size. "
                f"Received: input_shape={tuple(input_shape)}. Use an even number of filters or units before it."
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if training and keras.backend.backend() == "tensorflow":
            outputs = _compiled()(inputs)
            outputs.set_shape(inputs.shape)
            return outputs
        return _sort_pairs(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def _sort_pairs(inputs: Any) -> Any:
    # Two axes only, which TensorFlow takes apart twice as fast as five; ONNX has no gradient of slices.
    first, second = ops.unstack(ops.reshape(inputs, (-1, 2)), axis=1)
    return ops.reshape(ops.stack([ops.minimum(first, second), ops.maximum(first, second)], axis=1), ops.shape(inputs))


@functools.cache
def _compiled() -> Callable[[Any], Any]:
    """Return `_sort_pairs` and its gradient, each as one XLA kernel, where the graph around them is not compiled.

    As separate TensorFlow operations they take longer than the convolutions they stand between.
    """
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def exchange(inputs: Any, carried: Any) -> Any:
        # A choice, since XLA's minimum on CPUs loses NaN.
        pairs, carried_pairs = tf.reshape(inputs, (-1, 2)), tf.reshape(carried, (-1, 2))
        falling = pairs[:, 0] > pairs[:, 1]
        first, second = carried_pairs[:, 0], carried_pairs[:, 1]
        exchanged = tf.where(falling, second, first), tf.where(falling, first, second)
        return tf.reshape(tf.stack(exchanged, axis=1), tf.shape(inputs))

    @tf.custom_gradient
    def sort_pairs(inputs: Any) -> Any:
        return exchange(inputs, inputs), lambda gradient: exchange(inputs, gradient)

    return sort_pairs
