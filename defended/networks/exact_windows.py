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
    inputs, counts, _ = with_padding(inputs, kernel.shape[:2], strides, padding, dilation)
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
    empty, counts, (top, left) = with_padding(np.zeros((len(rows), *input_shape)), kernel.shape[:2], strides, padding)
    for tap in np.ndindex(*kernel.shape[:2]):
        read_by_tap(empty, tap, counts, strides)[...] += rows @ kernel[tap].T
    return empty[:, top : top + input_shape[0], left : left + input_shape[1]]


def windows(inputs: Array, size: Sequence[int], strides: Sequence[int], padding: str, fill: float = 0.0) -> Array:
    """Return what a window holds at all of its places, tap by tap: `[taps, n, rows, columns, channels]`."""
    filled, counts, _ = with_padding(inputs, size, strides, padding, fill=fill)
    return np.stack([read_by_tap(filled, tap, counts, strides) for tap in np.ndindex(*size)])


def with_padding(
    inputs: Array,
    size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] = (1, 1),
    fill: float = 0.0,
) -> tuple[Array, list[int], list[int]]:
    """Return inputs with their padding (the odd pixel at the end), the number of places and the padding before them."""
    counts, before, behind = [], [], []
    for length, taps, stride, step in zip(inputs.shape[1:3], size, strides, dilation, strict=True):
        reach = (taps - 1) * step + 1
        count = -(-length // stride) if padding == "same" else (length - reach) // stride + 1
        missing = max((count - 1) * stride + reach - length, 0) if padding == "same" else 0
        counts.append(count)
        before.append(missing // 2)
        behind.append(missing - missing // 2)
    pads = [(0, 0), *zip(before, behind, strict=True), (0, 0)]
    return np.pad(inputs, pads, constant_values=fill), counts, before


def read_by_tap(
    inputs: Array, tap: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> Array:
    """Return what one tap of a window reads of padded inputs, at all of its places."""
    rows, columns = (
        slice(t * d, t * d + (count - 1) * s + 1, s)
        for t, count, s, d in zip(tap, counts, strides, dilation, strict=True)
    )
    return inputs[:, rows, columns]
