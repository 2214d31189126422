"""What a reproduction found: the paper's value, ours with its interval, and the difference."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from defended._io import atomic_write_bytes, atomic_write_text
from defended.attacks.measurement.result import Susceptibility
from defended.attacks.measurement.tables import PAPER, csv_text
from defended.exceptions import NotHereError
from defended.statistics.intervals import Rate
from defended.text_table import text_table

COLUMNS = ("case", "figure", "paper", "ours", "low", "high", "difference", "count", "total", "note")
_FIGURES = PAPER | {"vra_2eps": "VRA at 2 eps"}


class Finding(NamedTuple):
    """One figure of one net; shares of 1, not percent."""

    case: str
    figure: str
    ours: float
    """A `Rate`, where it is one."""
    paper: float | None = None
    """The paper's value, where it is known here: printed in it, or computed from what its authors published."""
    note: str = ""

    def row(self) -> dict[str, str]:
        """Return the cells of a table, with shares in percent; what is not known is empty."""
        rate = self.ours if isinstance(self.ours, Rate) else None
        low, high = rate.interval if rate is not None else (None, None)
        difference = None if self.paper is None else self.ours - self.paper
        return {
            "case": self.case, "figure": self.figure, "paper": _percent(self.paper), "ours": _percent(self.ours),
            "low": _percent(low), "high": _percent(high),
            "difference": "" if difference is None else f"{100 * difference:+.2f}",
            "count": "" if rate is None else str(rate.count), "total": "" if rate is None else str(rate.total),
            "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Reproduction:
    """A table or a figure of the paper, reproduced; `print` shows it.

    Attributes:
        name: `"table1"` and so on.
        title: what the paper shows there.
        findings: the figures.
        left_out: what was not run, why, and how it could be.
        picture: PNG, for a figure.
        curves: columns of the figure's curves by name, equally long.
    """

    name: str
    title: str
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()
    picture: bytes | None = None
    curves: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    def to_csv(self) -> str:
        """Return the findings as CSV, with shares in percent."""
        return csv_text([COLUMNS, *(finding.row().values() for finding in self.findings)])

    def to_table(self) -> str:
        """Return the findings as plain text."""
        rows = [finding.row() for finding in self.findings]
        for row in rows:
            row["interval"] = f"[{row['low']}, {row['high']}]" if row["low"] else ""
        names = [name for name in ("case", "figure", "paper", "ours", "interval", "difference", "note")
                 if any(row[name] for row in rows)]  # fmt: skip
        text = [f"{self.name}: {self.title}", ""]
        if rows:
            left = [column for column, name in enumerate(names) if name in ("case", "figure", "note")]
            text.append(text_table([names, *([row[name] for name in names] for row in rows)], left))
        return "\n".join([*text, *(f"not run: {what}" for what in self.left_out)])

    def write(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write `NAME.csv` and, for a figure, `NAME.png` and `NAME_curves.csv`; return the paths."""
        directory = Path(directory)
        paths = [atomic_write_text(directory / f"{self.name}.csv", self.to_csv())]
        if self.picture is not None:
            paths.append(atomic_write_bytes(directory / f"{self.name}.png", self.picture))
        if self.curves:
            columns = ([name, *map(_number, values)] for name, values in self.curves.items())
            text = csv_text(zip(*columns, strict=True))
            paths.append(atomic_write_text(directory / f"{self.name}_curves.csv", text))
        return paths

    def __str__(self) -> str:
        return self.to_table()


@contextmanager
def noted(left_out: list[str], what: str = "") -> Iterator[None]:
    """Run what needs files; where one is missing, note that in `left_out`, with what it was needed for, and go on."""
    try:
        yield
    except NotHereError as missing:
        left_out.append(f"{what}: {missing}" if what else str(missing))


def measured(
    case: str,
    result: Susceptibility,
    rates: Iterable[str],
    printed: Mapping[str, float],
    attack: str = "",
    note: str = "",
) -> list[Finding]:
    """Return some rates of a measurement, each beside what the paper prints for it.

    Args:
        case: what was measured.
        result: a `Susceptibility`.
        rates: names of its attributes.
        printed: the paper's values for some of them.
        attack: the attack's name, for the rates that depend on it.
        note: a note about the paper's values.
    """
    return [
        Finding(
            case, f"{_FIGURES[name]} ({attack})" if attack and name != "vra" else _FIGURES[name],
            getattr(result, name), printed.get(name), note if name in printed else "",
        )
        for name in rates
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
