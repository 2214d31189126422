"""MinMax sorts pairs, and the kernels that train it do what the plain operations do."""

import numpy as np
import pytest
import tensorflow as tf

from defended.layers import MinMax


def values_and_gradient(x, training, compiled):
    layer, weights = MinMax(), tf.random.stateless_normal(x.shape, (1, 2))

    @tf.function(jit_compile=compiled, input_signature=[tf.TensorSpec((None, *x.shape[1:]))])
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            assert y.shape.as_list() == x.shape.as_list()
            total = tf.reduce_sum(weights * tf.sin(y))
        return y, tape.gradient(total, x)

    return [part.numpy() for part in both(x)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 4, 6)])
def test_pairs_are_sorted_and_gradients_follow(shape, compiled):
    x = tf.random.stateless_normal(shape, (0, 0))
    pairs = x.numpy().reshape(-1, 2)
    for training in (False, True):
        y, gradient = values_and_gradient(x, training, compiled)
        np.testing.assert_array_equal(y.reshape(-1, 2), np.sort(pairs, axis=1))
        upstream = (tf.random.stateless_normal(shape, (1, 2)) * tf.cos(y)).numpy().reshape(-1, 2)
        expected = np.where(pairs[:, :1] > pairs[:, 1:], upstream[:, ::-1], upstream)
        np.testing.assert_allclose(gradient.reshape(-1, 2), expected, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_nan_is_not_lost_and_spoils_no_other_pair(training):
    y = MinMax()(tf.constant([[np.nan, 1.0, 2.0, -3.0, 5.0, np.nan]]), training=training).numpy()
    assert np.isnan(y[0, :2]).any()
    assert np.isnan(y[0, 4:]).any()
    np.testing.assert_array_equal(y[0, 2:4], [-3.0, 2.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype):
    x = tf.cast(tf.constant([[2.0, 1.0], [1.0, 2.0]]), dtype)
    layer = MinMax(dtype=dtype)
    for training in (False, True):
        y = layer(x, training=training)
        assert y.dtype == dtype
        np.testing.assert_array_equal(tf.cast(y, "float32"), [[1.0, 2.0], [1.0, 2.0]])
