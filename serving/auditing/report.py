"""The report of an audit: its figures, and the files that they are written to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from defended._io import atomic_write_bytes, canonical_json
from defended.serving.artefacts.manifest import Manifest
from defended.serving.auditing.advice import Advice
from defended.serving.auditing.baseline import Comparison
from defended.serving.auditing.black_box import BlackBoxFindings
from defended.serving.auditing.conditions import Decision, Status
from defended.serving.auditing.draws import Draws, cost_ratio
from defended.serving.auditing.junit import to_junit
from defended.serving.auditing.profile import Profile
from defended.serving.auditing.record import AuditRecord
from defended.serving.auditing.replay import AttackFindings, DegradedPair
from defended.serving.auditing.strata import Stratum
from defended.serving.auditing.targets import Subject
from defended.statistics.intervals import Rate

__all__ = ["AttackFindings", "AuditReport", "Curves", "DegradedPair"]

_RATES = (
    "clean_accuracy", "rejection_rate", "accuracy_on_answered", "vra", "vra_2eps", "always_answered", "fpr_upper",
    "fpr_upper_correct",
)  # fmt: skip
_ATTACK_RATES = ("fpr_lower", "fpr_lower_correct", "vra_under_attack", "utility_reduction")


@dataclass(frozen=True)
class Curves:
    """VRA and the FPR's upper bound, had the model been deployed at each radius; None where nothing is answered."""

    radius: tuple[float, ...]
    vra: tuple[float, ...]
    fpr_upper: tuple[float | None, ...]


