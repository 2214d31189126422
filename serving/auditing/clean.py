"""Counts of what was answered to clean inputs: everything in a report that needs no attack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from defended.provenance import data_digest, possible_digests
from defended.serving.auditing import strata
from defended.serving.auditing.advice import Advice, advise
from defended.serving.auditing.answers import Answers
from defended.serving.auditing.contradictions import settled_availability, settled_reach
from defended.serving.auditing.profile import near_answered, profile
from defended.serving.auditing.record import ProfileRecord
from defended.serving.auditing.sampling_cost import Draws, draws, quantiles
from defended.serving.auditing.subject import Subject
from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts, exceeds, fpr_upper_curve, vra_curve

RATES = (
    "clean_accuracy", "rejection_rate", "accuracy_on_answered", "vra", "vra_2eps", "always_answered", "fpr_upper",
    "fpr_upper_correct",
)  # fmt: skip

fingerprint = data_digest  # its earlier name

STOPPED_EARLY = (
    "VRA at 2ε, availability, and what other radii would give: sampling in mode “sequential” stops as soon as ε is "
    "decided, and proves no radius beyond that. So nearly every answer counts as one that might be forced into a "
    "rejection, and the upper end of the false positive rate is close to 100 %. Audit the same network in mode "
    '“fixed”, SmoothedNet(model.network, ..., mode="fixed"), for these figures.'
)

# Grid of the curves: multiples of epsilon / 40, so that epsilon and 2 epsilon are on it exactly.
_STEPS_PER_EPSILON = 40


@dataclass(frozen=True)
class Curves:
    """VRA and the FPR's upper bound, had the model been deployed at each radius; None where nothing is answered."""

    radius: tuple[float, ...]
    vra: tuple[float, ...]
    fpr_upper: tuple[float | None, ...]


@dataclass(frozen=True)
class CleanFigures:
    """What an audit found out without any attack; `AuditReport` says what each attribute is."""

    subject: Subject
    data: Mapping[str, Any]
    created: str
    confidence: float
    rejection_rate: Rate
    clean_accuracy: Rate | None = None
    accuracy_on_answered: Rate | None = None
    vra: Rate | None = None
    vra_2eps: Rate | None = None
    always_answered: Rate | None = None
    fpr_upper: Rate | None = None
    fpr_upper_correct: Rate | None = None
    availability: Mapping[float, float] | None = None
    curves: Curves | None = field(default=None, repr=False)
    strata: Mapping[str, tuple[strata.Stratum, ...]] = field(default_factory=dict, repr=False)
    advice: Advice | None = field(default=None, repr=False)
    draws: Draws | None = None
    profile: ProfileRecord | None = field(default=None, repr=False)
    units: str | None = None
    unknown: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def facts_of(subject: Subject, answers: Answers, y: np.ndarray | None) -> InputFacts:
    """Return what is known of each clean input; an answer counts as certified only where its radius says so."""
    answered, predicted, epsilon = ~answers.rejected, answers.predicted, subject.epsilon
    certified, safe, twice = answered, None, None
    radius, available = settled_reach(answers, subject), settled_availability(answers, subject)
    if radius is not None and available is not None and epsilon is not None:
        certified, safe = answered & exceeds(radius, epsilon), answered & exceeds(available, epsilon)
        twice = None if subject.stops_early else answered & exceeds(radius, 2 * epsilon)
    return InputFacts(
        answers.rejected,
        correct=None if y is None or predicted is None else predicted == y,
        right=None if y is None else answered & (answers.label == y),
        certified=certified,
        safe=safe,
        certified_twice=twice,
    )


def clean_figures(
    subject: Subject,
    answers: Answers,
    facts: InputFacts,
    x: np.ndarray | None,
    y: np.ndarray | None,
    confidence: float,
    data_name: str,
) -> CleanFigures:
    """Count what was answered to clean inputs, attacks left out.

    Args:
        subject: what answered.
        answers: the answers to the inputs.
        facts: what is known of them, from `facts_of`.
        x: the inputs; None for a log.
        y: their labels; None where they are not known.
        confidence: confidence level of the intervals.
        data_name: what the report calls the data.
    """
    alpha, epsilon, scores, predicted = subject.alpha, subject.epsilon, answers.scores, answers.predicted
    kinds: dict[str, tuple[strata.Stratum, ...]] = {}
    classes = y if y is not None else predicted
    if classes is not None:
        names = None if subject.manifest is None else subject.manifest.labels
        kinds["class"] = strata.by_class(facts, classes, confidence, alpha, names)
    if scores is not None:
        kinds["confidence"] = strata.by_confidence(facts, strata.confidences(scores), confidence, alpha)
    radius, available = settled_reach(answers, subject), settled_availability(answers, subject)
    data = _data(subject, x, y, len(answers.label), data_name)
    return CleanFigures(
        subject=subject,
        data=data,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        confidence=confidence,
        **facts.rates(RATES, confidence, alpha),  # type: ignore[arg-type]  # the rejection rate is always known
        availability=None if available is None or subject.stops_early else quantiles(available),
        curves=None
        if radius is None or facts.correct is None or subject.stops_early
        else _curves(radius, facts.correct, epsilon),
        strata=kinds,
        advice=None
        if radius is None or epsilon is None or subject.stops_early
        else advise(radius, facts.correct, epsilon, confidence, alpha, available=available),
        draws=draws(answers.samples, subject.cap),
        profile=None if scores is None else _profile(subject, answers, scores, x),
        units=_units(subject, x),
        unknown=tuple(_unknown(subject, answers, y, data["training_data"])),
        assumptions=tuple(_assumptions(subject)),
    )


