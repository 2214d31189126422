"""A card for each trained net: what it is, how it was trained, what was measured of it, and where its limits are."""

from __future__ import annotations

import json
from typing import Any

from defended.pretrained import FOLDER, Entry, entry_of, index, path
from defended.statistics.intervals import Rate
from defended.statistics.rates import DEFINITIONS

MEASURED = FOLDER / "measured.json"
"""What `benchmarks/cards.py` measured."""

_DATA = {
    "mnist": ("MNIST", "28 × 28 grey levels, 10 digits"),
    "fashion_mnist": ("Fashion-MNIST", "28 × 28 grey levels, 10 kinds of clothes"),
    "cifar10": ("CIFAR-10", "32 × 32 colour photographs, 10 classes"),
    "gtsrb": ("GTSRB", "32 × 32 colour pictures of 43 German road signs"),
}
_LIMITS = {
    "GloroNet": (
        "What is proven is proven for changes in the ℓ₂ norm of at most ε, with pixels in [0, 1], and for this file's "
        "weights in float32; nothing is said of other changes, such as turning a picture.",
    ),
    "PolytopeNet": (
        "What is proven is proven for changes of each pixel by at most ε, with pixels in [0, 1], and for this file's "
        "weights in float32.",
    ),
    "SmoothedNet": (
        "An answer takes thousands of evaluations of the network, and each certificate is wrong with probability "
        "0.001 at most; it is for the ℓ₂ norm, with pixels in [0, 1].",
    ),
}
_LIMITS_OF_DATA = {
    "gtsrb": (
        "Trained on cut-out signs from German roads of 2010: not a part of any vehicle. Two of its classes have fewer "
        "than 70 test pictures, and what is measured of a single class is uncertain by many points.",
    ),
    "cifar10": ("97 of the 60,000 photographs were not lossless in the copy that was used, and are left out.",),
}
_ALWAYS = "A proven answer is stable, not necessarily right."


def measured() -> dict[str, Any]:
    """Return what was measured, by the net's name: `sha256`, `inputs`, `command`, and `rates` as counts and totals."""
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    return found


def card(name: str) -> str:
    """Return the card of a trained net as Markdown: data, recipe, figures with their 95 % intervals, limits, file.

    Raises:
        ValueError: for an unknown name.
    """
    entry = entry_of(name)
    data, pictures = _DATA[entry.data]
    settings = dict(entry.settings)
    epsilon, norm = settings.pop("epsilon"), {"l2": "ℓ₂", "linf": "ℓ∞"}[settings.pop("norm", "l2")]
    told = {key: f"{value:g}" if isinstance(value, float) else value for key, value in settings.items()}
    more = "".join(f", {key} = {value}" for key, value in told.items())
    what = f"{entry.network}, a `{entry.kind}`" if entry.network else f"A `{entry.kind}`"
    lines = [
        f"## {name}",
        "",
        f"{what} for {data} ({pictures}), that defends ε = {epsilon:g} ({norm}{more}).",
        "",
        *_figures(entry),
        f"**Trained** by `{entry.command}`.",
        "",
        "**Limits**",
        "",
        *(f"- {limit}" for limit in (_ALWAYS, *_LIMITS[entry.kind], *_LIMITS_OF_DATA.get(entry.data, ()))),
        "",
        f"**File**: `{name}.keras`, {path(name).stat().st_size / 1e6:.1f} MB, SHA-256 `{entry.sha256}`.",
    ]
    return "\n".join(lines) + "\n"


def _figures(entry: Entry) -> list[str]:
    """Return a table of what was measured of the net's file; nothing where another file was measured."""
    found = measured().get(entry.name)
    if found is None or found["sha256"] != entry.sha256:
        return ["Nothing was measured of this file: `python benchmarks/cards.py` does.", ""]
    lines = [f"| on {found['inputs']} | % | 95 % interval |", "|---|---:|---|"]
    for name, (count, total) in found["rates"].items():
        rate = Rate(count, total)
        low, high = rate.interval
        meaning = f"`{name}`: {DEFINITIONS[name].meaning}"
        lines.append(f"| {meaning} | {100 * rate:.2f} | {100 * low:.2f} to {100 * high:.2f} |")
    return [*lines, "", f"Measured by `{found['command']}`.", ""]


def cards() -> str:
    """Return the cards of all nets that ship, one below the other, by name."""
    return "\n".join(card(name) for name in sorted(index()))
