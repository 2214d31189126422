"""The artefact's `README.md`: a model card in the format that model hubs read, made from the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from defended.serving.artefacts.manifest import Manifest
from defended.serving.exporting.templating import render

MODEL_CARD = "README.md"

# The figures of `Susceptibility.summary` and their names in the card.
_METRICS = {
    "clean_accuracy": "accuracy, ⊥ left aside",
    "rejection_rate": "rejected without any attack",
    "vra": "right and certified (VRA)",
    "vra_2eps": "right, and not to be forced into ⊥ (VRA at 2ε)",
    "vra_under_attack": "right and certified under attack",
    "fpr_lower": "answers that the attack forced into ⊥ (false positive rate, at least)",
    "fpr_upper": "answers not proven to hold out (false positive rate, at most)",
}

_NO_MARKUP = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]>|#"} | {"<": "&lt;"})


def model_card(manifest: Manifest) -> str:
    """Return the card's text: Markdown with a YAML header."""
    figures = manifest.susceptibility or {}
    rates = {key: rate for key in _METRICS if (rate := _rate(figures.get(key))) is not None}
    shape = manifest.signatures["serving_default"].inputs["image"].shape
    drift = manifest.check.drift
    return render(
        "model_card.md.j2",
        filters={"yaml": _as_yaml, "md": _as_text},
        manifest=manifest,
        shape=f"[batch, {', '.join(map(str, shape[1:]))}]",
        metrics=[(key, value, _METRICS[key]) for key, (value, _) in rates.items()],
        intervals={key: interval for key, (_, interval) in rates.items()},
        dataset=str(figures.get("data", "held-out data")),
        evaluators=", ".join(drift.evaluators) if drift else "Keras and TensorFlow's C++ loader",
    )


def susceptibility_assumptions(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the assumptions behind the figures of `Susceptibility.summary`, in words."""
    attack = figures.get("attack")
    name = attack.get("attack") if isinstance(attack, Mapping) else None
    return (
        f"The lower bounds are what {f'the attack {name}' if name else 'the attack'} found: a stronger attack may find "
        "more, and none can exceed the upper bounds.",
        "The upper bounds rest on the certificate's assumptions, and on its radius falling by at most one per unit of "
        "distance.",
        "Intervals (Clopper–Pearson) speak of the distribution that the measured points were drawn from independently; "
        "service may meet another one.",
        "The points measured were not chosen, and the model not trained or selected, by looking at their figures.",
    )


def _rate(figure: Any) -> tuple[float, str] | None:
    """Return a figure's value and its interval in words, or None where it is not a share."""
    value = figure.get("value") if isinstance(figure, Mapping) else figure
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        low, high = (float(bound) for bound in figure["interval"])
        return float(value), f" ({100 * low:.2f} to {100 * high:.2f}, {float(figure['confidence']):.0%})"
    except (TypeError, KeyError, ValueError):
        return float(value), ""


def _as_yaml(text: str) -> str:
    """Return a scalar that YAML reads as this text: strings of JSON are strings of YAML."""
    return json.dumps(str(text), ensure_ascii=False)


def _as_text(text: str) -> str:
    """Return text on one line in which Markdown and HTML find no markup."""
    return " ".join(str(text).split()).translate(_NO_MARKUP)
