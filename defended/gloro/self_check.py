"""Is what evaluates what was proven? Seen on inputs, before a model counts as final.

Four evaluations are compared: Keras's own, layer by layer and as a whole; the one that verdicts use; each of them
eagerly and compiled, on an input alone and in batches; and the certified graph in float64 (`networks.exact`), which
shares no code with them. Layer by layer, an output may differ from the exact one by what adding up in float32 explains;
as a whole, by the proven budget for rounding. Inputs are random ones of several sizes and kinds, points where the
predicted class changes, and points to which the difference between two evaluations was driven.

Where the certificate does not pay for rounding (`rounding=False`), what is exact is not known of the machine: outputs
may differ by `UNBUDGETED` of the largest entry.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.networks.exact import Exact, exact_layer

if TYPE_CHECKING:
    from defended.gloro.gloro_net import GloroNet
    from defended.gloro.graph import LipschitzGraph, Proof

Array = np.ndarray[Any, np.dtype[Any]]

UNBUDGETED = 1e-3
"""Without a budget, outputs may differ by this share of their largest magnitude: TF32 explains no more."""

_MOST_INPUTS, _FEWEST_INPUTS = 12, 3
_ENTRIES = 2**22  # of the largest value, all inputs together
_PARTS = (1, 2, 5)  # batches of these sizes, besides all inputs at once


class _Run(NamedTuple):
    """One evaluation of the network: the value of every slot, and how it came about."""

    how: str
    values: dict[int, Array]


def check_evaluation(model: GloroNet, graph: LipschitzGraph, proof: Proof, thorough: bool = True) -> None:
    """Raise where an evaluation of the network is not the function that was proven.

    Args:
        model: the model; its bounds are proven, and its seal is set.
        graph: the graph that was proven.
        proof: what was proven of it.
        thorough: False spares the search for inputs that tell evaluations apart, and Keras's layers one by one.

    Raises:
        ValueError: naming the first layer whose output differs, how it was evaluated, and by how much.
    """
    x = _inputs(model, graph, thorough)
    exact = _exact_values(graph, x)
    with _without_warnings():
        for run in _runs(model, graph, x, thorough):
            _compare_layers(graph, run, x, model.rounding)
            if model.rounding:
                _compare_with_budget(graph, proof, run, exact, x)
        _compare_wholes(model, graph, proof, exact, x)


def compare_keras_layers(graph: LipschitzGraph, x: Array, thorough: bool = True) -> Array:
    """Exact logits `[n, m]` float64 at inputs `[n, ...]`; raises where a layer of Keras's is another function.

    Raises:
        ValueError: naming the layer.
    """
    exact = _exact_values(graph, x)
    if thorough:
        with _without_warnings():
            _compare_layers(graph, _by_layers(graph, x), x, counted=True)
    return exact[graph.output_slot]


def _without_warnings() -> Any:
    return np.errstate(over="ignore", invalid="ignore")


# Inputs.


def _inputs(model: GloroNet, graph: LipschitzGraph, thorough: bool) -> Array:
    """Float32 inputs `[n, ...]` that ought to tell evaluations apart."""
    shape = tuple(model.network.input_shape[1:])
    largest = max([math.prod(shape), *(math.prod(step.shape) for step in graph.all_steps)])
    n = int(np.clip(_ENTRIES // max(largest, 1), _FEWEST_INPUTS, _MOST_INPUTS if thorough else _FEWEST_INPUTS + 1))
    rng = np.random.default_rng(0)
    kinds = [
        rng.uniform(0, 1, shape), rng.normal(0, 1, shape), rng.normal(0, 1, shape) * 300, rng.uniform(-1, 0, shape),
        np.where(rng.uniform(size=shape) < 0.1, rng.uniform(0, 1, shape), 0), rng.integers(0, 256, shape),
        rng.normal(0, 1e-3, shape), np.full(shape, 0.5), rng.normal(0, 30, shape), np.zeros(shape),
    ]  # fmt: skip
    x = np.stack([kinds[index % len(kinds)] * (1 + index // len(kinds)) for index in range(n)]).astype("float32")
    if not thorough or keras.backend.backend() != "tensorflow":
        return x
    return np.concatenate([x, _ties(model, x[:4]), _apart(model, graph, x[:2])])


def _ties(model: GloroNet, x: Array) -> Array:
    """A point near a change of the predicted class, on the way from the first input to another one; `[0 or 1, ...]`."""

    def classes(points: Array) -> Array:
        return np.asarray(ops.convert_to_numpy(model.network(points, training=False))).argmax(axis=1)

    found = classes(x)
    other = np.flatnonzero(found != found[0])
    if not len(other):
        return x[:0]
    low, high = x[0], x[other[0]]
    for _ in range(3):
        line = np.stack([low + (high - low) * np.float32(share) for share in np.linspace(0, 1, 9)])
        changed = np.flatnonzero(classes(line) != found[0])
        first = changed[0] if len(changed) and changed[0] else 1
        low, high = line[first - 1], line[first]
    return low[None]


def _apart(model: GloroNet, graph: LipschitzGraph, x: Array) -> Array:
    """Inputs moved to where the network's own evaluation and that of verdicts differ more."""
    import tensorflow as tf

    size = np.float32(np.abs(x).max())
    point = tf.constant(x)
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(point)
            difference = model.network(point, training=False) - graph.evaluate(point)
            apart = tf.reduce_sum(tf.square(difference))
        gradient = tape.gradient(apart, point)
        if gradient is None:
            return x[:0]
        point = point + 0.5 * size * tf.sign(tf.where(tf.math.is_finite(gradient), gradient, 0.0))
    return point.numpy()


