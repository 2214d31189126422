"""Balls and boxes by norm: projections, steepest directions, random points, and distances that hold exactly.

Points are rows: arrays are `[batch, ...]`, norms and projections are taken per row, over all other axes together.
The TensorFlow functions compute in float32 and belong inside compiled loops; `place_inside` repairs their rounding in
float64, so that what an attack returns is inside the ball without any slack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.numerics.float32 import SMALLEST_NORMAL

Array = np.ndarray[Any, np.dtype[Any]]

# Projections aim at this share of the radius, which outweighs the rounding of a float32 norm.
_SHRINK = 1.0 - 2.0**-20

# The iteration of `project_l2_box` ends exactly after as many rounds as groups of coordinates meet the box one after
# the other; stopped earlier it is still inside ball and box.
_NEWTON_ROUNDS = 5


def l2_norm(values: Any) -> Any:
    """Return each row's Euclidean norm, `[batch, 1, ..., 1]`; nothing over- or underflows before the norm does."""
    largest = tf.reduce_max(tf.abs(values), axis=features(values), keepdims=True)
    unit = tf.where(largest >= SMALLEST_NORMAL, largest, tf.ones_like(largest))
    return unit * tf.sqrt(tf.reduce_sum(tf.square(values / unit), axis=features(values), keepdims=True))


def project_l2(delta: Any, radius: Any) -> Any:
    r"""Project onto the Euclidean ball, `argmin_z ‖z - delta‖₂  subject to  ‖z‖₂ <= radius`.

    The norm of the result, computed exactly, is at most `radius * (1 + 1e-6)`; points inside stay where they are.

    Args:
        delta: `[batch, ...]` float32, finite.
        radius: positive number, in the units of `delta`.
    """
    norm = l2_norm(delta)
    return delta * tf.minimum(1.0, _SHRINK * radius / tf.where(norm > 0, norm, tf.ones_like(norm)))


def project_linf(delta: Any, radius: Any) -> Any:
    r"""Project onto the maximum-norm ball, `argmin_z ‖z - delta‖₂  subject to  ‖z‖∞ <= radius`: clipping.

    Args:
        delta: `[batch, ...]` float32.
        radius: positive number, in the units of `delta`.
    """
    return tf.clip_by_value(delta, -radius, radius)


def project_l2_box(delta: Any, radius: Any, low: Any, high: Any) -> Any:
    r"""Project onto ball and box, `argmin_z ‖z - delta‖₂  subject to  ‖z‖₂ <= radius, low <= z <= high`.

    The optimality conditions give `z = clip(s * delta, low, high)` with one number s in [0, 1]. As the box holds 0,
    with t = s² the squared norm `g(t) = Σ min(t * delta_i², bound_i²)` is concave and increasing. Newton's iteration
    from the left, for `g(t) = radius²`, therefore climbs to the solution without ever passing it.

    Args:
        delta: `[batch, ...]` float32, finite.
        radius: positive number.
        low: `[batch, ...]`, not positive.
        high: `[batch, ...]`, not negative.
    """
    norm = l2_norm(delta)
    goal = _SHRINK * radius
    # In units of the radius and of |delta|, all numbers are of order one.
    direction = delta / tf.where(norm > 0, norm, tf.ones_like(norm))
    energy = tf.square(direction)
    bound = tf.square(tf.where(direction > 0, high, low) / goal)
    ceiling = tf.square(norm / goal)
    t = tf.minimum(ceiling, 1.0)
    for _ in range(_NEWTON_ROUNDS):
        at_bound = t * energy >= bound
        fixed = _total(tf.where(at_bound, bound, tf.zeros_like(bound)))
        free = _total(tf.where(at_bound, tf.zeros_like(energy), energy))
        root = (1.0 - fixed) / tf.where(free > 0, free, tf.ones_like(free))
        t = tf.where(free > 0, tf.minimum(ceiling, tf.maximum(t, root)), t)
    return tf.clip_by_value(goal * tf.sqrt(t) * direction, low, high)


def project_linf_box(delta: Any, radius: Any, low: Any, high: Any) -> Any:
    r"""Project onto ball and box, `argmin_z ‖z - delta‖₂  subject to  ‖z‖∞ <= radius, low <= z <= high`.

    Args: as for `project_l2_box`.
    """
    return tf.clip_by_value(delta, tf.maximum(low, -radius), tf.minimum(high, radius))


def steepest_l2(gradient: Any, floor: float = 0.0) -> Any:
    """Return `argmax_z <gradient, z>  subject to  ‖z‖₂ <= 1`, `[batch, ...]`; 0 where the gradient is 0.

    Gradients of norm below `floor` are divided by the floor, so that they give shorter steps.
    """
    norm = tf.maximum(l2_norm(gradient), floor)
    return gradient / tf.where(norm > 0, norm, tf.ones_like(norm))


