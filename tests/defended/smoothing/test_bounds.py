"""The statistics of smoothing: against SciPy, against exact rational arithmetic, and rounded to the safe side."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from defended.smoothing import (
    binomial_p_value,
    fixed_gate,
    lower_confidence_bound,
    radius_ceiling,
    smallest_samples,
)
from defended.smoothing.bounds import MAX_SAMPLES, radius_of_bound
from defended.smoothing.gate import radius_table


def upper_tail(n, k, p):
    """P(Binomial(n, p) >= k), exactly."""
    q = 1 - p
    return sum(math.comb(n, i) * p**i * q ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize("samples", [1, 2, 10, 100, 1000, 100_000])
@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.5, 0.999])
def test_bounds_are_scipys_to_1e_10_over_all_counts_and_below(samples, alpha):
    counts = np.arange(samples + 1)
    ours = lower_confidence_bound(counts, samples, alpha)
    theirs = np.where(counts > 0, stats.beta.ppf(alpha, np.maximum(counts, 1), samples - counts + 1), 0.0)
    assert ours.dtype == np.float64
    assert (ours <= theirs).all()
    assert np.abs(ours - theirs).max() <= 1e-10
    assert (np.diff(ours) > 0).all()


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (7, 3), (40, 39), (100, 77), (200, 200)])
@pytest.mark.parametrize("alpha", [0.001, 0.5])
def test_a_bound_is_one_in_rational_arithmetic(samples, count, alpha):
    bound = float(lower_confidence_bound(count, samples, alpha))
    exact = upper_tail(samples, count, Fraction(bound))
    assert exact <= Fraction(alpha)
    assert exact >= Fraction(alpha) * (1 - Fraction(1, 10**6)), "and no looser than it must be"


def test_bounds_agree_with_scipys_binomtest():
    for k, n in [(990, 1000), (600, 1000), (1, 30)]:
        theirs = stats.binomtest(k, n, alternative="greater").proportion_ci(0.999, method="exact").low
        assert float(lower_confidence_bound(k, n, 0.001)) == pytest.approx(theirs, abs=1e-10)


def test_p_values_are_scipys_binomtest():
    rng = np.random.default_rng(0)
    total = rng.integers(1, 3000, 60)
    first = rng.binomial(total, rng.uniform(size=60))
    ours = binomial_p_value(first, total - first)
    theirs = [stats.binomtest(int(k), int(n), 0.5).pvalue for k, n in zip(first, total, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_p_values_by_hand():
    assert binomial_p_value(np.array([0, 1, 5, 3]), np.array([0, 0, 5, 0])).tolist() == [1, 1, 1, 0.25]
    assert binomial_p_value(0, 10) == binomial_p_value(10, 0) == pytest.approx(2 / 2**10)


def test_radii_are_rounded_down_and_never_negative():
    bounds = np.concatenate([[0, 0.3, 0.5, np.nextafter(0.5, 1)], np.linspace(0.5, 1, 5000), [1 - 1e-16, 1.0]])
    radius = radius_of_bound(bounds, 0.37)
    assert radius.dtype == np.float32
    exact = 0.37 * stats.norm.ppf(np.clip(bounds, 0.5, 1 - 1e-16))
    assert (radius.astype(float) <= exact).all()
    np.testing.assert_allclose(radius, np.float32(exact), rtol=3e-7, atol=1e-12)
    assert (radius[:3] == 0).all()
    assert np.isfinite(radius).all()


def test_the_table_of_the_papers_settings():
    """n = 100,000, alpha = 0.001: 3.81 sigma for a unanimous vote, as in the published results."""
    table = radius_table(0.25, 100_000, 0.001)
    assert table[-1] == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 100_000)), rel=1e-6)
    assert table[-1] / 0.25 == pytest.approx(3.81, abs=0.005)
    assert (np.diff(table) >= 0).all()
    assert (table[:50_001] == 0).all()
    count = 99_000
    low = stats.beta.ppf(0.001, count, 100_000 - count + 1)
    assert table[count] == pytest.approx(0.25 * stats.norm.ppf(low), rel=1e-6)


@pytest.mark.parametrize(("epsilon", "sigma", "samples"), [(0.25, 0.25, 10_000), (0.5, 0.25, 1000), (0.01, 1.0, 50)])
def test_the_gate_is_the_comparison_with_epsilon(epsilon, sigma, samples):
    gate = fixed_gate(epsilon, sigma, samples, 0.01)
    answer = int(gate.answer[0])
    assert gate.radius[answer] > np.float32(epsilon) >= gate.radius[answer - 1]
    # p > Phi(epsilon / sigma), without the table.
    bounds = lower_confidence_bound(np.array([answer - 1, answer]), samples, 0.01)
    assert bounds[0] <= stats.norm.cdf(epsilon / sigma) + 1e-7
    assert bounds[1] >= stats.norm.cdf(epsilon / sigma)
    assert (gate.checkpoints[0], gate.futile[0]) == (samples, answer - 1)


def test_the_smallest_number_of_samples_is_the_smallest():
    for epsilon, sigma, alpha in [(0.25, 0.25, 0.001), (0.5, 0.25, 0.001), (1.0, 0.25, 0.01), (0.001, 1.0, 0.2)]:
        n = smallest_samples(epsilon, sigma, alpha)
        assert radius_ceiling(sigma, n, alpha) > np.float32(epsilon)
        assert n == 1 or radius_ceiling(sigma, n - 1, alpha) <= np.float32(epsilon)
        assert n == pytest.approx(math.log(alpha) / stats.norm.logcdf(epsilon / sigma), abs=1.01)
    assert smallest_samples(10.0, 1.0, 0.001) is None
    assert smallest_samples(5.5, 1.0, 0.001) is None, f"more than {MAX_SAMPLES}"


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2, float("nan")])
def test_alpha_outside_the_unit_interval(alpha):
    with pytest.raises(ValueError, match=r"`alpha` must lie strictly between 0 and 1"):
        lower_confidence_bound(1, 2, alpha)


@pytest.mark.parametrize("counts", [[-1], [11], [0.5], np.array([3.0])])
def test_counts_that_are_none(counts):
    with pytest.raises(ValueError, match="whole numbers in"):
        lower_confidence_bound(counts, 10, 0.1)
    with pytest.raises(ValueError, match="counts, whole numbers"):
        binomial_p_value(np.array([-1]), np.array([2]))
