"""What users of Keras do with a model works on every defence, or is refused with what to do."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.wrappers import SKLearnClassifier

import defended
from defended import GloroNet, MembershipGuard, PolytopeNet, SmoothedNet, metrics, zoo
from defended.membership import StoredPoints
from defended.smoothing import NoisyTrainer

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 64)
X = RNG.uniform(0, 0.2, (64, 4)).astype("float32")
X[np.arange(64), Y] += 0.8
PARAMETERS = 4 * 6 + 6 + 6 * 3 + 3


def network():
    return keras.Sequential([keras.Input((4,)), layers.Dense(6, activation="relu"), layers.Dense(3)])


def gloro(**options):
    model = GloroNet(network(), 0.1)
    model.compile("adam", **options)
    return model


DEFENCES = {
    "gloro": lambda net: GloroNet(net, 0.1),
    "polytope": lambda net: PolytopeNet(net, 0.1, norm="l2", training_bounds="interval", radius_steps=1),
    "guard": lambda net: MembershipGuard(GloroNet(net, 0.1), StoredPoints(X, Y)),
    "smoothed": lambda net: SmoothedNet(net, 0.1, 0.2, 200),
}
TRAINED = [name for name in DEFENCES if name != "smoothed"]


def summary_of(model, **options):
    lines = []
    model.summary(print_fn=lambda text, **_: lines.append(text), **options)
    return "\n".join(lines)


@pytest.mark.parametrize("name", DEFENCES)
def test_summary_shapes_and_scores_before_and_after_fit(name):
    model = DEFENCES[name](network())

    def check():
        text = summary_of(model, expand_nested=True)
        assert "unbuilt" not in text
        assert f"{PARAMETERS}" in text
        assert "(None, 4)" in text, "the scores, m + 1"
        assert model.count_params() >= PARAMETERS

    check()
    if name in TRAINED:
        model.compile("adam", run_eagerly=True)
        history = model.fit((X * 255).astype("uint8"), Y, 32, 1, 0)
        assert np.isfinite(history.history["loss"][0])
    model(X[:2])
    check()
    assert model.input_shape == (None, 4) == model.output_shape == model.compute_output_shape((None, 4))
    assert model.inputs[0] is model.input
    assert model.inputs[0].shape == (None, 4)
    assert model.output.shape == (None, 4)
    around = keras.Model(model.inputs, model.outputs)
    assert around.output_shape == (None, 4)


def test_summary_of_a_net_of_the_zoo():
    model = zoo.load("mnist-2c2f-0.6")
    assert "166,406" in summary_of(model)
    model(np.zeros((1, 28, 28, 1), "uint8"))
    assert "unbuilt" not in summary_of(model)


@pytest.mark.parametrize("name", TRAINED)
def test_batches_of_bytes_train_and_are_evaluated(name):
    data = tf.data.Dataset.from_tensor_slices(((X * 255).astype("uint8"), Y)).batch(32)
    model = DEFENCES[name](network())
    model.compile("adam", metrics=["vra"], jit_compile=False)
    model.fit(data, shuffle=False, verbose=0)
    assert set(model.evaluate(data, verbose=0, return_dict=True)) == {"loss", "vra"}
    assert model.predict(data, verbose=0).shape == (64, 4)


def test_bytes_are_in_other_units_than_noise():
    trainer, data = NoisyTrainer(network(), sigma=0.1), ((X * 255).astype("uint8"), Y)
    trainer.compile()
    with pytest.raises(ValueError, match="Scale the images first"):
        trainer.fit(*data, 32, 1, 0)
    with pytest.raises(ValueError, match="Scale the images first"):
        trainer.fit(tf.data.Dataset.from_tensor_slices(data).batch(32), shuffle=False, verbose=0)
    trainer.fit(X, Y, 32, 1, 0)
    assert trainer.predict(data[0], verbose=0).shape == (64, 3)


def test_weighted_metrics_positions_and_weights():
    model = gloro(weighted_metrics=["vra", "rejection_rate"], metrics=["clean_accuracy"])
    history = model.fit(X, Y, 32, 1, 0, sample_weight=np.ones(64), validation_data=(X, Y)).history
    assert {"vra", "val_rejection_rate", "clean_accuracy"} <= set(history)
    with pytest.raises(TypeError, match="epoch_count"):
        model.fit(X, Y, epoch_count=1)
    with pytest.raises(TypeError, match="multiple values"):
        model.fit(X, Y, 32, batch_size=32)
    weight = (Y == 0).astype("float32")
    weighted = model.evaluate(X, Y, sample_weight=weight, verbose=0, return_dict=True)
    assert weighted["vra"] == pytest.approx(model.evaluate(X[Y == 0], Y[Y == 0], verbose=0, return_dict=True)["vra"])


def mean_top(y_true, y_pred):
    return keras.ops.max(y_pred, axis=-1)


def test_metrics_that_do_not_know_of_bottom_measure_the_logits():
    theirs = [
        keras.metrics.AUC(from_logits=True, multi_label=True, num_labels=3), keras.metrics.F1Score("macro"),
        keras.metrics.Precision(top_k=1), keras.metrics.TopKCategoricalAccuracy(2), "categorical_accuracy", mean_top,
        keras.metrics.CategoricalCrossentropy(from_logits=True), keras.metrics.CategoricalAccuracy,
    ]  # fmt: skip
    model, one_hot = gloro(metrics=["accuracy", "vra"], weighted_metrics=theirs), np.eye(3, dtype="float32")[Y]
    model.finalize()
    found = model.evaluate(X, one_hot, verbose=0, return_dict=True)
    bare = keras.Model(model.network.inputs, model.network.outputs)
    given = [metric for metric in theirs if not isinstance(metric, type)]
    bare.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True), metrics=given)
    expected = bare.evaluate(X, one_hot, verbose=0, return_dict=True)
    assert len(expected) >= 8
    for name in set(expected) & set(found) - {"loss"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    assert found["mean_top"] == pytest.approx(expected["mean_top"], abs=1e-5)
    assert found["categorical_accuracy"] == pytest.approx(found["accuracy"], abs=1e-6)
    assert found["vra"] == pytest.approx(np.mean(model.verdicts(X).label == Y), abs=1e-6)


def test_metrics_over_logits_are_saved_and_reset(tmp_path):
    model = gloro()
    one_hot = np.eye(3, dtype="float32")[Y]
    model.compile("adam", metrics=[keras.metrics.F1Score("macro"), "rejection_rate"])
    model.optimizer.build(model.trainable_variables)
    model.finalize()
    before = [model.evaluate(X, one_hot, verbose=0, return_dict=True) for _ in range(2)]
    assert before[0] == before[1]
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.evaluate(X, one_hot, verbose=0, return_dict=True) == pytest.approx(before[0], abs=1e-6)
    with pytest.raises(ValueError, match="read it back"):
        model.save(tmp_path / "m.h5")


def named(given):
    """A name that is the same in every process: no addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(given))


