"""Layers of ordinary Keras models in polytope nets: numbers by hand, samples, their maps, and what stays refused."""

import keras
import numpy as np
import polytopes
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from defended import PolytopeNet
from defended.layers import InvertibleDownsampling, MinMax
from defended.networks.exact import exact_layer
from defended.networks.tracing import trace
from defended.polytope.dual_bounds import DualBounds
from defended.polytope.element_maps import SelectMap
from defended.polytope.graph import PolytopeGraph
from defended.polytope.pieces import maxima
from defended.polytope.self_check import _check_map

RNG = np.random.default_rng(0)
IMAGE, SERIES, VECTOR = (5, 4, 2), (7, 3), (5,)
SLOPES = keras.initializers.RandomUniform(-1.5, 1.5, seed=1)


def exact_values(network, x):
    """Logits in float64, by the layers' documentation."""
    steps, returned = trace(network)
    values = {0: np.asarray(x, np.float64)}
    for step in steps:
        values[step.output] = exact_layer(step.layer, [values[slot] for slot in step.inputs]).value
    return values[returned]


def ones(*shape):
    return np.ones(shape)


# Layer, its weights, x, what its outputs add up to there, and the sum of magnitudes of that sum's gradient.
BY_HAND = {
    "rescaling": (lambda: layers.Rescaling(2.0, -1.0), [], ones(2), 2, 4),
    "normalization": (lambda: layers.Normalization(mean=1.0, variance=4.0), [], ones(2), 0, 1),
    "inverted": (lambda: layers.Normalization(mean=1.0, variance=4.0, invert=True), [], ones(2), 6, 4),
    # Factors 3 / sqrt(0.249 + 0.001) = 6: 6 (1 - 2) + 1 twice.
    "batch norm": (layers.BatchNormalization, [[3, 3], [1, 1], [2, 2], [0.249, 0.249]], ones(2), -10, 12),
    "conv 1D": (lambda: layers.Conv1D(1, 2, use_bias=False), [ones(2, 1, 1)], ones(3, 1), 4, 4),
    "causal": (lambda: layers.Conv1D(1, 2, padding="causal", use_bias=False), [ones(2, 1, 1)], ones(3, 1), 5, 5),
    "depthwise 1D": (
        lambda: layers.DepthwiseConv1D(2, use_bias=False), [[[[1], [-1]], [[1], [-1]]]], ones(3, 2), 0, 8,
    ),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(2, depth_multiplier=2, use_bias=False),
        [np.broadcast_to([1.0, -3.0], (2, 2, 1, 2))], ones(2, 2, 1), -8, 8,
    ),
    "separable 1D": (
        lambda: layers.SeparableConv1D(1, 2, use_bias=False), [ones(2, 2, 1), [[[1], [-1]]]], ones(3, 2), 0, 8,
    ),
    "separable": (
        lambda: layers.SeparableConv2D(1, 2), [ones(2, 2, 2, 1), [[[[1], [-1]]]], [7]], ones(2, 2, 2), 7, 8,
    ),
    "padding": (lambda: layers.ZeroPadding1D(1), [], ones(2, 1), 2, 2),
    "cropping": (lambda: layers.Cropping1D(1), [], ones(3, 1), 1, 1),
    "center crop": (lambda: layers.CenterCrop(1, 2), [], ones(3, 3, 1), 2, 2),
    "up": (lambda: layers.UpSampling2D(2), [], ones(1, 2, 1), 8, 8),
    "repeated": (lambda: layers.RepeatVector(3), [], ones(2), 6, 6),
    "permuted": (lambda: layers.Permute((2, 1)), [], ones(2, 2), 4, 4),
    "average 1D": (lambda: layers.AveragePooling1D(2), [], ones(4, 1), 2, 2),
    "global average 1D": (lambda: layers.GlobalAveragePooling1D(), [], ones(4, 2), 2, 2),
    # Where signs are known, what is bent is linear; 0.25 is farther from any kink than the ball reaches.
    "leaky": (lambda: layers.LeakyReLU(0.5), [], [1.0, -2.0], 0, 1.5),
    "prelu": (layers.PReLU, [[-1.0, 3.0]], [-1.0, -1.0], -2, 4),
    "maximum": (lambda: layers.MaxPooling1D(2), [], [[1.0], [0.0], [2.0], [4.0]], 5, 2),
    "global maximum": (layers.GlobalMaxPooling1D, [], [[0.0], [0.0], [3.0]], 3, 1),
    "pairs": (MinMax, [], [0.0, 0.0], 0, 2),  # a sum of both, whichever is larger
}  # fmt: skip


