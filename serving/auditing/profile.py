"""What clean traffic looks like, in counts: the picture that a monitor compares later traffic with."""

from __future__ import annotations

from typing import Any

import numpy as np

from defended.serving.auditing.record import ProfileRecord
from defended.serving.auditing.strata import CONFIDENCE_EDGES, confidence_bins, confidences, margins

_MARGIN_BINS = 16

NOT_FINITE = 2


def profile(scores: np.ndarray, rejected: np.ndarray, reason: np.ndarray | None = None) -> ProfileRecord:
    """Count answered and, separately, rejected inputs by margin, class and confidence.

    Args:
        scores: `[n, m]`.
        rejected: `[n]` bool.
        reason: `[n]`, 2 where an input was not finite; None where reasons are not reported: then rows of scores
            that are not finite count as such.
    """
    finite = np.isfinite(scores).all(axis=1)
    usable = finite if reason is None else finite & (reason != NOT_FINITE)
    not_finite = int((rejected & ~usable).sum())
    scores, rejected = scores[usable], rejected[usable]
    margin, classes = margins(scores), scores.argmax(axis=1)
    edges = _edges(margin, rejected)
    bins = np.searchsorted(edges, margin, side="right")
    sure = confidence_bins(confidences(scores))
    kinds = {
        "margins": (bins, len(edges) + 1),
        "classes": (classes, scores.shape[1]),
        "confidence": (sure, len(CONFIDENCE_EDGES) - 1),
    }
    counts: dict[str, Any] = {
        f"{verdict}_{kind}": np.bincount(values[where], minlength=size).tolist()
        for kind, (values, size) in kinds.items()
        for verdict, where in (("answered", ~rejected), ("rejected", rejected))
    }
    return ProfileRecord(margin_edges=edges, **counts, not_finite=not_finite, rejected_near_answered=None)


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


def _edges(margin: np.ndarray, rejected: np.ndarray) -> list[float]:
    """Return edges that cut the margins of all inputs, and those of the rejected ones, into equal parts."""
    shares = np.arange(1, _MARGIN_BINS) / _MARGIN_BINS
    inner = [np.quantile(part, shares) for part in (margin, margin[rejected]) if len(part)]
    return np.unique(np.concatenate(inner)).tolist() if inner else []
