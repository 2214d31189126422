"""Kinds of layers, each listed once: by what a layer does at inference, whatever a defence makes of it."""

from __future__ import annotations

from keras import activations, layers

from defended.layers.gaussian_noise_augmentation import GaussianNoiseAugmentation
from defended.layers.invertible_downsampling import InvertibleDownsampling

AUGMENTING = (
    layers.RandomBrightness, layers.RandomColorDegeneration, layers.RandomColorJitter, layers.RandomContrast,
    layers.RandomElasticTransform, layers.RandomErasing, layers.RandomFlip, layers.RandomGaussianBlur,
    layers.RandomGrayscale, layers.RandomHue, layers.RandomInvert, layers.RandomPerspective, layers.RandomPosterization,
    layers.RandomRotation, layers.RandomSaturation, layers.RandomSharpness, layers.RandomShear,
    layers.RandomTranslation, layers.RandomZoom, layers.RandAugment, layers.AugMix,
)  # fmt: skip
"""They change images in training, and return their input at inference. `RandomCrop` does not: it cuts out a part."""

INERT = (
    layers.Identity, layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.GaussianDropout, layers.AlphaDropout, layers.GaussianNoise, layers.ActivityRegularization,
    GaussianNoiseAugmentation, *AUGMENTING,
)  # fmt: skip
"""They return their input."""

MOVING = (layers.Flatten, layers.Reshape, layers.Permute, InvertibleDownsampling)
"""They return every entry of their input once, at another place."""

FRAMING = (
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
)  # fmt: skip
"""They add zeros around a map, or cut off its border, in the type of what they are given. `CenterCrop` does not: it
converts its input to float32."""

WINDOW_AVERAGING = (layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
GLOBAL_AVERAGING = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
AVERAGING = (*WINDOW_AVERAGING, *GLOBAL_AVERAGING)
"""They average places within each channel."""

WINDOW_MAXIMA = (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
GLOBAL_MAXIMA = (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
MAXIMA = (*WINDOW_MAXIMA, *GLOBAL_MAXIMA)
"""They take the largest of places within each channel."""

LINEAR = (None, activations.linear)
"""What a layer's `activation` is where it has none."""


def is_plain_convolution(layer: layers.Layer) -> bool:
    """Return whether the layer is a convolution of one group, channels last: `activation(kernel * x + bias)`."""
    return type(layer) is layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last"
