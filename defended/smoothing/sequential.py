"""A gate that looks after some 50 draws, and after each quarter more: a confidence sequence in place of a fixed sample.

**Theorem.** Let X_1, X_2, ... be independent draws, 1 with probability p, and S_t their sum. Let w be a distribution on
(0, 1) that is fixed beforehand, and for p0 in (0, 1)

    M_t(p0) = E_{theta ~ w} [ (theta / p0)^S_t ((1 - theta) / (1 - p0))^(t - S_t) ].

M_t(p), with the true p, is the wealth of a gambler who bets at fair odds: a nonnegative martingale that starts at 1. So
by Ville's inequality `P(M_t(p) >= 1/a for some t) <= a`. `-log p0^k (1 - p0)^(t-k)` is convex in p0, so the p0 that are
not excluded, `M_t(p0) < 1/a`, form an interval; with L_t its lower end,

    P(L_t <= p for all t) >= 1 - a:

the bound holds at whatever moment one looks, even at one chosen by the outcomes. The cap n is judged, in addition, by
Clopper–Pearson's bound. With a = alpha/2 for each, the two together fail with probability at most alpha. Every answer
rests on one of the two, hence: *for each input, a wrong radius at the stop has probability at most alpha*.

w is Beta(1, 1/2) restricted to (p*, 1), p* = Phi(epsilon / sigma): it bets only on what would be answered, and most on
nearly unanimous votes, which clean inputs give. With k votes for a class, M has the closed form

    M_t(p0) = B(k + 1, t - k + 1/2) P(Beta(k + 1, t - k + 1/2) > p*) / (2 (1 - p*)^(1/2)) / (p0^k (1 - p0)^(t-k)).

**Giving up.** The mirrored wealth, betting on (0, p_c) against "p >= p_c", ends the sampling at 1/alpha, where p_c is
the share that the cap would need. An input with p >= p_c is given up too early with probability at most alpha.
Rejecting needs no guarantee; this keeps it from costing answers.

References: Ville 1939; Robbins 1970 (mixtures); Waudby-Smith and Ramdas 2024 (betting); Clopper and Pearson 1934.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from defended.smoothing.bounds import radius_of_bound
from defended.smoothing.gate import Array, Gate, radius_table, smallest_answer

_GROWTH = 1.25
# log-gamma functions of 1e6 carry errors of some 1e-9; the wealth must exceed its bound by more than these explain.
_MARGIN = 1e-6


def sequential_gate(epsilon: float, sigma: float, samples: int, alpha: float) -> Gate:
    """Return the gate that stops early, after `samples` draws at the latest.

    It is valid at alpha whenever it stops (theorem above).

    Args:
        epsilon: radius to decide on, in input units; a float32 number.
        sigma: standard deviation of the noise, in the same units.
        samples: the cap n.
        alpha: probability of a wrong radius, for each input.
    """
    from scipy.special import ndtr

    share = float(ndtr(float(np.float32(epsilon)) / sigma))
    last = radius_table(sigma, samples, alpha / 2)
    needed = smallest_answer(last, epsilon)

    stages = []
    for t in _checkpoints(share, samples, alpha):
        counts = np.arange(math.floor(share * t), t + 1)
        radius = radius_of_bound(lower_confidence_sequence(counts, t, alpha / 2, share), sigma)
        answer = counts[0] + smallest_answer(radius, epsilon)
        gone = np.flatnonzero(_log_wealth_below(np.arange(t + 1), t, needed / samples) >= -math.log(alpha) + _MARGIN)
        # What cannot reach the cap's threshold any more is given up as well.
        futile = max(int(gone[-1]) if len(gone) else -1, needed - (samples - t) - 1)
        stages.append((t, answer, min(futile, answer - 1), radius[answer - counts[0] :]))
    stages.append((samples, needed, needed - 1, last))

    *columns, tables = zip(*stages, strict=True)
    checkpoints, answers, futiles = (np.array(column, np.int32) for column in columns)
    # The last table begins with the count 0, the others with the smallest count that answers.
    offset = np.cumsum([0, *map(len, tables[:-1])]) - np.append(answers[:-1], 0)
    return Gate(checkpoints, answers, futiles, np.concatenate(tables), offset.astype(np.int32))


def lower_confidence_sequence(counts: ArrayLike, t: int, alpha: float, share: float) -> Array:
    """Return the bounds L_t of the theorem: with probability at least 1 - alpha, `L_t <= p` at all t together.

    Args:
        counts: `[c]` whole numbers S_t in [0, t].
        t: draws so far.
        alpha: in (0, 1).
        share: p*, in (0, 1); above it the bounds are meant to be sharp. Fixed before the draws.

    Returns:
        `[c]` float64, never above S_t / t; 0 where nothing is excluded.
    """
    from scipy.special import betaincc, betaln, xlog1py, xlogy

    k = np.asarray(counts, np.float64)
    with np.errstate(divide="ignore"):  # nothing of w is left where the votes are few: log 0
        bet = betaln(k + 1, t - k + 0.5) + np.log(betaincc(k + 1, t - k + 0.5, share))
    bet -= math.log(2) + 0.5 * math.log1p(-share)

    def wealth(p0: Array) -> Array:
        return bet - xlogy(k, p0) - xlog1py(t - k, -p0)

    # Decreasing in p0 up to k/t, where it is at most 0: bisection, whose lower end keeps the wealth it was seen with.
    low, high = np.zeros_like(k), k / t
    for _ in range(60):
        middle = (low + high) / 2
        enough = wealth(middle) >= -math.log(alpha) + _MARGIN
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return low


def _log_wealth_below(counts: Array, t: int, share: float) -> Array:
    """Return the log wealth of bets by Beta(1/2, 1) restricted to (0, share), against "p >= share"."""
    from scipy.special import betainc, betaln, xlog1py, xlogy

    k = counts.astype(np.float64)
    if share >= 1:  # only a unanimous vote would do: one other vote decides
        return np.where(k < t, np.inf, -np.inf)
    with np.errstate(divide="ignore"):
        bet = betaln(k + 0.5, t - k + 1) + np.log(betainc(k + 0.5, t - k + 1, share))
    bet -= math.log(2) + 0.5 * math.log(share)
    return bet - xlogy(k, share) - xlog1py(t - k, -share)


def _checkpoints(share: float, samples: int, alpha: float) -> list[int]:
    """Return the looks before the cap: the first where a unanimous vote answers, then a quarter more each time."""
    looks: list[int] = []
    t = max(1, math.ceil(math.log(alpha / 2) / math.log(share)))
    while t < samples and float(lower_confidence_sequence([t], t, alpha / 2, share)[0]) <= share:
        t += 1 + t // 50
    while t < samples:
        looks.append(t)
        t = math.ceil(t * _GROWTH)
    return looks
