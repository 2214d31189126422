"""What was answered to clean inputs, counted: everything of a report that no attack is needed for."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from defended.serving.auditing import strata
from defended.serving.auditing.advice import advise
from defended.serving.auditing.draws import QUANTILES, draws
from defended.serving.auditing.profile import profile
from defended.serving.auditing.replay import cap_of
from defended.serving.auditing.report import AuditReport, Curves
from defended.serving.auditing.targets import Answers, Subject
from defended.serving.monitoring.evidence import near_answered
from defended.statistics.intervals import Rate

# Grid of the curves: multiples of epsilon / 40, so that epsilon and 2 epsilon are on it exactly.
_STEPS_PER_EPSILON = 40


def clean_figures(
    subject: Subject,
    answers: Answers,
    y: np.ndarray | None,
    x: np.ndarray | None,
    confidence: float,
    data: Mapping[str, Any],
) -> AuditReport:
    """The report of what was answered to clean inputs, attacks left out."""
    n = len(answers.label)
    answered, predicted = ~answers.rejected, answers.predicted
    right = None if y is None else answered & (answers.label == y)
    correct = None if y is None or predicted is None else predicted == y

    def rate(chosen: np.ndarray | None, among: np.ndarray | None = None) -> Rate | None:
        if chosen is None:
            return None
        return Rate(int(chosen.sum()), n if among is None else int(among.sum()), confidence)

    kinds: dict[str, tuple[strata.Stratum, ...]] = {}
    classes = y if y is not None else predicted
    if classes is not None:
        kinds["class"] = strata.by_class(answers.rejected, classes, confidence, right)
    if answers.scores is not None:
        kinds["confidence"] = strata.by_confidence(
            answers.rejected, strata.confidences(answers.scores), confidence, right
        )
    unknown = []
    if y is None:
        unknown.append("Whether answers are right: the inputs have no labels.")
    if answers.scores is None:
        unknown.append("How rejection depends on confidence: no scores are told.")
    report = AuditReport(
        subject=subject,
        data={"points": n, **data},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        confidence=confidence,
        rejection_rate=Rate(int(answers.rejected.sum()), n, confidence),
        clean_accuracy=rate(correct),
        accuracy_on_answered=rate(right, answered),
        vra=rate(right),
        strata=kinds,
        draws=draws(answers.samples, cap_of(subject.sampling)),
        profile=None if answers.scores is None else profile(answers.scores, answers.rejected, answers.reason),
        unknown=tuple(unknown),
        assumptions=(
            "Intervals are Clopper–Pearson, for inputs drawn independently from the distribution they speak of.",
        ),
    )
    radius, epsilon = on_its_side(answers, subject), subject.epsilon
    if report.profile is not None and x is not None and epsilon is not None and subject.norm is not None:
        near = near_answered(x[answers.rejected], x[answered], epsilon, subject.norm)
        report = dataclasses.replace(report, profile=dataclasses.replace(report.profile, rejected_near_answered=near))
    if radius is None or epsilon is None:
        why = "nobody tells epsilon" if radius is not None or answers.radius is not None else "no radii are told"
        return dataclasses.replace(
            report,
            unknown=(
                f"How many answers an attacker can force into rejections at most: {why}, so the upper end of the false "
                "positive rate is 100 %, and VRA at 2ε and availability are not known. The signature “audit”, the "
                "artefact or the Keras model would tell.",
                *report.unknown,
            ),
        )
    twice = radius > 2 * epsilon
    return dataclasses.replace(
        report,
        vra_2eps=None if right is None else rate(right & twice),
        always_answered=rate(twice),
        fpr_upper=rate(answered & ~twice, answered),
        fpr_upper_correct=None if right is None else rate(right & ~twice, right),
        availability={
            p: float(np.quantile(np.maximum(radius - epsilon, 0), p, method="inverted_cdf")) for p in QUANTILES
        },
        curves=None if correct is None else _curves(radius, correct, epsilon),
        advice=advise(radius, correct, epsilon, confidence),
    )


def on_its_side(answers: Answers, subject: Subject) -> np.ndarray | None:
    """The radii, one within a rounding of epsilon moved to the verdict's side of it: the verdict decides at epsilon."""
    epsilon = subject.epsilon
    if answers.radius is None or epsilon is None:
        return None
    return np.where(
        answers.rejected,
        np.minimum(answers.radius, epsilon),
        np.maximum(answers.radius, np.nextafter(epsilon, np.inf)),
    )


def _curves(radius: np.ndarray, correct: np.ndarray, epsilon: float) -> Curves:
    # To where the bound's curve has told its story: 3 epsilon, or as far as one in fifty is still certified, at most 8.
    reach = min(max(3.0, float(np.quantile(radius, 0.98, method="inverted_cdf")) / epsilon), 8.0)
    grid = epsilon * (np.arange(math.ceil(reach * _STEPS_PER_EPSILON) + 1) / _STEPS_PER_EPSILON)
    ordered, ordered_correct = np.sort(radius), np.sort(radius[correct])
    above = len(ordered) - np.searchsorted(ordered, grid, side="right")
    above_twice = len(ordered) - np.searchsorted(ordered, 2 * grid, side="right")
    right = len(ordered_correct) - np.searchsorted(ordered_correct, grid, side="right")
    return Curves(
        radius=tuple(grid.tolist()),
        vra=tuple((right / len(radius)).tolist()),
        fpr_upper=tuple(float((one - two) / one) if one else None for one, two in zip(above, above_twice, strict=True)),
    )


def fingerprint(x: np.ndarray, y: np.ndarray | None) -> str:
    """The SHA-256 of inputs, and of labels where there are any."""
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes())
    if y is not None:
        digest.update(np.ascontiguousarray(y, dtype="<i8").tobytes())
    return digest.hexdigest()
