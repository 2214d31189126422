"""The end of a network: probabilities become the logits that they were made of, and one output becomes two."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from defended.adapting.plan import Node, Plan, has_activation
from defended.networks.layer_kinds import INERT

_MONOTONE = ("softmax", "log_softmax", "sigmoid", "hard_sigmoid", "log_sigmoid", "sparsemax", "sparse_plus")
"""What probabilities are made by: of several outputs, the largest stays the largest."""

_LOGITS = "losses and margins take logits; the same class is largest"


def squashing(layer: Any) -> str | None:
    """Return the name of what makes probabilities of a layer's values, as a layer or its `activation=`; or None."""
    if type(layer) is layers.Softmax:
        return "softmax"
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    return name if name in _MONOTONE else None


def to_logits(plan: Plan) -> None:
    """Take off the end of a plan what makes probabilities, and whatever does nothing after it."""
    while (node := plan.maker(plan.output)) is not None:
        name = squashing(node.layer)
        if type(node.layer) in (layers.Softmax, layers.Activation) and name:
            plan.record(
                "ending", node.name, name, "removed", "losses and margins take logits; the same class is largest"
            )
            plan.removed(node)
        elif name:
            plan.record(
                "ending", node.name, f"ends in {name}", "logits", "losses and margins take logits; the same class wins"
            )
            plan.reconfigured(node, activation=None)
        elif type(node.layer) in INERT:
            plan.removed(node)
        else:
            break
    last = plan.maker(plan.output)
    if last is not None and plan.shapes[last.output] == (1,):
        _to_two(plan, last)


def _to_two(plan: Plan, last: Node) -> None:
    """Make two logits of one: half of its negative, and half of it, so that class 1 wins where it is positive."""
    if type(last.layer) is not layers.Dense or last.name in plan.shared or has_activation(last.layer):
        raise ValueError(
            f"`network` ends in the single output of {last.name!r} ({type(last.layer).__name__}). Only a Dense layer's "
            f"can be made two: put `keras.layers.Dense(2)` at the end."
        )
    plan.reconfigured(last, units=2)
    last.weights = [np.concatenate([-weights / 2, weights / 2], axis=-1) for weights in last.weights]
    plan.shapes[last.output] = (2,)
    plan.record(
        "ending", last.name, "one logit", "two logits", "a margin is a difference of two; the decision is the same"
    )
