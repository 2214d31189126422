"""The certified radius, searched by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

ABOVE = 1.0 + 2.0**-21
"""What is certified at a radius r is certified, with `_enlarged`, in the open ball of `r * ABOVE`."""

_MOST = 4.0


def search_radius(
    certify: Callable[[Any], tuple[Any, Any]], epsilon: Any, steps: int, at_epsilon: tuple[Any, Any]
) -> Any:
    """Return a certified radius, `[batch]`.

    Bounds are evaluated at epsilon, then, where that is certified, at 2 epsilon, and from there on in the middle
    between the largest radius known to be certified and the smallest not known to be, 4 epsilon at first. The result is
    the former: it is above epsilon exactly where the slack is positive, and above 2 epsilon where the bounds there are.

    Args:
        certify: from radii `[batch]` the slack, positive where the closed ball of `radius * (1 + 2^-20)` is certified,
            and a smaller radius that is certified in any case.
        epsilon: `[batch]`.
        steps: evaluations after the first.
        at_epsilon: what `certify(epsilon)` found.
    """
    slack, root = at_epsilon
    certified = slack > 0
    low = ops.where(certified, epsilon * ABOVE, ops.minimum(root, epsilon))
    high = ops.where(certified, _MOST * epsilon, epsilon)
    for step in range(steps):
        middle = (low + high) / 2
        if step == 0:
            middle = ops.where(certified, 2.0 * epsilon, middle)
        found, root = certify(middle)
        above = found > 0
        # A root may not pass what was refused before: epsilon and 2 epsilon keep their meaning.
        low = ops.where(above, middle * ABOVE, ops.maximum(low, ops.minimum(root, middle)))
        high = ops.where(above, high, middle)
        low = ops.minimum(low, ops.maximum(high, low * 0.0))
    return low


def traced_once(certify: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any], tuple[Any, Any]]:
    """Return the same function; while TensorFlow makes a graph, as one of its own that all steps of the search call.

    A first answer spends most of its time on tracing, and the bounds are by far the largest part of its graph.
    """
    if keras.backend.backend() != "tensorflow":
        return certify
    import tensorflow as tf

    return certify if tf.executing_eagerly() else tf.function(certify, autograph=False)
