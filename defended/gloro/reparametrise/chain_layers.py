"""Which layers of a chain let changes of their features through; what balancing, centring and sharpening rest on."""

from __future__ import annotations

from typing import Any

from keras import activations, layers

from defended.networks.layer_kinds import is_plain_convolution

HOMOGENEOUS = (activations.relu, activations.leaky_relu)
"""Activations of single features through which a positive factor passes."""


def maps_channels(layer: Any) -> bool:
    """Whether it is a Dense layer, or a convolution of one group, channels last: `activation(kernel x + bias)`."""
    return is_plain_convolution(layer) or type(layer) is layers.Dense


def is_homogeneous(layer: Any) -> bool:
    """Whether it is a ReLU or leaky ReLU through which positive factors pass: one that is not capped."""
    return type(layer) is layers.LeakyReLU or (type(layer) is layers.ReLU and layer.max_value is None)
