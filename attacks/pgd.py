"""Projected gradient descent on the undefended network."""

from __future__ import annotations

import numpy as np

from defended.attacks import checks
from defended.attacks.attack import Task
from defended.attacks.checks import Array
from defended.attacks.gradient_attack import GradientAttack, Run, runner_up
from defended.attacks.objectives import LOSSES

# Of the radius, over all steps together: at 50 steps 0.025 of the radius each, foolbox's default.
_TRAVEL = 1.25


class PGD(GradientAttack):
    """Projected gradient descent on `model.network` (Madry et al. 2018), against the undefended logits.

    Maximises the loss of the labels in the ball `‖δ‖ <= radius`, by steepest steps `v ← momentum v + d`, `δ ←
    project(δ + step_size v)`, with d the gradient divided by its norm (l2) or its sign (l∞). Returns, for each input,
    the point of smallest margin among all iterates of all restarts.

    Args:
        norm: `"l2"` or `"linf"`; None for the model's.
        steps: gradient steps of each restart.
        step_size: length of a step, in input units and in the attack's norm; None for `1.25 * radius / steps`.
        random_start: start uniformly in the ball; otherwise the first restart starts at `x` itself.
        restarts: number of starts.
        loss: `"crossentropy"`, or `"margin"` of the label over its strongest rival.
        targeted: go towards the labels given, and not away from them.
        momentum: share of the last direction that is kept, in [0, 1).
        gradient_floor: for l2, gradients of norm below it are divided by it and not by their norm. 0 gives every step
            its full length; foolbox's 1e-12 shortens them where the network is so sure that the cross-entropy's
            gradient underflows.
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
        random_start: bool = True,
        restarts: int = 1,
        loss: str = "crossentropy",
        targeted: bool = False,
        momentum: float = 0.0,
        gradient_floor: float = 0.0,
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
            momentum=momentum,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile,
            gradient_floor=gradient_floor,
        )
        self.norm = None if norm is None else checks.known_norm(norm)
        self.random_start = bool(random_start)
        self.targeted = bool(targeted)
        if (loss, self.targeted) not in LOSSES:
            known = ", ".join(sorted({repr(name) for name, _ in LOSSES}))
            raise ValueError(f"`loss` must be one of {known}. Received: {loss!r}")
        self.loss = loss

    def _runs(self, task: Task) -> list[Run]:
        labels = task.labels
        if labels is None:
            labels = runner_up(task.model, task.x, self.batch_size)[int(self.targeted)]
        objective = LOSSES[self.loss, self.targeted]
        first = "inside" if self.random_start else "clean"
        return [Run(objective, labels, "inside" if restart else first) for restart in range(self.restarts)]

    def _step_sizes(self, radius: float) -> Array:
        return np.full(self.steps, self.step_size or _TRAVEL * radius / self.steps)


class EpsilonPGD(PGD):
    """PGD on the network at eps itself, not at 2 eps: the comparison of Appendix B of Leino et al. 2022.

    An adversarial example of the *network* within eps of an accepted point cannot exist, but the search for it leads
    towards the decision boundary, and so out of what is certified. Weaker than `DegradationAttack` as a rule.

    Args: as for `PGD`.
    """
