"""Each rate by hand, from facts of a few inputs."""

import numpy as np
import pytest

from defended.statistics.intervals import Rate
from defended.statistics.rates import DEFINITIONS, InputFacts, exceeds, fpr_upper_curve, vra_curve

# Radii at eps = 1: rejected, contested, contested, safe, safe but wrong, the edge (a rejection: the ball is closed).
RADIUS = np.array([0.5, 1.5, 2.0, 3.0, 4.0, 1.0])
CORRECT = np.array([True, True, True, True, False, True])
DEGRADED = np.array([False, True, False, False, False, False])
CHANGED = np.array([False, False, True, False, False, False])


def facts(**options):
    found = InputFacts.at(RADIUS, CORRECT, 1.0)
    return InputFacts(**{**vars(found), **options})


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("clean_accuracy", 5, 6),
        ("rejection_rate", 2, 6),
        ("accuracy_on_answered", 3, 4),
        ("vra", 3, 6),
        ("vra_2eps", 1, 6),
        ("always_answered", 2, 6),
        ("vra_under_attack", 2, 6),
        ("utility_reduction", 1, 6),
        ("fpr_lower", 1, 4),
        ("fpr_upper", 2, 4),
        ("fpr_lower_correct", 1, 3),
        ("fpr_upper_correct", 2, 3),
    ],
)
def test_every_rate_by_hand(name, count, total):
    assert facts(degraded=DEGRADED).rate(name) == Rate(count, total)
    rate = facts(degraded=DEGRADED).rate(name)
    assert (rate.count, rate.total) == (count, total)


def test_there_is_a_rate_by_hand_for_every_definition():
    assert set(facts(degraded=DEGRADED).rates()) == set(DEFINITIONS)
    assert len(DEFINITIONS) == 12


def test_what_the_attack_changed_is_not_kept_but_is_not_degraded_either():
    found = facts(degraded=DEGRADED, changed=CHANGED)
    assert found.rate("vra_under_attack").count == 1
    assert found.rate("utility_reduction").count == 1
    assert found.rate("fpr_lower").count == 1


def test_vra_under_attack_and_what_was_lost_sum_to_vra():
    found = facts(degraded=DEGRADED)
    counts = [found.rate(name).count for name in ("vra_under_attack", "utility_reduction", "vra")]
    assert counts[0] + counts[1] == counts[2]


def test_an_answer_without_a_certificate_is_no_vra():
    """A lie: answered, and not certified. It is answered all the same, so it may be forced into a rejection."""
    answered = ~InputFacts.at(RADIUS, CORRECT, 1.0).rejected
    none = np.zeros(6, bool)
    found = facts(certified=none, safe=none, certified_twice=none, degraded=DEGRADED)
    assert found.rate("vra") == found.rate("vra_2eps") == found.rate("vra_under_attack") == 0
    assert found.rate("fpr_upper") == 1
    assert found.rate("fpr_upper").total == answered.sum()


def test_what_is_not_known_is_no_rate():
    unlabelled = InputFacts.at(RADIUS, None, 1.0)
    assert unlabelled.rates(("vra", "rejection_rate", "fpr_lower")) == {
        "vra": None, "rejection_rate": Rate(2, 6), "fpr_lower": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="`vra` counts facts that are not known"):
        unlabelled.rate("vra")


def test_alpha_counts_where_a_rate_rests_on_certificates_and_nowhere_else():
    rates = facts(degraded=DEGRADED).rates(alpha=0.01)
    doubted = {name for name, rate in rates.items() if rate.doubt}
    assert doubted == {
        "vra", "vra_2eps", "always_answered", "vra_under_attack", "fpr_upper", "fpr_upper_correct",
    }  # fmt: skip
    assert rates["vra"].interval == Rate(3, 6, doubt=0.01).interval
    assert rates["vra"].interval[0] < Rate(3, 6).interval[0]


def test_a_part_of_the_inputs():
    part = facts(degraded=DEGRADED).of(CORRECT)
    assert part.rate("always_answered") == Rate(1, 5)
    assert part.changed is None


def test_radii_are_compared_in_float32():
    """0.1 as float32 is larger than 0.1: a radius that equals the deployed epsilon is not above it."""
    assert not exceeds(np.array([np.float32(0.1)], np.float64), 0.1)[0]
    assert exceeds(np.nextafter(np.float32([0.1]), np.float32(1)), 0.1)[0]


def test_curves_pass_through_the_rates():
    radii = np.array([0.5, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(vra_curve(RADIUS, CORRECT, radii), [4 / 6, 3 / 6, 1 / 6, 0])
    np.testing.assert_allclose(fpr_upper_curve(RADIUS, radii), [1 / 5, 2 / 4, 1, np.nan])


def test_published_figures_count_a_radius_that_equals_eps():
    found = InputFacts.at(RADIUS, CORRECT, 1.0, strict=False)
    wanted = {"vra": (4, 6), "vra_2eps": (2, 6), "rejection_rate": (1, 6), "fpr_upper": (2, 5)}
    assert {name: (rate.count, rate.total) for name, rate in found.rates(wanted).items()} == wanted
    at = np.array([1.0])
    assert vra_curve(RADIUS, CORRECT, at, strict=False) == 4 / 6
    assert fpr_upper_curve(RADIUS, at, strict=False) == 2 / 5


def test_no_inputs_have_rates_of_nothing():
    empty = InputFacts.at(np.zeros(0), np.zeros(0, bool), 1.0)
    assert empty.rate("vra").interval == (0, 1)
