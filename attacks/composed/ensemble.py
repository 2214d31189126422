"""Several attacks run one after the other, each on what the earlier ones have left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from defended.attacks.core import arguments
from defended.attacks.core.arguments import meant
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.checks import Array
from defended.attacks.gradient.certificate_descent import CertificateDescent


def _at_one_radius(name: str, value: Any) -> tuple[Attack, ...]:
    attacks = tuple(value)
    if not attacks:
        raise ValueError(f"`{name}` must hold at least one attack. Received: none")
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise TypeError(f"`{name}` must hold attacks, such as CertificateDescent(). Received: {attack!r}")
        if attack.epsilon is not None:
            raise ValueError(
                f"All of `{name}` run at one radius, so their own epsilon must be None. Received: {attack!r}. Set "
                f"`epsilon` of the Ensemble instead."
            )
    return attacks


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ensemble(Attack):
    """Runs attacks in the order given; an input that `model.verdicts` rejects after one is spared the others.

    Put cheap attacks first: most inputs that can be degraded are degraded by the first one, and the expensive ones run
    on the few that are left. Returns, for each input, the first perturbed input that is rejected, or the last attack's.

    In a call, `y` is handed to each attack, except targeted ones, which choose their own labels.
    """

    attacks: Iterable[Attack] = field(
        default=cast(Any, None),
        kw_only=False,
        metadata=meant(
            "`Attack`s whose own epsilon is None, with the same `clip` in all of them; None for descents on the "
            "certificate of growing effort: 50 steps, then 100 towards 3 classes, then the same with 2 random starts "
            "more.",
            _at_one_radius,
        ),
    )
    epsilon: float | None = arguments.epsilon()
    norm: str | None = field(init=False, default=None)
    clip: tuple[float, float] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        attacks = self.attacks
        if attacks is None:
            attacks = (
                CertificateDescent(early_stop=True),
                CertificateDescent(steps=100, targets=3, early_stop=True),
                CertificateDescent(steps=100, targets=3, restarts=3, early_stop=True),
            )
        norms = {attack.norm for attack in attacks if attack.norm is not None}
        clips = {attack.clip for attack in attacks}
        if len(norms) > 1 or len(clips) > 1:
            raise ValueError(
                f"`attacks` must keep to one ball and one box. Received: norms {sorted(norms)}, "
                f"clips {sorted(clips, key=str)}"
            )
        self._derive(attacks=attacks, norm=norms.pop() if norms else None, clip=clips.pop())

    def _perturb(self, task: Task) -> Array:
        attacked = task.x.copy()
        left = np.arange(len(task.x))
        for attack in self.attacks:
            labels = None if task.labels is None or getattr(attack, "targeted", False) else task.labels[left]
            attacked[left] = attack(task.model, task.x[left], labels, epsilon=task.radius, index=task.index[left])
            left = left[~task.model.verdicts(attacked[left]).rejected]
            if not len(left):
                break
        return attacked
