"""Is what is evaluated what was proven? Checked on inputs, before a model counts as final.

Four evaluations are compared: Keras's own, layer by layer and as a whole; the one that verdicts use; each of them
eagerly and compiled, on an input alone and in batches; and the certified graph in float64 (`networks.exact`), which
shares no code with them. Layer by layer, an output may differ from the exact one by what adding up in float32 explains;
as a whole, by the proven budget for rounding. Inputs are random ones of several sizes and kinds, points where the
predicted class changes, and points to which the difference between two evaluations was driven.

Where the certificate does not pay for rounding (`rounding=False`), it is not known how exact the machine is: outputs
may differ by `UNBUDGETED` of the largest entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.gloro.graph import LipschitzGraph
from defended.gloro.layer_comparison import (
    REMEDY,
    UNBUDGETED,
    Run,
    compare_layers,
    differs,
    exact_values,
    run_by_layers,
    without_warnings,
)
from defended.gloro.proof import Proof
from defended.gloro.second_look import SHARE

Array = np.ndarray[Any, np.dtype[Any]]

_MOST_INPUTS, _FEWEST_INPUTS = 12, 3
_ENTRIES = 2**22  # of the largest value, all inputs together
_PARTS = (1, 2, 5)  # batches of these sizes, besides all inputs at once


class Subject(NamedTuple):
    """A network, what was proven of it, and how it is evaluated."""

    name: str
    network: keras.Model
    graph: LipschitzGraph
    """The graph that was proven."""
    proof: Proof
    constants: Array
    """`[m, m]`, the matrix K that answers rest on."""
    rounding: bool
    """Whether the certificate pays for rounding."""
    compiled: Callable[..., Any]
    """Compiles functions of inputs, see `CompiledFunctions`."""
    judge: Callable[[Any], tuple[Any, Any, Any]]
    """Labels, rejections and radii `[batch]` as verdicts give them; the seal is set."""
    in_float64: Callable[[Any], Any] | None = None
    """The network's logits in float64, of a model that looks twice."""


def check_evaluation(subject: Subject, thorough: bool = True) -> None:
    """Raise where an evaluation of the network is not the function that was proven.

    Args:
        subject: what is checked.
        thorough: False omits the search for inputs that tell evaluations apart, and Keras's layers one by one.

    Raises:
        ValueError: naming the first layer whose output differs, how it was evaluated, and by how much.
    """
    with without_warnings():
        x = _inputs(subject, thorough)
        exact = exact_values(subject.graph, x)
        for run in _runs(subject, x, thorough):
            compare_layers(subject.graph, run, x, subject.rounding)
            if subject.rounding:
                _compare_with_budget(subject, run, exact, x)
        _compare_wholes(subject, exact, x)


# Inputs.


def _inputs(subject: Subject, thorough: bool) -> Array:
    """Return float32 inputs `[n, ...]` that ought to tell evaluations apart."""
    network, graph = subject.network, subject.graph
    shape = tuple(network.input_shape[1:])
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
    network_of, values = _compiled_network(subject), _compiled_values(subject)

    def logits(points: Array) -> Array:
        return np.asarray(ops.convert_to_numpy(network_of(ops.convert_to_tensor(points))))

    def difference(points: Array) -> Array:
        verdicts = values(ops.convert_to_tensor(points))[graph.output_slot]
        return np.square(logits(points) - graph.evaluate.in_order(graph.output_slot, verdicts)).sum(axis=1)

    return np.concatenate([x, _ties(logits, x[:4]), _apart(difference, x[:2])])


def _ties(logits: Callable[[Any], Array], x: Array) -> Array:
    """Return a point near a change of the predicted class, between the first input and another one; `[0 or 1, ...]`."""
    found = logits(x).argmax(axis=1)
    other = np.flatnonzero(found != found[0])
    if not len(other):
        return x[:0]
    low, high = x[0], x[other[0]]
    for _ in range(3):
        line = np.stack([low + (high - low) * np.float32(share) for share in np.linspace(0, 1, 9)])
        changed = np.flatnonzero(logits(line).argmax(axis=1) != found[0])
        first = changed[0] if len(changed) and changed[0] else 1
        low, high = line[first - 1], line[first]
    return low[None]


def _apart(difference: Callable[[Array], Array], x: Array) -> Array:
    """Return inputs moved, at random, to where the network's own evaluation and that of verdicts differ more."""
    rng, size = np.random.default_rng(1), 0.5 * np.float32(np.abs(x).max())
    for _ in range(3):
        moved = x[:, None] + size * rng.choice([-1.0, 0.0, 1.0], (len(x), 8, *x.shape[1:])).astype("float32")
        tried = np.concatenate([x[:, None], moved], axis=1)
        apart = np.nan_to_num(difference(tried.reshape(-1, *x.shape[1:])), nan=np.inf).reshape(len(x), -1)
        x = tried[np.arange(len(x)), apart.argmax(axis=1)]
    return x


# Evaluations.


def _compiled_network(subject: Subject) -> Callable[[Any], Any]:
    """Return the whole network as Keras calls it, compiled."""
    return subject.compiled("network", lambda batch: subject.network(batch, training=False), of_inputs=True)


