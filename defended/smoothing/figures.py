"""Certified accuracy and false positive rate by radius, drawn from logs of CERTIFY."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from defended.figure_style import FPR, GRID, MUTED, STYLE, VRA, draw_bracket, draw_frame
from defended.smoothing.logs import CertificationLog
from defended.statistics.rates import fpr_upper_curve, vra_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    """Draw VRA and the upper bound on the false positive rate at every radius eps, one panel for each log.

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
    with mpl.rc_context(STYLE):
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


def curves(log: CertificationLog, strict: bool = True, ceiling: float | None = None) -> tuple[Any, Any, Any]:
    """Return radii up to the largest, VRA and the upper bound on the false positive rate: arrays of one length."""
    end = max(float(log.radius.max(initial=0.0)), ceiling or 0.0) or 1.0
    radii = np.linspace(0, end, 401)[1:]
    return radii, vra_curve(log.radius, log.correct, radii, strict), fpr_upper_curve(log.radius, radii, strict)


def _draw_panel(axes: Axes, title: str, panel: Panel, strict: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    radii, vra, fpr = curves(panel.log, strict, panel.ceiling)
    if panel.ceiling is not None:
        start = panel.ceiling / 2
        axes.axvspan(start, radii[-1], color=GRID, alpha=0.45, linewidth=0)
        beside = 100 * vra[(radii >= start) & (radii <= 1.6 * start)]
        height = max((90, 45), key=lambda place: np.abs(beside - place).min(initial=100))
        axes.annotate(
            "2ε above what can\nbe certified", (start, height), xytext=(6, 0), textcoords="offset points", va="center",
            color=MUTED, fontsize=8,
        )  # fmt: skip
    axes.plot(radii, 100 * vra, color=VRA, linewidth=2.0, label="VRA")
    axes.plot(radii, 100 * fpr, color=FPR, linewidth=2.0, label="FPR, at most")
    for mark in panel.marks:
        value = 100 * panel.log.fpr_upper(mark, strict)
        axes.plot([mark], [value], color=FPR, marker="o", markersize=5)
        # Below the rising curve, but not below the axis.
        place: dict[str, Any] = {"xytext": (5, -14)} if value > 15 else {"xytext": (-4, 6), "ha": "right"}
        axes.annotate(
            f"{value:.1f}", (mark, value), textcoords="offset points", color=FPR, fontsize=9, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, **place,
        )  # fmt: skip
    for epsilon, low in (panel.found or {}).items():
        high = panel.log.fpr_upper(epsilon, strict)
        draw_bracket(axes, epsilon, 100 * low, 100 * high, FPR, size=5)
    axes.set(xlim=(0, radii[-1]), ylim=(0, 103), yticks=range(0, 101, 20))
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
    draw_frame(axes)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