def steepest_linf(gradient: Any, floor: float = 0.0) -> Any:
    """Return `argmax_z <gradient, z>  subject to  ‖z‖∞ <= 1`, whatever the floor; 0 where the gradient is 0."""
    return tf.sign(gradient)


def random_in_l2_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return a point of the given shape, uniform in the unit Euclidean ball."""
    return random_on_l2_sphere(rng, shape) * rng.uniform() ** (1 / max(int(np.prod(shape)), 1))


def random_on_l2_sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return a point of the given shape, uniform on the unit Euclidean sphere."""
    point = rng.standard_normal(shape)
    return point / np.linalg.norm(point)


def random_in_linf_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return a point of the given shape, uniform in the cube [-1, 1]^d."""
    return rng.uniform(-1, 1, shape)


def random_on_linf_sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return a point of the given shape, uniform on the surface of the cube [-1, 1]^d."""
    # All faces of the cube are equally far from its centre, so the radial projection keeps the distribution uniform.
    point = random_in_linf_ball(rng, shape)
    return point / np.abs(point).max()


class Ball(NamedTuple):
    """What an attack needs to know about a norm."""

    project: Callable[..., Any]
    project_into_box: Callable[..., Any]
    steepest: Callable[..., Any]
    random_inside: Callable[[np.random.Generator, tuple[int, ...]], Array]
    random_on_sphere: Callable[[np.random.Generator, tuple[int, ...]], Array]


BALLS = {
    "l2": Ball(project_l2, project_l2_box, steepest_l2, random_in_l2_ball, random_on_l2_sphere),
    "linf": Ball(project_linf, project_linf_box, steepest_linf, random_in_linf_ball, random_on_linf_sphere),
}


def into_box(points: Array, clip: tuple[float, float] | None) -> Array:
    """Return points as float32, each number moved into the box if there is one; the box is taken in float32, too."""
    if clip is not None:
        points = np.clip(points, np.float32(clip[0]), np.float32(clip[1]))
    return points.astype(np.float32)


def column(values: Any, like: Any) -> Any:
    """Return `values` `[batch]`, an array or a tensor, as `[batch, 1, ..., 1]` with as many axes as `like` has."""
    return (tf.reshape if tf.is_tensor(values) else np.reshape)(values, [-1, *[1] * (len(like.shape) - 1)])


def distances(x: Array, attacked: Array, norm: str) -> Array:
    """Return the norm of `attacked - x` for each row, `[n]` float64, computed in float64."""
    delta = np.abs(np.asarray(attacked, np.float64) - np.asarray(x, np.float64)).reshape(len(x), math.prod(x.shape[1:]))
    return np.linalg.norm(delta, axis=1) if norm == "l2" else delta.max(axis=1, initial=0.0)


def place_inside(x: Array, attacked: Array, radius: float, norm: str, clip: tuple[float, float] | None = None) -> Array:
    """Return the attacked points as float32, moved towards `x` until float64 finds them inside the ball and the box.

    Rounding `x + delta` to float32 can put a point on the sphere outside it. Afterwards
    `distances(x, result, norm) <= radius` holds for the float32 numbers that the model will see, without slack.

    Args:
        x: `[n, ...]` float32, inside the box.
        attacked: `[n, ...]`, finite.
        radius: the ball's radius, in input units.
        norm: `"l2"` or `"linf"`.
        clip: the box `(low, high)`, or None. It is taken in float32, as the points are.
    """
    x64 = np.asarray(x, np.float64)
    placed = np.asarray(attacked, np.float64)
    if clip is not None:
        placed = np.clip(placed, np.float32(clip[0]), np.float32(clip[1]))
    if norm == "linf":
        rounded = np.clip(placed, x64 - radius, x64 + radius).astype(np.float32)
        # Differences of float32 numbers are judged, as in `distances`: the ball's edges are rounded in float64, too.
        outside = np.abs(rounded - x64) > radius
        return np.where(outside, np.nextafter(rounded, np.asarray(x, np.float32)), rounded)
    rounded = placed.astype(np.float32)
    # The last round has factor 0, which is x itself: a radius below the resolution of float32 ends there.
    for margin in 2.0 ** np.arange(-22, 1):
        size = distances(x64, rounded, norm)
        outside = size > radius
        if not outside.any():
            break
        factor = column((1 - margin) * radius / size[outside], x64)
        delta = rounded[outside] - x64[outside]
        rounded[outside] = (x64[outside] + factor * delta).astype(np.float32)
    return rounded


def features(values: Any) -> list[int]:
    """Return the axes of a row: all but the first."""
    return list(range(1, len(values.shape)))


def _total(values: Any) -> Any:
    return tf.reduce_sum(values, axis=features(values), keepdims=True)