# Evaluations.


def _runs(model: GloroNet, graph: LipschitzGraph, x: Array, thorough: bool) -> list[_Run]:
    def verdicts(part: Any) -> dict[int, Any]:
        return graph.evaluate.values(part)

    every = [slice(0, len(x))]
    cuts = [slice(sum(_PARTS[:k]), sum(_PARTS[: k + 1])) for k in range(len(_PARTS))]
    compiled = model._compiled("values", verdicts, of_inputs=True)
    runs = [_collected("as verdicts are, compiled", graph, compiled, x, every)]
    if thorough:
        runs.append(_by_layers(graph, x))
        runs.append(_collected("as verdicts are, in small batches", graph, verdicts, x, cuts))
    return runs


def _by_layers(graph: LipschitzGraph, x: Array) -> _Run:
    found = {0: ops.convert_to_tensor(x)}
    for step in graph.all_steps:
        found[step.output] = graph.evaluate.call_layer(step.layer, [found[slot] for slot in step.inputs])
    values = {slot: np.asarray(ops.convert_to_numpy(value)) for slot, value in found.items()}
    return _Run("by its layers, called one by one", values)


def _collected(how: str, graph: LipschitzGraph, evaluate: Any, x: Array, parts: list[slice]) -> _Run:
    found: dict[int, list[Array]] = {}
    for part in parts:
        if not len(x[part]):
            continue
        for slot, value in evaluate(ops.convert_to_tensor(x[part])).items():
            found.setdefault(slot, []).append(graph.evaluate.in_order(slot, value))
    return _Run(how, {slot: np.concatenate(values) for slot, values in found.items()})


def _exact_values(graph: LipschitzGraph, x: Array) -> dict[int, Array]:
    """The certified graph in float64, slot by slot, as far as its layers are known."""
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


# Comparisons.


def _compare_layers(graph: LipschitzGraph, run: _Run, x: Array, counted: bool) -> None:
    """Each layer's output with the exact one at the inputs that the same evaluation gave it."""
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
            raise _differs(
                step.layer, run.how, float(np.abs(found[row] - made.value[row]).max()), float(np.max(tolerance[row]))
            )


def _fine(value: Array) -> Array:
    """Rows whose entries are so small that no sum of them overflows in float32."""
    return np.nan_to_num(np.abs(value.reshape(len(value), -1)).max(axis=1, initial=0.0), nan=np.inf) < 2.0**60


def _compare_distances(step: Any, inputs: Array, found: Array, rows: Array) -> None:
    """A layer of the user's own: its outputs must not be further apart than its rule says."""
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