@dataclass(frozen=True)
class AuditReport:
    """The figures of an audit; rates are numbers with a Clopper–Pearson `interval`, `count` and `total` each.

    With r the certified radius of an input and epsilon the radius defended. What the target does not tell is None: an
    endpoint without the signature `audit` gives no radii, a request log no labels.

    Attributes:
        subject: what was audited.
        data: the data's `name`, number of `points`, and `sha256` of its inputs and labels.
        created: when, in UTC.
        confidence: of the intervals.
        rejection_rate: inputs rejected although nobody perturbed them.
        clean_accuracy: inputs whose largest score is the right class, rejected or not.
        accuracy_on_answered: right answers among the answers.
        vra: inputs answered rightly, certified at epsilon.
        vra_2eps: the same at 2 epsilon, so that no perturbation within epsilon can make them wrong or rejected.
        always_answered: inputs with r > 2 epsilon, right or wrong.
        fpr_upper: answered inputs that are not always answered: at most so many answers can be forced into rejections.
        fpr_upper_correct: the same among the rightly answered inputs, as the paper's code counts.
        availability: quantiles of the availability radius max(r - epsilon, 0), by probability.
        curves: VRA and FPR bound over the radius.
        strata: rejection by kind of stratum (`class`, `confidence`, of a log also `version` and `time`).
        advice: what other radii would give.
        draws: the noise draws that an input took; None of a model that draws none.
        attack: what replayed inputs did.
        black_box: what the attack on the endpoint did.
        decisions: conditions, decided.
        comparison: with an earlier audit.
        profile: what a monitor compares later traffic with.
        unknown: what this audit cannot tell, in sentences.
        assumptions: what its figures rest on beside the certificate, in sentences.
        queries: inputs sent.
    """

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
    strata: Mapping[str, tuple[Stratum, ...]] = field(default_factory=dict, repr=False)
    advice: Advice | None = field(default=None, repr=False)
    draws: Draws | None = None
    attack: AttackFindings | None = None
    black_box: BlackBoxFindings | None = None
    decisions: tuple[Decision, ...] = ()
    comparison: Comparison | None = field(default=None, repr=False)
    profile: Profile | None = field(default=None, repr=False)
    unknown: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
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
    def alarms(self) -> tuple[str, ...]:
        """What must not happen and did, in sentences; empty for a sound artefact."""
        if self.attack is None:
            return ()
        sampling, broken = self.subject.sampling, self.attack.broken_answers
        total = self.attack.fpr_lower.total
        if sampling is not None and _explained(broken, total, 2 * float(sampling["alpha"])):
            broken = 0
        found = (
            (broken, "got another answer inside their certified radius"),
            (self.attack.broken_availability, "were rejected inside their availability radius"),
        )
        return tuple(f"The certificate is broken: {count} attacked inputs {what}." for count, what in found if count)

    @property
    def verdict(self) -> Status:
        """FAIL with an alarm or a failed condition, else WARN with a warning, else PASS."""
        statuses = {decision.status for decision in self.decisions}
        if self.alarms or "FAIL" in statuses:
            return "FAIL"
        return "WARN" if "WARN" in statuses else "PASS"

    def rates(self) -> dict[str, Rate | None]:
        """Return every rate by its name, None for what this audit does not tell."""
        rates: dict[str, Rate | None] = {name: getattr(self, name) for name in _RATES}
        rates |= {name: getattr(self.attack, name, None) for name in _ATTACK_RATES}
        return rates | {"black_box_fpr": None if self.black_box is None else self.black_box.fpr_lower}

    def record(self) -> AuditRecord:
        """Return the report as it is written to JSON, checked against the published schema's models."""
        subject, manifest = self.subject, self.subject.manifest
        attack = self.attack
        return AuditRecord.model_validate(
            {
                "verdict": self.verdict,
                "subject": {
                    **{name: getattr(subject, name) for name in _SUBJECT},
                    "signatures": list(subject.signatures),
                    "digest": manifest and manifest.digest,
                    "defence": manifest and manifest.defence,
                    "certificate_method": manifest and manifest.certificate_method,
                    "certificate_assumptions": list(manifest.certificate_assumptions) if manifest else [],
                    "sampling": None if subject.sampling is None else dict(subject.sampling),
                },
                "data": dict(self.data),
                "created": self.created,
                "confidence": self.confidence,
                "rates": _plain(self.rates()),
                "conditions": _plain(self.decisions),
                "alarms": list(self.alarms),
                "unknown": list(self.unknown),
                "assumptions": list(self.assumptions),
                "strata": _plain(self.strata),
                "availability_radius": None if self.availability is None else _by_name(self.availability),
                "curves": self.curves and asdict(self.curves),
                "advice": _plain(self.advice),
                "cost": None
                if self.draws is None
                else {
                    "clean": _of_draws(self.draws),
                    "attacked": _of_draws(attack.draws) if attack else None,
                    "ratio": self.draws_ratio,
                },
                "attack": attack
                and {
                    "name": attack.name,
                    "attacked": attack.attacked,
                    "discarded": attack.discarded,
                    "broken_answers": attack.broken_answers,
                    "broken_availability": attack.broken_availability,
                },
                "black_box": self.black_box
                and {name: _plain(value) for name, value in vars(self.black_box).items() if name != "pairs"},
                "comparison": _plain(self.comparison),
                "profile": _plain(self.profile),
                "queries": self.queries,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dicts, lists, strings and finite numbers."""
        return self.record().model_dump(mode="json")

    def to_json(self) -> str:
        """Return `to_dict` as canonical JSON: sorted keys, no NaN, one spelling for one report."""
        return canonical_json(self.to_dict())

    def to_junit(self) -> str:
        """Return the conditions as JUnit XML."""
        return to_junit(self)

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        from defended.serving.auditing.report_page import render

        return render(self)

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the report into a directory, each file whole or not at all; files of an earlier report are replaced.

        Returns:
            The paths, by name: `audit.json`, `report.html`, `junit.xml`; `radius_curves.png` where there are radii, and
            `degraded_pairs.png` where an attack found any.
        """
        from defended.figure_style import to_png
        from defended.serving.auditing.pictures import draw_degraded_pairs, draw_radius_curves

        folder = Path(directory)
        pictures = {"radius_curves.png": draw_radius_curves(self), "degraded_pairs.png": draw_degraded_pairs(self)}
        files = {name: to_png(figure) for name, figure in pictures.items() if figure is not None}
        for name in set(pictures) - set(files):
            (folder / name).unlink(missing_ok=True)
        files["report.html"] = self.to_html().encode()
        files["junit.xml"] = self.to_junit().encode()
        files["audit.json"] = self.to_json().encode()
        return {name: atomic_write_bytes(folder / name, content) for name, content in files.items()}


_SUBJECT = ("kind", "location", "name", "version", "norm", "epsilon", "epsilon_from", "num_classes")


def _plain(value: Any) -> Any:
    """Dataclasses, rates and tuples as dicts and lists, to any depth."""
    if isinstance(value, Rate):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _of_draws(draws: Draws | None) -> dict[str, Any] | None:
    if draws is None:
        return None
    return {"quantiles": _by_name(draws.quantiles), "mean": draws.mean, "at_the_cap": draws.at_the_cap}


def _by_name(quantiles: Mapping[float, Any]) -> dict[str, Any]:
    return {f"{probability:g}": value for probability, value in quantiles.items()}


def _explained(count: int, total: int, probability: float) -> bool:
    """Whether `count` of `total` events of at most this probability each are no surprise, at one in a million."""
    from scipy.stats import binom

    return bool(binom.sf(count - 1, total, min(probability, 1.0)) >= 1e-6)
