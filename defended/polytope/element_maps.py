"""Affine maps that scale entries one by one, and those that copy, drop, negate or subtract them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from defended.polytope.affine_maps import AffineMap
from defended.polytope.reductions import Shape

Array = np.ndarray[Any, np.dtype[Any]]

_SMALLEST_FACTOR, _LARGEST_FACTOR = 2.0**-100, 2.0**20


class Arithmetic(NamedTuple):
    """In which numbers factors are computed: float32 tensors, or float64 arrays."""

    read: Callable[[Any], Any]
    """Converts variables and numbers."""
    root: Callable[[Any], Any]
    larger: Callable[[Any, Any], Any]


FLOAT32 = Arithmetic(lambda value: ops.convert_to_tensor(value, "float32"), ops.sqrt, ops.maximum)
FLOAT64 = Arithmetic(lambda value: np.asarray(ops.convert_to_numpy(value), np.float64), np.sqrt, np.maximum)


class Scaling(NamedTuple):
    """`z -> factor * z + sum of offsets`; each broadcasts against `[1, *shape]`."""

    factor: Any
    offsets: tuple[Any, ...] = ()
    made_of: tuple[Any, ...] = ()
    """Numbers that the factor is computed from, which must be as large as factors may be."""


class ScaleMap(AffineMap):
    """Every entry is multiplied by a factor of its own, and an offset added.

    Factor and offsets are computed from the layer's variables as they are, by at most eight operations that each round
    relative to what they return; so a product with an input, and an offset, is off by less than `gamma_16` of its
    magnitude. That holds for factors as `check` demands them.

    Args:
        shape: of values, without the batch axis.
        scaling: computes factor and offsets.
        condition: raises `ValueError` where the layer does not compute with its variables.
    """

    def __init__(
        self, shape: Shape, scaling: Callable[[Arithmetic], Scaling], condition: Callable[[], None] | None = None
    ):
        super().__init__(shape, shape)
        self.scaling, self._condition = scaling, condition
        self.roundings = 16, 16

    @property
    def factor(self) -> Any:
        """The factors, as a float32 tensor."""
        return self.scaling(FLOAT32).factor

    @property
    def is_by_channel(self) -> bool:
        """Whether the factor is the same at all places of a map."""
        return all(size == 1 for size in self.factor.shape[:-1])

    def forward(self, values: Any, blocked: bool = True) -> Any:
        factor, offsets, _ = self.scaling(FLOAT32)
        return values * factor + sum(offsets[1:], offsets[0]) if offsets else values * factor

    def linear(self, values: Any, blocked: bool = True) -> Any:
        return values * self.factor

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return values * ops.abs(self.factor)

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return values * ops.square(self.factor)

    def bias_magnitudes(self) -> Any:
        offsets = self.scaling(FLOAT32).offsets
        return sum((ops.abs(offset) for offset in offsets), 0.0)

    def transposed(self, rows: Any) -> Any:
        return rows * self.factor

    def check(self) -> None:
        # So neither a product that makes a factor nor what it is made of is flushed to zero, and a mean that is, before
        # it is multiplied, moves an offset by 2^20 * 2^-126, which `Shares.flushed` pays for.
        if self._condition is not None:
            self._condition()
        with np.errstate(all="ignore"):
            found = self.scaling(FLOAT64)
            size = np.abs(np.concatenate([np.ravel(part) for part in (found.factor, *found.made_of)]))
        fits = (size == 0) | ((size >= _SMALLEST_FACTOR) & (size <= _LARGEST_FACTOR))
        if not fits.all():
            raise ValueError(
                f"it multiplies by {size[~fits][0]:.3g}, or by what is made of it; such numbers must be 0 or from "
                f"2^-100 to 2^20. Bring the inputs to a common scale, or restore the layer from a checkpoint."
            )


class SelectMap(AffineMap):
    """Each output entry is an input entry, 0, or a sum of a few entries with signs.

    Args:
        input_shape, output_shape: without the batch axis.
        index: `[terms, *output_shape]`, numbers of input entries, counted row by row; -1 where there is none.
        signs: 1 or -1 for each, broadcast against `index`.
    """

    def __init__(self, input_shape: Shape, output_shape: Shape, index: Array, signs: Any = 1.0):
        super().__init__(input_shape, output_shape)
        entries = int(np.prod(input_shape))
        self.signs = np.broadcast_to(signs, index.shape).reshape(len(index), -1).astype("float32")
        self.index = np.where(index < 0, entries, index).reshape(len(index), -1).astype("int32")
        self.readers, self._reader_signs = _inverse(self.index, self.signs, entries)
        terms = len(self.index), len(self.readers)
        # Adding k numbers takes k - 1 roundings.
        self.roundings = terms[0] - 1, terms[1] - 1
        self.largest = max(terms)

    def forward(self, values: Any, blocked: bool = True) -> Any:
        return ops.reshape(_selected(values, self.index, self.signs), (-1, *self.output_shape))

    def magnitudes(self, values: Any, blocked: bool = True) -> Any:
        return ops.reshape(_selected(values, self.index, None), (-1, *self.output_shape))

    def squares(self, values: Any, blocked: bool = True) -> Any:
        return self.magnitudes(values)

    def transposed(self, rows: Any) -> Any:
        return ops.reshape(_selected(rows, self.readers, self._reader_signs), (-1, *self.input_shape))


def _selected(values: Any, index: Array, signs: Array | None) -> Any:
    """Return, for an index `[terms, k]` into the entries of values `[rows, ...]`, the sums of terms `[rows, k]`."""
    entries = int(np.prod(values.shape[1:]))
    flat = ops.reshape(values, (-1, entries))
    if (index == entries).any():
        flat = ops.pad(flat, ((0, 0), (0, 1)))  # the entry behind the last one is 0
    total = None
    for at, sign in zip(index, [None] * len(index) if signs is None else signs, strict=True):
        part = ops.take(flat, at, axis=1)
        part = part if sign is None or (sign == 1).all() else part * sign
        total = part if total is None else total + part
    return total


def _inverse(index: Array, signs: Array, entries: int) -> tuple[Array, Array]:
    """Return which outputs read each entry, `[readers, entries]`, and with which signs; outputs' number for none."""
    outputs = index.shape[1]
    order = np.argsort(index.ravel(), kind="stable")
    read, sign = index.ravel()[order], signs.ravel()[order]
    first = np.searchsorted(read, np.arange(entries + 1))
    within = np.arange(len(read)) - first[read]
    kept = read < entries
    most = int(within[kept].max(initial=0)) + 1
    readers, reader_signs = np.full((most, entries), outputs, "int32"), np.ones((most, entries), "float32")
    readers[within[kept], read[kept]] = (order % outputs)[kept]
    reader_signs[within[kept], read[kept]] = sign[kept]
    return readers, reader_signs
