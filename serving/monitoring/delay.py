"""How soon a monitor notices, and how often it is wrong: by simulation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from defended.serving.monitoring.test_martingale import bets, cash_after, share_of_round


class Delay(NamedTuple):
    """How many inputs, from the rise on, a monitor takes to notice it.

    Attributes:
        rate: rejection rate after the rise.
        median: median delay; None where fewer than half of the runs noticed within the horizon.
        mean: mean delay of the runs that noticed; None where none did.
        upper: the 90 % quantile of the delay; None where fewer of the runs noticed.
        noticed: share of the runs that noticed within the horizon.
        early: share of the runs with an alarm before the rise.
    """

    rate: float
    median: float | None
    mean: float | None
    upper: float | None
    noticed: float
    early: float


def alarms(
    limit: float | np.ndarray,
    threshold: float,
    rates: np.ndarray,
    runs: int,
    seed: int = 0,
    block: int = 1,
) -> np.ndarray:
    """Simulate monitors, and return the first round in which each alarms, `[runs]`; -1 where it never does.

    Args:
        limit: limit of the processes, one for all or `[runs]`.
        threshold: capital at which they alarm.
        rates: `[rounds]`, the rejection rate in each round.
        runs: the number of monitors.
        seed: seed of the verdicts.
        block: verdicts per round.
    """
    rng = np.random.default_rng(seed)
    each = [bets(float(one)) for one in np.atleast_1d(limit)]
    up, down = (np.exp(np.stack(side, axis=1)) for side in zip(*each, strict=True))  # [G, 1 or runs]
    # What k events of a block multiply the stakes by; the usual blocks of one look it up.
    lost, swing = down**block, up / down
    stakes = np.zeros((len(up), runs))
    first = np.full(runs, -1)
    for number, rate in enumerate(rates, 1):
        events = rng.binomial(block, rate, runs)
        stakes += share_of_round(number) / len(up)
        stakes *= np.where(events > 0, lost * swing, lost) if block == 1 else lost * swing**events
        value = stakes.sum(axis=0) + cash_after(number)
        first[(first < 0) & (value >= threshold)] = number
        if number % 64 == 0:
            if (first >= 0).all():
                break
            stakes[:, first >= 0] = 0.0  # finished; and nothing overflows
    return first


def detection_delay(
    limit: float,
    threshold: float,
    usual: float,
    raised: float,
    *,
    after: int = 1000,
    horizon: int = 100_000,
    runs: int = 200,
    block: int = 1,
    seed: int = 0,
) -> Delay:
    """Simulate a rise of the rejection rate, and count inputs until it is noticed.

    Args:
        limit: limit of the process.
        threshold: capital at which it alarms.
        usual: rejection rate before the rise.
        raised: rejection rate after it.
        after: inputs before the rise.
        horizon: inputs after it, at most.
        runs: simulated monitors.
        block: verdicts per round.
        seed: seed of the verdicts.
    """
    quiet, loud = -(-after // block), -(-horizon // block)
    first = alarms(limit, threshold, np.r_[np.full(quiet, usual), np.full(loud, raised)], runs, seed, block)
    early = (first >= 0) & (first <= quiet)
    delay = np.where(first < 0, np.inf, (first - quiet) * block)[~early]
    found = np.isfinite(delay)

    def quantile(p: float) -> float | None:
        value = float(np.quantile(delay, p, method="inverted_cdf")) if len(delay) else np.inf
        return value if np.isfinite(value) else None

    return Delay(
        raised,
        quantile(0.5),
        float(delay[found].mean()) if found.any() else None,
        quantile(0.9),
        float(found.mean()) if len(delay) else 0.0,
        float(early.mean()),
    )
