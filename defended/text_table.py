"""Rows of cells as lines of plain text: the one writer of such tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def text_table(rows: Iterable[Iterable[str]], left: Collection[int] = (0,), between: str = "  ") -> str:
    """Return rows of cells as lines of plain text; columns numbered in `left` are aligned left, the others right."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        between.join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() if between.isspace() else line for line in lines)
