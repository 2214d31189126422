"""Attacks by projected descent: batches, starts and restarts around the compiled loop."""

from __future__ import annotations

import os
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.attacks import checks
from defended.attacks.attack import Attack, Task
from defended.attacks.checks import Array
from defended.attacks.descent import Descent, compiled, default_jit_compile
from defended.attacks.objectives import Objective
from defended.attacks.projections import BALLS

_SMALLEST_BATCH = 16


class Run(NamedTuple):
    """One descent from one start; of several, the best point of each input counts."""

    objective: Objective
    labels: Array
    """`[n]`, what the objective takes as labels."""
    start: str
    """`"clean"`, `"inside"` (uniform in the ball) or `"sphere"` (uniform on it)."""


class GradientAttack(Attack):
    """Projected steepest descent, see `descent`.

    Inputs go through in batches of one size, the last one padded, so that nothing is compiled twice; on CPUs as many
    batches at a time as there are cores, since a compiled step occupies one.
    """

    def __init__(
        self,
        *,
        steps: int,
        step_size: float | None,
        restarts: int,
        momentum: float,
        clip: tuple[float, float] | None,
        epsilon: float | None,
        seed: int,
        batch_size: int,
        jit_compile: bool | None,
        gradient_floor: float = 0.0,
    ):
        self.steps = checks.whole_number("steps", steps, 1)
        self.step_size = None if step_size is None else checks.positive("step_size", step_size)
        self.restarts = checks.whole_number("restarts", restarts, 1)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1). Received: {momentum!r}")
        self.momentum = float(momentum)
        self.clip = checks.box(clip)
        self.epsilon = None if epsilon is None else checks.positive("epsilon", epsilon)
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = checks.whole_number("batch_size", batch_size, 1)
        self.jit_compile = jit_compile
        if not 0 <= gradient_floor < np.inf:
            raise ValueError(f"`gradient_floor` must be finite and not negative. Received: {gradient_floor!r}")
        self.gradient_floor = float(gradient_floor)

    @abstractmethod
    def _runs(self, task: Task) -> list[Run]:
        """The descents to make on every input."""

    @abstractmethod
    def _step_sizes(self, radius: float) -> Array:
        """`[steps]`, in input units."""

    def _perturb(self, task: Task) -> Array:
        runs = self._runs(task)
        jit = default_jit_compile() if self.jit_compile is None else self.jit_compile

        def loop_for(objective: Objective) -> Any:
            descent = Descent(objective, task.norm, self.clip is not None, self.gradient_floor, jit)
            return compiled(task.model, descent, task.x.shape[1:])

        loops = [loop_for(run.objective) for run in runs]
        n = len(task.x)
        # Sizes between powers of two would each be compiled; the last batch repeats its last input.
        size = min(self.batch_size, max(_SMALLEST_BATCH, 1 << (n - 1).bit_length()))
        attacked = np.empty_like(task.x)
        constants = [
            tf.constant(value, tf.float32)
            for value in (self._step_sizes(task.radius), self.momentum, task.radius, *(self.clip or (0.0, 0.0)))
        ]

        def attack_batch(first: int) -> None:
            rows = np.minimum(np.arange(first, first + size), n - 1)
            x = tf.constant(task.x[rows])
            best, best_value = np.zeros_like(task.x[rows]), np.full(size, np.inf, np.float32)
            for number, (run, loop) in enumerate(zip(runs, loops, strict=True)):
                start = self._starts(task, rows, run.start, number)
                delta, value = loop(x, tf.constant(start), tf.constant(run.labels[rows], tf.int32), *constants)
                better = value.numpy() < best_value
                best[better], best_value[better] = delta.numpy()[better], value.numpy()[better]
            stop = min(first + size, n)
            attacked[first:stop] = task.x[first:stop] + best[: stop - first]

        pool = ThreadPoolExecutor(_workers())
        try:
            list(pool.map(attack_batch, range(0, n, size)))
        finally:
            pool.shutdown(cancel_futures=True)
        return attacked

    def _starts(self, task: Task, rows: Array, start: str, number: int) -> Array:
        """`[len(rows), ...]` float32 perturbations to start from, the same for an input in any company."""
        shape = task.x.shape[1:]
        if start == "clean":
            return np.zeros((len(rows), *shape), np.float32)
        ball = BALLS[task.norm]
        sample = ball.random_inside if start == "inside" else ball.random_on_sphere
        points = [sample(np.random.default_rng((self.seed, number, int(i))), shape) for i in task.index[rows]]
        delta = task.radius * np.stack(points)
        if self.clip is not None:
            delta = np.clip(task.x[rows] + delta, *self.clip) - task.x[rows]
        return delta.astype(np.float32)


def _workers() -> int:
    if tf.config.list_logical_devices("GPU"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runner_up(model: Any, x: Array, batch_size: int) -> tuple[Array, Array]:
    """The classes of the largest and the second largest logit, `[n]` int64 each."""
    order = [
        np.argsort(-model.network(x[first : first + batch_size], training=False).numpy(), axis=1, kind="stable")[:, :2]
        for first in range(0, len(x), batch_size)
    ]
    top = np.concatenate(order)
    return top[:, 0], top[:, 1]