def summed(make, weights, x):
    """A network with logits 10 + the sum of a layer's outputs, and 0."""
    layer = make()
    network = polytopes.sequential(np.shape(x), layer, layers.Flatten(), layers.Dense(2))
    if weights:
        layer.set_weights([np.asarray(weight, "float32").reshape(variable.shape) for weight, variable in
                           zip(weights, layer.weights, strict=True)])  # fmt: skip
    kernel = np.zeros(network.layers[-1].kernel.shape)
    kernel[:, 0] = 1
    network.layers[-1].set_weights([kernel, np.array([10.0, 0.0])])
    return network


@pytest.mark.usefixtures("eagerly")
class TestByHand:
    @pytest.mark.parametrize("name", BY_HAND)
    def test_layers_that_are_linear_there(self, name):
        make, weights, x, total, slope = BY_HAND[name]
        model = PolytopeNet(summed(make, weights, x), epsilon=0.1, radius_steps=1)
        model.finalize()
        margin = abs(10 + total)
        bound = np.asarray(model.margin_lower_bounds(np.asarray(x)[None], 0.25)).sum()
        assert margin - 0.25 * slope - 1e-3 < bound <= margin - 0.25 * slope

    @pytest.mark.parametrize(
        ("make", "weights", "x", "paper", "tight"),
        [
            # On [-1, 1]: z/2 + relu(z)/2 >= z/2 + z/4 with the paper's slope, >= z/2 with the other, which is exact.
            (lambda: layers.LeakyReLU(0.5), [], [0.0], 9.25, 9.5),
            # |z| = -z + 2 relu(z): >= -z + z with the paper's slope, which is exact.
            (layers.PReLU, [[-1.0]], [0.0], 10.0, 10.0),
            # b + relu(a - b) >= b + (a - b) / 2, and >= b.
            (lambda: layers.MaxPooling1D(2), [], [[0.0], [0.0]], 9.0, 9.0),
        ],
    )
    def test_layers_that_bend_in_the_ball(self, make, weights, x, paper, tight):
        for slope, wanted in (("wong-kolter", paper), ("adaptive", tight)):
            model = PolytopeNet(summed(make, weights, x), epsilon=0.1, slope=slope, rounding=False, radius_steps=1)
            model.finalize()
            found = np.asarray(model.margin_lower_bounds(np.asarray(x)[None], 1.0))[0, 1]
            assert found == pytest.approx(wanted, rel=1e-5)


def adapted(shape):
    layer = layers.Normalization()
    layer.adapt(RNG.normal(5, 3, (50, *shape)) * np.linspace(0.5, 2, shape[-1]))
    return layer


