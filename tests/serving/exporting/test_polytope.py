"""Polytope nets as SavedModels and ONNX files."""

import numpy as np
import polytopes
from keras import layers

from defended import PolytopeNet


def final(network, epsilon, **options):
    model = PolytopeNet(network, epsilon=epsilon, **options)
    model.finalize()
    return model


def inputs(n, shape):
    return np.random.default_rng(1).standard_normal((n, *shape)).astype("float32")


def test_exported_graphs_answer_as_the_model(tmp_path):
    from defended.serving import export, export_onnx

    network = polytopes.sequential(
        (12, 12, 1), layers.Conv2D(2, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(3, 2, padding="same", activation="relu"), layers.AveragePooling2D(2), layers.Flatten(),
        layers.Dense(3),
    )  # fmt: skip
    model = final(
        polytopes.randomised(network, np.random.default_rng(8)), epsilon=0.022, slope="wong-kolter", radius_steps=1
    )
    sample = inputs(6, shape=(12, 12, 1))
    assert 0 < model.verdicts(sample).rejected.sum() < 6
    export(model, tmp_path, name="polytope", onnx=False, sample=sample)
    export_onnx(model, tmp_path / "m.onnx", sample=sample, audit=True)


def test_what_no_window_sees_and_relus_anywhere_are_written_as_onnx(tmp_path):
    from defended.serving import export_onnx

    network = polytopes.sequential(
        (5, 6, 1), layers.ReLU(), layers.Conv2D(2, 2, strides=(1, 3)), layers.AveragePooling2D((2, 1), 1, "same"),
        layers.ReLU(), layers.ReLU(), layers.Flatten(), layers.Dense(3),
    )  # fmt: skip
    model = final(
        polytopes.randomised(network, np.random.default_rng(8)), epsilon=0.05, slope="wong-kolter", radius_steps=1
    )
    export_onnx(model, tmp_path / "m.onnx", sample=inputs(4, shape=(5, 6, 1)))
