"""Choosing the radius by what rejection costs (section 4.1 of Leino et al. 2022)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from defended.arguments import number_in
from defended.defended_model import DefendedModel


def calibrate_epsilon(model: DefendedModel, x: ArrayLike, max_rejection_rate: float, *, batch_size: int = 256) -> float:
    """Return the largest radius at which the model rejects at most the given share of `x`.

    The model is left as it is; assign the result to `model.epsilon` to use it. The share holds exactly on `x`; on new
    data it holds up to sampling error, so calibrate on a held-out sample that is large for the rate you ask for.

    Args:
        model: a defended model; its bounds are proven first if they are not yet.
        x: inputs `[n, ...]`, not used for training.
        max_rejection_rate: in [0, 1).
        batch_size: inputs judged at a time.

    Returns:
        epsilon in input units, a float32 value, positive.

    Raises:
        ValueError: when no positive radius is affordable, or the sample is empty.
    """
    number_in("max_rejection_rate", max_rejection_rate, "[0, 1)")
    radii = np.sort(model.verdicts(x, batch_size=batch_size).radius)
    if not len(radii):
        raise ValueError("`x` is empty: pass the held-out inputs to calibrate on.")
    allowed = math.floor(max_rejection_rate * len(radii) + 1e-9)
    # A point is rejected where its radius is at most epsilon: stay below the first radius that must be kept, by more
    # than the rounding of the run-time comparison.
    epsilon = float(np.float32(radii[allowed] * (1 - 2.0**-20)))
    if epsilon <= 0:
        raise ValueError(
            f"At every positive radius more than {max_rejection_rate:.2%} of the {len(radii)} inputs are rejected: "
            f"{np.mean(radii <= 0):.2%} have no certified radius at all. Allow more "
            "rejections or train for a larger radius."
        )
    return epsilon
