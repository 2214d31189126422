"""Inputs in batches of one size, and functions compiled once per model."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from defended.attacks.core.checks import Array

SMALLEST_BATCH = 16

# Weak keys, and functions that hold their model weakly: an attack never keeps a model alive.
_FUNCTIONS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def for_each_batch(count: int, batch_size: int, function: Callable[[Array, int], None]) -> None:
    """Call `function(rows, used)` for every batch: `rows` are input numbers, of which the first `used` count.

    All batches are of one size; the last one repeats its last input.
    """
    size = constant_size(count, batch_size)

    def run(first: int) -> None:
        function(np.minimum(np.arange(first, first + size), count - 1), min(size, count - first))

    pool = ThreadPoolExecutor(workers())
    try:
        list(pool.map(run, range(0, count, size)))
    finally:
        pool.shutdown(cancel_futures=True)


def of_model(model: Any, key: Any, build: Callable[[Any], Any]) -> Any:
    """What `build(weakref.ref(model))` made for this model at the first call with this key.

    The model's variables are read at every call, so a model in training is attacked as it is now.

    Raises:
        RuntimeError: when Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Attacks are compiled with TensorFlow, and Keras runs on {keras.backend.backend()!r}. Set the variable "
            f"KERAS_BACKEND=tensorflow before Keras is imported; a saved model can be loaded there."
        )
    functions = _FUNCTIONS.setdefault(model, {})
    if key not in functions:
        functions[key] = build(weakref.ref(model))
    return functions[key]


def predictions(model: Any, x: Array, batch_size: int) -> Array:
    """The network's logits, `[n, m]` float32."""
    parts = [
        model.network(x[first : first + batch_size], training=False).numpy() for first in range(0, len(x), batch_size)
    ]
    return np.concatenate(parts)


def constant_size(count: int, batch_size: int) -> int:
    """The size of all batches of so many inputs: sizes between powers of two would each be compiled."""
    return min(batch_size, max(SMALLEST_BATCH, 1 << (count - 1).bit_length()))


def workers() -> int:
    """Batches at a time: on CPUs as many as there are cores, since a compiled step occupies one."""
    if tf.config.list_logical_devices("GPU"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
