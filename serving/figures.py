"""The pictures of an audit report, drawn with matplotlib: PNG for files, SVG for the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from defended.attacks.plots import COLOURS, GRID, INK, MUTED, NORMS, PAPER, STYLE, draw_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from defended.serving.report import AuditReport

# Colours on paper, and the page's variable for each: inside the page the figures follow its light or dark scheme.
_VRA, _FPR = COLOURS[:2]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card", _VRA: "--vra", _FPR: "--fpr"}


def draw_radius_curves(report: AuditReport) -> Figure:
    """VRA, and the upper bound on the false positive rate, at every radius that the model could be deployed at."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves, epsilon = report.curves, report.manifest.epsilon
    radius = np.asarray(curves.radius)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for values, colour, name in ((curves.vra, _VRA, "VRA"), (curves.fpr_upper, _FPR, "FPR, at most")):
            percent = 100 * np.array([np.nan if value is None else value for value in values])
            axes.plot(radius, percent, color=colour, linewidth=2.2)
            known = np.flatnonzero(np.isfinite(percent))
            if known.size:
                ends.append((percent[known[-1]], radius[known[-1]], name, colour))
        ends.sort()
        crowded = len(ends) == 2 and ends[1][0] - ends[0][0] < 6
        for (height, end, name, colour), shift in zip(ends, (-7, 7), strict=False):
            axes.annotate(
                name, (end, height), xytext=(6, shift if crowded else 0), textcoords="offset points",
                color=colour, va="center", fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        for multiple, label in ((1, "ε"), (2, "2ε")):
            axes.axvline(multiple * epsilon, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                label, (multiple * epsilon, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", ha="center", color=MUTED,
            )  # fmt: skip
        if report.attack is not None and report.fpr_upper.total:
            low, high = 100 * report.attack.fpr_lower, 100 * report.fpr_upper
            axes.plot([epsilon, epsilon], [low, high], color=_FPR, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot([epsilon], [low], color=_FPR, marker="D", markersize=6)
            axes.annotate(
                f"found by the attack: {low:.1f} %", (epsilon, low), xytext=(10, 14 if low < 8 else 0),
                textcoords="offset points", color=_FPR, va="center", fontsize=9,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        axes.set(
            xlim=(0, radius[-1]),
            ylim=(0, 100),
            xlabel=f"radius ({NORMS[report.manifest.norm]}, input units)",
            ylabel="% of inputs (VRA) · % of answers (FPR)",
        )
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    return figure


def draw_degraded_pairs(report: AuditReport) -> Figure | None:
    """Inputs that were answered, the same perturbed and rejected, and the differences; None where none were found."""
    pairs = report.attack.pairs if report.attack is not None else ()
    if not pairs:
        return None
    return draw_pairs(
        [pair.original for pair in pairs],
        [pair.perturbed for pair in pairs],
        [f"answers {pair.label}" for pair in pairs],
        [f"‖δ‖ = {pair.size:.3g}" for pair in pairs],
    )


def to_png(figure: Figure) -> bytes:
    """Return the figure on white, at 160 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return an SVG element for a page: transparent, coloured by the page's variables, described for screen readers."""
    import matplotlib as mpl
    from markupsafe import escape

    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # Identifiers are unique in a figure, and a page has several.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    labels = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return re.sub(r"<svg([^>]*)>", lambda match: f'<svg role="img"{match[1]}>{labels}', svg, count=1)
