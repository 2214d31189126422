"""Space-to-depth: downsampling that loses nothing."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="defended")
class InvertibleDownsampling(keras.layers.Layer):
    """Move each `pool_size` block of pixels into the channels; a permutation of the entries, hence an isometry.

    Input `[batch, h, w, c]`, output `[batch, h / p, w / q, c * p * q]` for `pool_size = (p, q)`; channel blocks follow
    the offsets (0, 0), (0, 1), ..., (p - 1, q - 1).

    Args:
        pool_size: int or pair of ints, at least 1.

    Raises:
        ValueError: when height or width is not a multiple of the pool size.

    Reference: Jacobsen, Smeulders, Oyallon, "i-RevNet", 2018.
    """

    def __init__(self, pool_size: int | tuple[int, int] = 2, **kwargs: Any):
        super().__init__(**kwargs)
        pair = (pool_size, pool_size) if isinstance(pool_size, int) else tuple(pool_size)
        if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
            raise ValueError(f"`pool_size` must be a positive int or a pair of them. Received: pool_size={pool_size!r}")
        self.pool_size = pair

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != 4 or any(
            side is None or side % pool for side, pool in zip(input_shape[1:3], self.pool_size, strict=True)
        ):
            raise ValueError(
                f"`InvertibleDownsampling` needs [batch, height, width, channels] with height and width divisible by "
                f"pool_size={self.pool_size}. Received: input_shape={tuple(input_shape)}. Pad or crop the input first."
            )

    def call(self, inputs: Any) -> Any:
        rows, columns = self.pool_size
        parts = [inputs[:, i::rows, j::columns, :] for i in range(rows) for j in range(columns)]
        return ops.concatenate(parts, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        rows, columns = self.pool_size
        return (batch, height // rows, width // columns, channels * rows * columns)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size}
