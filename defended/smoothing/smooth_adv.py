"""Adversarial examples of the smoothed classifier, for training the base classifier on them. TensorFlow only."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from defended.arguments import positive_number, whole_number
from defended.numerics.float32 import SMALLEST_NORMAL


@keras.saving.register_keras_serializable(package="defended")
class SmoothAdv:
    """Projected gradient ascent on the soft smoothed classifier's cross-entropy (Salman et al. 2019, section 3).

    Looks within `‖δ‖₂ <= epsilon` for a large `-log (1/m) Σ_i p_y(x + δ + n_i)`, p the softmax and n_1 ... n_m the
    *same* noise at every step; training then goes on under that noise too. Not the mean of the losses under noise: that
    attacks the noisy base classifier, not the smoothed one.

    Args:
        epsilon: radius of the ball, in input units; positive.
        steps: gradient steps.
        step_size: length of a step, in input units; None for `2 * epsilon / steps`.
        warmup: the radius and the steps grow linearly over this many epochs, `epoch / warmup` of their length in the
            first ones.
        clip: box `(low, high)` for attacked inputs before noise, or None.

    Reference: Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", 2019.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        steps: int = 4,
        step_size: float | None = None,
        warmup: int = 10,
        clip: tuple[float, float] | None = None,
    ):
        self.epsilon = positive_number("epsilon", epsilon, "in input units")
        self.steps = whole_number("steps", steps, 1, floats=True)
        self.step_size = None if step_size is None else positive_number("step_size", step_size, "in input units")
        self.warmup = whole_number("warmup", warmup, 0, floats=True)
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ValueError(f"`clip` must be None or a pair (low, high) with low < high. Received: {clip!r}")
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))

    def scale(self, epoch: int) -> float:
        """Return the share of the radius with which epoch number `epoch`, counted from 0, is attacked."""
        return min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0

    def perturb(self, network: keras.Model, x: Any, targets: Any, noise: Any, scale: Any = 1.0) -> Any:
        """Return attacked inputs `[batch, ...]` float32 within `scale * epsilon` of `x`; gradients stop at them.

        Args:
            network: logits out; evaluated with `training=False`.
            x: `[batch, ...]`.
            targets: `[batch, classes]`, rows of probabilities.
            noise: `[batch * m, ...]`, the m draws for each input one after the other.
            scale: number or scalar tensor in [0, 1].
        """
        import tensorflow as tf

        draws = noise.shape[0] // x.shape[0] if x.shape[0] and noise.shape[0] else None
        draws = draws or tf.shape(noise)[0] // tf.shape(x)[0]
        radius = scale * self.epsilon
        step = scale * (2 * self.epsilon / self.steps if self.step_size is None else self.step_size)
        delta = tf.zeros_like(x)
        for _ in range(self.steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(delta)
                logits = network(tf.repeat(x + delta, draws, axis=0) + noise, training=False)
                # The sum, so that an input's gradient does not depend on the others.
                loss = tf.reduce_sum(smoothed_crossentropy(targets, logits))
            gradient = tape.gradient(loss, delta)
            delta = _into_ball(delta + step * _direction(gradient), radius)
            if self.clip is not None:
                # Towards x in every coordinate where x lies in the box: the ball is not left.
                delta = tf.clip_by_value(x + delta, *self.clip) - x
        return tf.stop_gradient(x + delta)

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("epsilon", "steps", "step_size", "warmup", "clip")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SmoothAdv:
        return cls(**config)


def smoothed_crossentropy(targets: Any, logits: Any) -> Any:
    """Return `-Σ_k t_k log (1/m) Σ_i p_k`, `[batch]`, of targets `[batch, classes]` and logits `[batch * m, classes]`.

    The m rows of an input follow each other.
    """
    log_p = ops.log_softmax(logits, axis=-1)
    log_p = ops.reshape(log_p, (ops.shape(targets)[0], -1, logits.shape[-1]))
    draws = ops.cast(ops.shape(log_p)[1], log_p.dtype)
    log_mean = ops.logsumexp(log_p, axis=1) - ops.log(draws)
    return -ops.sum(targets * log_mean, axis=-1)


def _norm(values: Any) -> Any:
    """Return the Euclidean norm of each row, `[batch, 1, ..., 1]`."""
    axes = tuple(range(1, len(values.shape)))
    return ops.sqrt(ops.sum(ops.square(values), axis=axes, keepdims=True))


def _direction(gradient: Any) -> Any:
    """Return `gradient` at norm 1 in each row; 0 where it is 0. A sure network's is so small that squares underflow."""
    largest = ops.max(ops.abs(gradient), axis=tuple(range(1, len(gradient.shape))), keepdims=True)
    scaled = gradient / ops.maximum(largest, SMALLEST_NORMAL)
    return scaled / ops.maximum(_norm(scaled), SMALLEST_NORMAL)


def _into_ball(delta: Any, radius: Any) -> Any:
    return delta * ops.minimum(1.0, radius / ops.maximum(_norm(delta), SMALLEST_NORMAL))
