"""Smoothed models under attack: what is found, what is chance, and what the intervals count."""

import keras
import numpy as np
import pytest

import defended
from defended.attacks import (
    CertificateDescent,
    CertificateViolation,
    DecisionAttack,
    DegradationAttack,
    SmoothedPGD,
    SquareAttack,
    clopper_pearson,
    susceptibility,
)
from defended.attacks.core.balls import distances

EPSILON, SIGMA = 0.2, 0.25
# Distances to the boundary: rejected; contested; contested; beyond 2 eps, by far.
X = np.array([[0.05], [0.3], [-0.3], [0.35], [0.8], [-0.9]], "float32")
Y = np.array([0, 0, 1, 1, 0, 1])


def smoothed(samples=2000, mode="fixed", **options):
    """Logits (x, -x) under noise: class 0 has the probability Phi(x / sigma), and the true radius is |x|."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
    return defended.SmoothedNet(network, EPSILON, SIGMA, samples=samples, mode=mode, seed=3, **options)


@pytest.fixture(scope="module")
def model():
    return smoothed()


@pytest.fixture(scope="module")
def result(model):
    return susceptibility(model, X, Y, CertificateDescent(steps=10, batch_size=16))


def test_the_bracket_of_a_linear_network(result):
    """At 0.3 to 0.35 an attack of 0.2 leads to 0.1 to 0.15, where the true radius is too small to answer."""
    np.testing.assert_array_equal(result.records.rejected, [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(result.records.contested, [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(result.records.degraded, result.records.contested)
    assert (result.test_R, result.test_A, result.changed) == (5, 3, 0)
    assert (result.records.predicted == [0, 0, 1, 0, 0, 1]).all()
    assert result.final
    np.testing.assert_allclose(result.records.distance[[1, 2, 3]], EPSILON, rtol=1e-3)


def test_the_intervals_count_wrong_certificates(result):
    """fpr_upper rests on certificates, each wrong with probability 0.001: 5 of them with none wrong at 0.975."""
    assert result.fpr_upper.doubt == 0.001
    assert result.fpr_upper.interval == clopper_pearson(3, 5, 0.975)
    assert result.fpr_lower.interval == clopper_pearson(3, 5, 0.95)
    assert result.vra.doubt == 0.001
    assert result.rejection_rate.doubt == 0


def test_the_summary_and_the_table_tell_how_verdicts_are_drawn(result, model):
    summary = result.summary()
    assert summary["sampling"]["alpha"] == 0.001
    assert summary["radius_ceiling"] == model.radius_ceiling
    assert summary["spontaneous"]["total"] == 3
    table = result.to_table()
    assert "sigma=0.25" in table
    assert "no radius can exceed" in table
    assert "trivially" not in table


def test_a_ceiling_below_two_eps_is_called_trivial():
    low = smoothed(samples=60)
    assert EPSILON < low.radius_ceiling < 2 * EPSILON
    result = susceptibility(low, X, Y, lambda model, x, y: x)
    assert result.fpr_upper == 1.0
    assert "trivially 100 %" in result.to_table()


def test_chance_is_told_from_the_attack():
    """An attack that does nothing: what is 'degraded' then is what another draw rejects, and that is shown."""
    edge = np.linspace(0.2, 0.235, 60, dtype="float32")[:, None]  # radii just above eps: answered in some draws only
    result = susceptibility(smoothed(samples=4000), edge, np.zeros(60, int), lambda model, x, y: x)
    assert 0 < result.rejection_rate < 1
    assert result.test_R == int(result.records.attacked.sum())
    # The seed makes a draw a function of the batch, so that this attack finds the same verdicts; the redraw is another.
    assert result.fpr_lower == 0
    assert 0 < result.spontaneous < 1
    again = susceptibility(smoothed(samples=4000), edge, np.zeros(60, int), lambda model, x, y: x)
    assert again.redrawn == result.redrawn
    fresh = smoothed(samples=4000)
    fresh.seed = None
    result = susceptibility(fresh, edge, np.zeros(60, int), lambda model, x, y: x)
    assert 0 < result.spontaneous < 1
    assert abs(result.fpr_lower - result.spontaneous) < 0.4


def test_smoothed_pgd_and_algorithm_31_take_the_models_sigma(model):
    attack = DegradationAttack(SmoothedPGD(samples=50, steps=10, batch_size=16))
    result = susceptibility(model, X, Y, attack)
    np.testing.assert_array_equal(result.records.degraded, result.records.contested)


def test_certificate_descent_goes_to_the_end_where_radii_are_estimates(model):
    attacked = CertificateDescent(steps=10, batch_size=16, early_stop=True)(model, X)
    np.testing.assert_allclose(distances(X, attacked, "l2")[1:], EPSILON, rtol=1e-3)


def test_more_changed_answers_than_chance_explains_are_a_violation(model, monkeypatch):
    answer = type(model).verdicts
    monkeypatch.setattr(
        type(model), "verdicts", lambda self, x, batch_size=256: _swapped(answer(self, x, batch_size), x)
    )
    x = np.array([[0.3]] * 5 + [[0.9]], "float32")
    with pytest.raises(CertificateViolation, match="5 of 5 attacked inputs are answered with another label"):
        susceptibility(model, x, np.zeros(6, int), lambda model, x, y: x - 0.2)


def _swapped(verdicts, x):
    """Points that were moved to 0.1 are answered, and wrongly."""
    moved = np.isclose(x[:, 0], 0.1, atol=1e-3)
    return verdicts._replace(label=np.where(moved, 1, verdicts.label), rejected=verdicts.rejected & ~moved)


def test_a_measurement_of_a_smoothed_model_is_resumed_by_batches(model, tmp_path, monkeypatch):
    attack = CertificateDescent(steps=5, batch_size=16)
    whole = susceptibility(model, X, Y, attack, batch_size=2)
    judged = []
    answer = type(model).audit

    def counting(self, x, batch_size=256):
        judged.append(len(x))
        if len(judged) == 3:
            raise KeyboardInterrupt
        return answer(self, x, batch_size)

    monkeypatch.setattr(type(model), "audit", counting)
    with pytest.raises(KeyboardInterrupt):
        susceptibility(model, X, Y, attack, batch_size=2, resume=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("clean_*")) == ["clean_000000000.npz", "clean_000000002.npz"]
    resumed = susceptibility(model, X, Y, attack, batch_size=2, resume=tmp_path)
    for one, other in zip(whole.records[:6], resumed.records[:6], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("attack", [SquareAttack(queries=20, objective="certificate"), DecisionAttack(queries=60)])
def test_black_box_attacks_see_verdicts_of_samples(attack):
    model = smoothed(samples=500)
    attacked = attack(model, X, model.verdicts(X).label.clip(0))
    assert np.isfinite(attacked).all()
    assert (distances(X, attacked, "l2") <= np.float32(EPSILON)).all()
