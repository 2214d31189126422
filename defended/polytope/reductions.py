"""Sums over the entries of a value, in an order that keeps roundings few: one axis after the other, or in blocks."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from defended.polytope.affine_maps import Shape, product, product_roundings


def axes_of(shape: Shape) -> Shape:
    """The axes over which a value is summed, one after the other: those of a map, two for a long vector."""
    if len(shape) != 1:
        return shape or (1,)
    size = shape[0]
    first = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return (first, size // first) if first > 1 else (size,)


def total(values: Any, shape: Shape) -> Any:
    """The sum of `[..., *shape]` over `shape`, one axis after the other."""
    lead = tuple(values.shape[: len(values.shape) - len(shape)])
    lead = tuple(-1 if size is None else size for size in lead)
    axes = axes_of(shape)
    if axes != shape:
        values = ops.reshape(values, (*lead, *axes))
    for _ in axes:
        values = ops.sum(values, axis=-1)
    return values


def roundings_of_sums(shape: Shape) -> int:
    """Roundings of `total` and of `weighted`."""
    return max(sum(axes_of(shape)), product_roundings(math.prod(shape)))


def weighted(coefficients: Any, weights: Any, shape: Shape) -> Any:
    """`sum coefficients * weights`, `[batch, targets]`, of `[batch or 1, targets, *shape]` and `[batch, *shape]`."""
    if coefficients.shape[0] == 1:
        size = math.prod(shape)
        return product(ops.reshape(weights, (-1, size)), ops.transpose(ops.reshape(coefficients, (-1, size))))
    return total(coefficients * weights[:, None], shape)


def dual_norm(coefficients: Any, shape: Shape, norm: str) -> Any:
    """The l1 norm (for l∞ balls) or l2 norm (for l2 balls) of `[..., *shape]` over `shape`."""
    if norm == "linf":
        return total(ops.abs(coefficients), shape)
    # The floor keeps the gradient of the root finite, and enlarges it by 1e-15.
    return ops.sqrt(ops.maximum(total(ops.square(coefficients), shape), 1e-30))
