"""How far a float32 evaluation can stray from the network's exact values, proven layer by layer.

Notation: u = 2^-24 is float32's unit roundoff, `gamma_n = n u / (1 - n u)`. An inner product of n terms, added in any
order and with or without fused multiply-add, is off by at most `gamma_n |a|^T |b|` (Higham 2002, section 3.1), and by a
multiple of the smallest normal number where results or operands are flushed to zero.

Every bound is a function of the input's norm rho and stands as a pair `(c0, c1)` for `c0 + c1 * rho`, both positive, so
one proof serves every input. All of it is float64; the factor `_UP` at each step outweighs float64's own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from defended.numerics import float64
from defended.numerics.float32 import SMALLEST_NORMAL, gamma

LARGEST = 2.0**112
"""No sum may pass this on any input that is answered. Averages, of up to 2^14 values or over windows of up to 2^28
entries, add first and divide then: their sums do not overflow either."""

BLOCK = 128
"""Longer inner products are evaluated in blocks of at most this many terms, or of one channel of a convolution."""

ELEMENTARY = 16
"""Units of roundoff, relative to `1 + L |z|`, that exp, tanh and their kin are *assumed* to keep at z."""

NORMALISATION = 20
"""Roundings of batch normalisation at inference, or more: epsilon's, its sum with the variance, a reciprocal root
within four units, products with gamma, the mean, the kernel and the input, and two sums make twelve."""

_UP = 1 + 2.0**-44  # more than 2^8 roundings of positive float64 numbers make of a bound: gamma(2^8) < 2^-44

Array = np.ndarray[Any, np.dtype[np.float64]]


def affine(constant: float = 0.0, slope: float = 0.0) -> Array:
    """Return the bound `constant + slope * rho`."""
    return np.array([constant, slope])


def blocks(channels: int, taps: int = 1) -> int:
    """Return the number of blocks of channels that an inner product is evaluated in: equal ones, if nearly as few do.

    Args:
        channels: those of the input; a Dense layer's features.
        taps: products for each of them in one inner product.
    """
    fewest = -(-channels // max(BLOCK // taps, 1))
    return next((parts for parts in range(fewest, 2 * fewest) if channels % parts == 0), fewest)


def roundings_of_sum(channels: int, taps: int = 1, parts: int = 1) -> int:
    """Count the roundings of a product on its way through the longest block, the other blocks and the bias."""
    return -(-channels // parts) * taps + parts


class Evaluated(NamedTuple):
    """Bounds on one value of the network, as functions of the input's norm."""

    magnitude: Array
    """l2 norm of the exact value."""
    error: Array
    """l2 distance of the computed value from the exact one."""
    terms: Array
    """l2 norm of the sums of magnitudes that the value was added up from, which no partial sum exceeds."""

    def anchored(self, at_zero: float, constant: float) -> Evaluated:
        """Return the same bounds with a magnitude of `|f(0)| + constant * rho`, where that is smaller.

        Layer by layer, biases count as if all that follows carried them on as far as it can. What the network holds at
        the input 0 is known instead: it was evaluated, and the error at 0 is bounded.

        Args:
            at_zero: the norm of the value as computed at 0, in float64.
            constant: a Lipschitz constant of the value.
        """
        # The norm of n squares, added up in float64, is within gamma(n / 2 + 2) < 2^-30 for n < 2^24.
        anchor = affine(at_zero * (1 + 2.0**-30) + self.error[0], constant) * _UP
        smaller = anchor[0] < self.magnitude[0] and anchor[1] <= self.magnitude[1] * (1 + 2.0**-30)
        return self._replace(magnitude=anchor) if smaller else self


def of_input(size: int) -> Evaluated:
    """Return bounds on the input: float32 numbers, of which kernels may flush the smallest to zero."""
    norm = affine(slope=1.0)
    return Evaluated(norm, affine(SMALLEST_NORMAL * size**0.5), norm)


