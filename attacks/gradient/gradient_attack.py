"""Attacks by projected descent: batches, starts and restarts around the compiled loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.arguments import positive_number
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument, yes_or_no
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import BALLS
from defended.attacks.core.batches import SMALLEST_BATCH, constant_size, in_threads, uses_xla, workers
from defended.attacks.core.checks import Array
from defended.attacks.gradient.loop import Descent, compiled
from defended.attacks.gradient.rules import Rule


def step_size(default: str) -> Any:
    """Return the field of the first step's size, for which None stands for `default`."""
    meaning = f"length of the first step, in input units and in the attack's norm; None for {default}."
    return argument(None, meaning, positive_number)


class Run(NamedTuple):
    """One descent from one start; where there are several, the best point of each input counts."""

    labels: Array
    """`[n]`, what the objective takes as labels."""
    start: str
    """`"clean"`, `"inside"` (uniform in the ball) or `"sphere"` (uniform on it)."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GradientAttack(Attack):
    """Descends by a rule, with projections; see `loop` and `rules`.

    Inputs are attacked in batches of one size, so that nothing is compiled twice. Where an attack has a goal, a row
    that has reached it leaves the batch, and the next input, or the next run of one, takes its place. On CPUs, as many
    batches are under way as there are cores, since a compiled step occupies one.
    """

    steps: int = arguments.steps()
    restarts: int = arguments.restarts()
    early_stop: bool = argument(
        False, "leave an input as soon as its label has changed; the first such point then counts.", yes_or_no
    )
    clip: tuple[float, float] | None = arguments.clip()
    epsilon: float | None = arguments.epsilon()
    seed: int = arguments.seed()
    batch_size: int = arguments.batch_size()
    jit_compile: bool | None = arguments.jit_compile()

    @abstractmethod
    def _evaluation(self, task: Task) -> Callable[..., Any]:
        """Return the function that is descended and judged, as `Descent.evaluate`."""

    @abstractmethod
    def _runs(self, task: Task) -> list[Run]:
        """Return the descents to make on every input, in this order."""

    @abstractmethod
    def _rule(self, task: Task) -> tuple[Rule, Array]:
        """Return the rule to move by, and its control `[steps + 1, columns]`."""

    def _goal(self, task: Task) -> float:
        """Return the judged value at or below which an input is finished."""
        # What is judged falls below 0 where the attack succeeds; in the loop it is known up to roundings.
        return -1e-4 if self.early_stop else -np.inf

    def _keeps_best(self) -> bool:
        """Return whether the best point seen is returned, rather than the last one."""
        return True

    def _perturb(self, task: Task) -> Array:
        rule, control = self._rule(task)
        boxed, jit = self.clip is not None, uses_xla(self.jit_compile)
        descent = Descent(self._evaluation(task), rule, boxed, self._keeps_best(), jit)
        loop, runs = compiled(task.model, descent, task.x.shape[1:]), self._runs(task)
        n = len(task.x)
        parts = max(1, min(workers(), n // SMALLEST_BATCH))
        size = constant_size(-(-n // parts), self.batch_size)
        attacked = task.x.copy()

        def work(first: int) -> None:
            queue = _Queue(self, task, rule, control, runs, np.arange(first, n, parts), size)
            queue.run(loop, attacked)

        in_threads(work, range(parts), parts)
        return attacked

    def _starts(self, task: Task, rows: Array, number: int, start: str) -> Array:
        """Return initial perturbations, `[len(rows), ...]` float32; an input's does not depend on the other inputs."""
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


class _Queue:
    """Inputs that wait for a place in a batch of constant size, and the places' states."""

    def __init__(
        self, attack: GradientAttack, task: Task, rule: Rule, control: Array, runs: list[Run], rows: Array, size: int
    ):
        self.attack, self.task, self.rule, self.runs = attack, task, rule, runs
        # After its last step a row is judged once, and then waits without moving.
        self.control, self.goal = control, attack._goal(task)
        self.waiting = list(rows[::-1])
        self.best_value = dict.fromkeys(rows.tolist(), np.inf)
        shape = task.x.shape[1:]
        self.row = np.full(size, -1)
        self.run_number, self.step = np.zeros(size, int), np.zeros(size, int)
        self.labels = np.zeros(size, np.int32)
        self.x = np.repeat(task.x[rows[:1]], size, axis=0)
        zeros = np.zeros((size, *shape), np.float32)
        self.state: list[Array] = [zeros, zeros.copy(), np.zeros(size, np.float32)]
        self.state += [array.copy() for array in rule.start(zeros)]

    def run(self, loop: Any, attacked: Array) -> None:
        """Attack all inputs, and write what was found into `attacked`."""
        rounds = len(self.control)
        length = rounds if self.goal == -np.inf else _segment(rounds)
        clip = self.attack.clip or (0.0, 0.0)
        scalars = [tf.constant(value, tf.float32) for value in (self.task.radius, *clip)]
        self._enter(np.arange(len(self.row)))
        while (self.row >= 0).any():
            at = np.minimum(self.step[None, :] + np.arange(length)[:, None], rounds - 1)
            arguments = (self.x, self.labels, self.control[at], np.arange(length, dtype=np.int32))
            found = loop(*(tf.constant(value) for value in arguments), *scalars, *map(tf.constant, self.state))
            self.state = [np.array(part) for part in found]
            self.step += length
            busy = self.row >= 0
            reached = busy & (self.state[2] <= self.goal)
            done = np.flatnonzero(reached | (busy & (self.step >= rounds)))
            for place in done:
                row = int(self.row[place])
                if self.state[2][place] < self.best_value[row]:
                    self.best_value[row] = self.state[2][place]
                    attacked[row] = self.task.x[row] + self.state[1][place]
            over = reached[done] | (self.run_number[done] + 1 >= len(self.runs))
            # The next run of inputs whose last one has ended.
            again = done[~over]
            self.run_number[again] += 1
            self._start(again)
            self._enter(done[over])

    def _enter(self, places: Array) -> None:
        """Begin the first run of waiting inputs at these places, as long as there are any."""
        taken = places[: len(self.waiting)]
        self.row[places] = -1
        self.row[taken] = [self.waiting.pop() for _ in taken]
        self.x[taken] = self.task.x[self.row[taken]]
        self.run_number[taken] = 0
        self._start(taken)

    def _start(self, places: Array) -> None:
        self.step[places] = 0
        for number in np.unique(self.run_number[places]):
            some = places[self.run_number[places] == number]
            run = self.runs[number]
            delta = self.attack._starts(self.task, self.row[some], int(number), run.start)
            self.labels[some] = run.labels[self.row[some]]
            values = [delta, delta, np.full(len(some), np.finfo(np.float32).max), *self.rule.start(delta)]
            for array, value in zip(self.state, values, strict=True):
                array[some] = value


def _segment(rounds: int) -> int:
    """Return the steps between two checks for finished inputs: few, as one or two reject most of what can be rejected.

    A check costs a fraction of a step of the smallest nets, and nothing beside a step on dual bounds.
    """
    return min(range(min(3, rounds), min(6, rounds) + 1), key=lambda length: (-rounds % length, length))
