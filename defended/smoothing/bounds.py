"""The statistics of CERTIFY and PREDICT (Cohen et al. 2019), in float64, rounded down.

Quantiles of the beta distribution come from SciPy, which agrees with itself to 1e-11 over all counts up to 1e5.
TensorFlow Probability's (0.25) are as good except at a probability of exactly 1/2, where `betaincinv` returns its
initial guess: up to 0.07 away, on the unsafe side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]

MAX_SAMPLES = 2**22
"""Beyond it, two neighbouring shares of votes could be one float32."""

# Below SciPy's bound by 6e-11 of it, which outweighs the error of that bound.
_DOWN = 1 - 2.0**-34


def lower_confidence_bound(counts: ArrayLike, samples: int, alpha: float) -> Array:
    """Return Clopper–Pearson lower bounds: with probability at least 1 - alpha below the probability of success.

    Each is the largest p with `P(Binomial(n, p) >= k) <= alpha`, that is the alpha-quantile of Beta(k, n - k + 1), less
    6e-11 of itself for the error of its computation.

    Args:
        counts: whole numbers k in [0, samples], any shape.
        samples: n, independent draws.
        alpha: in (0, 1).

    Returns:
        float64, the shape of `counts`; 0 for a count of 0.

    Raises:
        ValueError: for an alpha outside (0, 1), or counts that are not whole numbers in [0, samples].

    Reference: Cohen et al. 2019, LOWERCONFBOUND; Clopper, Pearson 1934.
    """
    from scipy.special import betaincinv

    alpha = checked_alpha(alpha)
    counts = _checked_counts(counts, samples)
    some = np.maximum(counts, 1)
    return np.where(counts > 0, betaincinv(some, samples - some + 1.0, alpha) * _DOWN, 0.0)


def binomial_p_value(first: ArrayLike, second: ArrayLike) -> Array:
    """Return the two-sided p-value of "both are equally likely" after counts `first` and `second`.

    They are those of n = first + second fair draws. At probability 1/2 the binomial distribution is symmetric, so the
    p-value is twice the upper tail of the larger count, at most 1. Without draws it is 1.

    Returns:
        float64, the broadcast shape.

    Reference: Cohen et al. 2019, PREDICT; Hung, Fithian 2019.
    """
    from scipy.special import betainc

    first, second = np.broadcast_arrays(np.asarray(first), np.asarray(second))
    if (first < 0).any() or (second < 0).any() or first.dtype.kind not in "iu" or second.dtype.kind not in "iu":
        raise ValueError("`first` and `second` must be counts, whole numbers >= 0.")
    larger, total = np.maximum(first, second).astype(np.float64), (first + second).astype(np.float64)
    # P(Binomial(n, 1/2) >= k) = I_{1/2}(k, n - k + 1).
    tail = np.where(larger > 0, betainc(np.maximum(larger, 1), total - larger + 1, 0.5), 1.0)
    return np.minimum(1.0, 2 * tail)


def radius_of_bound(bound: ArrayLike, sigma: float) -> Array:
    """Return `sigma * Phi^-1(bound)` (Cohen et al. 2019, theorem 1), float32 rounded down; 0 for bounds up to 1/2."""
    from scipy.special import ndtri

    bound = np.asarray(bound, np.float64)
    radius = sigma * ndtri(np.clip(bound, 0.5, 1 - 2.0**-53)) * (1 - 2.0**-40)
    rounded = radius.astype(np.float32)
    rounded = np.where(rounded.astype(np.float64) > radius, np.nextafter(rounded, np.float32(0)), rounded)
    return np.where(bound > 0.5, np.maximum(rounded, np.float32(0)), np.float32(0))


def radius_ceiling(sigma: float, samples: int, alpha: float) -> float:
    """Return `sigma * Phi^-1(alpha^(1/n))`, the radius where all n votes are for one class, and so the largest."""
    return float(radius_of_bound(lower_confidence_bound(samples, samples, alpha), sigma))


def smallest_samples(epsilon: float, sigma: float, alpha: float) -> int | None:
    """Return the smallest n whose ceiling lies above epsilon; None where `MAX_SAMPLES` are not enough."""
    from scipy.special import log_ndtr

    epsilon = float(np.float32(epsilon))
    needed = math.log(checked_alpha(alpha)) / float(log_ndtr(epsilon / sigma))
    n = max(1, math.floor(min(needed, 2.0 * MAX_SAMPLES)) - 1)
    while n <= MAX_SAMPLES:
        if radius_ceiling(sigma, n, alpha) > epsilon:
            return n
        n += 1 + n // 10**6
    return None


def checked_alpha(alpha: float) -> float:
    """Return `alpha` as a probability strictly between 0 and 1, or raise a ValueError."""
    value = float(alpha)
    if not 0 < value < 1:
        raise ValueError(
            f"`alpha` must lie strictly between 0 and 1: the probability of a wrong certificate, such as 0.001. "
            f"Received: alpha={alpha!r}"
        )
    return value


def _checked_counts(counts: Any, samples: int) -> Array:
    counts = np.asarray(counts)
    if samples < 1 or counts.dtype.kind not in "iu" or (counts < 0).any() or (counts > samples).any():
        raise ValueError(
            f"`counts` must be whole numbers in [0, samples], samples >= 1. "
            f"Received: {counts.dtype} counts, samples={samples}"
        )
    return counts.astype(np.float64)
