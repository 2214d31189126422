"""A network that is to vote must be a function of its input; one that is not is refused here."""

from __future__ import annotations

import keras

from defended.networks.checks import acts_as_in_training
from defended.networks.consistency import inconsistency


def require_deterministic(network: keras.Model) -> None:
    """Refuse a network that is random, or looks at the rest of the batch, at inference.

    Smoothing is about a function of one input. The network's own noise would add to sigma unseen; statistics of the
    batch would make an answer depend on the other inputs.

    Raises:
        ValueError: when a layer is called with `training=True`, naming it; when two evaluations of one input differ;
            when an input's logits differ between alone and in a batch.
    """
    for layer in network._flatten_layers(include_self=False):
        if acts_as_in_training(layer):
            raise ValueError(
                f"Layer {layer.name!r} of `network` is called with training=True, so it acts as in training at "
                f"inference too. Build the network without that argument."
            )
    found = inconsistency(network)
    if found is not None:
        raise ValueError(
            f"`network` {found.what}. A smoothed classifier's guarantee is about a function of one input. "
            f"{found.remedy}; noise for training belongs in `train_noisy`, or a layer that acts in training only."
        )
