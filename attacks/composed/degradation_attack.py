"""The published attack on availability."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from defended.attacks.core import checks
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import distances
from defended.attacks.core.checks import Array
from defended.attacks.gradient.pgd import PGD
from defended.attacks.gradient.smoothed_pgd import SmoothedPGD


class DegradationAttack(Attack):
    """Algorithm 3.1 of Leino et al. 2022: an adversarial example at 2 eps, taken half way back.

    If x* within 2 eps of x has another label, no certificate of radius eps can hold on the whole segment between
    them: the point at distance eps from x is within eps of x and of x*. So `base_attack` runs on the undefended
    network at 2 eps, and its δ is brought to the eps-ball: l2: scaled to norm `min(eps, ‖δ‖)`; l∞: clipped to [-eps,
    eps].

    Args:
        base_attack: an `Attack` whose own epsilon is None, or any callable `(model, x, y)` that returns perturbed
            inputs; it is given `epsilon=`, the radius 2 eps, if it takes such a keyword. None for `PGD()`.
        scale_to_sphere: always rescale δ to norm eps, also where it was shorter, as the authors' script does.
        epsilon: eps in input units; None for `model.epsilon`.

    In a call, `y` is handed to the base attack.
    """

    def __init__(
        self,
        base_attack: Callable[..., Any] | None = None,
        *,
        scale_to_sphere: bool = False,
        epsilon: float | None = None,
    ):
        base_attack = PGD() if base_attack is None else base_attack
        if not callable(base_attack):
            raise TypeError(f"`base_attack` must be an attack, such as PGD(). Received: {base_attack!r}")
        if getattr(base_attack, "epsilon", None) is not None:
            raise ValueError(
                f"`base_attack` runs at twice the radius that is degraded, so its own epsilon must be None. Received: "
                f"{base_attack!r}. Set `epsilon` of the DegradationAttack instead."
            )
        self.base_attack = base_attack
        self.scale_to_sphere = bool(scale_to_sphere)
        self.epsilon = None if epsilon is None else checks.positive("epsilon", epsilon)
        self.norm = getattr(base_attack, "norm", None)
        self.clip = checks.box(getattr(base_attack, "clip", None))
        self.targeted = bool(getattr(base_attack, "targeted", False))

    @classmethod
    def published(
        cls, epsilon: float, norm: str = "l2", *, sigma: float | None = None, seed: int = 0, batch_size: int = 128
    ) -> DegradationAttack:
        """The attack of the authors' scripts, with the settings that they have there; inputs in [0, 1].

        - l2, for GloRo Nets: foolbox's `L2PGD` at 2 eps in the box [-2 eps, 1 + 2 eps], 50 steps of 0.025 * 2 eps from
          a random start, gradients of norm below 1e-12 divided by 1e-12, then rescaled to norm eps. This floor makes
          the attack weak: where the network is sure, it hardly moves.
        - l2 with `sigma`, for smoothed models: 50 steps of 4 eps / 50 times the mean of the gradients of 100 noisy
          copies, each of which is that of the mean loss (so the step is a hundredth of what one might expect), fresh
          noise in every step, then rescaled to norm eps.
        - l∞, for Wong and Kolter's: 50 steps of 4 eps / 50 by the gradient's sign, from x itself, clipped to eps.

        All of them return the point where the steps end, and not the best one. The scripts for smoothed and l∞ models
        leave the true labels; give those as `y`.
        """
        options: dict[str, Any] = {
            "norm": checks.known_norm(norm),
            "keep": "last",
            "seed": seed,
            "batch_size": batch_size,
        }
        step = 4 * checks.positive("epsilon", epsilon) / 50
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
        size = distances(task.x, found, task.norm).reshape(-1, *[1] * (task.x.ndim - 1))
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
