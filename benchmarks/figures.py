"""Figures as every benchmark leaves them: what was measured, ours, a peer's, their ratio, and what is required of it.

A benchmark gives its parser `--json FILE` by `add_option`, adds a figure for each thing that it is there to measure,
and writes them at the end; `run_all.py` reads them and makes one table of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into this file too")


class Figures:
    """The figures of one benchmark, in the order in which they are added."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        quantity: str,
        ours: float,
        unit: str,
        *,
        peer: str | None = None,
        theirs: float | None = None,
        ratio: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """One figure in `unit`, with the peer's.

        `ratio` is ours / theirs: given where it is a median of ratios, else that of the two figures. `at_most` and
        `at_least` say what the ratio must keep; without a peer, what the figure itself must keep.
        """
        ours, theirs = float(ours), None if theirs is None else float(theirs)
        if ratio is None and theirs is not None:
            ratio = ours / theirs
        judged = ours if ratio is None else float(ratio)
        required, met = None, None
        if at_most is not None:
            required, met = f"≤ {at_most:g}", judged <= at_most
        elif at_least is not None:
            required, met = f"≥ {at_least:g}", judged >= at_least
        self.rows.append(
            {
                "quantity": quantity, "ours": ours, "unit": unit, "peer": peer, "theirs": theirs,
                "ratio": None if ratio is None else float(ratio), "required": required, "met": met,
            }
        )  # fmt: skip

    def write(self, path: Path | None) -> None:
        """Write them as JSON, if a file was named."""
        if path is not None:
            path.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
