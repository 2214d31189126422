"""A score-based black-box attack on availability: what an outsider can do who sees scores and rejections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from defended.attacks.black_box.score_search import Asked, Found, ScoreSearch
from defended.attacks.core import checks
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.checks import Array


class ScoreDescent(Attack):
    """Rejected points within the radius, found from scores and rejections alone, within a budget of queries.

    A model rejects where its margin is too small for its certificate. So the margin of the answered class over its
    strongest rival, which the scores tell, is descended inside the ball, its gradient estimated by differences along
    smooth directions (`ScoreSearch`), until the model rejects. No gradients, no radii, no score of ⊥: it needs no more
    than the default answer of a deployed model. Every point that counts was asked for, as it is returned.

    Args:
        norm: `"l2"` or `"linf"`; None for the model's.
        queries: points asked for each input, at most.
        block: differences between two tries.
        reach: length of a difference, as a share of the radius. Scores that are noisy need long ones.
        clip: box `(low, high)` for perturbed inputs and queries, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of directions, where they are random: for inputs that are no images.
        batch_size: inputs attacked at a time.

    In a call, `y` plays no part. `run` takes any function in place of a model, and a budget for all inputs together.
    """

    def __init__(
        self,
        *,
        norm: str | None = None,
        queries: int = 500,
        block: int = 16,
        reach: float = 0.5,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
    ):
        self.norm = None if norm is None else checks.known_norm(norm)
        self.queries = checks.whole_number("queries", queries, 1)
        self.block = checks.whole_number("block", block, 1)
        self.reach = checks.positive("reach", reach)
        self.clip = checks.box(clip)
        self.epsilon = None if epsilon is None else checks.positive("epsilon", epsilon)
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = checks.whole_number("batch_size", batch_size, 1)

    def _perturb(self, task: Task) -> Array:
        m = task.model.num_classes

        def query(points: Array) -> Asked:
            scores = np.concatenate(
                [np.asarray(task.model(points[i : i + 256], training=False)) for i in range(0, len(points), 256)]
            )
            return Asked(scores[:, :m], scores.argmax(axis=1) == m)

        return self.run(query, task.x, radius=task.radius, norm=task.norm).inputs

    def run(
        self, query: Callable[[Array], Any], x: Any, *, radius: float, norm: str, budget: int | None = None
    ) -> Found:
        """Search around each input in turn, asking a function that scores and judges points: a served model.

        Args:
            query: takes points `[k, *input shape]` float32, and returns `(scores [k, m], rejected [k] bool)`. Each
                point that it is given is one query.
            x: `[n, *input shape]`, finite, inside `clip`; the ones to spend the budget on first come first.
            radius: of the ball, in input units.
            norm: `"l2"` or `"linf"`.
            budget: queries for all inputs together, at most; None for `queries` times n. Inputs that it does not reach
                are returned as they are, not found.

        Raises:
            ValueError: when `query` returns something else, or an argument does not fit.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if not (len(x) and np.isfinite(x).all()):
            raise ValueError(f"`x` must hold at least one input, all of them finite. Received: shape {x.shape}")
        radius, norm = checks.positive("radius", radius), checks.known_norm(norm)
        left = self.queries * len(x) if budget is None else checks.whole_number("budget", budget, 0)
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
