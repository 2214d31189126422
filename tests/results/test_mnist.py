"""The committed nets hold on the test images what the README says of them, by proven bounds."""

from pathlib import Path

import keras
import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("name", "data", "vra", "vra_2eps", "fpr_upper"),
    [
        ("mnist_2c2f/eps_0.3", "mnist", 0.9674, 0.8933, 0.0786),
        ("mnist_2c2f/eps_0.3_doubled", "mnist", 0.9667, 0.9173, 0.0546),
        ("recipes/mnist-2c2f-0.6", "mnist", 0.9712, 0.9254, 0.0490),
        ("recipes/mnist-4c3f-1.58", "mnist", 0.5930, 0.0278, 0.9557),
        ("recipes/mnist-4c3f-3.16", "mnist", 0.5590, 0.0999, 0.8273),
        ("recipes/fashion-mnist-2c2f-0.3", "fashion_mnist", 0.8009, 0.7168, 0.1392),
        ("recipes/fashion-mnist-2c2f-0.6", "fashion_mnist", 0.7838, 0.7266, 0.1065),
    ],
)
def test_the_committed_nets(request, name, data, vra, vra_2eps, fpr_upper):
    images = request.getfixturevalue(data)
    model = keras.models.load_model(RESULTS / f"{name}.keras")
    assert model.is_final, "the bounds of the file hold"
    epsilon = float(model.epsilon)
    found = model.audit(images.x_test, batch_size=250)
    correct, answered = found["label"] == images.y_test, ~found["rejected"]
    assert np.mean(correct) == pytest.approx(vra, abs=3e-4)
    assert np.mean(correct & (found["certified_radius"] > 2 * epsilon)) == pytest.approx(vra_2eps, abs=3e-4)
    stays = answered & (found["availability_radius"] > epsilon)
    assert 1 - np.sum(stays) / np.sum(answered) == pytest.approx(fpr_upper, abs=6e-4)
