"""An anytime-valid test that a probability has risen above a limit, whenever that happens."""

from __future__ import annotations

import math

import numpy as np

# Alternatives are this many, from odds slightly above the limit's to near certainty.
_ALTERNATIVES = 24
_LEAST_ODDS = 1.15
_HIGHEST = 0.95


class RaisedRateProcess:
    r"""A nonnegative supermartingale that grows when events become more frequent than a limit allows.

    **Theorem.** Let events come in rounds, and let each event's probability, given everything before it, be at most
    `limit`. Then for every `alpha` in (0, 1) the probability that `value` ever reaches `1 / alpha`, over an unlimited
    number of rounds, is at most `alpha`.

    *Proof.* For a probability q above p = `limit`, one observation multiplies a bet by `L = q / p` where the event
    happens and by `L = (1 - q) / (1 - p)` where it does not. Its mean, at an event's probability p' <= p, is
    `1 + (p' - p) (q - p) / (p (1 - p)) <= 1`. A capital of 1 is split in advance: the share `w_r` waits as cash until
    round r, and is then staked on all alternatives q in equal parts. Sums of fair or losing bets and cash form a
    nonnegative supermartingale that starts at 1, and Ville's inequality (1939) bounds its supremum.

    The mixture over q finds rises of any size (Robbins 1970). The mixture over starts finds them whenever they begin:
    the price of an old monitor is a threshold higher by a factor of about `r log(r)^2`, not a capital that was gambled
    away before. With `w_r = 1 / log2(r + 1) - 1 / log2(r + 2)` the shares sum to 1, and one number for each q is all
    that needs keeping: `S_r(q) = (S_{r-1}(q) + w_r / G) L_r(q)`, as in Shiryaev's and Roberts's procedures
    (Shin, Ramdas, Rinaldo 2023 discuss such e-detectors).

    Args:
        limit: the probability that must not be exceeded, in (0, 1).

    Attributes:
        limit: as given.
        rounds: rounds so far.
        log_stakes: `[G]` float64, logarithms of `S_r(q)`.
        log_starts: `[G]` float64, logarithms of the same sums, each start weighted by its number; they tell where the
            evidence began.
    """

    def __init__(self, limit: float):
        if not 0 < limit < _HIGHEST:
            raise ValueError(
                f"`limit` must lie between 0 and {_HIGHEST}: a model that rejects more cannot be seen to reject more "
                f"still. Received: {limit!r}"
            )
        self.limit = float(limit)
        self.rounds = 0
        self.up, self.down = bets(self.limit)
        self.log_stakes = np.full(len(self.up), -np.inf)
        self.log_starts = np.full(len(self.up), -np.inf)

    def observe(self, events: int, total: int) -> float:
        """Take in a round of `total` observations, `events` of them events, in any order; return `log_value`."""
        if not 0 <= events <= total:
            raise ValueError(f"`events` must be at most `total`, both at least 0. Received: {events} of {total}")
        if total == 0:
            return self.log_value
        self.rounds += 1
        staked = math.log(share_of_round(self.rounds) / len(self.up))
        growth = events * self.up + (total - events) * self.down
        self.log_stakes = np.logaddexp(self.log_stakes, staked) + growth
        self.log_starts = np.logaddexp(self.log_starts, staked + math.log(self.rounds)) + growth
        return self.log_value

    @property
    def log_value(self) -> float:
        """Logarithm of the capital: stakes and cash."""
        return float(np.logaddexp(np.logaddexp.reduce(self.log_stakes), math.log(cash_after(self.rounds))))

    @property
    def start(self) -> int:
        """The round in which the evidence began, as far as the capital says: a mean over starts, weighted by stakes."""
        if not self.rounds:
            return 0
        ratio = np.logaddexp.reduce(self.log_starts) - np.logaddexp.reduce(self.log_stakes)
        return min(max(round(math.exp(ratio)), 1), self.rounds)


def bets(limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of what an event, and its absence, multiplies each alternative's stake by, `[G]` each."""
    odds = limit / (1 - limit)
    highest = max(_HIGHEST / (1 - _HIGHEST) / odds, 2 * _LEAST_ODDS)
    raised = odds * np.geomspace(_LEAST_ODDS, highest, _ALTERNATIVES)
    q = raised / (1 + raised)
    return np.log(q / limit), np.log1p(-q) - math.log1p(-limit)


def share_of_round(number: int) -> float:
    """Return `w_r`, the share of the capital that is staked in round r = 1, 2, ..."""
    # The difference of the two logarithms loses digits when r is large; this is the same number.
    first, second = math.log2(number + 1), math.log2(number + 2)
    return math.log1p(1 / (number + 1)) / math.log(2) / (first * second)


def cash_after(rounds: int) -> float:
    """Return the share that waits after so many rounds, `1 - w_1 - ... - w_r`."""
    return 1 / math.log2(rounds + 2)
