"""Margins, radii and ⊥ as pure functions: numbers worked by hand, ties, laws of scale and permutation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from defended.layers import RejectionHead
from defended.margins import FLOAT_MAX, bottom_score, certified_slack, competitor_radii, radius_slack

# y = (1, 4, 2), predicted 1, K rows of class 1: margins 3 and 2.
LOGITS = np.array([[1.0, 4.0, 2.0]], "float32")
LIPSCHITZ = np.array([[2.0, 0.0, 0.5]], "float32")


def scores(logits, lipschitz, epsilon):
    slack = certified_slack(logits, lipschitz, epsilon)
    return ops.convert_to_numpy(RejectionHead()(ops.convert_to_tensor(logits), slack))


def test_radii_by_hand():
    radii = ops.convert_to_numpy(competitor_radii(LOGITS, LIPSCHITZ))[0]
    np.testing.assert_allclose(radii[[0, 2]], [1.5, 4.0], rtol=1e-6)
    assert radii[1] == np.float32(FLOAT_MAX)
    assert np.all(radii[[0, 2]] <= [1.5, 4.0]), "a certified radius is rounded down"


def test_slack_by_hand():
    # min(3 - 2 eps, 2 - 0.5 eps) at eps = 1 is 1, at eps = 2 it is -1.
    assert float(certified_slack(LOGITS, LIPSCHITZ, 1.0)[0]) == pytest.approx(1.0, abs=1e-5)
    assert float(certified_slack(LOGITS, LIPSCHITZ, 2.0)[0]) == pytest.approx(-1.0, abs=1e-5)


def test_bottom_is_the_best_that_a_rival_can_reach():
    # max over i != j of y_i + eps K_ij at eps = 1: max(1 + 2, 2 + 0.5) = 3.
    row = scores(LOGITS, LIPSCHITZ, 1.0)[0]
    np.testing.assert_allclose(row, [1, 4, 2, 3], rtol=1e-5)
    assert row.argmax() == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30, -1e30, 3e38])
def test_a_tie_of_the_top_logits_is_rejected(value):
    logits = np.array([[value, value, value - abs(value) - 1]], "float32")
    for lipschitz in (np.zeros((1, 3)), np.full((1, 3), 1e-30), np.ones((1, 3))):
        row = scores(logits, lipschitz.astype("float32"), 1e-30)[0]
        assert row.argmax() == 3
        assert np.isfinite(row[:3]).all()
        assert float(ops.min(competitor_radii(logits, lipschitz.astype("float32")))) == 0.0


@pytest.mark.parametrize("top", [0.0, 1.0, -1.0, 1e-38, -1e38, 5e37])
@pytest.mark.parametrize("slack", [0.0, -0.0, -1e-45, float("nan"), -1.0])
def test_no_positive_slack_means_strictly_above(top, slack):
    bottom = bottom_score(np.array([top], "float32"), np.array([slack], "float32"))
    assert float(bottom[0]) > np.float32(top)


@pytest.mark.parametrize("top", [0.0, 1.0, -1.0, 1e-38, -1e38, 5e37])
@pytest.mark.parametrize("slack", [2e-38, 1e-12, 1.0, 2e38])
def test_a_positive_slack_means_strictly_below(top, slack):
    """However small beside the score: an answer is given exactly where the radius exceeds epsilon."""
    bottom = bottom_score(np.array([top], "float32"), np.array([slack], "float32"))
    assert float(bottom[0]) < np.float32(top)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_answer_and_radius_agree_to_the_last_bit(scale, offset):
    """In both directions, also where slack times constant vanishes, or is lost beside the largest score."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(400, 3)) * scale + offset * scale).astype("float32")
    rows = np.full((400, 3), scale, "float32")
    radius = np.asarray(ops.min(competitor_radii(logits, rows), axis=-1))
    positive = radius[radius > 0]
    for epsilon in [*positive[:40], *np.nextafter(positive[:40], np.float32(0)), np.float32(1e-12)]:
        slack = radius_slack(logits, rows, np.float32(epsilon))
        answered = np.asarray(RejectionHead()(logits, slack)).argmax(axis=1) < 3
        np.testing.assert_array_equal(answered, radius > epsilon)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_become_bottom(bad):
    logits = np.array([[5.0, bad, 1.0], [5.0, 1.0, 1.0]], "float32")
    rows = scores(logits, np.ones((2, 3), "float32"), 0.1)
    assert rows[0].argmax() == 3
    assert np.isfinite(rows).all()
    assert rows[1].argmax() == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
    st.lists(st.floats(0.125, 8, width=32), min_size=4, max_size=4),
    st.permutations(range(4)),
    st.sampled_from([2.0**-20, 0.25, 1.0, 4.0, 2.0**20]),
)
def test_laws_of_permutation_and_scale(logits, lipschitz, order, scale):
    logits, lipschitz = np.array([logits], "float32"), np.array([lipschitz], "float32")
    if len(np.unique(logits)) < 4:
        return
    radius = float(ops.min(competitor_radii(logits, lipschitz)))
    permuted = float(ops.min(competitor_radii(logits[:, order], lipschitz[:, order])))
    assert permuted == radius, "the names of the classes do not matter"
    # Powers of two scale exactly.
    scaled = float(ops.min(competitor_radii(logits * np.float32(scale), lipschitz * np.float32(scale))))
    assert scaled == pytest.approx(radius, rel=1e-6), "neither does the unit of the logits"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
    st.lists(st.floats(0.0009765625, 100, width=32), min_size=3, max_size=3),
    st.floats(0.0009765625, 10, width=32),
)
def test_an_answer_is_certified_in_exact_arithmetic(logits, lipschitz, epsilon):
    from fractions import Fraction

    row = scores(np.array([logits], "float32"), np.array([lipschitz], "float32"), np.float32(epsilon))[0]
    j = int(np.argmax(logits))
    y, K, eps = ([Fraction(v) for v in values] for values in (logits, lipschitz, [epsilon]))
    holds = all(y[j] - y[i] > eps[0] * K[i] for i in range(3) if i != j)
    assert holds or row.argmax() == 3
