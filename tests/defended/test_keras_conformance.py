"""A defended model is a Keras model: it trains, saves, loads and resumes as Keras users expect."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from defended import GloroNet, callbacks, datasets, losses, metrics
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits")
    return data._replace(x_train=data.x_train[:512], y_train=data.y_train[:512])


def small(seed=0, epsilon=0.2):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), MinMax(), layers.Dense(10)])
    return GloroNet(network, epsilon=epsilon)


def compiled(loss="crossentropy", **kwargs):
    model = small()
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["clean_accuracy", "vra"], **kwargs)
    return model


def every_layer():
    x = keras.Input((8, 8, 1))
    z = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    z = LiResNetBlock(3, residual_scale=0.5)(z)
    z = MinMax()(z)
    z = layers.Add()([z, layers.Conv2D(4, 3, padding="same")(z)])
    z = InvertibleDownsampling(2)(z)
    z = layers.AveragePooling2D(2)(z)
    z = layers.Reshape((16,))(z)
    return x, layers.Dense(10)(z)


@pytest.mark.parametrize("final", [True, False])
def test_save_and_load_without_custom_objects(tmp_path, final, digits):
    inputs, outputs = every_layer()
    model = GloroNet(inputs, outputs, epsilon=0.07)
    if final:
        model.finalize()
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, GloroNet)
    assert loaded.is_final is final
    assert float(loaded.epsilon) == float(model.epsilon)
    for mine, theirs in zip(model.verdicts(digits.x_test), loaded.verdicts(digits.x_test), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_compiled_model_comes_back_compiled(tmp_path, digits):
    model = small()
    model.compile(
        keras.optimizers.Adam(1e-3),
        losses.Trades(1.5),
        metrics=[metrics.VRA(2.0), "rejection_rate", "false_positive_bound", "accuracy"],
        run_eagerly=True,
    )
    model.fit(digits.x_train[:256], digits.y_train[:256], batch_size=64, epochs=1, verbose=0)
    before = model.evaluate(digits.x_test, digits.y_test, batch_size=256, verbose=0, return_dict=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.run_eagerly
    after = loaded.evaluate(digits.x_test, digits.y_test, batch_size=256, verbose=0, return_dict=True)
    assert after == pytest.approx(before, rel=1e-6)
    assert set(after) == {"loss", "vra_2eps", "rejection_rate", "false_positive_bound", "accuracy"}
    loaded.fit(digits.x_train[:64], digits.y_train[:64], epochs=1, verbose=0)
    assert loaded.is_final


def test_weights_files_round_trip(tmp_path, digits):
    model = small(0)
    model.finalize()
    model.save_weights(tmp_path / "w.weights.h5")
    other = small(1)
    other.load_weights(tmp_path / "w.weights.h5")
    assert other.is_final
    np.testing.assert_array_equal(other.verdicts(digits.x_test).radius, model.verdicts(digits.x_test).radius)


def test_config_and_clone():
    model = small()
    clone = GloroNet.from_config(model.get_config())
    assert clone.get_config() == model.get_config()
    assert clone.network is not model.network
    for layer in (MinMax(), InvertibleDownsampling((2, 1)), LiResNetBlock(3, 0.25, use_bias=False)):
        assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    for item in (losses.Trades(2.0, "crossentropy"), losses.Crossentropy(), losses.EMMA(), metrics.VRA(2.0)):
        assert type(item).from_config(item.get_config()).get_config() == item.get_config()


@pytest.mark.parametrize(
    ("loss", "kind", "eagerly"),
    [
        ("sparse_crossentropy", "sparse", True),
        ("trades", "column", True),
        ("trades_ce.0.5", "dense", True),
        ("trades_kl.1.5", "tf.data", False),
        ("emma", "dense", True),
    ],
)
def test_fit_with_every_kind_of_labels(loss, kind, eagerly, digits):
    model = compiled(loss, run_eagerly=eagerly)
    x, y = digits.x_train, digits.y_train
    if kind == "dense":
        y = keras.utils.to_categorical(y, 10)
    if kind == "column":
        y = y[:, None]
    if kind == "tf.data":
        x, y = tf.data.Dataset.from_tensor_slices((x, y)).batch(64), None
        history = model.fit(x, epochs=2, validation_data=x, shuffle=False, verbose=0).history
    else:
        history = model.fit(x, y, batch_size=256, epochs=2, validation_split=0.2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert {"clean_accuracy", "vra", "val_vra", "val_clean_accuracy"} <= set(history)
    assert model.is_final


def test_labels_mean_the_same_sparse_and_dense(digits):
    model = compiled("trades_kl.1.5")
    sparse, dense = (
        model.evaluate(digits.x_train, y, verbose=0, return_dict=True)
        for y in (digits.y_train, keras.utils.to_categorical(digits.y_train, 10))
    )
    assert sparse == pytest.approx(dense, rel=1e-5)


def test_class_and_sample_weights(digits):
    """A class of weight 0 must not train: its own logit falls."""
    model = compiled()
    weights = dict.fromkeys(range(10), 1.0) | {3: 0.0}
    model.fit(digits.x_train, digits.y_train, epochs=6, class_weight=weights, verbose=0)
    answers = np.argmax(ops.convert_to_numpy(model.network(digits.x_test)), axis=1)
    assert np.mean(answers[digits.y_test == 3] == 3) < 0.1
    assert np.mean(answers[digits.y_test != 3] == digits.y_test[digits.y_test != 3]) > 0.4
    model.fit(digits.x_train[:64], digits.y_train[:64], sample_weight=np.ones(64), verbose=0)


def test_keras_own_losses_work_over_all_scores_and_metrics_over_logits(digits):
    model = small()
    model.finalize()
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["sparse_categorical_accuracy"]
    )
    logs = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["clean_accuracy"])
    ours = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
    assert ours["loss"] == pytest.approx(logs["loss"], rel=1e-5)
    assert ours["clean_accuracy"] == pytest.approx(logs["sparse_categorical_accuracy"])


def test_fit_resumes_where_it_was_killed(tmp_path, digits):
    class Killed(RuntimeError):
        pass

    class KillAt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Killed

    def run(*extra, backup, eagerly=False):
        model = compiled("trades_kl.1.5", run_eagerly=eagerly)
        history = model.fit(
            digits.x_train,
            digits.y_train,
            batch_size=256,
            epochs=3,
            shuffle=False,
            verbose=0,
            validation_data=(digits.x_test, digits.y_test),
            callbacks=[
                keras.callbacks.BackupAndRestore(backup),
                callbacks.RadiusDoubling(checkpoint=tmp_path / f"{backup.name}.weights.h5"),
                callbacks.TradesSchedule("log"),
                *extra,
            ],
        )
        return model, history.history

    whole, whole_history = run(backup=tmp_path / "whole", eagerly=True)
    with pytest.raises(Killed):
        run(KillAt(), backup=tmp_path / "killed", eagerly=True)
    resumed, history = run(backup=tmp_path / "killed")
    assert len(history["loss"]) == 2, "the first epoch was not run again"
    np.testing.assert_allclose(history["loss"], whole_history["loss"][1:], rtol=1e-4)
    np.testing.assert_allclose(
        resumed.verdicts(digits.x_test).radius, whole.verdicts(digits.x_test).radius, rtol=1e-3, atol=1e-5
    )


def test_a_checkpoint_during_fit_does_not_disturb_training(tmp_path, digits):
    def weights(*extra):
        model = compiled("trades_kl.1.5")
        model.fit(digits.x_train, digits.y_train, epochs=2, shuffle=False, verbose=0, callbacks=list(extra))
        return model.get_weights()

    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    for plain, checkpointed in zip(weights(), weights(saved), strict=True):
        np.testing.assert_array_equal(plain, checkpointed)
    middle = keras.models.load_model(tmp_path / "1.keras")
    assert not middle.is_final, "a checkpoint holds the state as it was"
    middle.finalize()
    assert middle.is_final


def test_metrics_reach_tensorboard_and_the_progress_bar(tmp_path, capsys, digits):
    model = compiled()
    model.fit(
        digits.x_train,
        digits.y_train,
        validation_data=(digits.x_test, digits.y_test),
        verbose=2,
        callbacks=[callbacks.RadiusDoubling(), keras.callbacks.TensorBoard(tmp_path)],
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "validation"))
    events.Reload()
    assert {"epoch_vra", "epoch_vra_2eps", "epoch_fpr_upper"} <= set(events.Tags()["tensors"])
    assert " vra: " in capsys.readouterr().out


def test_metrics_of_a_batch_share_its_radii(digits, monkeypatch):
    model = small()
    model.compile("adam", "crossentropy", metrics=["vra", metrics.VRA(2.0), "rejection_rate", "false_positive_bound"])
    asked = []
    plain = GloroNet.radius_from_scores
    monkeypatch.setattr(
        GloroNet, "radius_from_scores", lambda self, scores: asked.append(scores) or plain(self, scores)
    )
    together = model.evaluate(digits.x_test[:64], digits.y_test[:64], batch_size=64, verbose=0, return_dict=True)
    assert len(asked) == 1
    for metric in (metrics.VRA(), metrics.VRA(2.0), metrics.RejectionRate(), metrics.FalsePositiveBound()):
        metric.attach(model)
        metric.update_state(digits.y_test[:64], model(digits.x_test[:64]))
        assert float(metric.result()) == pytest.approx(together[metric.name], abs=1e-6)
    assert len(asked) == 6, "outside of a batch, each asks for itself"


def test_train_on_batch_and_custom_loops(digits):
    model = compiled()
    first = model.train_on_batch(digits.x_train, digits.y_train, return_dict=True)["loss"]
    for _ in range(5):
        last = model.train_on_batch(digits.x_train, digits.y_train, return_dict=True)["loss"]
    assert last < first
    assert not model.is_final, "a loop of one's own ends with `finalize()`"
    model.finalize()
    assert model.is_final


def test_inference_is_the_same_compiled_and_eager(digits):
    model, x = small(), digits.x_test[:32]
    model.finalize()
    compiled_calls = [tf.function(model, jit_compile=jit) for jit in (True, False)]
    for call in compiled_calls:
        np.testing.assert_allclose(call(x), model(x), rtol=1e-4, atol=1e-5)
    model.compile()
    model.fit(digits.x_train, digits.y_train, verbose=0)
    for call in compiled_calls:
        np.testing.assert_allclose(
            call(x), model(x), rtol=1e-4, atol=1e-4,
            err_msg="a function traced before training sees the certificate of after",
        )  # fmt: skip


def test_what_was_proven_for_another_evaluation_is_not_trusted(tmp_path, monkeypatch):
    """A file of a version that evaluates in other blocks has a rounding budget that does not hold here."""
    from defended.gloro import lipschitz_certificate

    model = GloroNet(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), epsilon=0.1)
    monkeypatch.setattr(lipschitz_certificate, "BLOCK", 256)
    model.finalize()
    model.save(tmp_path / "old.keras")
    assert keras.models.load_model(tmp_path / "old.keras").trust_file()
    monkeypatch.undo()
    loaded = keras.models.load_model(tmp_path / "old.keras")
    assert not loaded.trust_file()
    assert loaded.is_final, "verified, for the blocks of this version"