def _compare_with_budget(graph: LipschitzGraph, proof: Proof, run: _Run, exact: dict[int, Array], x: Array) -> None:
    """Every value with the exact one at the network's input: within the proven bound on its error."""
    n = len(next(iter(run.values.values())))
    norms = np.linalg.norm(x[:n].reshape(n, -1).astype(np.float64), axis=1)
    usable = norms < proof.limit
    for step in graph.all_steps:
        bound = proof.slot_errors.get(step.output)
        if bound is None or step.output not in exact:
            continue
        apart = (run.values[step.output].astype(np.float64) - exact[step.output][:n]).reshape(n, -1)
        distance, allowed = np.linalg.norm(apart, axis=1), (bound[0] + bound[1] * norms) * (1 + 1e-9)
        wrong = usable & np.isfinite(allowed) & ~(distance <= allowed)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise _differs(step.layer, run.how, float(distance[row]), float(allowed[row]))


def _compare_wholes(model: GloroNet, graph: LipschitzGraph, proof: Proof, exact: dict[int, Array], x: Array) -> None:
    """The whole network, eager and compiled, and the compiled verdicts, with the exact logits."""
    logits, inputs = exact.get(graph.output_slot), ops.convert_to_tensor(x)
    compiled_network = model._compiled("network", lambda batch: model.network(batch, training=False), of_inputs=True)
    whole = {"as a whole": model.network(x, training=False), "compiled": compiled_network(inputs)}
    judged = [ops.convert_to_numpy(part) for part in model._judge()(inputs)]
    reference = ops.convert_to_numpy(graph.evaluate(inputs))
    norms = np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)
    for how, found in whole.items():
        found = np.asarray(ops.convert_to_numpy(found), np.float64)
        expected = reference.astype(np.float64) if logits is None else logits
        top = (np.arange(len(x)), expected.argmax(axis=1))
        # What was proven of the error of the differences from the largest logit, [n, m].
        allowed = (proof.errors[0][top[1]] + proof.errors[1][top[1]] * norms[:, None]) * (1 + 1e-9) + 1e-30
        if not model.rounding:
            allowed = np.full_like(allowed, UNBUDGETED * max(1.0, float(np.abs(expected).max())))
        apart = np.abs((found[top][:, None] - found) - (expected[top][:, None] - expected))
        usable = np.isfinite(expected).all(axis=1) & (norms < proof.limit)
        wrong = usable & ~np.all(apart <= (2 if logits is None else 1) * allowed, axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"Network {model.network.name!r}, evaluated {how}, is another function than its layers: logits "
                f"differ by {apart[row].max():.3g} where rounding explains {allowed[row].max():.3g}. Does it override "
                f"`__call__` or `call`, or is TF32, bfloat16 or another rewriting of graphs switched on? {_REMEDY}"
            )
    _compare_verdicts(model, judged, reference if logits is None else logits, x)


def _compare_verdicts(model: GloroNet, judged: list[Array], logits: Array, x: Array) -> None:
    """The compiled verdicts against the logits: an answer is the largest one, by a margin that its radius needs."""
    label, _, radius = judged
    constants = model._proof.values()["margin_lipschitz"].astype(np.float64)
    for row in np.flatnonzero(label >= 0):
        margins = logits[row, label[row]] - logits[row]
        needed = np.where(np.arange(len(margins)) == label[row], 0.0, radius[row] * constants[label[row]])
        slack = UNBUDGETED * max(1.0, float(np.abs(logits[row]).max())) if not model.rounding else 0.0
        if not np.all(margins >= needed - slack - 1e-30):
            raise ValueError(
                f"{model.name!r} answers {label[row]} with the radius {radius[row]:.6g} where its network's "
                f"exact logits are {logits[row].round(4).tolist()}: the verdicts are not evaluated as they were "
                f"proven. {_REMEDY}"
            )


_REMEDY = (
    "Nothing is answered until both agree. Use Keras's own layers as they are, or give a class of your own a rule "
    "(`defended.gloro.lipschitz_rule`); evaluate in float32."
)


def _differs(layer: Any, how: str, apart: float, allowed: float) -> ValueError:
    return ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}), evaluated {how}, is not the function that was proven: its "
        f"output is {apart:.3g} from the exact one, where rounding explains {allowed:.3g}. Was its `call` replaced, is "
        f"a setting another one than the layer shows, or does a kernel of this machine compute something else? "
        f"{_REMEDY}"
    )
