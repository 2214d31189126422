"""MinMax, the gradient-norm-preserving activation of GloRo Nets."""

from __future__ import annotations

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

    def call(self, inputs: Any) -> Any:
        shape = ops.shape(inputs)
        pairs = ops.reshape(inputs, (*shape[:-1], inputs.shape[-1] // 2, 2))
        low, high = ops.min(pairs, axis=-1), ops.max(pairs, axis=-1)
        return ops.reshape(ops.stack([low, high], axis=-1), shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape
