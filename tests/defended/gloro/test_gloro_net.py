"""The certificate of GloRo Nets: composition over graphs, sampled soundness, faults that other implementations have."""

import functools
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import defended
from defended import GloroNet
from defended.gloro.graph import LipschitzGraph
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax

IMAGE = (6, 6, 2)


def sequential(*body, shape=IMAGE):
    return keras.Sequential([keras.Input(shape), *body])


def residual():
    x = keras.Input(IMAGE)
    z = layers.Conv2D(4, 3, padding="same")(x)
    z = MinMax()(z)
    branch = layers.Conv2D(4, 3, padding="same", activation="relu")(z)
    z = layers.Add()([z, branch])
    z = layers.Flatten()(z)
    return keras.Model(x, layers.Dense(3)(z))


def shared_layer():
    x = keras.Input((4,))
    dense = layers.Dense(4, activation="relu")
    return keras.Model(x, layers.Dense(3)(dense(dense(x))))


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6), MinMax()])
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(3)(inner(x)))


def branches():
    x = keras.Input((8,))
    joined = layers.Concatenate()([layers.Dense(4)(x), layers.Dense(6, activation="tanh")(x)])
    return keras.Model(x, layers.Dense(3)(joined))


NETWORKS = {
    "dense": lambda: sequential(
        layers.Dense(8), MinMax(), layers.Dense(8, activation="relu"), layers.Dense(3), shape=(5,)
    ),
    "conv same": lambda: sequential(layers.Conv2D(4, 3, padding="same"), MinMax(), layers.Flatten(), layers.Dense(3)),
    "conv strides": lambda: sequential(
        layers.Conv2D(4, 4, strides=2, padding="same", activation="relu"), layers.Flatten(), layers.Dense(3)
    ),
    "conv groups and dilation": lambda: sequential(
        layers.Conv2D(4, 2, groups=2),
        layers.ReLU(),
        layers.Conv2D(4, 2, dilation_rate=2),
        layers.Flatten(),
        layers.Dense(3),
    ),
    "average pooling": lambda: sequential(layers.AveragePooling2D(3, 2, "same"), layers.Flatten(), layers.Dense(3)),
    "max pooling": lambda: sequential(layers.MaxPooling2D(3, 2, "same"), layers.Flatten(), layers.Dense(3)),
    "downsampling": lambda: sequential(
        InvertibleDownsampling(2), layers.Conv2D(4, 1), MinMax(), layers.Flatten(), layers.Dense(3)
    ),
    "liresnet": lambda: sequential(
        LiResNetBlock(3), MinMax(), LiResNetBlock(3, 0.5), layers.Flatten(), layers.Dense(3)
    ),
    "reshape": lambda: sequential(layers.Reshape((36, 2)), layers.Dense(4), layers.Flatten(), layers.Dense(3)),
    "no dense head": lambda: sequential(layers.Conv2D(3, 3), layers.GlobalAveragePooling2D()),
    "leaky": lambda: sequential(layers.Flatten(), layers.LeakyReLU(negative_slope=3.0), layers.Dense(3)),
    "residual": residual,
    "shared layer": shared_layer,
    "nested": nested,
    "branches": branches,
}


def randomised(network, rng, scale=1.0):
    for variable in network.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape).astype("float32") * np.float32(scale))
    return network


@functools.cache
def final(name):
    """A model with random weights, which no test changes, and its network as a graph."""
    model = GloroNet(randomised(NETWORKS[name](), np.random.default_rng(3)), epsilon=0.1)
    model.finalize()
    return model, tf.function(model.network, input_signature=[tf.TensorSpec((None, *model.input_shape[1:]))])


@pytest.mark.parametrize("name", NETWORKS)
def test_no_point_of_a_certified_ball_gets_another_answer(name):
    """Random directions and the steepest ones, to the edge of the ball that the certificate draws."""
    rng = np.random.default_rng(3)
    model, network = final(name)
    shape = model.input_shape[1:]
    x = rng.standard_normal((40, *shape)).astype("float32")
    radii = ops.convert_to_numpy(model.certified_radius(x))
    assert np.all(np.isfinite(radii))
    keep = (radii > 1e-4) & (radii < 1e6)
    assert keep.any()
    x, radii = x[keep], radii[keep]
    answer = network(x).numpy().argmax(axis=1)
    directions = [rng.standard_normal(x.shape) for _ in range(12)] + steepest(network, x, answer)
    for direction in directions:
        flat = direction.reshape(len(x), -1)
        direction = (flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)).reshape(x.shape)
        for share in (0.5, 0.999):
            moved = x + direction * (share * radii).reshape(-1, *[1] * len(shape))
            assert np.array_equal(network(moved.astype("float32")).numpy().argmax(axis=1), answer)


