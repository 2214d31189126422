"""The evaluation at inference is the network's, whatever is rearranged on the way."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from defended import GloroNet
from defended.layers import MinMax

SHAPE = (9, 8, 3)


def sequential(*parts):
    return keras.Sequential([keras.Input(SHAPE), *parts, layers.Flatten(), layers.Dense(4)])


def used_twice():
    """MinMax feeds a convolution and a sum besides."""
    inputs = keras.Input(SHAPE)
    sorted_pairs = MinMax()(layers.Conv2D(6, 3, padding="same")(inputs))
    both = layers.Add()([sorted_pairs, layers.Conv2D(6, 3, padding="same")(sorted_pairs)])
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(both)))


def shared():
    """One convolution in two places: behind the pairs of one MinMax and before those of the next."""
    inputs = keras.Input(SHAPE)
    convolution = layers.Conv2D(6, 3, padding="same")
    value = MinMax()(layers.Conv2D(6, 3, padding="same")(inputs))
    value = MinMax()(convolution(value))
    value = convolution(value)
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(value)))


REARRANGED = {
    "a chain": lambda: sequential(
        layers.Conv2D(6, 3, strides=2, padding="same"), MinMax(), layers.Conv2D(8, 2, use_bias=False), MinMax(),
        layers.Conv2D(2, 2, activation="relu"),
    ),
    "shared": shared,
}  # fmt: skip
AS_IT_IS = {
    "used twice": used_twice,
    "groups": lambda: sequential(
        layers.Conv2D(6, 3), MinMax(), layers.Conv2D(6, 2, groups=3), MinMax(), layers.Conv2D(4, 2)
    ),
    "an activation before": lambda: sequential(layers.Conv2D(6, 3, activation="relu"), MinMax(), layers.Conv2D(4, 2)),
    "Dense behind": lambda: sequential(layers.Conv2D(6, 3), MinMax()),
}  # fmt: skip


def defended(network):
    rng = np.random.default_rng(0)
    network.set_weights([0.5 * rng.standard_normal(w.shape) for w in network.get_weights()])
    model = GloroNet(network, epsilon=0.1)
    model.finalize()
    return model, rng.standard_normal((5, *SHAPE)).astype("float32")


@pytest.mark.parametrize("name", [*REARRANGED, *AS_IT_IS])
def test_logits_are_those_of_the_network(name):
    model, x = defended({**REARRANGED, **AS_IT_IS}[name]())
    assert bool(model._graph.evaluate._in_halves) == (name in REARRANGED)
    expected = model.network(x).numpy()
    scale = np.abs(expected).max()
    assert scale > 0.1
    for function in (model, tf.function(model), tf.function(model, jit_compile=True)):
        np.testing.assert_allclose(function(x)[:, :-1], expected, atol=2e-6 * scale)
    np.testing.assert_allclose(model.certified_radius(x.astype("float64")), model.certified_radius(x), rtol=1e-5)


def test_it_follows_weights_and_gradients_of_the_network():
    model, x = defended(REARRANGED["a chain"]())
    model.network.layers[0].kernel.assign(-model.network.layers[0].kernel)
    logits = []
    for function in (model.network, model._graph.evaluate):
        x_now = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x_now)
            value = function(x_now)
        logits.append((value.numpy(), tape.gradient(value, x_now).numpy()))
    for network, own in zip(*logits, strict=True):
        np.testing.assert_allclose(own, network, atol=1e-5 * np.abs(network).max())
    assert np.abs(logits[0][1]).max() > 0.01


@pytest.mark.parametrize("compiled", [False, True])
def test_training_takes_the_same_steps(compiled):
    """Weights move as those of the network itself would, statistics of normalisation among them."""
    network = sequential(
        layers.Conv2D(6, 3, padding="same"), MinMax(), layers.Conv2D(4, 2), layers.BatchNormalization(), MinMax(),
    )  # fmt: skip
    model = GloroNet(network, epsilon=0.1)
    assert model._graph.evaluate.trains_faster
    x = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype("float32")
    weights = network.get_weights()
    outcomes = []
    for function in (network, lambda x, training: model(x, training=training)[:, :-1]):
        network.set_weights(weights)

        @tf.function(jit_compile=compiled)
        def gradients(x, function=function):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = tf.reduce_sum(tf.square(function(x, training=True)))
            return tape.gradient(value, [x, *network.trainable_variables])

        outcomes.append([gradient.numpy() for gradient in gradients(tf.constant(x))])
        outcomes[-1] += [variable.numpy() for variable in network.non_trainable_variables]
    # The bias before the normalisation has no effect: its gradient is what is left of sums as large as the others.
    largest = max(np.abs(plain).max() for plain in outcomes[0])
    for plain, own in zip(*outcomes, strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-6 * largest)
    assert np.abs(outcomes[0][1]).max() > 0.1


def test_not_a_number_is_not_lost_between_halves():
    model, x = defended(REARRANGED["a chain"]())
    x[2, 4, 4, 1] = np.nan
    assert model.verdicts(x).label[2] == -1
    assert np.isnan(model._graph.evaluate(tf.constant(x)).numpy()[2]).all()
