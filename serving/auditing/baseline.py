"""An audit beside an earlier one: which rates have changed by more than chance explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from defended.serving.auditing.record import AuditRecord
from defended.statistics.intervals import Rate


@dataclass(frozen=True)
class Compared:
    """A rate now and in the baseline.

    Attributes:
        metric: its name.
        baseline: the rate then.
        now: the rate now.
        p_value: of Fisher's exact test, two-sided, that both are draws with one probability; adjusted by Holm for all
            rates of the comparison.
        changed: whether the p-value is below the level.
    """

    metric: str
    baseline: Rate
    now: Rate
    p_value: float
    changed: bool


@dataclass(frozen=True)
class BaselineComparison:
    """What has changed; with probability at least `1 - level`, nothing is named that has not changed.

    That holds where both audits used inputs of their own. On the same inputs the rates are not independent, and the
    test finds fewer changes than there are.
    """

    name: str
    version: int | None
    created: str
    level: float
    rates: tuple[Compared, ...]


Comparison = BaselineComparison  # its earlier name


def compare_with(baseline: AuditRecord, rates: Mapping[str, Rate | None], confidence: float) -> BaselineComparison:
    """Compare every rate that both audits have.

    Args:
        baseline: the earlier audit.
        rates: the rates now, by name.
        confidence: one minus the level of the tests, all of them together.
    """
    from scipy.stats import fisher_exact

    both = [
        (name, before.rate(), rate)
        for name, rate in rates.items()
        if rate is not None and rate.total and (before := baseline.rates.get(name)) is not None and before.total
    ]
    raw = [float(fisher_exact([[r.count, r.total - r.count] for r in (before, now)]).pvalue) for _, before, now in both]
    level = 1 - confidence
    return BaselineComparison(
        baseline.subject.name,
        baseline.subject.version,
        baseline.created,
        level,
        tuple(
            Compared(name, before, now, p, p < level) for (name, before, now), p in zip(both, holm(raw), strict=True)
        ),
    )


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values: rejecting those below alpha errs in any of them with probability at most alpha (Holm 1979)."""
    order, adjusted = np.argsort(p_values, kind="stable"), np.array(p_values, float)
    raised = np.arange(len(p_values), 0, -1) * adjusted[order]
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, raised))
    return adjusted.tolist()
