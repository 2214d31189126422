"""What layers are made of: affine maps, ReLUs, and functions that bend like a ReLU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from defended.networks.exact_windows import Array
from defended.polytope.affine_maps import AffineMap
from defended.polytope.element_maps import Arithmetic, ScaleMap, Scaling, SelectMap
from defended.polytope.reductions import Shape


class Bend(NamedTuple):
    """`z -> S z + T relu(D z)`; a map that is None leaves its argument as it is."""

    shape: Shape
    """Of the output."""
    kept: AffineMap | None = None
    """S."""
    argument: AffineMap | None = None
    """D."""
    back: AffineMap | None = None
    """T."""


Pieces = list[AffineMap | Bend | None]
"""In the order in which they run; None stands for a ReLU."""


def sloped(shape: Shape, slope: object) -> Bend:
    """Return `max(z, 0) + slope min(z, 0) = slope z + (1 - slope) relu(z)`; the slope is a variable or a number."""

    def below(numbers: Arithmetic) -> Scaling:
        return Scaling(numbers.read(slope))

    def more_above(numbers: Arithmetic) -> Scaling:
        return Scaling(1.0 - numbers.read(slope))

    return Bend(shape, kept=ScaleMap(shape, below), back=ScaleMap(shape, more_above))


def sorted_pairs(shape: Shape) -> Bend:
    """Return `(a, b) -> (a - relu(a - b), b + relu(a - b))`, the smaller and the larger of two channels."""
    entries = np.arange(int(np.prod(shape)))
    halves = (*shape[:-1], shape[-1] // 2)
    differences = SelectMap(shape, halves, np.stack([entries[::2], entries[1::2]]), [[1.0], [-1.0]])
    return Bend(shape, argument=differences, back=SelectMap(halves, shape, entries[None] // 2, 2.0 * (entries % 2) - 1))


def maxima(shape: Shape, output_shape: Shape, taps: Array) -> Pieces:
    """Return the largest of several entries: `max(a, b) = b + relu(a - b)` of one half and the other, and so on.

    Args:
        shape: of the input.
        output_shape: of the output.
        taps: `[taps, *output_shape]`, the numbers of the input's entries that each output is the maximum of.
    """
    taps = taps.reshape(len(taps), -1)
    pieces: Pieces = [] if len(taps) > 1 else [SelectMap(shape, output_shape, taps)]
    while len(taps) > 1:
        half = -(-len(taps) // 2)
        # An odd one is compared with itself, which costs nothing: relu(0).
        first, second = taps[:half], np.concatenate([taps[half:], taps[half - 1 : half]])[:half]
        made = taps[:half].shape if half > 1 else output_shape
        differences = SelectMap(shape, made, np.stack([first, second]), [[[1.0]], [[-1.0]]])
        pieces.append(Bend(made, kept=SelectMap(shape, made, second[None]), argument=differences))
        taps, shape = np.arange(first.size).reshape(first.shape), made
    return pieces