def steepest(network, x, answer):
    point = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(point)
        logits = network(point)
        gaps = tf.unstack(logits - tf.gather(logits, answer, batch_dims=1)[:, None], axis=1)
    return [tape.gradient(gap, point).numpy() + 1e-12 for gap in gaps]


@pytest.mark.parametrize("name", NETWORKS)
def test_pairwise_constants_bound_every_secant(name):
    """|(y_j - y_i)(a) - (y_j - y_i)(b)| <= K_ij |a - b| for near and far pairs of points."""
    rng = np.random.default_rng(4)
    model, network = final(name)
    constants = model.margin_lipschitz.astype("float64")
    a = rng.standard_normal((64, *model.input_shape[1:])).astype("float32")
    for step in (1e-1, 1.0, 10.0):
        b = (a + step * rng.standard_normal(a.shape)).astype("float32")
        outputs = [network(point).numpy().astype("float64") for point in (a, b)]
        change = outputs[0] - outputs[1]
        moved = np.abs(change[:, :, None] - change[:, None, :])
        distance = np.linalg.norm((a.astype("float64") - b).reshape(len(a), -1), axis=1)[:, None, None]
        assert np.all(moved <= constants * distance * (1 + 1e-4) + 1e-4)


def test_a_linear_classifier_by_hand():
    """y = (3 x1, 4 x2): K_01 = |(3, -4)| = 5, so at (2, 0) the margin 6 gives the radius 1.2."""
    network = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    network.layers[0].kernel.assign(np.diag([3.0, 4.0]))
    model = GloroNet(network, epsilon=1.0)
    model.finalize()
    np.testing.assert_allclose(model.margin_lipschitz, [[0, 5], [5, 0]], rtol=1e-6)
    x = np.array([[2.0, 0.0], [0.5, 0.0], [0.0, 0.0]], "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model.certified_radius(x)), [1.2, 0.3, 0.0], rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(model.availability_radius(x)), [0.2, 0.0, 0.0], rtol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(model(x))[0], [6, 0, 5], rtol=1e-5)
    verdicts = model.verdicts(x)
    assert verdicts.label.tolist() == [0, -1, -1]
    assert verdicts.rejected.tolist() == [False, True, True]
    model.epsilon = 1.25
    assert model.verdicts(x).rejected.all()
    model.epsilon.assign(0.25)
    assert model.verdicts(x).label.tolist() == [0, 0, -1]


def test_residual_branches_add():
    """x + 3x is 4-Lipschitz: the product of the layers would say 3."""
    x = keras.Input((2,))
    branch = layers.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Constant(0.0))
    network = keras.Model(x, layers.Dense(2)(layers.Add()([x, branch(x)])))
    branch.kernel.assign(3 * np.eye(2))
    assert LipschitzGraph(network).bound() == pytest.approx(4.0, rel=1e-9)


def test_a_linear_residual_block_is_bounded_as_a_sum():
    """x - x is 0-Lipschitz, where 1 + |W| would say 2."""
    network = sequential(LiResNetBlock(1, use_bias=False, use_affine=False), layers.Flatten(), layers.Dense(3))
    network.layers[0].branch_kernel.assign(-np.eye(2)[None, None])
    assert LipschitzGraph(network).bound() <= 1e-12


def test_a_shared_layer_counts_at_each_use():
    network = shared_layer()
    dense = network.layers[1]
    dense.kernel.assign(2 * np.eye(4))
    graph = LipschitzGraph(network)
    assert graph.bound() == pytest.approx(4.0, rel=1e-9)
    assert len(graph.operators) == 1


def test_the_activation_argument_counts():
    sigmoid = sequential(layers.Dense(4, activation="sigmoid", use_bias=False), layers.Dense(3), shape=(4,))
    sigmoid.layers[0].kernel.assign(np.eye(4))
    assert LipschitzGraph(sigmoid).bound() == pytest.approx(0.25, rel=1e-9)
    swish = sequential(layers.Dense(4, activation="swish"), layers.Dense(3), shape=(4,))
    with pytest.raises(ValueError, match="activation 'silu'"):
        GloroNet(swish, epsilon=0.1)


