"""Measurements side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defended.attacks.measurement.result import Susceptibility

PAPER = {
    "vra": "VRA",
    "fpr_lower_correct": "FPR, at least",
    "fpr_upper_correct": "FPR, at most",
    "utility_reduction": "utility reduction",
    "vra_under_attack": "VRA under attack",
}
"""The figures of the tables in Leino et al. 2022, with the denominators of its code: the certified and correct."""

FORMATS = ("text", "markdown", "csv")


def compare(
    results: Mapping[str, Susceptibility] | Iterable[Susceptibility], names: Iterable[str] | None = None
) -> Comparison:
    """Measurements side by side, one a column of figures or a row of the paper's table.

    Args:
        results: measurements, or a mapping from names to them.
        names: one for each measurement; None for the model's radius and the attack's name.

    Raises:
        ValueError: when there is nothing to compare, or names are too few, too many or the same.
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

    def __init__(self, results: dict[str, Susceptibility]):
        self.results = results

    def to_table(self, layout: str = "figures", format: str = "text") -> str:  # noqa: A002 (the usual word)
        """The figures as a table.

        Args:
            layout: `"figures"`, a column a measurement with every rate and its interval; or `"paper"`, a row a
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
        from defended.attacks.measurement.result import RATES

        rows = [["", *self.results]]
        rows.append(["eps", *(f"{result.epsilon:g} ({result.norm})" for result in self.results.values())])
        for rate in RATES:
            cells = []
            for result in self.results.values():
                value = getattr(result, rate)
                low, high = value.interval
                cells.append(f"{100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}]")
            rows.append([rate, *cells])
        return rows

    def __str__(self) -> str:
        return self.to_table()


def _name(result: Susceptibility) -> str:
    return f"eps {result.epsilon:g}, {result.attack['attack']}"


def _render(rows: list[list[str]], format: str) -> str:  # noqa: A002
    if format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: list[Any]) -> str:
        first, *rest = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |" if format == "markdown" else "  ".join([first, *rest]).rstrip()

    lines = [line(row) for row in rows]
    if format == "markdown":
        rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, "| " + " | ".join(rules) + " |")
    return "\n".join(lines)
