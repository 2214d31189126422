"""The recipe as callbacks, and the presets that a run takes where it is told nothing."""

import keras
import numpy as np
import pytest
from keras import layers

from defended import GloroNet, callbacks, datasets
from defended.layers import MinMax
from defended.training.training_run import train
from defended_settings.presets import KINDS, PRESETS, kind_of
from defended_settings.training import TrainingSettings

DIGITS = datasets.load("digits")


def compiled(network=None, optimizer="adam"):
    if network is None:
        network = keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(8), MinMax(), layers.Dense(10)]
        )
    model = GloroNet(network, epsilon=0.25)
    model.compile(optimizer, loss="trades_kl.1.5", metrics=["vra"])
    return model


def fit(model, *more, epochs=2, **arguments):
    steering = [*callbacks.recipe(**arguments), *more]
    return model.fit(DIGITS.x_train[:200], DIGITS.y_train[:200], validation_split=0.2, epochs=epochs, batch_size=40,
                     callbacks=steering, verbose=0)  # fmt: skip


class Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))


def test_the_rate_falls_batch_by_batch_to_a_thousandth():
    rates = Rates()
    fit(compiled(), rates, learning_rate=0.01)
    # Two epochs of four batches: the k-th begins after k / 8 of the training.
    np.testing.assert_allclose(rates.seen, [0.01 * (1 - 0.999 * k / 8) for k in range(8)], rtol=1e-6)


@pytest.mark.parametrize("doubling", [True, False])
def test_it_trains_at_its_radius_and_ends_with_a_proof(doubling):
    model = compiled()
    history = fit(model, doubling=doubling).history
    assert ("val_vra_2eps" in history) == doubling
    assert model.is_final
    assert float(model.radius_scale) == 1.0


def test_bounds_are_sharpened_when_training_ends():
    keras.utils.set_random_seed(0)
    plain, sharp = compiled(), compiled()
    sharp.set_weights(plain.get_weights())
    steering = callbacks.recipe(doubling=False)
    for model, used in ((plain, steering[:-1]), (sharp, steering)):
        keras.utils.set_random_seed(1)
        model.fit(DIGITS.x_train[:200], DIGITS.y_train[:200], epochs=2, batch_size=40, shuffle=False, callbacks=used,
                  verbose=0)  # fmt: skip
    logits = [np.asarray(model.network(DIGITS.x_test[:20])) for model in (plain, sharp)]
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert sharp.margin_lipschitz.mean() < plain.margin_lipschitz.mean()


def test_a_network_that_branches_trains_without_sharpening():
    inputs = keras.Input((8, 8, 1))
    value = layers.Flatten()(inputs)
    model = compiled(keras.Model(inputs, layers.Dense(10)(layers.Add()([value, layers.Dense(64)(value)]))))
    fit(model)
    assert model.is_final


def test_an_optimizer_with_a_schedule_and_an_unknown_kind_are_refused():
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5)
    with pytest.raises(ValueError, match="schedule of its own"):
        fit(compiled(optimizer=keras.optimizers.Adam(schedule)))
    with pytest.raises(ValueError, match="small-images"):
        callbacks.recipe("videos")
    with pytest.raises(TypeError, match="DefendedModel"):
        callbacks.SharpenAtEnd().set_model(keras.Sequential([keras.Input((2,)), layers.Dense(2)]))


@pytest.mark.parametrize("kind", KINDS)
def test_presets_are_settings_and_recipes(kind):
    settings = TrainingSettings(**PRESETS[kind])
    assert isinstance(callbacks.recipe(kind)[-1], callbacks.SharpenAtEnd)
    assert settings.sharpen


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((8, 8, 1), "small-images"), ((32, 32, 3), "colour-images"), ((30,), "tabular"), ((10, 4), None)],
)
def test_the_kind_is_told_by_the_shape(shape, kind):
    assert kind_of(shape) == kind
    settled = TrainingSettings(epochs=7, learning_rate=0.5).settled(shape)
    assert (settled.epochs, settled.learning_rate, settled.preset) == (7, 0.5, "none")
    assert settled.loss == ("emma" if kind == "colour-images" else "trades_kl.1.5")


def test_no_preset_means_the_plain_defaults():
    assert TrainingSettings(preset="none").settled((32, 32, 3)) == TrainingSettings(preset="none")


def test_a_run_of_before_goes_on_as_it_began(tmp_path):
    run = {"data": "digits", "net": "dense", "epochs": 1, "epsilon": 0.25}
    before = TrainingSettings(**run, preset="none").model_dump(exclude_none=True, exclude={"preset"})
    begun = train(TrainingSettings(**before), tmp_path, verbose=0)
    assert begun.model.steps_per_execution == 11  # the batches of an epoch: a progress bar ends at its end
    text = (tmp_path / "settings.toml").read_text()
    (tmp_path / "settings.toml").write_text("".join(line for line in text.splitlines(True) if "preset" not in line))
    assert "sharpen = false" in text
    assert train(TrainingSettings(**run), tmp_path, verbose=0).was_finished
    with pytest.raises(ValueError, match="other settings: sharpen"):
        train(TrainingSettings(**run, sharpen=True), tmp_path, verbose=0)
