"""The sequential gate: its error, exactly for a short cap and by simulation for the real one; its early endings."""

import numpy as np
import pytest
from scipy import stats

from defended.smoothing import fixed_gate, sequential_gate
from defended.smoothing.sequential import lower_confidence_sequence

SIGMA = 0.25


def simulate(gate, p, runs, seed=0):
    """`(answered, radius, draws)` of runs with votes of probability p, one binomial draw a checkpoint."""
    rng = np.random.default_rng(seed)
    answered, radius, draws = np.zeros(runs, bool), np.zeros(runs, np.float32), np.zeros(runs, int)
    going, votes, before = np.arange(runs), np.zeros(runs, int), 0
    for j, t in enumerate(gate.checkpoints):
        votes = votes + rng.binomial(int(t) - before, p, len(going))
        before = int(t)
        yes, no = votes >= gate.answer[j], votes <= gate.futile[j]
        answered[going[yes]] = True
        known = yes | (j == len(gate.checkpoints) - 1)
        radius[going[known]] = gate.radius[gate.offset[j] + votes[known]]
        draws[going[yes | no]] = t
        going, votes = going[~(yes | no)], votes[~(yes | no)]
    assert not len(going), "the cap decides on every count"
    return answered, radius, draws


def exact_answer_probability(gate, p):
    """The probability that the gate answers, by propagating the distribution of the votes that go on."""
    total, before, law = 0.0, 0, np.ones(1)
    for j, t in enumerate(gate.checkpoints):
        law = np.convolve(law, stats.binom.pmf(np.arange(int(t) - before + 1), int(t) - before, p))
        before, counts = int(t), np.arange(len(law))
        total += law[counts >= gate.answer[j]].sum()
        law[(counts >= gate.answer[j]) | (counts <= gate.futile[j])] = 0
    return total


def no_more_than(errors, runs, alpha):
    """Whether the lower end of the 99.9 % interval of an observed rate lies below alpha."""
    low = stats.beta.ppf(0.001, errors, runs - errors + 1) if errors else 0.0
    return low <= alpha


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("epsilon", [0.1, 0.25, 0.5])
def test_at_the_threshold_the_error_is_at_most_alpha_exactly(epsilon, alpha):
    gate = sequential_gate(epsilon, SIGMA, 2000, alpha)
    share = stats.norm.cdf(np.float32(epsilon) / SIGMA)
    error = exact_answer_probability(gate, share)
    assert error <= alpha
    assert error > alpha / 20, "a gate that never answers would pass too"
    assert exact_answer_probability(gate, share - 0.02) < error < exact_answer_probability(gate, share + 0.02)


@pytest.mark.parametrize(
    ("alpha", "shifts"), [(0.001, (-0.01, -0.002, 0.0, 0.002, 0.01)), (0.05, (-0.002, 0.0, 0.002))]
)
def test_a_hundred_thousand_runs_at_and_around_the_threshold(alpha, shifts):
    """A radius above the true one, sigma * Phi^-1(p), is an error, whatever was answered."""
    epsilon, runs = 0.25, 100_000
    gate = sequential_gate(epsilon, SIGMA, 100_000, alpha)
    threshold = stats.norm.cdf(epsilon / SIGMA)
    for p in (*(threshold + shift for shift in shifts), 0.95):
        answered, radius, _ = simulate(gate, p, runs, seed=int(1e4 * p))
        errors = int((radius.astype(float) > SIGMA * stats.norm.ppf(p)).sum())
        assert no_more_than(errors, runs, alpha), f"{errors} of {runs} at p = {p}"
        if p <= threshold:
            assert (radius[answered] > np.float32(epsilon)).all()
            assert int(answered.sum()) <= errors


def test_giving_up_early_seldom_costs_an_answer():
    epsilon, alpha, runs = 0.25, 0.001, 100_000
    gate = sequential_gate(epsilon, SIGMA, 20_000, alpha)
    needed = gate.answer[-1] / 20_000
    for p in (needed, needed + 0.005, 0.9, 0.99):
        answered, _, draws = simulate(gate, p, runs, seed=1)
        early = int((~answered & (draws < 20_000)).sum())
        assert no_more_than(early, runs, alpha), f"{early} of {runs} at p = {p}"


