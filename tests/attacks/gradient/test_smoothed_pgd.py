"""Algorithm 3.2: losses of a network under noise, their averages and their memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import defended
from defended.attacks import DegradationAttack, SmoothedPGD
from defended.attacks.core.attack import Task
from defended.attacks.core.balls import distances

SHORT = {"samples": 12, "steps": 5, "batch_size": 16}


def model_of(*body, shape=(4,), epsilon=0.3):
    keras.utils.set_random_seed(5)
    return defended.GloroNet(keras.Sequential([keras.Input(shape), *body]), epsilon=epsilon)


@pytest.fixture(scope="module")
def linear():
    return model_of(keras.layers.Dense(3))


@pytest.fixture(scope="module")
def curved():
    return model_of(keras.layers.Dense(16), keras.layers.ReLU(), keras.layers.Dense(3))


def inputs(n=20, d=4):
    return np.random.default_rng(2).normal(size=(n, d)).astype("float32")


def evaluate(attack, model, x, number=0):
    task = Task(model, x, None, 0.3, "l2", np.arange(len(x)))
    labels = tf.zeros(len(x), tf.int32)
    return [part.numpy() for part in attack._evaluation(task)(model, tf.constant(x), labels, tf.constant(number))]


def test_on_a_linear_network_noise_shifts_the_mean_logits_only(linear):
    """The mean of the logits is the logit of the mean: the margin's gradient is that without noise."""
    x = inputs()
    attack = SmoothedPGD(sigma=0.5, loss="margin", **SHORT)
    value, judged, gradient = evaluate(attack, linear, x)
    point = tf.constant(x)
    kernel = linear.network.layers[-1].kernel.numpy()
    np.testing.assert_allclose(value, judged)
    spread = value - (linear.network(point).numpy() @ np.array([[1], [0], [0]]))[:, 0]
    assert np.isfinite(spread).all()
    directions = kernel[:, :1] - kernel[:, 1:]
    for row in gradient:
        assert min(np.abs(row - directions[:, k]).max() for k in range(2)) < 1e-5


def test_the_mean_of_the_losses_is_an_average_over_samples(curved):
    """One sample at a time, by the same noise: the mean of the values and of the gradients."""
    x = inputs(3)
    attack = SmoothedPGD(sigma=0.5, average="losses", samples=6, batch_size=16)
    value, _, gradient = evaluate(attack, curved, x)
    seed = tf.random.experimental.stateless_fold_in(tf.stack([0, 0]), tf.constant(0))
    noise = 0.5 * tf.random.stateless_normal((6, 1, 4), seed)
    values, gradients = [], []
    for sample in noise:
        point = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = -tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.zeros(3, tf.int32), curved.network(point + sample)
            )
        values.append(loss.numpy())
        gradients.append(tape.gradient(loss, point).numpy())
    np.testing.assert_allclose(value, np.mean(values, axis=0), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean(gradients, axis=0), atol=1e-6)
    directions = evaluate(SmoothedPGD(sigma=0.5, average="directions", samples=6, batch_size=16), curved, x)[2]
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in gradients]
    np.testing.assert_allclose(directions, np.mean(unit, axis=0), atol=1e-5)


def test_the_loss_of_the_mean_logits_is_differentiated_through_the_mean(curved):
    x = inputs(3)
    attack = SmoothedPGD(sigma=0.5, samples=6, batch_size=16)
    value, _, gradient = evaluate(attack, curved, x)
    seed = tf.random.experimental.stateless_fold_in(tf.stack([0, 0]), tf.constant(0))
    noise = 0.5 * tf.random.stateless_normal((6, 1, 4), seed)
    point = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(point)
        logits = tf.reduce_mean(tf.reshape(curved.network(tf.reshape(point + noise, (-1, 4))), (6, 3, 3)), axis=0)
        loss = -tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros(3, tf.int32), logits)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, tape.gradient(loss, point), atol=1e-6)


