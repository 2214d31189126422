"""Whether a network is one function of one input, however it is evaluated."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

TOLERANCE = 1e-3
"""Evaluations may differ by this share of the largest logit: reductions on a GPU are not reproducible to the bit, and
TF32 explains no more; noise and statistics of a batch move logits by far more."""


class Inconsistency(NamedTuple):
    """What was seen, and what to do."""

    what: str
    remedy: str


def inconsistency(network: keras.Model) -> Inconsistency | None:
    """Say how evaluations of a network that should be the same differ; None where they are the same.

    It compares, on three random inputs, the same batch twice, an input alone and two of them, and a compiled graph.
    """
    x = np.random.default_rng(0).uniform(size=(3, *network.input_shape[1:])).astype("float32")

    def logits(part: Any) -> Any:
        return network(part, training=False)

    once, again, alone, pair = (
        np.asarray(ops.convert_to_numpy(logits(ops.convert_to_tensor(part)))) for part in (x, x, x[:1], x[:2])
    )
    for other, what, remedy in (
        (again, "is random at inference: two evaluations of one input differ", "Remove the layer that draws"),
        (alone, "depends on the rest of the batch: an input alone gets other logits", "Use stored statistics"),
        (pair, "depends on the size of the batch: another one gives other logits", "Use stored statistics"),
        (_compiled(logits, x), "gives other logits in a compiled graph than layer by layer", "Evaluate it in float32"),
    ):
        reference = once[: len(other)]
        size = max(1.0, float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0)))
        if not np.allclose(other, reference, rtol=0, atol=TOLERANCE * size, equal_nan=True):
            return Inconsistency(what, remedy)
    return None


def _compiled(logits: Any, x: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return np.asarray(ops.convert_to_numpy(logits(ops.convert_to_tensor(x))))
    import tensorflow as tf

    return tf.function(logits, autograph=False)(tf.constant(x)).numpy()