def _compiled_values(subject: Subject) -> Callable[[Any], dict[int, Any]]:
    """Return what each slot holds as verdicts evaluate it, compiled."""
    return subject.compiled("values", lambda batch: subject.graph.evaluate.values(batch), of_inputs=True)


def _runs(subject: Subject, x: Array, thorough: bool) -> list[Run]:
    graph = subject.graph
    every = [slice(0, len(x))]
    cuts = [slice(sum(_PARTS[:k]), sum(_PARTS[: k + 1])) for k in range(len(_PARTS))]
    runs = [_collected("as verdicts are, compiled", graph, _compiled_values(subject), x, every)]
    if thorough:
        runs.append(run_by_layers(graph, x))
        runs.append(_collected("as verdicts are, in small batches", graph, graph.evaluate.values, x, cuts))
    return runs


def _collected(how: str, graph: LipschitzGraph, evaluate: Any, x: Array, parts: list[slice]) -> Run:
    found: dict[int, list[Array]] = {}
    for part in parts:
        if not len(x[part]):
            continue
        for slot, value in evaluate(ops.convert_to_tensor(x[part])).items():
            found.setdefault(slot, []).append(graph.evaluate.in_order(slot, value))
    return Run(how, {slot: np.concatenate(values) for slot, values in found.items()})


# Comparisons.


def _compare_with_budget(subject: Subject, run: Run, exact: dict[int, Array], x: Array) -> None:
    """Compare every value with the exact one at the network's input: within the proven bound on its error."""
    n = len(next(iter(run.values.values())))
    norms = np.linalg.norm(x[:n].reshape(n, -1).astype(np.float64), axis=1)
    proof, usable = subject.proof, norms < subject.proof.limit
    for step in subject.graph.all_steps:
        bound = proof.slot_errors.get(step.output)
        if bound is None or step.output not in exact:
            continue
        apart = (run.values[step.output].astype(np.float64) - exact[step.output][:n]).reshape(n, -1)
        distance, allowed = np.linalg.norm(apart, axis=1), (bound[0] + bound[1] * norms) * (1 + 1e-9)
        wrong = usable & np.isfinite(allowed) & ~(distance <= allowed)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise differs(step.layer, run.how, float(distance[row]), float(allowed[row]))


def _compare_wholes(subject: Subject, exact: dict[int, Array], x: Array) -> None:
    """Compare the whole network, eager and compiled, and the compiled verdicts, with the exact logits."""
    network, graph, proof = subject.network, subject.graph, subject.proof
    logits, inputs = exact.get(graph.output_slot), ops.convert_to_tensor(x)
    whole = {"as a whole": network(x, training=False), "compiled": _compiled_network(subject)(inputs)}
    if subject.in_float64 is not None:
        whole["in float64"] = subject.in_float64(inputs)
    judged = [ops.convert_to_numpy(part) for part in subject.judge(inputs)]
    reference = ops.convert_to_numpy(graph.evaluate(inputs))
    norms = np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)
    for how, found in whole.items():
        found = np.asarray(ops.convert_to_numpy(found), np.float64)
        expected = reference.astype(np.float64) if logits is None else logits
        top = (np.arange(len(x)), expected.argmax(axis=1))
        # What was proven of the error of the differences from the largest logit, [n, m].
        allowed = (proof.errors[0][top[1]] + proof.errors[1][top[1]] * norms[:, None]) * (1 + 1e-9) + 1e-30
        if how == "in float64" and logits is not None:
            allowed = SHARE * allowed
        if not subject.rounding:
            allowed = np.full_like(allowed, UNBUDGETED * max(1.0, float(np.abs(expected).max())))
        apart = np.abs((found[top][:, None] - found) - (expected[top][:, None] - expected))
        usable = np.isfinite(expected).all(axis=1) & (norms < proof.limit)
        wrong = usable & ~np.all(apart <= (2 if logits is None else 1) * allowed, axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"Network {network.name!r}, evaluated {how}, is another function than its layers: logits "
                f"differ by {apart[row].max():.3g} where rounding explains {allowed[row].max():.3g}. Does it override "
                f"`__call__` or `call`, or is TF32, bfloat16 or another rewriting of graphs switched on? {REMEDY}"
            )
    _compare_verdicts(subject, judged, reference if logits is None else logits, x)


def _compare_verdicts(subject: Subject, judged: list[Array], logits: Array, x: Array) -> None:
    """Compare the compiled verdicts with the logits: an answer is the largest, by a margin that its radius needs."""
    label, _, radius = judged
    constants = subject.constants.astype(np.float64)
    for row in np.flatnonzero(label >= 0):
        margins = logits[row, label[row]] - logits[row]
        needed = np.where(np.arange(len(margins)) == label[row], 0.0, radius[row] * constants[label[row]])
        slack = UNBUDGETED * max(1.0, float(np.abs(logits[row]).max())) if not subject.rounding else 0.0
        if not np.all(margins >= needed - slack - 1e-30):
            raise ValueError(
                f"{subject.name!r} answers {label[row]} with the radius {radius[row]:.6g} where its network's "
                f"exact logits are {logits[row].round(4).tolist()}: the verdicts are not evaluated as they were "
                f"proven. {REMEDY}"
            )
