"""The rates of Leino et al. 2022, each defined once, from what is known of each input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import numpy as np

from defended.statistics.intervals import Rate

Array = np.ndarray[Any, np.dtype[Any]]


class Definition(NamedTuple):
    """A rate: the share of the inputs with all facts `among` that also have all facts `counted`."""

    meaning: str
    counted: tuple[str, ...]
    among: tuple[str, ...] = ()
    certificates: bool = False
    """Whether a counted fact is that a certificate holds: for a smoothed model, it is wrong with probability alpha."""


DEFINITIONS = {
    "clean_accuracy": Definition("largest logit is the label's, ⊥ left aside", ("correct",)),
    "rejection_rate": Definition("rejected without any attack", ("rejected",)),
    "accuracy_on_answered": Definition("answered with the label, of the answered inputs", ("right",), ("answered",)),
    "vra": Definition("correct and certified at eps", ("right", "certified"), certificates=True),
    "vra_2eps": Definition(
        "correct and certified at 2 eps, as if deployed there", ("right", "certified_twice"), certificates=True
    ),
    "always_answered": Definition(
        "answered, whatever changes within eps are tried; right or wrong", ("safe",), certificates=True
    ),
    "vra_under_attack": Definition(
        "correct and certified, and not degraded by the attack", ("right", "certified", "kept"), certificates=True
    ),
    "utility_reduction": Definition("vra lost to the attack", ("right", "certified", "degraded")),
    "fpr_lower": Definition("degraded, of the certified inputs", ("degraded",), ("answered",)),
    "fpr_upper": Definition(
        "not proven to stay answered within eps, of the certified inputs", ("contested",), ("answered",), True
    ),
    "fpr_lower_correct": Definition("degraded, of the certified and correct inputs", ("degraded",), ("right",)),
    "fpr_upper_correct": Definition(
        "not proven to stay answered within eps, of the certified and correct inputs", ("contested",), ("right",), True
    ),
}
"""The rates by name, in the order of tables. A correct input is answered with the label in all of them but
`clean_accuracy`; the denominators of `fpr_…_correct` are those of the paper's code.

