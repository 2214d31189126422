"""Float32 errs by no more than was proven, however it is evaluated: against exact integer arithmetic."""

import math
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import BITS, LAYERS, exact_logits, exactly
from keras import layers
from nets import NETWORKS, SCALES, any_inputs, randomised, sequential, set_weights
from scipy import special
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from defended import GloroNet
from defended.gloro import layer_rules, rounding
from defended.gloro.certificate import lasting, rounding_budget
from defended.gloro.graph import Proof
from defended.layers import LiResNetBlock, MinMax
from defended.serving import export
from defended.serving.artefacts.cpp_loader import CppSession

U, TINY = 2.0**-24, 2.0**-126


def largest_error(model, x, *evaluations):
    """The largest error of a difference of logits in units of its proven bound, on inputs that the proof reaches.

    Of all evaluations, each the logits of `x`; by default the eager one.
    """
    proof = model._graph.prove()
    norms = np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1) * (1 + 1e-12)
    reached = norms <= proof.limit
    if not reached.any():
        return 0.0
    exact = differences(exact_logits(model.network, x[reached]))
    bounds = proof.errors[0] + proof.errors[1] * norms[reached, None, None]
    off_diagonal = ~np.eye(model.num_classes, dtype=bool) & np.isfinite(bounds)
    allowed, worst = exactly(bounds[off_diagonal]), 0.0
    for logits in evaluations or [model._logits(x, training=False)]:
        found = np.asarray(logits)[reached]
        assert np.isfinite(found).all(), "what may overflow is beyond the limit"
        error = np.abs(differences(exactly(found)) - exact)[off_diagonal]
        worst = max(worst, max(error / allowed, default=0.0))
    return worst


def differences(values):
    return values[:, :, None] - values[:, None, :]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_evaluation_strays_further_than_proven(name):
    """Weights and inputs of all scales, in one network and mixed: eagerly evaluated, and compiled by XLA."""
    rng = np.random.default_rng(1)
    network = NETWORKS[name]()
    model = GloroNet(network, epsilon=0.1)
    evaluations = [model._logits, tf.function(model._logits, autograph=False, jit_compile=True)]
    worst = {}
    for scale in (*SCALES, "mixed", "mixed"):
        randomised(network, rng, scale)
        x = any_inputs(rng, model.input_shape[1:])
        try:
            worst[scale] = largest_error(model, x, *(evaluate(x, training=False) for evaluate in evaluations))
        except ValueError:  # products of its weights may overflow
            assert scale != 1.0
    assert max(worst.values()) <= 1
    assert worst[1.0] > 1e-5, "a bound a hundred thousand times too large would not be worth a test"


def hidden_flush():
    """Products of 2^-127 are flushed one by one before normalisation enlarges their sum by 1e36."""
    network = sequential((64,), layers.Dense(2, use_bias=False), layers.BatchNormalization(), layers.Dense(2))
    kernel = np.zeros((64, 2))
    kernel[:, 0], kernel[0, 1] = 2.0**-64, 2.0**-60
    set_weights(network.layers[0], kernel)
    set_weights(network.layers[1], [1e35, 1e35], [0, 0], [0, 0], [1, 1])
    set_weights(network.layers[2], np.eye(2), [0, 0])
    return network, np.full((1, 64), 2.0**-63)


def hidden_flush_in_blocks():
    """The sum of 4096 products, each of which is flushed."""
    network = sequential((4096,), layers.Dense(2, use_bias=False), layers.Dense(2))
    kernel = np.zeros((4096, 2))
    kernel[:, 0], kernel[0, 1] = 2.0**-64, 2.0**-54
    set_weights(network.layers[0], kernel)
    set_weights(network.layers[1], np.eye(2), [0, 0])
    return network, np.full((1, 4096), 2.0**-63)


