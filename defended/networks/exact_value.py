"""A value in float64, with how far a float32 evaluation of it may stray: what exact layers return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from defended.networks.exact_windows import Array
from defended.numerics.float32 import SMALLEST_NORMAL, gamma

FLUSHED = 2.0**-100  # gamma of it, for any number of terms, outweighs the smallest normal number
FEW = 64  # more operations than any activation or normalisation takes for an entry


class Exact(NamedTuple):
    """A layer's output, and by how much a float32 evaluation at the same float32 input may differ, entry by entry."""

    value: Array
    tolerance: Array | float = 0.0


Rule = Callable[[Any, list[Array]], Exact]


def float64(variable: Any) -> Array:
    """Return a variable as a float64 array."""
    return np.asarray(ops.convert_to_numpy(variable), np.float64)


def added_up(value: Array, magnitudes: Array, terms: int) -> Exact:
    """Return a value that float32 adds up from a number of terms, whose magnitudes sum to `magnitudes`."""
    return Exact(value, gamma(terms + 16) * magnitudes + SMALLEST_NORMAL * (4 * terms + FEW) * (1 + np.abs(value)))
