"""Certified accuracy and false positive rate by radius, drawn from logs of CERTIFY."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from defended.smoothing.logs import CertificationLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID, _VRA, _FPR = "#1c2430", "#5b6676", "#d8dee6", "#0b62b8", "#c2410c"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "figure.dpi": 100,
}


class Panel(NamedTuple):
    """One log in a figure."""

    log: CertificationLog
    ceiling: float | None = None
    """The largest radius that could be certified, see `radius_ceiling`; None draws none."""
    marks: Sequence[float] = ()
    """Radii at which the upper bound's value is written."""
    found: Mapping[float, float] | None = None
    """Lower bounds on the false positive rate that an attack has proven, by radius."""


def draw_certification(panels: Mapping[str, Panel], strict: bool = True, columns: int = 2) -> Figure:
    """VRA and the upper bound on the false positive rate at every radius eps, a panel a log.

    Where `2 eps` lies above the ceiling, nothing can be certified at 2 eps and the upper bound is 100 % for any
    network; that part is shaded.

    Args:
        panels: by title.
        strict: count `radius > eps`; otherwise `radius >= eps`, as published figures do.
        columns: panels side by side.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("`panels` must hold at least one log. Received: none")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.3 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, title, panel, strict)
        grid[0, 0].legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.62))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("radius ε (ℓ₂, input units)", fontsize=10)
        figure.supylabel("% of inputs (VRA) · % of answers (FPR)", fontsize=10)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure on white, at 160 dots an inch; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def curves(log: CertificationLog, strict: bool = True, ceiling: float | None = None) -> tuple[Any, Any, Any]:
    """Radii, VRA and the upper bound on the false positive rate: arrays of one length, up to the largest radius."""
    end = max(float(log.radius.max(initial=0.0)), ceiling or 0.0) or 1.0
    radii = np.linspace(0, end, 401)[1:]
    return (
        radii,
        np.array([log.vra(radius, strict) for radius in radii]),
        np.array([log.fpr_upper(radius, strict) for radius in radii]),
    )


def _draw_panel(axes: Axes, title: str, panel: Panel, strict: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    radii, vra, fpr = curves(panel.log, strict, panel.ceiling)
    if panel.ceiling is not None:
        start = panel.ceiling / 2
        axes.axvspan(start, radii[-1], color=_GRID, alpha=0.45, linewidth=0)
        beside = 100 * vra[(radii >= start) & (radii <= 1.6 * start)]
        height = max((90, 45), key=lambda place: np.abs(beside - place).min(initial=100))
        axes.annotate(
            "2ε above what can\nbe certified", (start, height), xytext=(6, 0), textcoords="offset points", va="center",
            color=_MUTED, fontsize=8,
        )  # fmt: skip
    axes.plot(radii, 100 * vra, color=_VRA, linewidth=2.0, label="VRA")
    axes.plot(radii, 100 * fpr, color=_FPR, linewidth=2.0, label="FPR, at most")
    for mark in panel.marks:
        value = 100 * panel.log.fpr_upper(mark, strict)
        axes.plot([mark], [value], color=_FPR, marker="o", markersize=5)
        # Below the rising curve, but not below the axis.
        place: dict[str, Any] = {"xytext": (5, -14)} if value > 15 else {"xytext": (-4, 6), "ha": "right"}
        axes.annotate(
            f"{value:.1f}", (mark, value), textcoords="offset points", color=_FPR, fontsize=9, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, **place,
        )  # fmt: skip
    for epsilon, low in (panel.found or {}).items():
        high = panel.log.fpr_upper(epsilon, strict)
        axes.plot([epsilon] * 2, [100 * low, 100 * high], color=_FPR, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([epsilon], [100 * low], color=_FPR, marker="D", markersize=5)
    axes.set(xlim=(0, radii[-1]), ylim=(0, 103), yticks=range(0, 101, 20))
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
