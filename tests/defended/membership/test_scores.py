"""Oracles by a score: the calibrated rate of false alarms, the scores themselves, the search, and their guard."""

import functools
from math import ceil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import finalized, randomised, sequential, set_weights

from defended import GloroNet, MembershipGuard
from defended.membership import MahalanobisScore, NearestNeighbourScore, conformal_threshold

# The threshold.


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (20, 0.05), (99, 0.1), (150, 0.013)])
def test_the_false_alarm_rate_is_kept_over_draws_of_the_calibration_inputs(n, alpha):
    """Exactly `1 - k / (n + 1)` for continuous scores: at most alpha, and at least alpha - 1 / (n + 1)."""
    rng = np.random.default_rng(0)
    expected = 1 - ceil((n + 1) * (1 - alpha) - 1e-9) / (n + 1)
    assert alpha - 1 / (n + 1) - 1e-12 <= expected <= alpha + 1e-12
    trials = 20_000
    scores = rng.exponential(size=(trials, n + 1))
    thresholds = np.array([conformal_threshold(row[:-1], alpha) for row in scores])
    alarms = (scores[:, -1] > thresholds).mean()
    assert abs(alarms - expected) < 5 * np.sqrt(expected * (1 - expected) / trials)


def test_the_threshold_is_the_ceiling_rank():
    scores = np.arange(1.0, 20.0)  # 19 of them
    assert conformal_threshold(scores, 0.05) == 19
    assert conformal_threshold(scores, 0.5) == 10
    assert conformal_threshold(scores[::-1], 0.2) == 16
    assert conformal_threshold(np.ones(19), 0.05) == 1


@pytest.mark.parametrize(
    ("scores", "alpha", "match"),
    [
        (np.ones(18), 0.05, "at least 19 inputs.*Received: 18"),
        (np.ones(99), 0.0, "between 0 and 1"),
        (np.ones(99), 1.0, "between 0 and 1"),
        (np.full(99, np.nan), 0.1, "NaN"),
        (np.full(99, np.inf), 0.1, "infinite"),
        (np.ones((9, 9)), 0.5, r"numbers \[n\]"),
    ],
)
def test_bad_calibration_is_named(scores, alpha, match):
    with pytest.raises(ValueError, match=match):
        conformal_threshold(scores, alpha)


# The scores.


@functools.cache
def identity():
    """A model whose features are its inputs, with class 0 to the right; no test changes it."""
    network = sequential((2,), layers.Dense(2))
    set_weights(network.layers[-1], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0])
    return finalized(network, 0.5)


def two_classes(rng, n=300, spread=(1.0, 3.0)):
    """Two Gaussian classes of one covariance."""
    y = rng.integers(0, 2, n)
    x = rng.standard_normal((n, 2)) * spread + np.where(y[:, None] == 0, [8.0, 0.0], [-8.0, 0.0])
    return x.astype("float32"), y


def test_mahalanobis_measures_in_units_of_the_classes_spread():
    x, y = two_classes(np.random.default_rng(0), 20_000)
    oracle = MahalanobisScore(x, y, x[:100], layer="input")
    MembershipGuard(identity(), oracle).finalize()
    points = tf.constant([[8.0, 0.0], [9.0, 0.0], [8.0, 3.0], [-8.0, -6.0], [0.0, 0.0]])
    np.testing.assert_allclose(oracle.score(points).numpy(), [0, 1, 1, 4, 64], rtol=0.1, atol=0.02)


def test_a_class_without_points_is_near_to_nobody():
    x, y = two_classes(np.random.default_rng(1))
    oracle = MahalanobisScore(x[y == 0], y[y == 0], x[y == 0], layer="input")
    MembershipGuard(identity(), oracle).finalize()
    assert oracle.score(tf.constant([[-8.0, 0.0]])).numpy()[0] > 100


def test_neighbour_score_is_the_squared_distance_to_the_kth():
    x = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    for k, expected in ((1, 1.0), (2, 18.0), (3, 85.0)):
        oracle = NearestNeighbourScore(x, x, k, layer="input", false_alarm_rate=0.5)
        MembershipGuard(identity(), oracle).finalize()
        assert oracle.score(tf.constant([[0.0, 1.0]])).numpy()[0] == pytest.approx(expected, rel=1e-5)


@functools.cache
def dense():
    """A model with random weights; no test changes it."""
    network = sequential((4,), layers.Dense(5, activation="relu"), layers.Dense(3))
    return finalized(randomised(network, np.random.default_rng(3)), 0.5)


