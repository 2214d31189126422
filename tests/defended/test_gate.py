"""An answer is a proven one, whoever asks and however the model came about."""

import copy
import functools
import logging
import pickle
import threading
import zipfile
from io import BytesIO

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import defended
from defended import GloroNet, MembershipGuard, PolytopeNet, SmoothedNet, callbacks
from defended.layers import MinMax
from defended.membership import StoredPoints
from defended.networks.exact import exact_layer

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")


def network(*body, activation="relu", classes=3):
    return keras.Sequential(
        [keras.Input((6,)), *(body or [layers.Dense(8, activation=activation)]), layers.Dense(classes)]
    )


def wrap(kind, net=None):
    net = network() if net is None else net
    if kind == "gloro":
        return GloroNet(net, epsilon=0.02)
    if kind == "polytope":
        return PolytopeNet(net, epsilon=0.05, radius_steps=1)
    return MembershipGuard(GloroNet(net, epsilon=0.02), StoredPoints(X, domain=None))


KINDS = ("gloro", "polytope", "guard")


@pytest.fixture(scope="module")
def proven():
    """`proven(kind)`: one model of each kind, finalized, whose graphs all tests use; they leave it as it is."""

    @functools.cache
    def make(kind):
        model = wrap(kind)
        model.finalize()
        return model

    return make


ENTRIES = {
    "verdicts": lambda model: model.verdicts(X).radius,
    "certified_radius": lambda model: np.asarray(model.certified_radius(X)),
    "availability_radius": lambda model: np.asarray(model.availability_radius(X)),
    "competitor_radii": lambda model: np.asarray(model.competitor_radii(X)),
    "call": lambda model: np.asarray(model(X)),
    "predict": lambda model: model.predict(X, verbose=0),
    "predict_on_batch": lambda model: np.asarray(model.predict_on_batch(X)),
    "deployed": lambda model: np.asarray(model.deployed(X)["scores_with_bottom"]),
}


@pytest.fixture(scope="module")
def finalized_answers(proven):
    """`finalized_answers(kind)`: two lists of weights, and what each entry says of them after `finalize`."""

    @functools.cache
    def make(kind):
        model, answers = proven(kind), []
        own = model.network.get_weights()
        for weights in ([3 * weight[::-1] for weight in own], own):
            model.network.set_weights(weights)
            model.finalize()
            found = {entry: ask(model) for entry, ask in ENTRIES.items()}
            answers.append((weights, found))
        return answers

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_proves_first_and_again(kind, entry, caplog, proven, finalized_answers):
    """Wrapped and never finalized, and with weights changed behind its back: as a model that was finalized says.

    What a kind inherits from all defended models proves a first time for a GloRo Net.
    """
    answers, model = finalized_answers(kind), proven(kind)
    assert (answers[0][1][entry] != answers[1][1][entry]).any()
    if kind == "gloro" or entry in vars(type(model)):
        model = wrap(kind)
    for weights, expected in answers:
        model.network.set_weights(weights)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "defended"):
            found = ENTRIES[entry](model)
        np.testing.assert_array_equal(found, expected[entry])
        own = [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"{model.name}:")]
        assert len(own) == 1
        assert own[0].endswith(" s")
        assert model.is_final


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_that_others_compiled_answer_what_is_proven(kind):
    """Made before the proof, and for a GloRo Net, whose `call` all kinds have, after it too: around a model that holds
    the defended one, and after a change.
    """
    model = wrap(kind)
    judge = tf.function(lambda x: model(x), autograph=False)
    radius = tf.function(model.certified_radius, autograph=False)
    radii = tf.function(model.competitor_radii, autograph=False)
    m, graphs = model.num_classes, [judge]
    assert (judge(X).numpy().argmax(axis=1) == m).all()
    assert (radius(X).numpy() == 0).all()
    assert (radii(X).numpy().min(axis=1) <= 0).all()

    found = model.verdicts(X)
    assert not found.rejected.all()
    np.testing.assert_array_equal(judge(X).numpy().argmax(axis=1) == m, found.rejected)
    assert (radius(X).numpy() > 0).any()
    if kind == "gloro":
        inputs = keras.Input((6,))
        outer = keras.Model(inputs, model(inputs))
        graphs.append(lambda x: tf.convert_to_tensor(outer.predict(x, verbose=0)))
    for graph in graphs:
        assert (graph(X).numpy().argmax(axis=1) < m).any()

    kernel = model.network.layers[0].kernel
    kernel.assign(kernel * 1.001)
    if kind == "gloro":
        graphs.append(tf.function(lambda x: model(x), autograph=False))
    for graph in graphs:
        assert (graph(X).numpy().argmax(axis=1) == m).all()
    assert (radius(X).numpy() == 0).all()
    model.finalize()
    for graph in graphs:
        assert (graph(X).numpy().argmax(axis=1) < m).any()
    model(X, training=True)
    assert (judge(X).numpy().argmax(axis=1) == m).all(), "training thaws"


