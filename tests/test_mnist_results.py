"""The committed MNIST nets hold on the test images what the README says of them, by proven bounds."""

from pathlib import Path

import keras
import numpy as np
import pytest

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("name", "vra", "vra_2eps", "fpr_upper"),
    [
        ("mnist_2c2f/eps_0.3", 0.9654, 0.8891, 0.0800),
        ("mnist_2c2f/eps_0.3_doubled", 0.9654, 0.9131, 0.0566),
        ("recipes/mnist-2c2f-0.6", 0.9704, 0.9233, 0.0497),
    ],
)
def test_the_committed_nets(mnist, name, vra, vra_2eps, fpr_upper):
    model = keras.models.load_model(RESULTS / f"{name}.keras")
    assert model.is_final
    model.finalize()
    verdicts = model.verdicts(mnist.x_test, batch_size=1000)
    correct = verdicts.label == mnist.y_test
    assert np.mean(correct) == pytest.approx(vra, abs=3e-4)
    assert np.mean(correct & (verdicts.radius > 0.6)) == pytest.approx(vra_2eps, abs=3e-4)
    assert 1 - np.sum(verdicts.radius > 0.6) / np.sum(~verdicts.rejected) == pytest.approx(fpr_upper, abs=6e-4)
