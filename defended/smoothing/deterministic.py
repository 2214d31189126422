"""A network that is to vote must be a function of its input: refused here where it is not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

# Reductions on a GPU are not reproducible to the bit; noise and batch statistics move logits by far more.
_TOLERANCE = 1e-3


def require_deterministic(network: keras.Model) -> None:
    """Refuse a network that is random, or looks at the rest of the batch, at inference.

    Smoothing is about a function of one input. Noise of the network's own would add to sigma unseen; statistics of the
    batch would make an answer depend on its company.

    Raises:
        ValueError: when a layer is called with `training=True`, naming it; when two evaluations of one input differ;
            when an input's logits alone and in company differ.
    """
    for layer in _layers_in_training(network):
        raise ValueError(
            f"Layer {layer.name!r} of `network` is called with training=True, so it acts as in training at inference "
            f"too. Build the network without that argument."
        )
    shape = network.input_shape[1:]
    x = np.random.default_rng(0).uniform(size=(3, *shape)).astype("float32")
    once, again, alone = (ops.convert_to_numpy(network(part, training=False)) for part in (x, x, x[:1]))
    for other, what, remedy in (
        (again, "is random at inference: two evaluations of one input differ", "Remove the layer that draws"),
        (alone, "depends on the rest of the batch: an input alone gets other logits", "Use stored statistics"),
    ):
        reference = once[: len(other)]
        size = max(1.0, float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0)))
        if not np.allclose(other, reference, rtol=0, atol=_TOLERANCE * size, equal_nan=True):
            raise ValueError(
                f"`network` {what}. A smoothed classifier's guarantee is about a function of one input. {remedy}; "
                f"noise for training belongs into `train_noisy`, or a layer that acts in training only."
            )


def _layers_in_training(network: Any) -> list[Any]:
    """Layers whose calls in a functional graph have `training=True` written into them."""
    return [
        layer
        for layer in network._flatten_layers(include_self=False)
        for node in getattr(layer, "_inbound_nodes", [])
        if node.arguments.kwargs.get("training")
    ]
