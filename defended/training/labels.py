"""Labels as Keras users give them: class numbers, or one row of probabilities for each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops


def check_labels(y: np.ndarray[Any, Any], num_classes: int) -> None:
    """Refuse labels that belong to no class.

    Raises:
        TypeError: for labels that are not numbers.
        ValueError: for class numbers outside [0, m) or rows that are not m wide.
    """
    _check_type(y.dtype.name)
    if y.ndim not in (1, 2):
        raise ValueError(f"Labels must have shape [n], [n, 1] or [n, {num_classes}]. Received: shape {y.shape}")
    if y.ndim == 2 and y.shape[-1] not in (1, num_classes):
        raise ValueError(
            f"Labels must be class numbers or rows of {num_classes} probabilities. Received: shape {y.shape}. "
            f"Do not add a column for ⊥: the losses do."
        )
    numbers = y.ndim == 1 or y.shape[-1] == 1
    if numbers and y.size and (np.min(y) < 0 or np.max(y) >= num_classes or np.any(y != np.floor(y))):
        raise ValueError(
            f"Labels must be whole class numbers in [0, {num_classes}). Received: values from {np.min(y)} to "
            f"{np.max(y)}. Number the classes from 0, or give the network as many logits as there are classes."
        )


def checked_dataset(data: Any, num_classes: int) -> Any:
    """Return a `tf.data.Dataset` of `(x, y, ...)` whose labels stop the run when out of range; other data unchanged.

    The check runs in the input pipeline: XLA, which compiles the training step, drops assertions.
    """
    if keras.backend.backend() != "tensorflow":
        return data
    import tensorflow as tf

    if not (isinstance(data, tf.data.Dataset) and isinstance(data.element_spec, tuple) and len(data.element_spec) > 1):
        return data
    spec = data.element_spec[1]
    refuse_containers(y=spec)
    _check_type(spec.dtype.name)
    if spec.shape.rank is None:
        raise ValueError(
            f"The labels of the data set have no known shape. State it at its end: `dataset.map(lambda x, y: (x, "
            f"tf.ensure_shape(y, [None])))` for class numbers, [None, {num_classes}] for rows of probabilities."
        )
    message = f"Labels must be class numbers in [0, {num_classes}). Number the classes from 0. Received:"

    def check(x: Any, y: Any, *weight: Any) -> tuple[Any, ...]:
        if not is_dense(y):
            valid = tf.logical_and(y >= 0, y < tf.cast(num_classes, y.dtype))
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(valid), [message, y])]):
                y = tf.identity(y)
        return (x, y, *weight)

    return data.map(check)


def refuse_containers(**given: Any) -> None:
    """Refuse inputs or labels that come in a dict: a defended network has one input and one output.

    Raises:
        TypeError: naming the argument and the keys.
    """
    for name, value in given.items():
        if isinstance(value, Mapping):
            raise TypeError(
                f"`{name}` must be one array or tensor: a defended network has one input and one output. Received: a "
                f"dict with the keys {list(value)}. Pass the one that is meant; in a data set, take it by `map`."
            )


def _check_type(name: str) -> None:
    if not name.startswith(("float", "int", "uint", "bool", "bfloat")):
        raise TypeError(
            f"Labels must be class numbers or rows of probabilities. Received: dtype {name}. Number named classes "
            f"first: `names, y = np.unique(labels, return_inverse=True)`; `names[label]` is then the name of an answer."
        )


def is_dense(y_true: Any) -> bool:
    """Return whether labels are rows of probabilities `[batch, m]`, and not class numbers `[batch]` or `[batch, 1]`."""
    return len(y_true.shape) == 2 and y_true.shape[-1] != 1


def sparse_labels(y_true: Any, num_classes: int) -> tuple[Any, Any]:
    """Return class numbers `[batch]` int32, clipped to [0, m), and `[batch]` bool, whether each was in range."""
    if is_dense(y_true):
        if y_true.shape[-1] != num_classes:
            raise ValueError(
                f"Labels must be class numbers or rows of {num_classes} probabilities. Received: shape "
                f"{tuple(y_true.shape)}"
            )
        labels = ops.cast(ops.argmax(y_true, axis=-1), "int32")
    else:
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
    return ops.clip(labels, 0, num_classes - 1), ops.logical_and(labels >= 0, labels < num_classes)


def soft_labels(y_true: Any, num_classes: int) -> Any:
    """Return rows of probabilities `[batch, m]` float32; NaN for class numbers outside [0, m)."""
    labels, valid = sparse_labels(y_true, num_classes)
    if is_dense(y_true):
        return ops.cast(y_true, "float32")
    return ops.where(valid[:, None], ops.one_hot(labels, num_classes, dtype="float32"), float("nan"))
