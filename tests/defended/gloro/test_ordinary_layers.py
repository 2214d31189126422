"""Layers of ordinary Keras models: their constants against Jacobians, their exact values, and what stays refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from defended import GloroNet, PolytopeNet
from defended.gloro.graph import LipschitzGraph
from defended.networks.exact import exact_layer
from defended.networks.layer_kinds import AUGMENTING, INERT

RNG = np.random.default_rng(0)
IMAGE, SERIES, VOLUME, VECTOR = (8, 8, 3), (12, 4), (6, 5, 4, 2), (6,)
SLOPES = keras.initializers.RandomUniform(-2, 2, seed=1)


def adapted(shape):
    layer = layers.Normalization()
    layer.adapt(RNG.normal(5, 3, (50, *shape)) * np.linspace(0.5, 2, shape[-1]))
    return layer


# Layers that are a linear map, whose norm a Jacobian has; True where the bound is the norm itself.
LINEAR = {
    "rescaling": (IMAGE, lambda: layers.Rescaling(1 / 127.5, -1), True),
    "rescaling by channel": (IMAGE, lambda: layers.Rescaling([1.0, 2.0, -0.5], [0.0, 1.0, 2.0]), True),
    "normalization": (IMAGE, lambda: adapted(IMAGE), True),
    "normalization of features": (VECTOR, lambda: adapted(VECTOR), True),
    "inverted": (IMAGE, lambda: layers.Normalization(mean=[1, 2, 3], variance=[4, 1, 0.2], invert=True), True),
    "average 1D": (SERIES, lambda: layers.AveragePooling1D(3, 2, "same"), True),
    "average 3D": (VOLUME, lambda: layers.AveragePooling3D(2), True),
    "global average 1D": (SERIES, lambda: layers.GlobalAveragePooling1D(), True),
    "global average 3D": (VOLUME, lambda: layers.GlobalAveragePooling3D(keepdims=True), True),
    "conv 1D": (SERIES, lambda: layers.Conv1D(5, 3), True),
    "causal": (SERIES, lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2), False),
    "grouped 1D": (SERIES, lambda: layers.Conv1D(6, 4, strides=2, padding="same", groups=2), True),
    "conv 3D": (VOLUME, lambda: layers.Conv3D(3, 3, padding="same", strides=(2, 1, 2)), True),
    "dilated 3D": (VOLUME, lambda: layers.Conv3D(3, 2, dilation_rate=(2, 2, 1)), True),
    "depthwise": (IMAGE, lambda: layers.DepthwiseConv2D(3, padding="same"), True),
    "strided": (IMAGE, lambda: layers.DepthwiseConv2D(4, strides=2, padding="same", depth_multiplier=2), True),
    "dilated": (IMAGE, lambda: layers.DepthwiseConv2D(3, dilation_rate=2), True),
    "depthwise 1D": (SERIES, lambda: layers.DepthwiseConv1D(3, padding="same"), True),
    "separable": (IMAGE, lambda: layers.SeparableConv2D(4, 3, strides=2, depth_multiplier=2), True),
    "separable 1D": (SERIES, lambda: layers.SeparableConv1D(5, 3, dilation_rate=2), True),
    "padding 1D": (SERIES, lambda: layers.ZeroPadding1D((1, 2)), True),
    "padding 3D": (VOLUME, lambda: layers.ZeroPadding3D(1), True),
    "cropping 1D": (SERIES, lambda: layers.Cropping1D((1, 2)), True),
    "cropping 2D": (IMAGE, lambda: layers.Cropping2D(((1, 2), (0, 3))), True),
    "cropping 3D": (VOLUME, lambda: layers.Cropping3D(1), True),
    "center crop": (IMAGE, lambda: layers.CenterCrop(5, 4), True),
    "up 1D": (SERIES, lambda: layers.UpSampling1D(3), True),
    "up 2D": (IMAGE, lambda: layers.UpSampling2D((2, 3)), True),
    "up 3D": (VOLUME, lambda: layers.UpSampling3D(2), True),
    "repeated": (VECTOR, lambda: layers.RepeatVector(4), True),
    "permuted": (IMAGE, lambda: layers.Permute((3, 1, 2)), True),
}
OTHERS = {
    "max 1D": (SERIES, lambda: layers.MaxPooling1D(2), 1.0),
    "overlapping": (IMAGE, lambda: layers.MaxPooling2D(3, 2), 2.0),
    "max 3D": (VOLUME, lambda: layers.MaxPooling3D(2), 1.0),
    "global max 1D": (SERIES, lambda: layers.GlobalMaxPooling1D(), 1.0),
    "global max 2D": (IMAGE, lambda: layers.GlobalMaxPooling2D(), 1.0),
    "global max 3D": (VOLUME, lambda: layers.GlobalMaxPooling3D(), 1.0),
    "elu": (IMAGE, lambda: layers.ELU(1.5), 1.5),
    "elu as an activation": (SERIES, lambda: layers.Conv1D(2, 1, use_bias=False, activation=layers.ELU(2.0)), None),
    "prelu": (IMAGE, lambda: layers.PReLU(SLOPES), None),
    "shared prelu": (IMAGE, lambda: layers.PReLU(SLOPES, shared_axes=[1, 2]), None),
}


def built(shape, make):
    """A layer with random weights, and a network of it and a Dense layer."""
    layer, inputs = make(), keras.Input(shape)
    network = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs))))
    for variable in layer.trainable_variables:
        if "alpha" not in variable.name:
            variable.assign(RNG.normal(size=variable.shape))
    return layer, network


def largest_slope(layer, shape, points=3):
    x = tf.constant(RNG.normal(size=(points, *shape)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reshape(layer(x), (points, -1))
    jacobian = tape.batch_jacobian(y, x).numpy().reshape(points, y.shape[1], -1)
    return max(np.linalg.norm(each, 2) for each in jacobian)


def gain(layer, shape):
    """The norm of a linear layer; without gradients, which TensorFlow has of grouped convolutions on some CPUs only."""
    units = np.eye(np.prod(shape), dtype="float32").reshape(-1, *shape)
    images = layer(units).numpy() - layer(0 * units[:1]).numpy()
    return np.linalg.norm(images.reshape(len(units), -1), 2)


@pytest.mark.parametrize("name", LINEAR)
def test_the_constant_of_a_linear_layer_is_its_norm(name):
    shape, make, exactly = LINEAR[name]
    layer, network = built(shape, make)
    graph = LipschitzGraph(network)
    bound, true = graph.bound(), gain(layer, shape)
    assert true * (1 - 1e-5) <= bound <= true * (1 + (1e-5 if exactly else 0.05))
    for operator in graph.operators:
        assert operator.lower_estimate() <= bound * (1 + 1e-5)
        there = RNG.normal(size=(1, *operator.input_shape)).astype("float32")
        image = np.asarray(operator.apply(there))
        back = RNG.normal(size=image.shape).astype("float32")
        product, other = np.sum(image * back), np.sum(there * np.asarray(operator.adjoint(back)))
        assert abs(product - other) <= 1e-5 * np.abs(image * back).sum(), "the adjoint is one"


@pytest.mark.parametrize("name", OTHERS)
def test_the_constant_of_another_layer_is_no_slope_below(name):
    shape, make, constant = OTHERS[name]
    layer, network = built(shape, make)
    bound = LipschitzGraph(network).bound()
    assert largest_slope(layer, shape) <= bound * (1 + 1e-5)
    if constant is not None:
        assert bound == pytest.approx(constant, rel=1e-9)
    if "prelu" in name:
        assert bound == pytest.approx(max(1.0, np.abs(layer.alpha.numpy()).max()), rel=1e-6)


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_exact_values_are_the_layers(name):
    shape, make, _ = (LINEAR | OTHERS)[name]
    layer, _ = built(shape, make)
    for scale in (1.0, 300.0):
        x = (scale * RNG.normal(size=(4, *shape))).astype("float32")
        found, made = np.asarray(layer(x)), exact_layer(layer, [x.astype("float64")])
        assert found.shape == made.value.shape
        apart = np.abs(found - made.value)
        assert (apart <= made.tolerance + 0.0).all()
        assert (made.tolerance <= 1e-3 * (1 + np.abs(made.value)) * scale).all(), "a tolerance that says something"


@pytest.mark.parametrize("layer_class", INERT, ids=lambda layer_class: layer_class.__name__)
def test_what_acts_in_training_only_returns_its_input(layer_class):
    given = {
        "RandomTranslation": (0.1, 0.1), "RandomPosterization": (4,), "RandomGrayscale": (0.5,),
        **dict.fromkeys(("GaussianNoiseAugmentation", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Dropout",
                         "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "RandomBrightness", "RandomZoom",
                         "RandomColorDegeneration", "RandomContrast", "RandomRotation", "RandomHue",
                         "RandomSaturation", "RandomSharpness"), (0.1,)),
    }  # fmt: skip
    layer = layer_class(*given.get(layer_class.__name__, ()))
    shape = {"1D": SERIES, "3D": VOLUME}.get(layer_class.__name__[-2:], IMAGE)
    network = keras.Sequential([keras.Input(shape), layer, layers.Flatten(), layers.Dense(3)])
    x = (300 * RNG.normal(size=(5, *shape))).astype("float32")
    asked = {"training": False} if layer._call_has_training_arg else {}
    np.testing.assert_array_equal(layer(x, **asked), x)
    np.testing.assert_array_equal(tf.function(lambda batch: layer(batch, **asked), autograph=False)(x), x)
    assert LipschitzGraph(network).bound() == pytest.approx(1.0, abs=1e-14)
    if layer_class in AUGMENTING:
        return
    plain = keras.Sequential([keras.Input(shape), layer_class.from_config(layer.get_config()), layers.Flatten(),
                              layers.Dense(4, activation="relu"), layers.Dense(3)])  # fmt: skip
    PolytopeNet(plain, epsilon=0.1)


def test_an_ordinary_network_is_proven_evaluated_and_trained():
    """Rescaled bytes, augmentation, depthwise and separable convolutions, pooling, two activations: as users write."""
    network = keras.Sequential(
        [
            keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), layers.RandomFlip("horizontal"),
            layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization(), layers.PReLU(shared_axes=[1, 2]),
            layers.DepthwiseConv2D(3, strides=2, padding="same"), layers.ELU(), layers.SpatialDropout2D(0.1),
            layers.SeparableConv2D(6, 3, activation="relu"), layers.MaxPooling2D(2), layers.GaussianNoise(0.1),
            layers.GlobalMaxPooling2D(), layers.Dense(3),
        ]
    )  # fmt: skip
    model = GloroNet(network, epsilon=1.0)
    x = RNG.integers(0, 256, (24, 12, 12, 3)).astype("uint8")
    y = np.arange(24) % 3
    model.compile("adam", "crossentropy", metrics=["vra"])
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    found = model.verdicts(x)
    assert model.is_final
    moved = np.clip(x + RNG.normal(size=x.shape) * 0.02, 0, 255).astype("float32")
    answered = ~found.rejected
    np.testing.assert_array_equal(
        model.verdicts(moved).label[answered & (found.radius > 2)], found.label[answered & (found.radius > 2)]
    )


def test_series_and_volumes_are_proven():
    for shape, body in (
        (
            SERIES,
            [layers.Conv1D(6, 3, padding="causal", activation="relu"), layers.MaxPooling1D(2), layers.Conv1D(4, 2)],
        ),
        (VOLUME, [layers.Conv3D(3, 2, activation="relu"), layers.AveragePooling3D(2)]),
    ):
        network = keras.Sequential([keras.Input(shape), *body, layers.Flatten(), layers.Dense(3)])
        model = GloroNet(network, epsilon=0.01)
        x = RNG.normal(size=(6, *shape))
        assert (model.verdicts(x).radius > 0).any()
        assert model.is_final


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.UpSampling2D(2, interpolation="bilinear"), "interpolation='bilinear'.*Use 'nearest'"),
        (lambda: layers.CenterCrop(9, 4), "enlarges inputs of 8 x 8.*only cutting"),
        (lambda: layers.RandomCrop(4, 4), "RandomCrop"),
        (lambda: layers.Rescaling(1e-35), "its scale is 1e-35: bring the inputs to a common scale"),
        (lambda: layers.AveragePooling2D(2, data_format="channels_first"), "channels_last"),
        (lambda: layers.Conv2D(2, 3, activation="gelu"), "has the activation 'gelu'"),
    ],
)
def test_what_stays_refused_says_why(make, message):
    layer, inputs = make(), keras.Input(IMAGE)
    network = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs))))
    with pytest.raises(ValueError, match=message):
        GloroNet(network, epsilon=0.1).finalize()


def test_a_volume_that_is_too_large_is_refused():
    network = keras.Sequential([keras.Input((40, 8, 8, 64)), layers.Conv3D(64, 5), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Conv3D.*Shorten the first axis"):
        GloroNet(network, epsilon=0.1)


class TestWhatWasOnceWrong:
    """Found by an attacker who knew only the promise."""

    @pytest.mark.parametrize(
        ("scale", "offset"), [(np.ones((8, 1)).tolist(), 0.0), (2.0, np.ones((2, 1, 1, 3)).tolist()), ([1.0, 2.0], 0.0)]
    )
    def test_rescaling_that_changes_the_shape_is_refused(self, scale, offset):
        inputs = keras.Input((4, 1, 3))
        try:
            values = layers.Rescaling(scale, offset)(inputs)
        except ValueError:
            return  # refused by Keras
        network = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(layers.Conv2D(2, 1)(values))))
        with pytest.raises(ValueError, match=r"\(Rescaling\) has a scale of shape .* do not go with inputs"):
            GloroNet(network, epsilon=0.1)

    @pytest.mark.parametrize(("first", "second"), [(2.0**-110, 2.0**110), (2.0**110, 2.0**-110), (2.0**120, 2.0**-127)])
    @pytest.mark.parametrize("normalised", [False, True])
    def test_a_separable_convolution_errs_between_its_steps(self, first, second, normalised):
        """What is flushed to zero or overflows between the two is enlarged, or hidden, by the second kernel."""
        behind = [layers.BatchNormalization()] if normalised else []
        network = keras.Sequential(
            [keras.Input((3, 3, 1)), layers.SeparableConv2D(2, 2, use_bias=False), *behind, layers.Flatten(),
             layers.Dense(2)]
        )  # fmt: skip
        network.layers[0].depthwise_kernel.assign(np.full((2, 2, 1, 1), first))
        network.layers[0].pointwise_kernel.assign(np.full((1, 1, 1, 2), second))
        graph = LipschitzGraph(network)
        assert graph.bound() < 100, "the product is harmless"
        proof = graph.prove()
        constant, slope = np.max(proof.errors[0]), np.max(proof.errors[1])
        flushed = 2.0**-126 * second  # of one number between the two
        assert constant >= flushed or slope >= 2.0**-126 * first
        assert proof.limit * first <= 2.0**113, "no sum between them overflows"

    def test_layers_that_draw_are_no_activations(self):
        for activation in (layers.RandomInvert(0.5), layers.GaussianNoise(0.1), layers.Rescaling(3.0)):
            network = keras.Sequential([keras.Input(VECTOR), layers.Dense(4, activation=activation), layers.Dense(2)])
            with pytest.raises(ValueError, match="has the activation"):
                GloroNet(network, epsilon=0.1)

    def test_prelu_is_an_activation(self):
        activation = layers.PReLU(SLOPES)
        model = GloroNet(
            keras.Sequential([keras.Input(VECTOR), layers.Dense(4, activation=activation), layers.Dense(2)]),
            epsilon=0.1,
        )
        model.finalize()
        assert model.is_final

    def test_seeds_that_move_at_inference_are_no_change(self):
        network = keras.Sequential([keras.Input(IMAGE), layers.RandomHue(0.1), layers.Flatten(), layers.Dense(3)])
        model = GloroNet(network, epsilon=0.1)
        model.verdicts(RNG.normal(size=(4, *IMAGE)))
        assert model.is_final
        network.layers[-1].kernel.assign(2 * network.layers[-1].kernel)
        assert not model.is_final

    def test_normalisation_behind_convolutions_of_other_kinds(self):
        for shape, layer in ((VOLUME, layers.Conv3D(3, 2)), (SERIES, layers.Conv1D(4, 2)),
                             (IMAGE, layers.DepthwiseConv2D(3)), (IMAGE, layers.SeparableConv2D(4, 3))):  # fmt: skip
            pair = keras.Sequential([layer, layers.BatchNormalization(scale=False)])
            _, network = built(shape, lambda pair=pair: pair)
            variance = pair.layers[1].moving_variance
            variance.assign(np.full(variance.shape, 0.3))
            graph = LipschitzGraph(network)
            # Factors that are all alike make the bound the norm, folded or not.
            assert graph.bound() == pytest.approx(largest_slope(pair, shape, points=1), rel=1e-4)

    def test_statistics_that_were_assigned_and_are_not_used_are_refused(self):
        network = keras.Sequential([keras.Input(VECTOR), adapted(VECTOR), layers.Dense(3)])
        other = keras.models.clone_model(network)
        other.set_weights(network.get_weights())
        with pytest.raises(ValueError, match=r"'normalization.*finalize_state"):
            GloroNet(other, epsilon=0.1).finalize()
        other.layers[0].finalize_state()
        one, model = GloroNet(network, epsilon=0.1), GloroNet(other, epsilon=0.1)
        x = RNG.normal(5, 3, (4, *VECTOR))
        np.testing.assert_array_equal(one.verdicts(x).radius, model.verdicts(x).radius)

    def test_an_epsilon_of_keras_that_changed_is_noticed(self):
        layer = layers.Normalization(mean=0.0, variance=0.0)
        model = GloroNet(keras.Sequential([keras.Input(VECTOR), layer, layers.Dense(3)]), epsilon=1e-9)
        model.finalize()
        before = keras.config.epsilon()
        keras.config.set_epsilon(1e-6)
        try:
            assert not model.is_final
        finally:
            keras.config.set_epsilon(before)

    def test_a_crop_that_rounds_to_float32_is_not_looked_at_twice(self):
        crop = layers.CenterCrop(4, 4)
        assert crop(np.full((1, *IMAGE), 1 / 3)).dtype == "float32"
        network = keras.Sequential([keras.Input(IMAGE), layers.Conv2D(2, 3), crop, layers.Flatten(), layers.Dense(3)])
        with pytest.raises(ValueError, match=r"second look.*CenterCrop"):
            GloroNet(network, epsilon=0.1, second_look=True)

    @pytest.mark.parametrize("layer_class", [layers.ZeroPadding2D, layers.Cropping2D, layers.Flatten])
    def test_channels_first_is_refused(self, layer_class):
        layer = layer_class(data_format="channels_first")
        network = keras.Sequential([keras.Input(IMAGE), layer, layers.Flatten(), layers.Dense(3)])
        with pytest.raises(ValueError, match="channels_last"):
            GloroNet(network, epsilon=0.1)
