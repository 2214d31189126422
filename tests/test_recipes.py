"""The recipes in `benchmarks/recipes`: what they say is what `defended train` takes, and a small run of each kind."""

import contextlib
import re
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.layers import Conv2D, Dense, Flatten

from defended import GloroNet, datasets, zoo
from defended.exceptions import BFloat16Warning
from defended.layers import MinMax
from defended.training import training_run
from defended.training.bfloat16 import supports_bfloat16
from defended.training.training_run import TrainingSettings, build_network, train, training_data

RECIPES = sorted((Path(__file__).parents[1] / "benchmarks" / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_complete(path):
    settings = TrainingSettings(**tomllib.loads(path.read_text(encoding="utf-8")))
    data, net, radius = re.fullmatch(r"(.+)-(\w+)-([0-9.]+)(?:-[a-z]+)?", path.stem).groups()
    trained = settings.epsilon * (2 if settings.doubling else max(int(settings.train_radius), 1))
    assert (settings.data, settings.net, trained) == (data.replace("-", "_"), net, pytest.approx(float(radius)))


def colours(tmp_path, size=96):
    """Small colour images of two kinds, in a file like those of the data sets."""
    rng = np.random.default_rng(0)
    y = np.arange(size) % 2
    x = np.clip(rng.normal(0.35 + 0.3 * y[:, None, None, None], 0.1, (size, 16, 16, 3)), 0, 1).astype("float32")
    np.savez(tmp_path / "colours.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return str(tmp_path / "colours.npz")


def test_liresnet_with_emma_on_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setitem(
        training_run.NETWORKS,
        "liresnet",
        lambda input_shape, num_classes: zoo.liresnet(input_shape, num_classes, depth=1, width=8, units=16),
    )
    settings = TrainingSettings(
        data=colours(tmp_path), net="liresnet", loss="emma", doubling=False, train_radius=1.1, start=0.1, epochs=20,
        batch_size=16, learning_rate=1e-2, augment="flip-shift", epsilon=0.141, validation_split=0.0,
    )  # fmt: skip
    run = train(settings, tmp_path / "run", verbose=0)
    assert isinstance(run.model, GloroNet)
    assert run.model.is_final
    verdicts = run.model.verdicts(run.dataset.x_test)
    assert np.mean(verdicts.label == run.dataset.y_test) > 0.9  # the two kinds are far apart


@pytest.mark.parametrize(
    ("augment", "share"), [("shift", 1.0), ("flip-shift", 1.0), ("affine", 0.6), ("elastic", 0.6), ("photo", 0.6)]
)
def test_augmentation_moves_images_and_keeps_their_number(tmp_path, augment, share):
    settings = TrainingSettings(data=colours(tmp_path), augment=augment, batch_size=40, validation_split=0.25)
    data = datasets.load(settings.data)
    arguments = training_data(settings, data, *data.split(settings.validation_split))
    batches = list(arguments["x"])
    assert [len(labels) for _, labels in batches] == [40, 32]
    assert len(arguments["validation_data"][0]) == 24
    seen = np.concatenate([images for images, _ in batches])
    assert seen.shape == (72, 16, 16, 3)
    originals = {image.tobytes() for image in data.x_train}
    assert np.mean([image.tobytes() not in originals for image in seen]) >= share


def test_road_signs_are_mirrored_and_other_data_are_not(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((129, 16, 16, 3)).astype("float32"), np.repeat(np.arange(43), 3)
    np.savez(tmp_path / "signs.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    settings = TrainingSettings(data=str(tmp_path / "signs.npz"), augment="signs", validation_split=0.0)
    data = datasets.load(settings.data)
    ((_, labels), *_) = training_data(settings, data, np.full(100, 19 * 3), np.arange(0))["x"]
    assert {*labels.numpy()} == {19, 20}, "curves to the left and to the right"
    settings = TrainingSettings(data=colours(tmp_path), augment="signs")
    data = datasets.load(settings.data)
    with pytest.raises(ValueError, match=r'43 classes .* these data have 2\. Take "photo"'):
        training_data(settings, data, *data.split(0.1))


def test_the_liresnet_of_the_zoo():
    network = build_network(
        TrainingSettings(net="liresnet"), type("Data", (), {"x_train": np.zeros((1, 32, 32, 3)), "num_classes": 7})
    )
    assert network.output_shape == (None, 7)
    assert sum(type(layer).__name__ == "LiResNetBlock" for layer in network.layers) == 6


def chain(make_body):
    """Makes a network of these layers and the logits, as those of the zoo are made."""

    def make(input_shape, num_classes):
        return keras.Sequential([keras.Input(input_shape), *make_body(), Dense(num_classes)])

    return make


def convolutions():
    return [Conv2D(4, 4, strides=2), MinMax(), Conv2D(8, 4, strides=2), MinMax(), Flatten(), Dense(16), MinMax()]


def test_every_setting_of_a_deep_recipe_on_a_small_run(tmp_path, monkeypatch):
    """Layers in proportion, slow biases, bfloat16 where there is any; bounds and answers are float32's all the same."""
    monkeypatch.setitem(training_run.NETWORKS, "liresnet", chain(convolutions))
    settings = TrainingSettings(
        data=colours(tmp_path), net="liresnet", loss="emma", doubling=False, start=0.1, epochs=4, batch_size=16,
        learning_rate=5e-3, decay="exponential", bias_rate=0.25, balance=(1.0, 2.0, 4.0, 1.0), bfloat16=True,
        epsilon=0.1, validation_split=0.0,
    )  # fmt: skip
    with contextlib.nullcontext() if supports_bfloat16() else pytest.warns(BFloat16Warning, match="in float32"):
        run = train(settings, tmp_path / "run", verbose=0)
    assert not tf.config.optimizer.get_experimental_options().get("auto_mixed_precision_onednn_bfloat16")
    assert run.model.is_final
    assert float(run.model.optimizer.learning_rate) == pytest.approx(5e-5, rel=1e-3)
    norms = np.array([np.linalg.norm(w.reshape(-1, w.shape[-1]), 2) for w in run.model.network.get_weights()[::2]])
    assert np.ptp(np.log2(norms / settings.balance)) < 2
    x = run.dataset.x_test
    again = train(settings, tmp_path / "run", verbose=0)
    assert again.was_finished
    np.testing.assert_array_equal(again.model.verdicts(x).label, run.model.verdicts(x).label)
    np.testing.assert_allclose(again.model.certified_radius(x), run.model.certified_radius(x), rtol=1e-4, atol=1e-6)


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path):
    settings = TrainingSettings(epochs=3)
    (tmp_path / "settings.toml").write_text('data = "digits"\nepochs = 3\n', encoding="utf-8")
    training_run.require_same_settings(tmp_path, settings)
    with pytest.raises(ValueError, match="balance = "):
        training_run.require_same_settings(tmp_path, TrainingSettings(epochs=3, balance=(1.0, 2.0)))


def test_a_run_may_end_with_sharpening(tmp_path, monkeypatch):
    """The same training, and more proven of what it left; a network that cannot be sharpened is refused beforehand."""
    monkeypatch.setitem(training_run.NETWORKS, "dense", chain(lambda: [Flatten(), Dense(32), MinMax()]))
    settings = {"epochs": 1, "net": "dense", "epsilon": 0.1}
    plain, sharp = (
        train(TrainingSettings(**settings, sharpen=sharpen), tmp_path / str(sharpen), verbose=0).model
        for sharpen in (False, True)
    )
    assert sharp.is_final
    x = datasets.load("digits").x_test
    np.testing.assert_allclose(sharp.network(x), plain.network(x), atol=1e-4)
    assert np.mean(sharp.certified_radius(x)) > 1.01 * np.mean(plain.certified_radius(x))
    inputs = keras.Input((8, 8, 1))
    flat = Flatten()(inputs)
    branched = keras.layers.Add()([Dense(10)(flat), Dense(10)(flat)])
    keras.Model(inputs, branched).save(tmp_path / "branched.keras")
    refused = TrainingSettings(network=str(tmp_path / "branched.keras"), sharpen=True)
    with pytest.raises(ValueError, match="`sharpen` needs a chain"):
        train(refused, tmp_path / "refused", verbose=0)
    assert not (tmp_path / "refused").exists()
