"""Exact binomial intervals, and the number that carries them."""

import copy
import json
import pickle

import pytest
from scipy.stats import binomtest

from defended.attacks import Rate, clopper_pearson


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 10, (0.0, 1 - 0.025**0.1)),
        (10, 10, (0.025**0.1, 1.0)),
        (5, 10, (0.187086, 0.812914)),
        (1, 20, (0.001265, 0.248733)),
    ],
)
def test_clopper_pearson_against_known_values(count, total, expected):
    assert clopper_pearson(count, total) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize(("count", "total"), [(3, 7), (83, 1818), (9999, 10000)])
def test_clopper_pearson_against_scipys_test(count, total, confidence):
    theirs = binomtest(count, total).proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, total, confidence) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_no_trials_tell_nothing():
    rate = Rate(0, 0)
    assert rate == 0.0
    assert rate.interval == (0.0, 1.0)


def test_a_rate_is_a_number_with_its_origin():
    rate = Rate(3, 4, 0.9)
    assert rate == 0.75
    assert (rate.count, rate.total, rate.confidence) == (3, 4, 0.9)
    assert rate.interval[0] < 0.75 < rate.interval[1]
    assert str(rate) == "0.75"
    assert f"{rate:.1%}" == "75.0%"
    assert json.loads(json.dumps(rate)) == 0.75
    assert json.loads(json.dumps(rate.to_dict()))["count"] == 3


def test_a_rate_survives_copying_and_pickling():
    for twin in (copy.deepcopy(Rate(3, 4, 0.9)), pickle.loads(pickle.dumps(Rate(3, 4, 0.9)))):
        assert (twin, twin.count, twin.interval) == (0.75, 3, Rate(3, 4, 0.9).interval)


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0.5, 3)])
def test_impossible_counts_are_refused(count, total):
    with pytest.raises(ValueError, match="0 <= count <= total"):
        clopper_pearson(count, total)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_probability(confidence):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Rate(1, 2, confidence)
