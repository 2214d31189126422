"""Algorithm 3.1 around base attacks whose perturbations are known."""

import numpy as np
import pytest
from attacked import EPSILON, MODELS, inputs

from defended.attacks import DegradationAttack
from defended.attacks.core.balls import distances

for_every_norm = pytest.mark.parametrize("norm", MODELS)


@for_every_norm
def test_algorithm_31_takes_the_base_attack_half_way_back(models, norm):
    model, x, epsilon = models[norm], inputs(), float(np.float32(EPSILON))

    def base(model, x, y=None, *, epsilon):
        assert epsilon == pytest.approx(2 * EPSILON)
        shift = np.zeros_like(x)
        shift[:, 0, 0, 0], shift[:, 1, 1, 1] = 0.6, 0.1
        shift[0] *= 0.1
        return x + shift

    delta = DegradationAttack(base)(model, x) - x
    a, b = delta[:, 0, 0, 0], delta[:, 1, 1, 1]
    scale = epsilon / np.hypot(0.6, 0.1)
    expected = (0.6 * scale, 0.1 * scale) if norm == "l2" else (epsilon, 0.1)
    np.testing.assert_allclose(a[1:], expected[0], rtol=1e-5)
    np.testing.assert_allclose(b[1:], expected[1], rtol=1e-5)
    np.testing.assert_allclose((a[0], b[0]), (0.06, 0.01), rtol=1e-4)
    rescaled = DegradationAttack(base, scale_to_sphere=True)(model, x)
    np.testing.assert_allclose(distances(x, rescaled, norm), epsilon, rtol=1e-5)


def test_base_attacks_without_an_epsilon_keyword_keep_their_radius(models):
    x = inputs()
    attacked = DegradationAttack(lambda model, x, y=None: x + 0.01)(models["l2"], x)
    np.testing.assert_allclose(attacked, x + 0.01, atol=1e-6)


def test_the_published_configuration(models):
    attack = DegradationAttack.published(0.3)
    assert attack.clip == (-0.6, 1.6)
    assert attack.config()["base_attack"]["gradient_floor"] == 1e-12
    assert distances(inputs(), attack(models["l2"], inputs()), "l2").max() <= 0.3
