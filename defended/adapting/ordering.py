"""Which activations the classes are read from without a linear layer in between."""

from __future__ import annotations

from keras import layers

from defended.adapting.plan import Plan
from defended.networks.layer_kinds import AVERAGING, FRAMING, INERT, MAXIMA, MOVING

_PASSING = (
    *INERT, *MOVING, *FRAMING, *AVERAGING, *MAXIMA, layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU,
    layers.PReLU, layers.Softmax, layers.Rescaling, layers.Normalization, layers.BatchNormalization, layers.Add,
    layers.Subtract, layers.Average, layers.Concatenate,
)  # fmt: skip
"""They keep each channel to itself, so that one above another stays above it."""


def kept_in_order(plan: Plan) -> set[int]:
    """Return the values that reach the output without a linear layer that mixes channels."""
    found: set[int] = set()
    left = [plan.output]
    while left:
        value = left.pop()
        node = plan.maker(value)
        if node is None or value in found:
            continue
        found.add(value)
        if type(node.layer) in _PASSING:
            left.extend(node.inputs)
    return found
