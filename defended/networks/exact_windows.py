"""Convolutions, their transposes and windows over maps, in float64 NumPy, written from Keras's documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def convolution(
    inputs: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve inputs `[n, h, w, c]` with a kernel `[kh, kw, c / groups, filters]`, as Keras defines it."""
    inputs, counts = with_padding(inputs, kernel.shape[:2], strides, padding, dilation)
    per_in, per_out = kernel.shape[2], kernel.shape[3] // groups
    result = np.zeros((len(inputs), *counts, kernel.shape[3]))
    for tap in np.ndindex(*kernel.shape[:2]):
        read = read_by_tap(inputs, tap, counts, strides, dilation)
        for group in range(groups):
            to, frm = (slice(group * size, (group + 1) * size) for size in (per_out, per_in))
            result[..., to] += read[..., frm] @ kernel[tap][:, to]
    return result


def transposed_convolution(
    rows: Array, kernel: Array, strides: tuple[int, int], padding: str, input_shape: Sequence[int]
) -> Array:
    """Apply the transpose of `convolution`, of one group, undilated: `[n, h, w, filters]` to `[n, *input_shape]`."""
    empty, counts = with_padding(np.zeros((len(rows), *input_shape)), kernel.shape[:2], strides, padding)
    for tap in np.ndindex(*kernel.shape[:2]):
        read_by_tap(empty, tap, counts, strides)[...] += rows @ kernel[tap].T
    before = [
        max((count - 1) * stride + taps - length, 0) // 2 if padding == "same" else 0
        for length, taps, stride, count in zip(input_shape, kernel.shape, strides, counts, strict=False)
    ]
    top, left = before[:2]
    return empty[:, top : top + input_shape[0], left : left + input_shape[1]]


def windows(inputs: Array, size: Sequence[int], strides: Sequence[int], padding: str, fill: float = 0.0) -> Array:
    """Return what a window holds at all of its places, tap by tap: `[taps, n, rows, columns, channels]`."""
    filled, counts = with_padding(inputs, size, strides, padding, fill=fill)
    return np.stack([read_by_tap(filled, tap, counts, strides) for tap in np.ndindex(*size)])


def with_padding(
    inputs: Array,
    size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] = (1, 1),
    fill: float = 0.0,
) -> tuple[Array, tuple[int, int]]:
    """Return inputs with their padding (the odd pixel at the end), and how many places there are along each axis."""
    pads, counts = [(0, 0)], []
    for length, taps, stride, step in zip(inputs.shape[1:3], size, strides, dilation, strict=True):
        reach = (taps - 1) * step + 1
        count = -(-length // stride) if padding == "same" else (length - reach) // stride + 1
        missing = max((count - 1) * stride + reach - length, 0) if padding == "same" else 0
        pads.append((missing // 2, missing - missing // 2))
        counts.append(count)
    return np.pad(inputs, [*pads, (0, 0)], constant_values=fill), (counts[0], counts[1])


def read_by_tap(
    inputs: Array, tap: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> Array:
    """Return what one tap of a window reads of padded inputs, at all of its places."""
    rows, columns = (
        slice(t * d, t * d + (count - 1) * s + 1, s)
        for t, count, s, d in zip(tap, counts, strides, dilation, strict=True)
    )
    return inputs[:, rows, columns]