def hidden_overflow_before_normalisation():
    """-inf times 1e-30 is -inf and vanishes in the ReLU; exactly, it is a large positive number."""
    network = sequential(
        (2,), layers.Dense(4, use_bias=False), layers.BatchNormalization(), layers.ReLU(), layers.Dense(2)
    )
    set_weights(network.layers[0], [[-1e30, 1, 1, 0], [1e30, 0, 0, 0]])
    set_weights(network.layers[1], [1e-30, 1, 1, 1], [0] * 4, [0] * 4, [1] * 4)
    set_weights(network.layers[3], [[1, 0], [0, 1e-3], [0, 0], [0, 0]], [0, 0])
    return network, [[1e10, 1.1e10], [1e10, 2e10], [2e10, 1e10]]


def hidden_overflow_in_an_average():
    """The sum of the first branches overflows, the average of all does not: -inf vanishes in the ReLU."""
    x = keras.Input((2,))
    parts = [layers.Dense(2, use_bias=False)(x) for _ in range(32)]
    network = keras.Model(x, layers.Dense(2)(layers.ReLU()(layers.Average()(parts))))
    for i, layer in enumerate(layer for layer in network.layers[:-1] if isinstance(layer, layers.Dense)):
        set_weights(layer, [[1.2e20 if i > 15 else -1e20, 0], [0, 1e20]])
    set_weights(network.layers[-1], np.eye(2), [0, 1])
    return network, [[3e17, 0.0], [-3e17, 1e16]]


def hidden_overflow_in_a_window():
    network = sequential(
        (16, 16, 1),
        layers.Conv2D(2, 1, use_bias=False),
        layers.GlobalAveragePooling2D(),
        layers.ReLU(),
        layers.Dense(2),
    )
    set_weights(network.layers[0], [[[[-1e30, 1e10]]]])
    set_weights(network.layers[3], np.eye(2), [1, 0])
    return network, np.stack([np.full((16, 16, 1), 3e6), np.full((16, 16, 1), -3e6)])


def flushed_factor(residual_scale, branch, affine):
    """A product of three factors vanishes if the first two are multiplied first, and only then."""

    def make():
        network = sequential((1, 1, 2), LiResNetBlock(1, residual_scale), layers.Flatten(), layers.Dense(2))
        set_weights(network.layers[0], [[[[0, branch], [branch, 0]]]], [affine, affine], [0, 0])
        set_weights(network.layers[2], np.eye(2), [0, 0])
        return network, [[[[1.0, 0.5]]], [[[0.5, 1.0]]]]

    return make


def flushed_normalisation():
    """gamma / sqrt(variance) is subnormal, and the mean makes up for it."""
    network = sequential((2,), layers.BatchNormalization(), layers.Dense(2))
    set_weights(network.layers[0], [1e-30, 1e-30], [0, 0], [1e35, -1e35], [1e20, 1e20])
    set_weights(network.layers[1], np.eye(2), [0, 0])
    return network, [[1.0, 0.5]]


def flushed_gamma():
    """gamma is subnormal, and a small variance and the next layer make it large."""
    network = sequential((2,), layers.BatchNormalization(epsilon=1e-8), layers.ReLU(), layers.Dense(2))
    set_weights(network.layers[0], [2.0**-127, 2.0**-127], [0, 0], [0, 0], [0, 0])
    set_weights(network.layers[2], 2.0**100 * np.eye(2), [0, 0])
    return network, [[1.0, 0.5]]


def large_bias():
    """All of the error is that of adding the bias, in a last layer with an activation."""
    network = sequential((2,), layers.Dense(2, activation="relu"))
    set_weights(network.layers[0], 1e-6 * np.eye(2), [2.0**20, 2.0**20])
    return network, np.random.default_rng(5).uniform(1e4, 1e5, (50, 2))


def long_before_short():
    """The additions of the first layer all lose, and the later ones have none to speak of."""
    short = [layers.ReLU(), layers.Dense(2, use_bias=False), layers.ReLU(), layers.Dense(2, use_bias=False)]
    network = sequential((256,), layers.Dense(2, use_bias=False), *short)
    set_weights(network.layers[0], np.stack([np.ones(256), np.zeros(256)], axis=1))
    set_weights(network.layers[2], np.eye(2))
    set_weights(network.layers[4], np.eye(2))
    return network, np.full((1, 256), 1 + 2.0**-17 - 2.0**-23)