K = keras.losses
PROBABILITIES = [
    K.SparseCategoricalCrossentropy(), K.SparseCategoricalCrossentropy, K.CategoricalCrossentropy(), "ce",
    K.BinaryCrossentropy(), K.KLDivergence(), "binary_crossentropy", "kl_divergence", K.categorical_crossentropy,
    K.sparse_categorical_crossentropy, functools.partial(K.categorical_crossentropy, axis=-1),
    [K.CategoricalFocalCrossentropy()], {"scores": "binary_crossentropy"},
]  # fmt: skip


@pytest.mark.parametrize("loss", PROBABILITIES, ids=named)
def test_losses_over_probabilities_are_refused(loss):
    with pytest.raises(ValueError, match=r'loss="crossentropy".*from_logits=True'):
        gloro(loss=loss)
    trainer = NoisyTrainer(network(), sigma=0.1)
    if not isinstance(loss, list | dict):
        with pytest.raises(ValueError, match="from_logits=True"):
            trainer.compile(loss=loss)


@pytest.mark.parametrize(
    "metric",
    [keras.metrics.AUC(), "AUC", keras.metrics.Precision(), keras.metrics.Recall, keras.metrics.PrecisionAtRecall(0.5),
     "binary_crossentropy", keras.metrics.SparseCategoricalCrossentropy(), keras.losses.kl_divergence],
    ids=named,
)  # fmt: skip
def test_metrics_over_probabilities_are_refused(metric):
    for place in ("metrics", "weighted_metrics"):
        with pytest.raises(ValueError, match="logits"):
            gloro(**{place: [metric]})


def test_losses_over_logits_train_the_certificate():
    """With rows of m probabilities, too; the names of Keras's cross-entropies mean the loss over logits and ⊥."""
    one_hot = np.eye(3, dtype="float32")[Y]
    model = gloro()
    losses = {}
    for loss in (K.CategoricalCrossentropy(from_logits=True), [K.CategoricalCrossentropy(from_logits=True)],
                 functools.partial(K.sparse_categorical_crossentropy, from_logits=True), "crossentropy",
                 "sparse_categorical_crossentropy", "categorical_crossentropy"):  # fmt: skip
        model.compile("sgd", loss=loss)
        labels = Y if "partial" in str(loss) else one_hot
        losses[str(loss)] = model.evaluate(X, labels, verbose=0, return_dict=True)["loss"]
    assert np.allclose([*losses.values()], losses["crossentropy"], rtol=1e-5), losses


