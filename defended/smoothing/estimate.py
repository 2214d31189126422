"""An estimate of the certified radius that has a gradient, from soft votes under fixed noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from defended.margins import leader
from defended.numerics.float32 import FLOAT_MAX
from defended.smoothing.sampler import tensorflow_probability

# Nothing that is certified depends on it.
_SEED = 20190211


def standard_noise(draws: int, shape: tuple[int, ...]) -> Any:
    """Return standard normal numbers `[draws, *shape]` float32, always the same ones: estimates share them."""
    with tf.init_scope():
        normal = tensorflow_probability().distributions.Normal(0.0, 1.0)
        return normal.sample((draws, *shape), seed=tf.constant([_SEED, 0]))


def estimate_competitor_radii(logits: Any, sigma: float) -> Any:
    """Estimate competitor radii `[batch, m]` from logits `[batch, draws, m]` under noise; they are not bounds.

    With q the mean softmax, j the class of its largest and b that of its second largest entry:
    `sigma * Phi^-1(q_j) + sigma / 2 * (Phi^-1(q_b) - Phi^-1(q_i))`. The smallest entry, that of b, is the radius that
    CERTIFY would give to q_j. The largest float32 stands where i = j.
    """
    # In logarithms: near 1, a float32 probability has no digits left, while its complement has.
    shares = tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=1) - np.log(logits.shape[1])
    first = leader(shares)
    others = tf.reduce_logsumexp(tf.where(first.rivals, shares, -np.inf), axis=-1, keepdims=True)
    own, scaled = -_normal_quantile(others), _normal_quantile(shares)
    second = tf.reduce_max(tf.where(first.rivals, scaled, -FLOAT_MAX), axis=-1, keepdims=True)
    return tf.where(first.rivals, sigma * (own + (second - scaled) / 2), FLOAT_MAX)


def _normal_quantile(log_probability: Any) -> Any:
    """Return `Phi^-1(exp(log_probability))`, finite; differentiable where the probability is above 1e-30."""
    return tf.math.ndtri(tf.exp(tf.clip_by_value(log_probability, -69.0, -1e-7)))
