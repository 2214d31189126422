"""What a reproduction found: the paper's value, ours with its interval, and the difference."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from defended._io import atomic_write_bytes, atomic_write_text
from defended.attacks.measurement.tables import text_table
from defended.statistics.intervals import Rate

COLUMNS = ("case", "figure", "paper", "ours", "low", "high", "difference", "count", "total", "note")


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
        """The cells of a table, shares in percent; what is not known is empty."""
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
    """A table or a figure of the paper, done again; `print` shows it.

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
        """The findings as CSV, shares in percent."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(finding.row() for finding in self.findings)
        return buffer.getvalue()

    def to_table(self) -> str:
        """The findings as plain text."""
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
        """Write `NAME.csv`, and of a figure `NAME.png` and `NAME_curves.csv`; the paths."""
        directory = Path(directory)
        paths = [atomic_write_text(directory / f"{self.name}.csv", self.to_csv())]
        if self.picture is not None:
            paths.append(atomic_write_bytes(directory / f"{self.name}.png", self.picture))
        if self.curves:
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(self.curves)
            for values in zip(*self.curves.values(), strict=True):
                writer.writerow("" if value is None else f"{value:.6g}" for value in values)
            paths.append(atomic_write_text(directory / f"{self.name}_curves.csv", buffer.getvalue()))
        return paths

    def __str__(self) -> str:
        return self.to_table()


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
