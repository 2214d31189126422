"""What an attack descends: functions `(model, x, labels) -> (descended, judged)`, two vectors `[batch]`.

Lower is better for the attacker. `descended` is differentiated; `judged` chooses the best point seen. They differ where
one has better gradients and the other says more: cross-entropy reaches exactly 0 in float32 while the margin still
tells points apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from defended.defended_model import DefendedModel

Objective = Callable[[DefendedModel, Any, Any], tuple[Any, Any]]

ANY_CLASS = -1
"""As a label for `competitor_radius`: whichever class is nearest."""


@dataclass(frozen=True)
class Differentiated:
    """An objective with its gradient: `(model, x, labels, number) -> (descended, judged, gradient)`.

    `number` is the number of the step; objectives that draw random numbers use it.
    """

    objective: Objective

    def __call__(self, model: DefendedModel, x: Any, labels: Any, number: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            descended, judged = self.objective(model, x, labels)
        gradient = tape.gradient(descended, x)
        if gradient is None:
            raise no_gradient(getattr(self.objective, "__name__", repr(self.objective)), model)
        return descended, judged, gradient


def no_gradient(name: str, model: DefendedModel) -> ValueError:
    """Return the error for an objective that does not depend on the input differentiably."""
    return ValueError(
        f"{name} has no gradient with respect to the input of {model.name!r}. A gradient attack needs a network that "
        f"is differentiable from its input to its logits; SquareAttack and DecisionAttack need no gradient."
    )


def margins(logits: Any, labels: Any) -> Any:
    """Return `y_label - max over i != label of y_i`, `[batch]`: negative where the label is not predicted."""
    own = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    rival = tf.reduce_max(tf.where(own, logits.dtype.min, logits), axis=-1)
    return tf.reduce_sum(tf.where(own, logits, tf.zeros_like(logits)), axis=-1) - rival


def crossentropy(logits: Any, labels: Any) -> Any:
    """Return `-log softmax(y)_label`, `[batch]`."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def logits_ratio(logits: Any, labels: Any, targeted: bool) -> Any:
    """Return the margin in units of the logits' spread, `[batch]`: the DLR loss of Croce and Hein 2020, equations 6, 7.

    With `z_1 >= z_2 >= ...` the sorted logits: `margin / (z_1 - z_3)`; targeted: `margin / (z_1 - (z_3 + z_4) / 2)`,
    the margin being that of the target over its strongest rival. It does not change when logits are scaled or shifted.
    """
    ordered = tf.math.top_k(logits, 4 if targeted else 3).values
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 if targeted else ordered[:, 0] - ordered[:, 2]
    return margins(logits, labels) / tf.maximum(spread, 1e-12)


def loss_of_logits(loss: str, targeted: bool, logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return `(descended, judged)` for the named loss, away from the labels or, if targeted, towards them.

    Raises:
        ValueError: when the network has too few classes for the loss.
    """
    away = -1.0 if targeted else 1.0
    judged = away * margins(logits, labels)
    if loss == "crossentropy":
        return -away * crossentropy(logits, labels), judged
    if loss == "dlr":
        least = 4 if targeted else 3
        if logits.shape[-1] < least:
            raise ValueError(
                f"`loss`='dlr' compares the {least} largest logits, and the network has {logits.shape[-1]} classes. "
                f"Take loss='margin'."
            )
        return away * logits_ratio(logits, labels, targeted), judged
    return judged, judged


@dataclass(frozen=True)
class NetworkLoss:
    """A loss of the undefended network's logits, an `Objective`."""

    loss: str
    targeted: bool

    @property
    def __name__(self) -> str:
        return f"the loss {self.loss!r}"

    def __call__(self, model: DefendedModel, x: Any, labels: Any) -> tuple[Any, Any]:
        return loss_of_logits(self.loss, self.targeted, model.network(x, training=False), labels)


LOSSES = ("crossentropy", "margin", "dlr")
"""Names of losses: cross-entropy; the margin over the strongest rival (Carlini and Wagner 2017); DLR."""


def prove_for_graphs(model: DefendedModel) -> None:
    """Prove the bounds that radii rest on, before a graph reads them.

    A model for which nothing can be proven rejects everything, and is attacked as such.
    """
    with contextlib.suppress(ValueError):
        model.ensure_proven()


def competitor_radius(model: DefendedModel, x: Any, labels: Any) -> tuple[Any, Any]:
    """Return the radius at which the class `labels` could overtake (for `ANY_CLASS` the smallest), and the smallest.

    The first is descended; points are judged by the smallest radius, the certified one.
    """
    radii = model.answering_radii(x)
    smallest = tf.reduce_min(radii, axis=-1)
    chosen = tf.one_hot(labels, radii.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    named = tf.reduce_sum(tf.where(chosen, radii, tf.zeros_like(radii)), axis=-1)
    return tf.where(labels == ANY_CLASS, smallest, named), smallest
