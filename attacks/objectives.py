"""What an attack descends: functions `(model, x, labels) -> (descended, judged)`, two vectors `[batch]`.

Lower is better for the attacker. `descended` is differentiated; `judged` chooses the best point seen. They differ where
the one has better gradients and the other says more: cross-entropy reaches exactly 0 in float32 while the margin still
tells points apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Objective = Callable[[Any, Any, Any], tuple[Any, Any]]


def margins(logits: Any, labels: Any) -> Any:
    """`y_label - max over i != label of y_i`, `[batch]`: negative where the label is not predicted."""
    own = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    rival = tf.reduce_max(tf.where(own, logits.dtype.min, logits), axis=-1)
    return tf.reduce_sum(tf.where(own, logits, tf.zeros_like(logits)), axis=-1) - rival


def crossentropy_away(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Raise the cross-entropy of the labels; judged by their margin."""
    logits = model.network(x, training=False)
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), margins(logits, labels)


def crossentropy_toward(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Lower the cross-entropy of target labels; judged by how far they are from winning."""
    logits = model.network(x, training=False)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits), -margins(logits, labels)


def margin_away(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Lower the margin of the labels over their strongest rival (Carlini and Wagner 2017)."""
    value = margins(model.network(x, training=False), labels)
    return value, value


def margin_toward(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Raise the margin of target labels."""
    value = -margins(model.network(x, training=False), labels)
    return value, value


def smallest_radius(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Lower the certified radius, the smallest of the competitors' radii. Labels play no part."""
    value = tf.reduce_min(model.competitor_radii(x), axis=-1)
    return value, value


def radius_of_class(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Lower the radius at which the given class could overtake; judged by the smallest radius of all classes."""
    radii = model.competitor_radii(x)
    chosen = tf.one_hot(labels, radii.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.reduce_sum(tf.where(chosen, radii, tf.zeros_like(radii)), axis=-1), tf.reduce_min(radii, axis=-1)


# By the names of `PGD(loss=...)` and whether the attack is targeted.
LOSSES: dict[tuple[str, bool], Objective] = {
    ("crossentropy", False): crossentropy_away,
    ("crossentropy", True): crossentropy_toward,
    ("margin", False): margin_away,
    ("margin", True): margin_toward,
}
