"""EvasiveDescent: what is rejected and yet taken for valid, by hand in the plane and on random nets."""

import json

import numpy as np
import pytest
from keras import layers
from nets import finalized, randomised, sequential, set_weights

from defended import MembershipGuard
from defended.attacks import CertificateDescent, EvasiveDescent, susceptibility
from defended.membership import MahalanobisScore, NearestNeighbourScore, StoredPoints

EPSILON = 0.5


def half_plane():
    """Class 0 right of x0 = 0; the certified radius is |x0|, less some rounding."""
    network = sequential((2,), layers.Dense(2))
    set_weights(network.layers[-1], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0])
    return finalized(network, EPSILON)


@pytest.fixture(scope="module")
def guard():
    """Valid is what lies within 2 of (1, 0)."""
    centre = np.array([[1.0, 0.0]])
    oracle = NearestNeighbourScore(centre, centre, 1, layer="input", false_alarm_rate=0.5, threshold=4.0)
    guard = MembershipGuard(half_plane(), oracle, 4)
    guard.finalize()
    return guard


def outside(x):
    return np.square(x - [1.0, 0.0]).sum(axis=1) > 4


def test_rejected_and_taken_for_valid(guard):
    """From (0.9, 1.95) the way straight to x0 <= 0.5 leaves the circle, whose height there is 1.936.

    (0.9, 2.1) lies outside itself, and (0.49, 1.9), 0.456 away, is rejected and inside.
    """
    x = np.array([[0.9, 1.95], [0.9, 2.1], [0.9, 0.0]], "float32")
    assert outside(x).tolist() == [False, True, False]
    assert not guard.verdicts(x).rejected.any()
    straight, evading = CertificateDescent()(guard, x), EvasiveDescent()(guard, x)
    assert guard.verdicts(straight).rejected.all()
    assert outside(straight).tolist() == [True, True, False]
    assert guard.verdicts(evading).rejected.all()
    assert not outside(evading).any()
    assert np.linalg.norm(evading - x, axis=1).max() <= EPSILON


def test_what_cannot_be_had_is_not_claimed(guard):
    """From (0.9, 2.3) no rejected point of the circle is within 0.5: the nearest, (0.5, 1.936), is 0.54 away."""
    x = np.array([[0.9, 2.3]], "float32")
    found = EvasiveDescent(restarts=3)(guard, x)
    assert np.linalg.norm(found - x) <= EPSILON
    assert outside(found)[0] or not guard.verdicts(found).rejected[0]


def test_a_wrong_answer_that_is_taken_for_valid(guard):
    """Of class 1, but on the right: rejected at 0.3, and answered wrongly from 0.5 on. At 1.95 height matters too."""
    x, y = np.array([[0.3, 0.0], [0.3, 1.85], [0.9, 2.1]], "float32"), np.ones(3, int)
    found = EvasiveDescent(goal="wrong answer")(guard, x, y)
    verdicts = guard.verdicts(found)
    assert verdicts.label.tolist() == [0, 0, 0]
    assert not outside(found).any()
    # What is answered rightly cannot be turned: that is the certificate.
    x, y = np.array([[0.9, 0.0], [-0.6, 0.0]], "float32"), np.array([0, 1])
    for labels in (y, None):
        verdicts = guard.verdicts(EvasiveDescent(goal="wrong answer", early_stop=False)(guard, x, labels))
        assert ((verdicts.label == -1) | (verdicts.label == y)).all()


@pytest.mark.parametrize("make", [
    lambda x, y: MahalanobisScore(x, y, x, threshold=6.0),
    lambda x, y: NearestNeighbourScore(x, x, 3, threshold=1.6),
])  # fmt: skip
def test_more_go_unnoticed_than_of_an_attack_that_looks_away(make):
    rng = np.random.default_rng(0)
    network = randomised(sequential((4,), layers.Dense(8, activation="relu"), layers.Dense(3)), rng)
    model = finalized(network, 0.3)
    x, y = rng.standard_normal((300, 4)).astype("float32"), rng.integers(0, 3, 300)
    guard = MembershipGuard(model, make(x, y), 2)
    guard.finalize()
    x = x[~guard.verdicts(x).rejected]
    excess = guard.oracle.excess(x).numpy()
    assert np.array_equal(excess > 0, guard.oracle.score(x).numpy() > guard.oracle.threshold)
    assert 0.1 < (excess > 0).mean() < 0.9
    unnoticed = {}
    for attack in (CertificateDescent(early_stop=True), EvasiveDescent()):
        found = attack(guard, x)
        quiet = guard.oracle.excess(found).numpy() <= 0
        unnoticed[type(attack).__name__] = (guard.verdicts(found).rejected & quiet).sum()
    assert unnoticed["EvasiveDescent"] > unnoticed["CertificateDescent"] > 0


def test_any_function_may_be_the_detector():
    """A detector that is set off above x1 = 0: attacks of the first input must go below."""
    model, x = half_plane(), np.array([[0.7, 0.1], [0.7, -0.1]], "float32")
    attack = EvasiveDescent(lambda x: x[:, 1])
    found = attack(model, x)
    assert model.verdicts(found).rejected.all()
    assert (found[:, 1] <= 0).all()
    assert susceptibility(model, x, np.zeros(2, int), attack, progress=False).fpr_lower == 1
    assert json.loads(json.dumps(attack.config()))["goal"] == "rejection"


def test_bad_input_is_named(guard):
    x = np.zeros((1, 2), "float32")
    with pytest.raises(ValueError, match=r"no score of its own.*CertificateDescent"):
        EvasiveDescent()(guard.base, x)
    points = MembershipGuard(guard.base, StoredPoints(x, domain=None))
    with pytest.raises(ValueError, match="no score of its own"):
        EvasiveDescent()(points, x)
    with pytest.raises(ValueError, match="`detector` must be a function"):
        EvasiveDescent(detector=0.5)
    with pytest.raises(ValueError, match="'rejection', 'wrong answer'"):
        EvasiveDescent(goal="both")