def test_other_values_in_place_of_weights_are_not_answered_for():
    model = wrap("gloro")
    model.finalize()
    other = [3 * np.asarray(variable) for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]
    scores, _ = model.stateless_call(other, rest, X)
    assert (np.asarray(scores).argmax(axis=1) == model.num_classes).all()
    with keras.StatelessScope(state_mapping=list(zip(model.trainable_variables, other, strict=True))):  # noqa: SIM117
        with pytest.raises(RuntimeError, match="other values stand for its weights"):
            model.verdicts(X)


def test_estimates_stay_in_their_thread():
    model, seen = wrap("gloro"), {}
    model.finalize()
    with model.estimates():
        thread = threading.Thread(target=lambda: seen.update(inside=np.asarray(model(X))))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(seen["inside"], np.asarray(model(X)))


def test_a_tensor_in_place_of_a_variable_is_noticed():
    net = network(layers.Dense(8), layers.BatchNormalization())
    model = GloroNet(net, epsilon=0.02)
    before = model.verdicts(X).radius
    net.layers[1].gamma = tf.constant(np.full(8, 7.0, "float32"))
    assert not model.is_final
    after = model.verdicts(X).radius
    assert (before != after).any()
    np.testing.assert_allclose(np.asarray(model(X))[:, :3], net(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_asked_of_no_inputs(kind, proven):
    model = proven(kind)
    assert model.verdicts(X[:0]).label.shape == (0,)
    for ask in (model.certified_radius, model.availability_radius):
        assert np.asarray(ask(X[:0])).shape == (0,)
    assert np.asarray(model(X[:0])).shape == (0, 4)
    assert np.asarray(model.deployed(X[:0])["label"]).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_another_shape_is_an_error_that_says_so(kind, proven):
    model = wrap(kind)
    for ask in (model.verdicts, model, model.certified_radius, model.competitor_radii, proven(kind).deployed):
        for wrong in (np.zeros((3, 5)), np.zeros((3, 6, 1)), np.zeros(6)):
            with pytest.raises(ValueError, match=r"shape \[n, 6\]"):
                ask(wrong)


def test_what_a_proof_is_about_cannot_be_reassigned(proven, monkeypatch):
    for model, name in ((wrap("gloro"), "rounding"), (wrap("polytope"), "slope"), (wrap("guard"), "accept")):
        with pytest.raises(AttributeError, match=rf"`{name}` was settled"):
            setattr(model, name, "linf")
    for kind in KINDS:
        model = proven(kind)
        monkeypatch.setattr(model, "norm", "l1")
        assert not model.is_final
        with pytest.raises(ValueError, match="`norm` was set to 'l1' after"):
            model.verdicts(X)
    with pytest.raises(AttributeError, match="`alpha` was settled"):
        SmoothedNet(network(), 0.1, 0.25, samples=100, mode="fixed").alpha = 1e-9


@pytest.mark.parametrize("epsilon", [1e-50, 1e39, True, np.nan, -1.0])
def test_an_epsilon_is_a_positive_number_of_float32(epsilon):
    model = wrap("gloro")
    with pytest.raises(ValueError, match="`epsilon` must be a positive finite number"):
        model.epsilon = epsilon
    with pytest.raises(ValueError, match="`epsilon` must be a positive finite number"):
        GloroNet(network(), epsilon=epsilon)
    if not epsilon > 0:
        model.epsilon.assign(epsilon)
        assert model.verdicts(X).rejected.all()
        assert (np.asarray(model.availability_radius(X)) == 0).all()


def test_evaluate_measures_what_is_proven():
    model, y = wrap("gloro"), np.zeros(len(X), int)
    model.compile(metrics=["rejection_rate", "vra"])
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    found = model.verdicts(X)
    assert logs["rejection_rate"] == pytest.approx(found.rejected.mean())
    assert logs["vra"] == pytest.approx((found.label == 0).mean())


def test_a_callback_within_fit_gets_proven_answers():
    model, y, seen = wrap("gloro"), np.arange(len(X)) % 3, []

    class Asks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            fresh = GloroNet(keras.models.clone_model(model.network), epsilon=0.02)
            fresh.network.set_weights(model.network.get_weights())
            np.testing.assert_array_equal(model.verdicts(X).radius, fresh.verdicts(X).radius)
            seen.append(epoch)

    model.compile("adam", loss="trades_kl.1", metrics=["vra"])
    history = model.fit(X, y, epochs=2, verbose=0, validation_data=(X, y), callbacks=[Asks()]).history
    assert seen == [0, 1]
    assert len(history["val_vra"]) == 2


def test_keras_export_is_refused_and_names_ours(tmp_path):
    with pytest.raises(RuntimeError, match=r"defended\.serving\.export"):
        wrap("gloro").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# However the model came about.


def reloaded(model, tmp_path):
    model.save(tmp_path / "m.keras")
    return keras.models.load_model(tmp_path / "m.keras")


CAME_ABOUT = {
    "load_model": reloaded,
    "pickle": lambda model, tmp_path: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, tmp_path: copy.deepcopy(model),
}


@pytest.mark.parametrize(
    ("how", "kind"), [*(("load_model", kind) for kind in KINDS), ("pickle", "guard"), ("deepcopy", "polytope")]
)
def test_copies_are_verified_and_answer_alike(kind, how, tmp_path, caplog, proven):
    model = proven(kind)
    with caplog.at_level(logging.INFO, "defended"):
        other = CAME_ABOUT[how](model, tmp_path)
        assert not other._is_current(), "what a file says is a claim"
        np.testing.assert_array_equal(other.verdicts(X).radius, model.verdicts(X).radius)
    assert any("bounds of its file verified in" in record.getMessage() for record in caplog.records)


def test_clones_have_bounds_of_their_own():
    model = wrap("gloro")
    model.finalize()
    clone = keras.models.clone_model(model)
    assert not clone.is_final
    fresh = GloroNet(clone.network, epsilon=0.02)
    np.testing.assert_array_equal(clone.verdicts(X).radius, fresh.verdicts(X).radius)


def test_checkpoints_of_tensorflow_do_not_bring_a_seal(tmp_path):
    model, other = wrap("gloro"), wrap("gloro")
    model.finalize()
    judge = tf.function(lambda x: other(x), autograph=False)
    judge(X)
    model.epsilon = 0.7
    tf.train.Checkpoint(other).read(tf.train.Checkpoint(model).write(str(tmp_path / "c"))).expect_partial()
    assert (judge(X).numpy().argmax(axis=1) == 3).all()
    assert float(other.epsilon) == np.float32(0.02)
    np.testing.assert_array_equal(other.verdicts(X).radius, GloroNet(other.network, epsilon=0.02).verdicts(X).radius)


def with_changed_file(path, change):
    """The `.keras` file, with what `change` does to the arrays that the model itself keeps."""
    out = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".h5"):
                buffer = BytesIO(content)
                with h5py.File(buffer, "r+") as file:
                    change(file["vars"])
                content = buffer.getvalue()
            new.writestr(name, content)
    path.write_bytes(out.getvalue())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The content of a final GloRo Net's file, and the radii that the model gives."""
    model, path = wrap("gloro", network(layers.Dense(8), MinMax())), tmp_path_factory.mktemp("saved") / "m.keras"
    model.finalize()
    model.save(path)
    return path.read_bytes(), model.verdicts(X).radius


@pytest.mark.parametrize("factor", [1e-3, 0.999, 1.5, np.nan, -1.0])
def test_bounds_that_were_edited_in_a_file_do_not_count(tmp_path, factor, saved):
    content, honest = saved
    (tmp_path / "m.keras").write_bytes(content)

    def change(group):
        for key in group:
            if key.startswith("claimed") and group[key].dtype.kind == "f":
                group[key][...] = group[key][()] * factor

    with_changed_file(tmp_path / "m.keras", change)
    loaded = defended.load_model(tmp_path / "m.keras", trusted=True)
    radius = loaded.verdicts(X).radius
    if factor == 1.5:  # a bound that is too large is one, too
        assert (radius <= honest * (1 + 1e-6)).all()
    else:
        np.testing.assert_allclose(radius, honest, rtol=1e-6)


def test_a_trusted_file_counts_at_once(tmp_path, proven):
    for kind in KINDS:
        model = proven(kind)
        model.save(tmp_path / "m.keras")
        loaded = defended.load_model(tmp_path / "m.keras", trusted=True)
        assert loaded._is_current()
        np.testing.assert_array_equal(loaded.verdicts(X).radius, model.verdicts(X).radius)
    network().save(tmp_path / "plain.keras")
    with pytest.raises(ValueError, match="undefended Sequential"):
        defended.load_model(tmp_path / "plain.keras")


def test_a_trusted_file_with_other_weights_is_verified(tmp_path):
    model = wrap("gloro")
    model.finalize()
    model.save(tmp_path / "m.keras")

    def change(group):
        for name in list(group.file["layers/sequential/layers/dense/vars"]):
            values = group.file["layers/sequential/layers/dense/vars"][name]
            values[...] = values[()] * 5

    with_changed_file(tmp_path / "m.keras", change)
    loaded = defended.load_model(tmp_path / "m.keras", trusted=True)
    assert not loaded._is_current()
    np.testing.assert_array_equal(loaded.verdicts(X).radius, GloroNet(loaded.network, epsilon=0.02).verdicts(X).radius)


# What is proven is what is evaluated.


def slope(net):
    net.layers[1].negative_slope = 30.0


def variance(net):
    net.layers[1].epsilon = 1e-8


def rates(net):
    net.layers[1].max_value = None


SETTINGS = {
    "slope of LeakyReLU": (lambda: network(layers.Dense(8), layers.LeakyReLU(0.1)), slope),
    "epsilon of normalisation": (lambda: network(layers.Dense(8), layers.BatchNormalization()), variance),
    "ceiling of ReLU": (lambda: network(layers.Dense(8), layers.ReLU(max_value=1.0)), rates),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_layers_are_read_again(name):
    make, change = SETTINGS[name]
    net = make()
    if "normalisation" in name:
        net.layers[1].moving_variance.assign(np.full(8, 1e-6))
    model = GloroNet(net, epsilon=1e-6)
    before = model.verdicts(X)
    change(net)
    assert not model.is_final
    fresh = GloroNet(net, epsilon=1e-6)
    after = model.verdicts(X)
    np.testing.assert_array_equal(after.radius, fresh.verdicts(X).radius)
    assert (before.radius != after.radius).any()
    np.testing.assert_allclose(model(X)[:, :3], net(X), rtol=1e-4, atol=1e-4)


def other_activation(net):
    net.layers[0].activation = lambda z: keras.ops.sin(30 * z)


def one_more_layer(net):
    net.add(layers.Dense(3))


def a_lambda_at_the_end(net):
    net.add(layers.Activation(lambda z: keras.ops.sin(30 * z)))


@pytest.mark.parametrize("change", [other_activation, one_more_layer, a_lambda_at_the_end])
def test_what_a_network_became_is_refused_where_nothing_is_known_of_it(change):
    net = network()
    model = GloroNet(net, epsilon=0.02)
    model.finalize()
    change(net)
    for ask in (model.finalize, lambda: model.verdicts(X), lambda: model(X), lambda: model.predict(X, verbose=0)):
        with pytest.raises(ValueError, match=r"activation|not those that were defended"):
            ask()
    assert not model.is_final


def scaled_call(net, layer_index=0, factor=1.01):
    """Replace a layer's `call`; return the layer."""
    layer = net.layers[layer_index]
    honest = layer.call
    layer.call = lambda inputs, **named: honest(inputs, **named) * factor
    return layer


class HalfPrecision(keras.Sequential):
    """Casts what it is given."""

    def __call__(self, inputs, *args, **kwargs):
        return super().__call__(keras.ops.cast(keras.ops.cast(inputs, "bfloat16"), "float32"), *args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gloro", [(0, 1.01), (-1, 1.001), (0, -1.0)]), ("polytope", [(0, 1.01), (-1, 1.001)]),
     ("guard", [(-1, 1.001)])],
)  # fmt: skip
def test_a_replaced_call_is_refused_with_the_name_of_the_layer(kind, changes):
    model = wrap(kind)
    model.finalize()
    for change in changes:
        layer = scaled_call(model.network, *change)
        with pytest.raises(ValueError, match=r"Layer 'dense.*' \(Dense\).*is not the function that was proven"):
            model.verdicts(X)
        assert not model.is_final
        del layer.call


def test_a_network_that_overrides_its_call_is_refused():
    net = HalfPrecision([keras.Input((6,)), layers.Dense(8), MinMax(), layers.Dense(3)])
    with pytest.raises(ValueError, match="is another function than its layers"):
        GloroNet(net, epsilon=0.02).finalize()


class Loose(layers.Layer):
    """Says that it is 1-Lipschitz, and doubles."""

    def call(self, inputs):
        return 2 * inputs

    def lipschitz_bound(self):
        return 1.0


def test_a_wrong_constant_of_a_layer_of_ones_own_is_found():
    with pytest.raises(ValueError, match="moves two inputs further apart"):
        GloroNet(network(layers.Dense(4), Loose()), epsilon=0.02).finalize()


@pytest.mark.parametrize("rounding", [True, False])
def test_a_kernel_that_computes_something_else_is_refused(rounding, monkeypatch):
    """As TensorFlow's convolution of one channel does for some shapes: here addition forgets a channel."""
    net = keras.Sequential(
        [keras.Input((5, 5, 1)), layers.Conv2D(4, 3), MinMax(), layers.Conv2D(4, 2), layers.Flatten(), layers.Dense(3)]
    )
    model = GloroNet(net, epsilon=0.02, rounding=rounding)
    honest = layers.Conv2D.convolution_op
    monkeypatch.setattr(layers.Conv2D, "convolution_op", lambda self, x, kernel: honest(self, x, kernel) * 1.05)
    with pytest.raises(ValueError, match=r"\(Conv2D\), evaluated as verdicts are"):
        model.finalize()


NAIVE = {
    "elu": lambda z: np.where(z < 0, np.exp(z) - np.float32(1), z),
    "tanh": lambda z: np.float32(2) / (np.float32(1) + np.exp(np.float32(-2) * z)) - np.float32(1),
    "softplus": lambda z: np.log(np.float32(1) + np.exp(z)),
    "sigmoid": lambda z: np.float32(1) / (np.float32(1) + np.exp(-z)),
}


@pytest.mark.parametrize("name", NAIVE)
def test_what_the_assumption_about_exp_allows_is_no_other_function(name):
    """Kernels that lose digits near 0, as TensorFlow's of ELU does, keep 16 units of roundoff relative to 1 + |z|."""
    powers = 10.0 ** np.linspace(-9, 1, 400)
    z = np.concatenate([-powers, powers])[None].astype("float32")
    found = NAIVE[name](z)
    assert found.dtype == np.float32
    exact = exact_layer(layers.Activation(name), [z.astype("float64")])
    assert (np.abs(found - exact.value) <= exact.tolerance).all()
    assert (exact.tolerance <= 2.0**-17 * (1 + np.abs(z))).all()


def test_a_model_that_is_refused_answers_nothing():
    net = network()
    model = GloroNet(net, epsilon=0.02)
    judge = tf.function(lambda x: model(x), autograph=False)
    scaled_call(net)
    with pytest.raises(ValueError, match="is not the function"):
        model.finalize()
    assert (judge(X).numpy().argmax(axis=1) == 3).all()


# Types.


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "float16", "bfloat16"])
def test_an_input_of_another_type_is_refused_by_every_defence(dtype):
    inputs = keras.Input((6,), dtype=dtype)
    net = keras.Model(inputs, layers.Dense(3)(inputs))
    for build in (
        lambda: wrap("gloro", net), lambda: wrap("polytope", net), lambda: wrap("guard", net),
        lambda: SmoothedNet(net, 0.1, 0.25, samples=100, mode="fixed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"declared as {dtype}.*keras\.Input"):
            build()


@pytest.mark.parametrize(
    ("kind", "policy"),
    [("gloro", "mixed_bfloat16"), ("gloro", "mixed_float16"), ("polytope", "mixed_bfloat16"),
     ("guard", "mixed_float16")],
)  # fmt: skip
def test_a_global_policy_changes_nothing(kind, policy, proven):
    net, plain = proven(kind).network, proven(kind).verdicts(X)
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = wrap(kind, net)
        found, scores = model.verdicts(X), np.asarray(model(X))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    np.testing.assert_array_equal(found.label, plain.label)
    np.testing.assert_array_equal(found.radius, plain.radius)
    assert scores.dtype == np.float32
    with pytest.raises(ValueError, match="computes in float32"):
        GloroNet(net, epsilon=0.1, dtype=policy)


WHOLE = np.random.default_rng(1).integers(0, 5, (12, 6))
GIVEN = {
    "uint8": WHOLE.astype("uint8"), "int64": WHOLE, "float64": WHOLE.astype("float64"),
    "float16": WHOLE.astype("float16"), "list": WHOLE.tolist(), "uint8 tensor": tf.constant(WHOLE, tf.uint8),
    "bfloat16 tensor": tf.constant(WHOLE, tf.bfloat16), "tensor": tf.constant(WHOLE, tf.float32),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GIVEN)
def test_whatever_real_numbers_are_given_are_float32_first(kind, name, proven):
    model, x = proven(kind), WHOLE.astype("float32")
    expected = model.verdicts(x)
    np.testing.assert_array_equal(model.verdicts(GIVEN[name]).radius, expected.radius)
    np.testing.assert_allclose(model.certified_radius(GIVEN[name]), model.certified_radius(x), rtol=1e-6)
    np.testing.assert_allclose(model(GIVEN[name]), model(x), rtol=1e-6)


def test_booleans_are_numbers_and_other_things_are_not():
    model = wrap("gloro")
    bits = WHOLE > 2
    np.testing.assert_array_equal(model.verdicts(bits).radius, model.verdicts(bits.astype("float32")).radius)
    for wrong in (WHOLE * 1j, WHOLE.astype(str), WHOLE.astype(object), [[1, 2], [3]]):
        for ask in (model.verdicts, model.certified_radius, model):
            with pytest.raises(TypeError, match="real numbers"):
                ask(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("8", TypeError)])
def test_a_batch_size_is_a_positive_whole_number(kind, size, error):
    with pytest.raises(error, match="`batch_size` must be a whole number"):
        wrap(kind).verdicts(X, batch_size=size)


@pytest.mark.parametrize(("dtype", "other", "as_dataset"), [("uint8", "float64", False), ("float64", "int64", True)])
def test_fit_takes_whole_numbers_and_doubles(dtype, other, as_dataset):
    x, y = WHOLE.astype(dtype), np.arange(12) % 3
    model = wrap("gloro")
    model.compile("adam", metrics=["vra"])
    data = {"x": x, "y": y, "batch_size": 4}
    if as_dataset:
        data = {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(4), "shuffle": False}
    model.fit(**data, epochs=1, verbose=0, validation_data=(WHOLE.astype(other), y))
    assert model.is_final
    model.evaluate(x, y, verbose=0)


# Settings are not weights.


def test_weights_do_not_bring_a_radius(tmp_path):
    one, other = GloroNet(network(), epsilon=0.05), GloroNet(network(), epsilon=1.5)
    one.finalize()
    one.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    assert float(other.epsilon) == 1.5
    np.testing.assert_array_equal(other.certified_radius(X), one.certified_radius(X))
    other.set_weights(GloroNet(network(), epsilon=0.3).get_weights())
    assert float(other.epsilon) == 1.5
    loaded = reloaded(other, tmp_path)
    assert float(loaded.epsilon) == 1.5, "a configuration does"


def test_a_smoothed_gate_belongs_to_its_epsilon(tmp_path):
    one = SmoothedNet(network(), epsilon=0.5, sigma=0.25, samples=1000, mode="fixed")
    other = SmoothedNet(network(), epsilon=0.05, sigma=0.25, samples=50, mode="fixed")
    one.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    assert float(other.epsilon) == np.float32(0.05)
    assert other.gate.radius[-1] > 0.05
    other.epsilon.assign(0.1)
    found = other.verdicts(X)
    assert (found.radius[~found.rejected] > np.float32(0.1)).all()
    np.testing.assert_array_equal(
        other.gate.radius, SmoothedNet(other.network, 0.1, 0.25, samples=50, mode="fixed").gate.radius
    )


def test_a_guard_and_its_model_have_one_epsilon(tmp_path):
    guard = wrap("guard")
    guard.base.epsilon = 0.3
    assert float(guard.epsilon) == np.float32(0.3)
    guard.epsilon = 0.1
    assert float(guard.base.epsilon) == np.float32(0.1)
    found = guard.verdicts(X)
    np.testing.assert_array_equal(found.rejected, ~(found.radius > np.float32(0.1)))
    loaded = reloaded(guard, tmp_path)
    loaded.base.epsilon = 0.2
    assert float(loaded.epsilon) == np.float32(0.2)


@pytest.mark.parametrize("order", [1, -1])
def test_after_fit_the_scales_are_one(order, tmp_path):
    """Whatever schedules there were, whichever epoch's weights came back, also in what a checkpoint wrote."""
    model, y = wrap("gloro"), np.arange(len(X)) % 3
    model.compile(keras.optimizers.Adam(5e-3), loss="trades_kl.1.5", run_eagerly=True)
    steering = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 5e-3 if epoch < 2 else 50.0),
        callbacks.TradesSchedule(start=0.0, end=1.0, ramp=1.0), callbacks.RadiusDoubling(ramp=1.0),
        keras.callbacks.ModelCheckpoint(tmp_path / "c{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(tmp_path / "c{epoch}.weights.h5", save_weights_only=True),
    ]  # fmt: skip
    model.fit(X, y, batch_size=40, epochs=3, verbose=0, validation_data=(X, y), callbacks=steering[::order])
    for each in (model, keras.models.load_model(tmp_path / "c2.keras")):
        assert float(each.radius_scale) == float(each.robust_weight_scale) == 1.0
        assert float(each.epsilon) == np.float32(0.02)
    model.load_weights(tmp_path / "c2.weights.h5")
    assert float(model.radius_scale) == float(model.robust_weight_scale) == 1.0


