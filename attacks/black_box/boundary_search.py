"""The search for the nearest point with another verdict, which asks only for verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from defended.attacks.core.balls import column, distances, into_box
from defended.attacks.core.checks import Array

# Noise that leads to a first point grows up to 2 to this power times the radius.
_FARTHEST = 20

# A step along an estimated direction is halved at most this often.
_HALVINGS = 6

# A round pays for its estimate with what is left after a step, its first halvings and some bisection.
_RESERVE = 8


class Boundary(NamedTuple):
    """What was found for each input."""

    inputs: Array
    """`[n, *input shape]` float32, the nearest point with another verdict; `x` where none was found."""
    found: Array
    """`[n]` bool. An input that is itself rejected counts as found at distance 0."""
    distance: Array
    """`[n]` float64, from `x`, in the norm of the search; infinite where nothing was found."""
    queries: Array
    """`[n]` int64, the number of verdicts asked for; never more than the budget."""


@dataclass(eq=False)
class BoundarySearch:
    """Runs HopSkipJump around a batch of inputs. Each has its own random numbers, budget and pace.

    Args:
        query: maps points `[k, ...]` to labels `[k]` with -1 for ⊥, or to an object with such a `label`.
        x: `[n, ...]` float32.
        radius: the distance at which an input is finished.
        norm: `"l2"` or `"linf"`.
        clip: the box that all points stay in, or None.
        budget: largest number of queries for each input.
        samples: number of queries for the first estimate.
        streams: the random numbers of each input.
    """

    query: Callable[[Array], Any]
    x: Array
    radius: float
    norm: str
    clip: tuple[float, float] | None
    budget: int
    samples: int
    streams: list[np.random.Generator]

    def __post_init__(self) -> None:
        self.used = np.zeros(len(self.x), np.int64)
        self.nearest = self.x.copy()
        self.distance = np.full(len(self.x), np.inf)
        # As a share of the segment's width. HopSkipJump's d^(-3/2) is below the spread d^(-1) of the estimates, as it
        # must be; float32 and low dimensions bound it.
        self.tolerance = float(np.clip(float(self.x[0].size) ** -1.5, 2.0**-16, 1e-3))

    def run(self, starts: list[Array]) -> Boundary:
        """Search from the first of the starts, each `[n, ...]`, that has another verdict; from noise where none has."""
        everyone = np.arange(len(self.x))
        self.answer = self._labels(everyone, self.x)
        self.distance[self.answer < 0] = 0.0
        self._find_first_points(starts)
        rows = np.flatnonzero(self._going())
        self._bisect(rows, self.nearest[rows])
        number = 1
        while len(rows := np.flatnonzero(self._going() & (self.budget - self.used > _RESERVE))):
            directions = self._directions(rows, number)
            stepped, ends = self._step(rows, directions, number)
            self._bisect(rows[stepped], ends[stepped])
            number += 1
        return Boundary(self.nearest, np.isfinite(self.distance), self.distance, self.used)

    def _going(self) -> Array:
        return np.isfinite(self.distance) & (self.distance > self.radius) & (self.used < self.budget)

    # Asking.

    def _labels(self, rows: Array, points: Array) -> Array:
        """Return the verdicts at one point for each of the rows (a row may occur repeatedly), on their budgets."""
        np.add.at(self.used, rows, 1)
        answered = self.query(points)
        labels = np.asarray(getattr(answered, "label", answered))
        if labels.shape != (len(points),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"`query` must return a label for each of {len(points)} points, whole numbers with -1 for a rejection. "
                f"Received: shape {labels.shape}, dtype {labels.dtype}"
            )
        return labels.astype(np.int64)

    def _outside(self, rows: Array, points: Array) -> Array:
        """Return whether the verdicts at these points differ from the answers at x; keep the nearest that do."""
        outside = self._labels(rows, points) != self.answer[rows]
        size = distances(self.x[rows], points, self.norm)
        # From the farthest to the nearest, so that the nearest of a row's points is written last.
        for k in sorted(np.flatnonzero(outside & (size < self.distance[rows])), key=lambda k: -size[k]):
            self.nearest[rows[k]], self.distance[rows[k]] = points[k], size[k]
        return outside

    # The parts of a round.

    def _find_first_points(self, starts: list[Array]) -> None:
        for attempt in range(len(starts) + _FARTHEST):
            rows = np.flatnonzero(~np.isfinite(self.distance) & (self.used < self.budget))
            if not len(rows):
                return
            if attempt < len(starts):
                points = starts[attempt][rows]
            else:
                size = self.radius * 2.0 ** (attempt - len(starts) + 1)
                points = self.x[rows] + size * np.concatenate([self._noise(row, 1) for row in rows.tolist()])
            self._outside(rows, into_box(points, self.clip))

    def _bisect(self, rows: Array, ends: Array) -> None:
        """Bisect from ends outside, `[len(rows), ...]`, towards x down to the edge, where that gives nearer points.

        The first question is asked at the distance of the nearest point so far: an end that leads to no nearer one
        costs nothing more.
        """
        if not len(rows):
            return
        far = distances(self.x[rows], ends, self.norm)
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        # Nearer than the radius is near enough; the share stays clear of rounding.
        enough = (1 - 2.0**-18) * self.radius / np.maximum(far, self.radius)
        known = self.distance[rows] / far
        while True:
            going = np.flatnonzero(self._going()[rows] & (high - low > self.tolerance * high))
            if not len(going):
                return
            middle = (low[going] + high[going]) / 2
            share = np.where((known[going] < 1) & (high[going] == 1), known[going], middle)
            share = np.maximum(share, np.where(enough[going] < high[going], enough[going], 0.0))
            outside = self._outside(rows[going], self._between(rows[going], ends[going], share * far[going]))
            nothing_nearer = ~outside & (high[going] == 1) & (known[going] < 1)
            low[going] = np.where(outside, low[going], share)
            high[going] = np.where(outside, share, high[going])
            low[going[nothing_nearer]] = high[going[nothing_nearer]]

    def _directions(self, rows: Array, number: int) -> Array:
        """Return the steepest ways out at the nearest points, `[len(rows), ...]`: HopSkipJump's equations 9 and 16."""
        wanted = int(self.samples * np.sqrt(number))
        counts = np.minimum(wanted, self.budget - self.used[rows] - _RESERVE)
        noise = [self._noise(row, count) for row, count in zip(rows, counts, strict=True)]
        spread = np.repeat(self.distance[rows] / self.x[0].size, counts)
        around = np.concatenate(noise)
        points = into_box(np.repeat(self.nearest[rows], counts, axis=0) + column(spread, around) * around, self.clip)
        signs = np.where(self._outside(np.repeat(rows, counts), points), 1.0, -1.0)
        directions = []
        for own, vectors in zip(np.split(signs, np.cumsum(counts)[:-1]), noise, strict=True):
            mean = own.mean()
            # Where all agree, their mean is not a baseline but the whole estimate.
            weights = own if abs(mean) == 1 else own - mean
            directions.append(np.tensordot(weights, vectors, 1))
        result = np.stack(directions)
        if self.norm == "linf":
            return np.sign(result)
        length = np.linalg.norm(result.reshape(len(rows), -1), axis=1)
        return result / column(np.where(length > 0, length, 1.0), result)

    def _step(self, rows: Array, directions: Array, number: int) -> tuple[Array, Array]:
        """Return whether there are points outside along the directions, and the first met while steps are halved."""
        size = self.distance[rows] / np.sqrt(number)
        origin, ends, done = self.nearest[rows].copy(), self.nearest[rows].copy(), np.zeros(len(rows), bool)
        for _ in range(_HALVINGS):
            trying = np.flatnonzero(~done & (self.used[rows] < self.budget))
            if not len(trying):
                break
            points = into_box(origin[trying] + column(size[trying], origin) * directions[trying], self.clip)
            done[trying] = self._outside(rows[trying], points)
            ends[trying[done[trying]]] = points[done[trying]]
            size[trying] /= 2
        return done, ends

    # Points.

    def _noise(self, row: int, count: int) -> Array:
        """Return noise `[count, ...]` float32, uniform on the unit sphere (l2) or in the cube [-1, 1]^d."""
        shape = (int(count), *self.x.shape[1:])
        if self.norm == "linf":
            return 2 * self.streams[row].random(shape, np.float32) - 1
        noise = self.streams[row].standard_normal(shape, np.float32)
        return noise / column(np.linalg.norm(noise.reshape(len(noise), -1), axis=1), noise)

    def _between(self, rows: Array, ends: Array, size: Array) -> Array:
        """Return the points on the way from x to the ends, at these distances from x."""
        x = self.x[rows].astype(np.float64)
        way = ends - x
        if self.norm == "linf":
            return into_box(x + np.clip(way, -column(size, x), column(size, x)), self.clip)
        return into_box(x + way * column(size / np.linalg.norm(way.reshape(len(way), -1), axis=1), x), self.clip)
