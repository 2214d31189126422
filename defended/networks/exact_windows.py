"""Convolutions, their transposes and windows over maps, in float64 NumPy, written from Keras's documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def convolution(
    inputs: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Array:
    """Convolve inputs `[n, *sides, c]` with a kernel `[*taps, c / groups, filters]`, as Keras defines it."""
    *taps, per_in, filters = kernel.shape
    dilation = dilation or (1,) * len(taps)
    inputs, counts, _ = with_padding(inputs, taps, strides, padding, dilation)
    per_out = filters // groups
    result = np.zeros((len(inputs), *counts, filters))
    for tap in np.ndindex(*taps):
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
    """Return what a window holds at all of its places, tap by tap: `[taps, n, *places, channels]`."""
    filled, counts, _ = with_padding(inputs, size, strides, padding, fill=fill)
    return np.stack([read_by_tap(filled, tap, counts, strides) for tap in np.ndindex(*size)])


def entries_of_windows(shape: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: str) -> Array:
    """Return the numbers of the entries that windows hold, `[taps, *places, channels]`, -1 beyond the map.

    Entries of maps `[*sides, channels]` are counted row by row, from 0.
    """
    numbers = 1.0 + np.arange(np.prod(shape)).reshape(1, *shape)
    return windows(numbers, size, strides, padding)[:, 0].astype(int) - 1


def with_padding(
    inputs: Array,
    size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] | None = None,
    fill: float = 0.0,
) -> tuple[Array, list[int], list[int]]:
    """Return inputs with their padding (the odd pixel at the end), the number of places and the padding before them.

    Padding is `"valid"`, `"same"` or, of one axis, `"causal"`: all of it before the first place.
    """
    counts, before, behind = [], [], []
    axes = zip(inputs.shape[1:-1], size, strides, dilation or (1,) * len(size), strict=True)
    for length, taps, stride, step in axes:
        reach = (taps - 1) * step + 1
        if padding == "causal":
            counts.append((length - 1) // stride + 1)
            before.append(reach - 1)
            behind.append(0)
            continue
        count = -(-length // stride) if padding == "same" else (length - reach) // stride + 1
        missing = max((count - 1) * stride + reach - length, 0) if padding == "same" else 0
        counts.append(count)
        before.append(missing // 2)
        behind.append(missing - missing // 2)
    pads = [(0, 0), *zip(before, behind, strict=True), (0, 0)]
    return np.pad(inputs, pads, constant_values=fill), counts, before


def read_by_tap(
    inputs: Array,
    tap: Sequence[int],
    counts: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> Array:
    """Return what one tap of a window reads of padded inputs, at all of its places."""
    axes = zip(tap, counts, strides, dilation or (1,) * len(counts), strict=True)
    return inputs[:, *(slice(t * d, t * d + (count - 1) * s + 1, s) for t, count, s, d in axes)]
