"""Proven upper bounds on operator norms, in float64 NumPy.

Every `bound_...` function returns a float that is never below the true spectral norm of the weights it was given. Its
proof is in three steps, each rounded outwards:

1. A Gram matrix is formed. Its entries are inner products of length k, so the computed matrix differs from the exact
   one by at most `gamma_k |A| |A|^T` entrywise (Higham 2002, section 3.1); the norm of that is bounded by its row sums.
2. Its largest eigenvalue is found with LAPACK and then *verified*: if the Cholesky factorisation of `(c - d) I - G`
   runs to completion in floating point, with `d = gamma_{n+1} / (1 - gamma_{n+1}) * trace`, then `c I - G` is positive
   semidefinite (Rump 2006, theorem 2.3), whatever the eigenvalue solver did.
3. The result is scaled back by an exact power of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

UNIT_ROUNDOFF = 2.0**-53

EXACT_SIZE = 2048
"""Up to this side of the Gram matrix it is decomposed; beyond, Gram iteration bounds it."""

Array = np.ndarray[Any, np.dtype[Any]]


def bound_matrix_norm(matrix: Array) -> float:
    """Upper bound on the largest singular value of a matrix `[rows, columns]`."""
    matrix, exponent = _normalised(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    magnitude = np.abs(matrix)
    gram = matrix @ matrix.T
    row_sum = float(np.max(magnitude @ (magnitude.T @ np.ones(len(matrix)))))
    return _scaled_root(_bound_largest_eigenvalue(gram) + _gamma(matrix.shape[1] + 2) * row_sum * 1.01, exponent)


def bound_conv2d_norm(
    kernel: Array, input_shape: Sequence[int], strides: tuple[int, int] = (1, 1), padding: str = "valid"
) -> float:
    """Upper bound on the norm of a zero-padded, strided 2-D convolution (channels last).

    Where the smaller side of the operator has at most `EXACT_SIZE` entries the operator itself is decomposed; beyond,
    the convolution is embedded in a circular one on a torus that is large enough to hold the zero padding, of which it
    is a restriction, and whose norm is the largest over the frequencies (Sedghi, Gupta, Long 2019, with polyphase
    components for strides).

    Args:
        kernel: `[kh, kw, c_in, c_out]`; a dilated kernel is given with its zeros.
        input_shape: `(height, width)` of the input.
        strides: vertical and horizontal stride.
        padding: `"valid"` or `"same"` (TensorFlow's convention: the odd pixel goes to the bottom right).
    """
    kernel, exponent = _normalised(kernel)
    axes = [_Axis(*side, padding) for side in zip(kernel.shape[:2], input_shape, strides, strict=True)]
    c_in, c_out = kernel.shape[2:]
    bound = _bound_squared_conv_exact if _is_small(axes, c_in, c_out) else _bound_squared_conv_torus
    return _scaled_root(bound(kernel, axes), exponent)


def conv2d_norm_method(kernel_shape: Sequence[int], input_shape: Sequence[int], strides: Any, padding: str) -> str:
    """How `bound_conv2d_norm` bounds an operator of this geometry, in words."""
    axes = [_Axis(*side, padding) for side in zip(kernel_shape[:2], input_shape, strides, strict=True)]
    return "float64 decomposition" if _is_small(axes, *kernel_shape[2:]) else "frequencies of a torus"


def bound_nonnegative_norm(matrix: Array) -> float:
    """Upper bound on the largest singular value of a matrix `[rows, columns]` without negative entries.

    For every positive vector v the largest eigenvalue of `A^T A` is at most `max_k (A^T A v)_k / v_k` (Collatz 1942,
    Wielandt 1950). All terms are positive, so rounding only costs a relative `gamma` of the number of operations.
    """
    matrix, exponent = _normalised(matrix)
    if np.any(matrix < 0):
        raise ValueError("the matrix has negative entries; take absolute values first.")
    if not matrix.any():
        return 0.0
    vector = np.ones(matrix.shape[1])
    for _ in range(30):
        image = matrix.T @ (matrix @ vector)
        # The floor keeps the vector positive where a column is zero.
        vector = image / image.max() + 2.0**-30
    largest = float(np.max(matrix.T @ (matrix @ vector) / vector))
    return _scaled_root(largest * (1 + 2 * _gamma(sum(matrix.shape) + 4)), exponent)


def bound_nonnegative_conv2d_norm(kernel: Array, strides: tuple[int, int] = (1, 1)) -> float:
    """Upper bound on the norm of a zero-padded, strided convolution without negative weights, on inputs of any size.

    On a torus the transfer matrix of such a kernel is, entry by entry, largest at frequency zero, where it is the sum
    of the taps, taken for each phase of the stride; zero padding restricts the torus and cannot enlarge the norm.

    Args:
        kernel: `[kh, kw, c_in, c_out]`.
        strides: vertical and horizontal stride.
    """
    phases = [kernel[i :: strides[0], j :: strides[1]].sum(axis=(0, 1)) for i, j in np.ndindex(*strides)]
    taps = kernel.shape[0] * kernel.shape[1]
    return bound_nonnegative_norm(np.concatenate(phases)) * (1 + 2 * _gamma(taps + 1))


def average_pooling_norm(size: int, pool: int, stride: int, padding: str) -> float:
    """Norm of average pooling along one axis; the 2-D operator is the Kronecker product of its axes, so norms multiply.

    Zero padding is not averaged (Keras's convention), so windows at the border average fewer entries.
    """
    axis = _Axis(pool, size, stride, padding)
    matrix = axis.coverage()
    return bound_matrix_norm(matrix / np.sum(matrix, axis=1, keepdims=True))


def max_pooling_overlap(size: int, pool: int, stride: int, padding: str) -> int:
    """The number of windows along one axis that share their most shared entry.

    Max pooling is `sqrt(overlap_h * overlap_w)`-Lipschitz in l2: `|max a - max b|^2 <= |a - b|^2` in every window, and
    each input entry is counted once for every window that holds it.
    """
    return int(_Axis(pool, size, stride, padding).coverage().sum(axis=0).max())


def round_up_to_float32(values: Any) -> Array:
    """Float32 values never below `values`; positive ones are at least the smallest normal float32."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        rounded = np.where(rounded.astype(np.float64) < values, np.nextafter(rounded, np.float32(np.inf)), rounded)
    # Kernels may flush subnormal numbers to zero, which would turn a small constant into none.
    return np.where(values > 0, np.maximum(rounded, np.finfo(np.float32).tiny), rounded).astype(np.float32)


class _Axis:
    """Geometry of a sliding window along one axis: which input each (output, tap) reads."""

    def __init__(self, taps: int, size: int, stride: int, padding: str):
        self.taps, self.size, self.stride = taps, size, stride
        if padding == "same":
            self.outputs = -(-size // stride)
            self.before = max((self.outputs - 1) * stride + taps - size, 0) // 2
        else:
            self.outputs = (size - taps) // stride + 1
            self.before = 0

    def reads(self, tap: int) -> tuple[Array, Array]:
        """Output indices and the input indices that `tap` multiplies for them; zero padding left out."""
        outputs = np.arange(self.outputs)
        inputs = outputs * self.stride + tap - self.before
        inside = (inputs >= 0) & (inputs < self.size)
        return outputs[inside], inputs[inside]

    def coverage(self) -> Array:
        """`[outputs, size]`, 1 where the window holds the input."""
        matrix = np.zeros((self.outputs, self.size))
        for tap in range(self.taps):
            matrix[self.reads(tap)] = 1.0
        return matrix

    def torus(self) -> int:
        """Coarse torus size M (fine size `M * stride`) on which no tap of a used output wraps onto a used input."""
        last = (self.outputs - 1) * self.stride + self.taps - 1 - self.before
        return -(-max(self.size + self.before, last + 1) // self.stride)


def _is_small(axes: list[_Axis], c_in: int, c_out: int) -> bool:
    rows, columns = (math.prod(side) for side in zip(*((axis.outputs, axis.size) for axis in axes), strict=True))
    return min(rows * c_out, columns * c_in) <= EXACT_SIZE


def _bound_squared_conv_exact(kernel: Array, axes: list[_Axis]) -> float:
    from scipy import sparse

    height, width = axes
    c_in, c_out = kernel.shape[2:]
    entries = []
    for ky, kx in np.ndindex(*kernel.shape[:2]):
        (oy, iy), (ox, ix) = height.reads(ky), width.reads(kx)
        out = (oy[:, None] * width.outputs + ox[None, :]).ravel()
        inp = (iy[:, None] * width.size + ix[None, :]).ravel()
        row = out[:, None, None] * c_out + np.arange(c_out)
        column = inp[:, None, None] * c_in + np.arange(c_in)[:, None]
        shape = (len(out), c_in, c_out)
        entries.append([np.broadcast_to(part, shape).ravel() for part in (kernel[ky, kx], row, column)])
    values, row, column = (np.concatenate(part) for part in zip(*entries, strict=True))
    sides = height.outputs * width.outputs * c_out, height.size * width.size * c_in
    operator = sparse.csr_array((values, (row, column)), shape=sides)
    if sides[0] > sides[1]:
        operator = operator.T.tocsr()
    magnitude = abs(operator)
    row_sum = float(np.max(magnitude @ (magnitude.T @ np.ones(min(sides)))))
    terms = int(np.max(np.diff(operator.indptr))) + 2
    return _bound_largest_eigenvalue((operator @ operator.T).toarray()) + _gamma(terms) * row_sum * 1.01


def _bound_squared_conv_torus(kernel: Array, axes: list[_Axis]) -> float:
    # On the torus a strided convolution couples the `stride^2` fine frequencies that alias onto one coarse frequency:
    # its block there is [W(f_1) ... W(f_s^2)] / s (per axis 1/sqrt(s)), a matrix c_out x (s^2 c_in).
    coarse = [axis.torus() for axis in axes]
    transfer = kernel.astype(np.complex128)
    for position, (axis, count) in enumerate(zip(axes, coarse, strict=True)):
        fine = count * axis.stride
        angles = np.outer(np.arange(fine), np.arange(axis.taps)) % fine
        transfer = np.moveaxis(np.tensordot(np.exp(2j * np.pi * angles / fine), transfer, (1, position)), 0, position)
    (sy, sx), (c_in, c_out) = (axes[0].stride, axes[1].stride), kernel.shape[2:]
    blocks = transfer.reshape(sy, coarse[0], sx, coarse[1], c_in, c_out)
    blocks = np.moveaxis(blocks, (1, 3), (0, 1)).reshape(coarse[0] * coarse[1], sy * sx * c_in, c_out)
    # A real kernel has conjugate blocks at opposite frequencies: half of the rows are enough.
    blocks = blocks[: (coarse[0] // 2 + 1) * coarse[1]]
    largest = max(
        float(np.linalg.norm(part, 2, axis=(-2, -1)).max()) for part in np.array_split(blocks, coarse[0] // 2 + 1)
    )
    # Entries carry an error of at most (taps + 8) u times the sum of their taps; LAPACK's singular values are backward
    # stable with a modest constant, taken as 64 times the block's side.
    taps = kernel.shape[0] * kernel.shape[1]
    entry_error = (
        (taps + 8) * UNIT_ROUNDOFF * float(np.sqrt((np.abs(kernel).sum(axis=(0, 1)) ** 2).sum())) * (sy * sx) ** 0.5
    )
    side = max(blocks.shape[1:])
    return ((largest * (1 + 64 * side * UNIT_ROUNDOFF) + entry_error) ** 2) / (sy * sx) * (1 + 8 * UNIT_ROUNDOFF)


def _bound_largest_eigenvalue(gram: Array) -> float:
    """Upper bound on the largest eigenvalue of a symmetric positive semidefinite matrix."""
    from scipy import linalg

    n = len(gram)
    if not np.any(gram):
        return 0.0
    if n > EXACT_SIZE:
        return _bound_by_gram_iteration(gram)
    # Not the solver for a single eigenvalue: it gives up on matrices near a multiple of the identity.
    estimate = float(linalg.eigh(gram, eigvals_only=True, driver="ev")[-1])
    rump = 1.02 * n * _gamma(n + 1)  # times the bound itself, which is at least trace / n
    excess = max(3 * rump, 16 * UNIT_ROUNDOFF)
    for _ in range(40):
        bound = estimate * (1 + excess)
        shifted = -gram
        shifted[np.diag_indices(n)] += bound * (1 - 1.5 * rump)
        try:
            linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            excess *= 2
            continue
        return bound * (1 + 4 * UNIT_ROUNDOFF)
    return _bound_by_gram_iteration(gram)


def _bound_by_gram_iteration(gram: Array, steps: int = 13) -> float:
    """Gram iteration with Frobenius rescaling (Delattre et al. 2023), its rounding errors carried along.

    `R_{k+1} = R_k^2 / |R_k^2|_F`. The Frobenius norm bounds the last spectral norm, and backwards
    `|R_k|_2^2 = |R_k^2|_2 <= |computed R_k^2|_2 + gamma_n |R_k|_F^2`. The overestimate is at most n^(2^-steps / 2).
    """
    n = len(gram)
    scales = []
    current = gram
    for _ in range(steps):
        scale = float(np.linalg.norm(current))
        current = current / scale
        scales.append(scale)
        current = current @ current
    bound = float(np.linalg.norm(current)) * (1 + _gamma(n * n))
    for scale in reversed(scales):
        # |R_k|_F <= 1 + gamma: the division and the norm are rounded, too.
        bound = np.sqrt(bound + 1.01 * _gamma(n + 4) * (1 + _gamma(n * n)) ** 2) * scale * (1 + 4 * UNIT_ROUNDOFF)
    return float(bound)


def _gamma(terms: float) -> float:
    product = terms * UNIT_ROUNDOFF
    return product / (1 - product)


def _normalised(values: Array) -> tuple[Array, int]:
    """Values in float64 scaled exactly by a power of two to a largest magnitude in [0.5, 1), and the exponent."""
    values = np.asarray(values, dtype=np.float64)
    largest = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("the weights are not all finite. Restore them from a checkpoint before certifying.")
    exponent = int(np.frexp(largest)[1]) if largest else 0
    return np.ldexp(values, -exponent), exponent


def _scaled_root(squared: float, exponent: int) -> float:
    return float(np.ldexp(np.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF), exponent))
