"""Descent on the certificate that also keeps a detector of invalid inputs quiet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from defended.arguments import one_of
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument, meant, yes_or_no
from defended.attacks.core.attack import Task
from defended.attacks.core.batches import labels_of
from defended.attacks.core.checks import Array
from defended.attacks.gradient.gradient_attack import GradientAttack, Run, step_size
from defended.attacks.gradient.objectives import ANY_CLASS, Differentiated, prove_for_graphs
from defended.attacks.gradient.rules import Rule, Steepest
from defended.defended_model import DefendedModel


def _function_of_inputs(name: str, value: Any) -> Callable[[Any], Any]:
    if not callable(value):
        raise ValueError(
            f"`{name}` must be a function of inputs, positive where it is set off, such as "
            f"`MahalanobisScore(...).excess`. Received: {name}={value!r}"
        )
    return value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvasiveDescent(GradientAttack):
    """Finds rejected points taken for valid: `minimise r(x + δ)  subject to  detector(x + δ) <= 0, ‖δ‖ <= radius`.

    The attack is for a defence that also scores how far inputs lie from valid ones, such as `MembershipGuard` with a
    `MahalanobisScore`: the attacker who knows the score descends through it too, by the switching subgradient method
    (Polyak 1967). A step goes down the detector where it would be set off, and elsewhere down the certified radius;
    each is steepest descent in the model's norm, projected onto the ball, with steps along a cosine as in
    `CertificateDescent`. The iterate with the smallest `max(r / eps - 1, detector)` is returned.

    With `goal="wrong answer"` the *signed* radius is descended, r while the label is predicted and -r beyond the
    boundary, until the model answers another class: -r < -eps. A sound certificate makes that impossible within eps of
    an input that is answered rightly; it remains possible for inputs that are not.

    In a call, for a wrong answer, `y` holds the labels to leave, None for the network's own predictions; for a
    rejection it is ignored. The norm is the model's.

    Raises (in a call):
        ValueError: when there is no detector, neither given nor the model's.
    """

    detector: Callable[[Any], Any] | None = field(
        default=None,
        kw_only=False,
        metadata=meant(
            "a differentiable TensorFlow function from inputs `[batch, *input shape]` to `[batch]`: positive where it "
            "is set off, in any unit of the order of 1. None for the score of the model's own oracle, "
            "`model.oracle.excess`.",
            _function_of_inputs,
        ),
    )
    goal: str = argument("rejection", '`"rejection"` or `"wrong answer"`.', one_of, known=("rejection", "wrong answer"))
    restarts: int = arguments.restarts(
        meaning="number of starts: x itself, then random points on the sphere of the radius."
    )
    step_size: float | None = step_size("the ball's diameter")
    early_stop: bool = argument(
        True,
        "leave an input as soon as both are achieved. A point that only just achieves them is the least conspicuous; "
        "otherwise the search goes on to its end.",
        yes_or_no,
    )

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
        wrong = self.goal == "wrong answer"
        labels = labels_of(task, self.batch_size) if wrong else np.full(len(task.x), ANY_CLASS)
        return [Run(labels, "sphere" if restart else "clean") for restart in range(self.restarts)]

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        return Steepest(task.norm), Steepest.control(self.step_size or 2 * task.radius, self.steps)


@dataclass(frozen=True)
class Evasion:
    """The objective of `EvasiveDescent`: the detector where it is set off, elsewhere the radius."""

    detector: Callable[[Any], Any]
    wrong: bool

    @property
    def __name__(self) -> str:
        return "a certified radius that keeps a detector quiet"

    def __call__(self, model: DefendedModel, x: Any, labels: Any) -> tuple[Any, Any]:
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
