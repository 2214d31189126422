"""How a quantity moves from its first to its last value while training."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["fixed", "linear", "log"]


def interpolate(schedule: str, start: float, end: float, progress: float) -> float:
    """Return the value at `progress` in [0, 1]; beyond 1 it stays at `end`.

    `"fixed"` is `end` from the first moment. `"linear"` is the straight line. `"log"` is
    `log(exp(start) + progress * (exp(end) - exp(start)))`, fast first and slow later, as in the GloRo paper's training.

    Raises:
        ValueError: for another name.
    """
    check_schedule(schedule)
    if schedule == "fixed" or progress >= 1:
        return end
    if schedule == "linear":
        return start + (end - start) * progress
    # With the larger exponent taken out, nothing overflows.
    top = max(start, end)
    low, high = math.exp(start - top), math.exp(end - top)
    return top + math.log(low + progress * (high - low))


def check_schedule(schedule: str) -> None:
    """Raise a ValueError for a name that `interpolate` does not know."""
    if schedule not in ("fixed", "linear", "log"):
        raise ValueError(f"`schedule` must be 'fixed', 'linear' or 'log'. Received: {schedule!r}")
