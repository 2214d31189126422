"""Architectures of the papers, as plain Keras networks with logits out, and trained nets by name (`load`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.pretrained import index as _index
from defended.pretrained import load
from defended.pretrained.cards import card

__all__ = ["card", "cnn_2c2f", "cnn_4c3f", "cnn_6c2f", "dense_small", "liresnet", "load", "names", "resnet"]


def names() -> list[str]:
    """Return the names of the trained nets that `load` knows."""
    return sorted(_index())


def cnn_2c2f(
    input_shape: tuple[int, int, int] = (28, 28, 1), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Build 2C2F of Leino et al. 2021: two convolutions (16, 32 filters, 4x4, stride 2), two dense layers (100, m)."""
    return _network("cnn_2c2f", input_shape, num_classes, activation, [(16, 4, 2), (32, 4, 2)], [100])


def cnn_4c3f(
    input_shape: tuple[int, int, int] = (28, 28, 1), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Build 4C3F of Leino et al. 2021: four convolutions (32, 32, 64, 64) and three dense layers (512, 512, m)."""
    convolutions = [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)]
    return _network("cnn_4c3f", input_shape, num_classes, activation, convolutions, [512, 512])


def cnn_6c2f(
    input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Build 6C2F of Leino et al. 2021: six convolutions (32, 32, 64, 64, 64, 64) and two dense layers (512, m).

    Every second convolution is 4x4 with stride 2, the others 3x3. In the code published with the paper only the third
    and the sixth have a stride, which makes that net three times as large.
    """
    convolutions = [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2), (64, 3, 1), (64, 4, 2)]
    return _network("cnn_6c2f", input_shape, num_classes, activation, convolutions, [512])


def dense_small(
    input_shape: tuple[int, ...] = (8, 8, 1), num_classes: int = 10, activation: str = "minmax", units: int = 64
) -> keras.Model:
    """Build two hidden dense layers and the logits, for small images such as scikit-learn's digits."""
    return _network("dense_small", input_shape, num_classes, activation, [], [units, units])


def liresnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    activation: str = "minmax",
    depth: int = 6,
    width: int = 64,
    units: int = 256,
) -> keras.Model:
    """Build a LiResNet (Hu et al. 2023): a stem, linear residual blocks at half the size, and a neck that shrinks it.

    Args:
        input_shape: height, width, channels.
        num_classes: m.
        activation: the one after every linear map.
        depth: the number of residual blocks.
        width: their channels.
        units: those of the dense layer before the logits.
    """
    blocks = []
    for _ in range(depth):
        blocks += [LiResNetBlock(3, residual_scale=depth**-0.5), _activation(activation)]
    # The blocks are made first: the numbers in their layers' names, and initial weights, are those of saved networks.
    body = [_conv(width, 5, 2), _activation(activation), *blocks]
    return _network("liresnet", input_shape, num_classes, activation, [(2 * width, 4, 4)], [units], body)


def resnet(
    input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10, depth: int = 20, width: int = 16
) -> keras.Model:
    """Build a ResNet for small images (He et al. 2016, section 4.2), with batch normalisation: a net to be smoothed.

    Three stages of `(depth - 2) / 6` residual blocks each, of `width`, 2 `width` and 4 `width` channels, the second and
    third at half the size of the one before; where a block changes the shape, a 1x1 convolution takes its input along.
    Its Lipschitz bounds prove nothing useful; `SmoothedNet` needs none.

    Args:
        input_shape: height, width, channels.
        num_classes: m.
        depth: 6n + 2: the number of layers with weights.
        width: channels of the first stage.

    Raises:
        ValueError: when depth is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"`depth` must be 6n + 2: 8, 14, 20, 32, ... Received: {depth!r}")

    def convolved(value: Any, filters: int, size: int, stride: int) -> Any:
        kernel = layers.Conv2D(
            filters, size, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal"
        )
        return layers.BatchNormalization()(kernel(value))

    inputs = keras.Input(input_shape)
    value = layers.ReLU()(convolved(inputs, width, 3, 1))
    for stage in range(3):
        filters = width * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            inner = layers.ReLU()(convolved(value, filters, 3, stride))
            skipped = value if stride == 1 else convolved(value, filters, 1, stride)
            value = layers.ReLU()(layers.Add()([convolved(inner, filters, 3, 1), skipped]))
    return keras.Model(inputs, _dense(num_classes)(layers.GlobalAveragePooling2D()(value)), name="resnet")


def _network(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    activation: str,
    convolutions: Sequence[tuple[int, int, int]],
    hidden: Sequence[int],
    body: Sequence[keras.Layer] = (),
) -> keras.Model:
    """Return `body`, convolutions (filters, size, stride), dense layers of `hidden` units, and the logits, in a row."""
    parts: list[Any] = [keras.Input(input_shape), *body]
    for filters, size, stride in convolutions:
        parts += [_conv(filters, size, stride), _activation(activation)]
    parts.append(layers.Flatten())
    for units in hidden:
        parts += [_dense(units), _activation(activation)]
    return keras.Sequential([*parts, _dense(num_classes)], name=name)


def _conv(filters: int, size: int, stride: int) -> keras.Layer:
    return layers.Conv2D(filters, size, strides=stride, padding="same", kernel_initializer="orthogonal")


def _dense(units: int) -> keras.Layer:
    return layers.Dense(units, kernel_initializer="orthogonal")


def _activation(name: str) -> keras.Layer:
    return MinMax() if name == "minmax" else layers.Activation(name)
