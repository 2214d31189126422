"""Descent on the certificate itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument, yes_or_no
from defended.attacks.core.attack import Task, model_radius
from defended.attacks.core.batches import by_batches
from defended.attacks.core.checks import Array
from defended.attacks.gradient.gradient_attack import GradientAttack, Run, step_size
from defended.attacks.gradient.objectives import ANY_CLASS, Differentiated, competitor_radius, prove_for_graphs
from defended.attacks.gradient.rules import Rule, Steepest
from defended.defended_model import DefendedModel


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CertificateDescent(GradientAttack):
    """Degrades by descending the certified radius: `minimise r(x + δ)  subject to  ‖δ‖ <= radius`.

    An attacker who wants ⊥ does not need an adversarial example: r(x') <= eps is enough. The attack is steepest descent
    on the smallest entry of `model.answering_radii(x')`, projected onto the ball, with steps from `step_size` down to
    0 along a cosine: wide ones first to leave the neighbourhood of x, fine ones at the end. The first start is x
    itself, since the radius is differentiable there. For a GloRo Net, the radii are the deployed ones; for a smoothed
    model, a differentiable estimate of them; for a polytope model, those of the dual bounds.

    In a call, `y` is ignored: the certificate depends on the input alone. The norm is the model's.
    """

    targets: int = arguments.targets(
        meaning="number of runs from each start: the first descends the smallest radius, the k-th the radius of the "
        "class that is k-th nearest at x."
    )
    restarts: int = arguments.restarts(
        meaning="number of starts; all but the first are random points on the sphere of the radius."
    )
    step_size: float | None = step_size("the ball's diameter")
    early_stop: bool = argument(
        False,
        "leave an input as soon as its radius is below `model.epsilon`, that is, once it is rejected, and return that "
        "point. Otherwise, and where radii are estimates, so that only the deployed check can tell, all runs go to "
        "their end, and the point of smallest radius among all iterates is returned.",
        yes_or_no,
    )

    def _evaluation(self, task: Task) -> Callable[..., Any]:
        prove_for_graphs(task.model)
        return Differentiated(competitor_radius)

    def _runs(self, task: Task) -> list[Run]:
        if self.targets >= task.model.num_classes:
            raise ValueError(
                f"`targets` must be less than the number of classes, {task.model.num_classes}: the predicted one "
                f"does not compete. Received: {self.targets}"
            )
        nearest = _nearest_classes(task.model, task.x, self.targets, self.batch_size)
        return [
            Run(nearest[:, rank], "sphere" if restart else "clean")
            for restart in range(self.restarts)
            for rank in range(self.targets)
        ]

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        return Steepest(task.norm), Steepest.control(self.step_size or 2 * task.radius, self.steps)

    def _goal(self, task: Task) -> float:
        if not self.early_stop or getattr(task.model, "sampling", None) is not None:
            return -np.inf
        # In another graph, and after the point was rounded, the radius may be larger by some roundings.
        return model_radius(task.model) * (1 - 1e-4)


def _nearest_classes(model: DefendedModel, x: Array, count: int, batch_size: int) -> Array:
    """Return `ANY_CLASS`, then the second, third, ... class by their competitor radii at x, `[n, count]`."""
    if count == 1:
        return np.full((len(x), 1), ANY_CLASS)
    nearest = np.argsort(by_batches(model.answering_radii, x, batch_size), axis=1, kind="stable")[:, :count]
    nearest[:, 0] = ANY_CLASS
    return nearest
