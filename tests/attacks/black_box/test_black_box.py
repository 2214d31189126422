"""Attacks without gradients: what they ask, what they propose, and what they reach where the optimum is known."""

import functools
import json

import keras
import numpy as np
import pytest

import defended
from defended.attacks import DecisionAttack, DegradationAttack, SquareAttack, susceptibility
from defended.attacks.black_box import square_windows
from defended.attacks.core.balls import distances


class Counter:
    """A query function that keeps the points that it was asked for."""

    def __init__(self, judge):
        self.judge, self.points = judge, []

    def __call__(self, points):
        assert points.dtype == np.float32
        self.points.append(points.copy())
        return self.judge(points)

    @property
    def asked(self):
        return sum(map(len, self.points))


def half_space(normal, offset):
    """Rejects where <normal, x> >= offset, answers 3 elsewhere."""
    return lambda points: np.where(points.reshape(len(points), -1) @ normal >= offset, -1, 3)


# The decision-based attack.

NORMAL = np.random.default_rng(4).normal(size=12).astype("float32")


@pytest.mark.parametrize("shape", [(12,), (2, 3, 2)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_rejection_is_found_within_five_percent(norm, shape):
    """The distance to a half-space is <normal, x> - offset by the dual norm of the normal."""
    x = np.random.default_rng(5).normal(size=(20, *shape)).astype("float32")
    dual = np.linalg.norm(NORMAL) if norm == "l2" else np.abs(NORMAL).sum()
    nearest = (9.0 - x.reshape(20, -1) @ NORMAL) / dual
    assert nearest.min() > 0
    found = DecisionAttack(queries=6000).run(half_space(NORMAL, 9.0), x, radius=1e-3, norm=norm)
    assert found.found.all()
    np.testing.assert_allclose(found.distance, distances(x, found.inputs, norm))
    ratio = found.distance / nearest
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.05
    assert (half_space(NORMAL, 9.0)(found.inputs) == -1).all()


@pytest.mark.parametrize("queries", [1, 2, 3, 10, 57, 300])
def test_the_budget_is_kept_and_counted_exactly(queries):
    x = np.random.default_rng(5).normal(size=(9, 12)).astype("float32")
    counter = Counter(half_space(NORMAL, 9.0))
    found = DecisionAttack(queries=queries, batch_size=4).run(counter, x, radius=1e-3, norm="l2")
    assert counter.asked == found.queries.sum()
    assert found.queries.max() <= queries
    alone = Counter(half_space(NORMAL, 9.0))
    single = DecisionAttack(queries=queries).run(alone, x[4:5], radius=1e-3, norm="l2", index=[4])
    assert alone.asked == single.queries[0] == found.queries[4]
    np.testing.assert_array_equal(single.inputs[0], found.inputs[4])


def test_an_input_that_is_near_enough_asks_no_more():
    x = np.zeros((2, 12), "float32")
    found = DecisionAttack(queries=5000).run(half_space(NORMAL, 0.5), x, radius=2.0, norm="l2")
    assert (found.distance <= 2.0).all()
    assert found.queries.max() < 500


def test_what_is_rejected_already_costs_one_query():
    x = np.array([[0.0], [9.0]], "float32")
    found = DecisionAttack().run(half_space(np.ones(1), 1.0), x, radius=0.5, norm="l2")
    assert (found.distance[1], found.queries[1]) == (0, 1)
    assert found.queries[0] > 1
    np.testing.assert_array_equal(found.inputs[1], x[1])


def test_where_every_point_is_answered_the_input_comes_back():
    counter = Counter(lambda points: np.zeros(len(points), int))
    found = DecisionAttack(queries=400).run(counter, np.ones((3, 4), "float32"), radius=0.1, norm="l2")
    assert not found.found.any()
    assert np.isinf(found.distance).all()
    np.testing.assert_array_equal(found.inputs, 1)
    assert found.queries.max() <= 400


def test_another_answer_leads_to_the_rejections_before_it(line):
    """From 0.6 the points below -0.25 are answered otherwise; between lies ⊥, and its edge is at 0.25."""
    x = np.array([[0.6], [0.45]], "float32")
    attack = DecisionAttack(queries=60, starts=[[-3.0]])
    found = attack.run(line.verdicts, x, radius=0.25, norm="l2")
    np.testing.assert_allclose(found.inputs[:1], [[0.25]], atol=0.005)
    assert line.verdicts(found.inputs).rejected.all()
    assert found.distance[1] <= 0.25
    attacked = attack(line, x)
    np.testing.assert_allclose(attacked[0], 0.35, atol=1e-5)  # on the way, at distance eps
    np.testing.assert_array_equal(line.verdicts(attacked).rejected, [False, True])


def test_all_points_stay_in_the_box():
    counter = Counter(half_space(NORMAL, 2.0))
    x = np.random.default_rng(6).uniform(size=(5, 12)).astype("float32")
    starts = np.random.default_rng(7).uniform(size=(4, 12))
    DecisionAttack(queries=200, clip=(0, 1), starts=starts).run(counter, x, radius=1e-3, norm="l2")
    points = np.concatenate(counter.points)
    assert points.min() >= 0
    assert points.max() <= 1


def test_starts_are_tried_each_inputs_own_first():
    counter = Counter(lambda points: np.where(points[:, 0] > 4, -1, 0))
    starts = np.array([[5.0, 0], [6.0, 0], [7.0, 0]])
    DecisionAttack(queries=2, starts=starts).run(
        counter, np.zeros((4, 2), "float32"), radius=0.1, norm="l2", index=[0, 1, 2, 4]
    )
    np.testing.assert_array_equal(counter.points[1][:, 0], [5, 6, 7, 6])


def test_starts_are_named_in_the_configuration():
    one, other = (DecisionAttack(starts=np.full((1, 2), value)) for value in (0.5, 0.6))
    assert json.loads(json.dumps(one.config()))["starts"] != other.config()["starts"]
    assert "starts='1x2" in repr(one)


def test_the_decision_attack_proves_what_the_certificate_leaves_open(line):
    x = np.array([[0.1], [0.3], [0.45], [0.6], [-0.3], [-0.7]], "float32")
    result = susceptibility(line, x, [0, 0, 0, 0, 1, 1], DecisionAttack(queries=200))
    assert (result.fpr_lower.count, result.fpr_lower.total) == (3, 5)
    assert result.fpr_lower == result.fpr_upper


@pytest.mark.parametrize(
    "answer",
    [
        lambda points: np.zeros((len(points), 2), int),
        lambda points: np.zeros(len(points)),
        lambda points: np.zeros(len(points) + 1, int),
        lambda points: None,
    ],
)
def test_query_functions_that_return_something_else(answer):
    with pytest.raises(ValueError, match="`query` must return a label for each of 1 points"):
        DecisionAttack().run(answer, np.zeros((1, 2), "float32"), radius=0.1, norm="l2")


# The square attack.


def test_pyramids_by_hand():
    """One entry at distance 0, eight at distance 1: 1 + 1/4 in the middle, 1/4 around it."""
    expected = np.full((3, 3), 0.25)
    expected[1, 1] = 1.25
    np.testing.assert_allclose(square_windows.pyramid(3, 3), expected / np.sqrt(1.25**2 + 8 / 16))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 3), (4, 7), (7, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_patterns_have_norm_one_and_two_signs(size, turned):
    pattern = square_windows.two_pyramids(*size, turned)
    assert pattern.shape == size
    assert np.linalg.norm(pattern) == pytest.approx(1)
    assert (np.sort(np.unique(np.sign(pattern))) == ([1] if size == (1, 1) else [-1, 1])).all()
    if size[0] == size[1]:
        np.testing.assert_allclose(square_windows.two_pyramids(*size, not turned), pattern.T)


@pytest.mark.parametrize(
    ("share", "image", "expected"),
    [
        (0.25, (28, 28, 1), (14, 14)),
        (0.8, (28, 28, 3), (25, 25)),
        (1e-9, (8, 8, 1), (1, 1)),
        (1.0, (8, 8, 1), (8, 8)),
        (0.5, (1, 100, 1), (1, 50)),
        (0.5, (2, 8, 1), (2, 4)),
        (0.25, (8, 2, 1), (2, 2)),
    ],
)
def test_windows_hold_the_share_of_the_pixels(share, image, expected):
    window = square_windows.window_of(share, image)
    assert (window.height, window.width) == expected


def test_windows_shrink_as_published():
    """At 10,000 queries the share is halved at 10, 50, 200, 1000, 2000, 4000, 6000 and 8000."""
    stages = list(SquareAttack(queries=10_000)._stages((100, 100, 1)))
    assert sum(count for _, count in stages) == 9999  # the start is a query
    at, sides = 1, {}
    for window, count in stages:
        sides.setdefault(window.height, at)
        at += count
    expected = {
        round(100 * (0.8 / 2**k) ** 0.5): at for k, at in enumerate((1, 10, 50, 200, 1000, 2000, 4000, 6000, 8000))
    }
    assert sides == expected


@pytest.mark.parametrize("image", [(28, 28, 1), (7, 5, 3), (1, 20, 1), (1, 1, 1), (3, 1, 2)])
def test_starts_lie_on_the_sphere(image):
    stream = np.random.default_rng(0)
    assert np.linalg.norm(square_windows.start_l2(stream, image)) == pytest.approx(1)
    stripes = square_windows.start_linf(stream, image)
    assert (np.abs(stripes) == 1).all()
    assert (stripes == stripes[:1]).all()


@functools.cache
def image_model(epsilon=0.4):
    """Images with logits (<w, x>, 0), and w; no test changes the model."""
    network = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    weights = np.zeros((36, 2), "float32")
    weights[:, 0] = np.random.default_rng(2).normal(size=36)
    network.set_weights([weights, np.array([0.0, 0.0], "float32")])
    model = defended.GloroNet(network, epsilon=epsilon)
    model.finalize()
    return model, weights[:, 0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_square_finds_most_of_what_exists_on_a_linear_network(norm):
    """A point at the distance t from the plane can be brought across within any radius above t, and none below."""
    model, w = image_model()
    x = np.random.default_rng(3).normal(size=(40, 6, 6, 1)).astype("float32")
    logits = x.reshape(40, -1) @ w
    distance = np.abs(logits) / (np.linalg.norm(w) if norm == "l2" else np.abs(w).sum())
    radius = float(np.median(distance))
    attacked = SquareAttack(norm=norm, queries=1500, epsilon=radius)(model, x)
    flipped = np.sign(attacked.reshape(40, -1) @ w) != np.sign(logits)
    assert not flipped[distance > radius].any()
    assert flipped[distance < 0.8 * radius].mean() >= 0.9


def test_more_queries_find_smaller_scores():
    model, w = image_model()
    x = np.random.default_rng(3).normal(size=(40, 6, 6, 1)).astype("float32")

    side = np.sign(x.reshape(40, -1) @ w)
    scores = [
        side * (SquareAttack(queries=queries, epsilon=0.5)(model, x).reshape(40, -1) @ w) for queries in (1, 20, 200)
    ]
    # The same random numbers as far as both go, but other windows: compare on the whole.
    assert scores[0].mean() > scores[1].mean() > scores[2].mean()


@pytest.mark.parametrize("shape", [(20,), (10, 2), (4, 5, 1)])
def test_square_takes_vectors_rows_and_images(shape):
    network = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = defended.GloroNet(network, epsilon=0.5)
    x = np.random.default_rng(3).normal(size=(5, *shape)).astype("float32")
    attacked = SquareAttack(queries=20)(model, x)
    np.testing.assert_allclose(distances(x, attacked, "l2"), 0.5, rtol=1e-4)


def test_square_refuses_other_ranks():
    network = keras.Sequential([keras.Input((2, 2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = defended.GloroNet(network, epsilon=0.5)
    with pytest.raises(ValueError, match=r"\[h, w, c\]"):
        SquareAttack()(model, np.zeros((1, 2, 2, 2, 1), "float32"))


def test_the_score_of_bottom_degrades_within_eps_and_the_margin_half_way_back(line):
    x = np.array([[0.1], [0.3], [0.45], [0.6], [-0.3], [-0.7]], "float32")
    for attack in (SquareAttack(queries=20, objective="certificate"), DegradationAttack(SquareAttack(queries=20))):
        result = susceptibility(line, x, [0, 0, 0, 0, 1, 1], attack)
        assert (result.fpr_lower.count, result.fpr_lower.total) == (3, 5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SquareAttack(queries=0), "`queries`"),
        (lambda: SquareAttack(p_init=0), "`p_init`"),
        (lambda: SquareAttack(p_init=1.5), "`p_init`"),
        (lambda: SquareAttack(objective="loss"), "'margin', 'certificate'"),
        (lambda: SquareAttack(norm="l1"), "'l2', 'linf'"),
        (lambda: DecisionAttack(queries=0), "`queries`"),
        (lambda: DecisionAttack(samples=1), "`samples`"),
        (lambda: DecisionAttack(starts=np.zeros((0, 2))), "at least one point"),
        (lambda: DecisionAttack(starts=[[np.nan]]), "finite"),
        (lambda: DecisionAttack(starts=[[2.0]], clip=(0, 1)), "lie in the box"),
        (lambda: DecisionAttack(starts=[[2.0]]).run(None, np.zeros((1, 2)), radius=1, norm="l2"), r"\[k, 2\]"),
        (lambda: DecisionAttack().run(None, np.zeros((0, 2)), radius=1, norm="l2"), "at least one input"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
