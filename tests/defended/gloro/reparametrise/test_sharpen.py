"""The same function from weights whose norms have a smaller product."""

import keras
import numpy as np
import pytest
from keras import layers

from defended import GloroNet
from defended.gloro.reparametrise import sharpen
from defended.gloro.reparametrise.sharpen import sharpen_bounds
from defended.layers import MinMax
from defended.training.callbacks import SharpenBounds


def trained_like(network, seed=0):
    """Weights of uneven spectra, as training leaves them, and biases that are not zero."""
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(layer.kernel * np.exp(rng.normal(size=layer.kernel.shape[-1])))
            if layer.use_bias:
                layer.bias.assign(rng.normal(size=layer.bias.shape))
    return network


def minmax_net(strides=1, padding="same"):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, padding=padding), layers.AveragePooling2D(1), MinMax(),
            layers.Conv2D(8, 3, strides=strides, padding=padding, use_bias=False, dilation_rate=3 - strides), MinMax(),
            layers.Flatten(), layers.Dropout(0.5),
            layers.Dense(10), MinMax(),
            layers.Dense(4),
        ]
    )  # fmt: skip
    return trained_like(network)


def relu_net():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, activation="relu"), layers.Conv2D(6, 3), layers.LeakyReLU(0.1),
            layers.GlobalAveragePooling2D(), layers.Dense(7), layers.ReLU(), layers.Dense(5, activation="leaky_relu"),
            layers.Dense(4),
        ]
    )  # fmt: skip
    return trained_like(network)


def dense_net():
    keras.utils.set_random_seed(0)
    return trained_like(
        keras.Sequential([keras.Input((6,)), layers.Dense(8), MinMax(), layers.Dense(6), MinMax(), layers.Dense(4)])
    )


def logits(network, x):
    """In float64, so that what the test sees is the function and not float32's rounding."""
    exact = keras.models.clone_model(
        network, clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    )
    exact.set_weights(network.get_weights())
    return exact(x.astype("float64")).numpy()


@pytest.mark.parametrize(
    "network", [minmax_net(), minmax_net(2), minmax_net(2, "valid"), relu_net()],
    ids=["same", "strides", "valid", "relu"],
)  # fmt: skip
def test_same_function_smaller_constants(network):
    x = np.random.default_rng(1).random((50, 8, 8, 2)).astype("float32")
    model = GloroNet(network, epsilon=0.1)
    model.finalize()
    before, constants = logits(network, x), model.margin_lipschitz
    radii = model.certified_radius(x)
    ratio = sharpen_bounds(model, steps=10)
    after = model.margin_lipschitz
    assert model.is_final
    np.testing.assert_allclose(logits(network, x), before, atol=2e-6 * np.abs(before).max())
    pairs = ~np.eye(4, dtype=bool)
    assert ratio == pytest.approx(np.exp(np.mean(np.log(after[pairs] / constants[pairs]))), rel=1e-6)
    assert ratio < 0.93
    # What was gained reaches the radii of inputs.
    assert np.mean(model.certified_radius(x)) > 1.05 * np.mean(radii) > 0


def test_the_gradient_is_the_objectives():
    chain = sharpen._Chain(GloroNet(minmax_net(2), epsilon=0.1))
    rng = np.random.default_rng(0)
    at = chain.start() + 0.1 * rng.standard_normal(chain.start().size)
    direction = rng.standard_normal(at.size)
    _, gradient = chain.objective(at, 0.02)
    above, below = (chain.objective(at + step * direction, 0.02)[0] for step in (1e-6, -1e-6))
    assert gradient @ direction == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_the_objective_is_the_certificates():
    """At a low temperature it is the mean of log K_ij; on a torus, which zero padding restricts, a little more."""
    for network, more in ((dense_net(), 1e-3), (minmax_net(), 0.4)):
        model = GloroNet(network, epsilon=0.1)
        chain = sharpen._Chain(model)
        certified = np.mean(np.log(model._graph.prove().margins[np.triu_indices(4, 1)]))
        assert certified - 1e-6 < chain.objective(chain.start(), 1e-4)[0] < certified + more


