"""The figures of a susceptibility measurement, computed from what was found out about each input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from defended.attacks.measurement.classes import ByClass, by_class
from defended.attacks.measurement.records import DegradedInputs, Records
from defended.attacks.measurement.tables import RATES, compare
from defended.class_names import ClassNames
from defended.statistics.intervals import Rate
from defended.statistics.rates import DEFINITIONS, InputFacts, exceeds
from defended.text_table import text_table


class _Figure:
    """A rate of a measurement, defined under the attribute's name in `defended.statistics.rates`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.__doc__ = name, f"Share of inputs: {DEFINITIONS[name].meaning}."

    def __get__(self, measured: Susceptibility | None, owner: type) -> Rate:
        if measured is None:
            return self  # type: ignore[return-value]  # of the class, for whoever lists what it has
        return measured.facts.rate(self.name, measured.confidence, measured.alpha)


@dataclass(frozen=True)
class Susceptibility:
    """How far a defended model can be degraded: a bracket, and what it means for accuracy (Leino et al. 2022).

    The false positive rate is the share of the answered inputs that an attacker can turn into ⊥ within eps. The
    attack's finds bound it from below, the availability radius from above: in real arithmetic, by what is not certified
    at 2 eps. The rates are those of `defended.statistics.rates`; each is a `Rate`, a float with a Clopper-Pearson
    `interval` for the sampling of the inputs. The intervals are for each of the two bounds by itself.

    Verdicts of a smoothed model are drawn at random, with separate noise for each input, so that an interval counts
    both samplings: of the inputs and of the noise. Where a rate rests on certificates, each of which is wrong with
    probability alpha, the interval counts that too. A degraded input is one that was rejected in one draw; how many
    contested inputs are rejected in another draw *without* any attack, `spontaneous`, shows how much of it is chance.

    Attributes:
        epsilon: radius of certificate and attack, in input units.
        norm: `"l2"` or `"linf"`.
        final: whether the model's bounds were proven; if not, everything that rests on certificates is an estimate.
        attack: configuration of the attack.
        confidence: the confidence level of the intervals.
        seconds_per_point: seconds for attack and judgement together, per attacked input; compilation included.
        records: what was found out about each input.
        adversarial: the perturbed inputs that are rejected.
        sampling: for a smoothed model, how verdicts are drawn (`DefendedModel.sampling`); otherwise None.
        radius_ceiling: for a smoothed model, the largest radius that any input can have; otherwise None.
        redrawn: for a smoothed model, how many of the attacked inputs were rejected in another draw without the attack.
        changed: for a smoothed model, how many attacked inputs were answered with another label than before. Chance
            explains some (alpha); more than it explains is a `CertificateViolation`.
    """

    epsilon: float
    norm: str
    final: bool
    attack: dict[str, Any]
    confidence: float
    seconds_per_point: float
    records: Records
    adversarial: DegradedInputs
    sampling: dict[str, Any] | None = None
    radius_ceiling: float | None = None
    redrawn: int = 0
    changed: int = 0

    @property
    def test_R(self) -> int:  # noqa: N802  (the paper's name)
        """Number of certified inputs."""
        return int((~self.records.rejected).sum())

    @property
    def test_A(self) -> int:  # noqa: N802  (the paper's name)
        """Number of certified inputs that the attack degraded."""
        return int(self.records.degraded.sum())

    clean_accuracy = _Figure()
    """Share of inputs whose largest logit is the label's, ⊥ left aside."""
    rejection_rate = _Figure()
    """Share of inputs rejected without any attack."""
    vra = _Figure()
    """Verified-robust accuracy: share of inputs answered correctly and certified at eps."""
    vra_2eps = _Figure()
    """Share of inputs correct and certified at 2 eps, as if the model were deployed there."""
    vra_under_attack = _Figure()
    """Share of inputs that the attack leaves correct and certified."""
    utility_reduction = _Figure()
    """VRA minus VRA under attack: share of inputs that were correct and certified, and degraded."""
    fpr_lower = _Figure()
    """Lower bound on the false positive rate: degraded / certified, the paper's denominator."""
    fpr_upper = _Figure()
    """Upper bound on the false positive rate: not proven to stay answered / certified, the paper's denominator."""
    fpr_lower_correct = _Figure()
    """Degraded among the certified and correct, the denominator of the paper's code."""
    fpr_upper_correct = _Figure()
    """Not proven to stay answered among the certified and correct, the denominator of the paper's code."""

    @property
    def alpha(self) -> float:
        """Probability that an input's certificate is wrong: 0 but for a smoothed model."""
        return float(self.sampling["alpha"]) if self.sampling else 0.0

    def by_class(self, names: ClassNames | None = None) -> ByClass:
        """Return the figures of each class: clean accuracy, rejection rate, VRA and both ends of the FPR.

        Args:
            names: what the classes are called, such as `datasets.load("gtsrb").class_names` or Keras's `class_indices`;
                their numbers by default.

        Raises:
            ValueError: there are fewer names than classes.
        """
        return by_class(self.facts, self.records.label, names, self.confidence, self.alpha)

    @property
    def spontaneous(self) -> Rate:
        """Share of the attacked inputs of a smoothed model that are rejected in another draw without any attack."""
        return Rate(self.redrawn, int(self.records.attacked.sum()) if self.sampling else 0, self.confidence)

    def summary(self) -> dict[str, Any]:
        """Return all figures, ready for JSON; each rate with `value`, `count`, `total`, `interval` and `confidence`."""
        figures: dict[str, Any] = {
            "epsilon": self.epsilon,
            "norm": self.norm,
            "final": self.final,
            "attack": self.attack,
            "inputs": len(self.records.label),
            "contested": int(self.records.contested.sum()),
            "attacked": int(self.records.attacked.sum()),
            "test_R": self.test_R,
            "test_A": self.test_A,
            "seconds_per_point": self.seconds_per_point,
        }
        if self.sampling:
            figures |= {
                "sampling": dict(self.sampling),
                "radius_ceiling": self.radius_ceiling,
                "changed": self.changed,
                "spontaneous": self.spontaneous.to_dict(),
            }
        return figures | {name: getattr(self, name).to_dict() for name in RATES}

    def to_table(self, layout: str = "figures") -> str:
        """Return the figures as plain text.

        Args:
            layout: `"figures"`, one rate per line: percent, interval, counts, meaning; or `"paper"`, the row of the
                tables in Leino et al. 2022 (`compare` puts several below one another).
        """
        if layout != "figures":
            return compare([self]).to_table(layout)
        state = "bounds proven" if self.final else "NOT FINAL: bounds are training-time estimates"
        lines = [
            f"susceptibility at eps = {self.epsilon:g} ({self.norm}), {len(self.records.label)} inputs; {state}",
            f"attack: {_in_words(self.attack)}",
            f"{self.test_R} certified, {int(self.records.contested.sum())} of them contested, "
            f"{int(self.records.attacked.sum())} attacked, {self.test_A} degraded; "
            f"{1000 * self.seconds_per_point:.1f} ms a point",
            *self._notes_on_sampling(),
            "",
        ]
        rows = [["", "percent", f"{100 * self.confidence:g} % interval", "count", ""]]
        for name in RATES:
            rate: Rate = getattr(self, name)
            low, high = rate.interval
            interval, count = f"[{100 * low:6.2f}, {100 * high:6.2f}]", f"{rate.count}/{rate.total}"
            rows.append([name, f"{100 * rate:.2f}", interval, count, DEFINITIONS[name].meaning])
        return "\n".join([*lines, text_table(rows, left=(0, 4))])

    def _notes_on_sampling(self) -> list[str]:
        if not self.sampling:
            return []
        settings = ", ".join(f"{name}={value}" for name, value in self.sampling.items())
        notes = [f"verdicts are drawn: {settings}; without any attack, another draw rejects {self.spontaneous!r}"]
        if self.radius_ceiling is not None:
            reached = 2 * self.epsilon < self.radius_ceiling
            why = "" if reached else ", which 2 eps exceeds: the upper bound on the FPR is trivially 100 %"
            notes.append(f"no radius can exceed {self.radius_ceiling:.4g} with so many samples{why}")
        return notes

    def __repr__(self) -> str:
        return f"<Susceptibility of {len(self.records.label)} inputs at eps={self.epsilon:g} ({self.norm}): FPR in " + (
            f"[{float(self.fpr_lower):.4f}, {float(self.fpr_upper):.4f}], VRA {float(self.vra):.4f}>"
        )

    @property
    def facts(self) -> InputFacts:
        """What the measurement found out about each input, as rates count it."""
        records = self.records
        answered, correct = ~records.rejected, np.equal(records.predicted, records.label)
        return InputFacts(
            records.rejected,
            correct,
            right=correct & answered,
            certified=answered,
            safe=answered & ~records.contested,
            degraded=records.degraded,
            # Doubling is exact in float32, so this is the comparison that the deployed check would make at 2 eps.
            certified_twice=answered & exceeds(records.radius, 2 * self.epsilon),
        )


def _in_words(attack: dict[str, Any]) -> str:
    """Return an attack's configuration on one line: attacks inside it in brackets, settings that are None left out."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return f"({_in_words(value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(word, value))}]"
        return str(value)

    settings = (f"{name}={word(value)}" for name, value in attack.items() if name != "attack" and value is not None)
    return ", ".join([str(attack["attack"]), *settings])
