"""A decision-based attack: what an outsider can do who sees labels and rejections only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from defended.attacks.black_box.boundary_search import Boundary, BoundarySearch
from defended.attacks.core import checks
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import place_inside
from defended.attacks.core.checks import Array


class DecisionAttack(Attack):
    """A rejected point near x, found from labels and rejections alone, within a budget of queries.

    The defended model answers j at x, and one asks where it no longer does. Noise of growing size, or given points,
    leads to some point of another verdict; bisection towards x leads back to the edge of what is answered j. There, as
    in HopSkipJump (Chen, Jordan, Wainwright 2020), verdicts at random neighbours estimate the direction that leads out,
    a step along it and another bisection give a nearer edge, and so on: until the distance is at most the radius, or
    the budget is spent.

    Just outside of what is answered j lies ⊥ and no other class: where a certificate is sound, no point answered j has
    one answered otherwise within eps. So every point found within eps of x is a degradation, judged by the model
    itself.

    Args:
        norm: `"l2"` or `"linf"`; None for the model's.
        queries: verdicts asked for each input, at most.
        samples: verdicts asked for the first estimate of a direction; the t-th takes √t times as many.
        starts: `[k, *input shape]` points to begin from, such as inputs of other classes; an input tries them in turn,
            from the one of its own number on, before noise. None for noise alone.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of all random numbers; those of an input depend on it and on its index.
        batch_size: inputs attacked at a time.

    Attributes:
        starts: the shape and the SHA-256 of the points given, or None.

    In a call, `y` plays no part: the verdict at x is the first query. The result is the nearest point found; from
    outside the ball it is brought onto the sphere on the way to x, where the model may still answer j. `run` gives the
    point itself and the number of queries, and takes any function in place of a model.
    """

    def __init__(
        self,
        *,
        norm: str | None = None,
        queries: int = 2000,
        samples: int = 50,
        starts: Any = None,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ):
        self.norm = None if norm is None else checks.known_norm(norm)
        self.queries = checks.whole_number("queries", queries, 1)
        self.samples = checks.whole_number("samples", samples, 2)
        self.clip = checks.box(clip)
        self._starts = None if starts is None else np.ascontiguousarray(starts, np.float32)
        self.starts = None if self._starts is None else _checked(self._starts, self.clip)
        self.epsilon = None if epsilon is None else checks.positive("epsilon", epsilon)
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = checks.whole_number("batch_size", batch_size, 1)

    def _perturb(self, task: Task) -> Array:
        found = self.run(task.model.verdicts, task.x, radius=task.radius, norm=task.norm, index=task.index)
        return place_inside(task.x, found.inputs, task.radius, task.norm, self.clip)

    def run(self, query: Callable[[Array], Any], x: Any, *, radius: float, norm: str, index: Any = None) -> Boundary:
        """Search around each input, asking a function that judges points: `model.verdicts`, or a served model.

        Args:
            query: takes points `[k, *input shape]` float32, and returns labels `[k]`, whole numbers with -1 for a
                rejection, or an object whose `label` they are, such as `Verdicts`. Each point that it is given is one
                query of one input.
            x: `[n, *input shape]`, finite, inside `clip`.
            radius: distance at which an input is finished, in input units.
            norm: `"l2"` or `"linf"`.
            index: `[n]` whole numbers that the random numbers depend on; None stands for 0, 1, ...

        Raises:
            ValueError: when `query` returns something else, or `starts` are not of the inputs' shape.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if not (len(x) and np.isfinite(x).all()):
            raise ValueError(f"`x` must hold at least one input, all of them finite. Received: shape {x.shape}")
        if self._starts is not None and self._starts.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"`starts` must have shape [k, {', '.join(map(str, x.shape[1:]))}], as the inputs. Received: "
                f"shape {self._starts.shape}"
            )
        radius, norm = checks.positive("radius", radius), checks.known_norm(norm)
        numbers = np.arange(len(x)) if index is None else np.asarray(index)
        parts = []
        for first in range(0, len(x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            search = BoundarySearch(
                query, x[rows], radius=radius, norm=norm, clip=self.clip, budget=self.queries, samples=self.samples,
                streams=[np.random.default_rng((self.seed, int(i))) for i in numbers[rows]],
            )  # fmt: skip
            parts.append(search.run([] if self._starts is None else self._in_turn(numbers[rows])))
        return Boundary(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _in_turn(self, numbers: Array) -> list[Array]:
        """All given starts, each input's own first, `[n, *input shape]` each."""
        assert self._starts is not None  # noqa: S101  (for the type checker)
        count = len(self._starts)
        return [self._starts[(numbers + attempt) % count] for attempt in range(count)]


def _checked(starts: Array, clip: tuple[float, float] | None) -> str:
    if not (starts.ndim > 1 and starts.size and np.isfinite(starts).all()):
        raise ValueError(
            f"`starts` must hold at least one point, [k, *input shape], all of them finite; None stands for noise "
            f"alone. Received: shape {starts.shape}"
        )
    if clip is not None and not (starts.min() >= np.float32(clip[0]) and starts.max() <= np.float32(clip[1])):
        raise ValueError(
            f"`starts` must lie in the box, as all points of the search. Received: values from {starts.min()} to "
            f"{starts.max()}, clip={clip}"
        )
    return f"{'x'.join(map(str, starts.shape))} {hashlib.sha256(starts.tobytes()).hexdigest()}"
