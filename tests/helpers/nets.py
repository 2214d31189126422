"""Small networks of every kind of layer, with random weights of any scale, for the tests that search."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from defended import GloroNet
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax

SCALES = (1e-30, 1e-10, 1.0, 1e10, 1e30)


def overclaiming(model):
    """The model, with constants a tenth of what was proven: it claims ten times the radius that it has."""
    honest = model._certificate.prove

    def prove(claims):
        honest(claims)
        constants = model._proof.named.margin_lipschitz
        constants.assign(constants / 10)

    model._certificate.prove = prove
    model.finalize()
    return model


def sequential(shape, *body):
    return keras.Sequential([keras.Input(shape), *body])


def branches():
    x = keras.Input((4, 4, 2))
    a = layers.Conv2D(4, 3, padding="same")(x)
    b = layers.Conv2D(4, 1, activation="leaky_relu")(x)
    difference = layers.Subtract()([layers.Add()([a, b]), a])
    joined = layers.Concatenate()([layers.Average()([difference, a, b]), x])
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(joined)))


def nested():
    inner = sequential((6,), layers.Dense(6), MinMax())
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(3)(inner(inner(x))))


NETWORKS = {
    "linear": lambda: sequential((32,), layers.Dense(4)),
    "dense": lambda: sequential(
        (5,), layers.Dense(8), MinMax(), layers.Dense(8, activation="relu", use_bias=False), layers.Dense(3)
    ),
    "blocks": lambda: sequential((300,), layers.Dense(6), layers.LeakyReLU(3.0), layers.Dense(3)),
    "blocks in the head": lambda: sequential((600,), layers.Dense(3)),
    "blocks of channels": lambda: sequential(
        (3, 3, 29), layers.Conv2D(16, 3, padding="same"), MinMax(), layers.Conv2D(6, 3, activation="relu"),
        layers.Flatten(), layers.Dense(3),
    ),
    "conv": lambda: sequential(
        (5, 5, 2), layers.ZeroPadding2D(1), layers.Conv2D(4, 3, strides=2, padding="same"), MinMax(),
        layers.Conv2D(4, 2, groups=2), layers.ReLU(), layers.Flatten(), layers.Dense(3),
    ),
    "dilation": lambda: sequential(
        (6, 5, 2), layers.Conv2D(4, 2, dilation_rate=2), layers.Cropping2D(((0, 1), (1, 0))),
        layers.Conv2D(2, 2, dilation_rate=2, padding="same"), layers.Flatten(),
        layers.Dense(4, activation="hard_sigmoid"), layers.Dense(3, activation="hard_tanh"),
    ),
    "pooling": lambda: sequential(
        (5, 5, 2), layers.AveragePooling2D(3, 2, "same"), layers.MaxPooling2D(2, 1, "same"), layers.Flatten(),
        layers.Dense(3),
    ),
    "no dense head": lambda: sequential((4, 4, 2), layers.Conv2D(3, 3), layers.GlobalAveragePooling2D()),
    "liresnet": lambda: sequential(
        (4, 4, 2), InvertibleDownsampling(2), LiResNetBlock(3, 0.3), MinMax(), LiResNetBlock(1, use_affine=False),
        layers.Flatten(), layers.Dense(3),
    ),
    "normalisation folded": lambda: sequential(
        (4, 4, 2), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(6),
        layers.BatchNormalization(center=False), MinMax(), layers.Dense(3),
    ),
    "normalisation": lambda: sequential(
        (6,), layers.Dense(6), MinMax(), layers.BatchNormalization(), layers.ReLU(max_value=2.0), layers.Dense(3)
    ),
    "places": lambda: sequential(
        (6,), layers.Reshape((3, 2)), layers.Dense(4, activation="soft_shrink"), layers.Permute((2, 1)),
        layers.Flatten(), layers.Activation("relu6"), layers.Dense(3),
    ),
    "branches": branches,
    "nested": nested,
}  # fmt: skip


def randomised(network, rng, scale=1.0):
    """Normal weights times `scale`; `"mixed"` draws a scale for each variable. Variances are positive."""
    for variable in network.variables:
        if "seed" in variable.path:
            continue
        factor = rng.choice(SCALES) if scale == "mixed" else scale
        value = rng.standard_normal(variable.shape) * factor
        variable.assign((np.abs(value) if "moving_variance" in variable.path else value).astype("float32"))
    return network


def set_weights(layer, *values):
    layer.set_weights([np.asarray(value, "float32") for value in values])


def any_inputs(rng, shape):
    """Inputs of all magnitudes: usual, large, tiny, subnormal, zero, mixed, and with a large common offset."""
    normal = rng.standard_normal
    parts = [normal((2, *shape)) * scale for scale in (1.0, 1e4, 1e15, 1e30, 1e-20, 1e-39)]
    mixed = normal((2, *shape)) * 10.0 ** rng.integers(-35, 10, (2, *shape))
    return np.concatenate([*parts, mixed, np.zeros((1, *shape)), 1e4 + normal((1, *shape))]).astype("float32")


def finalized(network, epsilon=1e-6, **options):
    model = GloroNet(network, epsilon=epsilon, **options)
    model.finalize()
    return model


@functools.cache
def _made(name, **options):
    return GloroNet(NETWORKS[name](), epsilon=1e-6, **options)


def shared(name, **options):
    """The one model of a network, whose graphs all tests use: whoever takes it gives it weights and finalizes it."""
    model = _made(name, **options)
    model.epsilon = 1e-6
    return model


def reweighted(name, rng, scale=1.0, **options):
    """The shared model of a network, final for random weights; they last until another test asks."""
    model = shared(name, **options)
    randomised(model.network, rng, scale)
    model.finalize()
    return model


def affine(weights, bias=None, epsilon=0.25):
    """A final GloRo Net of one Dense layer: where there are two classes, its radius is the distance to the boundary."""
    inputs, classes = np.shape(weights)
    network = sequential((inputs,), layers.Dense(classes))
    set_weights(network.layers[-1], weights, np.zeros(classes) if bias is None else bias)
    return finalized(network, epsilon)


def classes(model, x):
    """The classes of the largest logits, by a graph that the model keeps."""
    graph = model._compiled("classes", lambda x: tf.argmax(model._logits(x, training=False), axis=1), of_inputs=True)
    return graph(tf.constant(x)).numpy()


def near_the_boundary(model, n, rng, offset=0.0):
    """Inputs at distances from the decision boundary that range over six orders of magnitude, and a few others."""
    shape = model.input_shape[1:]
    column = (-1, *[1] * len(shape))
    one, other = (offset + rng.standard_normal((2, n, *shape))).astype("float32")
    low, high = np.zeros(n), np.ones(n)
    answer = classes(model, one)
    for _ in range(30):
        middle = (low + high) / 2
        point = one + middle.reshape(column) * (other - one)
        same = classes(model, point.astype("float32")) == answer
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    back = 10.0 ** rng.uniform(-6, 0, n) * rng.choice([1, -1], n)
    return (one + (low * (1 - back)).reshape(column) * (other - one)).astype("float32")
