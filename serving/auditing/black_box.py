"""An attack that asks the endpoint itself, and nothing else, within a budget."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from defended.arguments import whole_number
from defended.attacks.black_box.decision_attack import DecisionAttack
from defended.attacks.black_box.score_descent import Asked, ScoreDescent
from defended.attacks.core.balls import distances
from defended.serving.auditing.answers import DEFAULT, Answers
from defended.serving.auditing.replay import DegradedPair, smallest
from defended.serving.auditing.strata import margins
from defended.serving.auditing.subject import require_radius
from defended.serving.auditing.targets import Target
from defended.statistics.intervals import Rate


@dataclass(frozen=True)
class BlackBox:
    """What an attack on the endpoint may spend.

    Attributes:
        budget: queries in all, a query being one input that the endpoint judges.
        queries: queries for each input, at most.
        clip: the box `(low, high)` that all queries keep to, or None.
        seed: seed of all random numbers.
    """

    budget: int = 50_000
    queries: int = 500
    clip: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("budget", "queries"):
            whole_number(name, getattr(self, name), 1, floats=True)


@dataclass(frozen=True)
class BlackBoxFindings:
    """What the attack on the endpoint did.

    Attributes:
        name: the attack and its settings.
        attacked: answered inputs that it spent queries on, those with the smallest margins first.
        degraded: those of them that it forced into a rejection, each seen rejected by the endpoint.
        queries: queries spent.
        budget: queries that might have been spent.
        spontaneous: those of the attacked inputs that were rejected when asked again as they are; None where verdicts
            are not drawn at random.
        fpr_lower: degraded inputs among all answered ones. Inputs that the budget did not reach count as not degraded,
            so this and the lower end of its interval are bounds from below; the upper end bounds nothing.
        pairs: some of the degraded inputs, the smallest perturbations first.
    """

    name: str
    attacked: int
    degraded: int
    queries: int
    budget: int
    spontaneous: int | None
    fpr_lower: Rate
    pairs: tuple[DegradedPair, ...] = field(repr=False)


def attack_endpoint(
    target: Target, settings: BlackBox, x: np.ndarray, clean: Answers, confidence: float, pairs: int
) -> BlackBoxFindings:
    """Force answered inputs into rejections by `serving_default` alone: by scores where it gives them, else by labels.

    Args:
        target: what is audited.
        settings: the budget.
        x: all inputs.
        clean: the target's answers to `x`.
        confidence: confidence level of the interval.
        pairs: keep at most this many for pictures.

    Raises:
        ValueError: the target's epsilon or norm is not known.
    """
    subject = target.subject
    radius, norm = require_radius(subject, "an attack on the endpoint")
    rows = np.flatnonzero(~clean.rejected)
    if clean.scores is not None:
        rows = rows[np.argsort(margins(clean.scores[rows]), kind="stable")]
    if not rows.size:
        nothing = Rate(0, 0, confidence)
        return BlackBoxFindings("none: nothing was answered", 0, 0, 0, settings.budget, None, nothing, ())
    # For random verdicts, a part of the budget goes into what chance does without any attack.
    reserve = 0 if subject.sampling is None else settings.budget // 10
    budget, sent = settings.budget - reserve, target.points

    if clean.scores is not None:
        scores = ScoreDescent(
            queries=settings.queries, clip=settings.clip, seed=settings.seed,
            # Shares of votes are noisy: longer differences stand out from the noise.
            reach=0.5 if subject.sampling is None else 1.0,
        )  # fmt: skip

        def query(points: np.ndarray) -> Asked:
            answers = target.ask(points, DEFAULT)
            assert answers.scores is not None  # noqa: S101  (it gave them before)
            return Asked(answers.scores, answers.rejected)

        result = scores.run(query, x[rows], radius=radius, norm=norm, budget=budget)
        inputs, found, used, name = result.inputs, result.found, result.queries, repr(scores)
    else:
        count = max(1, budget // settings.queries)
        rows = np.random.default_rng(settings.seed).permutation(rows)[:count]
        labels = DecisionAttack(
            queries=min(settings.queries, max(1, budget // len(rows))), clip=settings.clip, seed=settings.seed
        )

        def judge(points: np.ndarray) -> np.ndarray:
            return target.ask(points, DEFAULT).label

        nearest = labels.run(judge, x[rows], radius=radius, norm=norm, index=rows)
        found, name = nearest.found & (nearest.distance <= radius), repr(labels)
        inputs, used = nearest.inputs, nearest.queries
    spontaneous = None
    if reserve:
        # What chance does to the same inputs, each asked once more as it is.
        left = settings.budget - (target.points - sent)
        spontaneous = int(target.ask(x[rows[used > 0]][:left], DEFAULT).rejected.sum())
    size = distances(x[rows], inputs, norm)
    return BlackBoxFindings(
        name=name,
        attacked=int((used > 0).sum()),
        degraded=int(found.sum()),
        queries=target.points - sent,
        budget=settings.budget,
        spontaneous=spontaneous,
        fpr_lower=Rate(int(found.sum()), int((~clean.rejected).sum()), confidence),
        pairs=tuple(
            DegradedPair(int(rows[i]), int(clean.label[rows[i]]), x[rows[i]], inputs[i], float(size[i]))
            for i in smallest(found, size, pairs)
        ),
    )
