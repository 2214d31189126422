"""An attempt to break the certificate: no float32 input in a certified ball may get another answer.

Distances are exact: a point counts only where its distance, computed in float64 with a margin, is within the radius.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import exactly
from keras import layers
from nets import NETWORKS, any_inputs, finalized, near_the_boundary, reweighted, sequential, set_weights

from defended import GloroNet
from defended.gloro import graph, layer_rules, lipschitz_certificate, operators, rules
from defended.layers import MinMax
from defended.margins import Leader, leader


def steepest(model, x, answer):
    """For each rival the direction, for the activations at x, in which it gains most on the answer."""
    slopes = model._compiled("slopes", lambda x: slopes_of_logits(model, x), of_inputs=True)(tf.constant(x)).numpy()
    return list(slopes - slopes[answer, np.arange(len(x))])


def slopes_of_logits(model, x):
    """The gradient of each logit: `[m, n, ...]`."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        logits = tf.unstack(model._logits(x, training=False), num=model.num_classes, axis=1)
    return tf.stack([tape.gradient(logit, x) for logit in logits])


def directions_from(model, x, answer, rng, count):
    """Steepest, along single coordinates, along x itself and random ones: `[k, n, d]` unit vectors in float64."""
    flat = x.reshape(len(x), -1)
    found = [part.reshape(flat.shape) for part in steepest(model, x, answer)]
    peaks = [np.where(np.abs(part) == np.abs(part).max(axis=1, keepdims=True), part, 0) for part in found]
    dense = rng.standard_normal((count, *flat.shape))
    sparse = dense[: count // 2] * (rng.random((count // 2, *flat.shape)) < 0.1)
    found = np.concatenate([np.stack([*found, *peaks, flat, -flat]).astype("float64"), dense, sparse])
    size = np.abs(found).max(axis=2, keepdims=True)
    found /= np.where(size > 0, size, 1)
    length = np.linalg.norm(found, axis=2, keepdims=True)
    return found / np.where(length > 0, length, 1)


def on_the_sphere(x, directions, radii):
    """Float32 points `[k, n, d]` at the radius in these directions, drawn inwards until they are within it."""
    start = x.reshape(len(x), -1).astype("float64")
    share = np.ones((*directions.shape[:2], 1))
    for pull in 2.0 ** np.arange(-25, 0, 3):
        with np.errstate(over="ignore"):
            points = (start + share * radii[:, None] * directions).astype("float32")
            distance = np.linalg.norm(points.astype("float64") - start, axis=2) * (1 + 1e-12)
        outside = ~(distance <= radii)
        if not outside.any():
            break
        share[outside] *= 1 - pull
    return points, distance <= radii


def violations(model, x, rng, shares=(1.0, 0.9999999, 0.5), count=12):
    """How many points of certified balls get another answer, and how many points were tried.

    The radius is `certified_radius`. A point of the ball counts as answered where anything is certified there: what is
    rejected at every epsilon may have another largest logit, by rounding.
    """
    shape = model.input_shape[1:]
    x = np.concatenate([x, any_inputs(rng, shape)])
    radii = np.asarray(model.certified_radius(x)).astype("float64")
    x, radii = x[radii > 0], radii[radii > 0]
    if not len(x):
        return 0, 0
    classify = model._compiled("logits", lambda x: model._logits(x, training=False), of_inputs=True)
    logits = classify(tf.constant(x)).numpy()
    answer = logits.argmax(axis=1)
    broken, tried = int(not_strictly(logits, answer).sum()), len(x)
    directions = directions_from(model, x, answer, rng, count)
    for share in shares:
        points, inside = on_the_sphere(x, directions, share * radii)
        for some, valid in zip(np.array_split(points, 4), np.array_split(inside, 4), strict=True):
            flat = some.reshape(-1, *shape)
            answered = np.asarray(model.certified_radius(flat)) > 0
            other = classify(tf.constant(flat)).numpy().argmax(axis=1) != np.tile(answer, len(some))
            wrong = (answered & other).reshape(valid.shape)
            broken += int((wrong & valid).sum())
            tried += int(valid.sum())
    return broken, tried


def not_strictly(logits, answer):
    """Where the answer's logit is not above all others, or some logit is no number."""
    top = np.take_along_axis(logits, answer[:, None], axis=1)
    return np.sum(top > logits, axis=1) < logits.shape[1] - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_no_point_of_a_certified_ball_gets_another_answer(name):
    rng = np.random.default_rng(10)
    total = 0
    for scale in (0.3, 1e-8, 1e8, "mixed"):
        try:
            model = reweighted(name, rng, scale)
        except ValueError:  # products of its weights may overflow
            continue
        broken, tried = violations(model, near_the_boundary(model, 90, rng), rng)
        assert broken == 0, scale
        total += tried
    assert total > 15_000


def collinear(rng, d):
    """Classes whose columns differ by a millionth, so that K_ij is tiny and rounding is not."""
    column = rng.standard_normal((d, 1))
    return column + 1e-6 * rng.standard_normal((d, 4)), rng.standard_normal(4) * 1e-6


def equal_columns(rng, d):
    kernel = rng.standard_normal((d, 4))
    kernel[:, 1] = kernel[:, 0]
    return kernel, [0, 1e-7, 0, 0]


def huge_bias(rng, d):
    return rng.standard_normal((d, 4)), 1e6 + rng.standard_normal(4)


LINEAR = {
    "plain": lambda rng, d: (rng.standard_normal((d, 4)), rng.standard_normal(4)),
    "collinear": collinear, "equal columns": equal_columns, "huge bias": huge_bias,
}  # fmt: skip


@functools.cache
def linear_net(d):
    """The one linear classifier of d inputs, whose graphs all tests use; each gives it weights and finalizes it."""
    return GloroNet(sequential((d,), layers.Dense(4)), epsilon=1e-6)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(("d", "offset"), [(2, 0), (2, 1e4), (64, 1), (512, 0), (512, 1e4)])
def test_linear_classifiers_attain_their_constants_and_hold(kind, d, offset):
    """K is attained along `w_i - w_j`, so the certificate has nothing to spare but what it pays for rounding."""
    rng = np.random.default_rng(11)
    model = linear_net(d)
    layer = model.network.layers[0]
    set_weights(layer, *LINEAR[kind](rng, d))
    model.finalize()
    kernel = exactly(np.asarray(layer.kernel))
    squares = ((kernel[:, :, None] - kernel[:, None, :]) ** 2).sum(axis=0)
    assert np.all(exactly(model.margin_lipschitz) ** 2 >= squares), "no constant is below the exact one"
    broken, tried = violations(model, near_the_boundary(model, 60 if d > 64 else 400, rng, offset), rng)
    assert broken == 0
    assert tried > 60


def test_without_the_budget_rounding_really_flips_answers():
    """The search has teeth: near 1e4 it breaks a certificate that counts logits as exact, and not the one that pays."""
    network = sequential((512,), layers.Dense(2))
    kernel = np.random.default_rng(12).standard_normal((512, 2))
    kernel -= kernel.mean(axis=0)
    set_weights(network.layers[0], 1 + 0.1 * kernel, [0, 0])
    across = (kernel[:, 0] - kernel[:, 1]) / np.linalg.norm(kernel[:, 0] - kernel[:, 1])
    broken, tried, flipped = [], [], []
    for counted in (False, True):
        rng = np.random.default_rng(13)
        model = finalized(network, epsilon=0.05, rounding=counted)
        x = near_the_boundary(model, 150, rng, offset=1e4)
        far = (x[:100] + np.linspace(-300, 300, 100)[:, None] * across).astype("float32")
        x = np.concatenate([x, far])
        found = violations(model, x, rng)
        broken.append(found[0])
        tried.append(found[1])
        # Two answers to points that are within epsilon of each other.
        verdicts = model.verdicts(x)
        x, label = x[~verdicts.rejected], verdicts.label[~verdicts.rejected]
        points, inside = on_the_sphere(x, directions_from(model, x, label, rng, 8), np.full(len(x), 0.05))
        again = model.verdicts(points.reshape(-1, 512), batch_size=4096).label.reshape(inside.shape)
        flipped.append(int(np.sum((again >= 0) & (again != label) & inside)))
    assert broken[0] > 100
    assert flipped[0] > 10
    assert broken[1] == flipped[1] == 0
    assert tried[1] > 5000


# What no rule describes.


def broadcast(merge):
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2)(merge()([x, layers.Dense(1)(x)])))