def merged(values: Sequence[Evaluated], merge: str, size: int) -> Evaluated:
    """Return bounds on values that are added (`"sum"`), averaged (`"mean"`) or concatenated (`"hypot"`).

    Args:
        values: bounds on each of them.
        merge: how they are merged.
        size: entries of the result.
    """
    count = len(values)
    if count == 1:
        return values[0]
    up = max(_UP, 1 + float64.gamma(count + 8))  # of many values, the sums here are long, too
    parts = [np.stack(part) for part in zip(*values, strict=True)]
    if merge == "hypot":
        # |(a + b rho, c + d rho)| <= |(a, c)| + |(b, d)| rho.
        return Evaluated(*(np.sqrt(np.sum(part**2, axis=0)) * up for part in parts))
    share = 1 / count if merge == "mean" else 1.0
    magnitude, error, _ = (np.sum(part, axis=0) * share * up for part in parts)
    terms = magnitude + error
    # count - 1 sums and a quotient make an entry: so many roundings, and so many numbers to be flushed.
    relative, flushed = gamma(count + 1), affine(SMALLEST_NORMAL * count * size**0.5)
    return Evaluated(magnitude, (error + relative * terms + (1 + relative) * flushed) * up, terms)


def linear(
    value: Evaluated,
    norm: float,
    norm_of_magnitudes: float,
    bias: float,
    roundings: int,
    products: int,
    sizes: tuple[int, int],
    scale: float = 1.0,
) -> Evaluated:
    """Return bounds on the output of a linear map with a bias, evaluated as inner products.

    With W the map, x the exact and z the computed input, and g = gamma(roundings), the output is off by at most

    - `|W| |z - x|`, what z errs by;
    - `g (||W|| |z| + |b|)`, with `||W||` the norm of the map of magnitudes: the rounding of the inner products;
    - `1 + g` times what is flushed to zero, each a change by less than t = 2^-126: entries of z, `t ||W|| sqrt(n)`;
      weights, in each output at most `t |z|_1 <= t sqrt(n) |z|`; and in each output k products, at most k partial sums,
      the result among them, and the bias: `(2 k + 1) t`. The rest of `3 (k + roundings + 1)` is for numbers on the way
      to a weight that is computed, and in a normalisation that is merged into the map. What is flushed before a factor
      is applied is multiplied by it.

    Args:
        value: the input.
        norm: bound on the map's norm.
        norm_of_magnitudes: the same for the map of the weights' magnitudes.
        bias: norm of the bias.
        roundings: operations between a weight and the output.
        products: products in an entry of the output; each of them, and each sum, may be flushed to zero.
        sizes: entries of the input and of the output.
        scale: at least 1 and at least the largest factor that the map holds and float32 applies only to its results.
    """
    relative = gamma(roundings)
    computed = value.magnitude + value.error
    terms = (norm_of_magnitudes * computed + affine(bias)) * _UP
    flushed = SMALLEST_NORMAL * (
        sizes[1] ** 0.5 * affine(3.0 * (products + roundings + 1) * scale)
        + norm_of_magnitudes * affine(sizes[0] ** 0.5)
        + (sizes[0] * sizes[1]) ** 0.5 * scale * computed
    )
    return Evaluated(
        (norm * value.magnitude + affine(bias)) * _UP,
        (norm * value.error + relative * terms + (1 + relative) * flushed) * _UP,
        terms,
    )


def function(
    value: Evaluated, factor: float, offset: float, roundings: float, size: int, absolute: float, of_terms: bool = False
) -> Evaluated:
    """Return bounds on a function with Lipschitz constant `factor` and norm `offset` at 0.

    Its evaluation is within `gamma(roundings) * (factor * t + offset + absolute)` of its exact value at the computed
    argument, with t the norm of that argument or, `of_terms`, of the sums it was added up from. All norms are l2.
    """
    argument = value.terms if of_terms else value.magnitude + value.error
    computed = (factor * argument + affine(offset + absolute)) * _UP
    relative, flushed = gamma(roundings), affine(SMALLEST_NORMAL * roundings * size**0.5)
    return Evaluated(
        (factor * value.magnitude + affine(offset)) * _UP,
        (factor * value.error + relative * computed + (1 + relative) * flushed) * _UP,
        computed,
    )


def largest_norm(terms: Sequence[Array]) -> float:
    """Return the input norm up to which no sum passes `LARGEST`; negative where none is safe.

    Rounding here, and what computed sums and norms exceed exact ones by, is far less than the factor of two that is
    left between averages' `2^14 * LARGEST` and the largest float32.
    """
    limit = LARGEST
    for constant, slope in terms:
        limit = min(limit, (LARGEST - constant) / max(slope, SMALLEST_NORMAL)) if constant < LARGEST else -1.0
    return limit if np.isfinite(limit) else -1.0
