"""Measurements side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from defended.attacks.measurement.records import Records
from defended.statistics.intervals import Rate
from defended.statistics.rates import DEFINITIONS
from defended.text_table import text_table

RATES = tuple(name for name in DEFINITIONS if name not in ("accuracy_on_answered", "always_answered"))
"""The rates of a measurement, each an attribute of it, in the order of tables."""

PAPER = {
    "vra": "VRA",
    "fpr_lower_correct": "FPR, at least",
    "fpr_upper_correct": "FPR, at most",
    "utility_reduction": "utility reduction",
    "vra_under_attack": "VRA under attack",
}
"""The figures of the tables in Leino et al. 2022, with the denominators of its code: the certified and correct."""

FORMATS = ("text", "markdown", "csv")


class Measured(Protocol):
    """What a table shows of a measurement, besides its `RATES`: a `Susceptibility` has it."""

    @property
    def epsilon(self) -> float: ...
    @property
    def norm(self) -> str: ...
    @property
    def attack(self) -> dict[str, Any]: ...
    @property
    def records(self) -> Records: ...


def compare(results: Mapping[str, Measured] | Iterable[Measured], names: Iterable[str] | None = None) -> Comparison:
    """Return measurements side by side, each as a column of figures or as a row of the paper's table.

    Args:
        results: measurements, or a mapping from names to them.
        names: one for each measurement; None for the model's radius and the attack's name.

    Raises:
        ValueError: when there is nothing to compare, or there are too few or too many names, or two that are the same.
    """
    if isinstance(results, Mapping):
        names, results = list(results), list(results.values())
    results = list(results)
    names = [_name(result) for result in results] if names is None else list(names)
    if not results or len(names) != len(results):
        raise ValueError(f"`compare` needs at least one result, and a name for each. Received: {len(results)}, {names}")
    if len(set(names)) != len(names):
        raise ValueError(f"`names` must differ, to tell the measurements apart. Received: {names}")
    return Comparison(dict(zip(names, results, strict=True)))


class Comparison:
    """Measurements by name; `print` shows them side by side.

    Attributes:
        results: the measurements, by name.
    """

    def __init__(self, results: dict[str, Measured]):
        self.results = results

    def to_table(self, layout: str = "figures", format: str = "text") -> str:  # noqa: A002 (the usual word)
        """Return the figures as a table.

        Args:
            layout: `"figures"`, a column per measurement with every rate and its interval; or `"paper"`, a row per
                measurement with the figures of the tables in Leino et al. 2022, in percent.
            format: `"text"`, `"markdown"` or `"csv"`.
        """
        if layout not in ("figures", "paper") or format not in FORMATS:
            raise ValueError(
                f"`layout` must be 'figures' or 'paper', `format` one of {', '.join(map(repr, FORMATS))}. "
                f"Received: {layout!r}, {format!r}"
            )
        return _render(self._paper() if layout == "paper" else self._figures(), format)

    def _paper(self) -> list[list[str]]:
        head = ["", "norm", "ε", "inputs", *PAPER.values()]
        return [head] + [
            [name, result.norm, f"{result.epsilon:g}", str(len(result.records.label))]
            + [f"{100 * getattr(result, figure):.1f}" for figure in PAPER]
            for name, result in self.results.items()
        ]

    def _figures(self) -> list[list[str]]:
        def cell(rate: Rate) -> str:
            low, high = rate.interval
            return f"{100 * rate:.2f} [{100 * low:.2f}, {100 * high:.2f}]"

        radii = ["eps", *(f"{result.epsilon:g} ({result.norm})" for result in self.results.values())]
        rates = [[name, *(cell(getattr(result, name)) for result in self.results.values())] for name in RATES]
        return [["", *self.results], radii, *rates]

    def __str__(self) -> str:
        return self.to_table()


def _name(result: Measured) -> str:
    return f"eps {result.epsilon:g}, {result.attack['attack']}"


def _render(rows: list[list[str]], format: str) -> str:  # noqa: A002
    if format == "csv":
        return csv_text(rows)
    if format == "text":
        return text_table(rows)
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = text_table([rows[0], rules, *rows[1:]], between=" | ").splitlines()
    return "\n".join(f"| {line} |" for line in lines)


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Return rows of cells as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