def second_output():
    x = keras.Input((4,))
    inner = keras.Model(x, [layers.Dense(4)(x), layers.Dense(4)(x)])
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2)(inner(x)[1]))


@pytest.mark.parametrize("merge", [layers.Add, layers.Subtract, layers.Average])
def test_sums_that_broadcast_are_refused(merge):
    """An entry that is added to four others moves all of them: the sum of the constants is too small."""
    with pytest.raises(ValueError, match=r"broadcasts its inputs, of shapes \[\(4,\), \(1,\)\]"):
        GloroNet(broadcast(merge), epsilon=0.1)


def test_a_nested_model_with_two_outputs_is_refused():
    with pytest.raises(ValueError, match="has 2 outputs"):
        GloroNet(second_output(), epsilon=0.1)


@pytest.mark.parametrize("layer", [0, 2])
def test_low_rank_weights_are_not_certified_as_the_kernel_alone(layer):
    network = sequential((4,), layers.Dense(4), MinMax(), layers.Dense(2))
    model = finalized(network)
    network.layers[layer].enable_lora(2)
    network.layers[layer].lora_kernel_b.assign(np.full((2, network.layers[layer].units), 50.0))
    assert not model.is_final
    with pytest.raises(ValueError, match="low-rank or quantised"):
        model.finalize()


