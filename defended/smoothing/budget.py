"""How many rows a device is to evaluate at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defended.smoothing.sampler import Sampler

# On a CPU, what two evaluations at a time take: measured on 2C2F, whose activations then stay in the caches; four times
# as many rows cost one input a quarter of its rate. Activations grow with the input, so larger inputs get fewer rows.
CPU_ROWS, CPU_ENTRIES = 1024, 2**22
_FIRST, _LAST = 64, 2**16
_WORTHWHILE = 1.05


def rows_at_once(sampler: Sampler) -> int:
    """Return how many rows to evaluate at a time: on a GPU, what `fastest_rows` finds for a chunk of this sampler.

    On a CPU, at most `CPU_ROWS`, and fewer for large inputs.
    """
    import tensorflow as tf

    shape = sampler.network.input_shape[1:]
    if not tf.config.list_logical_devices("GPU"):
        return max(2, min(CPU_ROWS, CPU_ENTRIES // math.prod(shape)))

    def seconds(rows: int) -> float:
        with tf.init_scope():
            point, noise = tf.zeros([1, *shape]), tf.zeros([1, rows, *shape])
            run = tf.function(sampler.chunk, autograph=False)
            run(point, noise)
            start = time.perf_counter()
            for _ in range(3):
                votes = run(point, noise)
            votes.numpy()
            return (time.perf_counter() - start) / 3

    return fastest_rows(seconds)


def fastest_rows(seconds: Callable[[int], float]) -> int:
    """Return the number of rows whose doubling no longer makes a row 5 % cheaper, or does not fit into memory.

    Args:
        seconds: the time that one evaluation of this many rows takes; raises `tf.errors.ResourceExhaustedError` where
            they do not fit.

    Raises:
        MemoryError: when a single row does not fit.
    """
    import tensorflow as tf

    def rate(rows: int) -> float:
        try:
            return rows / seconds(rows)
        except tf.errors.ResourceExhaustedError:
            return 0.0

    rows = _FIRST
    while not (fastest := rate(rows)):
        rows //= 2
        if not rows:
            raise MemoryError(
                "The device's memory does not hold the network's activations for a single noisy input. Free memory, or "
                "use another device."
            )
    # After halving, the double is known not to fit.
    while _FIRST <= rows <= _LAST // 2 and (faster := rate(2 * rows)) >= fastest * _WORTHWHILE:
        rows, fastest = 2 * rows, faster
    return rows
