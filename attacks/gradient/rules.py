"""How a descent moves: rules that lead from a gradient to the next perturbation, row by row.

A rule is a set of settings that can be hashed, since a loop is compiled for it. What changes from step to step
reaches it as `control`, `[batch, columns]`, so rows may be at different steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from defended.attacks.core.balls import BALLS, column
from defended.attacks.core.checks import Array

SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": np.ones_like,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
}
"""The size of a step, as a share of the first one's, by the share of the steps that are done."""


class Rule(Protocol):
    """What leads from a gradient to the next perturbation."""

    @property
    def norm(self) -> str:
        """The norm, `"l2"` or `"linf"`."""

    def start(self, delta: Array) -> list[Array]:
        """Return the rule's state at the initial perturbations `[batch, ...]`: arrays with a row for each of them."""

    def move(
        self, delta: Any, gradient: Any, value: Any, state: list[Any], control: Any, place: Callable[[Any], Any]
    ) -> tuple[Any, list[Any]]:
        """Return the next perturbations and state.

        Args:
            delta: `[batch, ...]`.
            gradient: the gradient at delta, finite.
            value: the descended value at delta, `[batch]`.
            state: as `start` made it.
            control: `[batch, columns]` for this step.
            place: the projection onto ball and box.
        """


@dataclass(frozen=True)
class Steepest:
    """`v <- momentum * v + d`, `delta <- place(delta - size * v)`; control: (size, momentum).

    d is the steepest direction of the norm or, with `raw`, the gradient itself.
    """

    norm: str
    gradient_floor: float = 0.0
    raw: bool = False

    def start(self, delta: Array) -> list[Array]:
        return [np.zeros_like(delta)]

    def move(
        self, delta: Any, gradient: Any, value: Any, state: list[Any], control: Any, place: Callable[[Any], Any]
    ) -> tuple[Any, list[Any]]:
        direction = gradient if self.raw else BALLS[self.norm].steepest(gradient, self.gradient_floor)
        size, momentum = (column(control[:, number], delta) for number in range(2))
        velocity = momentum * state[0] + direction
        return place(delta - size * velocity), [velocity]

    @staticmethod
    def control(first: float, steps: int, schedule: str = "cosine", momentum: float = 0.0) -> Array:
        """Return the control `[steps + 1, 2]` for a first step's size; after the last step the point is only judged."""
        sizes = first * SCHEDULES[schedule](np.arange(steps) / steps)
        return np.stack([np.append(sizes, 0.0), np.full(steps + 1, momentum)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class AutoSteps:
    """The steps of APGD, which choose their own size (Croce and Hein 2020, Algorithm 1).

    `z = place(delta - size * d)`, `delta <- place(delta + a (z - delta) + (1 - a) (delta - previous))` with a = 3/4. At
    checkpoints, which come closer together, the size is halved and the row goes back to its best point if fewer than
    3/4 of the steps since the last checkpoint went down, or if neither the size nor the best value has changed.
    Control: (1 while moving, a, 1 at a checkpoint, falls needed there, 2 radius).
    """

    norm: str

    def start(self, delta: Array) -> list[Array]:
        rows = np.zeros(len(delta), np.float32)
        infinite = rows + np.float32(3e38)
        # previous, best point, its gradient; best value, last value, best value at the checkpoint; falls; halvings;
        # whether the last checkpoint halved.
        return [delta, delta, np.zeros_like(delta), infinite, infinite, infinite, rows, rows, rows + 1]

    def move(
        self, delta: Any, gradient: Any, value: Any, state: list[Any], control: Any, place: Callable[[Any], Any]
    ) -> tuple[Any, list[Any]]:
        previous, best, best_gradient, best_value, last, checked, falls, halvings, halved = state
        falls = falls + tf.cast(value < last, tf.float32)
        better = value < best_value
        best, best_gradient = (_where(better, new, old) for new, old in ((delta, best), (gradient, best_gradient)))
        best_value = tf.minimum(value, best_value)

        at_checkpoint = control[:, 2] > 0
        stuck = (halved < 0.5) & (best_value >= checked)
        halve = at_checkpoint & ((falls < control[:, 3]) | stuck)
        halvings = halvings + tf.cast(halve, tf.float32)
        delta, gradient = (_where(halve, new, old) for new, old in ((best, delta), (best_gradient, gradient)))
        checked = tf.where(at_checkpoint, best_value, checked)
        halved = tf.where(at_checkpoint, tf.cast(halve, tf.float32), halved)
        falls = tf.where(at_checkpoint, tf.zeros_like(falls), falls)

        size = column(control[:, 4] * 0.5**halvings, delta)
        share = column(control[:, 1], delta)
        step = place(delta - size * BALLS[self.norm].steepest(gradient)) - delta
        moved = place(delta + share * step + (1 - share) * (delta - previous))
        moving = control[:, 0] > 0
        state = [
            _where(moving, delta, previous), best, best_gradient, best_value, value, checked, falls, halvings, halved
        ]  # fmt: skip
        return _where(moving, moved, delta), state

    @staticmethod
    def control(steps: int, radius: float) -> Array:
        """Return the control, `[steps + 1, 5]`.

        Checkpoints are at 0, 0.22, then at distances 0.03 shorter each, but at least 0.06.
        """
        table = np.zeros((steps + 1, 5), np.float32)
        table[:steps, 0], table[:, 1], table[:, 4] = 1, 0.75, 2 * radius
        table[0, 1] = 1
        share, distance, before = 0.22, 0.22, 0
        while (at := int(np.ceil(round(share * steps, 6)))) < steps:
            if at > before:
                table[at, 2], table[at, 3] = 1, 0.75 * (at - before)
                before = at
            distance = max(distance - 0.03, 0.06)
            share += distance
        return table


def _where(chosen: Any, one: Any, other: Any) -> Any:
    return tf.where(column(chosen, one), one, other)
