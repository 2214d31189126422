"""The report of an audit: its figures, and the files that they are written to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from defended._io import atomic_write_bytes
from defended.attacks.intervals import Rate
from defended.serving.canonical import canonical_json
from defended.serving.manifest import Manifest

_RATES = (
    "clean_accuracy", "rejection_rate", "accuracy_on_answered", "vra", "vra_2eps", "always_answered", "fpr_upper",
    "fpr_upper_correct",
)  # fmt: skip
_ATTACK_RATES = ("fpr_lower", "fpr_lower_correct", "vra_under_attack", "utility_reduction")

# What of the manifest says which artefact was audited, and what it claims.
_IDENTITY = (
    "name", "version", "digest", "defence", "norm", "epsilon", "num_classes", "certificate_method",
    "certificate_assumptions",
)  # fmt: skip


@dataclass(frozen=True)
class Curves:
    """VRA and the FPR's upper bound, had the model been deployed at each radius; None where nothing is answered."""

    radius: tuple[float, ...]
    vra: tuple[float, ...]
    fpr_upper: tuple[float | None, ...]


@dataclass(frozen=True)
class DegradedPair:
    """An input that is answered, and one within epsilon of it that is rejected; `size` is the difference's norm."""

    index: int
    label: int
    original: np.ndarray
    perturbed: np.ndarray
    size: float


@dataclass(frozen=True)
class AttackFindings:
    """What an attack on the Keras model did to the artefact.

    Attributes:
        name: the attack and its settings.
        fpr_lower: degraded inputs among the answered ones.
        fpr_lower_correct: degraded inputs among the rightly answered ones.
        vra_under_attack: right answers to attacked inputs, among all inputs.
        utility_reduction: right answers that the attack forced into rejections, among all inputs.
        discarded: perturbations that were not finite or not in the ball, and so were not used.
        broken_answers: inputs that got another answer inside their certified radius: a broken certificate unless 0,
            or, of a model whose verdicts are drawn at random, unless chance explains so many.
        broken_availability: inputs rejected inside their availability radius: a broken certificate unless 0. Not
            counted (0) where verdicts are drawn at random: there the radius holds for the smoothed classifier, and the
            deployed check may miss it.
        pairs: some of the degraded inputs, the smallest perturbations first.
        draws: quantiles of the noise draws that an attacked input took, by probability; None of a model that draws
            none.
    """

    name: str
    fpr_lower: Rate
    fpr_lower_correct: Rate
    vra_under_attack: Rate
    utility_reduction: Rate
    discarded: int
    broken_answers: int
    broken_availability: int
    pairs: tuple[DegradedPair, ...] = field(repr=False)
    draws: Mapping[float, int] | None = None


