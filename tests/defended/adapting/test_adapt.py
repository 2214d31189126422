"""A user's network made certifiable: which changes keep its function, which do not, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import defended
from defended import GloroNet
from defended.adapting import adaptation, substitutes
from defended.adapting.endings import to_logits
from defended.adapting.plan import Plan
from defended.layers import MinMax


def sequential(shape, *body):
    network = keras.Sequential([keras.Input(shape), *body])
    rng = np.random.default_rng(3)
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2.0, value.shape) for value in layer.get_weights()])
    return network


def inputs_of(network, count=16):
    return np.random.default_rng(5).uniform(-1, 1, (count, *network.input_shape[1:])).astype("float32")


def kinds(network):
    return [type(layer).__name__ for layer in network.layers[1:]]


def usual_cnn(ending="softmax"):
    """What everyone has."""
    return sequential(
        (8, 8, 3),
        layers.Conv2D(6, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(),
        layers.Dropout(0.2), layers.Conv2D(8, 3, padding="same", activation="gelu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(10, activation="relu"), layers.Dense(4, activation=ending),
    )  # fmt: skip


def test_the_network_that_everyone_has(capsys):
    network = usual_cnn()
    weights = [value.copy() for value in network.get_weights()]
    adapted = defended.adapt(network)
    assert kinds(adapted) == [
        "Conv2D", "MinMax", "Dropout", "Conv2D", "MinMax", "Flatten", "Dense", "MinMax", "Dense"
    ]  # fmt: skip
    assert adapted.layers[1].strides == adapted.layers[4].strides == (2, 2)
    assert adapted.output_shape == (None, 4)
    GloroNet(adapted, epsilon=0.1).finalize()
    # What carries over does, and the user's own network is as it was.
    np.testing.assert_array_equal(adapted.layers[4].get_weights()[0], network.layers[5].get_weights()[0])
    assert all(np.array_equal(*pair) for pair in zip(weights, network.get_weights(), strict=True))
    assert kinds(network)[-1] == "Dense"
    assert network.layers[-1].activation is keras.activations.softmax
    assert "BatchNormalization  folded" in capsys.readouterr().out


FOLDED = {
    "into the convolution before": [layers.Conv2D(6, 3, use_bias=False), layers.BatchNormalization(), layers.Flatten()],
    "into a Dense layer before": [layers.Flatten(), layers.Dense(6), layers.BatchNormalization()],
    "into a depthwise convolution": [
        layers.DepthwiseConv2D(3, depth_multiplier=2), layers.BatchNormalization(), layers.Flatten(),
    ],
    "into a separable convolution": [layers.SeparableConv2D(6, 3), layers.BatchNormalization(scale=False),
                                     layers.Flatten()],
    "behind an activation, through pooling": [
        layers.Conv2D(6, 3, activation="tanh"), layers.BatchNormalization(center=False), layers.AveragePooling2D(2),
        layers.Dropout(0.5), layers.Flatten(),
    ],
    "behind an activation, into a convolution": [
        layers.Conv2D(6, 3, activation="relu"), layers.BatchNormalization(), layers.Conv2D(4, 3), layers.Flatten(),
    ],
    "first of all": [layers.BatchNormalization(), layers.Conv2D(6, 3), layers.Flatten()],
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_a_folded_normalisation_leaves_the_function_as_it_is(case):
    network = sequential((6, 6, 2), *[type(part).from_config(part.get_config()) for part in FOLDED[case]],
                         layers.Dense(3, activation="softmax"))  # fmt: skip
    plan = Plan(network)
    to_logits(plan)
    substitutes.split_activations(plan)
    substitutes.fold_normalisations(plan)
    folded = plan.build()
    assert "BatchNormalization" not in kinds(folded)
    assert "folded" in [change.now.split()[0] for change in plan.changes]
    x = inputs_of(network)
    np.testing.assert_allclose(ops.softmax(folded(x)), network(x), atol=2e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_with_two_readers_or_two_uses_is_not_folded_into(shared):
    x = keras.Input((4,))
    dense, normalised = layers.Dense(4), layers.BatchNormalization()
    value = dense(x)
    other = dense(value) if shared else value
    network = keras.Model(x, layers.Dense(2)(layers.Add()([normalised(value), other])))
    adapted = adaptation(network)
    assert ("batch normalisation", "removed") in [(change.kind, change.now) for change in adapted.changes]


@pytest.mark.parametrize(
    ("ending", "outputs"),
    [
        ([layers.Dense(3, activation="softmax")], 3),
        ([layers.Dense(3), layers.Softmax()], 3),
        ([layers.Dense(3), layers.Activation("log_softmax")], 3),
        ([layers.Dense(3, activation="sigmoid")], 3),
        ([layers.Dense(1, activation="sigmoid")], 2),
        ([layers.Dense(1), layers.Activation("sigmoid")], 2),
        ([layers.Dense(1)], 2),
        ([layers.Dense(3), layers.Dropout(0.5)], 3),
    ],
)
def test_an_ending_becomes_logits_that_decide_alike(ending, outputs):
    network = sequential(
        (5,), layers.Dense(6), MinMax(), *[type(part).from_config(part.get_config()) for part in ending]
    )
    x = inputs_of(network, 64)
    if outputs == 2:  # about as many of either class
        first, sort, dense, *_ = network.layers
        dense.bias.assign(-np.median(ops.matmul(sort(first(x)), dense.kernel), axis=0))
    scores = np.asarray(network(x))
    if scores.shape[1] == 1:
        threshold = 0.0 if type(ending[-1]) is layers.Dense and ending[-1].activation.__name__ == "linear" else 0.5
        labels = (scores[:, 0] > threshold).astype(int)
    else:
        labels = scores.argmax(-1)
    found = adaptation(network, x, labels)
    assert found.network.output_shape == (None, outputs)
    assert (found.accuracy_before, found.accuracy) == (1.0, 1.0)
    assert 0 < labels.mean() < outputs - 1


def test_pooling_that_strides_cannot_stand_in_for_becomes_an_average():
    overlapping = sequential(
        (9, 9, 1), layers.Conv2D(4, 3), layers.MaxPooling2D(3, 2), layers.Flatten(), layers.Dense(2)
    )
    odd = sequential((7, 7, 1), layers.Conv2D(4, 3, padding="same"), layers.MaxPooling2D(2), layers.Flatten(),
                     layers.Dense(2))  # fmt: skip
    narrow = sequential((8, 8, 1), layers.Conv2D(4, 1), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(2))
    for network in (overlapping, odd, narrow):
        adapted = adaptation(network).network
        assert kinds(adapted) == ["Conv2D", "AveragePooling2D", "Flatten", "Dense"]
        assert [layer.output.shape for layer in adapted.layers[1:]] == [layer.output.shape for layer in network.layers]
    last = sequential((8, 8, 1), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(2))
    assert kinds(adaptation(last).network) == ["Conv2D", "GlobalAveragePooling2D", "Dense"]


def test_operations_become_layers():
    x = keras.Input((6,))
    value = layers.Dense(6)((x - 3.0) / 255.0)
    network = keras.Model(x, layers.Dense(2)(ops.relu(value) + value * 0.5))
    found = adaptation(network)
    assert kinds(found.network) == ["Rescaling", "Rescaling", "Dense", "MinMax", "Rescaling", "Add", "Dense"]
    points = inputs_of(network)
    plan = Plan(network)  # nothing but the operations changed
    np.testing.assert_allclose(plan.build()(points), network(points), rtol=1e-5)


def test_nested_models_shared_layers_and_names_that_repeat():
    inner = sequential((6,), layers.Dense(6, activation="relu", name="same"))
    shared = layers.Dense(6, activation="relu", name="shared")
    x = keras.Input((6,))
    network = keras.Model(x, layers.Dense(2, name="same")(shared(inner(shared(x)))))
    adapted = adaptation(network).network
    assert kinds(adapted).count("MinMax") == 3
    assert sum(layer.count_params() for layer in adapted.layers) == network.count_params()


def test_augmentation_normalisation_and_bytes_stay_or_are_said():
    adapted_statistics = layers.Normalization(axis=-1)
    adapted_statistics.adapt(np.random.default_rng(0).normal(5.0, 3.0, (50, 4, 4, 2)))
    inputs = keras.Input((4, 4, 2), dtype="uint8")
    value = adapted_statistics(layers.RandomFlip()(layers.Rescaling(1 / 255.0)(inputs)))
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(value)))
    found = adaptation(network)
    assert kinds(found.network) == ["Rescaling", "RandomFlip", "Normalization", "Flatten", "Dense"]
    assert found.changes[0][:4] == ("input", "input", "uint8", "float32")
    x = np.random.default_rng(1).integers(0, 255, (8, 4, 4, 2)).astype("uint8")
    outputs = [
        model.predict(points, verbose=0) for model, points in ((found.network, x.astype("float32")), (network, x))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_adapted_is_named_all_of_it_with_the_way_out():
    x = keras.Input((6, 4))
    value = layers.Multiply(name="gate")([layers.LSTM(5, name="memory", return_sequences=True)(x), layers.Dense(5)(x)])
    network = keras.Model(x, layers.Dense(2)(layers.Flatten()(value)))
    with pytest.raises(ValueError, match=r"'memory' \(LSTM\), 'gate' \(Multiply\).*`SmoothedNet\(network"):
        defended.adapt(network)
    with pytest.raises(ValueError, match=r"'lambda.*' \(Lambda\)"):
        defended.adapt(keras.Sequential([keras.Input((4,)), layers.Dense(2), layers.Lambda(lambda v: v)]))
    with pytest.raises(TypeError, match="Keras model"):
        defended.adapt("network")


def test_odd_features_keep_their_activation_and_layer_normalisation_goes():
    network = sequential((4,), layers.Dense(5, activation="relu"), layers.LayerNormalization(), layers.Dense(3))
    found = adaptation(network)
    assert kinds(found.network) == ["Dense", "Activation", "Dense"]
    assert {change.kind: change.now for change in found.changes} == {
        "normalisation": "removed", "activation": "relu (kept)",
    }  # fmt: skip
    assert "even" in str(found)


def test_a_network_with_nothing_to_change():
    network = sequential((4,), layers.Dense(6), MinMax(), layers.Dense(3))
    assert "Nothing to change" in str(adaptation(network))


@pytest.mark.parametrize(("x", "y"), [(np.zeros((3, 4)), None), (np.zeros((3, 4)), [0, 1])])
def test_data_without_fitting_labels(x, y):
    with pytest.raises(ValueError, match="`y`"):
        adaptation(sequential((4,), layers.Dense(2)), x, y)