@pytest.mark.parametrize("make", [
    lambda x, y: MahalanobisScore(x, y, x),
    lambda x, y: NearestNeighbourScore(x, x, 3),
])  # fmt: skip
def test_the_written_gradient_is_the_scores(make):
    rng = np.random.default_rng(3)
    model = dense()
    x, y = rng.standard_normal((80, 4)).astype("float32"), rng.integers(0, 3, 80)
    oracle = make(x, y)
    MembershipGuard(model, oracle).finalize()
    features = tf.constant(rng.standard_normal((6, 5)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(features)
        score, written = oracle.score_gradient(features)
    np.testing.assert_allclose(written, tape.gradient(score, features), rtol=1e-4, atol=1e-4)


# The search.

STEPS = 4


@functools.cache
def crossing():
    """Class 0 to the right of x0 = 0; valid is what lies within 2 of (1, 0)."""
    centre = np.array([[1.0, 0.0]])
    oracle = NearestNeighbourScore(centre, centre, 1, layer="input", false_alarm_rate=0.5, threshold=4.0)
    guard = MembershipGuard(identity(), oracle, STEPS)
    guard.finalize()
    return guard


def test_the_search_keeps_to_the_score():
    """Class 1 lies left of x0 = 0, where the circle ends at height 1.73; 0.49 < epsilon, and 0.6 is certified."""
    guard = crossing()
    x = np.array([[0.3, 0.0], [0.3, 1.8], [0.3, 2.4], [0.49, 0.0], [0.6, 0.0], [0.1, 9.0]])
    assert guard.reasons(x).tolist() == [
        "adversarial", "adversarial", "not certified", "adversarial", "answered", "not certified"
    ]  # fmt: skip


def test_what_is_found_is_in_the_ball_valid_and_labelled_otherwise():
    """The search's distances: never above epsilon, never below the distance to the boundary."""
    guard = crossing()
    x = np.random.default_rng(5).uniform([0, -2], [1, 2], (200, 2)).astype("float32")
    search = tf.function(lambda x: guard.oracle.nearest(guard.base, x, tf.zeros(200, tf.int32), 0.5, 1.0, STEPS))
    near = search(x)
    other = near.other.numpy()
    found = np.isfinite(other)
    assert 20 < found.sum() < 180
    assert (other[found] <= 0.5).all()
    assert (other[found] >= x[found, 0]).all()
    valid = np.square(x - [1, 0]).sum(axis=1) <= 4
    assert np.array_equal(np.isfinite(near.own.numpy()), valid)
    # Plainly in reach: an arc of the circle across the boundary lies within 0.4.
    assert found[(x[:, 0] < 0.3) & (np.abs(x[:, 1]) < 1.5)].all()


def test_verdicts_are_the_models_whatever_the_score_says():
    rng, model = np.random.default_rng(6), dense()
    x, y = rng.standard_normal((200, 4)).astype("float32"), rng.integers(0, 3, 200)
    x[0, 0] = np.nan
    for oracle in (MahalanobisScore(x[1:], y[1:], x[1:]), NearestNeighbourScore(x[1:], x[1:], false_alarm_rate=0.3)):
        guard = MembershipGuard(model, oracle, 1)
        guard.finalize()
        ours, alone, reasons = guard.verdicts(x), model.verdicts(x), guard.reasons(x)
        assert np.array_equal(ours.label, alone.label)
        assert np.array_equal(ours.radius, alone.radius)
        assert reasons[0] == "not finite"
        assert (reasons[alone.rejected] != "answered").all()
        assert (reasons == "adversarial").sum() > 0


def test_the_score_follows_training_and_is_saved(tmp_path):
    rng = np.random.default_rng(7)
    x, y = rng.uniform(size=(256, 4)).astype("float32"), rng.integers(0, 2, 256)
    network = sequential((4,), layers.Dense(8, activation="relu"), layers.Dense(2))
    oracle = MahalanobisScore(x, y, x[:99], false_alarm_rate=0.1)
    guard = MembershipGuard(GloroNet(network, epsilon=0.05), oracle, 1)
    guard.finalize()
    before = oracle.threshold
    guard.compile("adam")
    guard.fit(x, y, epochs=2, verbose=0)
    assert guard.is_final
    assert oracle.threshold != before
    assert oracle.observed_rate <= 0.1
    guard.save(tmp_path / "guard.keras", include_optimizer=False)
    loaded = keras.models.load_model(tmp_path / "guard.keras", compile=False)
    assert loaded.is_final
    assert loaded.oracle.threshold == oracle.threshold
    assert np.array_equal(loaded.reasons(x), guard.reasons(x))
    loaded.finalize()
    loaded.base.network.layers[-1].bias.assign([5.0, 0.0])
    with pytest.raises(ValueError, match="loaded without its data"):
        loaded.finalize()


# Bad input.


def score(**options):
    points = np.arange(40.0).reshape(20, 2)
    return NearestNeighbourScore(points, points, **options)


def test_bad_arguments_are_named():
    points, model = np.arange(40.0).reshape(20, 2), identity()
    for make, match in [
        (lambda: score(k=21), "1 to the number of points, 20"),
        (lambda: score(k=0), "`k`"),
        (lambda: score(false_alarm_rate=0.01), "at least 99 inputs"),
        (lambda: score(threshold=np.nan), "`threshold` must be a finite number"),
        (lambda: NearestNeighbourScore(points[:0], points), "at least one point"),
        (lambda: NearestNeighbourScore(points, points[:, :1]), "`calibration` must hold inputs of the shape"),
        (lambda: NearestNeighbourScore(points * np.nan, points), "`x` must be finite"),
        (lambda: MahalanobisScore(points, np.zeros(3, int), points), "20 class numbers"),
        (lambda: MembershipGuard(model, MahalanobisScore(points, np.full(20, 7), points)), "0 to 1"),
        (lambda: MembershipGuard(model, MahalanobisScore(points * 0, np.zeros(20, int), points)).finalize(), "vary"),
        (lambda: MembershipGuard(model, score(layer="conv_9")), "`layer` must name a layer"),
        (lambda: MembershipGuard(model, score(), accept="separated"), "finds nothing proves nothing"),
        (lambda: MembershipGuard(model, score(threshold=-1.0)).finalize(), "all 20 calibration inputs"),
        (lambda: MembershipGuard(GloroNet(sequential((3,), layers.Dense(2)), epsilon=0.5), score()), "shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    oracle = score()
    MembershipGuard(model, oracle)
    with pytest.raises(ValueError, match="another network"):
        MembershipGuard(GloroNet(sequential((2,), layers.Dense(2)), epsilon=0.5), oracle)
