"""What a certificate will make of a user's network, before any training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, NamedTuple

import keras
import numpy as np

from defended.adapting.adapt import adaptation, other_defence
from defended.adapting.data import accuracy, checked_data
from defended.adapting.endings import to_logits
from defended.adapting.plan import Change, Plan, in_float32
from defended.adapting.scales import Advice, about_inputs
from defended.gloro.gloro_net import GloroNet
from defended.gloro.rules import rule_for
from defended.networks.checks import checked_radius
from defended.networks.tracing import Step, trace
from defended.text_table import text_table

_LARGEST_MAP = 2**17
"""Entries of a layer's output above which norms are estimated, not proven: a diagnosis should take seconds."""
_MUCH_ROUNDING = 0.05
"""Share of epsilon from which what rounding takes off a radius is worth a word."""


class LayerLine(NamedTuple):
    """What the certificate makes of one layer."""

    layer: str
    kind: str
    bound: float | None
    """Its Lipschitz constant in l2; None where no rule is known."""
    how: str
    """Whether the bound is proven or estimated, or why there is none."""


@dataclass(frozen=True)
class Diagnosis:
    """What a certificate makes of a network as it is; `print` shows it as a table."""

    epsilon: float
    layers: tuple[LayerLine, ...]
    advice: tuple[Advice, ...]
    lipschitz: float | None
    """Largest constant of a difference of two logits; where norms are estimates, about that of all logits together;
    None where a layer has none."""
    rounding: float | None
    """What float32's rounding takes off the certified radius of a typical input, in input units."""
    answered: float | None = None
    """Share of the given inputs that would be answered at epsilon, without any training for it."""
    median_radius: float | None = None
    clean_accuracy: float | None = None
    vra: float | None = None
    """Share of the given inputs that would be answered, and rightly."""

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data, for JSON."""
        rows = {
            "layers": [line._asdict() for line in self.layers],
            "advice": [item._asdict() for item in self.advice],
        }
        return {**asdict(self), **rows}

    def __str__(self) -> str:
        rows = [(line.layer, line.kind, "none" if line.bound is None else f"{line.bound:.4g}", line.how)
                for line in self.layers]  # fmt: skip
        lines = [text_table([("layer", "class", "bound", ""), *rows], left=(0, 1, 3)), ""]
        if self.lipschitz is not None and self.rounding is None:
            lines.append(f"A change of the input moves the logits by about {self.lipschitz:.4g} times its l2 norm.")
        elif self.lipschitz is not None:
            lines.append(f"A change of the input moves a margin by at most {self.lipschitz:.4g} times its l2 norm.")
        if self.rounding is not None:
            lines.append(f"Rounding takes {self.rounding:.2g} off the certified radius of a typical input.")
        if self.answered is not None:
            right = "" if self.vra is None else f", {self.vra:.1%} rightly (of {self.clean_accuracy:.1%} clean)"
            lines.append(
                f"As it is, {self.answered:.1%} of these inputs would be answered at epsilon {self.epsilon:g}{right}; "
                f"the median radius is {self.median_radius:.2g}."
            )
        for item in self.advice:
            measured = f" {item.measured}" if item.measured else ""
            lines.append(f"- {item.where}: {item.what}. {item.instead}.{measured}")
        if not self.advice:
            lines.append("Nothing stands in the way of a certificate.")
        return "\n".join(lines)


def diagnose(network: keras.Model, x: Any = None, y: Any = None, *, epsilon: float = 0.3) -> Diagnosis:
    """Return what a certificate will make of a network before any training: bounds, costs, and what to do.

    Args:
        network: any built Sequential or functional Keras classifier, softmax ending and unknown layers included; it is
            left as it is.
        x: inputs `[n, ...]` in the network's own units, a few hundred; for the share of answers to expect.
        y: their labels, `[n]` or one-hot.
        epsilon: the l2 radius that is to be defended, in units of the inputs.

    Returns:
        A `Diagnosis`: a line for each layer; and for each thing that costs answers what to do, with figures measured on
        a small net for Fashion-MNIST (`benchmarks/layer_choices.py`) where there are any. Norms are proven as
        `finalize` proves them; of networks too large for that within seconds they are estimates, and say so.

    Raises:
        ValueError: for a model whose layers cannot be seen, with several inputs or outputs, or data that do not fit.
    """
    checked_radius(epsilon)
    x, y = checked_data(network, x, y)
    with in_float32():
        plan = Plan(network)
        to_logits(plan)
        bare = plan.build()
    advice = [_ending(change) for change in plan.changes]
    steps = trace(bare).steps
    unknown = [step for step in steps if _estimated(step, quick=True).bound is None]
    clean = None if x is None or y is None else accuracy(network, x, y)
    if unknown or _is_large(steps):
        lines = tuple(_estimated(step) for step in steps)
        found = Diagnosis(epsilon, lines, (), _constant(lines, steps), None, clean_accuracy=clean)
    else:
        with in_float32():
            found = _proven(bare, x, y, epsilon, clean)
    advice += [*_replaceable(network, unknown), *_costly(found), *about_inputs(plan, x, epsilon)]
    return Diagnosis(**{**vars(found), "advice": tuple(advice)})


def _proven(bare: keras.Model, x: Any, y: Any, epsilon: float, clean: float | None) -> Diagnosis:
    """Return the diagnosis of a network that a GloRo Net takes as it is, from that net's own certificate."""
    model = GloroNet(bare, epsilon=epsilon)
    model.finalize()
    norm = None if x is None else float(np.median(np.linalg.norm(x.reshape(len(x), -1), axis=1)))
    report = model.certificate_report(norm)
    lines = tuple(LayerLine(line.layer, line.kind, line.bound, line.method) for line in report.layers)
    largest = float(model.margin_lipschitz.max())
    if x is None:
        return Diagnosis(epsilon, lines, (), largest, report.radius_spent)
    verdicts = model.verdicts(x)
    answered = ~verdicts.rejected
    vra = None
    if y is not None:
        vra = float((answered & (verdicts.label == y)).mean())
    return Diagnosis(
        epsilon, lines, (), largest, report.radius_spent, float(answered.mean()), float(np.median(verdicts.radius)),
        clean, vra,
    )  # fmt: skip


