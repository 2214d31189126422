"""Architectures of the papers, as plain Keras networks with logits out, and trained nets by name (`load`)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.pretrained import index as _index
from defended.pretrained import load

__all__ = ["cnn_2c2f", "cnn_4c3f", "cnn_6c2f", "dense_small", "liresnet", "load", "names"]


def names() -> list[str]:
    """Names of the trained nets that `load` knows."""
    return sorted(_index())


def cnn_2c2f(
    input_shape: tuple[int, int, int] = (28, 28, 1), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Two convolutions (16 and 32 filters, 4x4, stride 2) and two dense layers (100, m): 2C2F of Leino et al. 2021."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            _conv(16, 4, 2), _activation(activation),
            _conv(32, 4, 2), _activation(activation),
            layers.Flatten(),
            _dense(100), _activation(activation),
            _dense(num_classes),
        ],
        name="cnn_2c2f",
    )  # fmt: skip


def cnn_4c3f(
    input_shape: tuple[int, int, int] = (28, 28, 1), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Four convolutions (32, 32, 64, 64) and three dense layers (512, 512, m): 4C3F of Leino et al. 2021."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            _conv(32, 3, 1), _activation(activation),
            _conv(32, 4, 2), _activation(activation),
            _conv(64, 3, 1), _activation(activation),
            _conv(64, 4, 2), _activation(activation),
            layers.Flatten(),
            _dense(512), _activation(activation),
            _dense(512), _activation(activation),
            _dense(num_classes),
        ],
        name="cnn_4c3f",
    )  # fmt: skip


def cnn_6c2f(
    input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10, activation: str = "minmax"
) -> keras.Model:
    """Six convolutions (32, 32, 64, 64, 64, 64) and two dense layers (512, m): 6C2F of Leino et al. 2021.

    Every second convolution is 4x4 with stride 2, the others 3x3. In the code published with the paper only the third
    and the sixth have a stride, which makes that net three times as large.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            _conv(32, 3, 1), _activation(activation),
            _conv(32, 4, 2), _activation(activation),
            _conv(64, 3, 1), _activation(activation),
            _conv(64, 4, 2), _activation(activation),
            _conv(64, 3, 1), _activation(activation),
            _conv(64, 4, 2), _activation(activation),
            layers.Flatten(),
            _dense(512), _activation(activation),
            _dense(num_classes),
        ],
        name="cnn_6c2f",
    )  # fmt: skip


def dense_small(
    input_shape: tuple[int, ...] = (8, 8, 1), num_classes: int = 10, activation: str = "minmax", units: int = 64
) -> keras.Model:
    """Two hidden dense layers, for small images such as scikit-learn's digits."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Flatten(),
            _dense(units), _activation(activation),
            _dense(units), _activation(activation),
            _dense(num_classes),
        ],
        name="dense_small",
    )  # fmt: skip


def liresnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    activation: str = "minmax",
    depth: int = 6,
    width: int = 64,
    units: int = 256,
) -> keras.Model:
    """A LiResNet (Hu et al. 2023): a stem, linear residual blocks at half the size, and a neck that makes it small.

    Args:
        input_shape: height, width, channels.
        num_classes: m.
        activation: after every linear map.
        depth: residual blocks.
        width: their channels.
        units: of the dense layer before the logits.
    """
    blocks = []
    for _ in range(depth):
        blocks += [LiResNetBlock(3, residual_scale=depth**-0.5), _activation(activation)]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            _conv(width, 5, 2), _activation(activation),
            *blocks,
            _conv(2 * width, 4, 4), _activation(activation),
            layers.Flatten(),
            _dense(units), _activation(activation),
            _dense(num_classes),
        ],
        name="liresnet",
    )  # fmt: skip


def _conv(filters: int, size: int, stride: int) -> Any:
    return layers.Conv2D(filters, size, strides=stride, padding="same", kernel_initializer="orthogonal")


def _dense(units: int) -> Any:
    return layers.Dense(units, kernel_initializer="orthogonal")


def _activation(name: str) -> Any:
    return MinMax() if name == "minmax" else layers.Activation(name)
