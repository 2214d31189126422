"""The layers of a chain, and which of them a change of the features passes: for balancing, centring and sharpening."""

from __future__ import annotations

from typing import Any

import keras
from keras import activations, layers

from defended.gloro.gloro_net import GloroNet
from defended.networks.layer_kinds import is_plain_convolution

HOMOGENEOUS = (activations.relu, activations.leaky_relu)
"""Activations of single features through which a positive factor passes."""


def chain_of(model: keras.Model, user: str) -> list[Any]:
    """Return the layers of a GloRo Net's network, which is a chain, in order.

    Args:
        model: the `GloroNet`.
        user: who needs a chain, for messages.

    Raises:
        TypeError: the model is not a `GloroNet`.
        ValueError: the network is not a chain.
    """
    if not isinstance(model, GloroNet):
        raise TypeError(f"`{user}` works on a `GloroNet`. Received: {type(model).__name__}")
    return model._graph.chain(user)


def is_chain(model: GloroNet) -> bool:
    """Return whether each layer of a GloRo Net's network feeds the next, and none is used twice."""
    try:
        model._graph.chain("is_chain")
    except ValueError:
        return False
    return True


def maps_channels(layer: layers.Layer) -> bool:
    """Return whether a layer is Dense, or a convolution of one group, channels last: `activation(kernel x + bias)`."""
    return is_plain_convolution(layer) or type(layer) is layers.Dense


def is_homogeneous(layer: layers.Layer) -> bool:
    """Return whether a layer is a ReLU or leaky ReLU that positive factors pass: one that is not capped."""
    return type(layer) is layers.LeakyReLU or (type(layer) is layers.ReLU and layer.max_value is None)