def test_decisions_are_the_fixed_ones_away_from_the_threshold():
    fixed, gate = fixed_gate(0.25, SIGMA, 100_000, 0.001), sequential_gate(0.25, SIGMA, 100_000, 0.001)
    assert 0 <= gate.answer[-1] - fixed.answer[0] < 60, "the cap needs hardly more votes than the fixed gate"
    for p, expected in ((0.3, False), (0.8, False), (0.82, False), (0.86, True), (0.9, True), (0.999, True)):
        answered, _, _ = simulate(gate, p, 5000)
        assert (answered == expected).mean() >= 0.998
        assert (simulate(fixed, p, 5000)[0] == expected).mean() >= 0.998


def test_clean_inputs_take_a_hundred_draws_and_contested_ones_all():
    gate = sequential_gate(0.25, SIGMA, 100_000, 0.001)
    median = {p: np.median(simulate(gate, p, 5000)[2]) for p in (0.05, 0.5, 0.999, 0.95, stats.norm.cdf(1.0) + 0.003)}
    assert median[0.999] <= 60
    assert median[0.95] <= 200
    assert max(median[0.05], median[0.5]) <= 60, "wrong candidates are given up as fast"
    assert median[stats.norm.cdf(1.0) + 0.003] == 100_000


def test_the_bound_by_hand():
    """One class's votes only: M_t(p0) = c / p0^t with c = E[theta^t], so L_t = (a * c)^(1/t)."""
    t, alpha, share = 80, 0.001, 0.8
    theta = np.linspace(share, 1, 2_000_001)[:-1] + 0.5e-7
    weight = 0.5 * (1 - theta) ** -0.5
    c = np.sum(theta**t * weight) / np.sum(weight)
    bound = float(lower_confidence_sequence([t], t, alpha, share)[0])
    assert bound == pytest.approx((alpha * c) ** (1 / t), rel=1e-3)
    assert bound < 1


def test_bounds_stay_below_the_share_and_grow_with_the_votes():
    for t in (1, 50, 1000, 100_000):
        counts = np.unique(np.linspace(0, t, 200).astype(int))
        bounds = lower_confidence_sequence(counts, t, 0.001, 0.84)
        assert (bounds <= counts / t).all()
        assert (np.diff(bounds) >= 0).all()
        assert np.isfinite(bounds).all()
    assert lower_confidence_sequence([0, 10], 100, 0.001, 0.84).max() <= 0.1


@pytest.mark.parametrize(
    ("epsilon", "samples"), [(0.25, 100_000), (0.25, 60), (0.25, 45), (0.9, 100_000), (0.001, 5000)]
)
def test_the_tables_hold_together(epsilon, samples):
    gate = sequential_gate(epsilon, SIGMA, samples, 0.001)
    assert (np.diff(gate.checkpoints) > 0).all()
    assert gate.checkpoints[-1] == samples
    assert (gate.futile < gate.answer).all()
    assert gate.futile[-1] == gate.answer[-1] - 1
    for j, t in enumerate(gate.checkpoints[:-1]):
        low, high = gate.offset[j] + gate.answer[j], gate.offset[j] + t
        table = gate.radius[low : high + 1]
        assert (table > np.float32(epsilon)).all()
        assert (np.diff(table) >= 0).all()
        following = gate.offset[j + 1] + (0 if j + 2 == len(gate.checkpoints) else gate.answer[j + 1])
        assert following == high + 1
    assert len(gate.radius) == gate.offset[-1] + samples + 1
    assert all(part.dtype == (np.float32 if name == "radius" else np.int32) for name, part in gate._asdict().items())


def test_a_unanimous_vote_is_all_that_a_small_cap_allows():
    """45 votes of 45 at alpha / 2 just certify 0.25 at sigma 0.25, 44 do not."""
    gate = sequential_gate(0.25, SIGMA, 45, 0.001)
    assert gate.answer[-1] == 45
    assert exact_answer_probability(gate, 0.99) == pytest.approx(0.99**45, rel=1e-9)
