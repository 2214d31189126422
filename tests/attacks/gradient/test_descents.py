"""PGD and CertificateDescent where the optimum, or a bound on it, is known."""

import keras
import numpy as np
import pytest
from attacked import EPSILON, MODELS, inputs

import defended
from defended.attacks import PGD, CertificateDescent

for_every_norm = pytest.mark.parametrize("norm", MODELS)


@for_every_norm
def test_certificate_descent_lowers_the_radius_and_more_runs_lower_it_further(models, norm):
    model, x = models[norm], inputs()
    few, many = CertificateDescent(steps=20), CertificateDescent(steps=20, targets=4, restarts=2)
    clean, one, more = (np.asarray(model.certified_radius(points)) for points in (x, few(model, x), many(model, x)))
    assert (one < clean).all()
    assert (more <= one + 1e-6).all()
    # A radius falls by at most one per unit of distance, while the class holds.
    held = clean > EPSILON
    assert held.any()
    assert (clean[held] - one[held] <= EPSILON * (1 + 1e-4)).all()


def test_certificate_descent_reaches_the_optimum_of_a_linear_model(models):
    """There r(x) = min over i of (y_j - y_i) / K_ij is a distance to a plane: it can be lowered by exactly eps."""
    model, x = models["linf"], inputs()
    clean = np.asarray(model.certified_radius(x))
    held = clean > EPSILON
    assert held.any()
    reached = np.asarray(model.certified_radius(CertificateDescent(steps=50)(model, x)))
    np.testing.assert_allclose(reached[held], clean[held] - EPSILON, atol=1e-3)


def test_pgd_finds_what_exists_on_a_linear_network():
    """Two classes, y = (x, -x): points with |x| < eps have another class within eps, others have none."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
    model = defended.GloroNet(network, epsilon=0.25)
    x = np.array([[-0.6], [-0.24], [-0.1], [0.1], [0.24], [0.26]], "float32")
    wide = {"steps": 20, "step_size": 0.05}  # enough to cross the ball from any start
    for attack in (PGD(**wide), PGD(**wide, loss="margin"), PGD(**wide, targeted=True)):
        moved = network.predict(attack(model, x), verbose=0).argmax(axis=1)
        clean = network.predict(x, verbose=0).argmax(axis=1)
        np.testing.assert_array_equal(moved != clean, np.abs(x[:, 0]) < 0.25)


def test_labels_tell_pgd_what_to_leave_and_where_to_go(models):
    model, x = models["l2"], inputs()
    attacked = PGD(steps=30, epsilon=20.0)(model, x)
    predicted = np.asarray(model.network(x)).argmax(axis=1)
    assert (np.asarray(model.network(attacked)).argmax(axis=1) != predicted).mean() > 0.8
    wanted = (predicted + 1) % 5
    reached = PGD(steps=30, epsilon=20.0, targeted=True)(model, x, keras.utils.to_categorical(wanted, 5))
    assert (np.asarray(model.network(reached)).argmax(axis=1) == wanted).mean() > 0.8
