"""The rounding of float64, in which bounds are proven; the inequalities are those of `float32`."""

from __future__ import annotations

from defended.numerics import float32

UNIT_ROUNDOFF = 2.0**-53
"""u, the largest relative error of rounding to nearest."""


def gamma(roundings: float) -> float:
    """Return `n u / (1 - n u)`, a bound on the relative effect of n roundings of float64, as `float32.gamma`."""
    return float32.gamma(roundings, UNIT_ROUNDOFF)
