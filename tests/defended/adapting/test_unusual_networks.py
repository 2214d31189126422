"""Networks that are built in less usual ways: adapted to the same classes, or refused by name."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import defended
from defended import GloroNet
from defended.adapting import adaptation
from defended.adapting.endings import to_logits
from defended.adapting.plan import Plan
from defended.layers import MinMax


def sequential(shape, *body):
    return keras.Sequential([keras.Input(shape), *body])


def points(network, count=64):
    return np.random.default_rng(5).uniform(-1, 1, (count, *network.input_shape[1:])).astype("float32")


def kinds(network):
    return [type(layer).__name__ for layer in network.layers[1:]]


def with_statistics(network):
    rng = np.random.default_rng(3)
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2.0, value.shape) for value in layer.get_weights()])
    return network


def assert_decides_alike(network, adapted):
    x = points(network)
    before = np.asarray(network(x)).reshape(len(x), -1)
    assert np.array_equal(np.asarray(adapted(x)).argmax(-1), before.argmax(-1))


@pytest.mark.parametrize("layer", [layers.ReLU, layers.MaxPooling1D])
def test_one_layer_object_in_several_places(layer):
    x = keras.Input((8, 2))
    shared = layer()
    value = shared(layers.Dense(4)(shared(layers.Dense(4)(x))))
    adapted = adaptation(keras.Model(x, layers.Dense(2)(layers.Flatten()(value)))).network
    GloroNet(adapted, epsilon=0.1).finalize()
    assert len({one.name for one in adapted.layers}) == len(adapted.layers)


def test_the_ending_of_a_layer_that_is_used_inside_too():
    x = keras.Input((4,))
    dense = layers.Dense(4, activation="softmax")
    network = keras.Model(x, dense(dense(x)))
    plan = Plan(network)
    to_logits(plan)
    np.testing.assert_allclose(ops.softmax(plan.build()(points(network))), network(points(network)), atol=1e-6)
    with pytest.raises(ValueError, match="softmax"):
        adaptation(network)


@pytest.mark.parametrize(
    "ending",
    [
        [layers.Dense(4, activation="relu")],
        [layers.Dense(4, activation="tanh")],
        [layers.Dense(4), layers.ReLU(), layers.Rescaling(0.5), layers.Softmax()],
    ],
)
def test_classes_are_not_put_in_order(ending):
    network = sequential(
        (5,), layers.Dense(6), MinMax(), *[type(part).from_config(part.get_config()) for part in ending]
    )
    found = adaptation(network)
    assert kinds(found.network).count("MinMax") == 1
    assert "in order" in found.changes[-1].why
    assert_decides_alike(network, found.network)
    pooled = sequential((6, 6, 2), layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D())
    assert_decides_alike(pooled, adaptation(pooled).network)


@pytest.mark.parametrize(
    ("ending", "middle"),
    [
        ([layers.Dense(1, activation="tanh")], 0.0),
        ([layers.Dense(1, use_bias=False, activation="log_sigmoid")], np.log(0.5)),
        ([layers.Dense(1), layers.BatchNormalization(), layers.Activation("sigmoid")], 0.5),
        ([layers.Dense(1), layers.Reshape((1, 1)), layers.Activation("sigmoid")], 0.5),
    ],
)
def test_single_outputs_of_every_kind(ending, middle):
    network = sequential((5,), *[type(part).from_config(part.get_config()) for part in ending])
    x = points(network)
    labels = (np.asarray(network(x)).reshape(-1) > middle).astype(int)
    assert 0 < labels.mean() < 1
    found = adaptation(network, x, labels)
    assert (found.accuracy_before, found.accuracy) == (1.0, 1.0)
    assert found.network.output_shape == (None, 2)
    assert defended.diagnose(network, x, labels, epsilon=0.01).clean_accuracy == 1.0


def test_a_sigmoid_that_is_an_operation():
    x = keras.Input((5,))
    network = keras.Model(x, ops.sigmoid(layers.Dense(1)(x)))
    labels = (np.asarray(network(points(network)))[:, 0] > 0.5).astype(int)
    assert adaptation(network, points(network), labels).accuracy_before == 1.0


def test_a_softmax_of_one_output_is_refused():
    network = sequential((5,), layers.Dense(1, activation="softmax"))
    for refusing in (defended.adapt, defended.diagnose):
        with pytest.raises(ValueError, match=r"same for every input\. Use a sigmoid"):
            refusing(network)


def test_outputs_of_one_place_are_flattened():
    network = sequential((4, 4, 2), layers.Conv2D(3, 4), layers.Softmax())
    adapted = adaptation(network).network
    assert adapted.output_shape == (None, 3)
    assert_decides_alike(network, adapted)


def test_weights_of_an_activation_go_with_it():
    network = sequential((5,), layers.Dense(7, activation=layers.PReLU(alpha_initializer="ones")), layers.Dense(3))
    assert_decides_alike(network, adaptation(network).network)
    pooled = sequential((8, 8, 1), layers.Conv2D(5, 3, padding="same"), layers.PReLU(), layers.MaxPooling2D(),
                        layers.Flatten(), layers.Dense(3))  # fmt: skip
    assert kinds(adaptation(pooled).network)[:3] == ["Conv2D", "PReLU", "AveragePooling2D"]


def test_operations_keep_their_settings():
    x = keras.Input((4, 5), dtype="uint8")
    value = layers.Dense(5)(ops.cast(x, "float32") / 255.0)
    value = ops.elu(ops.leaky_relu(value, negative_slope=0.9), alpha=0.3)
    network = keras.Model(x, layers.Dense(2)(layers.Flatten()(value)))
    whole = np.random.default_rng(1).integers(0, 255, (8, 4, 5))
    np.testing.assert_allclose(
        Plan(network).build()(whole.astype("float32")), network(whole.astype("uint8")), atol=1e-6
    )
    doubled = keras.Input((5,), dtype="uint8")
    with pytest.raises(ValueError, match="Multiply"):  # 200 * 2 is 144 there
        adaptation(keras.Model(doubled, layers.Dense(2)(doubled * 2)))


def test_normalisations_that_are_not_folded_exactly_say_so():
    same = sequential((6, 6, 2), layers.BatchNormalization(), layers.Conv2D(3, 3, padding="same"), layers.Flatten(),
                      layers.Dense(2))  # fmt: skip
    assert "except for its zero padding" in adaptation(with_statistics(same)).changes[0].now
    readers = keras.Input((4,))
    normalised = layers.BatchNormalization()(layers.ReLU()(readers))
    change = adaptation(keras.Model(readers, layers.Dense(2)(layers.Add()([normalised, readers])))).changes[0]
    assert change.now == "removed"
    assert "another one" in change.why


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_policy_of_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        network = sequential((8, 8, 2), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
                             layers.Dense(3, activation="softmax", dtype="float32"))  # fmt: skip
        adapted = adaptation(network).network
        defended.diagnose(network)
        assert keras.config.dtype_policy().name == policy
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(layer.compute_dtype == "float32" for layer in adapted._flatten_layers())
    GloroNet(adapted, epsilon=0.1).finalize()


class Half(layers.Layer):
    """A user's layer whose configuration cannot be read back."""

    def __init__(self):
        super().__init__()

    def call(self, inputs):
        return inputs / 2

    def lipschitz_bound(self):
        return 0.5


