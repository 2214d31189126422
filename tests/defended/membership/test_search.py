"""Range search over stored points against brute force in float64, and the check of separation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from defended.membership import StoredPoints, close_pairs
from defended.membership.descent import _distance, _projected
from defended.membership.faiss_search import FaissSearch
from defended.membership.range_search import nearest_points

NORMS = ("l2", "linf")
compiled = tf.function(nearest_points, autograph=False)


def exact_distances(a, b, norm):
    delta = np.abs(a[:, None].astype(np.float64) - b[None].astype(np.float64))
    return np.sqrt(np.square(delta).sum(axis=-1)) if norm == "l2" else delta.max(axis=-1)


def exact_nearest(x, points, labels, predicted, norm):
    distances = exact_distances(x, points, norm)
    mine = labels[None] == predicted[:, None]
    return np.where(mine, distances, np.inf).min(axis=1), np.where(mine, np.inf, distances).min(axis=1)


def search(x, points, labels, predicted, norm):
    found = compiled(*(tf.constant(value) for value in (x, points, labels, predicted)), norm)
    return [part.numpy() for part in found]


def slack(x, points, norm):
    """What the module states: 8 gamma (|a|² + |b|²) of the squared distance, and 2^-20 of the distance."""
    n = points.shape[1]
    longest = np.square(x, dtype=np.float64).sum(axis=1) + np.square(points, dtype=np.float64).sum(axis=1).max()
    return 8 * (n + 4) * 2.0**-53 * longest if norm == "l2" else np.zeros(len(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0, 1e4])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_bounds_hold_and_are_tight(norm, scale, count):
    rng = np.random.default_rng((count, int(scale)))
    points = (scale * rng.uniform(size=(count, 20)) + 3).astype("float32")
    # Beside fresh inputs, ones at tiny distances from a point, and points themselves.
    near = points[rng.integers(0, count, 30)]
    near[10:] += (scale * 10.0 ** rng.uniform(-7, -1, (20, 1)) * rng.standard_normal((20, 20))).astype("float32")
    x = np.concatenate([near, (scale * rng.uniform(size=(20, 20))).astype("float32")])
    labels = rng.integers(0, 3, count).astype("int32")
    predicted = rng.integers(0, 4, len(x)).astype("int32")
    indices, own, other = search(x, points, labels, predicted, norm)
    true_own, true_other = exact_nearest(x, points, labels, predicted, norm)

    assert (own >= true_own).all()
    assert (other <= true_other).all()
    finite_own, finite_other = np.isfinite(true_own), np.isfinite(true_other)
    assert np.array_equal(np.isinf(own), ~finite_own)
    assert np.array_equal(np.isinf(other), ~finite_other)
    extra = slack(x, points, norm)
    upper = np.sqrt(np.square(true_own) + extra) * (1 + 2.0**-20) + 1e-37
    assert (own <= upper)[finite_own].all()
    lower = np.sqrt(np.maximum(np.square(true_other) - extra, 0)) * (1 - 2.0**-20)
    assert (other >= lower)[finite_other].all()
    assert (labels[indices[:, 0]] == predicted)[finite_own].all()
    assert (labels[indices[:, 1]] != predicted)[finite_other].all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_on_the_sphere_is_within_and_the_next_number_is_not_far_out(norm):
    """3-4-5: the distance is exactly 5, and 4 in the maximum norm."""
    points = np.array([[3.0, 4.0], [100.0, 100.0]], "float32")
    x, predicted = np.zeros((1, 2), "float32"), np.array([0], "int32")
    labels = np.array([1, 0], "int32")
    _, own, other = search(x, points, labels, predicted, norm)
    distance = {"l2": 5.0, "linf": 4.0}[norm]
    assert distance * (1 - 2.0**-20) <= other[0] <= distance
    assert own[0] >= {"l2": np.sqrt(2e4), "linf": 100.0}[norm]


@pytest.mark.parametrize("norm", NORMS)
def test_a_far_offset_does_not_hide_a_close_point(norm):
    """In float32 the matrix form would lose a distance of 1e-3 at 1e4: squares are 1e8, their ulp is 8."""
    points = np.full((1, 50), 1e4, "float32")
    x = points + np.float32(2.0**-9)
    _, _, other = search(x, points, np.array([1], "int32"), np.array([0], "int32"), norm)
    true = exact_distances(x, points, norm)[0, 0]
    assert other[0] <= true
    if norm == "linf":
        assert other[0] >= true * (1 - 2.0**-20)


@pytest.mark.parametrize("norm", NORMS)
def test_more_points_than_a_block(norm):
    rng = np.random.default_rng(5)
    points = rng.uniform(size=(20_000, 3)).astype("float32")
    labels = rng.integers(0, 5, len(points)).astype("int32")
    x, predicted = rng.uniform(size=(40, 3)).astype("float32"), rng.integers(0, 5, 40).astype("int32")
    _, own, other = search(x, points, labels, predicted, norm)
    true_own, true_other = exact_nearest(x, points, labels, predicted, norm)
    np.testing.assert_allclose(own, true_own, rtol=1e-5)
    np.testing.assert_allclose(other, true_other, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_broken_input_finds_nothing_and_harms_no_other(norm):
    points = np.eye(3, dtype="float32")
    x = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [1, 0, 0], [3e38, -3e38, 0]], "float32")
    _, own, other = search(x, points, np.array([0, 1, 2], "int32"), np.zeros(4, "int32"), norm)
    assert own[2] < 1e-30
    assert other[2] > 0.99
    # Far away, at least; what is not finite is never judged by this.
    assert own[3] > 1e38
    assert not (own[:2] < 1).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_is_the_direction_away_from_the_nearest_point(norm):
    model = SimpleNamespace(norm=norm)
    oracle = StoredPoints(np.array([[0.0, 0.0], [1.0, 1.0]]), [0, 1])
    x = tf.constant([[0.25, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        own, other = oracle.nearest(model, x, tf.constant([0]), 0.1, 1.0, 1)
    towards = tape.gradient(other, x).numpy()[0]
    expected = {"l2": np.array([-0.6, -0.8]), "linf": np.array([0.0, -1.0])}[norm]
    np.testing.assert_allclose(towards, expected, atol=1e-6)
    assert own.numpy()[0] == pytest.approx(0.25)


@pytest.mark.parametrize("norm", NORMS)
def test_faiss_finds_what_brute_force_finds(norm):
    rng = np.random.default_rng(7)
    points = (rng.uniform(size=(400, 12)) + 20).astype("float32")  # an offset that float32 squares suffer from
    labels, reach = rng.integers(0, 3, 400).astype("int32"), {"l2": 0.8, "linf": 0.35}[norm]
    x = np.concatenate([points[:20], (rng.uniform(size=(60, 12)) + 20).astype("float32")])
    x[-1, 0] = np.nan
    predicted = rng.integers(0, 3, len(x)).astype("int32")
    _, own, other = FaissSearch(points, norm).nearest(x, labels, predicted, reach)
    true_own, true_other = exact_nearest(x[:-1], points, labels, predicted[:-1], norm)
    near_own, near_other = true_own <= reach, true_other <= reach
    assert 5 < near_other.sum() < 75
    np.testing.assert_allclose(own[:-1][near_own], true_own[near_own], rtol=1e-6, atol=1e-30)
    assert (own[:-1][near_own] >= true_own[near_own]).all()
    assert np.isinf(own[:-1][~near_own]).all()
    assert (other[:-1] <= true_other).all()
    np.testing.assert_allclose(other[:-1], np.minimum(true_other, reach), rtol=1e-6, atol=1e-30)
    assert np.isinf(own[-1])


@pytest.mark.parametrize("norm", NORMS)
def test_faiss_claims_nothing_of_what_it_cannot_search(norm):
    """Beside a stored point, at a size whose square float32 does not hold."""
    points = np.array([[2e15, 0.0], [0.0, 0.0]], "float32")
    found = FaissSearch(points, norm).nearest(points[:1], np.array([1, 0], "int32"), np.array([0], "int32"), 0.5)
    assert np.isinf(found[1]).all()
    assert found[2].tolist() == [0.0]


@pytest.mark.parametrize("size", [1, 7, 3000, 100_000])
def test_a_descent_rounds_distances_up(size):
    rng = np.random.default_rng(size)
    delta = (rng.standard_normal((40, size)) * 10.0 ** rng.uniform(-3, 3, (40, 1))).astype("float32")
    found = np.asarray(_distance(tf.constant(delta), "l2")).astype("float64")
    exact = np.sqrt([math.fsum(float(value) ** 2 for value in row) for row in delta])
    assert (found >= exact).all()
    assert (np.asarray(_distance(_projected(tf.constant(delta), 0.1, "l2"), "l2")) <= 0.1).all()


# Separation.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("count", "classes"), [(2, 2), (300, 2), (1200, 7), (50, 50)])
def test_pairs_are_those_of_brute_force(norm, count, classes):
    rng = np.random.default_rng(count)
    points = rng.uniform(size=(count, 40)).astype("float32")
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    distances = exact_distances(points, points, norm)
    other = np.triu(labels[:, None] != labels[None], 1)
    for quantile in (0.0, 0.001, 0.2):
        radius = np.quantile(distances[other], quantile, method="inverted_cdf")
        found = close_pairs(points, labels, radius, norm)
        assert found.pairs == (other & (distances <= radius * (1 + 1e-12))).sum() > 0
        assert found.smallest == pytest.approx(distances[other].min(), rel=1e-12)
    below = close_pairs(points, labels, distances[other].min() * (1 - 1e-9), norm)
    assert below.pairs == 0
    assert below.smallest == np.inf


def test_pairs_at_a_far_offset_are_measured_and_not_estimated():
    """Two points 0.001 apart at 1000: the float32 screen cannot tell them from one, the count must."""
    points = np.array([[1000.0] * 30, [1000.0] * 30], "float32")
    points[1, 0] += np.float32(2.0**-10)
    labels = np.array([0, 1])
    assert close_pairs(points, labels, 2.0**-10, "l2").pairs == 1
    assert close_pairs(points, labels, 2.0**-10 * 0.999, "l2").pairs == 0


def test_one_class_has_no_pairs():
    assert close_pairs(np.zeros((5, 2), "float32"), np.zeros(5, int), 1.0, "l2").pairs == 0
