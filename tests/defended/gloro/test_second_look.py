"""Inputs that only rounding rejects are answered by float64, and what is answered holds in exact arithmetic."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import BITS, exact_logits, exactly
from keras import layers
from nets import NETWORKS, finalized, near_the_boundary, randomised, sequential, set_weights

from defended import GloroNet, load_model
from defended.attacks import CertificateDescent, susceptibility
from defended.gloro import float64
from defended.gloro.float64 import Float64Evaluation
from defended.gloro.second_look import SHARE
from defended.layers import MinMax
from defended.networks.exact import exact_layer
from defended.networks.tracing import trace

KNOWN = [
    "linear", "dense", "blocks", "blocks in the head", "blocks of channels", "no dense head", "liresnet",
    "normalisation folded", "normalisation", "branches", "nested", "pooling",
]  # fmt: skip
N = 300
REFUSED = {"conv": "conv2d", "dilation": "dense", "places": "dense"}


@functools.cache
def models(name):
    """A model, and the same one looking twice; no test changes their weights."""
    network = randomised(NETWORKS[name](), np.random.default_rng(11))
    return finalized(network), finalized(network, second_look=True)


def pair(name, seed, offset=0.0, share=0.5):
    """The two models, and inputs among which rounding decides; epsilon is a quantile of radii."""
    once, twice = models(name)
    offsets = np.broadcast_to(offset, N).reshape(-1, *[1] * (len(once.input_shape) - 1))
    x = near_the_boundary(once, N, np.random.default_rng(seed), offsets)
    radii = once.audit(x)["certified_radius"]
    once.epsilon = twice.epsilon = float(np.quantile(radii[radii > 0], share))
    return once, twice, x


@pytest.mark.parametrize("name", KNOWN)
def test_float64_errs_by_less_than_its_share_of_the_budget(name):
    model = GloroNet(randomised(NETWORKS[name](), np.random.default_rng(11)), epsilon=1e-6, second_look=True)
    x = np.random.default_rng(3).standard_normal((20, *model.input_shape[1:])).astype("float32")
    found = np.asarray(Float64Evaluation(model._graph.all_steps)(x))
    assert found.dtype == np.float64
    exact = exact_logits(model.network, x)
    error = np.abs((exactly(found)[:, :, None] - exactly(found)[:, None]) - (exact[:, :, None] - exact[:, None]))
    c0, c1 = model._graph.prove().errors
    norms = np.linalg.norm(x.reshape(20, -1).astype("float64"), axis=1)
    allowed = exactly(SHARE * (c0 + c1 * norms[:, None, None]))
    assert np.all(error <= allowed)
    assert error.max() > 0


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_answered_holds_in_exact_arithmetic(name):
    once, twice, x = pair(name, 5, np.repeat([0.0, 30.0], N // 2))
    first, second = once.audit(x), twice.audit(x)
    assert not (second["rejected"] & ~first["rejected"]).any()
    kept = ~first["rejected"]
    np.testing.assert_array_equal(second["label"][kept], first["label"][kept])
    assert (second["certified_radius"] >= first["certified_radius"]).all()
    answered = ~second["rejected"]
    assert (second["certified_radius"][answered] > float(twice.epsilon)).all()
    exact, label = exact_logits(twice.network, x[answered]), second["label"][answered]
    margins = exact[np.arange(len(label)), label][:, None] - exact
    needed = exactly(second["certified_radius"][answered])[:, None] * exactly(twice.margin_lipschitz[label]) >> BITS
    assert np.all((margins >= needed) | (np.arange(exact.shape[1]) == label[:, None]))


def test_it_answers_as_if_rounding_cost_nothing():
    once, twice, x = pair("blocks of channels", 6, 30.0, 0.3)
    free = GloroNet(once.network, epsilon=float(once.epsilon), rounding=False)
    free.finalize()
    rejected = [model.verdicts(x).rejected for model in (once, twice, free)]
    assert rejected[0].sum() > rejected[1].sum() + 3
    assert abs(int(rejected[1].sum()) - int(rejected[2].sum())) <= 1


def test_radii_say_what_a_deployment_at_another_epsilon_would_answer():
    _, twice, x = pair("blocks of channels", 6, 30.0, 0.3)
    epsilon = float(twice.epsilon) / 3
    twice = finalized(twice.network, epsilon, second_look=True)
    radius, everywhere = (np.asarray(radii(x)) for radii in (twice.certified_radius, twice.deployment_radius))
    assert (everywhere >= radius).all()
    assert (everywhere > radius).any()
    for factor, radii in ((2.0, radius), (0.7, everywhere), (1.0, everywhere), (2.0, everywhere), (2.6, everywhere)):
        other = finalized(twice.network, factor * epsilon, second_look=True)
        answered = ~other.verdicts(x).rejected
        assert (answered != (radii > factor * epsilon)).sum() <= 1, "a rounding away from the radius"
        assert answered.any()
    once = finalized(twice.network, epsilon)
    np.testing.assert_array_equal(once.deployment_radius(x), once.certified_radius(x))
    assert np.asarray(twice.deployment_radius(np.full_like(x[:2], np.nan))).tolist() == [0.0, 0.0]


def test_an_input_stays_answered_within_its_availability_radius():
    """Moved as fast towards the boundary as it may, where one evaluation in float32 promises much less."""
    rng = np.random.default_rng(8)
    network = sequential((64,), layers.Dense(2))
    kernel = rng.normal(size=64)
    set_weights(network.layers[0], np.stack([kernel, -kernel], axis=1), [900.0 * np.linalg.norm(kernel), 0])
    once, twice = finalized(network, 0.5), finalized(network, 0.5, second_look=True)
    away = -kernel / np.linalg.norm(kernel)
    x = (np.linspace(447, 449.4, 200)[:, None] * away).astype("float32")
    found, plain = twice.audit(x), once.audit(x)
    room = found["availability_radius"].astype("float64")
    assert (room >= plain["availability_radius"]).all()
    moved = (x + (room * (1 - 1e-7))[:, None] * away).astype("float32")
    apart = np.linalg.norm(moved.astype("float64") - x, axis=1)
    held = (apart < room) & (room > 0)
    assert held.sum() > 50
    assert not twice.verdicts(moved).rejected[held].any()


def test_the_company_of_an_input_changes_nothing():
    _, twice, x = pair("dense", 7, 30.0)
    together, alone = twice.verdicts(x), twice.verdicts(x, batch_size=1)
    np.testing.assert_array_equal(together.label, alone.label)
    assert twice.verdicts(np.concatenate([x[:5], x[:1] * np.nan])).rejected[-1]


def test_weights_that_change_are_looked_at_as_they_are():
    rng = np.random.default_rng(9)
    twice = finalized(randomised(NETWORKS["dense"](), rng), second_look=True)
    x = near_the_boundary(twice, 300, rng, 30.0)
    radii = np.asarray(twice.certified_radius(x))
    twice.epsilon = float(np.median(radii[radii > 0]))
    before = twice.verdicts(x).label
    for variable in twice.network.trainable_variables:
        variable.assign(-1.5 * variable)
    fresh = finalized(twice.network, float(twice.epsilon), second_look=True)
    np.testing.assert_array_equal(twice.verdicts(x).label, fresh.verdicts(x).label)
    assert (fresh.verdicts(x).label != before).any()


def test_a_file_keeps_it(tmp_path):
    _, twice, x = pair("dense", 10, 30.0)
    twice.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert again.second_look
    np.testing.assert_array_equal(again.verdicts(x).label, twice.verdicts(x).label)
    with pytest.raises(AttributeError, match="settled"):
        again.second_look = False


def test_attacks_follow_what_answers():
    """Descents that stopped where float32 rejects would stop too early: float64 still answers there."""
    once, twice, x = pair("blocks of channels", 11, 30.0, 0.2)
    x = x[:150]
    y = np.asarray(once.undefended_logits(x)).argmax(axis=1)
    radii = np.asarray(twice.answering_radii(x)).min(axis=1)
    answered = ~twice.verdicts(x).rejected
    assert ((radii > float(twice.epsilon)) == answered).mean() > 0.98
    result = susceptibility(twice, x, y, CertificateDescent(steps=20, early_stop=True), progress=False)
    assert result.fpr_lower <= result.fpr_upper
    assert result.fpr_lower > 0.5 * float(result.fpr_upper)


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_layers_that_float64_does_not_know(self, name):
        with pytest.raises(ValueError, match=f"does not know layer '{REFUSED[name]}"):
            GloroNet(NETWORKS[name](), epsilon=0.1, second_look=True)

    def test_nothing_to_look_at(self):
        with pytest.raises(ValueError, match="leave one out"):
            GloroNet(NETWORKS["dense"](), epsilon=0.1, second_look=True, rounding=False)

    def test_weights_that_may_be_flushed(self):
        network = randomised(NETWORKS["dense"](), np.random.default_rng(1))
        kernel = np.asarray(network.layers[0].kernel).copy()
        kernel[0, 0] = 2.0**-130
        network.layers[0].kernel.assign(kernel)
        with pytest.raises(ValueError, match="between 0 and"):
            GloroNet(network, epsilon=0.1, second_look=True).finalize()

    def test_a_float64_evaluation_of_another_function(self, monkeypatch):
        """The comparison at the proof sees it: here, a bias that is forgotten."""
        network = randomised(NETWORKS["dense"](), np.random.default_rng(2))
        monkeypatch.setattr(float64, "_finished", lambda layer, value: value)
        with pytest.raises(ValueError, match="evaluated in float64, is another function"):
            GloroNet(network, epsilon=0.1, second_look=True).finalize()


IMAGE, SERIES, VOLUME, VECTOR = (6, 5, 3), (9, 2), (4, 3, 4, 2), (5,)
SLOPES = keras.initializers.RandomUniform(-2, 2, seed=1)
ORDINARY = {
    "rescaling": (IMAGE, lambda: layers.Rescaling(1 / 127.5, -0.3)),
    "normalization": (IMAGE, lambda: layers.Normalization(mean=[1, 2, 3], variance=[4, 1, 0.2])),
    "inverted": (IMAGE, lambda: layers.Normalization(mean=[1, 2, 3], variance=[4, 1, 0.2], invert=True)),
    "conv 1D": (SERIES, lambda: layers.Conv1D(3, 3, strides=2, padding="same", activation="elu")),
    "causal": (SERIES, lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2)),
    "conv 3D": (VOLUME, lambda: layers.Conv3D(2, 2, strides=(2, 1, 2), padding="same", activation=layers.ELU(1.5))),
    "dilated": (IMAGE, lambda: layers.Conv2D(2, 2, dilation_rate=(1, 2), padding="same", activation="leaky_relu")),
    "depthwise": (IMAGE, lambda: layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, activation="relu")),
    "depthwise 1D": (SERIES, lambda: layers.DepthwiseConv1D(3)),
    "separable": (IMAGE, lambda: layers.SeparableConv2D(4, 2, depth_multiplier=2, activation=layers.PReLU(SLOPES))),
    "separable 1D": (SERIES, lambda: layers.SeparableConv1D(4, 3, dilation_rate=2)),
    "average": (IMAGE, lambda: layers.AveragePooling2D((3, 2), (2, 1), "same")),
    "average 3D": (VOLUME, lambda: layers.AveragePooling3D(2)),
    "maximum": (IMAGE, lambda: layers.MaxPooling2D((3, 2), (2, 1), "same")),
    "maximum 1D": (SERIES, lambda: layers.MaxPooling1D(2)),
    "global average": (VOLUME, lambda: layers.GlobalAveragePooling3D()),
    "global maximum": (SERIES, lambda: layers.GlobalMaxPooling1D()),
    "up": (IMAGE, lambda: layers.UpSampling2D((2, 3))),
    "up 1D": (SERIES, lambda: layers.UpSampling1D(2)),
    "up 3D": (VOLUME, lambda: layers.UpSampling3D(2)),
    "repeated": (VECTOR, lambda: layers.RepeatVector(3)),
    "padding": (VOLUME, lambda: layers.ZeroPadding3D(1)),
    "cropping": (IMAGE, lambda: layers.Cropping2D(((1, 0), (0, 1)))),
    "permuted": (IMAGE, lambda: layers.Permute((3, 1, 2))),
    "elu": (VECTOR, lambda: layers.ELU(1.3)),
    "elu as an activation": (VECTOR, lambda: layers.Activation("elu")),
    "prelu": (IMAGE, lambda: layers.PReLU(SLOPES, shared_axes=[1, 2])),
    "leaky": (VECTOR, lambda: layers.LeakyReLU(0.3)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_layers_round_to_float64_only(name):
    """Behind a layer that makes numbers which are not float32: what rounds to float32 inside is off by 1e-8."""
    shape, make = ORDINARY[name]
    rng = np.random.default_rng(len(name))
    first = layers.Rescaling(1 / 3, 0.7)
    network = sequential(shape, first, make(), layers.Flatten(), layers.Dense(3))
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    steps, returned = trace(network)
    x = rng.normal(size=(4, *shape)).astype("float32")
    values = {0: x.astype("float64")}
    for step in steps:
        values[step.output] = exact_layer(step.layer, [values[slot] for slot in step.inputs]).value
    found = np.asarray(Float64Evaluation(steps)(x))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, values[returned], rtol=1e-12, atol=1e-12)


def test_an_ordinary_network_looks_twice_in_all_graphs(tmp_path):
    from defended.serving import export, load
    from defended.serving.artefacts.onnx_model import load_onnx

    keras.utils.set_random_seed(1)
    network = sequential(
        (6, 6, 3), layers.Rescaling(1 / 3), layers.SeparableConv2D(6, 2, activation=layers.ELU()),
        layers.MaxPooling2D(2, 1), layers.DepthwiseConv2D(2), layers.PReLU(SLOPES), layers.AveragePooling2D(2),
        layers.Flatten(), layers.Dense(3),
    )  # fmt: skip
    once, twice = finalized(network), finalized(network, second_look=True)
    x = near_the_boundary(once, 200, np.random.default_rng(0), 3000.0)
    radii = np.asarray(once.certified_radius(x))
    once.epsilon = twice.epsilon = float(np.quantile(radii[radii > 0], 0.3))
    expected = twice.verdicts(x)
    assert expected.rejected.sum() < once.verdicts(x).rejected.sum()
    path = export(twice, tmp_path, sample=x[:32], warm_up=False, serving_files=False)
    with load(path) as artefact:
        np.testing.assert_array_equal(artefact.audit(x)["label"], expected.label)
        onnx = load_onnx(path / artefact.manifest.onnx.file).run(x)
    np.testing.assert_array_equal(onnx["label"], expected.label)


def test_the_exported_graphs_look_twice(tmp_path):
    from defended.serving import export, load
    from defended.serving.artefacts.onnx_model import load_onnx

    keras.utils.set_random_seed(0)
    network = sequential((4, 4, 3), layers.Conv2D(8, 3, padding="same"), MinMax(), layers.Flatten(), layers.Dense(4))
    once, twice = finalized(network), finalized(network, second_look=True)
    x = np.random.default_rng(0).uniform(0, 300, (400, 4, 4, 3)).astype("float32")
    radii = np.asarray(once.certified_radius(x))
    once.epsilon = twice.epsilon = float(np.median(radii[radii > 0]))
    expected = twice.verdicts(x)
    assert expected.rejected.sum() < once.verdicts(x).rejected.sum()
    path = export(twice, tmp_path, sample=x[:64], warm_up=False, serving_files=False)
    with load(path) as artefact:
        found = artefact.audit(x)
        np.testing.assert_array_equal(found["label"], expected.label)
        np.testing.assert_allclose(found["certified_radius"], expected.radius, rtol=1e-3)
        onnx = load_onnx(path / artefact.manifest.onnx.file).run(x)
    np.testing.assert_array_equal(onnx["label"], expected.label)
    compiled = tf.function(twice.deployed, autograph=False)
    np.testing.assert_array_equal(compiled(x)["label"], expected.label)


def test_a_radius_from_scores_is_never_above_the_certified_one():
    """Where float64 answered, the score of ⊥ says nothing of the float32 margins."""
    for name in ("dense", "blocks of channels"):
        _, twice, x = pair(name, 13, 30.0)
        found = twice.audit(x)
        answered = ~found["rejected"]
        radius = np.asarray(twice.radius_from_scores(found["scores_with_bottom"]))
        assert (radius[answered] <= found["certified_radius"][answered] * (1 + 1e-6)).all()
        assert ((radius > float(twice.epsilon)) == answered).all()