@pytest.mark.parametrize("average", ["logits", "losses", "directions"])
def test_samples_behind_the_last_one_do_not_count(curved, average):
    """Ten samples in chunks of 4: of the third chunk only the first two count."""
    x = inputs(4)
    chunked = SmoothedPGD(sigma=0.4, samples=10, average=average, batch_size=4, max_rows=16)
    value, judged, gradient = evaluate(chunked, curved, x)
    parts = []
    for part in range(3):
        seed = tf.random.experimental.stateless_fold_in(tf.stack([0, 0]), tf.constant(part))
        parts.append(0.4 * tf.random.stateless_normal((4, 1, 4), seed))
    noise = tf.concat(parts, axis=0)[:10]
    point = tf.constant(x)
    zeros = tf.zeros(4, tf.int32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(point)
        logits = tf.reshape(curved.network(tf.reshape(point + noise, (-1, 4))), (10, 4, 3))
        of_mean = -tf.nn.sparse_softmax_cross_entropy_with_logits(zeros, tf.reduce_mean(logits, axis=0))
        losses = [-tf.nn.sparse_softmax_cross_entropy_with_logits(zeros, logits[k]) for k in range(10)]
        mean = tf.add_n(losses) / 10
    expected = {"logits": of_mean, "losses": mean, "directions": mean}[average]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if average != "directions":
        np.testing.assert_allclose(gradient, tape.gradient(expected, point), atol=1e-6)
    else:
        units = []
        for loss in losses:
            one = tape.gradient(loss, point).numpy()
            units.append(one / np.linalg.norm(one, axis=1, keepdims=True))
        np.testing.assert_allclose(gradient, np.mean(units, axis=0), atol=1e-5)
    top = tf.reduce_mean(logits, axis=0).numpy()
    np.testing.assert_allclose(judged, top[:, 0] - top[:, 1:].max(axis=1), atol=1e-5)


def test_common_random_numbers_or_fresh_ones(curved):
    x = inputs(3)
    common, fresh = (SmoothedPGD(sigma=0.5, samples=6, batch_size=16, common_noise=c) for c in (True, False))
    np.testing.assert_array_equal(evaluate(common, curved, x, 0)[0], evaluate(common, curved, x, 7)[0])
    assert (evaluate(fresh, curved, x, 0)[0] != evaluate(fresh, curved, x, 7)[0]).all()
    np.testing.assert_array_equal(fresh(curved, x), fresh(curved, x))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_crosses_the_boundary_of_the_smoothed_classifier(norm):
    """Logits (x, -x): noise does not move the boundary at 0, so points nearer than the radius are turned."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
    model = defended.GloroNet(network, epsilon=0.25)
    x = np.array([[-0.6], [-0.2], [0.1], [0.2], [0.3]], "float32")
    attacked = SmoothedPGD(sigma=0.3, samples=200, steps=20, norm=norm, batch_size=16)(model, x)
    np.testing.assert_array_equal(np.sign(attacked) != np.sign(x), np.abs(x) < 0.25)


def test_raw_gradients_step_by_their_length(linear):
    x = inputs(3)
    attack = SmoothedPGD(
        sigma=0.1, samples=4, steps=1, step_size=0.01, raw_gradient=True, keep="last", epsilon=5.0, batch_size=16
    )
    moved = attack(linear, x, [0, 0, 0])
    _, _, gradient = evaluate(SmoothedPGD(sigma=0.1, samples=4, batch_size=16), linear, x)
    np.testing.assert_allclose(moved, x - 0.01 * gradient, atol=1e-6)


def test_the_authors_settings_for_smoothed_models(curved):
    attack = DegradationAttack.published(0.2, sigma=0.25)
    base = attack.base_attack
    assert (base.average, base.common_noise, base.raw_gradient, base.keep) == ("losses", False, True, "last")
    assert base.step_size == pytest.approx(4 * 0.2 / 50 / 100)
    x = inputs(3)
    np.testing.assert_allclose(distances(x, attack(curved, x), "l2"), 0.2, rtol=1e-4)


def test_sigma_is_the_models_or_must_be_given(linear):
    with pytest.raises(ValueError, match="`sigma` must be given"):
        SmoothedPGD(**SHORT)(linear, inputs())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sigma": 0.0}, "`sigma`"),
        ({"samples": 0}, "`samples`"),
        ({"average": "mean"}, "'logits', 'losses', 'directions'"),
        ({"max_rows": 8, "batch_size": 16}, "`max_rows` must hold one sample"),
        ({"schedule": "step"}, "`schedule`"),
        ({"keep": "first"}, "`keep`"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        SmoothedPGD(**options)
