"""Whether one radius means anything in the units of a network's inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from keras import layers

from defended.adapting.plan import Plan
from defended.networks.layer_kinds import INERT, MOVING

_APART = 4.0
"""Features whose deviations differ by more than this factor do not share a radius."""


class Advice(NamedTuple):
    """One thing that costs certified answers, and what to do about it."""

    where: str
    what: str
    instead: str
    measured: str = ""
    """What the substitute was worth on a net where it was tried; empty where it was not."""


def about_inputs(plan: Plan, x: Any, epsilon: float) -> Iterable[Advice]:
    """Yield what there is to say about the units of inputs `[n, ...]`, or of a plan that begins with a scaling."""
    inside: list[str] = []
    raw = {0}
    for node in plan.nodes:
        scaling = type(node.layer) in (layers.Rescaling, layers.Normalization)
        if raw.issuperset(node.inputs) and (scaling or type(node.layer) in (*INERT, *MOVING)):
            raw.add(node.output)
            inside += [node.name] * scaling
    if inside:
        yield Advice(
            ", ".join(inside),
            f"inputs are scaled inside of the network, so epsilon = {epsilon:g} is in units before that",
            "Give epsilon in the units that the network is fed with, such as 0.3 * 255 for bytes",
        )  # fmt: skip
    if x is None or not len(x):
        return
    lowest, highest = float(np.min(x)), float(np.max(x))
    if x.ndim == 2:
        deviations = np.std(x, axis=0, dtype=np.float64)
        moving = deviations[deviations > 0]
        if len(moving) and moving.max() > _APART * moving.min():
            yield Advice(
                "inputs",
                f"the features' standard deviations go from {moving.min():.3g} to {moving.max():.3g}, so that a single "
                "radius in raw units means nothing",
                "Standardise them outside of the certified network, as `defended train` does with tabular data",
            )  # fmt: skip
    elif (largest := max(abs(lowest), abs(highest))) > 8.0 and not inside:
        yield Advice(
            "inputs", f"they go from {lowest:.4g} to {highest:.4g}, and epsilon = {epsilon:g} is in these units",
            f"Divide them by {largest:.4g}, or take epsilon {largest:.4g} times as large",
        )  # fmt: skip
