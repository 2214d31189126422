"""Rejection by class and by confidence: where the rejections are, not only how many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts

# Edges of the confidence strata; half open, the last one closed.
CONFIDENCE_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Stratum:
    """A part of the inputs.

    Attributes:
        name: what they have in common.
        rejection_rate: rejected ones among them.
        vra: rightly answered ones among them; None without labels.
    """

    name: str
    rejection_rate: Rate
    vra: Rate | None = None


def confidences(scores: np.ndarray) -> np.ndarray:
    """Return how sure the network is of its class, `[n]` float64 in [0, 1], 0 where a score is not finite.

    This is the largest score where the scores are shares already (rows of at least 0 that sum to 1, such as the votes
    of a smoothed model), otherwise the largest entry of their softmax.

    Args:
        scores: `[n, m]`.
    """
    scores = np.asarray(scores, np.float64)
    finite = np.isfinite(scores).all(axis=1)
    scores = np.where(finite[:, None], scores, 0.0)
    if are_shares(scores[finite]):
        top = scores.max(axis=1, initial=0.0)
    else:
        top = 1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    return np.where(finite, np.minimum(top, 1.0), 0.0)


def are_shares(scores: np.ndarray) -> bool:
    """Return whether all rows are shares that sum to 1, up to float32's rounding."""
    return bool(len(scores) and (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-4))


def margins(scores: np.ndarray) -> np.ndarray:
    """Return the largest score less the second largest, `[n]` float64, 0 where a score is not finite."""
    scores = np.asarray(scores, np.float64)
    finite = np.isfinite(scores).all(axis=1)
    second, first = np.sort(np.where(finite[:, None], scores, 0.0), axis=1)[:, -2:].T
    return np.where(finite, first - second, 0.0)


def by_class(
    facts: InputFacts,
    classes: np.ndarray,
    confidence: float,
    alpha: float = 0.0,
    names: Sequence[str] | None = None,
) -> tuple[Stratum, ...]:
    """Return one stratum for each class that occurs, in order.

    Args:
        facts: what is known of the n inputs.
        classes: `[n]` whole numbers: the labels, or the predicted classes where there are no labels; -1 where the
            network gives none.
        confidence: confidence level of the intervals, each for itself.
        alpha: probability that a certificate is wrong.
        names: what the classes are called, in the order of their numbers.
    """

    def name(number: int) -> str:
        if number < 0:
            return "not finite"
        called = names is not None and number < len(names) and names[number] != str(number)
        return f"class {number}, {names[number]}" if names is not None and called else f"class {number}"

    return tuple(stratum(name(c), facts.of(classes == c), confidence, alpha) for c in map(int, np.unique(classes)))


def by_confidence(
    facts: InputFacts, confident: np.ndarray, confidence: float, alpha: float = 0.0
) -> tuple[Stratum, ...]:
    """Return one stratum for each bin between the `CONFIDENCE_EDGES` that has inputs, from unsure to sure.

    The arguments are as for `by_class`; `confident` are `confidences`.
    """
    where = confidence_bins(confident)
    names = [f"{100 * low:g} to {100 * high:g} %" for low, high in itertools.pairwise(CONFIDENCE_EDGES)]
    return tuple(stratum(names[b], facts.of(where == b), confidence, alpha) for b in np.unique(where))


def confidence_bins(confident: np.ndarray) -> np.ndarray:
    """Return the number of each input's bin between the `CONFIDENCE_EDGES`, `[n]`."""
    return np.clip(np.searchsorted(CONFIDENCE_EDGES, confident, side="right") - 1, 0, len(CONFIDENCE_EDGES) - 2)


def worst_rejection(strata: Sequence[Stratum], confidence: float) -> Rate | None:
    """Return the highest rejection rate among strata, its interval widened for the choice (Bonferroni).

    The worst of k strata is chosen on the data; at confidence `1 - (1 - confidence) / k` each, all k intervals hold
    together, and so the chosen one's does. None where there are no strata.
    """
    if not strata:
        return None
    worst = max((stratum.rejection_rate for stratum in strata), key=lambda rate: (float(rate), rate.total))
    return Rate(worst.count, worst.total, 1 - (1 - confidence) / len(strata))


def stratum(name: str, facts: InputFacts, confidence: float, alpha: float = 0.0) -> Stratum:
    """Return the stratum of these inputs."""
    return Stratum(name, **facts.rates(("rejection_rate", "vra"), confidence, alpha))  # type: ignore[arg-type]
