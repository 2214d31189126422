"""Carlini and Wagner's attack where the smallest perturbation is known: linear networks."""

import numpy as np
import pytest
from nets import affine

from defended.attacks import CarliniWagner, DegradationAttack, susceptibility
from defended.attacks.core.balls import distances


def predicted(model, x):
    return np.asarray(model.network(x)).argmax(axis=1)


def distance_to_class(weights, bias, x, own):
    """`[n, m]`: distances to the plane where each class reaches the own one; infinite for the own one."""
    logits = x.astype(np.float64) @ weights + bias
    margin = logits[np.arange(len(x)), own][:, None] - logits
    normal = np.linalg.norm(weights.T[own][:, None] - weights.T[None], axis=2)
    return np.where(normal > 0, margin / np.where(normal > 0, normal, 1), np.inf)


WEIGHTS = np.random.default_rng(0).normal(size=(6, 4))
BIAS = np.array([0.2, -0.1, 0.0, 0.1])


@pytest.fixture(scope="module")
def planes():
    return affine(WEIGHTS, BIAS, 0.3)


@pytest.fixture(scope="module")
def cloud(planes):
    x = np.random.default_rng(1).normal(size=(60, 6)).astype("float32")
    return x[distance_to_class(WEIGHTS, BIAS, x, predicted(planes, x)).min(axis=1) > 0.1]


@pytest.mark.parametrize("clip", [None, (-8.0, 8.0)])
def test_the_nearest_plane_is_reached_within_three_percent(planes, cloud, clip):
    own = predicted(planes, cloud)
    nearest = distance_to_class(WEIGHTS, BIAS, cloud, own).min(axis=1)
    steps, rate = (150, 0.02) if clip is None else (300, 0.002)
    attack = CarliniWagner(targets=3, steps=steps, learning_rate=rate, epsilon=50.0, clip=clip)
    attacked = attack(planes, cloud)
    assert (predicted(planes, attacked) != own).all()
    ratio = distances(cloud, attacked, "l2") / nearest
    # No perturbation can be shorter than the distance to the nearest plane.
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.03


def test_a_target_is_reached_by_the_way_to_its_region(planes, cloud):
    """The plane towards the runner-up bounds the distance from below; with two classes it is the distance."""
    two = affine(WEIGHTS[:, :2], BIAS[:2], 0.3)
    own = predicted(two, cloud)
    expected = distance_to_class(WEIGHTS[:, :2], BIAS[:2], cloud, own).min(axis=1)
    far = expected > 0.1
    attacked = CarliniWagner(targeted=True, steps=300, epsilon=50.0)(two, cloud, 1 - own)
    assert (predicted(two, attacked) == 1 - own).all()
    np.testing.assert_allclose(distances(cloud, attacked, "l2")[far], expected[far], rtol=0.03)


def test_confidence_is_a_margin_that_is_kept():
    """Logits (x, -x): the margin is 2x, so confidence 0.5 is reached at x = -0.25."""
    model = affine([[1, -1]], epsilon=0.3)
    x = np.array([[0.2], [0.7]], "float32")
    attacked = CarliniWagner(confidence=0.5, steps=300, epsilon=5.0)(model, x)
    np.testing.assert_allclose(attacked, -0.25, atol=0.01)
    assert (2 * attacked <= -0.5).all()


def test_what_lies_outside_the_ball_is_brought_onto_the_sphere():
    model = affine([[1, -1]], epsilon=0.3)
    x = np.array([[0.2], [0.7]], "float32")
    attacked = CarliniWagner(epsilon=0.3)(model, x)
    assert -0.02 < attacked[0, 0] < 0  # found within the ball, and not carried on to its edge
    assert attacked[1, 0] == pytest.approx(0.4, abs=1e-5)


def test_where_nothing_is_found_the_smallest_margin_within_the_ball_counts():
    """Logits (10, x, ...) with |x| <= 1 in the box: class 0 always wins, by least at the box's edge."""
    model = affine([[0, 1]], [10, 0], 0.3)
    attacked = CarliniWagner(clip=(-1, 1), epsilon=0.3, steps=100, learning_rate=0.05)(
        model, np.zeros((1, 1), "float32")
    )
    assert predicted(model, attacked)[0] == 0
    assert 0.2 < attacked[0, 0] <= 0.3


def test_inputs_that_have_another_class_already_hardly_move(planes, cloud):
    attacked = CarliniWagner(steps=20)(planes, cloud, (predicted(planes, cloud) + 1) % 4)
    assert distances(cloud, attacked, "l2").max() < 1e-6


def test_algorithm_31_keeps_what_is_shorter_than_eps_and_finds_all_there_is():
    """Logits (x, -x), r = |x|: within eps of x lies ⊥ exactly where |x| <= 2 eps."""
    model = affine([[1, -1]])
    x = np.array([[0.3], [0.45], [-0.4], [0.7], [0.24]], "float32")
    y = np.array([0, 0, 1, 0, 0])
    attack = DegradationAttack(CarliniWagner(steps=100))
    delta = np.abs(attack(model, x) - x)[:, 0]
    assert delta[0] == pytest.approx(0.25, abs=1e-5)
    assert 0.24 <= delta[4] < 0.25  # the boundary lies nearer than eps
    result = susceptibility(model, x, y, attack)
    assert result.fpr_lower == result.fpr_upper == 0.75


def test_the_attack_has_no_random_numbers(planes, cloud):
    first, second = (CarliniWagner(steps=10)(planes, cloud, index=np.arange(len(cloud)) + shift) for shift in (0, 9))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "`steps`"),
        ({"binary_search_steps": 0}, "`binary_search_steps`"),
        ({"learning_rate": 0}, "`learning_rate`"),
        ({"initial_const": -1}, "`initial_const`"),
        ({"confidence": -0.1}, "`confidence`"),
        ({"confidence": float("nan")}, "`confidence`"),
        ({"targets": 0}, "`targets`"),
        ({"targets": 2, "targeted": True}, "`targets` is for untargeted"),
        ({"clip": (1, 0)}, "low < high"),
    ],
)
def test_bad_configurations(options, match):
    with pytest.raises(ValueError, match=match):
        CarliniWagner(**options)


def test_more_targets_than_rivals(planes, cloud):
    with pytest.raises(ValueError, match="less than the number of classes, 4"):
        CarliniWagner(targets=4)(planes, cloud)


def test_other_norms_are_refused(planes, cloud, monkeypatch):
    monkeypatch.setattr(planes, "norm", "linf")
    with pytest.raises(ValueError, match="minimises the Euclidean norm"):
        CarliniWagner()(planes, cloud)


def test_logits_that_are_not_finite_leave_points_that_are():
    model = affine([[1, -1]], epsilon=0.3)
    model.network.layers[-1].kernel.assign([[1.0, np.nan]])
    assert np.isfinite(CarliniWagner(steps=5)(model, np.ones((2, 1), "float32"), [0, 0])).all()
