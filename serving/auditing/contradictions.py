"""Answers that contradict each other: what a rejecting classifier never says, by name."""

from __future__ import annotations

from collections import Counter

import numpy as np

from defended.serving.auditing.answers import Answers
from defended.serving.auditing.subject import ROUNDING, Subject
from defended.statistics.rates import exceeds

NAMES = {
    "answer-without-certificate": "are answers whose certified radius is not above epsilon",
    "rejection-with-certificate": "are rejections whose certified radius is above epsilon",
    "availability-above-certificate": "have an availability radius above what the certified one leaves beyond epsilon",
    "label-is-not-largest-score": "are answered with a class whose score is not the largest",
    "answer-with-broken-scores": "are answered beside scores that are not finite",
    "label-out-of-range": "have a label that is neither a class nor -1",
    "reason-against-verdict": "give a reason for rejecting beside an answer, or none beside a rejection",
}
"""What is counted, as the end of a sentence. `answers.checked` refuses by name what cannot be counted at all, such as
`rejected` beside a label or radii that are NaN."""


def contradictions(answers: Answers, subject: Subject) -> Counter[str]:
    """Count answers that contradict themselves, by the names of `NAMES`; what is not reported contradicts nothing."""
    label, answered, scores = answers.label, ~answers.rejected, answers.scores
    radius, availability, epsilon = answers.reach, answers.availability, subject.epsilon
    classes = np.inf if subject.num_classes is None else subject.num_classes
    found: dict[str, np.ndarray] = {"label-out-of-range": (label < -1) | (label >= classes)}
    settled = settled_reach(answers, subject)
    if settled is not None and epsilon is not None:
        above = exceeds(settled, epsilon)
        found["answer-without-certificate"] = answered & ~above
        found["rejection-with-certificate"] = ~answered & above
    if radius is not None and availability is not None:
        left = radius if epsilon is None else np.maximum(radius - epsilon, 0)
        found["availability-above-certificate"] = availability > left + ROUNDING * np.maximum(radius, epsilon or 0)
    if scores is not None:
        finite = np.isfinite(scores).all(axis=1)
        own = np.take_along_axis(scores, np.clip(label, 0, scores.shape[1] - 1)[:, None], axis=1)[:, 0]
        found["label-is-not-largest-score"] = answered & finite & (own < np.where(finite, scores.max(axis=1), 0))
        found["answer-with-broken-scores"] = answered & ~finite
    if answers.reason is not None:
        found["reason-against-verdict"] = answered != (answers.reason == 0)
    return Counter({name: int(which.sum()) for name, which in found.items() if which.any()})


def settled_reach(answers: Answers, subject: Subject) -> np.ndarray | None:
    """Return the answers' `reach`, `[n]` float32; what a rounding of epsilon explains lies on the verdict's side of it.

    None where the radii or epsilon are not known.

    An epsilon of a manifest, a model or answers is exact, and nothing is moved. One that was typed, or read off radii,
    is known up to `ROUNDING`: the verdict decides what lies that close to it. What lies farther off remains a
    contradiction.
    """
    epsilon = subject.epsilon
    if answers.reach is None or epsilon is None:
        return None
    radius = answers.reach.astype(np.float32)
    if subject.epsilon_from in ("manifest", "model", "answers"):
        return radius
    # A radius of exactly the epsilon that was given is not one of its roundings.
    known = exceeds(radius, epsilon * (1 - ROUNDING)) & ~exceeds(radius, epsilon * (1 + ROUNDING))
    if subject.epsilon_from == "given":
        known &= radius != np.float32(epsilon)
    above = np.nextafter(np.float32(epsilon), np.float32(np.inf))
    moved = np.where(answers.rejected, np.minimum(radius, np.float32(epsilon)), np.maximum(radius, above))
    return np.where(known, moved, radius)


def settled_availability(answers: Answers, subject: Subject) -> np.ndarray | None:
    """Return the distance within which each input stays answered, `[n]` float32.

    This is what the answers report; otherwise, as in real arithmetic, what `settled_reach` leaves beyond epsilon. None
    where the radii or epsilon are not known.
    """
    reach = settled_reach(answers, subject)
    if reach is None or subject.epsilon is None:
        return None
    if answers.availability is not None:
        return answers.availability.astype(np.float32)
    return np.where(answers.rejected, 0, np.maximum(reach - np.float32(subject.epsilon), 0))
