"""The end of a network: probabilities become the logits that they were made of, and one output becomes two."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.adapting.plan import Node, Plan, has_activation
from defended.networks.layer_kinds import INERT, MOVING
from defended.networks.tracing import trace

_MONOTONE = ("softmax", "log_softmax", "sigmoid", "hard_sigmoid", "log_sigmoid", "sparsemax", "sparse_plus")
"""What probabilities are made by: of several outputs, the largest stays the largest."""
_OF_ONE = ("sigmoid", "hard_sigmoid", "log_sigmoid", "tanh", "softsign")
"""Of a single output: it is above its middle where the value before is positive."""
_CONSTANT = ("softmax", "log_softmax", "sparsemax")
"""Of a single output they make the same value, whatever it was."""

_LOGITS = "losses and margins take logits; the same class is largest"


def squashing(layer: Any, shape: tuple[int, ...]) -> str | None:
    """Return the name of what makes probabilities of a layer's values, as a layer or its `activation=`; or None.

    Raises:
        ValueError: where a single output of `shape` becomes a constant.
    """
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    if type(layer) is layers.Softmax:
        name = "softmax" if layer.axis in (-1, len(shape)) else None
    if math.prod(shape) > 1:
        return name if name in _MONOTONE else None
    if name in _CONSTANT:
        raise ValueError(
            f"`network` ends in the {name} of a single output, in {layer.name!r}, which is the same for every input. "
            f"Use a sigmoid there, or two outputs, and train it."
        )
    return name if name in _OF_ONE else None


def threshold(network: keras.Model) -> float:
    """Return the output of a network with a single one above which its class is 1."""
    steps, value = trace(network)
    makers = {step.output: step for step in steps}
    while value in makers and type(makers[value].layer) in (*INERT, *MOVING):
        value = makers[value].inputs[0]
    last = makers[value].layer if value in makers else None
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__)
    middles = {"sigmoid": 0.5, "hardsigmoid": 0.5, "logsigmoid": math.log(0.5)}
    return middles.get(name.replace("_", "").lower(), 0.0)


def to_logits(plan: Plan) -> None:
    """Take off the end of a plan what makes probabilities, and whatever does nothing after it; make `[batch, m]` of it.

    Raises:
        ValueError: where a single output is the same for every input.
    """
    while (node := plan.maker(plan.output)) is not None:
        name = squashing(node.layer, plan.shapes[node.output])
        if type(node.layer) in (layers.Softmax, layers.Activation) and name:
            plan.record("ending", node.name, name, "removed", _LOGITS)
            plan.removed(node)
        elif name:
            plan.record(
                "ending", node.name, f"ends in {name}", "logits", "losses and margins take logits; the same class wins"
            )
            for other in [other for other in plan.nodes if other.layer is node.layer and other is not node]:
                plan.appended(other, layers.Activation(name, name=f"{node.layer.name}_activation"))
            plan.reconfigured(node, activation=None)
        elif type(node.layer) in INERT:
            plan.removed(node)
        else:
            break
    last = plan.maker(plan.output)
    if last is None:
        return
    shape = plan.shapes[last.output]
    if len(shape) > 1 and None not in shape and math.prod(shape) == shape[-1]:
        kept, last = last, plan.appended(last, layers.Flatten())
        plan.shapes[last.output] = shape[-1:]
        plan.record("ending", kept.name, f"outputs {shape}", f"outputs {shape[-1:]}", "logits are [batch, m]")
    if plan.shapes[last.output] == (1,):
        _to_two(plan, last)


def _to_two(plan: Plan, last: Node) -> None:
    """Make two logits of one: half of its negative, and half of it, so that class 1 wins where it is positive."""
    if type(last.layer) is layers.Dense and last.name not in plan.shared and not has_activation(last.layer):
        plan.reconfigured(last, units=2)
        last.weights = [np.concatenate([-weights / 2, weights / 2], axis=-1) for weights in last.weights]
        plan.shapes[last.output] = (2,)
    else:
        added = plan.appended(last, layers.Dense(2, name=f"{last.layer.name}_logits"))
        added.weights = [np.array([[-0.5, 0.5]], np.float32), np.zeros(2, np.float32)]
        plan.shapes[added.output] = (2,)
    plan.record(
        "ending", last.name, "one logit", "two logits", "a margin is a difference of two; the decision is the same"
    )