def test_layers_that_cannot_be_copied_are_left_alone_and_named():
    x = keras.Input((4,))
    value = layers.Lambda(lambda v: v)(
        Half()(layers.Dense(4, kernel_initializer=lambda shape, dtype: ops.ones(shape))(x))
    )
    network = keras.Model(x, layers.Dense(2)(value * value))
    uses = [len(operation._inbound_nodes) for operation in network.operations]
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"'half.*Lambda.*Multiply.*'half.* \(Half\) cannot be copied: give its class"
        ):
            defended.adapt(network)
        found = defended.diagnose(network)
        assert [line.kind for line in found.layers if line.bound is None] == ["Half", "Lambda", "Multiply"]
    assert uses == [len(operation._inbound_nodes) for operation in network.operations]


def test_every_layer_that_a_rule_refuses_is_named():
    network = sequential((4, 4, 2), layers.AveragePooling2D(1, data_format="channels_first", name="one"),
                         layers.AveragePooling2D(1, data_format="channels_first", name="two"), layers.Flatten(),
                         layers.Dense(2))  # fmt: skip
    with pytest.raises(ValueError, match=r"'one'.*'two'.*SmoothedNet"):
        defended.adapt(network)


def test_attention_is_diagnosed():
    x = keras.Input((4, 6))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    found = defended.diagnose(keras.Model(x, layers.Dense(2)(layers.Flatten()(attention(x, x)))))
    assert "attention" in found.advice[0].where


def test_arguments_that_are_refused():
    network = sequential((4,), layers.Dense(2))
    for refusing in (adaptation, defended.diagnose):
        with pytest.raises(ValueError, match=r"`x` must hold .* \(4,\)"):
            refusing(network, np.zeros((3, 5)), np.zeros(3))
        with pytest.raises(ValueError, match="`x`: give the inputs"):
            refusing(network, None, np.zeros(3))
        with pytest.raises(ValueError, match="fixed input shape"):
            refusing(sequential((None, 3), layers.GlobalAveragePooling1D(), layers.Dense(2)))
        with pytest.raises(TypeError, match="Keras model"):
            refusing("network")
        with pytest.raises(ValueError, match="not built"):
            refusing(keras.Sequential([layers.Dense(2)]))


def test_a_call_for_training_is_said():
    x = keras.Input((4,))
    network = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5)(x, training=True)))
    assert adaptation(network).changes[0].was == "called with training=True"


def test_sentences_of_a_diagnosis_hold():
    kept = sequential((4,), layers.Dense(5, activation="relu"), layers.Dense(2))
    advice = [item.instead for item in defended.diagnose(kept).advice]
    assert any("even number of features" in text for text in advice)
    # A scale inside of the network is not one of its inputs' units.
    scaled = sequential((4,), layers.Dense(4), layers.Rescaling(0.2), layers.Dense(2))
    assert not defended.diagnose(scaled).advice
    large = sequential((2**16 + 1, 2), layers.Flatten(), layers.Dense(2))
    assert "by about" in str(defended.diagnose(large))
    with pytest.raises(ValueError, match="epsilon"):
        defended.diagnose(large, epsilon=-1.0)
    images = sequential((2, 2, 1), layers.Flatten(), layers.Dense(2))
    negative = np.random.default_rng(0).uniform(-100.0, -1.0, (8, 2, 2, 1))
    negative[0, 0, 0, 0] = -100.0
    assert any("Divide them by 100," in item.instead for item in defended.diagnose(images, negative).advice)
