"""The committed nets hold on the test images what the README says of them, by proven bounds."""

from pathlib import Path

import keras
import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("name", "data", "vra", "vra_2eps", "fpr_upper"),
    [
        ("mnist_2c2f/eps_0.3", "mnist", 0.9657, 0.8899, 0.0795),
        ("mnist_2c2f/eps_0.3_doubled", "mnist", 0.9657, 0.9142, 0.0561),
        ("recipes/mnist-2c2f-0.6", "mnist", 0.9711, 0.9252, 0.0484),
        ("recipes/mnist-4c3f-1.58", "mnist", 0.5909, 0.0270, 0.9543),
        ("recipes/mnist-4c3f-3.16", "mnist", 0.5571, 0.0983, 0.8238),
        ("recipes/fashion-mnist-2c2f-0.3", "fashion_mnist", 0.8004, 0.7161, 0.1361),
        ("recipes/fashion-mnist-2c2f-0.6", "fashion_mnist", 0.7832, 0.7262, 0.1051),
    ],
)
def test_the_committed_nets(request, name, data, vra, vra_2eps, fpr_upper):
    images = request.getfixturevalue(data)
    model = keras.models.load_model(RESULTS / f"{name}.keras")
    assert model.is_final
    model.finalize()
    twice = 2 * float(model.epsilon)
    verdicts = model.verdicts(images.x_test, batch_size=1000)
    correct = verdicts.label == images.y_test
    assert np.mean(correct) == pytest.approx(vra, abs=3e-4)
    assert np.mean(correct & (verdicts.radius > twice)) == pytest.approx(vra_2eps, abs=3e-4)
    assert 1 - np.sum(verdicts.radius > twice) / np.sum(~verdicts.rejected) == pytest.approx(fpr_upper, abs=6e-4)
