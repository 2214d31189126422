"""How far apart points of different classes lie: the assumption of answers by neighbours, checked on given points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from defended.numerics.float32 import gamma

Array = np.ndarray[Any, np.dtype[Any]]

_ROWS, _COLUMNS = 512, 8192
_PROBES = 32


class Separation(NamedTuple):
    """Pairs of points of different classes that are at most `radius` apart."""

    radius: float
    pairs: int
    smallest: float
    """The smallest distance among them; infinite where there are none."""


def close_pairs(points: Array, labels: Array, radius: float, norm: str) -> Separation:
    """Count pairs of different classes within `radius`, exactly: all pairs are compared.

    A float32 screen with a proven margin leaves out what cannot be within the radius; every other pair is measured by
    direct differences in float64, whose relative error is below 1e-12; pairs that close to the radius count as within.

    Args:
        points: `[count, n]` float32.
        labels: `[count]`.
        radius: in the units of the points, positive.
        norm: `"l2"` or `"linf"`.
    """
    order = np.argsort(labels, kind="stable")
    points, labels = points[order], labels[order]
    screen = _L2Screen(points) if norm == "l2" else _LinfScreen(points)
    pairs, smallest, limit = 0, np.inf, radius * (1 + 1e-12)
    for rows, columns in _blocks(labels):
        i, j = np.nonzero(screen(rows, columns, limit))
        for start in range(0, len(i), 4096):
            a, b = points[rows][i[start : start + 4096]], points[columns][j[start : start + 4096]]
            found = measured(a, b, norm)
            pairs += int((found <= limit).sum())
            smallest = min(smallest, float(found.min(initial=np.inf, where=found <= limit)))
    return Separation(radius, pairs, smallest)


def measured(a: Array, b: Array, norm: str) -> Array:
    """Return the distances between rows, `[k]` float64, by direct differences in float64."""
    delta = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.sqrt(np.square(delta).sum(axis=1)) if norm == "l2" else delta.max(axis=1, initial=0.0)


def _blocks(labels: Array) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of all pairs of two classes, each pair once: the points of a class with those of later ones."""
    ends = np.flatnonzero(np.diff(labels)) + 1
    starts = np.concatenate([[0], ends])
    for begin, end in zip(starts[: len(ends)], ends, strict=True):
        for first in range(begin, end, _ROWS):
            for left in range(end, len(labels), _COLUMNS):
                yield slice(first, min(first + _ROWS, end)), slice(left, min(left + _COLUMNS, len(labels)))


class _L2Screen:
    """`‖a‖² + ‖b‖² - 2<a, b>` in float32, whose error is at most `2 γ (‖a‖² + ‖b‖²)`, γ of u = 2^-24."""

    def __init__(self, points: Array):
        self.points = points
        self.square = np.square(points.astype(np.float64)).sum(axis=1).astype(np.float32)
        self.slack = 4 * gamma(points.shape[1] + 4)

    def __call__(self, rows: slice, columns: slice, limit: float) -> Array:
        both = self.square[rows][:, None] + self.square[columns][None]
        product = self.points[rows] @ self.points[columns].T
        product *= 2
        both *= np.float32(1 - self.slack)
        both -= product
        return both <= np.float32(limit * limit * (1 + 1e-6))


class _LinfScreen:
    """The maximum over the coordinates that vary most: never above the norm, but for one rounding."""

    def __init__(self, points: Array):
        chosen = np.argsort(-points.var(axis=0), kind="stable")[:_PROBES]
        self.probes = np.ascontiguousarray(points[:, chosen].T)

    def __call__(self, rows: slice, columns: slice, limit: float) -> Array:
        possible = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        bound = np.float32(limit * (1 + 1e-6))
        for probe in self.probes:
            possible &= np.abs(probe[rows][:, None] - probe[columns][None]) <= bound
        return possible
