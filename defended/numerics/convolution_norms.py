"""Proven upper bounds on the norms of zero-padded, strided 2-D convolutions, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from defended.numerics.eigenvalues import estimate_by_lanczos, is_verified, verified
from defended.numerics.float64 import UNIT_ROUNDOFF, gamma
from defended.numerics.matrix_norms import bound_nonnegative_norm, normalised, scaled_root, scaled_square
from defended.numerics.sliding_windows import Axis, axes_of

BAND_BYTES = 2.5e9
"""Memory that the banded Gram matrix of a convolution may take; factorising needs twice as much."""

BAND_WORK = 1.5e12
"""Floating-point operations that its factorisation may take: about a minute on one core."""

Array = np.ndarray[Any, np.dtype[Any]]


def bound_conv2d_norm(
    kernel: Array,
    input_shape: Sequence[int],
    strides: tuple[int, int] = (1, 1),
    padding: str = "valid",
    claimed: float | None = None,
) -> float:
    """Bound the norm of a zero-padded, strided 2-D convolution (channels last) from above.

    The Gram matrix of the operator, over its inputs or over its outputs, couples only pixels within a window: it is
    banded. It is formed and factorised as such, which proves a bound within 1e-3 of the norm, mostly within 1e-8. Where
    that takes more than `BAND_BYTES` or `BAND_WORK`, the convolution is embedded in a circular one on a torus that is
    large enough to hold the zero padding, of which it is a restriction, and whose norm is the largest over the
    frequencies (Sedghi, Gupta, Long 2019, with polyphase components for strides).

    Args:
        kernel: `[kh, kw, c_in, c_out]`; a dilated kernel is given with its zeros.
        input_shape: `(height, width)` of the input.
        strides: vertical and horizontal stride.
        padding: `"valid"` or `"same"` (TensorFlow's convention: the odd pixel goes to the bottom right).
        claimed: a bound that somebody claims; one factorisation verifies it, in place of a search.
    """
    axes = axes_of(kernel.shape, input_shape, strides, padding)
    # Taps that only ever read padding would set the scale of the others.
    down, right = ([bool(axis.readers(tap)) for tap in range(axis.taps)] for axis in axes)
    kernel, exponent = normalised(np.where(np.outer(down, right)[:, :, None, None], kernel, 0.0))
    if not kernel.any():
        return 0.0
    band = _narrowest_band(axes, *kernel.shape[2:])
    claimed_squared = None if claimed is None else scaled_square(claimed, exponent)
    squared = _bound_squared_by_band(kernel, axes, band, claimed_squared) if band.is_affordable else None
    return scaled_root(_bound_squared_on_torus(kernel, axes) if squared is None else squared, exponent)


def conv2d_norm_method(
    kernel_shape: Sequence[int], input_shape: Sequence[int], strides: tuple[int, int], padding: str
) -> str:
    """Say how `bound_conv2d_norm` bounds an operator of this geometry."""
    band = _narrowest_band(axes_of(kernel_shape, input_shape, strides, padding), *kernel_shape[2:])
    return "banded factorisation" if band.is_affordable else "frequencies of a torus"


def bound_nonnegative_conv2d_norm(kernel: Array, strides: tuple[int, int] = (1, 1)) -> float:
    """Bound the norm of a zero-padded, strided convolution without negative weights, on inputs of any size.

    On a torus the transfer matrix of such a kernel is, entry by entry, largest at frequency zero, where it is the sum
    of the taps, taken for each phase of the stride; zero padding restricts the torus and cannot enlarge the norm.

    Args:
        kernel: `[kh, kw, c_in, c_out]`.
        strides: vertical and horizontal stride.
    """
    # Sums of taps are computed within gamma(taps); `1 / (1 - g) <= 1 + 2 g` for g <= 1 / 2.
    phases = [kernel[i :: strides[0], j :: strides[1]].sum(axis=(0, 1)) for i, j in np.ndindex(*strides)]
    taps = kernel.shape[0] * kernel.shape[1]
    return bound_nonnegative_norm(np.concatenate(phases)) * (1 + 2 * gamma(taps + 1))


class _Band(NamedTuple):
    """The Gram matrix of a convolution over its inputs or over its outputs, pixels row by row, channels innermost."""

    over_inputs: bool
    pixels: tuple[int, int]
    channels: int
    width: int
    """The largest distance of coupled entries."""

    @property
    def side(self) -> int:
        return self.pixels[0] * self.pixels[1] * self.channels

    @property
    def is_affordable(self) -> bool:
        return 8 * self.side * (self.width + 1) <= BAND_BYTES and float(self.side) * (self.width + 1) ** 2 <= BAND_WORK


def _narrowest_band(axes: Sequence[Axis], c_in: int, c_out: int) -> _Band:
    def band(over_inputs: bool) -> _Band:
        height, width = (axis.size if over_inputs else axis.outputs for axis in axes)
        far = [max((column.displacement for column in _couplings(axis, over_inputs)), default=0) for axis in axes]
        channels = c_in if over_inputs else c_out
        return _Band(over_inputs, (height, width), channels, (far[0] * width + far[1]) * channels + channels - 1)

    return min((band(True), band(False)), key=lambda band: band.side * (band.width + 1) ** 2)


class _Coupling(NamedTuple):
    """Along one axis: the entries that two taps couple, at `columns` and `displacement` further on."""

    taps: tuple[int, int]
    columns: slice
    displacement: int


def _couplings(axis: Axis, over_inputs: bool) -> Iterator[_Coupling]:
    """Yield all pairs of taps (t, s) that meet, with row = column + displacement.

    Over inputs, an output reads the row with t and the column with s; over outputs, the row reads an input with t and
    the column the same one with s.
    """
    for t, s in np.ndindex(axis.taps, axis.taps):
        if over_inputs:
            shared = _intersection(axis.readers(t), axis.readers(s))
            if shared:
                columns = slice(axis.position(shared[0], s), axis.position(shared[-1], s) + 1, axis.stride)
                yield _Coupling((t, s), columns, t - s)
        elif (s - t) % axis.stride == 0:
            displacement = (s - t) // axis.stride
            moved = axis.readers(t)
            shared = _intersection(axis.readers(s), range(moved.start - displacement, moved.stop - displacement))
            if shared:
                yield _Coupling((t, s), slice(shared[0], shared[-1] + 1), displacement)


def _intersection(one: range, other: range) -> range:
    first = max(one.start, other.start)
    return range(first, max(min(one.stop, other.stop), first))


def _gram(kernel: Array, axes: Sequence[Axis], band: _Band) -> Array:
    """Return the lower triangle of the Gram matrix by columns, `[height, width, channels, band.width + 1]`."""
    subscripts = "tio,sjo->tsij" if band.over_inputs else "tio,sip->tsop"
    kw = kernel.shape[1]
    taps = kernel.reshape(-1, *kernel.shape[2:])
    products = np.einsum(subscripts, taps, taps, optimize=True)
    gram = np.zeros((*band.pixels, band.channels, band.width + 1))
    across = list(_couplings(axes[1], band.over_inputs))
    for down in _couplings(axes[0], band.over_inputs):
        for right in across:
            apart = (down.displacement * band.pixels[1] + right.displacement) * band.channels
            if apart < 0:
                continue
            (ty, sy), (tx, sx) = down.taps, right.taps
            block = products[ty * kw + tx, sy * kw + sx]
            target = gram[down.columns, right.columns]
            for column in range(band.channels):
                skipped = 0 if apart else column  # within a pixel only rows from the diagonal on
                first = apart - column + skipped
                target[:, :, column, first : apart - column + band.channels] += block[skipped:, column]
    return gram


def _bound_squared_by_band(kernel: Array, axes: Sequence[Axis], band: _Band, claimed: float | None) -> float | None:
    from scipy import linalg
    from threadpoolctl import threadpool_limits

    gram = _gram(kernel, axes, band).reshape(band.side, -1)
    negative = np.negative(gram, out=gram).T

    def factorises(shift: float) -> bool:
        shifted = negative.copy()
        shifted[0] += shift
        try:
            # LAPACK works through a band in blocks too small to share: a second thread makes it ten times slower.
            with threadpool_limits(1, user_api="blas"):
                linalg.cholesky_banded(shifted, overwrite_ab=True, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return False
        return True

    shape = (*band.pixels, band.channels)
    placements = list(_placements(kernel, axes))
    first, second = (_apply, _adjoint) if band.over_inputs else (_adjoint, _apply)

    def product(vector: Array) -> Array:
        return second(placements, axes, first(placements, axes, vector.reshape(shape))).reshape(-1)

    # An entry adds at most one inner product for each tap: its error is at most gamma_n (|A|^T |A|), whose norm is at
    # most the square of |A|'s; 1.01 is for computing this.
    taps, channels = kernel.shape[0] * kernel.shape[1], max(kernel.shape[2:])
    magnitude = bound_nonnegative_conv2d_norm(np.abs(kernel), (axes[0].stride, axes[1].stride))
    rounding = gamma(taps + channels + 2) * magnitude**2 * 1.01
    if claimed is not None and is_verified(claimed - rounding, band.side, band.width + 1, factorises):
        return claimed
    bound = verified(estimate_by_lanczos(product, band.side, 1e-7), band.side, band.width + 1, factorises)
    return None if bound is None else bound + rounding


def _apply(placements: Sequence[_Placement], axes: Sequence[Axis], inputs: Array) -> Array:
    height, width = axes
    result = np.zeros((height.outputs, width.outputs, placements[0].tap.shape[1]))
    for to, frm, tap in placements:
        result[to] += inputs[frm] @ tap
    return result


def _adjoint(placements: Sequence[_Placement], axes: Sequence[Axis], outputs: Array) -> Array:
    height, width = axes
    result = np.zeros((height.size, width.size, placements[0].tap.shape[0]))
    for to, frm, tap in placements:
        result[frm] += outputs[to] @ tap.T
    return result


class _Placement(NamedTuple):
    """Where one tap works: the outputs, the inputs that it reads for them, and its matrix."""

    outputs: tuple[slice, slice]
    inputs: tuple[slice, slice]
    tap: Array


def _placements(kernel: Array, axes: Sequence[Axis]) -> Iterator[_Placement]:
    for taps in np.ndindex(*kernel.shape[:2]):
        readers = [axis.readers(tap) for axis, tap in zip(axes, taps, strict=True)]
        if all(readers):
            to = [slice(r[0], r[-1] + 1) for r in readers]
            frm = [
                slice(axis.position(r[0], tap), axis.position(r[-1], tap) + 1, axis.stride)
                for axis, tap, r in zip(axes, taps, readers, strict=True)
            ]
            yield _Placement((to[0], to[1]), (frm[0], frm[1]), kernel[taps])


def torus_blocks(kernel: Array, axes: Sequence[Axis]) -> tuple[Array, list[int]]:
    """Return the blocks of a convolution's embedding on a torus, whose singular values are the embedding's.

    A strided convolution couples the `stride^2` fine frequencies that alias onto one coarse frequency; its block there
    is `[W(f_1) ... W(f_s^2)] / s` (per axis `1 / sqrt(s)`).

    Returns:
        The blocks `[frequencies, s_y * s_x * c_in, c_out]`, complex, of half of the coarse frequencies: a real kernel
        has conjugate blocks at opposite ones. They are not divided by s yet. Then the sides of the coarse torus.
    """
    coarse = [axis.torus() for axis in axes]
    transfer = kernel.astype(np.complex128)
    for position, (axis, count) in enumerate(zip(axes, coarse, strict=True)):
        fine = count * axis.stride
        angles = np.outer(np.arange(fine), np.arange(axis.taps)) % fine
        transfer = np.moveaxis(np.tensordot(np.exp(2j * np.pi * angles / fine), transfer, (1, position)), 0, position)
    (sy, sx), (c_in, c_out) = (axes[0].stride, axes[1].stride), kernel.shape[2:]
    blocks = transfer.reshape(sy, coarse[0], sx, coarse[1], c_in, c_out)
    blocks = np.moveaxis(blocks, (1, 3), (0, 1)).reshape(coarse[0] * coarse[1], sy * sx * c_in, c_out)
    return blocks[: (coarse[0] // 2 + 1) * coarse[1]], coarse


def entry_errors(kernel: Array) -> Array:
    """Return bounds `[c_in, c_out]` on the rounding errors of the entries of `torus_blocks`.

    An angle goes through three roundings, and angles reach 2 pi: an exponential is within `3 * 2 pi u + 2 u < 21 u`,
    the product of two within 42 u. Multiplying them by taps and adding these up takes at most `taps + 4` complex
    operations, each within `2 sqrt(2) u` of the sum of the taps' magnitudes.
    """
    taps = kernel.shape[0] * kernel.shape[1]
    return (3 * taps + 64) * UNIT_ROUNDOFF * np.abs(kernel).sum(axis=(0, 1))


def _bound_squared_on_torus(kernel: Array, axes: Sequence[Axis]) -> float:
    blocks, coarse = torus_blocks(kernel, axes)
    sy, sx = axes[0].stride, axes[1].stride
    largest = max(
        float(np.linalg.norm(part, 2, axis=(-2, -1)).max()) for part in np.array_split(blocks, coarse[0] // 2 + 1)
    )
    # The norm of what a block errs by is at most the root of the sum of its squares. LAPACK's singular values are
    # *assumed* to be backward stable with 64 times the block's side for a constant.
    entry_error = float(np.linalg.norm(entry_errors(kernel))) * (sy * sx) ** 0.5
    side = max(blocks.shape[1:])
    return ((largest * (1 + 64 * side * UNIT_ROUNDOFF) + entry_error) ** 2) / (sy * sx) * (1 + 8 * UNIT_ROUNDOFF)
