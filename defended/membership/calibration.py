"""A threshold with a guaranteed rate of false alarms: split conformal prediction."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def conformal_threshold(scores: ArrayLike, false_alarm_rate: float) -> float:
    """Return a threshold that the score of a further valid input exceeds with probability at most `false_alarm_rate`.

    It is the k-th smallest of the n scores, `k = ceil((n + 1)(1 - alpha))`. Where the n inputs and the further one are
    exchangeable (for example, drawn independently from one distribution), the further one's score is equally likely to
    take each of the n + 1 places, so it exceeds the k-th of the others with probability at most alpha, and at least
    alpha - 1/(n + 1) without ties. The draw of the calibration inputs counts in this probability too: it is that of
    deployments, not of one threshold. (Vovk, Gammerman and Shafer 2005; Papadopoulos et al. 2002.)

    Args:
        scores: `[n]`, those of inputs that were used for nothing else; infinite ones count as the largest.
        false_alarm_rate: alpha, strictly between 0 and 1.

    Raises:
        ValueError: for a rate out of range, NaN, too few scores for the rate (`n >= 1/alpha - 1` are enough), or so
            many infinite ones that the threshold would let everything pass.
    """
    scores = np.asarray(scores, np.float64)
    alpha = float(false_alarm_rate)
    if not 0 < alpha < 1:
        raise ValueError(f"`false_alarm_rate` must lie strictly between 0 and 1, such as 0.05. Received: {alpha!r}")
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"`scores` must be numbers [n], none of them NaN. Received: shape {scores.shape}")
    n = len(scores)
    # In exact arithmetic the product may be a whole number that float64 lifts: 20 * 0.95.
    k = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    if k > n:
        enough = math.ceil(1 / alpha - 1e-9) - 1
        raise ValueError(
            f"`calibration` must hold at least {enough} inputs for a false alarm rate of {alpha:g}. Received: {n}"
        )
    threshold = float(np.sort(scores)[k - 1])
    if not np.isfinite(threshold):
        raise ValueError(
            f"A threshold at which at most {alpha:g} of the {n} calibration inputs are false alarms is infinite: "
            f"{int(np.isinf(scores).sum())} have an infinite score."
        )
    return threshold
