"""What clean traffic looks like, in counts: the picture that a monitor compares later traffic with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from defended.serving.auditing.strata import CONFIDENCE_EDGES, confidence_bins, confidences, margins

_MARGIN_BINS = 16

NOT_FINITE = 2


@dataclass(frozen=True)
class Profile:
    """Counts of answered and, separately, of rejected inputs, by what the default answer reports.

    Attributes:
        margin_edges: ascending; bins are below the first, between neighbours, and from the last on.
        answered_margins: answered inputs by margin, the difference of the two largest scores.
        rejected_margins: rejected inputs by margin.
        answered_classes: answered inputs by predicted class.
        rejected_classes: rejected inputs by predicted class.
        answered_confidence: answered inputs by confidence, between the `CONFIDENCE_EDGES`.
        rejected_confidence: rejected inputs by confidence.
        not_finite: rejected inputs that were not finite; they are in no other count.
        rejected_near_answered: how many of the rejected inputs lie within epsilon of an answered one, and how many
            were looked at; None where inputs, epsilon or the norm are not known.
    """

    margin_edges: tuple[float, ...]
    answered_margins: tuple[int, ...]
    rejected_margins: tuple[int, ...]
    answered_classes: tuple[int, ...]
    rejected_classes: tuple[int, ...]
    answered_confidence: tuple[int, ...]
    rejected_confidence: tuple[int, ...]
    not_finite: int = 0
    rejected_near_answered: tuple[int, int] | None = None


def profile(
    scores: np.ndarray,
    rejected: np.ndarray,
    reason: np.ndarray | None = None,
    edges: tuple[float, ...] | None = None,
) -> Profile:
    """Count inputs by margin, class and confidence.

    Args:
        scores: `[n, m]`.
        rejected: `[n]` bool.
        reason: `[n]`, 2 where an input was not finite; None where reasons are not reported: then rows of scores
            that are not finite count as such.
        edges: edges of the margins' bins; None for those that cut the margins of all finite inputs, and those of the
            rejected ones, into equal parts.
    """
    finite = np.isfinite(scores).all(axis=1)
    usable = finite if reason is None else finite & (reason != NOT_FINITE)
    not_finite = int((rejected & ~usable).sum())
    scores, rejected = scores[usable], rejected[usable]
    margin, classes = margins(scores), scores.argmax(axis=1)
    if edges is None:
        edges = _edges(margin, rejected)
    bins = np.searchsorted(edges, margin, side="right")
    sure = confidence_bins(confidences(scores))
    kinds = {
        "margins": (bins, len(edges) + 1),
        "classes": (classes, scores.shape[1]),
        "confidence": (sure, len(CONFIDENCE_EDGES) - 1),
    }
    counts: dict[str, Any] = {
        f"{verdict}_{kind}": tuple(np.bincount(values[where], minlength=size).tolist())
        for kind, (values, size) in kinds.items()
        for verdict, where in (("answered", ~rejected), ("rejected", rejected))
    }
    return Profile(tuple(edges), **counts, not_finite=not_finite)


def near_answered(
    rejected: np.ndarray, answered: np.ndarray, epsilon: float, norm: str, limit: int = 500
) -> tuple[int, int]:
    """Return how many rejected inputs have an answered one within epsilon, and of how many: at most the last `limit`.

    Args:
        rejected: `[k, ...]`.
        answered: `[n, ...]`.
        epsilon: a distance in the norm.
        norm: `"l2"` or `"linf"`.
        limit: inputs to look at.
    """
    size = int(np.prod(rejected.shape[1:]))
    rejected, answered = rejected[-limit:].reshape(-1, size), answered.reshape(-1, size)
    rejected, answered = (part[np.isfinite(part).all(axis=1)] for part in (rejected, answered))
    if not len(rejected) or not len(answered):
        return 0, len(rejected)
    from scipy.spatial.distance import cdist

    reach = epsilon * (1 + 1e-5)
    if norm == "linf":
        near = (cdist(rejected, answered, "chebyshev") <= reach).any(axis=1)
    else:
        a, b = rejected.astype(np.float64), answered.astype(np.float64)
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        near = (squared <= reach**2 + 1e-9 * (a**2).sum(1)[:, None]).any(axis=1)
    return int(near.sum()), len(rejected)


def _edges(margin: np.ndarray, rejected: np.ndarray) -> tuple[float, ...]:
    shares = np.arange(1, _MARGIN_BINS) / _MARGIN_BINS
    inner = [np.quantile(part, shares) for part in (margin, margin[rejected]) if len(part)]
    return tuple(np.unique(np.concatenate(inner)).tolist()) if inner else ()
