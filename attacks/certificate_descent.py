"""Descent on the certificate itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from defended.attacks import checks
from defended.attacks.attack import Task
from defended.attacks.checks import Array
from defended.attacks.gradient_attack import GradientAttack, Run
from defended.attacks.objectives import radius_of_class, smallest_radius


class CertificateDescent(GradientAttack):
    """Degradation by descending the certified radius: `minimise r(x + δ)  subject to  ‖δ‖ <= radius`.

    Whoever wants ⊥ needs no adversarial example: r(x') <= eps is enough. Steepest descent on the smallest entry of
    `competitor_radii(x')`, projected onto the ball, with steps from `step_size` down to 0 along a cosine: wide ones
    first to leave the neighbourhood of x, fine ones at the end. The first start is x itself, since the radius is
    differentiable there. Returns, for each input, the point of smallest radius among all iterates of all runs.

    Args:
        steps: gradient steps of each run.
        targets: of each start, the number of runs: the first descends the smallest radius, the k-th the radius of the
            class that is k-th nearest at x.
        restarts: number of starts; the further ones are random on the sphere of the radius.
        step_size: of the first step, in input units; None for the ball's diameter.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the random starts.
        batch_size: inputs attacked at a time.
        jit_compile: compile steps with XLA; None decides by the device.

    In a call, `y` plays no part: the certificate depends on the input alone. The norm is the model's.
    """

    def __init__(
        self,
        *,
        steps: int = 50,
        targets: int = 1,
        restarts: int = 1,
        step_size: float | None = None,
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
        jit_compile: bool | None = None,
    ):
        super().__init__(
            steps=steps,
            step_size=step_size,
            restarts=restarts,
            momentum=0.0,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile,
        )
        self.targets = checks.whole_number("targets", targets, 1)

    def _runs(self, task: Task) -> list[Run]:
        if self.targets >= task.model.num_classes:
            raise ValueError(
                f"`targets` must be less than the number of classes, {task.model.num_classes}: the predicted one is no "
                f"competitor. Received: {self.targets}"
            )
        nearest = _nearest_classes(task.model, task.x, self.targets, self.batch_size)
        return [
            Run(radius_of_class if rank else smallest_radius, nearest[:, rank], "sphere" if restart else "clean")
            for restart in range(self.restarts)
            for rank in range(self.targets)
        ]

    def _step_sizes(self, radius: float) -> Array:
        first = self.step_size or 2 * radius
        return first * (1 + np.cos(np.pi * np.arange(self.steps) / self.steps)) / 2


def _nearest_classes(model: Any, x: Array, count: int, batch_size: int) -> Array:
    """`[n, count]` classes in the order of their competitor radii at x."""
    if count == 1:
        return np.zeros((len(x), 1), np.int64)  # not asked for: the smallest radius needs no class
    parts = [
        np.argsort(model.competitor_radii(x[first : first + batch_size]).numpy(), axis=1, kind="stable")[:, :count]
        for first in range(0, len(x), batch_size)
    ]
    return np.concatenate(parts)