KINDS = {
    "rescaling by channel": lambda: (IMAGE, [layers.Rescaling([0.5, -1.0], [0.0, 1.0])]),
    "rescaling, convolution": lambda: (IMAGE, [layers.Rescaling(0.5), layers.Conv2D(2, 2, activation="relu")]),
    "rescaling of places": lambda: ((2, 2, 1), [layers.Rescaling(np.array([[[1.0], [2.0]], [[-1.0], [0.5]]]))]),
    "normalization": lambda: (IMAGE, [adapted(IMAGE)]),
    "batch norm": lambda: (IMAGE, [layers.Conv2D(3, 2), layers.BatchNormalization(), layers.ReLU()]),
    "batch norm of a vector": lambda: (VECTOR, [layers.Dense(4), layers.BatchNormalization(scale=False)]),
    "conv 1D": lambda: (SERIES, [layers.Conv1D(3, 3, strides=2, padding="same")]),
    "causal": lambda: (SERIES, [layers.Conv1D(3, 3, padding="causal", activation="relu"), layers.Conv1D(2, 2)]),
    "depthwise": lambda: (IMAGE, [layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu")]),
    "depthwise 1D": lambda: (SERIES, [layers.DepthwiseConv1D(3, strides=2)]),
    "separable": lambda: (IMAGE, [layers.SeparableConv2D(3, 2, strides=2, activation="leaky_relu")]),
    "separable 1D": lambda: (SERIES, [layers.SeparableConv1D(3, 2, depth_multiplier=2)]),
    "padding": lambda: ((3, 4, 2), [layers.ZeroPadding2D(((1, 0), (2, 1))), layers.Conv2D(2, 3)]),
    "cropping": lambda: (IMAGE, [layers.Cropping2D(((1, 0), (0, 1)))]),
    "up": lambda: (IMAGE, [layers.Cropping2D(1), layers.UpSampling2D((2, 3))]),
    "up 1D": lambda: (SERIES, [layers.UpSampling1D(2)]),
    "repeated": lambda: (VECTOR, [layers.Dense(3, activation="relu"), layers.RepeatVector(3), layers.Conv1D(2, 2)]),
    "permuted": lambda: (IMAGE, [layers.Permute((3, 1, 2))]),
    "space to depth": lambda: ((4, 4, 2), [InvertibleDownsampling(2)]),
    "averages": lambda: (SERIES, [layers.AveragePooling1D(3, 2, "same"), layers.GlobalAveragePooling1D(keepdims=True)]),
    "leaky": lambda: (VECTOR, [layers.LeakyReLU(0.3), layers.Dense(4, activation=layers.LeakyReLU(2.0))]),
    "ReLU with a slope": lambda: (VECTOR, [layers.Dense(4), layers.ReLU(negative_slope=0.1)]),
    "prelu": lambda: (IMAGE, [layers.Conv2D(3, 2), layers.PReLU(SLOPES, shared_axes=[1, 2])]),
    "maxima": lambda: ((4, 4, 2), [layers.Conv2D(2, 2), layers.MaxPooling2D((1, 3), (1, 2), "same")]),
    "global maximum": lambda: ((4, 2), [layers.Conv1D(2, 2, activation="relu"), layers.GlobalMaxPooling1D()]),
    "maxima of the input": lambda: ((4, 4, 1), [layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(4), MinMax()]),
}


def network_of(name):
    """A network of a kind, a hidden Dense layer behind it, with random weights."""
    shape, body = KINDS[name]()
    rng = np.random.default_rng(len(name))
    network = polytopes.sequential(shape, *body, layers.Flatten(), layers.Dense(4, activation="relu"), layers.Dense(3))
    for variable in network.trainable_variables:
        if "alpha" not in variable.name:
            variable.assign(rng.normal(size=variable.shape) * 0.6)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.2, 3, layer.moving_variance.shape))
            layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape))
    return network, rng.standard_normal((2, *shape)).astype("float32"), rng


