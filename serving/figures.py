"""The pictures of an audit report, drawn with matplotlib: PNG for files, SVG for the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from defended.serving.report import AuditReport

# Colours on paper, and the page's variable for each: inside the page the figures follow its light or dark scheme.
_INK, _MUTED, _GRID, _PAPER, _VRA, _FPR = "#1c2430", "#5b6676", "#d8dee6", "#fefefe", "#0b62b8", "#c2410c"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line", _PAPER: "--card", _VRA: "--vra", _FPR: "--fpr"}

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "defended",
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "figure.dpi": 100,
}


def draw_radius_curves(report: AuditReport) -> Figure:
    """VRA, and the upper bound on the false positive rate, at every radius that the model could be deployed at."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves, epsilon = report.curves, report.manifest.epsilon
    radius = np.asarray(curves.radius)
    with mpl.rc_context(_STYLE):
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
            axes.axvline(multiple * epsilon, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                label, (multiple * epsilon, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", ha="center", color=_MUTED,
            )  # fmt: skip
        if report.attack is not None and report.fpr_upper.total:
            low, high = 100 * report.attack.fpr_lower, 100 * report.fpr_upper
            axes.plot([epsilon, epsilon], [low, high], color=_FPR, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot([epsilon], [low], color=_FPR, marker="D", markersize=6)
            axes.annotate(
                f"found by the attack: {low:.1f} %", (epsilon, low), xytext=(10, 14 if low < 8 else 0),
                textcoords="offset points", color=_FPR, va="center", fontsize=9,
                bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        axes.set(
            xlim=(0, radius[-1]),
            ylim=(0, 100),
            xlabel=f"radius ({_norm(report)}, input units)",
            ylabel="% of inputs (VRA) · % of answers (FPR)",
        )
        axes.grid(color=_GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    return figure


def draw_degraded_pairs(report: AuditReport) -> Figure | None:
    """Inputs that were answered, the same perturbed and rejected, and the differences; None where none were found."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pairs = report.attack.pairs if report.attack is not None else ()
    if not pairs:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.45 * len(pairs) + 0.9, 5.0), layout="constrained")
        grid = np.atleast_2d(figure.subplots(3, len(pairs), squeeze=False))
        low = min(float(min(pair.original.min(), pair.perturbed.min())) for pair in pairs)
        high = max(float(max(pair.original.max(), pair.perturbed.max())) for pair in pairs)
        scale = max(float(np.abs(pair.perturbed - pair.original).max()) for pair in pairs)
        for column, pair in enumerate(pairs):
            difference = pair.perturbed - pair.original
            _show(grid[0, column], pair.original, low, high, f"answers {pair.label}")
            _show(grid[1, column], pair.perturbed, low, high, "rejects: ⊥")
            _show(grid[2, column], _strongest_channel(difference), -scale, scale, f"‖δ‖ = {pair.size:.3g}", "RdBu_r")
        for row, name in enumerate(("original", "perturbed", f"difference\n±{scale:.2g}")):
            grid[row, 0].set_ylabel(name, fontweight="bold")
    return figure


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
    with mpl.rc_context(_STYLE):
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


def _show(axes: Axes, image: np.ndarray, low: float, high: float, caption: str, colours: str = "gray") -> None:
    picture = _as_picture(image)
    if picture.ndim == 3:
        picture = np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
    axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="none", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.set_title(caption, fontsize=9, color=_INK)
    axes.spines[:].set_color(_GRID)


def _as_picture(values: np.ndarray) -> np.ndarray:
    """`[h, w]` or `[h, w, 3]` as it is; anything else as nearly square rows of its values, the rest left empty."""
    if values.ndim == 3 and values.shape[-1] == 1:
        return values[..., 0]
    if values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3):
        return values
    width = int(np.ceil(np.sqrt(values.size)))
    padded = np.full(width * -(-values.size // width), np.nan, dtype=values.dtype)
    padded[: values.size] = values.ravel()
    return padded.reshape(-1, width)


def _strongest_channel(difference: np.ndarray) -> np.ndarray:
    """For a colour image the signed change of the channel that changes most, so that no change cancels another."""
    if difference.ndim != 3 or difference.shape[-1] == 1:
        return difference
    strongest = np.abs(difference).argmax(axis=-1)[..., None]
    return np.take_along_axis(difference, strongest, axis=-1)


def _norm(report: AuditReport) -> Any:
    return {"l2": "ℓ₂", "linf": "ℓ∞"}[report.manifest.norm]