def _data(subject: Subject, x: np.ndarray | None, y: np.ndarray | None, points: int, data_name: str) -> dict[str, Any]:
    """Return the name, number and digest of the data, and whether they are those that the model was trained on."""
    if x is None:
        return {"name": data_name, "points": points, "sha256": None, "training_data": None, "range": None}
    recorded = [] if subject.manifest is None else [record.sha256 for record in subject.manifest.training_data]
    digests = possible_digests(x, y)
    own = next(digests)
    known = own in recorded or any(other in recorded for other in digests) if recorded else None
    ends = (float(x.min()), float(x.max()))
    return {"name": data_name, "points": points, "sha256": own, "training_data": known, "range": ends}


def _units(subject: Subject, x: np.ndarray | None) -> str | None:
    """Return in a sentence that the inputs are in other units than the training's, None where nothing shows it."""
    if x is None or subject.training_range is None or subject.epsilon is None:
        return None
    return subject.training_range.complaint(x, subject.epsilon, subject.norm)


def _unknown(subject: Subject, answers: Answers, y: np.ndarray | None, trained_on: bool | None) -> list[str]:
    """Return what clean answers leave open, in sentences."""
    unknown = []
    if subject.stops_early and answers.reach is not None:
        unknown.append(STOPPED_EARLY)
    if answers.reach is None or subject.epsilon is None:
        why = "no radii are reported" if answers.reach is None else "epsilon is not known"
        unknown.append(
            f"How many answers an attacker can force into rejections at most: {why}, so the upper end of the false "
            "positive rate is 100 %, and VRA at 2ε and availability are not known. The signature “audit”, the "
            "artefact or the Keras model would tell."
        )
    if y is None:
        unknown.append("Whether answers are right: the inputs have no labels.")
    if answers.scores is None:
        unknown.append("How rejection depends on confidence: no scores are reported.")
    if answers.samples is not None and subject.sampling is None:
        unknown.append(
            "How sure each certificate is: verdicts are drawn at random, and the probability (alpha) that one is "
            "wrong is not known, so no interval counts it. The manifest or the Keras model would tell."
        )
    if trained_on:
        unknown.append(
            "How the model does on inputs that it has not seen: these are its training data, by their SHA-256 in the "
            "manifest."
        )
    return unknown


def _assumptions(subject: Subject) -> list[str]:
    """Return what the intervals rest on, in sentences."""
    assumed = ["Intervals are Clopper–Pearson, for inputs drawn independently from the distribution they speak of."]
    if subject.sampling is not None:
        how = "each was asked alone" if subject.shares_noise else "in a batch too"
        assumed.append(
            f"Each input is judged under noise of its own ({how}), so that verdicts are independent draws. Where a "
            f"rate rests on certificates, its interval counts that each is wrong with probability {subject.alpha:g}."
        )
    return assumed


def _profile(subject: Subject, answers: Answers, scores: np.ndarray, x: np.ndarray | None) -> ProfileRecord:
    found = profile(scores, answers.rejected, answers.reason)
    if x is None or subject.epsilon is None or subject.norm is None:
        return found
    near = near_answered(x[answers.rejected], x[~answers.rejected], subject.epsilon, subject.norm)
    return found.model_copy(update={"rejected_near_answered": near})


def _curves(radius: np.ndarray, correct: np.ndarray, epsilon: Any) -> Curves:
    # To where the bound's curve has told its story: 3 epsilon, or as far as one in fifty is still certified, at most 8.
    reach = min(max(3.0, float(np.quantile(radius, 0.98, method="inverted_cdf")) / epsilon), 8.0)
    grid = epsilon * (np.arange(math.ceil(reach * _STEPS_PER_EPSILON) + 1) / _STEPS_PER_EPSILON)
    fpr = fpr_upper_curve(radius, grid)
    return Curves(
        radius=tuple(grid.tolist()),
        vra=tuple(vra_curve(radius, correct, grid).tolist()),
        fpr_upper=tuple(None if math.isnan(value) else value for value in fpr.tolist()),
    )