@keras.saving.register_keras_serializable(package="tests")
class Shift(keras.layers.Layer):
    def call(self, inputs):
        return inputs + 1e6

    def lipschitz_bound(self):
        return 1.0


LAYERS[Shift] = lambda layer, value: value + 10**6 * (1 << BITS)


def shifted():
    """An activation of the user's own that is large at 0: x + 1e6 loses what x was."""
    network = sequential((2,), layers.Dense(2, use_bias=False, activation=Shift()), layers.Dense(2))
    set_weights(network.layers[0], np.eye(2))
    set_weights(network.layers[1], [[1, -1], [-1, 1]], [0, 0])
    return network, [[0.01, -0.011]]


DEGENERATE = {
    "flush": hidden_flush, "flush in blocks": hidden_flush_in_blocks,
    "overflow before normalisation": hidden_overflow_before_normalisation,
    "overflow in an average": hidden_overflow_in_an_average, "overflow in a window": hidden_overflow_in_a_window,
    "flush of the first factors": flushed_factor(1e-20, 1e-20, 1e37),
    "flush of the outer factors": flushed_factor(1e-20, 1e37, 1e-20),
    "flush of a normalisation": flushed_normalisation, "flush of gamma": flushed_gamma, "shift": shifted,
    "large bias": large_bias, "long before short": long_before_short,
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
def test_what_degenerate_weights_hide(name):
    """Where a proof may forget something: most of these once had an error above the bound, some a wrong answer."""
    network, x = DEGENERATE[name]()
    x = np.asarray(x, "float32")
    model = GloroNet(network, epsilon=1e-30)
    model.finalize()
    compiled = tf.function(lambda x: model._logits(x, training=False), autograph=False)
    assert largest_error(model, x, model._logits(x, training=False), compiled(x)) <= 1
    verdicts = model.verdicts(x)
    truth = np.argmax(exact_logits(network, x), axis=1)
    assert np.array_equal(verdicts.label[~verdicts.rejected], truth[~verdicts.rejected])


@pytest.mark.parametrize(("merge", "largest"), [("sum", 1 + 2.0**-42), ("mean", (1 + 2.0**-42) / 2049)])
def test_adding_up_many_bounds_in_float64_loses_none_of_them(merge, largest):
    """Added to 1 one after the other, 2048 numbers of 2^-53 vanish."""
    small = rounding.Evaluated(*[rounding.affine(2.0**-53, 2.0**-53)] * 3)
    one = rounding.Evaluated(*[rounding.affine(1.0, 1.0)] * 3)
    added = rounding.merged([one] + 2048 * [small], merge, 1)
    for part in added:
        assert (part >= largest).all()


def test_each_number_that_is_made_may_be_flushed():
    exact = rounding.Evaluated(rounding.affine(), rounding.affine(), rounding.affine())
    assert rounding.merged(3 * [exact], "mean", 4).error[0] >= 3 * 2 * TINY
    # What is flushed early goes through the roundings that follow.
    roundings = 2**22
    enlarged = 1 + rounding.gamma(roundings)
    assert rounding.linear(exact, 0.0, 1e30, 0.0, roundings, 1, (1, 1)).error[0] >= enlarged * 1e30 * TINY
    assert rounding.function(exact, 1.0, 0.0, roundings, 1, 0.0).error[0] >= enlarged * roundings * TINY


def test_weights_whose_products_overflow_are_refused():
    network, _ = flushed_factor(1e25, 1e25, 1e-35)()
    with pytest.raises(ValueError, match="may overflow"):
        GloroNet(network, epsilon=0.1).finalize()


def test_a_variance_that_float32_flushes_is_refused():
    network = sequential((2,), layers.BatchNormalization(epsilon=0.0), layers.ReLU(max_value=3.0), layers.Dense(2))
    set_weights(network.layers[0], [1e-20, 1e-20], [0, 0], [0, 0], [1e-40, 1e-40])
    with pytest.raises(ValueError, match="the moving variance of"):
        GloroNet(network, epsilon=0.1).finalize()


def test_the_budget_covers_every_pair_on_every_norm():
    """`K (t0 + t1 |x|) >= c0 + c1 |x|` for the norm as float32 computes it, far smaller constants included."""
    rng = np.random.default_rng(2)
    off = ~np.eye(6, dtype=bool)
    for size in (1, 784, 150528):
        margins, c0, c1 = (10.0 ** rng.uniform(low, 0, (6, 6)) * off for low in (-8, -12, -12))
        proof = Proof(1.0, margins, (c0, c1), 1e30)
        constants, (t0, t1, _) = (part.astype("float64") for part in rounding_budget(proof, size))
        for norm in (0.0, 1e-10, 1.0, 1e10):
            # The computed norm may be low by this much.
            computed = norm / (1 + rounding.gamma(size + 2)) ** 0.5
            assert np.all((constants * (t0 + t1 * computed))[off] >= (c0 + c1 * norm)[off])
        assert np.all(constants[off] >= margins[off])


def test_an_input_stays_answered_within_its_availability_radius():
    """A linear net, whose radius falls as fast as it may, moved to where rounding costs more than at the input."""
    rng = np.random.default_rng(8)
    network = sequential((64,), layers.Dense(2))
    kernel = rng.normal(size=64)
    set_weights(network.layers[0], np.stack([kernel, -kernel], axis=1), [900.0 * np.linalg.norm(kernel), 0])
    model = GloroNet(network, epsilon=0.5)
    model.finalize()
    away = -kernel / np.linalg.norm(kernel)
    # The margin is 2 (x . kernel) + 900 |kernel|: the first class' up to 450 units in this direction.
    x = (np.linspace(447, 449.4, 200)[:, None] * away).astype("float32")
    found = model.audit(x)
    radius, room = (found[name].astype("float64") for name in ("certified_radius", "availability_radius"))
    assert (room > 0).sum() > 100
    assert (room < radius - 0.5).all()
    moved = [(x + distance[:, None] * away).astype("float32") for distance in (room, radius - 0.5)]
    apart = np.linalg.norm(moved[0].astype("float64") - x, axis=1)
    held = (apart < room) & (room > 0)
    assert held.sum() > 20
    assert not model.verdicts(moved[0]).rejected[held].any()
    assert model.verdicts(moved[1]).rejected[radius > 0.5].any()


def test_the_availability_radius_counts_rounding_at_both_ends():
    """By exact rational arithmetic: the radius at any point within it, with all errors as large as proven."""
    rng = np.random.default_rng(9)
    for size in (3, 784, 150528):
        t0, t1 = (10.0 ** rng.uniform(-9, -2, 2)).astype("float32")
        norm, level = (rng.uniform(0, high, 500).astype("float32") for high in (30, 0.5))
        radius = (level + 10.0 ** rng.uniform(-6, 1, 500)).astype("float32")
        budget = np.array([t0, t1, 1e9], "float32")
        room = np.asarray(lasting(radius, level, budget, norm, size)).astype("float64")
        assert (room > 0).any()
        # Norms that were computed low at x, and too high at the point.
        off = 1 + rounding.gamma(size / 2 + 2)
        price = t0.astype("float64") + t1.astype("float64") * (norm.astype("float64") * off + room)
        computed = (radius - room - price) * (1 - 21 * U) - price * off * (1 + 3 * U)
        assert (computed > level)[room > 0].all()
        assert (room < (radius.astype("float64") - level) / (1 + 2 * t1))[room > 0].all()


# The functions behind the assumption, in float64; the other activations are exact by their integers above.
REFERENCES = {
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(0, z),
    "sigmoid": special.expit,
    "softsign": lambda z: z / (1 + np.abs(z)),
    "hard_sigmoid": lambda z: np.clip(z / 6 + 0.5, 0, 1),
    "soft_shrink": lambda z: z - np.clip(z, -0.5, 0.5),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.2 * z),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_elementary_functions_keep_what_is_assumed_of_them(name):
    """Every 2^13th float32, and closer around 0: eagerly, as a graph that merges it with a Dense layer, and by XLA."""
    spread = np.arange(0, 2**32, 2**13, dtype="uint64").astype("uint32").view("float32")
    z = np.concatenate([spread[np.isfinite(spread)], np.linspace(-30, 30, 2**16, dtype="float32")])
    z = z[: len(z) // 8 * 8].reshape(-1, 8)
    function, rule = keras.activations.get(name), layer_rules._ACTIVATIONS[name]
    dense = sequential((8,), layers.Dense(8, activation=function))
    set_weights(dense.layers[0], np.eye(8), np.zeros(8))
    exact = REFERENCES[name](z.astype("float64"))
    size = np.abs(z.astype("float64"))
    allowed = rounding.gamma(rule.roundings) * (rule.factor * size + rule.at_zero + rule.absolute)
    allowed = np.minimum(allowed, 16 * U * (1 + size)) + (rule.roundings + 1) * TINY
    evaluations = [
        function, tf.function(function, autograph=False), tf.function(function, autograph=False, jit_compile=True),
        tf.function(dense, autograph=False),
    ]  # fmt: skip
    for evaluation in evaluations:
        assert np.all(np.abs(np.asarray(evaluation(z)).astype("float64") - exact) <= allowed)


@pytest.mark.parametrize("layer", [layers.Dense(2, use_bias=False), layers.Conv2D(2, 1, use_bias=False)])
def test_a_long_sum_is_evaluated_in_blocks(layer):
    """One chain of additions would break the bound; no compiler may turn the blocks into one."""
    shape = (1024,) if isinstance(layer, layers.Dense) else (1, 1, 1024)
    network = sequential(shape, layer, *([] if shape == (1024,) else [layers.Flatten()]))
    kernel = np.stack([np.ones(1024), np.zeros(1024)], axis=1)
    set_weights(layer, kernel.reshape(layer.kernel.shape))
    # Above 512, where float32 keeps multiples of 2^-14, each addition of such a number loses almost half of that.
    x = np.full((3, 1024), 1 + 2.0**-15 - 2.0**-22, "float32")
    x[1] *= -1
    x[2, ::2] += 2.0**-14
    chain = np.zeros(3, "float32")
    for column in x.T:
        chain += column
    x = x.reshape(3, *shape)
    model = GloroNet(network, epsilon=0.1)
    assert largest_error(model, x, np.stack([chain, 0 * chain], axis=1)) > 1
    compiled = tf.function(lambda x: model._logits(x, training=False), autograph=False, jit_compile=True)
    graph = tf.function(model._logits, autograph=False)
    found = [evaluate(x, training=False) for evaluate in (model._logits, graph)]
    assert largest_error(model, x, *found, compiled(x)) <= 1
    program = compiled.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    results = [
        re.search(r"= f32\[([\d,]+)\]\S* (dot|convolution|custom-call)\(", line) for line in program.splitlines()
    ]
    sizes = [math.prod(map(int, found.group(1).split(","))) for found in results if found]
    assert sum(sizes) == 8 * 3 * 2, "8 blocks, each with results of its own"


def test_evaluations_never_contradict_each_other(tmp_path):
    """Where two answer, they answer the same; and each is within the proven error of the exact logits."""
    network = sequential(
        (4, 4, 29), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(6),
        layers.BatchNormalization(center=False), MinMax(), layers.Dense(3),
    )  # fmt: skip
    rng = np.random.default_rng(3)
    model = GloroNet(randomised(network, rng), epsilon=1e-3)
    model.finalize()
    x = rng.standard_normal((200, *model.input_shape[1:])).astype("float32")
    x[100:] = x[:100] + 0.3 * (x[100:] - x[:100]) + 100
    scores, labels = zip(*evaluations(model, x, tmp_path).values(), strict=True)
    some, labels = np.r_[0:8, 100:108], np.stack(labels)
    answered = labels >= 0
    assert answered.any(axis=1).all()
    assert np.all(np.where(answered, labels, labels.max(axis=0)) == labels.max(axis=0))
    assert largest_error(model, x[some], *(found[some] for found in scores)) <= 1


def evaluations(model, x, folder):
    """Logits and labels of `x` by every way of evaluating a model."""
    found = {}
    functions = {
        "eager": model.deployed,
        "graph": tf.function(model.deployed, autograph=False),
        "XLA": tf.function(model.deployed, autograph=False, jit_compile=True),
    }
    for way, function in functions.items():
        outputs = function(tf.constant(x))
        found[way] = np.asarray(outputs["scores"]), np.asarray(outputs["label"])
    one = [model.deployed(tf.constant(x[i : i + 1])) for i in range(8)]
    rest = [np.asarray(part[8:]) for part in found["eager"]]
    found["one by one"] = tuple(
        np.concatenate([*(np.asarray(outputs[key]) for outputs in one), part])
        for key, part in zip(("scores", "label"), rest, strict=True)
    )
    path = export(model, folder, sample=x[:32], onnx=False, warm_up=False, serving_files=False)
    with CppSession(path) as session:
        outputs = session.run("audit", {"image": x})
    found["C++ loader"] = outputs["scores"], outputs["label"]
    # This process runs with oneDNN's kernels or without, another one the other way.
    np.save(folder / "x.npy", x)
    environment = {**ENVIRONMENT, "TF_ENABLE_ONEDNN_OPTS": str(int(not IsMklEnabled()))}
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(path), str(folder)], check=True, env=environment)
    with np.load(folder / "found.npz") as outputs:
        assert bool(outputs["onednn"]) != IsMklEnabled()
        found["other kernels"] = outputs["scores"], outputs["label"]
    return found


ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": ""}
ELSEWHERE = """
import sys, numpy as np, tensorflow as tf
from tensorflow.python.util._pywrap_util_port import IsMklEnabled
path, folder = sys.argv[1:]
outputs = tf.saved_model.load(path).signatures["audit"](image=tf.constant(np.load(f"{folder}/x.npy")))
found = {"scores": outputs["scores"], "label": outputs["label"], "onednn": IsMklEnabled()}
np.savez(f"{folder}/found.npz", **found)
"""


