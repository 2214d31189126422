"""What a certificate will make of a network: bounds, shares and advice."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import defended
from defended import GloroNet
from defended.layers import MinMax


def chain(*kernels):
    """A net of given kernels, MinMax between them."""
    body = [keras.Input((len(kernels[0]),))]
    for kernel in kernels:
        body += [layers.Dense(len(kernel[0]), use_bias=False), MinMax()]
    network = keras.Sequential(body[:-1])
    network.set_weights([np.asarray(kernel, "float32") for kernel in kernels])
    return network


def advice_about(found, word):
    return [item for item in found.advice if word in f"{item.where} {item.what} {item.instead}"]


def test_bounds_and_shares_by_hand():
    network = chain([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    # MinMax sorts (3 a, b): class 1 wins with margin |3 a - b|; K = 3 * sqrt(2).
    x = np.array([[0.5, 0.5], [0.1, 0.0], [1.0, 0.0]], "float32")
    found = defended.diagnose(network, x, [1, 1, 0], epsilon=0.1)
    assert [(line.kind, line.bound) for line in found.layers] == [
        ("Dense", pytest.approx(3, rel=1e-6)), ("MinMax", pytest.approx(1)), ("Dense", pytest.approx(2**0.5, rel=1e-6)),
    ]  # fmt: skip
    assert found.lipschitz == pytest.approx(3 * 2**0.5, rel=1e-5)
    # Radii: 1 / K = 0.236, 0.3 / K = 0.071, 3 / K = 0.707.
    assert found.answered == pytest.approx(2 / 3)
    assert found.median_radius == pytest.approx(1 / (3 * 2**0.5), rel=1e-3)
    assert (found.clean_accuracy, found.vra) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert not found.advice
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["how"] == "float64 factorisation"


def test_it_agrees_with_the_net_that_is_made_of_it():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    model = GloroNet(network, epsilon=0.4)
    model.finalize()
    found = defended.diagnose(network, x, epsilon=0.4)
    assert found.answered == pytest.approx(1 - model.verdicts(x).rejected.mean())
    assert found.vra is None


def test_everything_that_costs_answers_has_its_substitute():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(), layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )  # fmt: skip
    found = defended.diagnose(network, np.full((4, 8, 8, 1), 255.0), np.zeros(4, int), epsilon=20.0)
    for word in ("softmax", "Fold it", "MinMax", "strides", "in units before that"):
        assert advice_about(found, word), word
    measured = [item.measured for item in found.advice if item.measured]
    assert len(measured) == 3
    assert all("Fashion-MNIST" in text and "VRA" in text for text in measured)
    assert "batch_normalization" in str(found)
    assert "would be answered at epsilon 20" in str(found)


def test_unknown_layers_have_no_bound_and_a_way_out():
    network = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, name="memory"), layers.Dense(2)])
    found = defended.diagnose(network)
    assert [line.bound is None for line in found.layers] == [True, False]
    assert found.lipschitz is None
    assert found.answered is None
    assert "SmoothedNet" in found.advice[0].instead
    assert "memory" in found.advice[0].where


def test_a_branching_network_is_proven_as_a_whole():
    x = keras.Input((4,))
    value = layers.Dense(4, use_bias=False)(x)
    network = keras.Model(x, layers.Dense(2)(layers.Add()([x, value])))
    assert defended.diagnose(network).lipschitz > 0


def test_scales_of_tabular_data_and_of_bytes():
    network = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3)).astype("float32") * [1.0, 100.0, 1.0]
    assert "means nothing" in advice_about(defended.diagnose(network, table), "Standardise")[0].what
    assert not advice_about(defended.diagnose(network, table / [1.0, 100.0, 1.0]), "Standardise")
    images = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])
    bytes_ = rng.integers(0, 256, (20, 2, 2, 1))
    assert advice_about(defended.diagnose(images, bytes_), "Divide them")
    assert not advice_about(defended.diagnose(images, bytes_ / 255), "Divide them")


def test_rounding_that_takes_much_of_a_radius():
    found = defended.diagnose(chain(np.eye(4) * 3, np.eye(4)), np.full((2, 4), 1e4), epsilon=0.01)
    assert "second_look" in advice_about(found, "rounding takes")[0].instead
