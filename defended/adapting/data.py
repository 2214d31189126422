"""A user's inputs and labels, and what share of them a network classifies rightly."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from defended.adapting.endings import threshold
from defended.networks.checks import checked_graph
from defended.networks.inputs import float32_array

Array = np.ndarray[Any, np.dtype[Any]]


def checked_data(network: keras.Model, x: Any, y: Any) -> tuple[Array | None, Array | None]:
    """Return inputs `[n, ...]` float32 and labels `[n]`, None where they were left out.

    Raises:
        TypeError: for inputs that are no numbers.
        ValueError: for labels without inputs, or other numbers or shapes of either.
    """
    if x is None:
        if y is not None:
            raise ValueError("`x`: give the inputs of the labels `y`, or leave both out.")
        return None, None
    inputs, shape = float32_array(x), tuple(checked_graph(network).inputs[0].shape[1:])
    if inputs.shape[1:] != shape or inputs.ndim == 0 or not len(inputs):
        raise ValueError(
            f"`x` must hold at least one input of shape {shape}, stacked as [n, ...]. Received: shape {inputs.shape}"
        )
    if y is None:
        return inputs, None
    labels = np.asarray(y)
    labels = labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    if len(labels) != len(inputs):
        raise ValueError(f"`y` must have a label for each of the {len(inputs)} inputs. Received: {len(labels)}")
    return inputs, labels


def accuracy(network: keras.Model, x: Array, y: Array) -> float:
    """Return the share of checked inputs whose class is the label; a single output is 1 above its middle."""
    network = checked_graph(network)
    outputs = np.asarray(network.predict(x.astype(str(network.inputs[0].dtype)), verbose=0)).reshape(len(x), -1)
    if outputs.shape[1] > 1:
        return float((outputs.argmax(-1) == y).mean())
    return float(((outputs[:, 0] > threshold(network)) == (y == 1)).mean())