def _estimated(step: Step, quick: bool = False) -> LayerLine:
    """Return a layer's line by power iteration, which may be low; or `quick`, whether there is a bound at all."""
    name, kind = step.layer.name, type(step.layer).__name__
    try:
        rule = rule_for(step.layer, step.input_shapes[0])
        norm = None if rule.operator is None else 1.0 if quick else rule.operator.lower_estimate()
        bound = rule.bound([1.0] * len(step.inputs), norm)
    except ValueError as error:
        return LayerLine(name, kind, None, _first_sentence(error))
    return LayerLine(name, kind, bound, "closed form" if norm is None else "about, by power iteration")


def _constant(lines: tuple[LayerLine, ...], steps: list[Step]) -> float | None:
    """Return the product along a chain; None where a layer has no constant, or the network branches."""
    if any(line.bound is None for line in lines) or any(len(step.inputs) > 1 for step in steps):
        return None
    return math.prod(line.bound or 0.0 for line in lines)


def _is_large(steps: list[Step]) -> bool:
    return max((math.prod(step.shape) for step in steps), default=0) > _LARGEST_MAP or len(steps) > 60


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".") + "."


def _ending(change: Change) -> Advice:
    return Advice(change.layer, f"{change.was}: {change.why}", f"`adapt` makes it {change.now}")


_SCALE, _LOSS = "its scale multiplies the constant", "it loses margin that MinMax keeps"
_MAXIMUM = "a maximum passes on the whole change and little of the margin"
_REPLACED = {
    ("batch normalisation", "folded"): (_SCALE, "Fold it into its neighbour: `adapt` does"),
    ("batch normalisation", "removed"): (
        _SCALE, "Put a linear layer beside it that it can be folded into; as it is, `adapt` leaves it out",
    ),
    ("activation", "MinMax"): (_LOSS, "Replace it with MinMax: `adapt` does"),
    ("activation", "(kept)"): (
        _LOSS, "Give it an even number of features and a Dense layer behind it: then `adapt` makes it MinMax",
    ),
    ("max pooling", "strides"): (_MAXIMUM, "Use strides: `adapt` does"),
    ("max pooling", "Average"): (_MAXIMUM, "Use averages, as `adapt` makes of it, or strides"),
    ("normalisation", ""): ("it divides by a statistic of the input", "Leave it out: `adapt` does"),
}  # fmt: skip
"""For each kind of change, and what it makes: what is wrong, and what to do."""


def _replaceable(network: keras.Model, unknown: list[Step]) -> Iterable[Advice]:
    """Yield what `adapt` would change for the sake of the certificate, or that it cannot."""
    try:
        changes = adaptation(network).changes
    except ValueError as error:
        where = ", ".join(f"{step.layer.name} ({type(step.layer).__name__})" for step in unknown) or network.name
        yield Advice(where, _first_sentence(error).rstrip("."), other_defence(network).rstrip("."))
        return
    measured = _measured()
    for (kind, now), (what, instead) in _REPLACED.items():
        found = [change for change in changes if change.kind == kind and now in change.now]
        changes = tuple(change for change in changes if change not in found)
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            figures = measured.get(kind, "") if "`adapt` does" in instead else ""
            yield Advice(f"{found[0].layer}{more} ({found[0].was})", what, instead, figures)


def _costly(found: Diagnosis) -> Iterable[Advice]:
    if found.rounding is not None and found.rounding > _MUCH_ROUNDING * found.epsilon:
        yield Advice(
            "depth and width", f"rounding takes {found.rounding / found.epsilon:.0%} of epsilon off each radius",
            "Pass `second_look=True` to `GloroNet`, or use fewer and narrower layers",
        )  # fmt: skip
    enlarging = [line for line in found.layers if line.kind == "BatchNormalization" and (line.bound or 0) > 10]
    if enlarging:
        yield Advice(
            enlarging[0].layer,
            f"its scale enlarges distances up to {max(line.bound or 0 for line in enlarging):.0f} times",
            "Train the adapted network: norms fall when the loss sees them",
        )  # fmt: skip


def _measured() -> dict[str, str]:
    """Return what each kind of change was worth, in figures that `benchmarks/layer_choices.py` made."""
    table = json.loads(resources.files("defended.adapting").joinpath("measured.json").read_text(encoding="utf-8"))
    best = table["variants"]["adapted"]["vra"]
    return {
        kind: f"A CNN for {table['data']}, epsilon {table['epsilon']:g}: VRA {table['variants'][variant]['vra']:.1%} "
        f"with it, {best:.1%} without."
        for kind, variant in table["kinds"].items()
    }
