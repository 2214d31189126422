"""Kinds of layers, each listed once: by what a layer does at inference, whatever a defence makes of it."""

from __future__ import annotations

from keras import activations, layers

from defended.layers.gaussian_noise_augmentation import GaussianNoiseAugmentation
from defended.layers.invertible_downsampling import InvertibleDownsampling

INERT = (layers.Identity, layers.Dropout, GaussianNoiseAugmentation)
"""They return their input."""

MOVING = (layers.Flatten, layers.Reshape, layers.Permute, InvertibleDownsampling)
"""They return every entry of their input once, at another place."""

FRAMING = (layers.ZeroPadding2D, layers.Cropping2D)
"""They add zeros around a map, or cut off its border."""

AVERAGING = (layers.AveragePooling2D, layers.GlobalAveragePooling2D)
"""They average places within each channel."""

LINEAR = (None, activations.linear)
"""What a layer's `activation` is where it has none."""


def is_plain_convolution(layer: layers.Layer) -> bool:
    """Return whether the layer is a convolution of one group, channels last: `activation(kernel * x + bias)`."""
    return type(layer) is layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last"
