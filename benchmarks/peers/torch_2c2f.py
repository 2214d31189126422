"""The 2C2F network with ReLUs in PyTorch, with the weights of its Keras counterpart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def network(weights: Sequence[np.ndarray]) -> Any:
    """`Sequential` on images `[n, 1, 28, 28]`, from the eight arrays of `keras.Model.get_weights()`.

    Keras flattens with the channels last, PyTorch with the channels first: the first dense kernel's rows are permuted.
    """
    conv1, bias1, conv2, bias2, dense1, bias3, dense2, bias4 = weights
    channels = conv2.shape[-1]
    dense1 = dense1.reshape(7, 7, channels, -1).transpose(2, 0, 1, 3).reshape(dense1.shape)
    model = nn.Sequential(
        nn.Conv2d(1, conv1.shape[-1], 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(conv1.shape[-1], channels, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(*dense1.shape), nn.ReLU(),
        nn.Linear(*dense2.shape),
    )  # fmt: skip
    values = [conv1.transpose(3, 2, 0, 1), bias1, conv2.transpose(3, 2, 0, 1), bias2, dense1.T, bias3, dense2.T, bias4]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(np.array(value)))
    return model.eval()


def load(path: str) -> tuple[Any, Any]:
    """The network and the images `[n, 1, 28, 28]` of a file that `peers.save_network` wrote."""
    with np.load(path) as content:
        weights = [content[f"weight_{number}"] for number in range(8)]
        return network(weights), torch.from_numpy(content["images"].transpose(0, 3, 1, 2).copy())
