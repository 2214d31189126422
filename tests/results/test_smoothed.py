"""The committed nets for smoothing, their logs and their table say the same, and hold on the test images."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from defended import datasets
from defended.smoothing import NoisyTrainer, SmoothedNet, certify, read_log

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "smoothed"
TABLES = json.loads((RESULTS / "tables.json").read_text())
NAMES = sorted(TABLES)


def test_there_are_four_nets():
    expected = [f"{data}_sigma_{sigma}" for data in ("fashion_mnist", "mnist") for sigma in ("0.25", "0.50")]
    assert expected == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_log_gives_the_tables_rates(name):
    log, figures = read_log(RESULTS / f"{name}.tsv"), TABLES[name]
    assert len(log) == figures["points"] == len(set(log.index))
    assert log.radius.max() <= figures["ceiling"]
    epsilon, row = next(iter(figures["eps"].items()))  # the logs are those of the first radius
    for rate in ("vra", "vra_2eps", "rejection_rate", "fpr_upper", "fpr_upper_correct"):
        assert getattr(log, rate)(float(epsilon)) == pytest.approx(row[rate]["value"], abs=1e-12), rate
    for row in figures["eps"].values():
        assert row["fpr_lower"]["value"] <= row["fpr_upper"]["value"]
        assert row["fpr_lower_paper"]["value"] <= row["fpr_upper"]["value"]


@pytest.mark.parametrize("name", NAMES)
def test_a_history_has_every_epoch(name):
    with (RESULTS / f"{name}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_nets_on_the_test_images(data_dir, name):
    figures = TABLES[name]
    data = datasets.load(str(data_dir / f"{name.partition('_sigma')[0]}.npz"))
    network = keras.models.load_model(RESULTS / f"{name}.keras")
    trainer = NoisyTrainer(network, sigma=figures["sigma"])
    trainer.compile(metrics=["accuracy"], jit_compile=False)
    x, y = data.x_test[:5000], data.y_test[:5000]
    noisy = trainer.evaluate(x, y, batch_size=500, verbose=0, return_dict=True)["accuracy"]
    # Half of the 10,000 images, with another draw of noise: the standard deviation is at most 0.9 %.
    assert noisy == pytest.approx(figures["accuracy_under_noise"], abs=0.02)
    model = SmoothedNet(network, epsilon=0.25, sigma=figures["sigma"], samples=300, mode="fixed")
    log = read_log(RESULTS / f"{name}.tsv")
    index = log.index[:40]
    again = certify(model, data.x_test[index], data.y_test[index], index=index)
    # With far fewer samples radii are smaller, and only chance makes them larger.
    assert np.mean(again.radius <= log.radius[:40] + 0.3 * figures["sigma"]) > 0.95
    assert np.mean(again.predicted == log.predicted[:40]) > 0.85