def test_quantised_weights_are_not_certified():
    network = sequential((4,), layers.Dense(4), MinMax(), layers.Dense(2))
    model = finalized(network)
    for layer in (network.layers[0], network.layers[2]):
        layer.quantize("int8")
    with pytest.raises(ValueError, match="low-rank or quantised"):
        model.finalize()


# Faults that other implementations have.


@keras.saving.register_keras_serializable(package="tests")
class Tripled(keras.layers.Layer):
    def call(self, inputs):
        return 3 * inputs


def scaled_dense(scale):
    network = sequential((6,), layers.Dense(6, use_bias=False), MinMax(), layers.Dense(3, use_bias=False))
    rng = np.random.default_rng(18)
    for layer in (network.layers[0], network.layers[2]):
        set_weights(layer, scale * np.linalg.qr(rng.standard_normal((6, 6)))[0][:, : layer.units])
    return network


def tied():
    network = sequential((6,), layers.Dense(3))
    kernel = np.random.default_rng(19).standard_normal((6, 3))
    kernel[:, 1] = kernel[:, 0]
    set_weights(network.layers[0], kernel, [1, 1, 0])
    return network


def with_layer(layer):
    network = sequential((6,), layers.Dense(6, use_bias=False), layer, layers.Dense(3))
    set_weights(network.layers[0], np.eye(6))
    return network


def with_activation():
    network = sequential((6,), layers.Dense(6, activation=layers.LeakyReLU(negative_slope=5.0)), layers.Dense(3))
    set_weights(network.layers[0], np.eye(6), np.zeros(6))
    return network


def residual():
    x = keras.Input((6,))
    half = layers.Dense(6, use_bias=False)
    network = keras.Model(x, layers.Dense(3)(layers.Add()([x, half(x)])))
    set_weights(half, 0.5 * np.eye(6))
    return network


def product(self, inputs, root):
    return np.prod(inputs) if len(inputs) > 1 else inputs[0]


def one_step_of_power_iteration(self, claimed=None):
    return self.lower_estimate(steps=1)


def shrunk(true):
    return lambda matrix, claimed=None: true(matrix) * true(matrix) / (true(matrix) + 1e-4)


def vanishing(true):
    return lambda matrix, claimed=None: true(matrix) if true(matrix) > 1e-2 else 1e-12


BOUND = operators.bound_matrix_norm
FAULTS = {
    "tied logits are certified": (
        tied, lipschitz_certificate, "leader", lambda logits: Leader(*leader(logits)[:2], logits < leader(logits).top)
    ),
    "an epsilon in the normalisation": (lambda: scaled_dense(1e-4), operators, "bound_matrix_norm", shrunk(BOUND)),
    "tiny weights certify all": (lambda: scaled_dense(1e-3), operators, "bound_matrix_norm", vanishing(BOUND)),
    "unknown layers count as 1": (
        lambda: with_layer(Tripled()), graph, "rule_for",
        lambda layer, shape: rules.exact_rule() if type(layer) is Tripled else rules.rule_for(layer, shape),
    ),
    "the activation is ignored": (with_activation, layer_rules, "activation_rule", lambda layer: None),
    "branches are multiplied": (residual, rules.LipschitzRule, "_merged", product),
    "power iteration as a bound": (
        lambda: with_layer(layers.Dense(6, kernel_initializer=keras.initializers.RandomNormal(seed=1))),
        operators.DenseOperator, "bound", one_step_of_power_iteration,
    ),
}  # fmt: skip


SEEN_BEFORE = {
    "tied logits are certified": "verdicts are not evaluated as they were proven",
    "unknown layers count as 1": "moves two inputs further apart",
}
"""Faults that the comparison at `finalize` finds by itself."""


@pytest.mark.parametrize("name", FAULTS)
def test_the_search_finds_the_faults_of_other_implementations(name, monkeypatch):
    """Planted here, each is found; without it the network is refused or nothing is found."""
    make, owner, attribute, fault = FAULTS[name]

    def search():
        rng = np.random.default_rng(20)
        return violations(finalized(make()), rng.standard_normal((300, 6)).astype("float32"), rng)

    if "unknown" in name:
        with pytest.raises(ValueError, match="no known Lipschitz constant"):
            search()
    else:
        assert search()[0] == 0
    monkeypatch.setattr(owner, attribute, fault)
    if name in SEEN_BEFORE:
        with pytest.raises(ValueError, match=SEEN_BEFORE[name]):
            search()
    monkeypatch.setattr(GloroNet, "_check", lambda self, thorough=True: None)
    assert search()[0] > 0
