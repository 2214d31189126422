"""Shares with exact confidence intervals."""

from __future__ import annotations

from typing import Any


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval for the probability of success after `count` successes in `total` independent trials.

    With B(q; a, b) the q-quantile of the beta distribution and alpha = 1 - confidence:
    `low = B(alpha/2; count, total - count + 1)`, `high = B(1 - alpha/2; count + 1, total - count)`. It covers the true
    probability with at least the stated confidence, whatever that probability is. No trials say nothing: (0, 1).

    Raises:
        ValueError: when not 0 <= count <= total, or confidence is not inside (0, 1).

    Reference: Clopper, Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
    """
    if int(count) != count or int(total) != total or not 0 <= count <= total:
        raise ValueError(
            f"`count` and `total` must be whole, 0 <= count <= total. Received: count={count}, total={total}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1, as 0.95. Received: {confidence}")
    if total == 0:
        return 0.0, 1.0
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high


def _doubtful(count: int, total: int, confidence: float, doubt: float) -> tuple[float, float]:
    from scipy.stats import binom

    half = (1 + confidence) / 2
    wrong = int(binom.ppf(half, total, doubt)) if total else 0
    low, _ = clopper_pearson(max(count - wrong, 0), total, half)
    _, high = clopper_pearson(min(count + wrong, total), total, half)
    return low, high


class Rate(float):
    """A share `count / total` that is a float and knows where it came from.

    A share of nothing (`total` 0) is 0.0 with the interval (0, 1): never NaN, and visibly uninformative.

    Where each trial may itself have been judged wrongly, with probability at most `doubt`, independently of the others,
    the interval counts that too: with probability `1 - alpha / 2` at most q judgements are wrong, q the quantile of the
    binomial distribution, and the ends are those for `count - q` and `count + q` at confidence `1 - alpha / 2`.

    Attributes:
        count: successes.
        total: trials.
        confidence: the confidence of the interval.
        doubt: the probability of a wrong judgement.
        interval: `(low, high)`, see `clopper_pearson`.

    Example:
        >>> rate = Rate(83, 1818)
        >>> float(rate), rate.interval
        (0.04565456545654565, (0.03653..., 0.05628...))
    """

    count: int
    total: int
    confidence: float
    doubt: float
    interval: tuple[float, float]

    def __new__(cls, count: int, total: int, confidence: float = 0.95, doubt: float = 0.0) -> Rate:
        rate = super().__new__(cls, count / total if total else 0.0)
        rate.count, rate.total, rate.confidence, rate.doubt = int(count), int(total), float(confidence), float(doubt)
        rate.interval = (
            _doubtful(count, total, confidence, doubt) if doubt else clopper_pearson(count, total, confidence)
        )
        return rate

    def __reduce__(self) -> tuple[Any, ...]:
        return Rate, (self.count, self.total, self.confidence, self.doubt)

    def __repr__(self) -> str:
        low, high = self.interval
        return f"{float(self):.4f} [{low:.4f}, {high:.4f}] ({self.count}/{self.total})"

    def __str__(self) -> str:
        return float.__repr__(self)

    def to_dict(self) -> dict[str, Any]:
        """Return `value`, `count`, `total`, `interval`, `confidence` and, if there is any, `doubt`, ready for JSON."""
        return {
            "value": float(self),
            "count": self.count,
            "total": self.total,
            "interval": list(self.interval),
            "confidence": self.confidence,
        } | ({"doubt": self.doubt} if self.doubt else {})