def test_biases_count_for_what_they_contribute(monkeypatch):
    """A bias that the next layer takes away is not carried on by the layers after it; the bound stays one."""
    rng = np.random.default_rng(6)
    network = sequential((20,), *(part for _ in range(5) for part in (layers.Dense(20), MinMax())), layers.Dense(3))
    randomised(network, rng)
    for layer in network.layers[:-1:4]:
        layer.bias.assign(1e4 * layer.bias)
    for before, layer in zip(network.layers[:-1:4], network.layers[2:-1:4], strict=False):
        after_minmax = np.sort(before.bias.numpy().reshape(-1, 2), axis=1).ravel()
        layer.bias.assign(-after_minmax @ layer.kernel.numpy())
    model = GloroNet(network, epsilon=0.1)
    x = rng.standard_normal((50, 20)).astype("float32")
    assert largest_error(model, x) <= 1
    anchored = model._graph.prove().errors[0]
    monkeypatch.setattr(rounding.Evaluated, "anchored", lambda self, at_zero, constant: self)
    assert (model._graph.prove().errors[0] >= 3 * anchored).all()


def test_integers_are_exact():
    """The yardstick itself: numbers worked by hand, and a float64 evaluation of every network."""
    assert exactly(0.75) == 3 << (BITS - 2)
    assert exactly(np.float32(2.0**-149)) == 1 << (BITS - 149)
    for name, make in NETWORKS.items():
        rng = np.random.default_rng(4)
        network = randomised(make(), rng)
        x = rng.standard_normal((4, *network.input_shape[1:])).astype("float32")
        values = exact_logits(network, x) / (1 << BITS)
        np.testing.assert_allclose(values.astype("float64"), np.asarray(network(x)), rtol=1e-3, atol=1e-3, err_msg=name)