def test_settings_read_as_numbers_and_arrays():
    model = wrap("gloro")
    for value, number in ((model.epsilon, 0.02), (model.radius_scale, 1.0), (model.robust_weight_scale, 1.0)):
        assert float(value) == np.float32(number)
        assert np.asarray(value).shape == ()
        assert np.asarray(value).dtype == np.float32


def test_scales_are_one_after_a_fit_that_failed():
    model, y = wrap("gloro"), np.arange(len(X)) % 3
    model.compile("adam", loss="trades_kl.1", run_eagerly=True)

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        model.fit(X, y, epochs=3, verbose=0, callbacks=[callbacks.EpsilonSchedule(start=0.1), Fails()])
    assert float(model.radius_scale) == 1.0
    fresh = GloroNet(model.network, epsilon=0.02)
    np.testing.assert_array_equal(model.verdicts(X).radius, fresh.verdicts(X).radius)


# Edges.


def test_availability_near_overflow_claims_nothing_it_cannot_hold():
    """Beyond 2^62 the input's norm is not found without overflow, and a point that moves there is rejected."""
    for rounding in (True, False):
        net = keras.Sequential([keras.Input((2,)), layers.Dense(2, kernel_initializer="identity")])
        model = GloroNet(net, epsilon=1e3, rounding=rounding)
        x = np.array([[10.0**power, 0] for power in np.arange(14, 20, 0.25)], "float32")
        found, room = model.verdicts(x), np.asarray(model.availability_radius(x)).astype("float64")
        for direction in (1.0, -1.0):
            moved = x + np.float64(direction) * room[:, None] * (1 - 1e-6) * np.array([1.0, 0.0])
            after = model.verdicts(moved.astype("float32"))
            kept = room > 0
            assert (after.label[kept] == found.label[kept]).all()


def test_an_own_loop_of_training_works_by_estimates():
    model, y = wrap("gloro"), np.arange(len(X)) % 3
    loss, optimizer = defended.losses.resolve_loss("emma", model), keras.optimizers.Adam(1e-2)
    metric = defended.metrics.VRA(2.0)
    metric.attach(model)
    values = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            scores = model(X, training=True)
            value = tf.reduce_mean(loss(y, scores))
        metric.update_state(y, scores)
        optimizer.apply(tape.gradient(value, [v.value for v in model.trainable_variables]), model.trainable_variables)
        values.append(float(value))
    assert values[-1] < values[0]
    assert not model._is_current()
    with model.estimates():
        estimated = np.asarray(model(X))
    np.testing.assert_allclose(estimated[:, :3], np.asarray(model.network(X)), atol=1e-4)
    assert model.verdicts(X).radius.shape == (40,)
