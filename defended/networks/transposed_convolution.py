"""The transpose of a convolution, made of operations that a deployed graph may hold."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def transposed_convolution(
    rows: Any, kernel: Any, strides: tuple[int, int], padding: str, offsets: tuple[int, int], shape: tuple[int, ...]
) -> Any:
    """Apply the transpose of a convolution, channels last, to `[rows, h, w, filters]`; returns `[rows, *shape]`.

    Args:
        rows: what the convolution's outputs are multiplied by.
        kernel: `[height, width, channels, filters]`.
        strides: vertical and horizontal stride.
        padding: `"valid"` or `"same"`.
        offsets: rows and columns of padding before the first entry.
        shape: the shape of the convolution's input, without the batch axis.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        size = tf.stack([tf.shape(rows)[0], *shape])
        found = tf.nn.conv2d_transpose(rows, kernel, size, list(strides), padding.upper())
        return tf.ensure_shape(found, (rows.shape[0], *shape))
    # This reaches every position of the padded input that some tap reads; those behind it get zeros, and the
    # padding is cut off.
    full = ops.conv_transpose(rows, kernel, strides=strides, padding="valid", data_format="channels_last")
    missing = [
        (0, max(0, offset + want - got)) for offset, want, got in zip(offsets, shape[:2], full.shape[1:3], strict=True)
    ]
    full = ops.pad(full, [(0, 0), *missing, (0, 0)])
    (top, left), (height, width) = offsets, shape[:2]
    return full[:, top : top + height, left : left + width]
