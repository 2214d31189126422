"""The score-based attack on availability: what an outsider who sees scores and rejections can do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from defended.arguments import one_of, positive_number, whole_number
from defended.attacks.core import arguments, checks
from defended.attacks.core.arguments import argument
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import BALLS, column, into_box, place_inside
from defended.attacks.core.batches import by_batches
from defended.attacks.core.checks import Array


class Found(NamedTuple):
    """What was found for each input."""

    inputs: Array
    """`[n, *input shape]` float32 within the radius: rejected where `found`, otherwise of the least margin seen."""
    found: Array
    """`[n]` bool: the query rejected that point. An input that is itself rejected counts, at distance 0."""
    queries: Array
    """`[n]` int64, the number of points asked for."""


class Asked(NamedTuple):
    """What a query returns: `scores` `[k, m]`, and `rejected` `[k]` bool."""

    scores: Array
    rejected: Array


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ScoreDescent(Attack):
    """Finds rejected points within the radius from scores and rejections alone, within a budget of queries.

    A model rejects where its margin is too small for its certificate. So the margin of the answered class over its
    strongest rival, which the scores give, is descended inside the ball, with its gradient estimated by differences
    along smooth directions (`ScoreSearch`), until the model rejects. It needs no gradients, radii or score of ⊥, only
    the default answer of a deployed model. Every point that counts was asked for exactly as it is returned.

    In a call, `y` is ignored. `run` takes any function in place of a model, and a budget for all inputs together.
    """

    norm: str | None = arguments.norm()
    queries: int = arguments.queries(500)
    block: int = argument(16, "number of differences between two tries.", whole_number, least=1)
    reach: float = argument(
        0.5, "length of a difference, as a share of the radius. Noisy scores need long ones.", positive_number
    )
    clip: tuple[float, float] | None = arguments.clip()
    epsilon: float | None = arguments.epsilon()
    seed: int = arguments.seed(meaning="seed of the directions where they are random: for inputs that are not images.")
    batch_size: int = arguments.batch_size()

    def _perturb(self, task: Task) -> Array:
        m = task.model.num_classes

        def query(points: Array) -> Asked:
            scores = by_batches(lambda part: task.model(part, training=False), points, 256)
            return Asked(scores[:, :m], scores.argmax(axis=1) == m)

        return self.run(query, task.x, radius=task.radius, norm=task.norm).inputs

    def run(
        self, query: Callable[[Array], Any], x: ArrayLike, *, radius: float, norm: str, budget: int | None = None
    ) -> Found:
        """Search around each input in turn, asking a function that scores and judges points: a served model.

        Args:
            query: takes points `[k, *input shape]` float32, and returns `(scores [k, m], rejected [k] bool)`. Each
                point that it is given is one query.
            x: `[n, *input shape]`, finite, inside `clip`; the ones to spend the budget on first come first.
            radius: the ball's radius, in input units.
            norm: `"l2"` or `"linf"`.
            budget: largest number of queries for all inputs together; None for `queries` times n. Inputs that it does
                not reach are returned as they are, as not found.

        Raises:
            ValueError: when `query` returns something else, or an argument does not fit.
        """
        x = checks.in_float32(x)
        radius, norm = positive_number("radius", radius), one_of("norm", norm, BALLS)
        left = self.queries * len(x) if budget is None else whole_number("budget", budget, 0)
        inputs, found, used = x.copy(), np.zeros(len(x), bool), np.zeros(len(x), np.int64)
        first = 0
        while first < len(x) and left > 0:
            # Each may spend its own budget, or what is left for all.
            count = min(self.batch_size, len(x) - first, max(1, left // self.queries))
            rows = slice(first, first + count)
            search = ScoreSearch(
                query, x[rows], radius=radius, norm=norm, clip=self.clip, budget=min(self.queries, left // count),
                block=self.block, reach=self.reach, seed=self.seed,
            )  # fmt: skip
            inputs[rows], found[rows], used[rows] = search.run()
            left -= int(used[rows].sum())
            first += count
        return Found(inputs, found, used)


@dataclass(eq=False)
class ScoreSearch:
    """Descends the margin of the answered class over its strongest rival, by differences along given directions.

    Where the margin is nearly linear within the ball, one question along each of d orthonormal directions gives the
    whole gradient, and a part of them gives the gradient's projection on their span, which for natural images holds
    most of it when the directions are smooth. The estimate G is kept while the point moves, and corrected by each
    question (Kaczmarz 1937, or Broyden's rank-one update): with the displacement s and the change of the margin dm,
    `G += (dm - <G, s>) / <s, s> * s`. After each block of questions, the point on the sphere that G calls best is
    asked.

    Args:
        query: maps points `[k, ...]` float32 to an `Asked`.
        x: `[n, ...]` float32.
        radius: the ball's radius, in input units.
        norm: `"l2"` or `"linf"`.
        clip: the box that all points stay in, or None.
        budget: largest number of queries for each input.
        block: number of directions between two tries.
        reach: length of a question's displacement, as a share of the radius.
        seed: seed of the directions, where they are random.
    """

    query: Callable[[Array], Asked]
    x: Array
    radius: float
    norm: str
    clip: tuple[float, float] | None
    budget: int
    block: int
    reach: float
    seed: int

    def __post_init__(self) -> None:
        n, size = len(self.x), self.x[0].size
        self.used = np.zeros(n, np.int64)
        self.found = np.zeros(n, bool)
        self.best = self.x.copy()
        self.margin = np.full(n, np.inf)
        self.gradient = np.zeros((n, size))
        self.answer = np.zeros(n, np.int64)
        self.directions = smooth_directions(self.x.shape[1:], min(self.budget, size), self.seed)

    def run(self) -> Found:
        """Search until everything is found or the budgets are spent."""
        everyone = np.arange(len(self.x))
        scores, rejected = self._ask(everyone, self.x)
        self.answer = scores.argmax(axis=1)
        self.found = rejected.copy()
        self.margin = self._margins(everyone, scores)
        position = 0
        while True:
            rows = np.flatnonzero(~self.found & (self.used < self.budget))
            if not rows.size:
                return Found(self.best, self.found, self.used)
            left = int(self.budget - self.used[rows].max())
            count = min(self.block, len(self.directions), max(left - 1, 0))
            for step in range(count):
                self._question(rows, self.directions[(position + step) % len(self.directions)])
            position += count
            self._try(rows[~self.found[rows]])

    def _question(self, rows: Array, direction: Array) -> None:
        """Ask one step along a direction from the best points, and correct the gradients by the margins' changes."""
        rows = rows[~self.found[rows]]
        if not rows.size:
            return
        scale = 1.0 if self.norm == "l2" else np.sqrt(direction.size)
        step = (self.reach * self.radius * scale * direction).reshape(self.x.shape[1:])
        from_here = self.best[rows]
        points = into_box(from_here + step, self.clip)
        if self.clip is not None:
            # At the edge of the box, the opposite direction tells as much.
            stuck = np.abs(points - from_here).reshape(len(rows), -1).sum(1) < 0.5 * np.abs(step).sum()
            points[stuck] = into_box(from_here[stuck] - step, self.clip)
        scores, _ = self._ask(rows, points)
        shift = (points.astype(np.float64) - from_here).reshape(len(rows), -1)
        length = np.einsum("nd,nd->n", shift, shift)
        change = self._margins(rows, scores) - self.margin[rows]
        surprise = change - np.einsum("nd,nd->n", self.gradient[rows], shift)
        known = np.isfinite(surprise) & (length > 0)
        self.gradient[rows[known]] += (surprise[known] / length[known])[:, None] * shift[known]

    def _try(self, rows: Array) -> None:
        """Ask the points of the sphere that the gradients call best; keep rejected ones and those of smaller margin."""
        if not rows.size:
            return
        gradient = self.gradient[rows].reshape(-1, *self.x.shape[1:])
        if self.norm == "linf":
            step = -self.radius * np.sign(gradient)
        else:
            size = column(np.linalg.norm(self.gradient[rows], axis=1), gradient)
            step = -self.radius * gradient / np.where(size > 0, size, 1.0)
        x = self.x[rows]
        points = place_inside(x, into_box(x + step, self.clip), self.radius, self.norm, self.clip)
        scores, rejected = self._ask(rows, points)
        margin = self._margins(rows, scores)
        better = rejected | (margin < self.margin[rows])
        self.best[rows[better]], self.margin[rows[better]] = points[better], margin[better]
        self.found[rows[rejected]] = True

    def _ask(self, rows: Array, points: Array) -> Asked:
        self.used[rows] += 1
        scores, rejected = self.query(points)
        scores, rejected = np.asarray(scores, np.float64), np.asarray(rejected)
        if scores.ndim != 2 or len(scores) != len(points) or scores.shape[1] < 2 or rejected.shape != (len(points),):
            raise ValueError(
                f"`query` must return scores [{len(points)}, m] and rejected [{len(points)}]. Received: shapes "
                f"{list(scores.shape)} and {list(rejected.shape)}"
            )
        return Asked(scores, rejected.astype(bool))

    def _margins(self, rows: Array, scores: Array) -> Array:
        """Return the score of the answered class minus the largest other; infinite where a score is not a number."""
        at = np.arange(len(rows))
        own = scores[at, self.answer[rows]]
        others = scores.copy()
        others[at, self.answer[rows]] = -np.inf
        margin = own - others.max(axis=1)
        return np.where(np.isfinite(margin), margin, np.inf)


@functools.lru_cache(maxsize=8)
def smooth_directions(shape: tuple[int, ...], count: int, seed: int) -> Array:
    """Return orthonormal directions for inputs of a shape, `[count, d]`, those that change slowest first.

    For images `[h, w]` and `[h, w, c]`, they are products of cosines (the discrete cosine transform of type II) by
    ascending frequency, each in all channels, one after the other; for anything else, they are random.

    Args:
        shape: the shape of one input, with d entries.
        count: number of directions, at most d.
        seed: seed of the random ones.
    """
    size = int(np.prod(shape))
    count = min(count, size)
    if len(shape) not in (2, 3):
        return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, count)))[0].T
    from scipy.fft import idctn

    height, width, channels = (*shape, 1)[:3]
    down, across = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    order = np.argsort((down**2 + across**2).ravel(), kind="stable")
    directions = np.zeros((count, height, width, channels))
    for number in range(count):
        wave = np.zeros(height * width)
        wave[order[number // channels]] = 1.0
        directions[number, ..., number % channels] = idctn(wave.reshape(height, width), norm="ortho")
    return directions.reshape(count, size)
