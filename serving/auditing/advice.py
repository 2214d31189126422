"""What the same network would do at another epsilon, from its radii (section 4.1 of Leino et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts

# Shares of clean inputs that one may be willing to have rejected.
AFFORDABLE = (0.01, 0.02, 0.05, 0.1)

_SHOWN = ("rejection_rate", "vra", "vra_2eps", "fpr_upper")

# Below the radius that must be kept, by more than the rounding of the run-time comparison.
_BELOW = 1 - 2.0**-20


@dataclass(frozen=True)
class Deployment:
    """What the same network would do at some epsilon.

    Attributes:
        name: why this epsilon.
        epsilon: the radius defended, in input units.
        rejection_rate: clean inputs that it rejects.
        vra: inputs answered rightly, certified; None without labels.
        vra_2eps: the same at twice this epsilon.
        fpr_upper: answers not proven to stay; where only radii tell, those whose radius is at most twice this epsilon.
    """

    name: str
    epsilon: float
    rejection_rate: Rate
    vra: Rate | None
    vra_2eps: Rate | None
    fpr_upper: Rate


@dataclass(frozen=True)
class Affordable:
    """The largest epsilon at which at most a share of clean inputs is rejected.

    Attributes:
        max_rejection_rate: that share.
        epsilon: the largest that keeps to that share on these data; None where none does.
        epsilon_in_general: the largest for which the share holds, at the confidence given, for further inputs of the
            same distribution: a radius of these data, chosen by Wilks's distribution-free tolerance limit; None where
            the data are too few.
    """

    max_rejection_rate: float
    epsilon: float | None
    epsilon_in_general: float | None


@dataclass(frozen=True)
class Advice:
    """Deployments to compare, and what rejection costs."""

    deployments: tuple[Deployment, ...]
    affordable: tuple[Affordable, ...]
    confidence: float


def advise(
    radius: np.ndarray,
    right: np.ndarray | None,
    epsilon: float,
    confidence: float,
    alpha: float = 0.0,
    available: np.ndarray | None = None,
) -> Advice:
    """Compare deployments of one network at several radii; the radii do not depend on epsilon.

    At epsilon / 2, a network that was trained for epsilon is one trained with radius doubling: what was certified at
    epsilon cannot be forced into a rejection, rounding aside. At 2 epsilon, the line shows where training for twice the
    radius begins.

    Args:
        radius: `[n]` float64, certified radii.
        right: `[n]` bool, whether the network's class is the right one; None without labels.
        epsilon: as deployed now.
        confidence: confidence level of the intervals; for `epsilon_in_general` one-sided.
        alpha: probability that a radius is wrong.
        available: `[n]`, availability radii as deployed now, where they are known.
    """
    at = (("half of it", epsilon / 2, None), ("as deployed", epsilon, available), ("twice it", 2 * epsilon, None))
    return Advice(
        tuple(deployment(name, value, radius, right, confidence, alpha, known) for name, value, known in at),
        tuple(Affordable(share, *affordable(radius, share, confidence)) for share in AFFORDABLE),
        confidence,
    )


def deployment(
    name: str,
    epsilon: float,
    radius: np.ndarray,
    right: np.ndarray | None,
    confidence: float,
    alpha: float = 0.0,
    available: np.ndarray | None = None,
) -> Deployment:
    """Return what the network would do at `epsilon`; the arguments are those of `advise`."""
    rates = InputFacts.at(radius, right, epsilon, available=available).rates(_SHOWN, confidence, alpha)
    return Deployment(name, float(epsilon), **rates)  # type: ignore[arg-type]


def affordable(radius: np.ndarray, share: float, confidence: float) -> tuple[float | None, float | None]:
    """Return the largest epsilon that rejects at most `share`: on these data, and in general at the given confidence.

    With the radii in ascending order `r_1 <= ... <= r_n`, an epsilon just below `r_(c+1)` rejects c of them. The share
    of the distribution below `r_(c+1)` is Beta(c + 1, n - c) distributed, or lower where radii are tied (Wilks 1941):
    so the largest c whose quantile is at most `share` gives an epsilon that keeps the share with the given confidence.
    """
    from scipy.stats import beta

    ordered, n = np.sort(radius), len(radius)
    here = math.floor(share * n + 1e-9)
    counts = np.arange(here + 1)
    holding = counts[beta.ppf(confidence, counts + 1, n - counts) <= share] if here < n else counts[:0]
    return _below(ordered, here), _below(ordered, int(holding[-1])) if holding.size else None


def _below(ordered: np.ndarray, count: int) -> float | None:
    if count >= len(ordered) or ordered[count] <= 0:
        return None
    return float(ordered[count] * _BELOW)
