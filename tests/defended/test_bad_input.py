"""Every wrong use gets an error that says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from defended import GloroNet, calibrate_epsilon, callbacks, datasets, losses, metrics
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax


def network(*last, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *last])


class Doubled(layers.Dense):
    """Overrides `call`: inheriting Dense's bound would be wrong."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return 5 * self.dense(inputs)


class SneakySequential(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 5 * super().call(inputs)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)])


def two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], layers.Dense(3)(layers.Add()([a, b])))


def raw_operation():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3)(x + x))


def with_subclassed():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3)(Subclassed()(x)))


CASES = {
    "softmax layer": (lambda: network(layers.Dense(3), layers.Softmax()), "logits"),
    "softmax activation": (lambda: network(layers.Dense(3, activation="softmax")), "activation=None"),
    "sigmoid": (lambda: network(layers.Dense(3), layers.Activation("sigmoid")), "logits"),
    "one class": (lambda: network(layers.Dense(1)), "m >= 2"),
    "images out": (lambda: network(layers.Conv2D(3, 1), shape=(4, 4, 1)), "batch, m"),
    "two outputs": (two_outputs, "one output"),
    "two inputs": (two_inputs, "one input"),
    "open image size": (
        lambda: network(layers.Conv2D(3, 3), layers.GlobalAveragePooling2D(), shape=(None, None, 1)),
        "fixed input shape",
    ),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(3)]), "not built"),
    "subclassed": (Subclassed, "functional API"),
    "nested subclassed": (with_subclassed, "overrides `call`"),
    "overridden Sequential": (
        lambda: SneakySequential([keras.Input((4,)), layers.Dense(3)]),
        "overrides `call`",
    ),
    "subclass of a known layer": (lambda: network(Doubled(3)), "Doubled"),
    "layer normalisation": (lambda: network(layers.LayerNormalization(), layers.Dense(3)), "statistic of the input"),
    "recurrent": (lambda: network(layers.LSTM(3), layers.Dense(3), shape=(5, 4)), "state"),
    "lambda": (lambda: network(layers.Lambda(lambda v: 9 * v), layers.Dense(3)), "lipschitz_rule"),
    "raw operation": (raw_operation, "keras.layers.Add"),
    "own activation": (lambda: network(layers.Dense(3, activation=lambda v: 3 * v), layers.Dense(3)), "activation"),
    "jumping relu": (lambda: network(layers.ReLU(threshold=1.0), layers.Dense(3)), "threshold"),
    "channels first": (
        lambda: network(
            layers.AveragePooling2D(2, data_format="channels_first"), layers.Flatten(), layers.Dense(3), shape=(2, 4, 4)
        ),
        "channels_last",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_networks_that_cannot_be_certified(name):
    build, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        GloroNet(build(), epsilon=0.1)


def test_a_known_name_on_another_function_is_not_believed():
    def relu(x):
        return 7 * x

    with pytest.raises(ValueError, match="activation"):
        GloroNet(network(layers.Dense(3, activation=relu), layers.Dense(3)), epsilon=0.1)


def test_other_precisions_are_refused():
    for dtype in ("mixed_float16", "float64"):
        net = network(layers.Dense(3, dtype=dtype))
        with pytest.raises(ValueError, match=r"dtype policy 'float32'"):
            GloroNet(net, epsilon=0.1)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_must_be_positive(epsilon):
    with pytest.raises(ValueError, match="positive"):
        GloroNet(network(layers.Dense(3)), epsilon=epsilon)
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    with pytest.raises(ValueError, match="positive"):
        model.epsilon = epsilon


def test_not_a_model():
    with pytest.raises(TypeError, match="Keras model"):
        GloroNet("net", epsilon=0.1)


def test_defending_twice():
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    with pytest.raises(ValueError, match="already defended"):
        GloroNet(model, epsilon=0.1)


def test_weights_that_are_not_finite_cannot_be_finalized():
    for index in (0, 1):
        net = network(layers.Dense(4), layers.Dense(3))
        net.layers[index].kernel.assign(np.full(net.layers[index].kernel.shape, np.nan))
        with pytest.raises(ValueError, match=f"{net.layers[index].name}.*not all finite"):
            GloroNet(net, epsilon=0.1).finalize()


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 4, 1)])
def test_inputs_of_a_wrong_shape(shape):
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    with pytest.raises(ValueError, match="must have shape"):
        model.verdicts(np.zeros(shape))


