"""Inputs in batches of one size, and functions compiled once per model."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from defended.attacks.core.attack import Task
from defended.attacks.core.checks import Array
from defended.defended_model import DefendedModel

SMALLEST_BATCH = 16

HeldModel = Callable[[], DefendedModel]
"""A model that a compiled function refers to weakly; whoever calls the function holds the model itself."""

# Weak keys, and functions that hold their model weakly: an attack never keeps a model alive.
_FUNCTIONS: weakref.WeakKeyDictionary[DefendedModel, dict[Any, Any]] = weakref.WeakKeyDictionary()


def for_each_batch(count: int, batch_size: int, function: Callable[[Array, int], None]) -> None:
    """Call `function(rows, used)` for every batch: `rows` are input numbers, of which the first `used` count.

    All batches are of one size; the last one repeats its last input.
    """
    size = constant_size(count, batch_size)

    def run(first: int) -> None:
        function(np.minimum(np.arange(first, first + size), count - 1), min(size, count - first))

    in_threads(run, range(0, count, size), workers())


def in_threads(function: Callable[[int], None], numbers: Iterable[int], threads: int) -> None:
    """Call the function with every number, on this many threads; after an error, calls not yet begun are left out."""
    pool = ThreadPoolExecutor(threads)
    try:
        list(pool.map(function, numbers))
    finally:
        pool.shutdown(cancel_futures=True)


def of_model(model: DefendedModel, key: Any, build: Callable[[HeldModel], Any]) -> Any:
    """Return what `build(weakref.ref(model))` made for this model at the first call with this key.

    The model's variables are read at every call, so a model in training is attacked as it is now.

    Raises:
        RuntimeError: when Keras runs on a backend other than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Attacks are compiled with TensorFlow, and Keras runs on {keras.backend.backend()!r}. Set the variable "
            f"KERAS_BACKEND=tensorflow before Keras is imported; a saved model can be loaded there."
        )
    functions = _FUNCTIONS.setdefault(model, {})
    if key not in functions:
        functions[key] = build(cast(HeldModel, weakref.ref(model)))
    return functions[key]


def uses_xla(chosen: bool | None) -> bool:
    """Return `chosen`, or for None, whether there is no GPU: on CPUs, XLA makes steps two to three times as fast."""
    return not tf.config.list_logical_devices("GPU") if chosen is None else chosen


def labels_of(task: Task, batch_size: int, targeted: bool = False) -> Array:
    """Return a call's labels, `[n]`; where none were given, the network's answers or, if targeted, second choices."""
    if task.labels is not None:
        return task.labels
    logits = network_logits(task.model, task.x, batch_size)
    return np.argsort(-logits, axis=1, kind="stable")[:, int(targeted)]


def network_logits(model: DefendedModel, x: Array, batch_size: int) -> Array:
    """Return the undefended network's logits, `[n, m]` float32."""
    return by_batches(lambda part: model.network(part, training=False), x, batch_size)


def by_batches(function: Callable[[Array], Any], x: Array, batch_size: int) -> Array:
    """Return what a function gives for inputs `[n, ...]`, of which it takes at most a batch at a time."""
    parts = (x[first : first + batch_size] for first in range(0, len(x), batch_size))
    return np.concatenate([np.asarray(function(part)) for part in parts])


def constant_size(count: int, batch_size: int) -> int:
    """Return the size of all batches of `count` inputs: sizes between powers of two would each be compiled."""
    return min(batch_size, max(SMALLEST_BATCH, 1 << (count - 1).bit_length()))


def workers() -> int:
    """Return how many batches run at a time: on CPUs, one for each core, since a compiled step occupies one."""
    if tf.config.list_logical_devices("GPU"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
