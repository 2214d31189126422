"""A user's network made certifiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from defended.adapting import substitutes
from defended.adapting.data import accuracy, checked_data
from defended.adapting.endings import to_logits
from defended.adapting.plan import Change, Plan, in_float32
from defended.gloro.graph import LipschitzGraph
from defended.gloro.rules import has_rule, rule_for
from defended.networks.checks import checked_network
from defended.networks.tracing import trace
from defended.smoothing.tokens import REMEDY, reads_tokens
from defended.text_table import text_table


@dataclass(frozen=True)
class Adaptation:
    """A network made certifiable, and what was changed for it; `print` shows it as a table."""

    network: keras.Model
    changes: tuple[Change, ...]
    accuracy_before: float | None = None
    """Share of the given data that the user's network classifies rightly; None without data."""
    accuracy: float | None = None
    """The same of the adapted network, before it is trained."""

    def __str__(self) -> str:
        if not self.changes:
            lines = ["Nothing to change: GloroNet takes the network as it is."]
        else:
            lines = [text_table([("layer", "was", "is now", "why"), *self._rows()], left=range(4))]
        if self.accuracy is not None:
            lines.append(f"Clean accuracy: {self.accuracy_before:.1%} before, {self.accuracy:.1%} now, untrained.")
        if self.changes:
            lines.append("Train it next: GloroNet(network, epsilon=...), with callbacks.recipe(...).")
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return a row for each change, like ones together."""
        names: dict[tuple[str, str, str], list[str]] = {}
        for change in self.changes:
            names.setdefault((change.was, change.now, change.why), []).append(change.layer)
        return [
            (", ".join(found) if len(found) < 4 else f"{found[0]} and {len(found) - 1} more", *what)
            for what, found in names.items()
        ]


def adapt(network: keras.Model, x: Any = None, y: Any = None, *, verbose: bool = True) -> keras.Model:
    """Return the network made certifiable: a new `keras.Model` that `GloroNet` takes, with the weights that carry over.

    What makes probabilities at the end is taken off, and one logit becomes two; batch normalisation is folded into the
    layer before or behind it, or goes where there is none; ReLU, GELU and their like become `MinMax`; max pooling
    becomes strides or averages; layer normalisation goes. Dropout, noise and augmentation stay for training. The
    network given is left as it is. Its class is kept by the ending and by what is folded, except before zero padding;
    where an activation or pooling was replaced, or something removed, the function is another one, which has to be
    trained (`callbacks.recipe`).

    Args:
        network: any built Sequential or functional classifier with one input and one output.
        x: inputs `[n, ...]`, in the units that the network takes; for the accuracies before and after.
        y: their labels, `[n]` or one-hot `[n, m]`.
        verbose: print what was changed; `adaptation` returns it.

    Raises:
        ValueError: for what cannot be adapted, naming every such layer, and the defence that takes the network as it
            is.
    """
    found = adaptation(network, x, y)
    if verbose:
        print(found)
    return found.network


def adaptation(network: keras.Model, x: Any = None, y: Any = None) -> Adaptation:
    """Return the network made certifiable together with the changes; arguments and errors are those of `adapt`."""
    if not isinstance(network, keras.Model):
        raise TypeError(f"`network` must be a Keras model. Received: {type(network).__name__}")
    inputs, labels = checked_data(network, x, y)
    if inputs is not None and labels is None:
        raise ValueError("`y`: give the labels of `x`, or leave both out.")
    try:
        with in_float32():
            plan = Plan(network)
            to_logits(plan)
            substitutes.split_activations(plan)
            substitutes.fold_normalisations(plan)
            substitutes.replace_pooling(plan)
            substitutes.replace_activations(plan)
            adapted = plan.build()
            _check_has_rules(plan, adapted)
            LipschitzGraph(checked_network(adapted))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} {other_defence(network)}") from None
    if inputs is None or labels is None:
        return Adaptation(adapted, tuple(plan.changes))
    shares = [accuracy(model, inputs, labels) for model in (network, adapted)]
    return Adaptation(adapted, tuple(plan.changes), *shares)


def _check_has_rules(plan: Plan, adapted: keras.Model) -> None:
    """Refuse a plan with layers that no rule is known for, or that their rule refuses, all of them at once.

    Raises:
        ValueError: naming them.
    """
    unknown = {node.name: node for node in plan.nodes if not has_rule(node.layer)}
    found = []
    if unknown:
        names = ", ".join(f"{node.name!r} ({node.kind})" for node in unknown.values())
        found.append(f"No certificate is known through {names}, and nothing stands in the place of such a layer.")
    found += [f"Layer {node.name!r} ({node.kind}) {node.refused}." for node in unknown.values() if node.refused]
    for step in trace(adapted).steps:
        if not has_rule(step.layer):
            continue
        try:
            rule_for(step.layer, step.input_shapes[0])
        except ValueError as error:
            found.append(str(error))
    if found:
        raise ValueError(" ".join(dict.fromkeys(found)))


SMOOTHING = (
    "`SmoothedNet(network, epsilon=..., sigma=...)` defends a network as it is, whatever its layers, "
    "at the price of many evaluations for an answer."
)


def other_defence(network: keras.Model) -> str:
    """Return in a sentence which defence takes a network that cannot be adapted."""
    try:
        reading = reads_tokens(network)
    except Exception:  # whatever the network cannot be asked about is said where it is smoothed
        reading = None
    return (
        SMOOTHING
        if reading is None
        else f"{reading!r} looks names of words up in a table, and no ball holds those. {REMEDY}"
    )
