"""Whether what evaluates is what was bounded: the maps of a network, in each way they are used, against float64.

The bounds at run time are made by the same kernels as the logits: forward, transposed, with magnitudes and with squares
of weights. So each is compared with the exact map, entry by entry, on random values alone and in a batch; Keras's
layers one by one, and the whole network eagerly and compiled, with the exact network; and the compiled verdicts with
exact logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.gloro.graph import LipschitzGraph
from defended.gloro.layer_comparison import UNBUDGETED, compare_keras_layers
from defended.numerics.float32 import gamma
from defended.polytope.affine_maps import AffineMap
from defended.polytope.exact_maps import exact_form
from defended.polytope.graph import PolytopeGraph

Array = np.ndarray[Any, np.dtype[Any]]

_ROWS = 5
_ENTRIES = 2**22


class Subject(NamedTuple):
    """A network, the graph that was bounded, and how it is evaluated."""

    name: str
    network: keras.Model
    graph: PolytopeGraph
    rounding: bool
    """Whether the bounds pay for rounding."""
    rows_at_once: int
    logits: Callable[[Any], Any]
    """`[batch, m]` as verdicts use them."""
    margin_bounds: Callable[[Any], Any]
    """`[batch, m]`, lower bounds on the margins in a ball of radius 0."""
    compiled: Callable[..., Any]
    """Compiles functions of inputs, see `CompiledFunctions`."""
    judge: Callable[[Any], tuple[Any, Any, Any]]
    """Labels, rejections and radii `[batch]` as verdicts give them."""


def check_evaluation(subject: Subject, thorough: bool = True) -> None:
    """Raise where a map, a layer or the network is evaluated as a function other than the bounded one.

    Raises:
        ValueError: naming the layer, and how it was evaluated.
    """
    rng, layered = np.random.default_rng(0), LipschitzGraph(subject.network)
    seen: set[int] = set()
    for node in subject.graph.nodes:
        if node.map is not None and id(node.map) not in seen:
            seen.add(id(node.map))
            _check_map(node.map, node.layer, rng)
    shape = tuple(subject.network.input_shape[1:])
    rows = int(np.clip(_ENTRIES // max(node.size for node in subject.graph.nodes), 2, _ROWS))
    x = np.concatenate([rng.uniform(0, 1, (rows, *shape)), rng.normal(0, 3, (rows, *shape))]).astype("float32")
    exact = compare_keras_layers(layered, x, thorough)
    fine = np.abs(exact).max(axis=1) < 2.0**100  # beyond, sums may overflow: such inputs are rejected
    if fine.any():
        _check_logits(subject, exact[fine], x[fine])


def _check_logits(subject: Subject, exact: Array, x: Array) -> None:
    """Compare the network, as Keras's and as ours, eager and compiled, and the verdicts with exact logits `[n, m]`."""
    inputs = ops.convert_to_tensor(x)
    ours, whole = subject.logits, (lambda batch: subject.network(batch, training=False))
    runs = {
        "as verdicts are": ours(inputs),
        "as verdicts are, compiled": subject.compiled("values", ours, of_inputs=True)(inputs),
        "as a whole": whole(inputs),
        "as a whole, compiled": subject.compiled("network", whole, of_inputs=True)(inputs),
    }
    largest = float(np.abs(exact).max(initial=0.0))
    paid = np.full(exact.shape, UNBUDGETED * max(1.0, largest))
    if subject.rounding:
        # In a ball of radius 0 the bounds leave only what rounding may cost: at most this below the exact difference.
        bounds = ops.convert_to_numpy(subject.margin_bounds(inputs))
        top = ops.convert_to_numpy(ours(inputs)).argmax(axis=1)
        margins = exact[np.arange(len(x)), top][:, None] - exact
        # 2^-20 of the logits: the bounds are float32 numbers, and may be of another evaluation.
        paid = 2 * np.maximum(margins - bounds, 0.0) + 2.0**-20 * (1 + np.abs(exact))
        if (bounds > margins + 2.0**-20 * (1 + np.abs(exact))).any():
            raise ValueError(f"The bounds of {subject.name!r} on differences of logits are not bounds. {_REMEDY}")
    for how, found in runs.items():
        values = np.asarray(ops.convert_to_numpy(found), np.float64)
        apart = (values - values.max(axis=1, keepdims=True)) - (exact - exact.max(axis=1, keepdims=True))
        if not np.all(np.abs(apart) <= paid + paid.max(axis=1, keepdims=True)):
            raise ValueError(
                f"Network {subject.network.name!r}, evaluated {how}, is another function than its layers: logits "
                f"differ by {np.abs(apart).max():.3g}. {_REMEDY}"
            )
    judge, rows = subject.judge, subject.rows_at_once
    label = np.concatenate([ops.convert_to_numpy(judge(inputs[i : i + rows])[0]) for i in range(0, len(x), rows)])
    wrong = (label >= 0) & (label != exact.argmax(axis=1))
    if wrong.any():
        raise ValueError(
            f"{subject.name!r} answers {label[wrong][0]} where its network's exact logits are "
            f"{exact[wrong][0].round(4).tolist()}. {_REMEDY}"
        )


def _check_map(affine: AffineMap, layer: str, rng: np.random.Generator) -> None:
    """Check every way in which a map is used, at random values."""
    exact_map = exact_form(affine)
    if exact_map is None:
        return
    terms = max(affine.largest, 1) + 64
    values = rng.normal(size=(3, *affine.input_shape)).astype("float32")
    rows = rng.normal(size=(3, *affine.output_shape)).astype("float32")
    sizes, bias = np.abs(values), exact_map.bias
    wanted: dict[str, tuple[Any, Array, Array, Array | None]] = {
        "forward": (
            affine.forward, values, exact_map.plain(values) + bias, exact_map.magnitudes(sizes) + exact_map.offsets
        ),
        "with magnitudes of weights": (affine.magnitudes, sizes, exact_map.magnitudes(sizes), None),
        "with squares of weights": (affine.squares, sizes, exact_map.squares(sizes), None),
        "transposed": (affine.transposed, rows, *exact_map.transposed(rows)),
    }  # fmt: skip
    for how, (function, given, exact, size) in wanted.items():
        allowed = gamma(2 * terms) * (np.abs(exact) if size is None else size) + 2.0**-110
        for part in (slice(0, 3), slice(0, 1)):
            found = ops.convert_to_numpy(function(ops.convert_to_tensor(given[part]))).astype(np.float64)
            fine = allowed[part] < 2.0**100  # beyond, sums may overflow: what evaluates rejects such inputs
            if not np.all(np.abs(found - exact[part])[fine] <= allowed[part][fine]):
                raise ValueError(
                    f"Layer {layer!r} is not what was bounded: its map, evaluated {how}, is "
                    f"{np.nanmax(np.abs(found - exact[part])):.3g} from the exact one. {_REMEDY}"
                )


_REMEDY = (
    "Nothing is answered until both agree. Use Keras's own layers as they are, and evaluate in float32, without TF32, "
    "bfloat16 or other rewritings of graphs."
)
