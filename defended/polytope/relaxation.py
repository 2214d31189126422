"""Lines that enclose a ReLU between the bounds on its argument."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from defended.numerics.float32 import UNIT_ROUNDOFF


class Lines(NamedTuple):
    """`low_slope z - low_drop <= relu(z) <= slope z + lift`, for z in [lower, upper]; tensors `[batch, *shape]`.

    Both hold for computed values within q of z: rounding has widened them.
    """

    slope: Any
    lift: Any
    low_slope: Any
    low_drop: Any

    def reach(self, argument: Any, value: Any) -> tuple[Any, Any]:
        """Return how far the lines lie below and above `value` at `argument`; both at least 0."""
        below = value - self.low_slope * argument + self.low_drop
        above = self.slope * argument + self.lift - value
        return ops.maximum(below, 0.0), ops.maximum(above, 0.0)


def lines(lower: Any, upper: Any, pending: Any, slope: str) -> Lines:
    """Return the lines for bounds `lower <= z <= upper`, widened by `pending`, what rounding may have done to z.

    Above, the chord: with l < 0 < u, `u (z - l) / (u - l)`. Below, through the origin: of slope `u / (u - l)` too
    (`"wong-kolter"`, equation 5 of Wong and Kolter 2018), or of slope 1 where u > -l and 0 elsewhere (`"adaptive"`,
    Zhang et al. 2018), which leaves the smaller triangle. Where the sign is known, both are the ReLU itself.
    """
    zero = ops.zeros_like(upper)
    crosses = ops.logical_and(lower < 0, upper > 0)
    active = ops.cast(lower >= 0, upper.dtype)
    chord = ops.where(crosses, upper, zero) / ops.where(crosses, upper - lower, ops.ones_like(upper))
    steep = ops.minimum(ops.where(crosses, chord, active), 1.0)
    # Whatever the division made of the slope, this lift covers both ends. Its own rounding is less than 16 u `upper`:
    # neither end is above `upper (1 + 3 u)`, and either takes two operations, and the sum two more.
    lift = ops.maximum(-steep * lower, (1.0 - steep) * upper) + 16 * UNIT_ROUNDOFF * upper
    lift = ops.where(crosses, lift, zero)
    if slope == "wong-kolter":
        low = steep
    else:
        low = ops.where(crosses, ops.cast(upper > -lower, upper.dtype), active)
    return Lines(steep, lift + steep * pending, low, low * pending)


def constant_lines(lower: Any, upper: Any) -> Lines:
    """Return the box `relu(lower) <= relu(z) <= relu(upper)`, whatever z."""
    zero = ops.zeros_like(upper)
    return Lines(zero, ops.relu(upper), zero, -ops.relu(lower))
