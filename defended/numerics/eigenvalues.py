"""Proven upper bounds on the largest eigenvalue of a Gram matrix, in float64.

The eigenvalue is found by Lanczos iteration, which may be low, and then *verified*: if the Cholesky factorisation of
`(c - d) I - G` runs to completion in floating point, with `d = gamma_{k+1} / (1 - gamma_{k+1}) * trace` and k the
longest inner product in it, then `c I - G` is positive semidefinite (Rump 2006, theorem 2.3), whatever the solver did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from defended.numerics.float64 import UNIT_ROUNDOFF, gamma

EXACT_SIZE = 8192
"""Up to this side a dense matrix is factorised; beyond, Gram iteration bounds it."""

_LANCZOS_FROM = 65  # smaller matrices are decomposed entirely in less time

Array = np.ndarray[Any, np.dtype[Any]]


def bound_largest_eigenvalue(gram: Array, claimed: float | None = None) -> float:
    """Bound the largest eigenvalue of a symmetric positive semidefinite matrix `[n, n]`.

    `claimed`, a bound that somebody claims, is verified by one factorisation, which spares the search where it holds.
    """
    n = len(gram)
    if not np.any(gram):
        return 0.0
    if n > EXACT_SIZE:
        return bound_by_gram_iteration(gram)

    def factorises(shift: float) -> bool:
        from scipy import linalg

        shifted = -gram
        shifted[np.diag_indices(n)] += shift
        try:
            linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return False
        return True

    if claimed is not None and is_verified(claimed, n, n, factorises):
        return claimed
    bound = verified(_estimate_largest_eigenvalue(gram), n, n, factorises)
    return bound_by_gram_iteration(gram) if bound is None else bound


def verified(estimate: float, n: int, longest: int, factorises: Callable[[float], bool]) -> float | None:
    """Return the smallest number that was tried, from `estimate` upwards, and proven to bound the largest eigenvalue.

    Args:
        estimate: an approximation, possibly low; positive.
        n: side of the matrix G, symmetric and positive semidefinite.
        longest: terms of the longest inner product in the factorisation.
        factorises: whether the Cholesky factorisation of `shift * I - G` runs to completion.

    Returns:
        The bound, or None where no factorisation succeeded.
    """
    rump = _rump(n, longest)
    excess = max(3 * rump, 16 * UNIT_ROUNDOFF)
    for _ in range(40):
        bound = estimate * (1 + excess)
        if is_verified(bound, n, longest, factorises):
            return bound * (1 + 4 * UNIT_ROUNDOFF)
        excess *= 2 if excess < 1e-8 else 8
    return None


def is_verified(bound: float, n: int, longest: int, factorises: Callable[[float], bool]) -> bool:
    """Return whether one factorisation proves a bound; arguments are as in `verified`."""
    # Half of the theorem's d once more, at least 3 u of the bound for n >= 2: the shift is rounded twice, each entry of
    # the diagonal once. (For n = 1 a positive difference is all the proof that is needed.)
    return factorises(bound * (1 - 1.5 * _rump(n, longest)))


def _rump(n: int, longest: int) -> float:
    """Return the theorem's d in units of the bound c: the trace of `c I - G` is at most `n c`."""
    # 1 / (1 - gamma) <= 1.02 where the longest inner product has at most 2^47 terms.
    return 1.02 * n * gamma(longest + 1)


def estimate_by_lanczos(product: Callable[[Array], Array], n: int, tolerance: float = 1e-10) -> float:
    """Find the largest eigenvalue of a symmetric map `[n] -> [n]` by Lanczos iteration: at most the true one."""
    from scipy.sparse import linalg

    if n < 3:
        columns = np.stack([product(column) for column in np.eye(n)])
        return float(np.linalg.eigvalsh(columns)[-1])
    start = np.random.default_rng(0).standard_normal(n)
    operator = linalg.LinearOperator((n, n), matvec=product, dtype=np.float64)
    try:
        values = linalg.eigsh(
            operator, k=1, which="LA", tol=tolerance, v0=start, ncv=min(40, n), maxiter=60, return_eigenvectors=False
        )
        return float(values[0])
    except linalg.ArpackError:  # not converged, or an invariant subspace at the start: some Rayleigh quotient will do
        vector = start / np.linalg.norm(start)
        for _ in range(200):
            vector = product(vector)
            vector = vector / np.linalg.norm(vector)
        return float(vector @ product(vector))


def bound_by_gram_iteration(gram: Array, steps: int = 13) -> float:
    """Bound the eigenvalue by Gram iteration, rescaled by Frobenius norms (Delattre et al. 2023), with rounding errors.

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
    bound = float(np.linalg.norm(current)) * (1 + gamma(n * n))
    for scale in reversed(scales):
        # |R_k|_F <= 1 + gamma(n^2): its entries and the scale are rounded. The product errs by gamma(n) |R_k|_F^2, the
        # division, u in each entry, by 2 u of the square, and 1.01 is for computing this.
        bound = np.sqrt(bound + 1.01 * gamma(n + 4) * (1 + gamma(n * n)) ** 2) * scale * (1 + 4 * UNIT_ROUNDOFF)
    return float(bound)


def _estimate_largest_eigenvalue(gram: Array) -> float:
    if len(gram) >= _LANCZOS_FROM:
        return estimate_by_lanczos(lambda vector: gram @ vector, len(gram))
    from scipy import linalg

    # Not the solver for a single eigenvalue: it gives up on matrices near a multiple of the identity.
    return float(linalg.eigh(gram, eigvals_only=True, driver="ev")[-1])