X, Y = np.zeros((8, 4), "float32"), np.zeros(8, "int64")


@pytest.mark.parametrize("bad", [-1, 3, 0.5])
def test_labels_out_of_range_in_arrays(bad):
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    model.compile()
    labels = Y.astype("float64")
    labels[3] = bad
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        model.fit(X, labels, verbose=0)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        model.fit(X, Y, validation_data=(X, labels), verbose=0)


def test_labels_out_of_range_in_a_tf_dataset():
    """Label m would be ⊥'s column: training towards it must not pass silently."""
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    model.compile()
    data = tf.data.Dataset.from_tensor_slices((X, np.full(8, 3))).batch(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[0, 3\)"):
        model.fit(data, shuffle=False, verbose=0)


def test_labels_of_a_wrong_width():
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    model.compile()
    with pytest.raises(ValueError, match="column for ⊥"):
        model.fit(X, np.zeros((8, 4)), verbose=0)


def test_layers_refuse_shapes_they_cannot_pair():
    with pytest.raises(ValueError, match="even"):
        MinMax()(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="divisible"):
        InvertibleDownsampling(2)(np.zeros((1, 5, 4, 1)))
    with pytest.raises(ValueError, match="positive"):
        InvertibleDownsampling(0)
    with pytest.raises(ValueError, match="odd"):
        LiResNetBlock(2)


def test_arguments_of_losses_metrics_and_callbacks():
    model = GloroNet(network(layers.Dense(3)), epsilon=0.1)
    for call, message in [
        (lambda: losses.Trades(-1), "weight"),
        (lambda: losses.Trades(divergence="l1"), "divergence"),
        (lambda: metrics.VRA(0), "radius_scale"),
        (lambda: callbacks.EpsilonSchedule("cosine"), "schedule"),
        (lambda: callbacks.EpsilonSchedule(ramp=0), "ramp"),
        (lambda: callbacks.EpsilonSchedule(start=-1), "negative"),
        (lambda: callbacks.RadiusDoubling(checkpoint="best.keras"), "weights.h5"),
        (lambda: model.compile(loss="trades_kl.much"), "number"),
        (lambda: metrics.VRA(2.0).update_state(Y, np.zeros((8, 4))), "attach"),
        (lambda: losses.EMMA()(Y, np.zeros((8, 4), "float32")), "compile"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="DefendedModel"):
        callbacks.RadiusDoubling().set_model(network(layers.Dense(3)))


def test_calibration_says_what_is_not_affordable():
    model = GloroNet(network(layers.Dense(3, kernel_initializer="zeros")), epsilon=0.1)
    with pytest.raises(ValueError, match="no certified radius"):
        calibrate_epsilon(model, X, 0.1)
    assert model.is_final, "radii are proven ones"
    with pytest.raises(ValueError, match="empty"):
        calibrate_epsilon(model, X[:0], 0.1)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        calibrate_epsilon(model, X, 1.0)


def test_datasets(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Known"):
        datasets.load("cats")
    with pytest.raises(FileNotFoundError, match="x_train"):
        datasets.load(tmp_path / "none.npz")
    arrays = {
        "x_train": np.zeros((3, 4, 4)),
        "y_train": np.zeros(3),
        "x_test": np.ones((2, 4, 4)),
        "y_test": np.zeros(2),
    }
    for name, change, message in [
        ("lacking", {"x_test": None}, "lacks x_test"),
        ("range", {"x_test": np.full((2, 4, 4), 2.0)}, r"\[0, 1\]"),
        ("nan", {"x_test": np.full((2, 4, 4), np.nan)}, r"\[0, 1\]"),
        ("lengths", {"y_test": np.zeros(5)}, "5 labels"),
    ]:
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{key: value for key, value in {**arrays, **change}.items() if value is not None})
        with pytest.raises(ValueError, match=message):
            datasets.load(path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="not a usable data set"):
        datasets.load(tmp_path / "text.npz")

    def no_network():
        raise OSError("no route")

    monkeypatch.setenv("DEFENDED_DATA", str(tmp_path))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", no_network)
    with pytest.raises(FileNotFoundError, match="DEFENDED_DATA"):
        datasets.load("mnist")


def test_digits_need_nothing():
    data = datasets.load("digits")
    assert data.x_train.shape == (1437, 8, 8, 1)
    assert data.num_classes == 10
    assert data.x_test.dtype == np.float32
    assert (data.x_test.min(), data.x_test.max()) == (0.0, 1.0)
