"""The dual bounds: numbers by hand, exact minima, samples and attacks, rounding, and the reference values."""

import keras
import numpy as np
import polytopes
import pytest
import tensorflow as tf
from keras import layers

import defended
from defended.margins import FLOAT_MAX, predicted_class
from defended.numerics.float32 import UNIT_ROUNDOFF, gamma
from defended.polytope import PolytopeNet
from defended.polytope.dual_bounds import DualBounds
from defended.polytope.graph import PolytopeGraph
from defended.polytope.rounding import LARGEST_COEFFICIENTS, LARGEST_VALUE, Shares

NORMS = ("linf", "l2")

pytestmark = pytest.mark.usefixtures("eagerly")


def proven(network, epsilon=0.1, **options):
    """A finalized net; nothing here asks for a radius, so that its search may be short."""
    model = PolytopeNet(network, epsilon=epsilon, **{"radius_steps": 1, **options})
    model.finalize()
    return model


def by_hand(last, biases=(3.0, 0.0)):
    """x in R, hidden `relu(x)` and `relu(1 - x)`, two logits."""
    network = polytopes.sequential((1,), layers.Dense(2, activation="relu"), layers.Dense(2))
    network.set_weights([np.array([[1.0, -1.0]]), np.array([0.0, 1.0]), np.array(last, float), np.array(biases, float)])
    return network


