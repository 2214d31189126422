"""The audit report as one page: no script, no request, light and dark, on screen and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from defended.serving.figures import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from defended.attacks.intervals import Rate
    from defended.serving.report import AuditReport

# Each rate's name in the report, and what it counts.
_ROWS = (
    ("clean_accuracy", "Clean accuracy", "inputs whose largest score is the right class, rejected or not"),
    ("rejection_rate", "Rejection rate", "inputs rejected with nobody attacking"),
    ("accuracy_on_answered", "Accuracy on answered inputs", "answers that are right"),
    ("vra", "VRA at ε", "inputs answered rightly, where no change within ε gets another answer"),
    ("vra_2eps", "VRA at 2ε", "inputs answered rightly, where no change within ε gets another answer or a rejection"),
    ("fpr_lower", "FPR, at least", "answers that the attack forced into rejections"),
    ("fpr_upper", "FPR, at most", "answers not proven to hold out: certified radius at most 2ε"),
    ("vra_under_attack", "VRA under attack", "inputs still answered rightly after the attack"),
    ("utility_reduction", "Utility reduction", "inputs answered rightly until the attack forced a rejection"),
)

_RADII = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def render(report: AuditReport, curves: Figure, pairs: Figure | None) -> str:
    """Return a report as HTML, with the figures drawn by `draw_radius_curves` and `draw_degraded_pairs`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    rates = report.rates()
    # Drawn here; matplotlib escapes what the report's texts bring.
    curves_svg = Markup(to_svg(curves, "VRA and FPR bound over the radius", _describe_curves(report)))  # noqa: S704
    pairs_svg = pairs and Markup(to_svg(pairs, "Degraded inputs", _describe_pairs(report)))  # noqa: S704
    return environment.get_template("report.html").render(
        report=report,
        manifest=report.manifest,
        norm={"l2": "ℓ₂", "linf": "ℓ∞"}[report.manifest.norm],
        epsilon=f"{report.manifest.epsilon:.6g}",
        rows=[(title, what, rates[name]) for name, title, what in _ROWS if rates[name] is not None],
        table=_table(report),
        curves=curves_svg,
        pairs=pairs_svg,
    )


def percent(value: Rate | float | None) -> str:
    """Return `12.3 %`, with as many digits as keep small and nearly full rates apart from 0 and 100."""
    if value is None:
        return "–"
    share = 100 * float(value)
    digits = 1 if share in (0.0, 100.0) or 0.1 <= share <= 99.9 else 3
    return f"{share:.{digits}f} %"


def _table(report: AuditReport) -> list[tuple[str, str, str, str]]:
    """The curves at some radii, for readers who do not see the picture."""
    curves, epsilon = report.curves, report.manifest.epsilon
    at = {round(radius / epsilon, 6): index for index, radius in enumerate(curves.radius)}
    rows = [(multiple, at[multiple]) for multiple in _RADII]
    return [
        (f"{multiple:g} ε", f"{multiple * epsilon:.4g}", percent(curves.vra[index]), percent(curves.fpr_upper[index]))
        for multiple, index in rows
    ]


def _describe_curves(report: AuditReport) -> str:
    points = "; ".join(f"at {at} ({radius}) VRA {vra}, FPR at most {fpr}" for at, radius, vra, fpr in _table(report))
    return f"Two curves over the radius: {points}."


def _describe_pairs(report: AuditReport) -> str:
    pairs = report.attack.pairs if report.attack is not None else ()
    listed = "; ".join(f"input {p.index}, answered {p.label}, rejected after a change of {p.size:.3g}" for p in pairs)
    return f"For each input the original, the perturbed version and the difference: {listed}."
