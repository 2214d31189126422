"""Geometry of windows that slide along an axis: of convolutions and of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Axis:
    """The geometry of a sliding window along one axis: which input each tap reads for each output."""

    def __init__(self, taps: int, size: int, stride: int, padding: str):
        self.taps, self.size, self.stride = taps, size, stride
        if padding == "same":
            self.outputs = -(-size // stride)
            self.before = max((self.outputs - 1) * stride + taps - size, 0) // 2
        else:
            self.outputs = (size - taps) // stride + 1
            self.before = 0

    def readers(self, tap: int) -> range:
        """Return the outputs for which `tap` reads an input and not the zero padding."""
        first = max(-(-(self.before - tap) // self.stride), 0)
        last = min((self.size - 1 + self.before - tap) // self.stride, self.outputs - 1)
        return range(first, max(last + 1, first))

    def position(self, output: int, tap: int) -> int:
        """Return the input that `tap` reads for an output."""
        return output * self.stride + tap - self.before

    def reads(self, tap: int) -> tuple[Array, Array]:
        """Return output indices and the input indices that `tap` multiplies for them; zero padding left out."""
        outputs = np.array(self.readers(tap), dtype=int)
        return outputs, outputs * self.stride + tap - self.before

    def coverage(self) -> Array:
        """Return `[outputs, size]`, 1 where the window holds the input."""
        matrix = np.zeros((self.outputs, self.size))
        for tap in range(self.taps):
            matrix[self.reads(tap)] = 1.0
        return matrix

    def torus(self) -> int:
        """Return the coarse size (the fine one over the stride) of a torus on which no used tap wraps onto an input."""
        last = (self.outputs - 1) * self.stride + self.taps - 1 - self.before
        return -(-max(self.size + self.before, last + 1) // self.stride)


def axes_of(
    window: Sequence[int], input_shape: Sequence[int], strides: Sequence[int], padding: str
) -> tuple[Axis, Axis]:
    """Return the geometry of a two-dimensional window along its rows and its columns.

    Args:
        window: its height and width, perhaps followed by sizes that do not matter here, as a kernel's shape is.
        input_shape: `(height, width)` of the map.
        strides: vertical and horizontal stride.
        padding: `"valid"` or `"same"` (TensorFlow's convention: the odd pixel goes to the bottom right).
    """
    rows, columns = (Axis(*side, padding) for side in zip(window[:2], input_shape, strides, strict=True))
    return rows, columns
