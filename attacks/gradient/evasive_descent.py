"""Descent on the certificate that also keeps a detector of invalid inputs quiet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from defended.attacks.core import checks
from defended.attacks.core.attack import Task
from defended.attacks.core.checks import Array
from defended.attacks.gradient.certificate_descent import along_cosine
from defended.attacks.gradient.gradient_attack import GradientAttack, Run, two_largest
from defended.attacks.gradient.objectives import ANY_CLASS, Differentiated, prove_for_graphs
from defended.attacks.gradient.pgd import known
from defended.attacks.gradient.rules import Rule

GOALS = ("rejection", "wrong answer")


class EvasiveDescent(GradientAttack):
    """`minimise r(x + δ)  subject to  detector(x + δ) <= 0, ‖δ‖ <= radius`: rejected, and yet taken for valid.

    For a defence that also scores how far inputs lie from valid ones, such as `MembershipGuard` with a
    `MahalanobisScore`: the attacker who knows it descends through it too, by the switching subgradient method (Polyak
    1967). A step goes down the detector where it would be set off, and elsewhere down the certified radius; each is
    steepest descent in the model's norm, projected onto the ball, with steps along a cosine as in `CertificateDescent`.
    Of all iterates the point with the smallest `max(r / eps - 1, detector)` is returned.

    With `goal="wrong answer"` the *signed* radius is descended, r while the label is predicted and -r beyond the
    boundary, until the model answers another class: -r < -eps. What is sound makes that impossible within eps of an
    input that is answered rightly; it remains for inputs that are not.

    Args:
        detector: a TensorFlow function of inputs `[batch, *input shape]`, differentiable, to `[batch]`: positive where
            it is set off, in any unit of the order of 1. None for the score of the model's own oracle,
            `model.oracle.excess`.
        goal: `"rejection"` or `"wrong answer"`.
        steps: gradient steps of each run.
        restarts: number of starts: x itself, then random points on the sphere of the radius.
        step_size: of the first step, in input units; None for the ball's diameter.
        early_stop: leave an input as soon as both are reached. A point that has only just been reached is the least
            conspicuous; otherwise the search goes on to its end.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the random starts.
        batch_size: inputs attacked at a time.
        jit_compile: compile steps with XLA; None decides by the device.

    In a call, `y` are the labels to leave, for a wrong answer, None for the network's own predictions; it plays no part
    for a rejection. The norm is the model's.

    Raises (in a call):
        ValueError: when there is no detector, neither given nor the model's.
    """

    def __init__(
        self,
        detector: Callable[[Any], Any] | None = None,
        *,
        goal: str = "rejection",
        steps: int = 50,
        restarts: int = 1,
        step_size: float | None = None,
        early_stop: bool = True,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
        jit_compile: bool | None = None,
    ):
        super().__init__(
            steps=steps,
            restarts=restarts,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile,
        )
        if detector is not None and not callable(detector):
            raise ValueError(
                f"`detector` must be a function of inputs, positive where it is set off, such as "
                f"`MahalanobisScore(...).excess`. Received: {detector!r}"
            )
        self.detector = detector
        self.goal = known("goal", goal, GOALS)
        self.step_size = None if step_size is None else checks.positive("step_size", step_size)
        self.early_stop = bool(early_stop)

    def _evaluation(self, task: Task) -> Callable[..., Any]:
        prove_for_graphs(task.model)
        detector = self.detector or getattr(getattr(task.model, "oracle", None), "excess", None)
        if detector is None:
            raise ValueError(
                f"{type(task.model).__name__} has no score of its own to keep quiet. Pass `detector`, a function of "
                f"inputs that is positive where it is set off, or take CertificateDescent."
            )
        return Differentiated(Evasion(detector, self.goal == "wrong answer"))

    def _runs(self, task: Task) -> list[Run]:
        labels = np.full(len(task.x), ANY_CLASS)
        if self.goal == "wrong answer":
            labels = two_largest(task.model, task.x, self.batch_size)[0] if task.labels is None else task.labels
        return [Run(labels, "sphere" if restart else "clean") for restart in range(self.restarts)]

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        return along_cosine(task.norm, self.step_size or 2 * task.radius, self.steps)

    def _goal(self, task: Task) -> float:
        # In another graph, and after the point was rounded, both may be larger by some roundings.
        return -1e-4 if self.early_stop else -np.inf


@dataclass(frozen=True)
class Evasion:
    """What `EvasiveDescent` descends, an `Objective`: the detector where it is set off, elsewhere the radius."""

    detector: Callable[[Any], Any]
    wrong: bool

    @property
    def __name__(self) -> str:
        return "a certified radius that keeps a detector quiet"

    def __call__(self, model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        radii = model.answering_radii(x)
        radius, alarm = tf.reduce_min(radii, axis=-1), self.detector(x)
        epsilon = tf.convert_to_tensor(model.epsilon)
        if self.wrong:
            # The predicted class is the one that nothing competes with.
            right = tf.argmax(radii, axis=-1, output_type=labels.dtype) == labels
            certified = tf.maximum(radius, 0.0)
            radius = tf.where(right, radius, -radius)
            short = tf.where(right, certified, -certified) / epsilon + 1.0
        else:
            short = radius / epsilon - 1.0
        return tf.where(alarm > 0, alarm, radius), tf.maximum(short, alarm)
