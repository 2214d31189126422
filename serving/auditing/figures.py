"""The figures of an audit, from parts that each know their own: clean answers, a replayed attack, one from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from defended._io import canonical_json
from defended.serving.artefacts.manifest import Manifest
from defended.serving.auditing.baseline import BaselineComparison, compare_with
from defended.serving.auditing.black_box import BlackBoxFindings
from defended.serving.auditing.clean import RATES, CleanFigures
from defended.serving.auditing.conditions import Condition, Verdict, decide, suggest
from defended.serving.auditing.contradictions import NAMES
from defended.serving.auditing.record import AuditRecord, DecisionRecord, SubjectRecord
from defended.serving.auditing.replay import RATES as ATTACK_RATES
from defended.serving.auditing.replay import AttackFindings, DegradedPair
from defended.serving.auditing.sampling_cost import cost_ratio
from defended.serving.auditing.strata import worst_rejection
from defended.statistics.intervals import Rate


@dataclass(frozen=True)
class AuditFigures(CleanFigures):
    """The figures of an audit; `AuditReport` says what each attribute is."""

    attack: AttackFindings | None = None
    black_box: BlackBoxFindings | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict, repr=False)
    baseline: AuditRecord | None = field(default=None, repr=False)
    contradictions: Mapping[str, int] = field(default_factory=dict)
    queries: int = 0

    @property
    def manifest(self) -> Manifest | None:
        """The artefact's manifest, where it was read."""
        return self.subject.manifest

    @property
    def fpr_lower(self) -> Rate | None:
        """The false positive rate that replayed inputs proved, None without them."""
        return None if self.attack is None else self.attack.fpr_lower

    @property
    def best_fpr_lower(self) -> Rate | None:
        """The larger of what replayed inputs and the attack on the endpoint proved, None without either."""
        proven = [found.fpr_lower for found in (self.attack, self.black_box) if found is not None]
        return max(proven) if proven else None

    @property
    def vra_under_attack(self) -> Rate | None:
        """VRA on attacked inputs, None without an attack or labels."""
        return None if self.attack is None else self.attack.vra_under_attack

    @property
    def draws_ratio(self) -> float | None:
        """Mean draws of attacked inputs relative to clean ones."""
        return None if self.attack is None else cost_ratio(self.draws, self.attack.draws)

    @property
    def pairs(self) -> tuple[DegradedPair, ...]:
        """Degraded inputs to show: the replayed attack's, or else those of the attack on the endpoint."""
        replayed = self.attack.pairs if self.attack is not None else ()
        return replayed or (self.black_box.pairs if self.black_box is not None else ())

    @property
    def broken(self) -> tuple[str, ...]:
        """What breaks the certificate, in sentences; empty for a sound artefact."""
        if self.attack is None:
            return ()
        broken, total = self.attack.broken_answers, self.attack.fpr_lower.total
        if self.subject.sampling is not None and _explained(broken, total, 2 * self.subject.alpha):
            broken = 0
        found = (
            (broken, "got another answer inside their certified radius"),
            (self.attack.broken_availability, "were rejected inside their availability radius"),
        )
        return tuple(f"The certificate is broken: {count} attacked inputs {what}." for count, what in found if count)

    @property
    def alarms(self) -> tuple[str, ...]:
        """What must not happen and did, in sentences: a broken certificate, and answers that contradict themselves."""
        contradicting = (
            f"Answers contradict themselves ({name}): {count} of {max(self.queries, count):,} {NAMES[name]}."
            for name, count in self.contradictions.items()
        )
        return (*self.broken, *contradicting)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the other figures doubtful, in sentences: inputs in other units, and that nothing was answered."""
        found = [] if self.units is None else [self.units]
        if self.rejection_rate.total and self.rejection_rate.count == self.rejection_rate.total:
            why = "" if self.units else " Is epsilon too large for this model?"
            if self.subject.training_range is None and self.subject.kind != "log":
                why = " Are they in the units of the training? Its range of inputs is not recorded."
            found.append(f"Everything was rejected, all {self.rejection_rate.total:,} inputs: nothing was served.{why}")
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        """FAIL with an alarm or a failed condition, else NOT JUDGED without conditions, else WARN with a warning."""
        statuses = {decision.status for decision in self.decisions}
        if self.alarms or "FAIL" in statuses:
            return "FAIL"
        if not statuses:
            return "NOT JUDGED"
        return "WARN" if self.warnings or "WARN" in statuses else "PASS"

    @property
    def suggestion(self) -> str:
        """Conditions to begin with, as TOML: limits that the figures keep now."""
        return suggest(self.rates())

    def rates(self) -> dict[str, Rate | None]:
        """Return every rate by its name, None for what this audit does not give."""
        rates: dict[str, Rate | None] = {name: getattr(self, name) for name in RATES}
        rates |= {name: getattr(self.attack, name, None) for name in ATTACK_RATES}
        return rates | {"black_box_fpr": None if self.black_box is None else self.black_box.fpr_lower}

    @cached_property
    def decisions(self) -> tuple[DecisionRecord, ...]:
        """The conditions, decided."""
        worst = {
            f"worst_{kind}_rejection_rate": worst_rejection(self.strata.get(kind, ()), self.confidence)
            for kind in ("class", "confidence")
        }
        numbers = {
            "epsilon": self.subject.epsilon,
            "draws_ratio": self.draws_ratio,
            "draws_mean": None if self.draws is None else self.draws.mean,
        }
        return decide(self.conditions, {**self.rates(), **worst, **numbers})

    @cached_property
    def comparison(self) -> BaselineComparison | None:
        """What has changed since the baseline; None without one."""
        return None if self.baseline is None else compare_with(self.baseline, self.rates(), self.confidence)

    def record(self) -> AuditRecord:
        """Return the report as it is written to JSON, checked against the published schema's models."""
        subject = {
            name: getattr(self.subject, name, getattr(self.manifest, name, None)) for name in SubjectRecord.model_fields
        }
        subject["certificate_assumptions"] = subject["certificate_assumptions"] or []
        cost = {"clean": self.draws, "attacked": self.attack and self.attack.draws, "ratio": self.draws_ratio}
        renamed = {
            "subject": subject,
            "rates": self.rates(),
            "conditions": self.decisions,
            "availability_radius": self.availability,
            "cost": None if self.draws is None else cost,
        }
        same = AuditRecord.model_fields.keys() - renamed.keys() - {"format", "format_version"}
        return AuditRecord.model_validate(renamed | {name: getattr(self, name) for name in same}, from_attributes=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dicts, lists, strings and finite numbers."""
        return self.record().model_dump(mode="json")

    def to_json(self) -> str:
        """Return `to_dict` as canonical JSON: sorted keys, no NaN, one spelling for one report."""
        return canonical_json(self.to_dict())


def _explained(count: int, total: int, probability: float) -> bool:
    """Return whether `count` of `total` events, each at most this probable, are no surprise, at one in a million."""
    from scipy.stats import binom

    return bool(binom.sf(count - 1, total, min(probability, 1.0)) >= 1e-6)
