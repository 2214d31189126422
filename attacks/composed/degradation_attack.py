"""Algorithm 3.1 of Leino et al. 2022, the published attack on availability."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from defended.arguments import positive_number
from defended.attacks.core import arguments, checks
from defended.attacks.core.arguments import argument, meant, yes_or_no
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import column, distances
from defended.attacks.core.checks import Array, box
from defended.attacks.gradient.pgd import PGD
from defended.attacks.gradient.smoothed_pgd import SmoothedPGD


def _without_radius(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"`{name}` must be an attack, such as PGD(). Received: {name}={value!r}")
    if getattr(value, "epsilon", None) is not None:
        raise ValueError(
            f"`{name}` runs at twice the radius that is degraded, so its own epsilon must be None. Received: "
            f"{name}={value!r}. Set `epsilon` of the DegradationAttack instead."
        )
    return value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DegradationAttack(Attack):
    """Takes an adversarial example at 2 eps halfway back: Algorithm 3.1 of Leino et al. 2022.

    If x* within 2 eps of x has another label, no certificate of radius eps can hold on the whole segment between
    them: the point at distance eps from x is within eps of x and of x*. So `base_attack` runs on the undefended
    network at 2 eps, and its δ is brought to the eps-ball: for l2, scaled to norm `min(eps, ‖δ‖)`; for l∞, clipped to
    [-eps, eps].

    In a call, `y` is handed to the base attack.
    """

    base_attack: Callable[..., Any] = field(
        default=cast(Any, None),
        kw_only=False,
        metadata=meant(
            "an `Attack` whose own epsilon is None, or any callable `(model, x, y)` that returns perturbed inputs; it "
            "is given `epsilon=`, the radius 2 eps, if it takes such a keyword. None for `PGD()`.",
            _without_radius,
        ),
    )
    scale_to_sphere: bool = argument(
        False, "always rescale δ to norm eps, even where it was shorter, as the authors' script does.", yes_or_no
    )
    epsilon: float | None = arguments.epsilon()
    norm: str | None = field(init=False, default=None)
    clip: tuple[float, float] | None = field(init=False, default=None)
    targeted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        base = PGD() if self.base_attack is None else self.base_attack
        clip = getattr(base, "clip", None)
        self._derive(
            base_attack=base,
            norm=getattr(base, "norm", None),
            clip=None if clip is None else box("clip", clip),
            targeted=bool(getattr(base, "targeted", False)),
        )

    @classmethod
    def published(
        cls, epsilon: float, norm: str = "l2", *, sigma: float | None = None, seed: int = 0, batch_size: int = 128
    ) -> DegradationAttack:
        """Return the attack of the authors' scripts, with the settings that it has there, for inputs in [0, 1].

        - l2, for GloRo Nets: foolbox's `L2PGD` at 2 eps in the box [-2 eps, 1 + 2 eps], 50 steps of 0.025 * 2 eps from
          a random start, gradients of norm below 1e-12 divided by 1e-12, then rescaled to norm eps. This floor makes
          the attack weak: where the network is sure, it hardly moves.
        - l2 with `sigma`, for smoothed models: 50 steps of 4 eps / 50 times the mean of the gradients of 100 noisy
          copies, each of which is that of the mean loss (so the step is a hundredth of what one might expect), fresh
          noise in every step, then rescaled to norm eps.
        - l∞, for Wong and Kolter's: 50 steps of 4 eps / 50 by the gradient's sign, from x itself, clipped to eps.

        All of them return the point where the steps end, and not the best one. The scripts for smoothed and l∞ models
        leave the true labels; pass those as `y`.
        """
        options: dict[str, Any] = {"norm": norm, "keep": "last", "seed": seed, "batch_size": batch_size}
        step = 4 * positive_number("epsilon", epsilon) / 50
        if norm == "linf":
            if sigma is not None:
                raise ValueError("`sigma` goes with norm='l2': the authors attack smoothed models in l2 only.")
            return cls(PGD(step_size=step, random_start=False, **options), epsilon=epsilon)
        if sigma is not None:
            base: Attack = SmoothedPGD(
                sigma=sigma, average="losses", common_noise=False, raw_gradient=True, step_size=step / 100, **options
            )
        else:
            base = PGD(clip=(-2 * epsilon, 1 + 2 * epsilon), gradient_floor=1e-12, **options)
        return cls(base, scale_to_sphere=True, epsilon=epsilon)

    def _perturb(self, task: Task) -> Array:
        extra: dict[str, Any] = {"epsilon": 2 * task.radius, "index": task.index}
        if not isinstance(self.base_attack, Attack):
            extra = {name: extra[name] for name in _keywords(self.base_attack) & extra.keys()}
        found = self.base_attack(task.model, task.x, task.labels, **extra)
        found = checks.perturbed(task.x, found, 2 * task.radius, task.norm, f"the base attack {self.base_attack!r}")
        delta = found.astype(np.float64) - task.x
        size = column(distances(task.x, found, task.norm), task.x)
        if self.scale_to_sphere:
            delta = delta * task.radius / np.where(size > 0, size, 1.0)
        elif task.norm == "l2":
            delta = delta * np.minimum(1.0, task.radius / np.where(size > 0, size, 1.0))
        else:
            delta = np.clip(delta, -task.radius, task.radius)
        return task.x + delta


def _keywords(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        return set()
