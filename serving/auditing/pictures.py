"""The pictures of an audit report, drawn with matplotlib: PNG for files, SVG for the page."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from defended.attacks.measurement.plots import Pair, as_picture, draw_pairs, name_of, strongest_channel
from defended.figure_style import FPR, GRID, INK, MUTED, NORMS, PAPER, STYLE, VRA, draw_bracket, draw_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from defended.serving.auditing.figures import AuditFigures
    from defended.serving.auditing.replay import DegradedPair

# The page's variable for each colour: inside the page the figures follow its light or dark scheme.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card", VRA: "--vra", FPR: "--fpr"}


def draw_radius_curves(report: AuditFigures, narrow: bool = False) -> Figure | None:
    """Draw VRA, and the upper bound on the false positive rate, at every radius that the model could be deployed at.

    None where no radii are known; `narrow` is for screens as wide as a hand.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves, epsilon = report.curves, report.subject.epsilon
    if curves is None or epsilon is None:
        return None
    radius = np.asarray(curves.radius)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.0) if narrow else (8.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for values, colour, name in ((curves.vra, VRA, "VRA"), (curves.fpr_upper, FPR, "FPR, at most")):
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
        lower, upper = report.best_fpr_lower, report.fpr_upper
        if lower is not None and upper is not None and upper.total:
            low, high = 100 * lower, 100 * upper
            draw_bracket(axes, epsilon, low, high, FPR)
            axes.annotate(
                f"forced: {low:.1f} %", (epsilon, low), xytext=(10, 14 if low < 8 else 0),
                textcoords="offset points", color=FPR, va="center", fontsize=9,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        norm = f"{NORMS[report.subject.norm]}, " if report.subject.norm else ""
        axes.set(xlim=(0, radius[-1]), ylim=(0, 100), xlabel=f"radius ({norm}input units)")
        axes.set_ylabel("% of inputs (VRA) · % of answers (FPR)")
        draw_frame(axes)
    return figure


def draw_degraded_pairs(report: AuditFigures) -> Figure | None:
    """Draw answered inputs, the same perturbed and rejected, and the differences; None where none were found."""
    pairs = report.pairs
    if not pairs:
        return None
    return draw_pairs([Pair(pair.original, pair.perturbed, _answer(report, pair), pair.size) for pair in pairs])


def _answer(report: AuditFigures, pair: DegradedPair) -> str:
    """Return what the class that a pair's original is answered is called."""
    manifest = report.subject.manifest
    return name_of(pair.label, None if manifest is None else manifest.labels)


def difference_scale(report: AuditFigures) -> str:
    """Return the largest change of an entry in the pairs that are shown, as text."""
    largest = max((float(np.abs(pair.perturbed - pair.original).max()) for pair in report.pairs), default=0.0)
    return f"{largest:.2g}"


def pair_images(report: AuditFigures) -> list[dict[str, Any]]:
    """Return the `index`, `label` and `size` of each degraded pair, and three pictures as `data:` addresses."""
    pairs = report.pairs
    if not pairs:
        return []
    images = [image for pair in pairs for image in (pair.original, pair.perturbed)]
    low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
    scale = max(float(np.abs(pair.perturbed - pair.original).max()) for pair in pairs)
    return [
        {
            "index": pair.index,
            "label": _answer(report, pair),
            "size": f"{pair.size:.3g}",
            "original": _image(pair.original, low, high, "gray"),
            "perturbed": _image(pair.perturbed, low, high, "gray"),
            "difference": _image(strongest_channel(pair.perturbed - pair.original), -scale, scale, "RdBu_r"),
        }
        for pair in pairs
    ]


def _image(values: np.ndarray, low: float, high: float, colours: str) -> str:
    from matplotlib.image import imsave

    picture = as_picture(values)
    if picture.ndim == 3:
        picture = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, picture, cmap=colours, vmin=low, vmax=high, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return an SVG element for a page: transparent, coloured by the page's variables, described for screen readers."""
    import matplotlib as mpl
    from markupsafe import escape

    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unnamed)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # Identifiers are unique in a figure, and a page has several.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    labels = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return re.sub(r"<svg([^>]*)>", lambda match: f'<svg role="img"{match[1]}>{labels}', svg, count=1)
