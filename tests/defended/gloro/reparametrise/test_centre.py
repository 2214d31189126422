"""Biases that are moved to later layers: the same margins, less rounding."""

import keras
import numpy as np
import pytest
from keras import layers

from defended import GloroNet
from defended.gloro.reparametrise.centre import centre_biases
from defended.layers import MinMax


def net(padding="valid", biases=30.0, head_bias=True):
    """A chain whose biases are large beside what it computes, and whose logits share a large part."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, padding=padding), MinMax(),
            layers.Conv2D(6, 3, strides=2, padding=padding), MinMax(),
            layers.Flatten(), layers.Dropout(0.5),
            layers.Dense(10), MinMax(),
            layers.Dense(3, use_bias=head_bias),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if hasattr(layer, "kernel") and layer.use_bias:
            layer.bias.assign(biases * rng.standard_normal(layer.bias.shape))
    network.layers[-1].kernel.assign(network.layers[-1].kernel + 5.0)
    return GloroNet(network, epsilon=0.3), rng.random((300, 8, 8, 1)).astype("float32")


def margins(model, x):
    """In float64, so that what the test sees is the function and not float32's rounding."""
    exact = keras.models.clone_model(model.network, clone_function=_in_float64)
    exact.set_weights(model.network.get_weights())
    logits = exact(x.astype("float64")).numpy()
    return logits - logits.mean(axis=1, keepdims=True)


def _in_float64(layer):
    return type(layer).from_config({**layer.get_config(), "dtype": "float64"})


@pytest.mark.parametrize(("seen", "head_bias"), [(False, True), (True, False)])
def test_margins_stay_and_rounding_falls(seen, head_bias):
    model, x = net(head_bias=head_bias)
    model.finalize()
    before, constants, spent = margins(model, x), model.margin_lipschitz, model.certificate_report().radius_spent
    centre_biases(model, x if seen else None)
    assert model.is_final
    np.testing.assert_allclose(margins(model, x), before, atol=1e-6 * np.abs(before).max())
    np.testing.assert_allclose(model.margin_lipschitz, constants, rtol=1e-5)
    assert model.certificate_report().radius_spent < spent / (5 if seen else 2)
    assert np.abs(model.network.layers[-1].kernel.numpy().mean(axis=1)).max() < 1e-6


def test_images_say_which_pairs_pass_their_difference():
    """Without images pairs keep their difference at 0; with them a pair of one order there is brought to a tie."""
    differences = {}
    for seen in (False, True):
        model, x = net()
        centre_biases(model, x if seen else None)
        outputs = model.network.layers[0](x).numpy()
        differences[seen] = outputs[..., 1::2] - outputs[..., ::2]
    first = differences[False].reshape(-1, 2)
    assert (first.min(axis=0) > 1).any() or (first.max(axis=0) < -1).any()
    for pair, known in zip(differences[True].reshape(-1, 2).T, first.T, strict=True):
        one_order = known.min() > 0 or known.max() < 0
        assert (np.abs(pair).min() < 1e-4) if one_order else np.allclose(pair, known, atol=1e-4)
        # Which of two is the smaller has not changed, but for ties.
        assert np.all(pair * np.sign(known) > -1e-4)


def test_a_few_exceptions_may_be_allowed():
    gaps = []
    for exceptions in (0.0, 0.2):
        model, x = net()
        centre_biases(model, x, exceptions=exceptions)
        outputs = model.network.layers[0](x).numpy()
        gaps.append(np.abs(np.median(outputs[..., 1::2] - outputs[..., ::2], axis=(0, 1, 2))))
    assert (gaps[1] <= gaps[0] + 1e-5).all()
    assert (gaps[1] < 0.9 * gaps[0]).any()


def test_zero_padding_is_left_alone_unless_asked():
    model, x = net(padding="same")
    first = model.network.layers[0].bias.numpy()
    before = margins(model, x)
    centre_biases(model)
    np.testing.assert_array_equal(model.network.layers[0].bias.numpy(), first)
    np.testing.assert_allclose(margins(model, x), before, atol=1e-6 * np.abs(before).max())
    centre_biases(model, padded=True)
    assert np.abs(model.network.layers[0].bias.numpy()).max() < np.abs(first).max()
    assert np.abs(margins(model, x) - before).max() > 1e-3 * np.abs(before).max()


def test_what_cannot_be_centred_stays():
    network = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, activation="relu"), layers.Dense(4, bias_initializer="ones"), layers.ReLU(),
            layers.Dense(4, bias_initializer="ones"), MinMax(), layers.Dense(4, use_bias=False), MinMax(),
            layers.Dense(4, activation=layers.ReLU(), bias_initializer="ones"), MinMax(),
            layers.Dense(2, activation="tanh"),
        ]
    )  # fmt: skip
    model = GloroNet(network, epsilon=0.1)
    weights = network.get_weights()
    centre_biases(model, np.ones((3, 4)))
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    assert not model.is_final


def test_bad_input_is_refused():
    model, x = net()
    inputs = keras.Input((4,))
    branched = keras.Model(inputs, layers.Dense(2)(layers.Add()([inputs, layers.Dense(4)(inputs)])))
    with pytest.raises(ValueError, match="chain"):
        centre_biases(GloroNet(branched, epsilon=0.1))
    with pytest.raises(TypeError, match="Sequential"):
        centre_biases(model.network)
    with pytest.raises(ValueError, match="exceptions"):
        centre_biases(model, x, exceptions=0.5)
    for wrong in (x[0], x[:0], x[:, :7]):
        with pytest.raises(ValueError, match=r"\(n, 8, 8, 1\)"):
            centre_biases(model, wrong)
