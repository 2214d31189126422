"""One chunk of sampling and the gate, with noise and state passed in: for runtimes without a good generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from defended.defended_model import DefendedModel
from defended.margins import finite_rows


def step_function(model: DefendedModel) -> tuple[Callable[..., dict[str, Any]], list[Any]]:
    """Return CERTIFY's loop body as a stateless function, and the specification of its tensors.

    Inputs: `image` `[batch, ...]` float32; `noise` `[draws, ...]` float32, independent *standard* normal numbers, fresh
    for every call and unknown to whoever chose the images; `counts` `[batch, m]` int64, the votes so far; `candidate`
    `[batch]` int64, or -1 while candidates are being selected; `drawn` int64, how many draws `counts` holds.

    Outputs: `new_counts`, with this chunk's votes; `decided` `[batch]` bool; and, right where that is True, `label`
    int64 (-1 = rejected), `rejected` bool, `certified_radius` float32. The gate looks where `drawn + draws` is a
    checkpoint, so chunks must not step over one. An image that is not finite is decided, and rejected, at once.
    """
    gate, last = model.gate, len(model.gate.checkpoints) - 1
    epsilon, sigma, classes = float(model.epsilon), model.sigma, model.num_classes

    def step(image: Any, noise: Any, counts: Any, candidate: Any, drawn: Any) -> dict[str, Any]:
        # Made here, they belong to the graph; made outside, they would be further inputs of it.
        checkpoints, answer, futile, radius, offset = (tf.constant(part) for part in gate)
        finite = finite_rows(image)
        votes = model.votes_under(image, sigma * noise)
        counts += tf.where(finite[:, None], tf.cast(votes, tf.int64), tf.zeros_like(counts))
        now = tf.cast(drawn, tf.int32) + tf.shape(noise)[0]
        at = tf.equal(checkpoints, now)
        look = tf.reduce_sum(tf.where(at, tf.range(last + 1), 0))
        # A sum in place of a gather: a candidate of -1 then has no votes, and decides nothing.
        own = tf.reduce_sum(tf.cast(counts, tf.int32) * tf.one_hot(candidate, classes, dtype=tf.int32), axis=1)
        looking = tf.reduce_any(at) & (candidate >= 0) & finite
        answered = looking & (own >= tf.gather(answer, look))
        given_up = looking & (own <= tf.gather(futile, look))
        known = answered | (looking & tf.equal(look, last))
        proven = tf.where(known, tf.gather(radius, tf.where(known, tf.gather(offset, look) + own, 0)), 0.0)
        rejected = tf.logical_not(answered & (proven > epsilon))
        return {
            "new_counts": counts,
            "decided": answered | given_up | tf.logical_not(finite),
            "label": tf.where(rejected, tf.constant(-1, tf.int64), candidate),
            "rejected": rejected,
            "certified_radius": proven,
        }

    shape = tuple(model.input_shape[1:])
    specification = [
        tf.TensorSpec([None, *shape], tf.float32, name="image"),
        tf.TensorSpec([None, *shape], tf.float32, name="noise"),
        tf.TensorSpec([None, classes], tf.int64, name="counts"),
        tf.TensorSpec([None], tf.int64, name="candidate"),
        tf.TensorSpec([], tf.int64, name="drawn"),
    ]
    return step, specification
