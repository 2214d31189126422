"""Layers that let changes of their features through, on which balancing, centring and sharpening rest."""

from __future__ import annotations

from keras import activations, layers

from defended.networks.layer_kinds import is_plain_convolution

HOMOGENEOUS = (activations.relu, activations.leaky_relu)
"""Activations of single features through which a positive factor passes."""


def maps_channels(layer: layers.Layer) -> bool:
    """Whether the layer is `activation(kernel x + bias)`: Dense, or a convolution of one group, channels last."""
    return is_plain_convolution(layer) or type(layer) is layers.Dense


def is_homogeneous(layer: layers.Layer) -> bool:
    """Whether the layer is a ReLU or leaky ReLU through which positive factors pass: one that is not capped."""
    return type(layer) is layers.LeakyReLU or (type(layer) is layers.ReLU and layer.max_value is None)
