"""The nearest stored points of the predicted class and of the others, in the graph and exact up to stated rounding.

**Euclidean.** `‖a‖² + ‖b‖² - 2<a, b>` over blocks of points, in float64. Products of float32 numbers are exact there,
so only sums round, and the error is at most `2 γ (‖a‖² + ‖b‖²)`, γ = nu / (1 - nu), u = 2^-53, in any order of
summation; twice that is subtracted. A point at distance d is therefore reported at d or less, and never below
`sqrt(d² - 8 γ (‖a‖² + ‖b‖²))`: for images in [0, 1] of 784 pixels that is `d - 1e-9 / d` at most.

**Maximum norm.** Differences in float32, block by block: one rounding each, and the maximum adds none.

Both ends are then widened by 2^-22 relative for the rounding to float32. So: every stored point within r is found at r
or less, and what is found at r is no farther than `r (1 + 2^-20)` plus the above.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from defended.numerics import float64
from defended.numerics.float32 import SMALLEST_NORMAL

_BLOCK = 8192  # points whose distances are held at a time
_NUMBERS = 2**14  # coordinates of points that are subtracted at a time, for each input
_WIDER, _NARROWER = 1.0 + 2.0**-22, 1.0 - 2.0**-22


def nearest_points(inputs: Any, points: Any, labels: Any, predicted: Any, norm: str) -> tuple[Any, Any, Any]:
    """Return the indices of the nearest points and the distances to them.

    Args:
        inputs: `[batch, n]` float32.
        points: `[count, n]` float32.
        labels: `[count]` int32.
        predicted: `[batch]` int32.
        norm: `"l2"` or `"linf"`.

    Returns:
        `(indices, own, other)`: `[batch, 2]` int64, the nearest point of the predicted class and of another one; and
        `[batch]` float32 each, an upper bound on the distance to the former and a lower bound on the distance to the
        latter, infinite where there is none. No gradients.
    """
    search = _nearest_l2 if norm == "l2" else _nearest_linf
    inputs = tf.stop_gradient(inputs)
    # Lower bounds, float64 or float32.
    indices, low_own, low_other = search(inputs, tf.stop_gradient(points), labels, predicted)
    exact = distance(inputs, tf.gather(points, indices[:, 0]), norm)
    own = tf.where(tf.math.is_inf(low_own), tf.fill(tf.shape(exact), tf.constant(float("inf"))), exact * _WIDER)
    return indices, tf.stop_gradient(own + SMALLEST_NORMAL), tf.cast(low_other * _NARROWER, tf.float32)


def blur_within(inputs: Any, reach: Any) -> Any:
    """Return `MembershipOracle.blur` of the Euclidean search, `[batch]`, for all points within `reach` of `[batch, n]`.

    At a point a, the square of a distance d to b is reported low by at most `8 γ (|a|^2 + |b|^2)`, and since
    |b| <= |a| + d, by `24 γ |a|^2 + 16 γ d^2`. Of n < 2^31 entries the second is less than 2^-18 of d^2. The length |a|
    is at most |x| and the reach; the root of `24 γ` is taken a hundredth larger, for |x| as float32 computes it.
    """
    inputs = tf.stop_gradient(inputs)
    length = tf.sqrt(tf.reduce_sum(tf.square(inputs), axis=1))
    return 1.01 * (24 * float64.gamma(inputs.shape[1] + 4)) ** 0.5 * (length + reach)


def distance(inputs: Any, points: Any, norm: str) -> Any:
    """Return distances of rows, `[batch]` float32, by direct differences, within 2^-22 relative; differentiable."""
    if norm == "linf":
        return tf.reduce_max(tf.abs(inputs - points), axis=-1)
    # Exact in float64 but for the sum; its smallest positive value keeps the root's derivative finite.
    delta = tf.cast(inputs, tf.float64) - tf.cast(points, tf.float64)
    return tf.cast(tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(delta), axis=-1), 1e-76)), tf.float32)


def with_gradient(bound: Any, inputs: Any, points: Any, norm: str) -> Any:
    """Return `bound`, to the bit, with the gradient of the distance to `points`."""
    found = distance(inputs, points, norm)
    usable = tf.math.is_finite(bound) & tf.math.is_finite(found)
    return tf.where(usable, tf.stop_gradient(bound) + (found - tf.stop_gradient(found)), tf.stop_gradient(bound))


def _nearest_l2(inputs: Any, points: Any, labels: Any, predicted: Any) -> tuple[Any, Any, Any]:
    count, n = points.shape
    slack = 4 * float64.gamma(n + 4)
    wide = tf.cast(inputs, tf.float64)
    square = tf.reduce_sum(tf.square(wide), axis=1, keepdims=True)
    best = _nothing(inputs, tf.float64)
    for first in range(0, count, _BLOCK):
        block = tf.cast(points[first : first + _BLOCK], tf.float64)
        both = square + tf.reduce_sum(tf.square(block), axis=1)[None]
        lower = both * (1 - slack) - 2 * tf.matmul(wide, block, transpose_b=True)
        mine = tf.equal(labels[first : first + _BLOCK][None], predicted[:, None])
        best = _better(best, lower, mine, first)
    index_own, own, index_other, other = best
    return tf.stack([index_own, index_other], axis=1), *(tf.sqrt(tf.maximum(value, 0.0)) for value in (own, other))


def _nearest_linf(inputs: Any, points: Any, labels: Any, predicted: Any) -> tuple[Any, Any, Any]:
    count, n = points.shape
    size = min(count, max(1, _NUMBERS // n))
    rounds = -(-count // size)

    def body(number: Any, *best: Any) -> tuple[Any, ...]:
        # The last block reaches back into the one before it, so that all are of one size.
        first = tf.minimum(number * size, count - size)
        block = tf.slice(points, [first, 0], [size, n])
        lower = tf.reduce_max(tf.abs(inputs[:, None] - block[None]), axis=-1)
        mine = tf.equal(tf.slice(labels, [first], [size])[None], predicted[:, None])
        return number + 1, *_better(best, lower, mine, tf.cast(first, tf.int64))

    _, index_own, own, index_other, other = tf.while_loop(
        lambda number, *_: number < rounds, body, (tf.constant(0), *_nothing(inputs, tf.float32)),
        parallel_iterations=1,
    )  # fmt: skip
    return tf.stack([index_own, index_other], axis=1), own, other


def _nothing(inputs: Any, dtype: Any) -> tuple[Any, ...]:
    batch = tf.shape(inputs)[:1]
    index, far = tf.zeros(batch, tf.int64), tf.fill(batch, tf.constant(float("inf"), dtype))
    return index, far, index, far


def _better(best: tuple[Any, ...], lower: Any, mine: Any, first: Any) -> tuple[Any, ...]:
    """Return the nearest of those before and of one more block, for both kinds."""
    far = tf.constant(float("inf"), lower.dtype)
    kept = []
    for (index, value), chosen in zip((best[:2], best[2:]), (mine, tf.logical_not(mine)), strict=True):
        found = tf.where(chosen, lower, far)
        nearest, least = tf.argmin(found, axis=1), tf.reduce_min(found, axis=1)
        nearer = least < value
        kept += [tf.where(nearer, nearest + first, index), tf.where(nearer, least, value)]
    return tuple(kept)