def test_sums_mix_and_differences_do_not():
    """A pair's sum may be taken from another's, which a factor for each pair alone could not undo."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8), MinMax(), layers.Dense(8), MinMax(), layers.Dense(3)]
    )
    tangled = np.eye(4) + np.triu(np.full((4, 4), 0.7), 1)
    basis = sharpen._sums_and_differences(8)
    change = np.eye(8)
    change[:4, :4] = tangled
    change = basis.T @ change @ basis
    first, second = network.layers[0], network.layers[2]
    for layer in (first, second):
        layer.kernel.assign(np.linalg.qr(layer.kernel.numpy())[0])
    plain = np.mean(GloroNet(network, epsilon=0.1)._graph.prove().margins)
    first.kernel.assign(first.kernel.numpy() @ change)
    second.kernel.assign(np.linalg.inv(change) @ second.kernel.numpy())
    model = GloroNet(network, epsilon=0.1)
    assert np.mean(model._graph.prove().margins) > 1.8 * plain
    sharpen_bounds(model)
    assert np.mean(model._graph.prove().margins) < 1.02 * plain
    assert not model.is_final


@pytest.mark.parametrize("final", [False, True])
def test_weights_stay_where_nothing_is_gained(final):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), MinMax(), layers.Dense(4), MinMax(), layers.Dense(2)]
    )
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(np.linalg.qr(layer.kernel.numpy())[0])
    model = GloroNet(network, epsilon=0.1)
    if final:
        model.finalize()
    weights = network.get_weights()
    assert sharpen_bounds(model, steps=3) == 1.0
    assert model.is_final == final
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_what_a_change_cannot_pass_is_left_alone():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3), layers.MaxPooling2D(), MinMax(),
            layers.Conv2D(4, 3, groups=2), MinMax(),
            layers.Flatten(), layers.Dense(4), layers.ReLU(max_value=6.0),
            layers.Dense(4, activation="tanh"), layers.Dense(4, activation=layers.ReLU(max_value=6.0)), layers.Dense(4),
            layers.Dense(2),
        ]
    )  # fmt: skip
    model = GloroNet(trained_like(network), epsilon=0.1)
    weights = network.get_weights()
    assert sharpen_bounds(model) == 1.0
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_bad_input_is_refused():
    inputs = keras.Input((4,))
    branched = keras.Model(inputs, layers.Dense(2)(layers.Add()([inputs, layers.Dense(4)(inputs)])))
    with pytest.raises(ValueError, match="`sharpen_bounds` needs a chain"):
        sharpen_bounds(GloroNet(branched, epsilon=0.1))
    network = minmax_net()
    with pytest.raises(TypeError, match="Sequential"):
        sharpen_bounds(network)
    with pytest.raises(ValueError, match="steps"):
        sharpen_bounds(GloroNet(network, epsilon=0.1), steps=0)
    kernel = network.layers[0].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        sharpen_bounds(GloroNet(network, epsilon=0.1))


def test_classes_that_always_have_one_logit():
    network = trained_like(
        keras.Sequential([keras.Input((6,)), layers.Dense(8), MinMax(), layers.Dense(8), MinMax(), layers.Dense(3)])
    )
    kernel = network.layers[-1].kernel.numpy()
    network.layers[-1].kernel.assign(np.stack([kernel[:, 0], kernel[:, 0], kernel[:, 2]], axis=1))
    assert 0 < sharpen_bounds(GloroNet(network, epsilon=0.1)) < 0.95


def test_sharpening_during_training_falls_between_epochs(monkeypatch):
    """Before every second epoch but the first, as a part of training: the function stays, moments are forgotten."""
    model = GloroNet(dense_net(), epsilon=0.1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, *model.input_shape[1:])).astype("float32"), rng.integers(0, model.num_classes, 64)
    model.compile(keras.optimizers.Adam(1e-2), loss="emma")
    seen = []

    def momentums(model):
        return getattr(model.optimizer, "_momentums", [])  # there are none before the first step

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            moments = sum(float(np.abs(value).sum()) for value in map(np.asarray, momentums(model)))
            seen.append((np.asarray(model.network(x)), sharpen._constants(model).mean(), moments))

    model.fit(x, y, epochs=5, batch_size=16, verbose=0, callbacks=[Watch(), SharpenBounds(every=2), Watch()])
    for epoch in range(5):
        (before, bound, moments), (after, sharper, left) = seen[2 * epoch : 2 * epoch + 2]
        np.testing.assert_allclose(after, before, atol=1e-4)
        if epoch in (2, 4):
            assert sharper < bound
            assert moments > 0 == left
        else:
            assert (sharper, left) == (bound, moments)


def test_sharpening_between_epochs_wants_a_number_of_them():
    with pytest.raises(ValueError, match="`every` must be a whole number, at least 1"):
        SharpenBounds(every=0)
