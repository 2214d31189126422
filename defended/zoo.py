"""Architectures of the papers, as plain Keras networks with logits out."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from defended.layers import MinMax


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


def _conv(filters: int, size: int, stride: int) -> Any:
    return layers.Conv2D(filters, size, strides=stride, padding="same", kernel_initializer="orthogonal")


def _dense(units: int) -> Any:
    return layers.Dense(units, kernel_initializer="orthogonal")


def _activation(name: str) -> Any:
    return MinMax() if name == "minmax" else layers.Activation(name)