def test_tiny_weights_do_not_certify_everything():
    """The decision does not depend on the unit of the weights, down to 1e-12 of them."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((50, 5)).astype("float32")
    verdicts = []
    for scale in (1.0, 2.0**-13):
        network = NETWORKS["dense"]()
        rng = np.random.default_rng(6)
        for variable in network.trainable_variables:
            value = rng.standard_normal(variable.shape) if len(variable.shape) == 2 else np.zeros(variable.shape)
            variable.assign(value * scale)
        model = GloroNet(network, epsilon=0.05)
        model.finalize()
        verdicts.append(model.verdicts(x))
    np.testing.assert_array_equal(verdicts[0].label, verdicts[1].label)
    np.testing.assert_allclose(verdicts[0].radius, verdicts[1].radius, rtol=1e-4)
    assert 0 < verdicts[0].rejected.mean() < 1


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e10])
def test_degenerate_scales_stay_sound(scale):
    rng = np.random.default_rng(8)
    model = GloroNet(randomised(NETWORKS["dense"](), rng, scale), epsilon=0.05)
    model.finalize()
    x = rng.standard_normal((50, 5)).astype("float32")
    verdicts = model.verdicts(x)
    assert np.all(np.isfinite(verdicts.radius))
    answered = ~verdicts.rejected
    moved = (x + 0.049 * rng.standard_normal(x.shape) / 5**0.5).astype("float32")
    again = np.argmax(ops.convert_to_numpy(model.network(moved)), axis=1)
    near = np.linalg.norm(moved - x, axis=1) <= 0.05
    assert np.array_equal(again[answered & near], verdicts.label[answered & near])


def test_all_zero_weights_reject_everything():
    network = NETWORKS["conv same"]()
    for variable in network.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    model = GloroNet(network, epsilon=0.1)
    model.finalize()
    assert model.verdicts(np.zeros((3, *IMAGE))).rejected.all()


def test_permuting_classes_permutes_answers_only():
    rng = np.random.default_rng(9)
    network = randomised(NETWORKS["dense"](), rng)
    model = GloroNet(network, epsilon=0.05)
    model.finalize()
    x = rng.standard_normal((30, 5)).astype("float32")
    before = model.verdicts(x)
    order = np.array([2, 0, 1])
    head = network.layers[-1]
    head.kernel.assign(ops.convert_to_numpy(head.kernel)[:, order])
    head.bias.assign(ops.convert_to_numpy(head.bias)[order])
    model.finalize()
    after = model.verdicts(x)
    np.testing.assert_array_equal(before.rejected, after.rejected)
    answered = ~before.rejected
    np.testing.assert_array_equal(before.label[answered], order[after.label[answered]])
    np.testing.assert_allclose(before.radius, after.radius, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_inputs_that_are_not_finite_are_rejected(bad):
    """ReLU and max pooling can swallow a NaN: the input itself is looked at."""
    network = sequential(layers.ReLU(), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(3))
    model = GloroNet(randomised(network, np.random.default_rng(1)), epsilon=1e-6)
    model.finalize()
    x = np.ones((3, *IMAGE), "float32")
    x[1, 2, 2, 0] = bad
    verdicts = model.verdicts(x)
    if not np.isfinite(bad):
        assert verdicts.rejected.tolist() == [False, True, False]
        assert verdicts.radius[1] == 0.0
    assert np.all(np.isfinite(verdicts.radius))
    assert np.all(np.isfinite(ops.convert_to_numpy(model(x))[[0, 2]]))


def test_equal_columns_with_equal_bias_are_never_certified():
    network = sequential(layers.Dense(3), shape=(4,))
    kernel = np.random.default_rng(2).standard_normal((4, 3))
    kernel[:, 1] = kernel[:, 0]
    network.layers[0].kernel.assign(kernel)
    model = GloroNet(network, epsilon=1e-3)
    model.finalize()
    x = (kernel[:, 0] * 10)[None].astype("float32")
    assert np.argmax(model.network(x)) == 0
    assert model.verdicts(x).rejected.all()


def test_a_thousand_classes_by_rows_equal_the_matrix():
    """Training forms rows only; they agree with the proven matrix."""
    rng = np.random.default_rng(11)
    model = GloroNet(randomised(sequential(layers.Dense(40), shape=(6,)), rng), epsilon=0.1)
    model.finalize()
    classes = np.array([0, 7, 39, 7], "int32")
    rows = ops.convert_to_numpy(model.lipschitz_rows(classes, training=True))
    model.finalize()
    proven = model.margin_lipschitz[classes]
    np.testing.assert_allclose(rows[proven > 0], proven[proven > 0], rtol=1e-4)


def test_the_gradient_of_bottom_reaches_every_weight():
    model = GloroNet(residual(), epsilon=0.5)
    x = np.random.default_rng(0).standard_normal((4, *IMAGE)).astype("float32")
    with tf.GradientTape() as tape:
        bottom = tf.reduce_sum(model(x, training=True)[:, -1])
    gradients = tape.gradient(bottom, [v.value for v in model.trainable_variables])
    kernels = [g for g, v in zip(gradients, model.trainable_variables, strict=True) if v.name == "kernel"]
    assert all(np.abs(g.numpy()).max() > 0 for g in kernels)
    assert all(np.all(np.isfinite(g.numpy())) for g in gradients if g is not None)


def test_the_state_of_the_certificate():
    model = GloroNet(NETWORKS["dense"](), epsilon=0.1)
    x = np.zeros((2, 5), "float32")
    assert not model.is_final
    assert "not final" in repr(model)
    model.deployed(x)
    assert model.is_final, "whoever wants an answer gets a proven one"
    assert "bounds proven" in repr(model)
    model.network.layers[0].kernel.assign(ops.convert_to_numpy(model.network.layers[0].kernel) * 2)
    assert not model.is_final, "weights that changed behind the model's back void the proof"
    model.finalize()
    model(x, training=True)
    assert not model.is_final, "training thaws"
    assert model.margin_lipschitz.shape == (3, 3)
    assert model.is_final


def test_a_changed_weight_is_proven_again_before_an_answer(caplog):
    model = GloroNet(NETWORKS["dense"](), epsilon=0.1)
    model.finalize()
    before = model.verdicts(np.ones((1, 5), "float32")).radius
    model.network.layers[-1].kernel.assign(4 * np.asarray(model.network.layers[-1].kernel))
    model.network.layers[-1].bias.assign(np.ones(3))
    with caplog.at_level(logging.WARNING, logger="defended"):
        after = model.verdicts(np.ones((1, 5), "float32")).radius
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == [
        f"{model.name}: bounds proven for the network as it is now"
    ]
    fresh = GloroNet(model.network, epsilon=0.1)
    np.testing.assert_array_equal(fresh.verdicts(np.ones((1, 5), "float32")).radius, after)
    assert before != after


def test_deployed_outputs_agree_with_verdicts():
    rng = np.random.default_rng(12)
    model = GloroNet(randomised(residual(), rng, 0.3), epsilon=0.01)
    model.finalize()
    x = rng.standard_normal((37, *IMAGE)).astype("float32")
    verdicts = model.verdicts(x, batch_size=16)
    traced = tf.function(model.deployed, autograph=False)(tf.constant(x))
    outputs = {key: ops.convert_to_numpy(value) for key, value in traced.items()}
    np.testing.assert_array_equal(outputs["label"], verdicts.label)
    np.testing.assert_array_equal(outputs["rejected"], verdicts.rejected)
    np.testing.assert_allclose(outputs["certified_radius"], verdicts.radius, rtol=1e-5)
    assert outputs["label"].dtype == np.int64
    assert outputs["scores"].shape == (37, 3)
    assert outputs["scores_with_bottom"].shape == (37, 4)
    assert 0 < verdicts.rejected.mean() < 1
    assert np.array_equal(verdicts.rejected, np.argmax(ops.convert_to_numpy(model(x)), axis=1) == 3)


def test_the_radius_is_one_lipschitz_while_the_class_holds():
    """So that r > 2 eps keeps every point within eps certified at eps."""
    rng = np.random.default_rng(13)
    model = GloroNet(randomised(NETWORKS["conv same"](), rng), epsilon=0.1)
    model.finalize()
    x = rng.standard_normal((64, *IMAGE)).astype("float32")
    before = model.verdicts(x)
    step = rng.standard_normal(x.shape).astype("float32")
    step *= (0.5 * before.radius / np.linalg.norm(step.reshape(64, -1), axis=1)).reshape(-1, 1, 1, 1)
    after = model.verdicts(x + step)
    assert np.all(after.radius >= before.radius * 0.5 * (1 - 1e-3) - 1e-6)


def test_empty_and_single_batches():
    model = GloroNet(NETWORKS["dense"](), epsilon=0.1)
    model.finalize()
    assert model.verdicts(np.zeros((0, 5))).label.shape == (0,)
    assert model.verdicts(np.zeros((1, 5))).label.shape == (1,)


def test_exports_its_registry():
    assert "Conv2D" in defended.gloro.known_layers()
    with pytest.raises(ValueError, match="already has"):
        defended.gloro.lipschitz_rule(layers.Dense)(lambda layer, shape: None)
