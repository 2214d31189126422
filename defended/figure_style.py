"""How figures look, and the PNG files that they become."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours on paper; a page may replace them with its own.
INK, MUTED, GRID, PAPER = "#1c2430", "#5b6676", "#d8dee6", "#fefefe"
COLOURS = ("#0b62b8", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d")
VRA, FPR = COLOURS[:2]

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "defended",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.dpi": 100,
}
"""Matplotlib's settings, for `rc_context`."""

NORMS = {"l2": "ℓ₂", "linf": "ℓ∞"}


def draw_frame(axes: Axes) -> None:
    """Draw a grid, and leave out ticks and the lines at the top and on the right."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def draw_bracket(axes: Axes, epsilon: float, low: float, high: float, colour: str, size: float = 6) -> None:
    """Draw a bar from the lower to the upper bound of a rate at a radius, with a marker at the lower one."""
    axes.plot([epsilon, epsilon], [low, high], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([epsilon], [low], color=colour, marker="D", markersize=size)


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG, on white, at 160 dots per inch; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
