"""Proven upper bounds on operator norms, in float64 NumPy.

Every `bound_...` function returns a float that is never below the true spectral norm of the weights it was given. Its
proof is in three steps, each rounded outwards:

1. A Gram matrix is formed. Its entries are inner products of length k, so the computed matrix differs from the exact
   one by at most `gamma_k |A| |A|^T` entrywise (Higham 2002, section 3.1); the norm of that is bounded by its row sums.
2. A bound on its largest eigenvalue is proven by a Cholesky factorisation, see `eigenvalues`.
3. The result is scaled back by an exact power of two.

Convolutions have a module of their own, `convolution_norms`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended.numerics import float32
from defended.numerics.eigenvalues import bound_largest_eigenvalue
from defended.numerics.float64 import UNIT_ROUNDOFF, gamma
from defended.numerics.sliding_windows import Axis

Array = np.ndarray[Any, np.dtype[Any]]


def bound_matrix_norm(matrix: Array, claimed: float | None = None) -> float:
    """Bound the largest singular value of a matrix `[rows, columns]` from above; a `claimed` bound is verified."""
    matrix, exponent = normalised(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    magnitude = np.abs(matrix)
    gram = matrix @ matrix.T
    # Row sums are computed within gamma(rows + columns), which 1.01 outweighs, as it does the rounding of the product.
    row_sum = float(np.max(magnitude @ (magnitude.T @ np.ones(len(matrix)))))
    rounding = gamma(matrix.shape[1] + 2) * row_sum * 1.01
    squared = None if claimed is None else scaled_square(claimed, exponent) - rounding
    return scaled_root(bound_largest_eigenvalue(gram, squared) + rounding, exponent)


def bound_nonnegative_norm(matrix: Array) -> float:
    """Bound the largest singular value of a matrix `[rows, columns]` without negative entries from above.

    For every positive vector v the largest eigenvalue of `A^T A` is at most `max_k (A^T A v)_k / v_k` (Collatz 1942,
    Wielandt 1950). All terms are positive, so rounding only costs a relative `gamma` of the number of operations.
    """
    matrix, exponent = normalised(matrix)
    if np.any(matrix < 0):
        raise ValueError("the matrix has negative entries; take absolute values first.")
    if not matrix.any():
        return 0.0
    vector = np.ones(matrix.shape[1])
    for _ in range(30):
        image = matrix.T @ (matrix @ vector)
        # The floor keeps the vector positive where a column is zero.
        vector = image / image.max() + 2.0**-30
    # A quotient goes through rows + columns - 1 roundings; `1 / (1 - g) <= 1 + 2 g` for g <= 1 / 2.
    largest = float(np.max(matrix.T @ (matrix @ vector) / vector))
    return scaled_root(largest * (1 + 2 * gamma(sum(matrix.shape) + 4)), exponent)


def bound_norm(vector: Array, copies: float = 1) -> float:
    """Bound the l2 norm of some copies of a vector, one after the other, from above."""
    # n squares and n - 1 sums, halved by the root, and four more operations: 2^-40 is more for all n < 2^14.
    return float(np.linalg.norm(vector) * copies**0.5) * (1 + max(2.0**-40, gamma(np.size(vector) / 2 + 8)))


def average_pooling_norm(size: int, pool: int, stride: int, padding: str) -> float:
    """Bound the norm of average pooling along one axis; the norms of both axes multiply to that of the 2-D operator.

    Zero padding is not averaged (Keras's convention), so windows at the border average fewer entries.
    """
    axis = Axis(pool, size, stride, padding)
    matrix = axis.coverage()
    return bound_matrix_norm(matrix / np.sum(matrix, axis=1, keepdims=True))


def max_pooling_overlap(size: int, pool: int, stride: int, padding: str) -> int:
    """Count the windows along one axis that share their most shared entry.

    Max pooling is `sqrt(overlap_h * overlap_w)`-Lipschitz in l2: `|max a - max b|^2 <= |a - b|^2` in every window, and
    each input entry is counted once for every window that holds it.
    """
    return int(Axis(pool, size, stride, padding).coverage().sum(axis=0).max())


def round_up_to_float32(values: ArrayLike) -> Array:
    """Return float32 values never below `values`; positive ones are at least the smallest normal float32."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        rounded = np.where(rounded.astype(np.float64) < values, np.nextafter(rounded, np.float32(np.inf)), rounded)
    # Kernels may flush subnormal numbers to zero, which would turn a small constant into none.
    return np.where(values > 0, np.maximum(rounded, float32.SMALLEST_NORMAL), rounded).astype(np.float32)


def normalised(values: Array) -> tuple[Array, int]:
    """Return values in float64, scaled exactly by a power of two to a largest magnitude in [0.5, 1), and the exponent.

    Raises:
        ValueError: when they are not all finite.
    """
    values = np.asarray(values, dtype=np.float64)
    largest = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("the weights are not all finite. Restore them from a checkpoint before certifying.")
    exponent = int(np.frexp(largest)[1]) if largest else 0
    return np.ldexp(values, -exponent), exponent


def scaled_square(norm: float, exponent: int) -> float:
    """Return the square of `norm * 2^-exponent`; `scaled_root` of what is proven of it is not below the norm."""
    return float(np.ldexp(norm, -exponent)) ** 2


def scaled_root(squared: float, exponent: int) -> float:
    """Return `sqrt(squared) * 2^exponent`, rounded upwards, also if `squared` is a sum that was rounded."""
    # Half a rounding for the sum, one for the root, one for this factor.
    return float(np.ldexp(np.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF), exponent))
