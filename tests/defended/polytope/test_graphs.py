"""Dual bounds of graphs in which layers meet in every way: they are made, and no point of the ball is below them."""

from contextlib import nullcontext

import keras
import numpy as np
import polytopes
import pytest
import tensorflow as tf
from keras import layers

from defended import PolytopeNet
from defended.polytope.affine_maps import PoolMap
from defended.polytope.dual_bounds import SLOPES
from defended.polytope.graph import PolytopeGraph
from defended.polytope.polytope_net import TRAINING_BOUNDS

RADIUS = {"linf": 0.1, "l2": 0.3}
INPUTS, SAMPLED, STEPS = 3, 60, 4


def functional(shape, body):
    x = keras.Input(shape)
    return keras.Model(x, body(x))


def dense(units):
    return layers.Dense(units, activation="relu")


def conv(*arguments, **options):
    return layers.Conv2D(*arguments, activation="relu", **options)


def on_maps(shape, *body):
    return polytopes.sequential(shape, *body, layers.Flatten(), layers.Dense(3))


def shared_value(x):
    value = layers.Dense(5)(x)
    return layers.Dense(3)(layers.Add()([layers.ReLU()(value), layers.ReLU()(value), layers.Dense(5)(value)]))


def sum_of_relus(x):
    return layers.Dense(3)(dense(4)(layers.Add()([dense(4)(x), layers.ReLU()(x), dense(4)(x)])))


def relu_of_a_sum(x):
    total = layers.Add()([layers.Dense(4)(x), x])
    return layers.Dense(3)(layers.ReLU()(layers.Add()([total, layers.Dense(4)(layers.ReLU()(total)), x])))


def many_summands(x):
    parts = [layers.Dense(3, activation="relu" if index % 2 else None)(x) for index in range(6)]
    return layers.Add()([*parts, parts[0], parts[1]])


def dense_used_twice(x):
    layer = dense(4)
    return layers.Dense(3)(layer(layer(x)))


def conv_used_twice(x):
    layer = conv(2, 3, padding="same")
    return layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(layer(layer(layers.Conv2D(2, 2, strides=2)(x)))))


def residual(x):
    value = layers.Conv2D(3, 1)(x)
    for _ in range(2):
        branch = layers.Conv2D(3, 2, padding="same")(layers.ReLU()(value))
        value = layers.ReLU()(layers.Add()([value, layers.ReLU()(branch)]))
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Activation("relu")(value)))


def nested(x):
    inner = polytopes.sequential((4,), layers.ReLU(), layers.Dense(4))
    outer = functional((4,), lambda y: layers.Add()([inner(y), layers.ReLU()(inner(layers.ReLU()(y)))]))
    return layers.Dense(3)(layers.ReLU()(outer(outer(x))))