@dataclass(frozen=True)
class AuditReport:
    """The figures of an audit; rates are numbers with a Clopper–Pearson `interval`, `count` and `total` each.

    With r the certified radius of an input and epsilon the radius defended:

    Attributes:
        manifest: the artefact's manifest.
        data: the data's `name`, number of `points`, and `sha256` of its inputs and labels.
        created: when, in UTC.
        confidence: of the intervals.
        clean_accuracy: inputs whose largest score is the right class, rejected or not.
        rejection_rate: inputs rejected although nobody perturbed them.
        accuracy_on_answered: right answers among the answers.
        vra: inputs answered rightly, certified at epsilon.
        vra_2eps: the same at 2 epsilon, so that no perturbation within epsilon can make them wrong or rejected.
        always_answered: inputs with r > 2 epsilon, right or wrong.
        fpr_upper: answered inputs that are not always answered: at most so many answers can be forced into rejections.
        fpr_upper_correct: the same among the rightly answered inputs, as the paper's code counts.
        availability: quantiles of the availability radius max(r - epsilon, 0), by probability.
        curves: VRA and FPR bound over the radius.
        draws: quantiles of the noise draws that an input took, by probability; None of a model that draws none.
        attack: what an attack found, where the Keras model was given.
    """

    manifest: Manifest
    data: Mapping[str, Any]
    created: str
    confidence: float
    clean_accuracy: Rate
    rejection_rate: Rate
    accuracy_on_answered: Rate
    vra: Rate
    vra_2eps: Rate
    always_answered: Rate
    fpr_upper: Rate
    fpr_upper_correct: Rate
    availability: Mapping[float, float]
    curves: Curves = field(repr=False)
    attack: AttackFindings | None = None
    draws: Mapping[float, int] | None = None

    @property
    def fpr_lower(self) -> Rate | None:
        """The false positive rate that the attack proved, None without an attack."""
        return None if self.attack is None else self.attack.fpr_lower

    @property
    def vra_under_attack(self) -> Rate | None:
        """VRA on attacked inputs, None without an attack."""
        return None if self.attack is None else self.attack.vra_under_attack

    @property
    def alarms(self) -> tuple[str, ...]:
        """What must not happen and did, in sentences; empty for a sound artefact."""
        if self.attack is None:
            return ()
        sampling, broken = self.manifest.sampling, self.attack.broken_answers
        if sampling is not None and _explained(broken, self.fpr_upper.total, 2 * sampling.alpha):
            broken = 0
        found = (
            (broken, "got another answer inside their certified radius"),
            (self.attack.broken_availability, "were rejected inside their availability radius"),
        )
        return tuple(f"The certificate is broken: {count} attacked inputs {what}." for count, what in found if count)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dicts, lists, strings and finite numbers."""
        attack = self.attack
        return {
            "artefact": self.manifest.model_dump(mode="json", include=set(_IDENTITY)),
            "data": dict(self.data),
            "created": self.created,
            "confidence": self.confidence,
            "rates": {name: None if rate is None else rate.to_dict() for name, rate in self.rates().items()},
            "availability_radius": _by_name(self.availability),
            "draws": None if self.draws is None else _by_name(self.draws),
            "curves": {
                "radius": list(self.curves.radius),
                "vra": list(self.curves.vra),
                "fpr_upper": list(self.curves.fpr_upper),
            },
            "attack": None
            if attack is None
            else {
                "name": attack.name,
                "discarded": attack.discarded,
                "broken_answers": attack.broken_answers,
                "broken_availability": attack.broken_availability,
                "draws": None if attack.draws is None else _by_name(attack.draws),
            },
            "alarms": list(self.alarms),
        }

    def rates(self) -> dict[str, Rate | None]:
        """Return every rate by its name, None for those that need an attack where none was run."""
        rates: dict[str, Rate | None] = {name: getattr(self, name) for name in _RATES}
        return rates | {name: getattr(self.attack, name, None) for name in _ATTACK_RATES}

    def to_json(self) -> str:
        """Return `to_dict` as canonical JSON: sorted keys, no NaN, one spelling for one report."""
        return canonical_json(self.to_dict())

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        from defended.serving.figures import draw_degraded_pairs, draw_radius_curves
        from defended.serving.page import render

        return render(self, draw_radius_curves(self), draw_degraded_pairs(self))

    def write(self, directory: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the report into a directory, each file whole or not at all; files of an earlier report are replaced.

        Returns:
            The paths, by name: `audit.json`, `report.html`, `radius_curves.png`, and `degraded_pairs.png` where the
            attack found any.
        """
        from defended.serving.figures import draw_degraded_pairs, draw_radius_curves, to_png
        from defended.serving.page import render

        folder = Path(directory)
        curves, pairs = draw_radius_curves(self), draw_degraded_pairs(self)
        files = {"radius_curves.png": to_png(curves)}
        if pairs is None:
            (folder / "degraded_pairs.png").unlink(missing_ok=True)
        else:
            files["degraded_pairs.png"] = to_png(pairs)
        files["report.html"] = render(self, curves, pairs).encode()
        files["audit.json"] = self.to_json().encode()
        return {name: atomic_write_bytes(folder / name, content) for name, content in files.items()}


def _by_name(quantiles: Mapping[float, Any]) -> dict[str, Any]:
    return {f"{probability:g}": value for probability, value in quantiles.items()}


def _explained(count: int, total: int, probability: float) -> bool:
    """Whether `count` of `total` events of at most this probability each are no surprise, at one in a million."""
    from scipy.stats import binom

    return bool(binom.sf(count - 1, total, min(probability, 1.0)) >= 1e-6)
