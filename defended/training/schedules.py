"""How a quantity moves from its first to its last value while training."""

from __future__ import annotations

import math

from defended.arguments import one_of

SCHEDULES = ("fixed", "linear", "log")


def interpolate(schedule: str, start: float, end: float, progress: float) -> float:
    """Return the value at `progress` in [0, 1]; beyond 1 it stays at `end`.

    `"fixed"` is `end` from the first moment. `"linear"` is the straight line. `"log"` is
    `log(exp(start) + progress * (exp(end) - exp(start)))`, fast first and slow later, as in the GloRo paper's training.

    Raises:
        ValueError: for a schedule of another name.
    """
    one_of("schedule", schedule, SCHEDULES)
    if schedule == "fixed" or progress >= 1:
        return end
    if schedule == "linear":
        return start + (end - start) * progress
    # With the larger exponent taken out, nothing overflows.
    top = max(start, end)
    low, high = math.exp(start - top), math.exp(end - top)
    return top + math.log(low + progress * (high - low))