GRAPHS = {
    "ReLU of a ReLU": lambda: polytopes.sequential((6,), dense(5), layers.ReLU(), layers.Dense(3)),
    "ReLU of a ReLU of another shape": lambda: on_maps(
        (12,), dense(12), layers.Reshape((2, 6, 1)), layers.ReLU(), layers.AveragePooling2D((1, 2)), layers.ReLU()
    ),
    "ReLU of the input": lambda: polytopes.sequential((6,), layers.ReLU(), layers.Dense(3)),
    "ReLU of the input, convolution": lambda: on_maps((9, 8, 2), layers.ReLU(), conv(2, 3, strides=2), conv(2, 2)),
    "ReLU of the input of another shape": lambda: polytopes.sequential(
        (2, 3), layers.Flatten(), layers.ReLU(), dense(3)
    ),
    "nothing but a ReLU": lambda: polytopes.sequential((3,), layers.ReLU()),
    "ReLU at the end": lambda: polytopes.sequential((6,), dense(5), dense(3)),
    "ReLU twice at the end": lambda: polytopes.sequential((6,), layers.Dense(5), dense(3), layers.Activation("relu")),
    "two affine maps": lambda: polytopes.sequential((6,), layers.Dense(5), layers.Dense(4), layers.Dense(3)),
    "two affine maps and a ReLU": lambda: polytopes.sequential((6,), layers.Dense(5), dense(4), layers.Dense(3)),
    "two convolutions with strides": lambda: on_maps(
        (4, 6, 1), layers.Conv2D(3, (1, 4), strides=(1, 2), padding="same"), conv(3, (2, 1), (1, 3), "same")
    ),
    "two convolutions": lambda: on_maps((12, 12, 1), layers.Conv2D(2, 3), conv(2, 3)),
    "ReLU, two convolutions": lambda: on_maps((20, 20, 1), conv(2, 3), layers.Conv2D(2, 3), conv(2, 3)),
    "three convolutions, one position": lambda: on_maps(
        (9, 9, 1), layers.Conv2D(2, 2, 3), layers.Conv2D(2, 1, 2), conv(2, 1, 2)
    ),
    "ReLU of pooling": lambda: on_maps((8, 7, 2), conv(3, 2), layers.AveragePooling2D(2), layers.ReLU()),
    "ReLU of pooling of an affine map": lambda: on_maps(
        (7, 7, 2), layers.Conv2D(2, 3), layers.AveragePooling2D(3, 2, "same"), layers.ReLU(), layers.Conv2D(2, 2)
    ),
    "ReLU of pooling of the input": lambda: on_maps(
        (5, 7, 2), layers.AveragePooling2D((2, 3), (1, 2), "same"), layers.ReLU(), conv(2, (1, 2), (1, 3))
    ),
    "one column of pooling": lambda: on_maps((6, 4, 2), layers.AveragePooling2D((1, 3))),
    "one column of a convolution": lambda: on_maps((8, 7, 2), conv(2, 6, (1, 3)), conv(2, (5, 7), (1, 2), "same")),
    "ReLUs of a shared value": lambda: functional((6,), shared_value),
    "sum of ReLUs": lambda: functional((4,), sum_of_relus),
    "ReLU of a sum": lambda: functional((4,), relu_of_a_sum),
    "sum of many at the end": lambda: functional((5,), many_summands),
    "Dense used twice": lambda: functional((4,), dense_used_twice),
    "convolution used twice": lambda: functional((8, 8, 2), conv_used_twice),
    "residual": lambda: functional((5, 5, 2), residual),
    "nested": lambda: functional((4,), nested),
}


def defended_net(network, rng, norm, slope):
    """The network with random weights, as a model; and inputs."""
    polytopes.randomised(network, rng, 1.2)
    model = PolytopeNet(network, epsilon=RADIUS[norm], norm=norm, slope=slope, radius_steps=1)
    return model, rng.standard_normal((INPUTS, *network.input_shape[1:])).astype("float32")


def check_bounds(model, x, rng):
    """No exact or computed margin is below its bound."""
    radius, m = np.float32(model.epsilon), model.num_classes
    bounds = np.asarray(model.margin_lower_bounds(x, radius))
    assert np.all(np.isfinite(bounds))
    own = np.argmax(model._logits(x, training=False), axis=1)
    rivals = np.arange(m) != own[:, None]
    points = descended(model, x, own, np.stack([of_the_ball(rng, point, radius, model.norm) for point in x]), radius)
    flat = points.reshape(-1, *x.shape[1:])
    for logits in (polytopes.exact_logits(model.network, flat), np.asarray(model._logits(flat, training=False))):
        margins = margins_of(logits.reshape(INPUTS, -1, m), own).min(axis=1)
        assert np.all((bounds <= margins) | ~rivals)


def check_bounds_without_a_ball(model, x):
    """They are the margins up to rounding, which is little."""
    bounds = np.asarray(model.margin_lower_bounds(x, 0.0))
    assert np.all(np.isfinite(bounds))
    slack = np.asarray(model._bounds_within(x, 0.0, counted=False)) - bounds
    own = np.argmax(model._logits(x, training=False), axis=1)
    rivals = np.arange(model.num_classes) != own[:, None]
    margins = margins_of(polytopes.exact_logits(model.network, x)[:, None], own)[:, 0]
    assert np.all((bounds <= margins) | ~rivals)
    np.testing.assert_array_less(np.where(rivals, margins - bounds, 0), 2 * slack + 1e-6 * np.abs(margins) + 1e-6)
    assert np.all(slack < 1e-2 * (1 + np.abs(margins).max()))


def check_verdicts(model, x, rng):
    """Answers are those of the exact network within the certified radius."""
    verdicts = model.verdicts(x)
    assert np.all(np.isfinite(verdicts.radius))
    for point, label, radius in zip(x, verdicts.label, verdicts.radius, strict=True):
        if label >= 0:
            logits = polytopes.exact_logits(model.network, of_the_ball(rng, point, radius, model.norm))
            assert np.all(logits.argmax(axis=1) == label)