def test_a_file_compiled_with_what_is_refused_now_still_loads(tmp_path, monkeypatch, caplog):
    model = gloro()
    monkeypatch.setattr("defended.training.losses.refuse_probability_loss", lambda loss: None)
    model.compile("adam", loss=K.SparseCategoricalCrossentropy())
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    monkeypatch.undo()
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert "compile it anew" in caplog.text
    with pytest.raises(ValueError, match="compile"):
        loaded.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(loaded.verdicts(X).label, model.verdicts(X).label)


def nested(kind):
    x = keras.Input((4,))
    y = layers.Dense(3)(x)
    return keras.Model({"dict in": [x]}.get(kind, x), {"dict": {"logits": y}, "list": [y], "tuple": (y,)}.get(kind, y))


@pytest.mark.parametrize("kind", ["dict", "list", "tuple", "dict in"])
@pytest.mark.parametrize("name", DEFENCES)
def test_networks_with_one_output_in_a_container_are_taken_out_of_it(name, kind):
    given = nested(kind)
    model = DEFENCES[name](given)
    assert model.predict(X[:2], verbose=0).shape == (2, 4)
    for mine, theirs in zip(model.network.weights, given.weights, strict=True):
        assert mine is theirs


@pytest.mark.parametrize("name", DEFENCES)
def test_networks_with_outputs_in_a_dict_that_override_call_are_refused(name):
    class Doubled(type(nested("dict"))):
        def call(self, inputs, training=None, mask=None):
            return {"logits": 2 * super().call(inputs)["logits"]}

    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"keras\.Model"):
        DEFENCES[name](Doubled(x, {"logits": layers.Dense(3)(x)}))


def of_labels(convert, dtype):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    return data.map(lambda a, b: (a, tf.numpy_function(convert, [b], dtype)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, np.array(list("abc"))[Y]), "np.unique"),
        ((X, np.array(list("abc"))[Y].tolist()), "np.unique"),
        ((X, {"a": Y}), "dict with the keys"),
        (({"a": X}, Y), "dict with the keys"),
        ((X.astype("complex64"), Y), "real numbers"),
        ((X, Y[:, None, None]), "shape"),
        ((tf.data.Dataset.from_tensor_slices((X, {"a": Y})).batch(32),), "dict with the keys"),
        ((tf.data.Dataset.from_tensor_slices((X, np.array(list("abc"))[Y])).batch(32),), "np.unique"),
        ((of_labels(lambda labels: labels, tf.int64),), "ensure_shape"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_what_to_do(data, message):
    model = gloro()
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(*data, verbose=0)
    if len(data) == 1:
        with pytest.raises((TypeError, ValueError), match=message):
            model.fit(X, Y, validation_data=data[0], verbose=0)
    else:
        trainer = NoisyTrainer(network(), sigma=0.1)
        trainer.compile()
        with pytest.raises((TypeError, ValueError), match=message):
            trainer.fit(*data, verbose=0)


@pytest.mark.parametrize("name", DEFENCES)
def test_wrong_inputs_and_batch_sizes_of_verdicts(name):
    model = DEFENCES[name](network())
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            model.verdicts(X, batch_size=size)
    for bad in (X.astype("complex64"), {"a": X}):
        with pytest.raises(TypeError, match="real numbers"):
            model.verdicts(bad)
        with pytest.raises(TypeError, match="real numbers"):
            model(bad)


@pytest.mark.parametrize("name", TRAINED)
def test_data_sets_give_the_answers_of_their_arrays(name):
    model = DEFENCES[name](network())
    of_x = tf.data.Dataset.from_tensor_slices(X)
    data = {"x": of_x, "batches": of_x.batch(24), "x and y": tf.data.Dataset.from_tensor_slices((X, Y)).batch(24)}
    expected, radius = model.verdicts(X), model.certified_radius(X)
    for given in data.values():
        for mine, theirs in zip(model.verdicts(given, batch_size=10), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.certified_radius(data["x and y"]), radius, rtol=1e-5, atol=1e-6)
    assert model.availability_radius(data["batches"]).shape == (64,)
    np.testing.assert_array_equal(model.audit(data["x"])["label"], expected.label)
    for bad, message in (
        (of_x.map(lambda x: {"x": x}), "element"),
        (of_x.repeat(), "take"),
        (of_x.map(lambda x: x[:2]), "shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            model.verdicts(bad)


def test_votes_of_a_data_set():
    model = DEFENCES["smoothed"](network())
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(24)
    assert model.verdicts(data).label.shape == model.predict_class(data, samples=50).shape == (64,)
    assert model.sample_counts(data, 10).sum() == 640


def test_scikit_learn_gets_labels_and_rejections():
    class Defended(SKLearnClassifier):
        def predict(self, X):
            label = self.model_.verdicts(X).label
            return np.where(label >= 0, self.classes_[label], "rejected")

    def make(X, y):
        return gloro(loss="crossentropy")

    names = np.array(["ant", "bee", "cat"])
    classifier = Defended(make, fit_kwargs={"epochs": 1, "verbose": 0}).fit(X, names[Y])
    found, label = classifier.predict(X), classifier.model_.verdicts(X).label
    np.testing.assert_array_equal(found == "rejected", label == -1)
    np.testing.assert_array_equal(found[label >= 0], names[label[label >= 0]])


def test_legacy_keras_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_keras = pytest.importorskip("tf_keras")
        legacy = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)])
        for given in ((legacy, 0.1), (legacy.inputs[0], legacy.outputs[0], 0.1)):
            with pytest.raises(TypeError, match=r"tf_keras.*load_model"):
                GloroNet(*given)


