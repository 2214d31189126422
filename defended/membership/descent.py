"""The search for a valid input of another class inside the ball, by descent under a bound on a score."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from defended.defended_model import DefendedModel
from defended.membership.oracle import Nearest
from defended.numerics.float32 import gamma

_FAR = float("inf")
_CHUNK = 8


def descend(
    model: DefendedModel, oracle: Any, threshold: Any, inputs: Any, predicted: Any, radius: Any, budget: int
) -> Nearest:
    """Look for z in the ball around each input with `score(z) <= threshold` and a label other than `predicted`.

    `minimise y_j(z) - max over i != j of y_i(z)  subject to  score(z) <= threshold, ‖z - x‖ <= radius` by the switching
    subgradient method (Polyak 1967): a step of steepest descent on the score where z is not valid, on the margin where
    it is, then the projection onto the ball. Steps shrink from `radius` to 0. Every iterate is judged, x itself first.

    A search that finds nothing proves nothing; what it finds is in the ball, valid by the score and labelled otherwise.

    Args:
        model: labels inputs by its logits; `model.norm` is `"l2"` or `"linf"`.
        oracle: a `ScoreOracle`.
        threshold: scalar.
        inputs: `[batch, *input shape]` float32.
        predicted: `[batch]` int32.
        radius: scalar.
        budget: steps.

    Returns:
        `own`: 0 where the input itself is valid, else infinite; `other`: the distance to the nearest z that was found,
        rounded up, infinite where none was found. Neither has gradients.
    """
    x = tf.stop_gradient(tf.convert_to_tensor(inputs, tf.float32))
    usable = tf.reduce_all(tf.math.is_finite(x), axis=_features(x))
    x = tf.where(tf.reshape(usable, [-1, *[1] * (len(x.shape) - 1)]), x, tf.zeros_like(x))
    own, other = _by_chunks(x, predicted, _search(model, oracle, threshold, radius, budget))
    far = tf.fill(tf.shape(own), tf.constant(_FAR))
    return Nearest(tf.where(usable, own, far), tf.where(usable, other, far))


def _by_chunks(x: Any, predicted: Any, search: Any) -> tuple[Any, Any]:
    """Apply `search(x, predicted)` in chunks of one static size.

    With an unknown batch, TensorFlow's derivatives compute shapes at run time, by operations that ONNX does not have.
    """
    count = tf.shape(x)[0]
    chunks = (count + _CHUNK - 1) // _CHUNK
    missing = chunks * _CHUNK - count
    x = tf.pad(x, [[0, missing], *[[0, 0]] * (len(x.shape) - 1)])
    predicted = tf.pad(predicted, [[0, missing]])
    result = tf.zeros([chunks, 2 * _CHUNK])
    shape = [_CHUNK, *x.shape[1:]]

    def body(number: Any, result: Any) -> tuple[Any, Any]:
        first = number * _CHUNK
        part = tf.reshape(tf.slice(x, [first, *[0] * (len(shape) - 1)], shape), shape)
        found = tf.concat(search(part, tf.reshape(tf.slice(predicted, [first], [_CHUNK]), [_CHUNK])), axis=0)
        return number + 1, tf.tensor_scatter_nd_update(result, [[number]], found[None])

    _, result = tf.while_loop(
        lambda number, _: number < chunks, body, (tf.constant(0), result), parallel_iterations=1,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, 2 * _CHUNK])),
    )  # fmt: skip
    own, other = (tf.reshape(result[:, i * _CHUNK : (i + 1) * _CHUNK], [-1])[:count] for i in (0, 1))
    return own, other


def _search(model: Any, oracle: Any, threshold: Any, radius: Any, budget: int) -> Any:
    """Return the search for one chunk, a function `(x, predicted) -> (own, other)`."""

    def judge(z: Any, own_class: Any) -> tuple[Any, Any, Any]:
        """Return whether z is valid, whether it is labelled otherwise, and the gradient to follow."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            logits, features = oracle.logits_and_features(z)
        rivals = tf.where(own_class, tf.fill(tf.shape(logits), -3e38), logits)
        rival = tf.reduce_max(rivals, axis=-1, keepdims=True)
        own = tf.reduce_sum(tf.where(own_class, logits, tf.zeros_like(logits)), axis=-1, keepdims=True)
        score, towards = oracle.score_gradient(features)
        valid = (score <= threshold)[:, None]
        # One backward pass serves both: for a row, either the margin or the score is followed.
        margin = tf.cast(own_class, tf.float32) - tf.cast(rivals >= rival, tf.float32)
        seeds = [tf.where(valid, margin, tf.zeros_like(margin)), tf.where(valid, tf.zeros_like(towards), towards)]
        gradient = tape.gradient([logits, features], z, output_gradients=seeds)
        return valid[:, 0], (own < rival)[:, 0], gradient

    def search(x: Any, predicted: Any) -> tuple[Any, Any]:
        own_class = tf.equal(tf.range(model.num_classes, dtype=tf.int32)[None], predicted[:, None])
        far = tf.fill([_CHUNK], tf.constant(_FAR))

        def body(step: Any, z: Any, own: Any, other: Any) -> tuple[Any, ...]:
            valid, labelled_otherwise, gradient = judge(z, own_class)
            # The first point judged is x itself.
            own = tf.where(valid & (step == 0), tf.zeros_like(own), own)
            other = tf.where(valid & labelled_otherwise, tf.minimum(other, _distance(z - x, model.norm)), other)
            size = radius * (1 - tf.cast(step, tf.float32) / budget)
            gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
            moved = z - size * _steepest(gradient, model.norm) - x
            return step + 1, x + _projected(moved, radius, model.norm), own, other

        # Unrolled: tf2onnx loses the shapes of kernels in a loop within a loop.
        state = (tf.constant(0), x, far, far)
        for _ in range(budget + 1):
            state = body(*state)
        return state[2:]

    return search


def _features(values: Any) -> list[int]:
    return list(range(1, len(values.shape)))


def _length(values: Any) -> Any:
    largest = tf.reduce_max(tf.abs(values), axis=_features(values), keepdims=True)
    unit = tf.where(largest > 1e-30, largest, tf.ones_like(largest))
    return unit * tf.sqrt(tf.reduce_sum(tf.square(values / unit), axis=_features(values), keepdims=True))


def _distance(delta: Any, norm: str) -> Any:
    """Return the distance `[batch]`, rounded up: above the exact one by at most 2^-11 for fewer than 4000 numbers."""
    if norm == "linf":
        return tf.reduce_max(tf.abs(delta), axis=_features(delta)) * (1 + 2.0**-22)
    return tf.reshape(_length(delta), [-1]) * _up(delta)


def _up(delta: Any) -> float:
    """Return what outweighs the roundings of `_length`: a sum of n quotients' squares, halved by the root, and four."""
    return 1 + gamma(math.prod(delta.shape[1:]) // 2 + 8)


def _steepest(gradient: Any, norm: str) -> Any:
    if norm == "linf":
        return tf.sign(gradient)
    size = _length(gradient)
    return gradient / tf.where(size > 0, size, tf.ones_like(size))


def _projected(delta: Any, radius: Any, norm: str) -> Any:
    # So far inside that the distance, rounded up, is not above the radius.
    goal = radius * (1 - 2.0**-18)
    if norm == "linf":
        return tf.clip_by_value(delta, -goal, goal)
    goal = goal / _up(delta) ** 2  # the length is known up to that, and given with it
    size = _length(delta)
    return delta * tf.minimum(1.0, goal / tf.where(size > 0, size, tf.ones_like(size)))