def margins_of(logits, own):
    """`[n, k, m]`: `y_j - y_i` of logits `[n, k, m]` for classes `own` `[n]`."""
    return np.take_along_axis(logits, own[:, None, None], axis=2) - logits


def of_the_ball(rng, x, radius, norm):
    """Random points `[SAMPLED, ...]` inside, as float32, many of them at corners and on the sphere."""
    delta = rng.standard_normal((SAMPLED, *x.shape))
    if norm == "linf":
        delta = np.where(rng.random((SAMPLED, *[1] * x.ndim)) < 0.7, np.sign(delta), np.clip(delta, -1, 1))
    else:
        delta /= np.linalg.norm(delta.reshape(SAMPLED, -1), axis=1).reshape(-1, *[1] * x.ndim)
    return (x + delta * radius * (1 - 1e-6)).astype("float32")


def descended(model, x, own, points, radius):
    """The points `[n, k, ...]`, the last ones descended towards each class by STEPS, within the ball."""
    m, axes = model.num_classes, tuple(range(1, x.ndim))
    start, centre = np.repeat(points[:, -1], m, axis=0), np.repeat(x, m, axis=0).astype("float64")
    rows = np.eye(m)[np.repeat(own, m)] - np.tile(np.eye(m), (len(x), 1))
    found = []
    for step in range(STEPS):
        at = tf.constant(start)
        with tf.GradientTape() as tape:
            tape.watch(at)
            margin = tf.reduce_sum(rows.astype("float32") * model._logits(at, training=False))
        gradient = np.asarray(tape.gradient(margin, at), np.float64)
        if model.norm == "linf":
            delta = np.clip(start - centre - radius / 2**step * np.sign(gradient), -radius, radius)
        else:
            length = np.sqrt(np.square(gradient).sum(axes, keepdims=True)) + 1e-12
            delta = start - centre - radius / 2**step * gradient / length
            delta *= np.minimum(1, radius / (np.sqrt(np.square(delta).sum(axes, keepdims=True)) + 1e-12))
        start = (centre + delta * (1 - 1e-6)).astype("float32")
        found.append(start.reshape(len(x), m, *x.shape[1:]))
    return np.concatenate([points, *found], axis=1)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_bounded(name, slope, eagerly):
    """With each slope and in each norm, by turns: slopes belong to ReLUs, the norm to what arrives at the input.

    Adaptive bounds are the largest of some, among them the others: without a ball, they are no looser.
    """
    turn, rng = list(GRAPHS).index(name) + SLOPES.index(slope), np.random.default_rng(len(name))
    model, x = defended_net(GRAPHS[name](), rng, list(RADIUS)[turn % 2], slope)
    model.finalize()
    check_bounds(model, x, rng)
    if slope == "wong-kolter":
        check_bounds_without_a_ball(model, x)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_evaluated_as_it_was_bounded(name):
    """By what `finalize` compares, and by verdicts; every other two are compiled."""
    turn, rng = list(GRAPHS).index(name), np.random.default_rng(len(name))
    model, x = defended_net(GRAPHS[name](), rng, list(RADIUS)[turn % 2], "wong-kolter")
    with nullcontext() if turn % 4 >= 2 else polytopes.untraced():
        model.finalize()
        check_verdicts(model, x, rng)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_are_bounded(seed):
    rng = np.random.default_rng(seed)
    network, norm, slope = polytopes.random_graph(rng), ("linf", "l2")[seed % 2], SLOPES[seed // 2 % 2]
    model, x = defended_net(network, rng, norm, slope)
    with nullcontext() if seed % 4 == 2 else polytopes.eagerly():
        model.finalize()
        check_verdicts(model, x, rng)
    with polytopes.eagerly():
        check_bounds(model, x, rng)
        if slope == "wong-kolter":
            check_bounds_without_a_ball(model, x)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_trained(name):
    """By two of the four bounds, by turns."""
    x = np.random.default_rng(1).standard_normal((2, *GRAPHS[name]().input_shape[1:])).astype("float32")
    for training_bounds in TRAINING_BOUNDS[list(GRAPHS).index(name) % 2 :: 2]:
        network = polytopes.randomised(GRAPHS[name](), np.random.default_rng(2))
        model = PolytopeNet(network, epsilon=0.1, training_bounds=training_bounds, slope="wong-kolter", projections=5)
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(model(x, training=True)[:, -1])
        variables = network.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            assert gradient is None or np.all(np.isfinite(gradient)), variable.path
        assert np.all(np.isfinite(loss))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [(1, 1), (1, 2), (2, 1), (3, 2), (1, 5)])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 2), (4, 3), (5, 4)])
