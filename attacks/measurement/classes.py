"""A measurement's figures for each class: which answers can be silenced, and whose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from defended.attacks.measurement.tables import csv_text
from defended.class_names import ClassNames, in_order
from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts
from defended.text_table import text_table

CLASS_RATES = ("clean_accuracy", "rejection_rate", "vra", "fpr_lower", "fpr_upper")
"""The rates of each class, in the order of its table."""


@dataclass(frozen=True)
class ClassRates:
    """The figures of the inputs of one class.

    Attributes:
        number: the class.
        name: what it is called.
        inputs: how many inputs have this label.
        rates: the `CLASS_RATES` of these inputs; each interval is for itself.
    """

    number: int
    name: str
    inputs: int
    rates: dict[str, Rate]


class ByClass(tuple[ClassRates, ...]):
    """The figures of each class that occurs among the labels, in the order of the classes; `print` shows the table.

    Classes are many, and the most degradable of them was chosen by looking: at confidence `1 - (1 - c) / k` for k
    classes all intervals hold together (`Rate.interval` is for one class by itself).
    """

    def sorted(self, rate: str = "fpr_lower") -> ByClass:
        """Return the classes with the largest value of one of the `CLASS_RATES` first.

        Raises:
            ValueError: for another rate.
        """
        if rate not in CLASS_RATES:
            raise ValueError(f"`rate` must be one of {', '.join(CLASS_RATES)}. Received: {rate!r}")
        return ByClass(sorted(self, key=lambda row: -float(row.rates[rate])))

    def to_table(self) -> str:
        """Return one line for each class: rates in percent, with the interval of the lower bound on the FPR."""
        rows = [["class", "inputs", *CLASS_RATES, "interval of fpr_lower"]]
        for row in self:
            low, high = row.rates["fpr_lower"].interval
            shares = [f"{100 * row.rates[name]:.1f}" for name in CLASS_RATES]
            rows.append([row.name, str(row.inputs), *shares, f"[{100 * low:.1f}, {100 * high:.1f}]"])
        return text_table(rows)

    def to_csv(self) -> str:
        """Return one row for each class, with count, total and the ends of the interval of every rate."""
        fields = ("count", "total", "low", "high")
        rows = [["number", "class", "inputs", *(f"{name}_{field}" for name in CLASS_RATES for field in fields)]]
        for row in self:
            cells = [str(row.number), row.name, str(row.inputs)]
            for name in CLASS_RATES:
                rate = row.rates[name]
                low, high = rate.interval
                cells += [str(rate.count), str(rate.total), f"{low:.6f}", f"{high:.6f}"]
            rows.append(cells)
        return csv_text(rows)

    def __str__(self) -> str:
        return self.to_table()


def by_class(
    facts: InputFacts,
    labels: np.ndarray,
    names: ClassNames | None = None,
    confidence: float = 0.95,
    alpha: float = 0.0,
) -> ByClass:
    """Return the figures of each class.

    Args:
        facts: what is known of the n inputs, attacked ones among them.
        labels: `[n]` whole numbers of at least 0, the true classes.
        names: what the classes are called, in the order of their numbers or as a mapping; the numbers by default.
        confidence: that of the intervals.
        alpha: probability that a certificate is wrong.

    Raises:
        ValueError: there are fewer names than classes, or they are not in any order (`class_names.in_order`).
    """
    numbers, names = np.unique(labels), in_order(names, argument="names")
    if names is not None and len(numbers) and len(names) <= numbers[-1]:
        raise ValueError(f"`names` must name all classes up to {numbers[-1]}. Received: {len(names)} names")
    rows = []
    for number in map(int, numbers):
        chosen = labels == number
        those = facts.of(chosen)
        rates = {name: those.rate(name, confidence, alpha) for name in CLASS_RATES}
        rows.append(ClassRates(number, str(number) if names is None else names[number], int(chosen.sum()), rates))
    return ByClass(rows)