def test_the_legacy_networks_remedy_works(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_keras = pytest.importorskip("tf_keras")
        legacy = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)])
        legacy.save(str(tmp_path / "net.h5"))
        model = GloroNet(keras.models.load_model(tmp_path / "net.h5", compile=False), 0.1)
        np.testing.assert_allclose(model.network(X), legacy(X), atol=1e-6)


@pytest.mark.parametrize("kind", [GloroNet, PolytopeNet])
def test_the_radius_may_stand_second(kind):
    x = keras.Input((4,))
    y = layers.Dense(3)(x)
    for model in (kind(network(), 0.25), kind(network(), np.float32(0.25)), kind(x, y, 0.25), kind(x, y, epsilon=0.25)):
        assert float(model.epsilon) == 0.25
    with pytest.raises(TypeError, match="missing"):
        kind(network())
    with pytest.raises(TypeError, match="twice"):
        kind(network(), 0.1, epsilon=0.2)
    with pytest.raises(ValueError, match="positive"):
        kind(network(), -1)


def test_the_face_brings_attacks_and_serving():
    assert defended.attacks.PGD
    assert defended.serving.export


def test_what_is_printed_is_short():
    model = gloro()
    said = repr(model.verdicts(X))
    rejected = int(model.verdicts(X).rejected.sum())
    assert f"64 inputs: {64 - rejected} answered" in said
    assert f"{rejected} rejected" in said
    assert len(said) < 200
    assert repr(model.verdicts(X[:0])) == "<Verdicts on 0 inputs: 0 answered>"
    assert len(repr(model.verdicts(np.full_like(X, np.nan)))) < 100


def test_tflite_is_made_of_an_export():
    model = gloro()
    model.finalize()
    with pytest.raises(RuntimeError, match=r"export.*from_saved_model"):
        tf.lite.TFLiteConverter.from_keras_model(model).convert()
    model.fit(X, Y, verbose=0)
    with pytest.raises(RuntimeError, match=r"export.*from_saved_model"):
        tf.lite.TFLiteConverter.from_keras_model(model).convert()


def test_an_export_under_another_backend_says_how(monkeypatch, tmp_path):
    model = gloro()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for export in (
        lambda: defended.serving.export(model, tmp_path, "net", 1),
        lambda: defended.serving.export_onnx(model, tmp_path / "net.onnx"),
    ):
        with pytest.raises(RuntimeError, match=r"model.save.*KERAS_BACKEND=tensorflow"):
            export()
    assert not [*tmp_path.iterdir()]


def test_metrics_say_which_way_is_better(tmp_path):
    model = gloro(metrics=["vra", "rejection_rate"], run_eagerly=True)
    stop = [keras.callbacks.EarlyStopping(monitor=f"val_{name}", patience=5) for name in ("vra", "rejection_rate")]
    best = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", monitor="val_vra", mode="max", save_best_only=True)
    model.fit(X, Y, epochs=1, validation_data=(X, Y), verbose=0, callbacks=[*stop, best])
    assert keras.ops.greater is stop[0].monitor_op
    assert keras.ops.less is stop[1].monitor_op
    assert [metrics.VRA()._direction, metrics.FalsePositiveBound()._direction] == ["up", "down"]
    copy = keras.models.clone_model(keras.models.load_model(tmp_path / "m.keras"))
    copy.compile("adam")
    copy.fit(X, Y, verbose=0)
    assert copy.is_final