def of_the_ball(rng, x, radius, norm, count=300):
    """Points `[count, n, ...]` of the balls around x, corners and the sphere."""
    delta = rng.standard_normal((count, *x.shape))
    if norm == "linf":
        delta = np.sign(delta)
    else:
        delta /= np.sqrt(np.square(delta).sum(axis=tuple(range(2, delta.ndim)), keepdims=True))
    return (x + delta * radius * (1 - 1e-6)).astype("float32")


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_is_bounded_evaluated_and_checked(name):
    """Margins of a ball, exact and computed; every value between its bounds; each map as it was bounded."""
    turn = list(KINDS).index(name)
    norm, slope = ("linf", "l2")[turn % 2], ("adaptive", "wong-kolter")[turn // 2 % 2]
    network, x, rng = network_of(name)
    model = PolytopeNet(network, epsilon=0.1, norm=norm, slope=slope, radius_steps=1)
    radius = np.float32(0.1)
    with polytopes.eagerly():
        model.finalize()
        for node in model._graph.nodes:
            if node.map is not None:
                _check_map(node.map, node.layer, rng)
        bounds, at_x = (np.asarray(model.margin_lower_bounds(x, size)) for size in (radius, 0.0))
        points = of_the_ball(rng, x, radius, norm)
        flat = points.reshape(-1, *x.shape[1:])
        own = exact_values(network, x).argmax(axis=1)
        rivals = np.arange(3) != own[:, None]
        for logits in (exact_values(network, flat), np.asarray(model._logits(flat, training=False), np.float64)):
            logits = logits.reshape(len(points), 2, 3)
            margins = np.take_along_axis(logits, np.broadcast_to(own[:, None], (len(points), 2, 1)), 2) - logits
            assert np.all((bounds <= margins.min(axis=0)) | ~rivals)
        logits = exact_values(network, x)
        margins = np.take_along_axis(logits, own[:, None], 1) - logits
        assert np.all((at_x <= margins) & (margins - at_x < 0.02) | ~rivals)
        graph = model._graph
        for chain in DualBounds(graph, norm, slope).chains(x, np.full(2, radius)):
            for node, values in enumerate(graph.values(tf.constant(flat))):
                values = np.asarray(values).reshape(len(points), 2, *graph.nodes[node].shape)
                slack = 1e-5 * (1 + np.abs(values).max())
                assert np.all(np.asarray(chain.lower[node]) - slack <= values)
                assert np.all(values <= np.asarray(chain.upper[node]) + slack)


@pytest.mark.parametrize("shape", [(12, 11, 2), (40, 2)])
def test_following_patches_through_factors_and_series_changes_nothing(shape, eagerly):
    conv = layers.Conv2D if len(shape) == 3 else layers.Conv1D
    body = [layers.Rescaling(0.5, 0.1), conv(3, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
            conv(3, 2), layers.BatchNormalization(), layers.LeakyReLU()]  # fmt: skip
    network = polytopes.sequential(shape, *body[:-1], layers.ReLU(), layers.Flatten(), layers.Dense(3))
    for variable in network.variables:
        variable.assign(np.abs(RNG.normal(size=variable.shape)) if "variance" in variable.name
                        else RNG.normal(size=variable.shape) * 0.5)  # fmt: skip
    graph, x = PolytopeGraph(network), RNG.standard_normal((2, *shape)).astype("float32")
    by_patches, whole = (DualBounds(graph, "linf", "adaptive", counted=False) for _ in range(2))
    assert len(by_patches._patches) == 2
    whole._patches = {}
    radius = np.full(2, 0.1, "float32")
    for one, other in zip(by_patches.chains(x, radius), whole.chains(x, radius), strict=True):
        for source in by_patches._patches:
            np.testing.assert_allclose(one.lower[source], other.lower[source], atol=1e-4)
            np.testing.assert_allclose(one.upper[source], other.upper[source], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_selections_and_their_transposes(entries, outputs, terms, random):
    """Against the matrix, with whole numbers, which float32 adds up exactly."""
    index = np.array([[random.randrange(-1, entries) for _ in range(outputs)] for _ in range(terms)])
    signs = np.array([[random.choice([-1.0, 1.0]) for _ in range(outputs)] for _ in range(terms)])
    affine, matrix, sizes = SelectMap((entries,), (outputs,), index, signs), *np.zeros((2, outputs, entries))
    for (term, output), entry in np.ndenumerate(index):
        if entry >= 0:
            matrix[output, entry] += signs[term, output]
            sizes[output, entry] += 1
    values = np.array([[random.randrange(-9, 9) for _ in range(entries)] for _ in range(2)], "float32")
    rows = np.array([[random.randrange(-9, 9) for _ in range(outputs)] for _ in range(2)], "float32")
    np.testing.assert_array_equal(affine.forward(values), values @ matrix.T)
    np.testing.assert_array_equal(affine.magnitudes(abs(values)), abs(values) @ sizes.T)
    np.testing.assert_array_equal(affine.transposed(rows), rows @ matrix)
    assert affine.roundings[0] >= (sizes.sum(axis=1).max() - 1)
    assert affine.roundings[1] >= (sizes.sum(axis=0).max() - 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_maxima_of_any_number_of_entries(entries, taps, outputs, random):
    chosen = np.array([[random.randrange(entries) for _ in range(outputs)] for _ in range(taps)])
    x = np.array([[random.randrange(-9, 9) for _ in range(entries)] for _ in range(3)], "float32")
    found = x
    for piece in maxima((entries,), (outputs,), chosen):
        if isinstance(piece, SelectMap):
            found = np.asarray(piece.forward(found))
        else:
            found = np.asarray(piece.kept.forward(found)) + np.maximum(np.asarray(piece.argument.forward(found)), 0)
    np.testing.assert_array_equal(found, x[:, chosen].max(axis=1))


def ordinary():
    """As users write: numbers rescaled, normalisation, two kinds of convolutions, pooling, a bend."""
    network = polytopes.sequential(
        (6, 1), layers.Rescaling(1 / 255), layers.Conv1D(2, 2), layers.BatchNormalization(), layers.LeakyReLU(),
        layers.MaxPooling1D(2), layers.SeparableConv1D(2, 2), layers.Flatten(), layers.Dense(3),
    )  # fmt: skip
    network.layers[2].moving_variance.assign([0.5, 2.0])
    network.layers[2].moving_mean.assign([0.1, -0.2])
    return network


def balanced(network, shape, epsilon):
    """A polytope net whose classes are about as likely as each other, inputs, and its verdicts."""
    # Its own inputs: a verdict should not depend on which tests ran before.
    x = np.random.default_rng(4).integers(0, 256, (24, *shape)).astype("float32")
    network.layers[-1].bias.assign(-np.mean(network(x), axis=0))
    model = PolytopeNet(network, epsilon=epsilon, radius_steps=1, slope="wong-kolter")
    return model, x, model.verdicts(x)


def test_an_ordinary_network_answers_as_its_scores_say():
    keras.utils.set_random_seed(2)
    model, x, found = balanced(ordinary(), (6, 1), 12.0)
    assert 0 < found.rejected.sum() < len(x)
    label = np.asarray(model(x)).argmax(axis=1)
    np.testing.assert_array_equal(np.where(label == 3, -1, label), found.label)
    answered = ~found.rejected
    np.testing.assert_array_equal(exact_values(model.network, x).argmax(axis=1)[answered], found.label[answered])
    model.network.layers[2].moving_mean.assign([0.0, 0.0])
    assert not model.is_final, "statistics are part of what was proven"


def test_exported_graphs_answer_alike(tmp_path):
    """Factors, selections, kernels with zeros and a bend, in TensorFlow's loader and in ONNX."""
    from defended.serving import export, load
    from defended.serving.artefacts.onnx_model import load_onnx

    keras.utils.set_random_seed(2)
    body = [layers.Rescaling(1 / 255), layers.DepthwiseConv1D(2, depth_multiplier=2), MinMax()]
    model, x, expected = balanced(polytopes.sequential((3, 1), *body, layers.Flatten(), layers.Dense(2)), (3, 1), 4.0)
    path = export(model, tmp_path, sample=x[:8], warm_up=False, serving_files=False)
    with load(path) as artefact:
        found = artefact.audit(x)
        onnx = load_onnx(path / artefact.manifest.onnx.file).run(x)
    np.testing.assert_array_equal(found["label"], expected.label)
    np.testing.assert_array_equal(onnx["label"], expected.label)
    np.testing.assert_allclose(found["certified_radius"], expected.radius, rtol=1e-2, atol=1e-3)


def test_ordinary_layers_are_trained(eagerly):
    network = ordinary()
    x = RNG.uniform(0, 255, (2, 6, 1)).astype("float32")
    for bounds in ("interval", "projected"):
        model = PolytopeNet(network, epsilon=0.1, training_bounds=bounds, slope="wong-kolter", projections=5)
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(model(x, training=True)[:, -1])
        for variable, gradient in zip(
            network.trainable_variables, tape.gradient(loss, network.trainable_variables), strict=True
        ):
            assert gradient is not None, variable.path
            assert np.all(np.isfinite(gradient)), variable.path


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: layers.Rescaling(1e-35), "cannot be bounded: it multiplies by 1e-35"),
            (lambda: layers.Rescaling(2.0**21), r"cannot be bounded: it multiplies by 2.1e\+06"),
            (lambda: layers.LeakyReLU(1e-35), "cannot be bounded: it multiplies by 1e-35"),
            (lambda: layers.Normalization(mean=0.0, variance=-1.0), "multiplies by nan"),
            (lambda: layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(-1e-4)), "nan"),
            (lambda: layers.BatchNormalization(moving_variance_initializer="zeros", epsilon=1e-30), r"1e\+15"),
        ],
    )
    def test_factors_whose_rounding_is_not_counted(self, make, message):
        network = polytopes.sequential((3,), make(), layers.Dense(3))
        with polytopes.untraced(), pytest.raises(ValueError, match=message):
            PolytopeNet(network, epsilon=0.1).finalize()

    def test_statistics_that_were_assigned_and_are_not_used(self):
        network = polytopes.sequential(VECTOR, adapted(VECTOR), layers.Dense(3))
        other = keras.models.clone_model(network)
        other.set_weights(network.get_weights())
        with polytopes.untraced(), pytest.raises(ValueError, match=r"'normalization.*finalize_state"):
            PolytopeNet(other, epsilon=0.1).finalize()
