"""Compares the layers of a network, one by one, with the functions that their rules are about, in float64.

An output is compared with the exact one at the inputs that the same evaluation gave the layer, and may differ by what
adding up in float32 explains. The exact one (`networks.exact`) shares no code with what evaluates. Where a certificate
does not pay for rounding, it is not known how exact the machine is: outputs may differ by `UNBUDGETED` of the largest
entry.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.gloro.graph import LipschitzGraph
from defended.networks.exact import Exact, exact_layer

Array = np.ndarray[Any, np.dtype[Any]]

UNBUDGETED = 1e-3
"""Without a budget, outputs may differ by this share of their largest magnitude: TF32 explains no more."""

REMEDY = (
    "Nothing is answered until both agree. Use Keras's own layers as they are, or give a class of your own a rule "
    "(`defended.gloro.lipschitz_rule`); evaluate in float32."
)


class Run(NamedTuple):
    """One evaluation of the network: the value of every slot, and how it came about."""

    how: str
    values: dict[int, Array]


def compare_keras_layers(graph: LipschitzGraph, x: Array, thorough: bool = True) -> Array:
    """Return the exact logits `[n, m]` float64 at inputs `[n, ...]`; raise where one of Keras's layers differs.

    Raises:
        ValueError: naming the layer.
    """
    exact = exact_values(graph, x)
    if thorough:
        with without_warnings():
            compare_layers(graph, run_by_layers(graph, x), x, counted=True)
    return exact[graph.output_slot]


def compare_layers(graph: LipschitzGraph, run: Run, x: Array, counted: bool) -> None:
    """Compare each layer's output with the exact one at the inputs that the same evaluation gave it."""
    n = len(next(iter(run.values.values())))
    for step in graph.all_steps:
        inputs = [run.values[slot].astype(np.float64) for slot in step.inputs]
        rows = np.all([_fine(value) for value in inputs], axis=0)
        made, found = _exact_step(step, inputs), run.values[step.output]
        if made is None:
            _compare_distances(step, inputs[0], found, rows)
            continue
        tolerance = np.broadcast_to(np.asarray(made.tolerance), made.value.shape)
        if not counted:
            tolerance = tolerance + UNBUDGETED * max(1.0, float(np.abs(made.value[rows]).max(initial=0.0)))
        rows &= _fine(made.value)
        excess = np.abs(found.astype(np.float64) - made.value) - tolerance
        wrong = ~(excess.reshape(n, -1).max(axis=1) <= 0) & rows  # NaN is wrong, too
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            apart = np.nan_to_num(np.abs(found[row] - made.value[row]).ravel(), nan=np.inf)
            worst = int(np.argmax(apart - tolerance[row].ravel()))
            raise differs(step.layer, run.how, float(apart[worst]), float(tolerance[row].ravel()[worst]))


def _fine(value: Array) -> Array:
    """Return which rows have entries so small that no sum of them overflows in float32."""
    return np.nan_to_num(np.abs(value.reshape(len(value), -1)).max(axis=1, initial=0.0), nan=np.inf) < 2.0**60


def _compare_distances(step: Any, inputs: Array, found: Array, rows: Array) -> None:
    """Refuse a layer of the user's own whose outputs are further apart than its rule says."""
    if step.rule.operator is not None or len(step.inputs) > 1:
        return
    factor = step.rule.bound([1.0])
    points, values = (part[rows].reshape(int(rows.sum()), -1).astype(np.float64) for part in (inputs, found))
    for i in range(len(points) - 1):
        before, after = (np.linalg.norm(part[i + 1 :] - part[i], axis=1) for part in (points, values))
        rounding = 1e-5 * (np.linalg.norm(values[i]) + np.linalg.norm(values[i + 1 :], axis=1) + 1e-6)
        if (after > factor * before * (1 + 1e-6) + rounding).any():
            raise ValueError(
                f"Layer {step.layer.name!r} ({type(step.layer).__name__}) moves two inputs further apart than the "
                f"Lipschitz constant that it was given, {factor:.6g}, allows. Correct its rule or `lipschitz_bound()`."
            )


def run_by_layers(graph: LipschitzGraph, x: Array) -> Run:
    """Return Keras's evaluation of each layer at what the layers before it gave."""
    found = {0: ops.convert_to_tensor(x)}
    for step in graph.all_steps:
        found[step.output] = graph.evaluate.call_layer(step.layer, [found[slot] for slot in step.inputs])
    values = {slot: np.asarray(ops.convert_to_numpy(value)) for slot, value in found.items()}
    return Run("by its layers, called one by one", values)


def exact_values(graph: LipschitzGraph, x: Array) -> dict[int, Array]:
    """Evaluate the certified graph in float64, slot by slot, as far as its layers are known."""
    values = {0: x.astype(np.float64)}
    for step in graph.all_steps:
        if all(slot in values for slot in step.inputs):
            made = _exact_step(step, [values[slot] for slot in step.inputs])
            if made is not None:
                values[step.output] = made.value
    return values


def _exact_step(step: Any, inputs: list[Array]) -> Exact | None:
    try:
        return exact_layer(step.layer, inputs)
    except KeyError:  # an activation of one's own
        return None


def without_warnings() -> np.errstate:
    """Return a context without warnings of overflow, which comparisons allow for."""
    return np.errstate(over="ignore", invalid="ignore")


def differs(layer: keras.Operation, how: str, apart: float, allowed: float) -> ValueError:
    """Return the error for a layer whose output is further from the exact one than rounding explains."""
    return ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}), evaluated {how}, is not the function that was proven: its "
        f"output is {apart:.3g} from the exact one, where rounding explains {allowed:.3g}. Was its `call` replaced, is "
        f"a setting another one than the layer shows, or does a kernel of this machine compute something else? "
        f"{REMEDY}"
    )