class TestByHand:
    # Around x = 0.5 with eps = 1 both arguments lie in [-0.5, 1.5]: slope 3/4, lift 3/8.

    def test_both_lines(self):
        # y_0 - y_1 = 3 + relu(x) - relu(1 - x) >= 3 + 3x/4 - 3(1 - x)/4 - 3/8 = 15/8 + 3x/2, at x = -1/2 that is 9/8.
        network = by_hand([[1.0, 0.0], [-1.0, 0.0]])
        bound = proven(network, slope="wong-kolter", rounding=False).margin_lower_bounds(np.array([[0.5]]), 1.0)
        np.testing.assert_allclose(bound, [[0.0, 1.125]], rtol=1e-5)

    def test_the_largest_of_all_bounds_counts(self):
        # Slope 1 below: 15/8 + 7x/4 at -1/2 is 1, less than 9/8. Interval arithmetic: 3 + 0 - 3/2 = 3/2, the minimum.
        network = by_hand([[1.0, 0.0], [-1.0, 0.0]])
        graph, rows = PolytopeGraph(network), np.eye(2, dtype="float32")[:1]
        bounds = DualBounds(graph, "linf", "adaptive", counted=False)
        paper, tight = bounds.chains(np.array([[0.5]], "float32"), np.ones(1, "float32"))
        values = [
            float((m.kept - m.steepness)[0, 1]) for m in (bounds.margins(paper, rows), bounds.margins(tight, rows))
        ]
        np.testing.assert_allclose(values, [1.125, 1.0], rtol=1e-5)
        bound = proven(network, rounding=False).margin_lower_bounds(np.array([[0.5]]), 1.0)
        np.testing.assert_allclose(bound, [[0.0, 1.5]], rtol=1e-5)

    def test_the_adaptive_slope_where_it_is_tighter(self):
        # Around x = -1/2: x in [-3/2, 1/2], slope 1/4; relu(x) >= x/4 >= -3/8 against relu(x) >= 0.
        network = by_hand([[1.0, 0.0], [0.0, 0.0]])
        paper = proven(network, slope="wong-kolter", rounding=False).margin_lower_bounds(np.array([[-0.5]]), 1.0)
        tight = proven(network, rounding=False).margin_lower_bounds(np.array([[-0.5]]), 1.0)
        np.testing.assert_allclose(paper, [[0.0, 2.625]], rtol=1e-5)
        np.testing.assert_allclose(tight, [[0.0, 3.0]], rtol=1e-5)

    def test_l2_of_a_linear_network(self):
        network = polytopes.sequential((2,), layers.Dense(2))
        network.set_weights([np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([10.0, 0.0])])
        x = np.array([[1.0, 1.0]])
        # y_0 - y_1 = 17, its gradient (3, 4).
        np.testing.assert_allclose(proven(network, norm="l2").margin_lower_bounds(x, 2.0)[0, 1], 7.0, rtol=1e-4)
        np.testing.assert_allclose(proven(network, norm="linf").margin_lower_bounds(x, 2.0)[0, 1], 3.0, rtol=1e-4)

    @pytest.mark.parametrize("slope", ["adaptive", "wong-kolter"])
    def test_without_a_ball_the_bound_is_the_margin(self, slope):
        network = polytopes.randomised(polytopes.residual(), np.random.default_rng(0))
        model = proven(network, slope=slope)
        x = np.random.default_rng(1).standard_normal((4, 6, 6, 2)).astype("float32")
        logits = np.asarray(network(x))
        margins = logits.max(axis=1, keepdims=True) - logits
        bounds = np.asarray(model.margin_lower_bounds(x, 0.0))
        assert np.all(bounds <= margins + 1e-6)
        np.testing.assert_allclose(bounds, margins, atol=5e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_exact_minima_of_tiny_networks(seed, norm):
    rng = np.random.default_rng(seed)
    network = polytopes.sequential(
        (3,), layers.Dense(3, activation="relu"), layers.Dense(3, activation="relu"), layers.Dense(3)
    )
    polytopes.randomised(network, rng, 1.5)
    kernels, biases = ([np.asarray(w, np.float64) for w in network.get_weights()[i::2]] for i in (0, 1))
    x = rng.standard_normal(3).astype("float32")
    predicted = int(np.argmax(network(x[None])))
    models = {slope: proven(network, slope=slope, norm=norm) for slope in ("adaptive", "wong-kolter")}
    points = points_of_the_ball(rng, x.astype(float), 1.0, norm, 20_000).astype(np.float64) - x
    for epsilon in (0.05, 0.5):
        bounds = [np.asarray(model.margin_lower_bounds(x[None], epsilon))[0] for model in models.values()]
        logits = polytopes.in_float64(network, x + epsilon * points)
        for rival in set(range(3)) - {predicted}:
            rows = np.eye(3)[predicted] - np.eye(3)[rival]
            exact = polytopes.exact_minimum(
                kernels, biases, rows, x.astype(float), np.float64(np.float32(epsilon)), norm
            )
            assert all(bound[rival] <= exact for bound in bounds)
            # The enumeration itself: below all samples, and hardly.
            sampled = (logits @ rows).min()
            assert exact <= sampled <= exact + 0.05 * np.ptp(logits @ rows)
    # In a small ball no sign changes, and the bound is exact.
    if all_signs_are_known(network, x, 0.001, norm):
        tiny = np.asarray(models["adaptive"].margin_lower_bounds(x[None], 0.001))[0]
        for rival in set(range(3)) - {predicted}:
            rows = np.eye(3)[predicted] - np.eye(3)[rival]
            exact = polytopes.exact_minimum(kernels, biases, rows, x.astype(float), float(np.float32(0.001)), norm)
            assert tiny[rival] == pytest.approx(exact, abs=1e-4)


def test_the_exact_minimum_in_a_disc_by_hand():
    """relu(a) - relu(b) in the unit disc around (0.5, 0): least where a <= 0 is free and b is largest.

    On a <= 0 it is -relu(b), least at a = 0 (the disc's widest there): b = sqrt(3)/2. Where a > 0 it is a - b: its
    free minimum (0.5, 0) + (-1, 1)/sqrt(2) has a < 0, so the corner (0, sqrt(3)/2) is the least point of both pieces.
    """
    kernels, biases = [np.eye(2), np.array([[1.0, 0.0], [-1.0, 0.0]])], [np.zeros(2), np.zeros(2)]
    rows, x = np.array([1.0, -1.0]), np.array([0.5, 0.0])
    found = polytopes.exact_minimum(kernels, biases, rows, x, 1.0, "l2")
    assert found == pytest.approx(-np.sqrt(3) / 2, abs=1e-12)
    # A ball within one piece: a - b around (2, 2), and the ball's own least point.
    found = polytopes.exact_minimum(kernels, biases, rows, np.array([2.0, 2.0]), 1.0, "l2")
    assert found == pytest.approx(-np.sqrt(2), abs=1e-12)
    # A ball where nothing depends on the input.
    assert polytopes.exact_minimum(kernels, biases, rows, np.array([-2.0, -2.0]), 1.0, "l2") == 0


def all_signs_are_known(network, x, epsilon, norm):
    graph = PolytopeGraph(network)
    (chain,) = DualBounds(graph, norm, "wong-kolter").chains(x[None], np.array([epsilon], "float32"))
    return all(
        not np.any((chain.lower[source] < 0) & (chain.upper[source] > 0))
        for source in (graph.nodes[index].sources[0] for index in graph.relus)
    )


def points_of_the_ball(rng, x, radius, norm, count):
    """Random points inside, on the sphere and at corners, as float32, none outside."""
    shape = (count, *x.shape)
    if norm == "linf":
        delta = rng.uniform(-1, 1, shape)
        corners = rng.random(count) < 0.5
        delta[corners] = np.sign(delta[corners])
    else:
        delta = rng.standard_normal(shape)
        delta /= np.linalg.norm(delta.reshape(count, -1), axis=1).reshape(-1, *[1] * x.ndim)
        delta *= rng.choice([1.0, 1.0, 0.5], count).reshape(-1, *[1] * x.ndim)
    return (x + delta * radius * (1 - 1e-6)).astype("float32")


# Of each network kind and norm: two balls with so many random points, and descents whose every step counts. Over all
# kinds that is more than 10^5 points of either sort in each norm.
SAMPLED, DESCENTS, STEPS = 5000, 64, 25


def test_as_many_points_as_promised():
    assert 2 * SAMPLED * len(polytopes.NETWORKS) >= 1e5
    assert 2 * 3 * DESCENTS * STEPS * len(polytopes.NETWORKS) >= 1e5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", sorted(polytopes.NETWORKS))
def test_no_point_of_the_ball_is_below_the_bound(kind, norm):
    """Two classes' logits as float32 computes them, at sampled and descended points: without any tolerance."""
    rng = np.random.default_rng(len(kind))
    network = polytopes.randomised(polytopes.NETWORKS[kind](), rng, 1.3)
    model = proven(network, norm=norm, slope="adaptive")
    radius = {"linf": 0.1, "l2": 0.4}[norm]
    x = rng.standard_normal((2, *network.input_shape[1:])).astype("float32")
    bounds = np.asarray(model.margin_lower_bounds(x, radius))
    logits = tf.function(lambda x: model._logits(x, training=False), autograph=False, reduce_retracing=True)
    predicted = np.argmax(logits(x), axis=1)
    points = np.stack([points_of_the_ball(rng, point, radius, norm, SAMPLED) for point in x])
    sampled = np.asarray(logits(points.reshape(-1, *x.shape[1:]))).reshape(2, SAMPLED, 3)
    own = np.take_along_axis(sampled, predicted[:, None, None], axis=2)
    worst = np.minimum((own - sampled).min(axis=1), descended(logits, x, points[:, :DESCENTS], predicted, radius, norm))
    assert np.all((bounds <= worst) | (np.arange(3) == predicted[:, None]))


def descended(logits, x, starts, predicted, radius, norm):
    """`[n, 3]`: the least margins over each class seen in steepest descents of them from starts `[n, k, ...]`."""
    n, k = starts.shape[:2]
    # Rows by input, start and class that the margin is taken over.
    centre = tf.constant(np.repeat(x, 3 * k, axis=0))
    point = tf.constant(np.repeat(starts.reshape(-1, *x.shape[1:]), 3, axis=0))
    own = tf.one_hot(np.repeat(predicted, 3 * k), 3)
    rival = tf.one_hot(np.tile(np.arange(3), n * k), 3)
    axes = list(range(1, x.ndim))

    def margin_of(point):
        return tf.reduce_sum((own - rival) * logits(point), axis=1)

    @tf.function(autograph=False)
    def step(point, size):
        with tf.GradientTape() as tape:
            tape.watch(point)
            margin = margin_of(point)
        gradient = tape.gradient(margin, point)
        if norm == "linf":
            delta = tf.clip_by_value(point - centre - size * radius * tf.sign(gradient), -radius, radius)
        else:
            length = tf.sqrt(tf.reduce_sum(gradient**2, axes, keepdims=True)) + 1e-12
            delta = point - centre - size * radius * gradient / length
            delta *= tf.minimum(1.0, radius / (tf.sqrt(tf.reduce_sum(delta**2, axes, keepdims=True)) + 1e-12))
        return centre + delta * (1 - 1e-6), margin

    seen = []
    for size in np.linspace(0.5, 0.02, STEPS).astype("float32"):
        point, margin = step(point, size)
        seen.append(margin)
    seen = np.stack([*seen, margin_of(point)])
    return seen.reshape(-1, n, k, 3).min(axis=(0, 2))


@pytest.mark.parametrize("kind", sorted(polytopes.NETWORKS))
def test_the_default_is_never_looser_than_the_paper(kind):
    rng = np.random.default_rng(3)
    network = polytopes.randomised(polytopes.NETWORKS[kind](), rng, 1.5)
    x = rng.standard_normal((4, *network.input_shape[1:])).astype("float32")
    graph = PolytopeGraph(network)
    for norm, radius in (("linf", 0.1), ("l2", 0.3)):
        paper, tight = (
            np.asarray(proven(network, norm=norm, slope=slope).margin_lower_bounds(x, radius))
            for slope in ("wong-kolter", "adaptive")
        )
        assert np.all(tight >= paper)
        radii = np.full(4, radius, "float32")
        chains = DualBounds(graph, norm, "adaptive").chains(x, radii)
        (alone,) = DualBounds(graph, norm, "wong-kolter").chains(x, radii)
        for index in (graph.nodes[relu].sources[0] for relu in graph.relus):
            assert np.all(chains[1].lower[index] >= alone.lower[index])
            assert np.all(chains[1].upper[index] <= alone.upper[index])


@pytest.mark.parametrize("kind", ["patches", "patches of patches"])
def test_following_patches_changes_nothing(kind):
    rng = np.random.default_rng(4)
    network = polytopes.randomised(polytopes.NETWORKS[kind](), rng)
    x = rng.standard_normal((3, *network.input_shape[1:])).astype("float32")
    graph = PolytopeGraph(network)
    radius = np.full(3, 0.2, "float32")
    rows = np.eye(3, dtype="float32")
    for norm in NORMS:
        by_patches = DualBounds(graph, norm, "adaptive", counted=False)
        whole = DualBounds(graph, norm, "adaptive", counted=False)
        assert by_patches._patches
        whole._patches = {}
        for one, other in zip(by_patches.chains(x, radius), whole.chains(x, radius), strict=True):
            for index in graph.relus:
                source = graph.nodes[index].sources[0]
                np.testing.assert_allclose(one.lower[source], other.lower[source], atol=1e-5)
                np.testing.assert_allclose(one.upper[source], other.upper[source], atol=1e-5)
            np.testing.assert_allclose(
                by_patches.margins(one, rows).kept, whole.margins(other, rows).kept, atol=1e-5, rtol=1e-5
            )


class TestRounding:
    def test_values_of_float32_stay_within_what_is_paid(self):
        """Large offsets that cancel: float32 is off by more than the exact bound allows, and the budget covers it."""
        rng = np.random.default_rng(5)
        network = polytopes.sequential((300,), layers.Dense(200, activation="relu"), layers.Dense(2))
        polytopes.randomised(network, rng)
        kernel, bias, last, end = network.get_weights()
        # A common offset of 1000, taken away again by the biases.
        x = (1000.0 + rng.standard_normal((6, 300))).astype("float32")
        bias = (-x.astype(np.float64).mean(axis=0) @ kernel.astype(np.float64) + 0.5).astype("float32")
        network.set_weights([kernel, bias, last, end])
        radius = np.float32(1e-6)
        counted = np.asarray(proven(network).margin_lower_bounds(x, radius))
        exact = np.asarray(proven(network, rounding=False).margin_lower_bounds(x, radius))
        logits64 = polytopes.in_float64(network, x.astype(np.float64))
        margins64 = logits64.max(axis=1, keepdims=True) - logits64
        rival = np.argmin(logits64, axis=1)
        index = np.arange(6), rival
        assert np.all(counted[index] <= margins64[index])
        assert np.any(exact[index] > margins64[index]), "the case is too easy: without a budget it must break"

    def test_adding_up_the_coefficients_of_many_branches_is_paid_for(self):
        """A value that n layers use gets a sum of n coefficients: 2 (n - 1) u, at either end of a map."""
        x = keras.Input((3,))
        graph = PolytopeGraph(keras.Model(x, layers.Add()([layers.Dense(2)(x) for _ in range(30)])))
        shares = Shares(graph)
        for index, node in enumerate(graph.nodes):
            if node.kind == "affine":
                assert shares.affine[index] >= 2 * gamma(node.map.roundings[0]) + (10 + 4 * 29) * UNIT_ROUNDOFF

    def test_flushed_weights_of_a_wide_map_are_paid_for(self):
        """Of 2^20 weights that meet in an entry, each takes 2^-126 times a value and a coefficient, four times over."""
        graph = PolytopeGraph(polytopes.sequential((2**20,), layers.Dense(2)))
        needed = 4 * 2.0**-126 * 2**20 * LARGEST_VALUE * LARGEST_COEFFICIENTS
        assert Shares(graph).flushed >= needed * len(graph.nodes)

    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e30])
    def test_any_scale_of_weights(self, scale):
        rng = np.random.default_rng(6)
        network = polytopes.randomised(polytopes.NETWORKS["dense"](), rng, scale)
        x = rng.standard_normal((20, 5)).astype("float32")
        model = proven(network)
        bounds = np.asarray(model.margin_lower_bounds(x, 0.01))
        assert np.all(np.isfinite(bounds))
        logits, computed = polytopes.in_float64(network, x.astype(np.float64)), model._logits(x, False)
        predicted = np.asarray(predicted_class(computed))  # of a row that overflowed, no `argmax` is sure
        margins = logits[np.arange(20), predicted][:, None] - logits
        itself = np.arange(3) == predicted[:, None]
        assert np.all((bounds <= margins) | (bounds == -FLOAT_MAX) | itself)
        overflowed = ~np.isfinite(computed).all(axis=1)
        assert np.all((bounds == -FLOAT_MAX) | itself | ~overflowed[:, None])
        assert model.verdicts(x).rejected[overflowed].all()

    def test_ties_and_symmetric_classes_are_never_certified(self):
        network = polytopes.randomised(polytopes.NETWORKS["dense"](), np.random.default_rng(7))
        *rest, kernel, bias = network.get_weights()
        kernel[:, 1], bias[1] = kernel[:, 0], bias[0]
        kernel[:, 2], bias[2] = -5.0, -5.0
        network.set_weights([*rest, kernel, bias])
        x = np.random.default_rng(8).standard_normal((50, 5)).astype("float32")
        verdicts = proven(network, epsilon=1e-7, radius_steps=1).verdicts(x)
        assert verdicts.rejected.all()
        assert not verdicts.radius.any()

    def test_what_could_overflow_is_not_certified(self):
        network = polytopes.randomised(polytopes.NETWORKS["dense"](), np.random.default_rng(9))
        model = proven(network)
        x = np.full((1, 5), 1e30, "float32")
        bounds = np.asarray(model.margin_lower_bounds(x))
        assert sorted(bounds[0])[:2] == [-FLOAT_MAX] * 2
        assert model.verdicts(x).rejected.all()

    def test_the_price_is_stated(self):
        network = polytopes.randomised(polytopes.NETWORKS["dense"](), np.random.default_rng(10))
        model = proven(network)
        slack = np.asarray(model.rounding_slack(np.zeros((2, 5), "float32"), 0.05))
        assert np.all(slack >= 0)
        assert 1e-7 < slack.max() < 1e-4


