"""Tabular data, from raw features to an audited artefact, standardised outside of the certified network."""

import json

import keras
import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

from defended import datasets
from defended.serving import load, verify
from defended.standardisation import Standardisation
from defended_cli import app


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """A folder with raw wine data, and a model that was trained on them."""
    folder = tmp_path_factory.mktemp("wine")
    x, y = load_wine(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    np.savez(folder / "wine.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    run("train", "--data", folder / "wine.npz", "--epochs", 30, "--out", folder / "run")
    return folder


def test_the_preset_standardises_and_the_model_keeps_how(wine):
    model = keras.models.load_model(wine / "run" / "model.keras")
    data = datasets.load(wine / "wine.npz")
    kept, _ = data.split(0.1)
    scaled = model.standardisation
    np.testing.assert_allclose(scaled.means, data.x_train[kept].mean(axis=0), rtol=1e-5)
    assert np.abs(scaled(data.x_train)).max() < 10 < np.abs(data.x_train).max()
    assert model.training_range.high < 10
    settings = (wine / "run" / "settings.toml").read_text()
    assert "standardise = true" in settings
    assert 'preset = "none"' in settings


def test_commands_measure_the_model_in_its_own_units(wine):
    data, model = wine / "wine.npz", wine / "run" / "model.keras"
    assert "standardised as in the model" in run("attack", model, "--data", data, "--steps", 5)
    said = run("certify", model, "--data", data, "--out", wine / "certificates")
    assert float(said.split("vra")[1].split("%")[0]) > 80
    run("export", model, "--to", wine / "models", "--name", "wine", "--data", data, "--no-onnx")
    artefact = wine / "models" / "wine" / "1"
    report = run("audit", artefact, "--data", data, "--out", wine / "audit")
    assert float(report.split("vra")[1].split("%")[0]) > 80
    # Whoever sends requests finds the numbers beside the graph, and in words in the card.
    numbers = json.loads((artefact / "assets.extra" / "standardisation.json").read_text())
    scaled = verify(artefact).standardisation.standardisation()
    assert Standardisation.from_json(numbers) == scaled
    assert "standardised features" in (artefact / "README.md").read_text()
    x = scaled(datasets.load(data).x_test)
    assert (load(artefact).predict(x)["label"] >= 0).mean() > 0.8


def test_the_numbers_by_hand():
    scaled = Standardisation.of(np.array([[1.0, 5.0, 7.0], [3.0, 15.0, 7.0]]))
    assert scaled == Standardisation((2.0, 10.0, 7.0), (1.0, 5.0, 1.0))
    assert scaled(np.array([[4.0, 0.0, 8.0]])).tolist() == [[2.0, -2.0, 1.0]]
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        scaled(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="rows of features"):
        Standardisation.of(np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="positive"):
        Standardisation((0.0,), (0.0,))
