"""When sampling stops, what the votes prove, and whether that is enough: integer thresholds and one table.

Everything special (beta quantiles, the inverse normal) is computed here, once, in float64. The graph that serves
compares integers and looks radii up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from defended.smoothing.bounds import Array, lower_confidence_bound, radius_of_bound


class Gate(NamedTuple):
    """Decisions on k votes for the candidate among the first t draws, at K checkpoints t.

    At a checkpoint, `k >= answer` ends the sampling with an answer, `k <= futile` with ⊥; at the last one every count
    does one or the other. A count that answers proves a radius above epsilon, so the thresholds and the table agree to
    the bit.
    """

    checkpoints: Array
    """`[K]` int32, increasing; the last is the cap n."""
    answer: Array
    """`[K]` int32, the smallest count that answers; t + 1 where none does."""
    futile: Array
    """`[K]` int32, the largest count that gives up; -1 where none does."""
    radius: Array
    """float32, rounded down; for the count k at checkpoint j it is `radius[offset[j] + k]`: for every k at the last
    checkpoint, for `k >= answer[j]` at the others."""
    offset: Array
    """`[K]` int32."""


def fixed_gate(epsilon: float, sigma: float, samples: int, alpha: float) -> Gate:
    """Return the gate of CERTIFY: one look, after n draws (Cohen et al. 2019, section 3.2.2).

    `R = sigma * Phi^-1(p)` with p the Clopper–Pearson lower bound at alpha for the candidate's probability. It answers
    where `R > epsilon`. For each input on its own, with probability at least 1 - alpha over the draws, R is at most
    the radius within which the smoothed classifier does not change.
    """
    radius = radius_table(sigma, samples, alpha)
    answer = smallest_answer(radius, epsilon)
    checkpoints, answers, futile, offset = (np.array([n], np.int32) for n in (samples, answer, answer - 1, 0))
    return Gate(checkpoints, answers, futile, radius, offset)


def radius_table(sigma: float, samples: int, alpha: float) -> Array:
    """Return the certified radius for each count, `[n + 1]` float32."""
    radius = np.zeros(samples + 1, np.float32)
    # Half of the votes or fewer never prove a majority.
    counts = np.arange(samples // 2 + 1, samples + 1)
    radius[counts] = radius_of_bound(lower_confidence_bound(counts, samples, alpha), sigma)
    # Monotone in exact arithmetic; a running maximum from above would exceed it, one from the right does not.
    return np.minimum.accumulate(radius[::-1])[::-1].copy()


def smallest_answer(radius: Array, epsilon: float) -> int:
    """Return the smallest count whose radius lies above epsilon, a float32 number; the table's length if none does."""
    above = np.flatnonzero(radius > np.float32(epsilon))
    return int(above[0]) if len(above) else len(radius)
