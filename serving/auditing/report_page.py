"""The audit report as one page: no script, no request, light and dark, on screen and on paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from defended.serving.auditing.conditions import METRICS, SHARES
from defended.serving.auditing.pictures import difference_scale, draw_radius_curves, pair_images, to_svg
from defended.serving.exporting import templating

if TYPE_CHECKING:
    from defended.serving.auditing.figures import AuditFigures
    from defended.serving.auditing.record import DecisionRecord
    from defended.statistics.intervals import Rate

# Each rate's name in the report, and what it counts.
_ROWS = (
    ("clean_accuracy", "Clean accuracy", "inputs whose largest score is the right class, rejected or not"),
    ("rejection_rate", "Rejection rate", "inputs rejected with nobody attacking"),
    ("accuracy_on_answered", "Accuracy on answered inputs", "answers that are right"),
    ("vra", "VRA at ε", "inputs answered rightly, where no change within ε gets another answer"),
    ("vra_2eps", "VRA at 2ε", "inputs answered rightly that a deployment at 2ε would answer too"),
    ("always_answered", "Always answered", "inputs, right or wrong, where no change within ε gets a rejection"),
    ("fpr_lower", "FPR, at least: replayed", "answers that the replayed attack forced into rejections"),
    ("black_box_fpr", "FPR, at least: from outside", "answers that an attack on the endpoint alone forced"),
    ("fpr_upper", "FPR, at most", "answers not proven to hold out: availability radius at most ε"),
    ("fpr_lower_correct", "FPR of right answers, at least", "right answers that the replayed attack forced"),
    ("fpr_upper_correct", "FPR of right answers, at most", "right answers not proven to hold out"),
    ("vra_under_attack", "VRA under attack", "inputs still answered rightly after the attack"),
    ("utility_reduction", "Utility reduction", "inputs answered rightly until the attack forced a rejection"),
)  # fmt: skip

_STRATA = {
    "class": "The right class; where there are no labels, the network’s own.",
    "confidence": "How sure the network was: the largest entry of the scores’ softmax, or the share of votes.",
    "version": "The model’s versions in the log.",
    "time": "The log’s files, as they followed each other.",
}
_KINDS = {"artefact": "Audit of an artefact", "endpoint": "Audit of a served model", "log": "Audit of a request log"}
_SOURCES = {
    "manifest": "the manifest",
    "model": "the Keras model",
    "given": "whoever audited",
    "answers": "the endpoint’s answers",
    "radii": "the radii of the answers",
}
_RADII = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def render(report: AuditFigures) -> str:
    """Return a report as HTML."""
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "interval": interval,
        "breakable": lambda name: Markup("_<wbr>").join(name.split("_")),  # escapes the parts
        "thousands": lambda value: f"{value:,}",
        "number": lambda value: "–" if value is None else f"{value:.4g}",
        "of": lambda value, longest: f"{100 * min(max(float(value) / longest, 0.0), 1.0):.2f}",
        "figure": _figure,
    }
    rates = report.rates()
    subject = report.subject
    version = "" if subject.version is None else f", version {subject.version}"
    return templating.render(
        "report.html",
        filters,
        Path(__file__).parent / "templates",
        report=report,
        title=(subject.name or subject.location) + version,
        kind=_KINDS[subject.kind],
        about=_about(report),
        verdict=_verdict(report),
        judged=report.verdict != "NOT JUDGED",
        lower=report.best_fpr_lower,
        upper=report.fpr_upper,
        epsilon="–" if subject.epsilon is None else f"{subject.epsilon:.6g}",
        cards=_cards(report),
        contents=_contents(report),
        bracket=_bracket(report),
        metrics=METRICS,
        names={name: title for name, title, _ in _ROWS},
        rows=[(title, what, rates[name]) for name, title, what in _ROWS if rates[name] is not None],
        pairs=pair_images(report),
        scale=difference_scale(report),
        curves=_curves(report),
        table=_table(report),
        strata_tables=[
            (kind, strata, max(s.rejection_rate.interval[1] for s in strata), _STRATA[kind])
            for kind, strata in report.strata.items()
            if strata
        ],
        identity=_identity(report),
    )  # fmt: skip


def percent(value: Rate | float | None) -> str:
    """Return `12.3 %`, with as many digits as keep small and nearly full rates apart from 0 and 100."""
    if value is None:
        return "–"
    share = 100 * float(value)
    digits = 1 if share in (0.0, 100.0) or 0.1 <= share <= 99.9 else 3
    return f"{share:.{digits}f} %"


def interval(rate: Rate) -> str:
    """Return `12.3–14.5 %`, the ends as `percent` writes them."""
    low, high = (percent(end) for end in rate.interval)
    return f"{low.removesuffix(' %')}–{high}"


def _figure(decision: DecisionRecord, name: str) -> str:
    value = getattr(decision, name)
    if value is None:
        return "not known"
    return percent(value) if decision.metric in SHARES else f"{value:.4g}"


def _about(report: AuditFigures) -> str:
    subject, manifest, parts = report.subject, report.manifest, []
    if subject.epsilon is not None:
        norm = {"l2": "ℓ₂ ", "linf": "ℓ∞ ", None: ""}[subject.norm]
        who = manifest.defence if manifest is not None else "A rejecting classifier"
        parts.append(f"{who}, defends {norm}changes up to ε = {subject.epsilon:.6g}")
    name = f" of {report.data['name']}" if report.data["name"] else ""
    parts.append(f"{report.data['points']:,} inputs{name}")
    return " · ".join(parts)


def _verdict(report: AuditFigures) -> str:
    if report.alarms:
        return "A certificate was seen broken." if report.broken else "Answers contradict themselves."
    if not report.decisions:
        return "No conditions were set; nothing that must not happen was seen."
    if report.warnings and not any(d.status == "FAIL" for d in report.decisions):
        return "Every limit holds, and the figures are doubtful: see the warning."
    count = {status: sum(d.status == status for d in report.decisions) for status in ("PASS", "WARN", "FAIL")}
    total = len(report.decisions)
    if count["FAIL"]:
        return f"{count['FAIL']} of {total} conditions {'fails' if count['FAIL'] == 1 else 'fail'}."
    if count["WARN"]:
        return f"Every limit holds; {count['WARN']} of {total} conditions {'warns' if count['WARN'] == 1 else 'warn'}."
    return "The condition holds." if total == 1 else f"All {total} conditions hold."


def _cards(report: AuditFigures) -> list[tuple[str, str, str, str]]:
    lower, upper = report.best_fpr_lower, report.fpr_upper
    none_answered = report.rejection_rate.count == report.rejection_rate.total
    if none_answered or (lower is None and upper is None):
        bracket = "–"
    elif lower is None:
        bracket = f"≤ {percent(upper)}"
    elif upper is None:
        bracket = f"≥ {percent(lower)}"
    else:
        bracket = f"{100 * lower:.1f}–{percent(upper)}"
    cards = [
        ("vra", "VRA at ε", report.vra, "answered rightly, proven within ε"),
        ("vra", "VRA at 2ε", report.vra_2eps, "right, and certified at 2ε"),
        ("", "Rejection rate", report.rejection_rate, "of the inputs as they came in"),
    ]
    shown = [(kind, name, percent(rate), what) for kind, name, rate, what in cards if rate is not None]
    if report.subject.kind != "log":
        shown.append(("fpr", "False positive rate", bracket, "answers that an attacker forces to be rejected"))
    return shown


def _contents(report: AuditFigures) -> list[tuple[str, str]]:
    sections = (
        ("bracket", "What an attacker can force", _bracket(report)),
        ("conditions", "Conditions", True),
        ("unknown", "What it cannot tell", report.unknown),
        ("figures", "All figures", True),
        ("pairs", "Pictures", report.pairs),
        ("curves", "Other radii", report.curves),
        ("advice", "Choosing ε", report.advice),
        *((f"strata-{kind}", f"By {kind}", strata) for kind, strata in report.strata.items()),
        ("comparison", "Baseline", report.comparison),
        ("certificate", "What it rests on", True),
        ("subject", "What was audited", True),
    )
    return [(name, title) for name, title, present in sections if present]


def _bracket(report: AuditFigures) -> dict[str, Any] | None:
    lower, upper = report.best_fpr_lower, report.fpr_upper
    total = report.rejection_rate.total - report.rejection_rate.count
    if report.subject.kind == "log" or not total or (lower is None and upper is None):
        return None
    low, high = 0.0 if lower is None else float(lower), 1.0 if upper is None else float(upper)
    low_text = "not known" if lower is None else percent(lower)
    return {
        "total": total,
        "done": f"{100 * low:.3f}",
        "open": f"{100 * max(high - low, 0):.3f}",
        "done_text": f"{low_text} forced into a rejection" if lower is not None else "0.0 % tried",
        "done_note": "No attack was run." if lower is None else f"Done here, to {lower.count:,} answers.",
        "open_text": f"{percent(max(high - low, 0))} open",
        "open_note": "No radii are known: nothing is excluded."
        if upper is None
        else "Neither done nor excluded: the availability radius is at most ε.",
        "safe_text": f"{percent(1 - high)} safe",
        "safe_note": "Proven: no change within ε forces a rejection.",
        "text": f"Of {total:,} answers, {low_text} were forced into rejections, {percent(1 - high)} provably cannot "
        f"be, and {percent(max(high - low, 0))} are open.",
    }


def _curves(report: AuditFigures) -> dict[str, Markup] | None:
    drawn = {}
    points = "; ".join(f"at {at} ({radius}) VRA {vra}, FPR at most {fpr}" for at, radius, vra, fpr in _table(report))
    for width in ("wide", "narrow"):
        figure = draw_radius_curves(report, narrow=width == "narrow")
        if figure is None:
            return None
        # Drawn here; matplotlib escapes what the report's texts bring.
        title, description = f"VRA and FPR bound over the radius, {width}", f"Two curves over the radius: {points}."
        svg = to_svg(figure, title, description)
        drawn[width] = Markup(svg)  # noqa: S704
    return drawn


def _table(report: AuditFigures) -> list[tuple[str, str, str, str]]:
    """Return the curves at some radii, for readers who do not see the picture."""
    curves, epsilon = report.curves, report.subject.epsilon
    if curves is None or epsilon is None:
        return []
    at = {round(radius / epsilon, 6): index for index, radius in enumerate(curves.radius)}
    return [
        (f"{multiple:g} ε", f"{multiple * epsilon:.4g}", percent(curves.vra[index]), percent(curves.fpr_upper[index]))
        for multiple, index in ((multiple, at[multiple]) for multiple in _RADII)
    ]


def _identity(report: AuditFigures) -> list[tuple[str, str]]:
    subject, m = report.subject, report.manifest
    rows = [(subject.kind.capitalize(), subject.location)]
    if subject.epsilon_from is not None:
        rows.append(("Epsilon from", _SOURCES[subject.epsilon_from]))
    if m is not None:
        packages = ", ".join(f"{package} {version}" for package, version in sorted(m.packages.items()))
        equal = "labels equal to the Keras model’s, scores"
        if m.sampling is not None:
            equal = "votes those of the Keras model up to chance, logits"
        rows += [
            ("Digest", m.digest),
            ("Exported", f"{m.created:%Y-%m-%d %H:%M} UTC"),
            ("With", packages),
            (
                "Check at export",
                f"{m.check.samples} inputs in TensorFlow’s C++ loader: {equal} up to {m.check.score_drift:.1g} "
                "(relative) apart",
            ),
        ]
    if subject.signatures:
        rows.append(("Signatures", ", ".join(subject.signatures)))
    trained = subject.training_range
    rows.append(("Inputs in training", "range not recorded" if trained is None else str(trained)))
    digest = "" if report.data["sha256"] is None else f", SHA-256 {report.data['sha256']}"
    digest += ", which the manifest lists as training data" if report.data["training_data"] else ""
    rows.append(("Data", f"{report.data['name'] or 'unnamed'}, {report.data['points']:,} inputs{digest}"))
    if (ends := report.data["range"]) is not None:
        rows.append(("Inputs of these data", f"{ends[0]:.4g} to {ends[1]:.4g}"))
    if report.queries:
        rows.append(("Inputs sent", f"{report.queries:,}"))
    rows.append(("Audited", report.created))
    return rows