@pytest.fixture(scope="module")
def case(reference_dir):
    return np.load(reference_dir / "kw" / "mnist_2c2f_linf_0.1.npz")


@pytest.fixture(scope="module")
def network(case):
    network = defended.zoo.cnn_2c2f(activation="relu")
    names = [f"{layer}_{part}" for layer in ("conv1", "conv2", "dense1", "dense2") for part in ("kernel", "bias")]
    network.set_weights([case[name] for name in names])
    return network


class TestReference:
    """Wong and Kolter's own net, and the bounds that their code computed."""

    def test_the_papers_slope_gives_their_numbers(self, case, network, mnist):
        x, theirs = mnist.x_test[:200], case["margin_lower_bounds"]
        model = proven(network, slope="wong-kolter")
        np.testing.assert_array_equal(np.argmax(model(x[:20])[:, :10], axis=1), case["prediction"][:20])
        bounds = np.asarray(model.margin_lower_bounds(x, 0.1))
        exact = np.asarray(proven(network, slope="wong-kolter", rounding=False).margin_lower_bounds(x, 0.1))
        np.testing.assert_allclose(exact, theirs, atol=1e-4)
        assert np.all(bounds <= exact + 1e-5)
        assert np.max(exact - bounds) < 0.03
        rivals = np.arange(10) != case["prediction"][:, None]
        assert np.mean(np.where(rivals, bounds, 1.0).min(axis=1) > 0) == 0.96
        twice = np.asarray(model.margin_lower_bounds(x[:50], 0.2))
        assert np.mean(np.where(rivals[:50], twice, 1.0).min(axis=1) > 0) == 0.0

    def test_the_default_is_tighter(self, case, network, mnist):
        bounds = np.asarray(proven(network).margin_lower_bounds(mnist.x_test[:20], 0.1))
        paper = np.asarray(proven(network, slope="wong-kolter").margin_lower_bounds(mnist.x_test[:20], 0.1))
        assert np.all(bounds >= paper)
        assert np.mean(bounds - case["margin_lower_bounds"][:20]) > 0.1


def test_gradients_reach_every_weight():
    """What training differentiates is smooth, and depends on all layers."""
    network = polytopes.randomised(polytopes.residual(), np.random.default_rng(11))
    x = np.random.default_rng(12).standard_normal((2, 6, 6, 2)).astype("float32")
    for training_bounds in ("dual", "crown-ibp", "interval", "projected"):
        model = PolytopeNet(network, epsilon=0.1, training_bounds=training_bounds)
        with tf.GradientTape() as tape:
            scores = model(x, training=True)
            loss = keras.ops.sum(scores[:, -1])
        for variable, gradient in zip(
            network.trainable_variables, tape.gradient(loss, network.trainable_variables), strict=True
        ):
            assert gradient is not None, variable.path
            assert np.all(np.isfinite(gradient))