def test_pooling_is_the_average_of_each_window(size, strides, padding):
    """Forward, with squared weights, transposed: on maps with one column of windows, too."""
    rng = np.random.default_rng(0)
    for shape in ((5, 4, 2), (6, 7, 1), (5, 9, 3)):
        layer = layers.AveragePooling2D(size, strides, padding)
        affine = PoolMap(layer, shape, tuple(layer.compute_output_shape((1, *shape))[1:]))
        matrix = polytopes.exact_logits(functional(shape, layer), np.eye(np.prod(shape)).reshape(-1, *shape))
        matrix = matrix.reshape(len(matrix), -1)
        for values in (rng.random((3, *shape)), rng.random((1, *shape))):
            values = values.astype("float32")
            rows = rng.random((len(values), *affine.output_shape)).astype("float32")
            for found, exact, roundings in (
                (affine.forward(values), values.reshape(len(values), -1).astype(float) @ matrix, affine.roundings[0]),
                (affine.squares(values), values.reshape(len(values), -1).astype(float) @ matrix**2, sum(size) + 2),
                (affine.transposed(rows), rows.reshape(len(values), -1).astype(float) @ matrix.T, affine.roundings[1]),
            ):
                # All terms are positive: each is off by `roundings` units at most.
                assert np.all(np.abs(np.reshape(found, exact.shape) - exact) <= 1.001 * roundings * 2.0**-24 * exact)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("shape", "size", "strides"), [
    ((6, 5, 1), (2, 3), (1, 3)), ((9, 3, 1), (3, 3), (1, 2)), ((8, 8, 3), (7, 5), (1, 8)), ((7, 2, 2), (6, 7), (2, 3)),
    ((6, 1, 1), (5, 4), (1, 2)),
])  # fmt: skip
def test_a_convolution_with_one_column(shape, size, strides, padding):
    """What one window across sees, channel by channel, which TensorFlow 2.21 itself may read from wrong memory."""
    if padding == "valid" and size[1] > shape[1]:
        size = (size[0], shape[1])
    rng = np.random.default_rng(0)
    layer = layers.Conv2D(2, size, strides, padding, use_bias=False)
    network = polytopes.randomised(polytopes.sequential(shape, layer, layers.Flatten()), rng)
    affine = PolytopeGraph(network).nodes[1].map
    matrix = polytopes.exact_logits(network, np.eye(np.prod(shape)).reshape(-1, *shape))
    values = rng.standard_normal((4, *shape)).astype("float32")
    rows = rng.standard_normal((4, *affine.output_shape)).astype("float32")
    for blocked in (False, True):
        for found, exact in (
            (affine.linear(values, blocked), values.reshape(4, -1) @ matrix),
            (affine.magnitudes(abs(values), blocked), abs(values).reshape(4, -1) @ abs(matrix)),
            (affine.transposed(rows), rows.reshape(4, -1) @ matrix.T),
        ):
            np.testing.assert_allclose(np.reshape(found, (4, -1)), exact, atol=1e-5)


def test_layers_are_looked_at_again():
    layer = layers.Dense(4, activation="relu")
    graph = PolytopeGraph(functional((4,), lambda x: layers.Dense(3)(polytopes.sequential((4,), layer)(x))))
    graph.check_layers()
    layer.enable_lora(2)
    with pytest.raises(ValueError, match=f"'{layer.name}' has low-rank.*Merge"):
        graph.check_layers()


def test_an_add_layer_used_twice_may_broadcast_neither_time():
    def body(x):
        add, narrow = layers.Add(), layers.Dense(1)(x)
        return layers.Dense(3)(add([add([x, x]), narrow]))

    with pytest.raises(ValueError, match="broadcasts"):
        PolytopeGraph(functional((4,), body))
