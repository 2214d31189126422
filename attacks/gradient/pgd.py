"""Projected gradient descent on the undefended network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from defended.attacks.core import checks
from defended.attacks.core.attack import Task
from defended.attacks.core.checks import Array
from defended.attacks.gradient.gradient_attack import GradientAttack, Run, two_largest
from defended.attacks.gradient.objectives import LOSSES, Differentiated, NetworkLoss
from defended.attacks.gradient.rules import AutoSteps, Rule, Steepest

# Of the radius, over all steps together: at 50 steps 0.025 of the radius each, foolbox's default.
_TRAVEL = 1.25

SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": np.ones_like,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
}
"""The size of a step, as a share of the first one's, from the share of the steps that are done."""


def known(name: str, value: Any, names: Any) -> str:
    """`value`, if it is among the names."""
    if value not in names:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, names))}. Received: {value!r}")
    return str(value)


class NetworkAttack(GradientAttack):
    """Descends a loss of `model.network`: what PGD and APGD share."""

    def __init__(
        self, *, norm: str | None, random_start: bool, loss: str, targeted: bool, early_stop: bool, **options: Any
    ):
        super().__init__(**options)
        self.norm = None if norm is None else checks.known_norm(norm)
        self.random_start = bool(random_start)
        self.loss = known("loss", loss, LOSSES)
        self.targeted = bool(targeted)
        self.early_stop = bool(early_stop)

    def _evaluation(self, task: Task) -> Callable[..., Any]:
        return Differentiated(NetworkLoss(self.loss, self.targeted))

    def _labels(self, task: Task) -> Array:
        if task.labels is not None:
            return task.labels
        return two_largest(task.model, task.x, self.batch_size)[int(self.targeted)]

    def _runs(self, task: Task) -> list[Run]:
        labels, first = self._labels(task), "inside" if self.random_start else "clean"
        return [Run(labels, "inside" if restart else first) for restart in range(self.restarts)]

    def _goal(self, task: Task) -> float:
        # A margin below 0 is another label; in the loop it is known up to rounding.
        return -1e-4 if self.early_stop else -np.inf


class PGD(NetworkAttack):
    """Projected gradient descent on `model.network` (Madry et al. 2018), against the undefended logits.

    Maximises the loss of the labels in the ball `‖δ‖ <= radius`, by steepest steps `v ← momentum v + d`, `δ ←
    project(δ + step_size v)`, with d the gradient divided by its norm (l2) or its sign (l∞). Returns, for each input,
    the point of smallest margin among all iterates of all restarts.

    Args:
        norm: `"l2"` or `"linf"`; None for the model's.
        steps: gradient steps of each restart.
        step_size: length of the first step, in input units and in the attack's norm; None for `1.25 * radius / steps`.
        schedule: how steps shrink: `"constant"`, `"linear"` or `"cosine"`, the latter two towards 0.
        random_start: start uniformly in the ball; otherwise the first restart starts at `x` itself.
        restarts: number of starts.
        loss: `"crossentropy"`, `"margin"` of the label over its strongest rival, or `"dlr"`, that margin in units of
            the logits' spread (Croce and Hein 2020).
        targeted: go towards the labels given, and not away from them.
        momentum: share of the last direction that is kept, in [0, 1).
        gradient_floor: for l2, gradients of norm below it are divided by it and not by their norm. 0 gives every step
            its full length; foolbox's 1e-12 shortens them where the network is so sure that the cross-entropy's
            gradient underflows.
        keep: `"best"`, the point of smallest margin, or `"last"`, the point where the steps ended, as other
            implementations have it.
        early_stop: leave an input as soon as its label has changed; it then counts the first such point.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the random starts.
        batch_size: inputs attacked at a time.
        jit_compile: compile steps with XLA; None decides by the device.

    In a call, `y` are the labels to leave, None for the network's own predictions; for a targeted attack the labels to
    reach, None for the network's second choice.
    """

    def __init__(
        self,
        *,
        norm: str | None = None,
        steps: int = 50,
        step_size: float | None = None,
        schedule: str = "constant",
        random_start: bool = True,
        restarts: int = 1,
        loss: str = "crossentropy",
        targeted: bool = False,
        momentum: float = 0.0,
        gradient_floor: float = 0.0,
        keep: str = "best",
        early_stop: bool = False,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
        jit_compile: bool | None = None,
    ):
        super().__init__(
            norm=norm,
            random_start=random_start,
            loss=loss,
            targeted=targeted,
            early_stop=early_stop,
            steps=steps,
            restarts=restarts,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile,
        )
        self.step_size = None if step_size is None else checks.positive("step_size", step_size)
        self.schedule = known("schedule", schedule, SCHEDULES)
        self.momentum = checks.share("momentum", momentum)
        self.gradient_floor = checks.not_negative("gradient_floor", gradient_floor)
        self.keep = known("keep", keep, ("best", "last"))

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        first = self.step_size or _TRAVEL * task.radius / self.steps
        sizes = first * SCHEDULES[self.schedule](np.arange(self.steps) / self.steps)
        return Steepest(task.norm, self.gradient_floor), Steepest.control(sizes, self.momentum)

    def _keeps_best(self) -> bool:
        return self.keep == "best"


class EpsilonPGD(PGD):
    """PGD on the network at eps itself, not at 2 eps: the comparison of Appendix B of Leino et al. 2022.

    An adversarial example of the *network* within eps of an accepted point cannot exist, but the search for it leads
    towards the decision boundary, and so out of what is certified. Weaker than `DegradationAttack` as a rule.

    Args: as for `PGD`.
    """


class APGD(NetworkAttack):
    """Auto-PGD, whose steps need no size: it halves them where they stop paying (Croce and Hein 2020, Algorithm 1).

    Maximises the loss of the labels in the ball as `PGD` does, from a first step of twice the radius. Returns, for each
    input, the point of smallest margin among all iterates of all restarts.

    Args:
        norm: `"l2"` or `"linf"`; None for the model's.
        steps: gradient steps of each restart.
        random_start: start uniformly in the ball; otherwise the first restart starts at `x` itself.
        restarts: number of starts.
        loss: `"dlr"`, `"crossentropy"` or `"margin"`, see `PGD`.
        targeted: go towards the labels given, and not away from them.
        early_stop: leave an input as soon as its label has changed; it then counts the first such point.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the random starts.
        batch_size: inputs attacked at a time.
        jit_compile: compile steps with XLA; None decides by the device.

    In a call, `y` is as for `PGD`.
    """

    def __init__(
        self,
        *,
        norm: str | None = None,
        steps: int = 100,
        random_start: bool = True,
        restarts: int = 1,
        loss: str = "dlr",
        targeted: bool = False,
        early_stop: bool = False,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
        jit_compile: bool | None = None,
    ):
        super().__init__(
            norm=norm,
            random_start=random_start,
            loss=loss,
            targeted=targeted,
            early_stop=early_stop,
            steps=steps,
            restarts=restarts,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile,
        )

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        return AutoSteps(task.norm), AutoSteps.control(self.steps, task.radius)
