"""Projected gradient descent on the undefended network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from defended.arguments import number_in, number_not_negative, one_of
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument, shared, yes_or_no
from defended.attacks.core.attack import Task
from defended.attacks.core.batches import labels_of
from defended.attacks.core.checks import Array
from defended.attacks.gradient.gradient_attack import GradientAttack, Run, step_size
from defended.attacks.gradient.objectives import LOSSES, Differentiated, NetworkLoss
from defended.attacks.gradient.rules import SCHEDULES, AutoSteps, Rule, Steepest

random_start = shared(
    True, "start at a uniformly random point of the ball; otherwise the first start is `x` itself.", yes_or_no
)
loss = shared(
    "crossentropy",
    '`"crossentropy"`, `"margin"` of the label over its strongest rival, or `"dlr"`, that margin in units of the '
    "logits' spread (Croce and Hein 2020).",
    one_of,
    known=LOSSES,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkAttack(GradientAttack):
    """Descends a loss of `model.network`: what PGD and APGD share."""

    norm: str | None = arguments.norm()
    random_start: bool = random_start()
    loss: str = loss()
    targeted: bool = arguments.targeted()

    def _evaluation(self, task: Task) -> Callable[..., Any]:
        return Differentiated(NetworkLoss(self.loss, self.targeted))

    def _runs(self, task: Task) -> list[Run]:
        labels = labels_of(task, self.batch_size, self.targeted)
        return [Run(labels, "inside" if self.random_start or number else "clean") for number in range(self.restarts)]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SteppedAttack(NetworkAttack):
    """Descends by steps whose sizes are chosen beforehand: what PGD and its variant under noise share."""

    travel: ClassVar[float]
    """Total length of the steps at their first size, as a share of the radius, where no step size is given."""

    step_size: float | None = step_size("`1.25 * radius / steps`")
    schedule: str = argument(
        "constant",
        'how steps shrink: `"constant"`, `"linear"` or `"cosine"`, the latter two towards 0.',
        one_of,
        known=SCHEDULES,
    )
    momentum: float = argument(
        0.0, "share of the last direction that is kept, in [0, 1).", number_in, interval="[0, 1)"
    )
    keep: str = argument(
        "best",
        '`"best"`, the point of smallest margin, or `"last"`, the point where the steps ended, as in other '
        "implementations.",
        one_of,
        known=("best", "last"),
    )

    @abstractmethod
    def _steepest(self, norm: str) -> Steepest:
        """Return the rule of a step."""

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        first = self.step_size or self.travel * task.radius / self.steps
        return self._steepest(task.norm), Steepest.control(first, self.steps, self.schedule, self.momentum)

    def _keeps_best(self) -> bool:
        return self.keep == "best"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PGD(SteppedAttack):
    """Descends a loss of the undefended logits by projected gradients (Madry et al. 2018).

    Maximises the loss of the labels in the ball `‖δ‖ <= radius`, by steepest steps `v ← momentum v + d`, `δ ←
    project(δ + step_size v)`, with d the gradient divided by its norm (l2) or its sign (l∞). Returns, for each input,
    the point of smallest margin among all iterates of all restarts.

    In a call, `y` holds the labels to leave, None for the network's own predictions; for a targeted attack, the labels
    to reach, None for the network's second choice.
    """

    # At 50 steps 0.025 of the radius each, foolbox's default.
    travel: ClassVar[float] = 1.25

    gradient_floor: float = argument(
        0.0,
        "for l2, gradients of norm below it are divided by it instead of by their norm. 0 gives every step its full "
        "length; foolbox's 1e-12 shortens them where the network is so sure that the cross-entropy's gradient "
        "underflows.",
        number_not_negative,
    )

    def _steepest(self, norm: str) -> Steepest:
        return Steepest(norm, self.gradient_floor)


class EpsilonPGD(PGD):
    """PGD on the network at eps itself, not at 2 eps: the comparison of Appendix B of Leino et al. 2022.

    An adversarial example of the *network* within eps of an accepted point cannot exist, but the search for it leads
    towards the decision boundary, and so out of what is certified. As a rule it is weaker than `DegradationAttack`.
    """


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class APGD(NetworkAttack):
    """Descends as PGD does, and halves its steps where they stop paying: Auto-PGD (Croce and Hein 2020, Algorithm 1).

    Maximises the loss of the labels in the ball as `PGD` does, from a first step of twice the radius. Returns, for each
    input, the point of smallest margin among all iterates of all restarts.

    In a call, `y` is as for `PGD`.
    """

    steps: int = arguments.steps(100)
    loss: str = loss("dlr")

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        return AutoSteps(task.norm), AutoSteps.control(self.steps, task.radius)
