"""Sums and inner products in an order that keeps roundings few: one axis after the other, or in blocks."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

Shape = tuple[int, ...]

TERMS = 64
"""Terms of a block of a convolution's inner products, where possible; those of a Dense layer are left whole up to twice
as many."""


def as_map(shape: Shape) -> Shape:
    """Return the shape of a map `(height, width, channels)`; of a series `(length, channels)`, with a width of 1."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def block_of(terms: int) -> int:
    """Return the length of the blocks of an inner product: all of it, or its root, so that roundings are few."""
    return terms if terms <= 2 * TERMS else math.isqrt(terms - 1) + 1


def product_roundings(terms: int) -> int:
    """Count the roundings of a product on its way through `product` and through adding a bias."""
    block = block_of(terms)
    return block + -(-terms // block)


def product(values: Any, kernel: Any, blocked: bool = True) -> Any:
    """Return `values kernel` of `[..., n]` and `[n, k]`, long inner products in blocks that are added up afterwards."""
    terms, width = kernel.shape
    block = block_of(terms)
    parts = -(-terms // block)
    if parts == 1 or not blocked:
        return ops.matmul(values, kernel)
    lead = [-1 if size is None else size for size in values.shape[:-1]]
    missing = parts * block - terms
    rows = ops.reshape(values, (-1, terms))
    if missing:
        rows, kernel = ops.pad(rows, ((0, 0), (0, missing))), ops.pad(kernel, ((0, missing), (0, 0)))
    rows = ops.transpose(ops.reshape(rows, (-1, parts, block)), (1, 0, 2))
    pieces = ops.matmul(rows, ops.reshape(kernel, (parts, block, width)))
    return ops.reshape(ops.sum(pieces, axis=0), (*lead, width))


def axes_of(shape: Shape) -> Shape:
    """Return the axes over which a value is summed, one after the other: those of a map, two for a long vector."""
    if len(shape) != 1:
        return shape or (1,)
    size = shape[0]
    first = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return (first, size // first) if first > 1 else (size,)


def total(values: Any, shape: Shape) -> Any:
    """Return the sum of `[..., *shape]` over `shape`, one axis after the other."""
    lead = [-1 if size is None else size for size in values.shape[: len(values.shape) - len(shape)]]
    axes = axes_of(shape)
    if axes != shape:
        values = ops.reshape(values, (*lead, *axes))
    for _ in axes:
        values = ops.sum(values, axis=-1)
    return values


def roundings_of_sums(shape: Shape) -> int:
    """Count the roundings of `total` and of `weighted`."""
    return max(sum(axes_of(shape)), product_roundings(math.prod(shape)))


def weighted(coefficients: Any, weights: Any, shape: Shape) -> Any:
    """Sum `coefficients * weights`, `[batch or 1, targets, *shape]` and `[batch, *shape]`, to `[batch, targets]`."""
    if coefficients.shape[0] == 1:
        size = math.prod(shape)
        return product(ops.reshape(weights, (-1, size)), ops.transpose(ops.reshape(coefficients, (-1, size))))
    return total(coefficients * weights[:, None], shape)


def dual_norm(coefficients: Any, shape: Shape, norm: str) -> Any:
    """Return the l1 norm (for l∞ balls) or l2 norm (for l2 balls) of `[..., *shape]` over `shape`."""
    if norm == "linf":
        return total(ops.abs(coefficients), shape)
    # The floor keeps the gradient of the root finite, and enlarges it by 1e-15.
    return ops.sqrt(ops.maximum(total(ops.square(coefficients), shape), 1e-30))
