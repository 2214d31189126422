"""The evidence for a drift and for an attack behind more rejections, and how far it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from defended.serving.auditing.baseline import holm
from defended.serving.auditing.record import ProfileRecord

Points = Literal["attack", "drift", "broken inputs", "nothing"]

# Adjusted p-values below these are called strong and some evidence.
_STRONG, _SOME = 1e-4, 1e-2

# With fewer inputs on a side a distribution is not compared.
_FEWEST = 8

LIMITS = (
    "A rise that is proven says that more is rejected, not why. Evidence for an attack is evidence that rejections "
    "look as degradation attacks leave them, not that somebody acted.",
    "An attacker who perturbs inputs that are about to be rejected anyway, or who imitates a drift of the inputs, "
    "leaves the same verdicts and scores as a drift does: no test of them tells the two apart.",
    "Perturbed inputs whose originals were never sent have no neighbour in the log: that none are found clears nobody.",
)


@dataclass(frozen=True)
class Finding:
    """One comparison of recent traffic with the audited traffic.

    Attributes:
        statement: a sentence.
        points_to: what it is evidence for.
        p_value: of the hypothesis that nothing changed in this respect, adjusted for all findings (Holm); None where it
            could not be tested.
        grade: `"strong"`, `"some"` or `"none"`.
    """

    statement: str
    points_to: Points
    p_value: float | None
    grade: Literal["strong", "some", "none"]


@dataclass(frozen=True)
class Evidence:
    """Findings, what they say together, and what they cannot say."""

    summary: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...] = LIMITS

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence, ready for JSON."""
        return vars(self) | {"findings": [vars(finding) for finding in self.findings], "limits": list(self.limits)}


def weigh(
    baseline: ProfileRecord | None,
    recent: Mapping[str, np.ndarray] | None,
    neighbours: tuple[int, int] | None = None,
) -> Evidence:
    """Compare recent traffic with the audited traffic.

    Each test is made within the rejected or within the answered inputs. The alarm was set off by verdicts alone, so,
    given the verdicts, it biases none of these tests, whenever it came.

    Args:
        baseline: the audit's profile; None where it has none.
        recent: `[n]` each: `rejected` and `not_finite` bool, `margin` (bin) and `class`, as a profile counts them; None
            where only counts of verdicts are known.
        neighbours: how many of the recent rejected inputs have an answered one within epsilon, and how many were
            looked at; None where inputs are not known.
    """
    if baseline is None or recent is None or not len(recent["rejected"]):
        what = "the baseline has no profile" if baseline is None else "no scores are known, only verdicts"
        return Evidence(f"Drift and attack cannot be told apart at all: {what}.", ())
    rejected, broken = recent["rejected"], recent["not_finite"]
    answered = ~rejected & ~broken
    hurt = _now_and_then(recent["margin"][rejected & ~broken], baseline.rejected_margins)
    whole = _now_and_then(recent["margin"][answered], baseline.answered_margins)
    classes = _now_and_then(recent["class"][answered], baseline.answered_classes)
    rejected_then = baseline.not_finite + sum(baseline.rejected_margins)
    tests = [
        _Test(
            "broken inputs",
            _more_often(int(broken.sum()), int(rejected.sum()), baseline.not_finite, rejected_then),
            "More of the rejected inputs than in the audit are not finite numbers.",
            "No more of the rejected inputs than in the audit are not finite numbers.",
        ),
        _Test(
            "attack",
            _shifted(*hurt, "greater"),
            "Rejected inputs crowd at the certificate's edge: attacks that stop when they succeed leave them there.",
            "Rejected inputs do not crowd at the certificate's edge more than in the audit.",
        ),
        _Test(
            "attack",
            _shifted(*whole, "greater"),
            "Answers with small margins are missing, as if they had been taken away: those are the ones that an attack "
            "can force into rejections, while a drift brings more of them.",
            "Answers with small margins are not missing.",
        ),
        _Test(
            "drift",
            _shifted(*whole, "less"),
            "The answered inputs, too, are less sure than in the audit: the traffic as a whole has moved.",
            "The answered inputs are as sure as in the audit.",
        ),
        _Test(
            "drift",
            _shifted(*hurt, "less"),
            "Rejected inputs are farther from being answered than in the audit.",
            "Rejected inputs are no farther from being answered than in the audit.",
        ),
        _Test(
            "nothing",
            _differ(*classes),
            "The classes among the answers have other shares than in the audit: a drift does that, and so does an "
            "attack on some classes.",
            "The classes among the answers have the shares that they had in the audit.",
        ),
    ]
    if neighbours is not None and neighbours[1]:
        found, looked = neighbours
        found_then, looked_then = baseline.rejected_near_answered or (0, 0)
        p = _more_often(found, looked, found_then, looked_then)
        said = (
            f"{found} of {looked} rejected inputs lie within epsilon of an answered one, "
            f"{found_then} of {looked_then} in the audit"
        )
        tests.append(_Test("attack", p, f"{said}: a degradation attack leaves such pairs.", f"{said}."))
    return _graded(tests)