What stays answered within eps is what is certified at 2 eps, in real arithmetic (Leino et al. 2022, section 3). Where
rounding is paid for, it is somewhat less, since a radius may be computed low at both ends
(`DefendedModel.availability_radius`)."""


@dataclass(frozen=True)
class InputFacts:
    """What is known of n inputs, `[n]` bool each; None where it is not known.

    Attributes:
        rejected: rejected without any attack.
        correct: the network's class, ⊥ left aside, is the label.
        right: answered with the label.
        certified: answered, and the certificate says that no change within eps gets another answer.
        safe: answered, and no change within eps forces a rejection, by proof: the availability radius exceeds eps.
        degraded: answered, and an attack found a point within eps that is rejected.
        changed: answered, and an attack found a point within eps with another answer: by chance, or the certificate is
            broken.
        certified_twice: answered, and the certified radius exceeds 2 eps.
    """

    rejected: Array
    correct: Array | None = None
    right: Array | None = None
    certified: Array | None = None
    safe: Array | None = None
    degraded: Array | None = None
    changed: Array | None = None
    certified_twice: Array | None = None

    @classmethod
    def at(
        cls,
        radius: Array,
        correct: Array | None,
        epsilon: float,
        strict: bool = True,
        available: Array | None = None,
    ) -> InputFacts:
        """Return the facts about a model that defends `epsilon` with these certified radii `[n]`.

        It answers where `r > epsilon`.

        Args:
            radius: in the units of epsilon.
            correct: `[n]` bool, whether the network's class is the label; None where that is not known.
            epsilon: the radius defended; a float32 number, as radii are.
            strict: False counts `r >= epsilon` as answered, as published figures do.
            available: `[n]`, availability radii at this epsilon. None counts as safe what is certified at 2 epsilon, as
                in real arithmetic.
        """
        answered, twice = exceeds(radius, epsilon, strict), exceeds(radius, 2 * epsilon, strict)
        right = None if correct is None else correct & answered
        safe = twice if available is None else answered & exceeds(available, epsilon)
        return cls(~answered, correct, right, answered, safe=safe, certified_twice=twice)

    @property
    def answered(self) -> Array:
        """Not rejected."""
        return ~self.rejected

    @property
    def contested(self) -> Array | None:
        """Answered, and not proven to stay so within eps."""
        return None if self.safe is None else ~self.rejected & ~self.safe

    @property
    def kept(self) -> Array | None:
        """Answered as before, whatever the attack tried."""
        if self.degraded is None:
            return None
        lost = self.degraded if self.changed is None else self.degraded | self.changed
        return ~self.rejected & ~lost

    def all(self, names: Iterable[str]) -> Array:
        """Return whether an input has all of these facts, one or more, all of them known: `[n]` bool."""
        return reduce(and_, (getattr(self, name) for name in names))

    def of(self, chosen: Array) -> InputFacts:
        """Return the facts of some inputs, chosen by `[n]` bool."""
        values = (getattr(self, field.name) for field in fields(self))
        return InputFacts(*(None if value is None else value[chosen] for value in values))  # type: ignore[arg-type]

    def rate(self, name: str, confidence: float = 0.95, alpha: float = 0.0) -> Rate:
        """Return a rate of `DEFINITIONS` with its interval.

        Args:
            name: the rate's name.
            confidence: that of the interval, which assumes that the inputs were drawn independently and, where verdicts
                are drawn at random, that each input's draw is independent of the others'.
            alpha: probability that an input's certificate is wrong: for a smoothed model the one it was made with, 0
                for a proof. Intervals of rates that rest on certificates count it, see `Rate`.

        Raises:
            ValueError: a fact that the rate counts is not known.
        """
        if (rate := self.rates([name], confidence, alpha)[name]) is None:
            raise ValueError(f"`{name}` counts facts that are not known of these inputs: {DEFINITIONS[name].meaning}.")
        return rate

    def rates(
        self, names: Iterable[str] = DEFINITIONS, confidence: float = 0.95, alpha: float = 0.0
    ) -> dict[str, Rate | None]:
        """Return several rates by name, see `rate`; None where a fact that it counts is not known."""
        found: dict[str, Rate | None] = {}
        for name in names:
            counted, among, certificates = DEFINITIONS[name][1:]
            if any(getattr(self, fact) is None for fact in (*among, *counted)):
                found[name] = None
                continue
            total = int(self.all(among).sum()) if among else len(self.rejected)
            count = int(self.all((*among, *counted)).sum())
            found[name] = Rate(count, total, confidence, alpha if certificates else 0.0)
        return found


def exceeds(radius: Array, epsilon: float, strict: bool = True) -> Array:
    """Return whether `radius > epsilon` in float32, as the deployed check compares: `[n]` bool. The ball is closed.

    `strict=False` compares `radius >= epsilon`.
    """
    radius, least = np.asarray(radius, np.float32), np.float32(epsilon)
    return radius > least if strict else radius >= least


def vra_curve(radius: Array, correct: Array, radii: Array, strict: bool = True) -> Array:
    """Return the VRA of a deployment at each of `radii`: `|correct and r > eps| / n`; `r >= eps` if not `strict`."""
    return _above(radius[correct], radii, strict) / max(len(radius), 1)


def fpr_upper_curve(radius: Array, radii: Array, strict: bool = True) -> Array:
    """Return `|eps < r <= 2 eps| / |r > eps|` at each eps of `radii`; NaN where nothing is answered.

    With `strict=False` it is `|eps <= r < 2 eps| / |r >= eps|`.
    """
    answered, safe = _above(radius, radii, strict), _above(radius, 2 * radii, strict)
    return np.where(answered > 0, (answered - safe) / np.maximum(answered, 1), np.nan)


def _above(radius: Array, radii: Array, strict: bool) -> Array:
    """Return `|r > eps|` at each eps of `radii`; `|r >= eps|` if not `strict`."""
    return len(radius) - np.searchsorted(np.sort(radius), radii, side="right" if strict else "left")
