"""Balls and boxes: numbers worked by hand, and what must hold for every input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from defended.attacks.core.balls import (
    BALLS,
    distances,
    place_inside,
    project_l2,
    project_l2_box,
    project_linf,
    project_linf_box,
    steepest_l2,
    steepest_linf,
)

FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)
ROWS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6), elements=FLOATS)
RADII = st.floats(2.0**-7, 64, width=32)
QUICK = settings(max_examples=60, deadline=None)


def row(*values):
    return np.array([values], np.float32)


def size(values, norm):
    return distances(np.zeros_like(values), values, norm)


@pytest.mark.parametrize(
    ("project", "delta", "radius", "expected"),
    [
        (project_l2, row(3, 4), 1, row(0.6, 0.8)),
        (project_l2, row(3, 4), 10, row(3, 4)),
        (project_l2, row(0, 0), 1, row(0, 0)),
        (project_l2, row(3e30, 4e30), 5, row(3, 4)),
        (project_linf, row(3, -0.5, -7), 1, row(1, -0.5, -1)),
        (project_linf, row(0.5, -0.5, 0), 1, row(0.5, -0.5, 0)),
    ],
)
def test_projections_by_hand(project, delta, radius, expected):
    np.testing.assert_allclose(project(delta, np.float32(radius)), expected, rtol=2e-6)


def test_rows_are_projected_one_by_one():
    result = project_l2(np.array([[[6.0], [8.0]], [[0.3], [0.4]]], np.float32), 5.0).numpy()
    np.testing.assert_allclose(result[:, :, 0], [[3, 4], [0.3, 0.4]], rtol=2e-6)


def test_projection_onto_l2_ball_and_box_by_hand():
    """The second coordinate stops at its bound 0.5, so the first takes the rest of the radius: sqrt(1 - 0.25)."""
    result = project_l2_box(row(3, 4), 1.0, np.float32(-0.5) * row(2, 1), np.float32(0.5) * row(2, 1))
    np.testing.assert_allclose(result, row(np.sqrt(0.75), 0.5), rtol=2e-6)


def test_a_box_inside_the_ball_is_clipping():
    result = project_l2_box(row(3, -4), 10.0, row(-1, -1), row(1, 1))
    np.testing.assert_allclose(result, row(1, -1), rtol=1e-6)


def test_a_box_that_leaves_no_room_keeps_the_point():
    np.testing.assert_array_equal(project_l2_box(row(3, -4), 1.0, row(0, 0), row(0, 0)), row(0, 0))


@pytest.mark.parametrize("norm", BALLS)
@given(delta=ROWS, radius=RADII)
@QUICK
def test_the_result_is_inside_and_points_inside_stay(norm, delta, radius):
    result = BALLS[norm].project(delta, radius).numpy()
    assert (size(result, norm) <= radius * (1 + 1e-6)).all()
    inside = size(delta, norm) <= radius * (1 - 2e-6)
    np.testing.assert_array_equal(result[inside], delta[inside])
    np.testing.assert_allclose(BALLS[norm].project(result, radius), result, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("norm", BALLS)
@given(delta=ROWS, radius=RADII, seed=st.integers(0, 9))
@QUICK
def test_box_projections_hold_both_and_are_nearest(norm, delta, radius, seed):
    rng = np.random.default_rng(seed)
    low, high = -rng.uniform(0, 3, delta.shape).astype("f4"), rng.uniform(0, 3, delta.shape).astype("f4")
    result = BALLS[norm].project_into_box(delta, radius, low, high).numpy()
    assert (result >= low).all()
    assert (result <= high).all()
    assert (size(result, norm) <= radius * (1 + 1e-6)).all()
    # Any other feasible point is farther away: here, random ones between 0 and the corner of the box.
    other = np.clip(rng.normal(0, 2, delta.shape), low, high)
    other *= np.minimum(1, radius / np.maximum(size(other, norm), 1e-9)).reshape(-1, *[1] * (delta.ndim - 1))
    assert (size(result - delta, "l2") <= size(other - delta, "l2") * (1 + 1e-4) + 1e-5).all()


def test_newton_ends_at_the_constrained_optimum_in_many_dimensions():
    """The optimum is clip(s * delta); a bisection on s in float64 finds it independently."""
    rng = np.random.default_rng(3)
    delta = rng.normal(size=(20, 784)).astype("f4")
    high = rng.uniform(0, 0.05, delta.shape).astype("f4")
    result = project_l2_box(delta, 0.4, -high, high).numpy()
    for point, bound, found in zip(delta.astype("f8"), high.astype("f8"), result, strict=True):
        low_s, high_s = 0.0, 1.0
        for _ in range(60):
            middle = (low_s + high_s) / 2
            fits = np.linalg.norm(np.clip(middle * point, -bound, bound)) <= 0.4
            low_s, high_s = (middle, high_s) if fits else (low_s, middle)
        np.testing.assert_allclose(found, np.clip(low_s * point, -bound, bound), atol=2e-5)


@given(delta=ROWS)
@QUICK
def test_steepest_directions_have_norm_one_and_the_dual_norm_as_product(delta):
    nonzero = np.abs(delta).reshape(len(delta), -1).max(axis=1) > 0
    for norm, steepest, dual in (("l2", steepest_l2, 2), ("linf", steepest_linf, 1)):
        direction = steepest(delta).numpy()
        np.testing.assert_allclose(size(direction, norm), nonzero.astype(float), rtol=2e-6)
        product = (direction * delta.astype("f8")).reshape(len(delta), -1).sum(axis=1)
        expected = np.linalg.norm(delta.reshape(len(delta), -1).astype("f8"), ord=dual, axis=1)
        np.testing.assert_allclose(product, expected, rtol=1e-5)


def test_gradients_whose_squares_underflow_keep_their_direction():
    np.testing.assert_allclose(steepest_l2(row(3e-30, 4e-30)), row(0.6, 0.8), rtol=1e-6)


def test_a_floor_shortens_the_steps_of_small_gradients():
    np.testing.assert_allclose(steepest_l2(row(3e-14, 4e-14), 1e-12), row(0.03, 0.04), rtol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_random_points_are_where_they_should_be(norm):
    rng = np.random.default_rng(0)
    inside = np.stack([BALLS[norm].random_inside(rng, (2, 1)) for _ in range(4000)])
    surface = np.stack([BALLS[norm].random_on_sphere(rng, (2, 1)) for _ in range(4000)])
    np.testing.assert_allclose(size(surface, norm), 1, rtol=1e-12)
    radii = size(inside, norm)
    assert radii.max() <= 1
    # The area within radius t is proportional to t^2: E t = 2/3, standard error 0.004.
    assert radii.mean() == pytest.approx(2 / 3, abs=0.015)
    assert np.abs(inside.mean(axis=0)).max() < 0.04
    # Every quadrant gets its quarter of the surface.
    quarters = np.mean((surface[:, 0, 0] > 0) & (surface[:, 1, 0] > 0))
    assert quarters == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("norm", BALLS)
@given(data=st.data())
@QUICK
def test_placed_points_are_inside_without_any_slack(norm, data):
    x = data.draw(ROWS)
    # Radii down to, and below, the spacing of float32 numbers near x.
    radius = data.draw(st.floats(1e-7, 10))
    delta = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=x.shape)
    delta *= 1.001 * radius / np.maximum(size(delta, norm), 1e-9).reshape(-1, *[1] * (x.ndim - 1))
    placed = place_inside(x, x + delta, radius, norm)
    assert placed.dtype == np.float32
    assert (distances(x, placed, norm) <= radius).all()


def test_placed_points_are_inside_where_float64_rounds_the_edge_of_the_ball():
    x, radius = np.array([[7.0, -7.0]], np.float32), np.nextafter(10.0, 0.0)
    assert 7.0 + radius == 17.0
    assert distances(x, place_inside(x, np.array([[20.0, -20.0]]), radius, "linf"), "linf") <= radius


def test_placing_keeps_what_is_inside_and_moves_the_rest_hardly():
    x = np.full((2, 784), 0.5, np.float32)
    delta = np.random.default_rng(0).normal(size=x.shape)
    delta /= np.linalg.norm(delta, axis=1, keepdims=True)
    attacked = (x + np.array([[0.2], [0.3]]) * delta).astype("f4")
    placed = place_inside(x, attacked, 0.3, "l2")
    np.testing.assert_array_equal(placed[0], attacked[0])
    np.testing.assert_allclose(distances(x, placed, "l2"), [0.2, 0.3], rtol=1e-6)


def test_placing_respects_the_box():
    x = np.array([[0.0, 1.0, 0.5]], np.float32)
    placed = place_inside(x, x + np.array([[-0.1, 0.1, 0.1]]), 0.2, "l2", (0.0, 1.0))
    np.testing.assert_allclose(placed, [[0.0, 1.0, 0.6]])


def test_linf_box_by_hand():
    np.testing.assert_allclose(project_linf_box(row(3, -3), 1.0, row(-0.2, -5), row(0.2, 5)), row(0.2, -1))
