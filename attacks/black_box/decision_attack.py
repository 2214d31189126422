"""The decision-based attack: what an outsider who sees only labels and rejections can do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended.arguments import one_of, positive_number, whole_number
from defended.attacks.black_box.boundary_search import Boundary, BoundarySearch
from defended.attacks.core import arguments, checks
from defended.attacks.core.arguments import argument
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import BALLS, place_inside
from defended.attacks.core.checks import Array


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DecisionAttack(Attack):
    """Finds a rejected point near x from labels and rejections alone, within a budget of queries.

    The defended model answers j at x, and the attack asks where it no longer does. Noise of growing size, or given
    points, lead to some point with another verdict; bisection towards x leads back to the edge of what is answered j.
    There, as in HopSkipJump (Chen, Jordan, Wainwright 2020), verdicts at random neighbours estimate the direction that
    leads out, a step along it and another bisection give a nearer edge, and so on, until the distance is at most the
    radius or the budget is spent.

    Just outside of what is answered j lies ⊥ and no other class: where a certificate is sound, no point that is
    answered j has a point with another answer within eps. So every point found within eps of x is a degradation, judged
    by the model itself.

    In a call, `y` is ignored: the verdict at x is the first query. The result is the nearest point found; if that lies
    outside the ball, it is brought onto the sphere on the way to x, where the model may still answer j. `run` returns
    the point itself and the number of queries, and takes any function in place of a model.
    """

    norm: str | None = arguments.norm()
    queries: int = arguments.queries()
    samples: int = argument(
        50,
        "number of verdicts asked for the first estimate of a direction; the t-th takes √t times as many.",
        whole_number,
        least=2,
    )
    starts: ArrayLike | None = argument(
        None,
        "points to begin from, `[k, *input shape]`, such as inputs of other classes; an input tries them in turn, from "
        "the one of its own number on, before noise. None for noise alone. The attribute is their shape and SHA-256.",
    )
    clip: tuple[float, float] | None = arguments.clip()
    epsilon: float | None = arguments.epsilon()
    seed: int = arguments.seed()
    batch_size: int = arguments.batch_size(64)
    _starts: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.starts is not None:
            starts = np.ascontiguousarray(self.starts, np.float32)
            self._derive(_starts=starts, starts=_checked(starts, self.clip))

    def _perturb(self, task: Task) -> Array:
        found = self.run(task.model.verdicts, task.x, radius=task.radius, norm=task.norm, index=task.index)
        return place_inside(task.x, found.inputs, task.radius, task.norm, self.clip)

    def run(
        self, query: Callable[[Array], Any], x: ArrayLike, *, radius: float, norm: str, index: ArrayLike | None = None
    ) -> Boundary:
        """Search around each input, asking a function that judges points: `model.verdicts`, or a served model.

        Args:
            query: takes points `[k, *input shape]` float32, and returns labels `[k]`, whole numbers with -1 for a
                rejection, or an object whose `label` they are, such as `Verdicts`. Each point that it is given is one
                query of one input.
            x: `[n, *input shape]`, finite, inside `clip`.
            radius: the distance at which an input is finished, in input units.
            norm: `"l2"` or `"linf"`.
            index: `[n]` whole numbers that the random numbers depend on; None stands for 0, 1, ...

        Raises:
            ValueError: when `query` returns something else, or `starts` do not have the inputs' shape.
        """
        x = checks.in_float32(x)
        if self._starts is not None and self._starts.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"`starts` must have shape [k, {', '.join(map(str, x.shape[1:]))}], as the inputs. Received: "
                f"shape {self._starts.shape}"
            )
        radius, norm = positive_number("radius", radius), one_of("norm", norm, BALLS)
        numbers = checks.row_numbers(index, len(x))
        parts = []
        for first in range(0, len(x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            search = BoundarySearch(
                query, x[rows], radius=radius, norm=norm, clip=self.clip, budget=self.queries, samples=self.samples,
                streams=[np.random.default_rng((self.seed, int(i))) for i in numbers[rows]],
            )  # fmt: skip
            parts.append(search.run(self._in_turn(numbers[rows])))
        return Boundary(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _in_turn(self, numbers: Array) -> list[Array]:
        """Return all given starts, each input's own first, `[n, *input shape]` each."""
        starts: Any = [] if self._starts is None else self._starts
        return [starts[(numbers + attempt) % len(starts)] for attempt in range(len(starts))]


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