class _Test(NamedTuple):
    points_to: Points
    p_value: float | None
    changed: str
    same: str


def _graded(tests: list[_Test]) -> Evidence:
    adjusted = iter(holm([test.p_value for test in tests if test.p_value is not None]))
    findings = []
    for test in tests:
        p = None if test.p_value is None else next(adjusted)
        if p is None:
            findings.append(Finding(f"Too few inputs to say whether: {test.changed}", "nothing", None, "none"))
        elif p < _SOME:
            findings.append(Finding(test.changed, test.points_to, p, "strong" if p < _STRONG else "some"))
        else:
            findings.append(Finding(test.same, "nothing", p, "none"))
    return Evidence(_summary({finding.points_to for finding in findings} - {"nothing"}), tuple(findings))


def _summary(found: set[Points]) -> str:
    if {"attack", "drift"} <= found:
        return "There is evidence for both: traffic has moved, and rejections look as degradation attacks leave them."
    if "attack" in found:
        return "The evidence points to a degradation attack: rejections look as attacks leave them, answers as before."
    if "drift" in found:
        return "The evidence points to a drift of the inputs; nothing here looks as degradation attacks leave it."
    if "broken inputs" in found:
        return "The evidence points to broken inputs: more of them are not finite numbers."
    return "The evidence does not tell drift from attack: apart from being rejected, inputs look as in the audit."


def _now_and_then(bins: np.ndarray, then: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the histogram of the bins that inputs fall into now, and the audit's."""
    return np.bincount(bins, minlength=len(then))[: len(then)], np.array(then)


def _more_often(now: int, of_now: int, then: int, of_then: int) -> float | None:
    """Return the p-value of Fisher's exact test, one-sided, that the share has not risen."""
    from scipy.stats import fisher_exact

    if not of_now or not of_then:
        return None
    return float(fisher_exact([[now, of_now - now], [then, of_then - then]], alternative="greater").pvalue)


def _shifted(now: np.ndarray, then: np.ndarray, alternative: str) -> float | None:
    """Return the p-value of Mann and Whitney's test on binned values, normal approximation with ties, one-sided."""
    from scipy.stats import mannwhitneyu

    if now.sum() < _FEWEST or then.sum() < _FEWEST:
        return None
    values = np.arange(len(now))
    if ((now + then) > 0).sum() < 2:
        return 1.0
    samples = np.repeat(values, now), np.repeat(values, then)
    return float(mannwhitneyu(*samples, alternative=alternative, method="asymptotic").pvalue)


def _differ(now: np.ndarray, then: np.ndarray) -> float | None:
    """Return the p-value of Pearson's test that two histograms are of one distribution; rare values are merged."""
    from scipy.stats import chi2_contingency

    if now.sum() < _FEWEST or then.sum() < _FEWEST:
        return None
    expected = (now + then) * min(now.sum(), then.sum()) / (now.sum() + then.sum())
    common = expected >= 5
    table = np.array([[*part[common], part[~common].sum()] for part in (now, then)])
    table = table[:, table.sum(axis=0) > 0]
    return float(chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0
