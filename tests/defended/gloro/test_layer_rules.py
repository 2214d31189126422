"""Rules of layers: normalisation, a user's own rules, and what the certificate reports of them."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import defended
from defended import GloroNet
from defended.gloro import LipschitzRule, lipschitz_rule, rules
from defended.gloro.graph import LipschitzGraph
from defended.layers import MinMax
from defended.networks import exact


def normalised(*, activation=False):
    """Conv, normalisation, MinMax; with an activation between the first two, nothing can be folded."""
    between = [layers.ReLU()] if activation else []
    network = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3),
            *between,
            layers.BatchNormalization(),
            MinMax(),
            layers.Flatten(),
            layers.Dense(6, use_bias=False),
            layers.BatchNormalization(scale=False, epsilon=1e-5),
            MinMax(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    for variable in network.variables:
        value = rng.standard_normal(variable.shape)
        variable.assign(value**2 + 0.1 if "variance" in variable.name else value)
    return network


@functools.cache
def final(activation=False):
    """A model of such a network, whose weights no test changes."""
    model = GloroNet(normalised(activation=activation), epsilon=0.01)
    model.finalize()
    return model


def jacobian(network, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = network(x, training=False)
    return tape.batch_jacobian(y, x).numpy().reshape(len(x), y.shape[-1], -1)


def test_normalisation_is_folded_into_the_layer_before_it():
    """The norm of diag(s) W, not |s|_max |W|: for a linear network the bound is its exact norm."""
    network = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(3)])
    rng = np.random.default_rng(1)
    for variable in network.variables:
        value = rng.standard_normal(variable.shape)
        variable.assign(value**2 + 0.1 if "variance" in variable.name else value)
    dense, norm, _ = network.layers
    scale = norm.gamma.numpy().astype("float64") / np.sqrt(
        norm.moving_variance.numpy().astype("float64") + norm.epsilon
    )
    true = np.linalg.norm(dense.kernel.numpy().astype("float64") * scale, 2)
    bound = LipschitzGraph(network).bound()
    assert true <= bound <= true * (1 + 1e-8)
    assert bound < 0.95 * np.abs(scale).max() * np.linalg.norm(dense.kernel.numpy(), 2)


@pytest.mark.parametrize("activation", [False, True])
def test_normalised_networks_are_bounded(activation):
    model = final(activation)
    x = np.random.default_rng(2).standard_normal((200, 6, 6, 2)).astype("float32")
    steepest = jacobian(model.network, x)
    steepest = np.linalg.norm(steepest[:, :, None] - steepest[:, None], axis=-1).max(axis=0)
    assert np.all(steepest <= model.margin_lipschitz * (1 + 1e-5))
    assert np.any(steepest > model.margin_lipschitz * 0.05)


def test_a_normalised_network_trains_finalizes_and_comes_back(tmp_path):
    model = GloroNet(normalised(), epsilon=0.01)
    x = np.random.default_rng(3).standard_normal((64, 6, 6, 2)).astype("float32")
    y = (x[:, 0, 0, 0] > 0).astype(int)
    model.compile("adam", "crossentropy", metrics=["vra"])
    model.fit(x, y, verbose=0)
    assert model.is_final
    model.network.layers[1].moving_variance.assign(4 * model.network.layers[1].moving_variance)
    assert not model.is_final, "the certificate rests on the moving statistics, too"
    model.finalize()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.verdicts(x).radius, model.verdicts(x).radius)


@pytest.mark.parametrize("layer", [layers.BatchNormalization(axis=1), layers.LayerNormalization()])
def test_normalisation_that_cannot_be_bounded_is_refused(layer):
    network = keras.Sequential([keras.Input((4, 4, 2)), layer, layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"axis=-1|statistic of the input"):
        GloroNet(network, epsilon=0.1)


@keras.saving.register_keras_serializable(package="test_layer_rules")
class Tripled(layers.Layer):
    """3 x + 1."""

    def call(self, inputs):
        return 3.0 * inputs + 1.0

    def lipschitz_bound(self):
        return 3.0


class Inheriting(Tripled):
    def call(self, inputs):
        return 9.0 * inputs


class Doubled(layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs


class Gated(layers.Layer):
    """x * g with a trainable g."""

    def build(self, input_shape):
        self.gate = self.add_weight(name="gate", shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * self.gate

    def lipschitz_bound(self):
        return ops.abs(self.gate)


def behind(*body):
    network = keras.Sequential([keras.Input((4,)), *body, layers.Dense(3)])
    network.layers[-1].kernel.assign(np.eye(4, 3))
    return network


def test_a_layer_tells_its_own_bound(tmp_path):
    model = GloroNet(behind(Tripled()), epsilon=0.1)
    model.finalize()
    assert model.margin_lipschitz[0, 1] == pytest.approx(3 * 2**0.5, rel=1e-6)
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(4).standard_normal((20, 4)).astype("float32")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.verdicts(x).radius, model.verdicts(x).radius)


def test_the_bound_of_a_layer_follows_its_weights_and_is_trained():
    model = GloroNet(behind(Gated()), epsilon=0.1)
    gate = model.network.layers[0].gate
    gate.assign(-5.0)
    model.finalize()
    assert model.margin_lipschitz[0, 1] == pytest.approx(5 * 2**0.5, rel=1e-6)
    with tf.GradientTape() as tape:
        rows = model.lipschitz_rows(tf.constant([0]), training=True)
        total = tf.reduce_sum(rows)
    assert float(tape.gradient(total, gate.value)) < 0
    gate.assign(float("nan"))
    with pytest.raises(ValueError, match=r"gated.*cannot be bounded"):
        model.finalize()


def test_a_subclass_does_not_inherit_a_bound():
    with pytest.raises(ValueError, match=r"Inheriting.*no known Lipschitz constant.*lipschitz_bound"):
        GloroNet(behind(Inheriting()), epsilon=0.1)


def test_a_registered_rule(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    with pytest.raises(ValueError, match=r"Doubled.*Known layers: .*Conv2D"):
        GloroNet(behind(Doubled()), epsilon=0.1)
    lipschitz_rule(Doubled)(lambda layer, shape: LipschitzRule(2.0, offset=0.0, roundings=1))
    model = GloroNet(behind(Doubled()), epsilon=0.1)
    model.finalize()
    assert model.margin_lipschitz[0, 1] == pytest.approx(2 * 2**0.5, rel=1e-6)
    with pytest.raises(ValueError, match="already has a Lipschitz rule"):
        lipschitz_rule(Doubled)(lambda layer, shape: LipschitzRule(1.0))
    lipschitz_rule(Tripled)(lambda layer, shape: LipschitzRule(3.0))
    with pytest.raises(ValueError, match="ambiguous"):
        GloroNet(behind(Tripled()), epsilon=0.1)


def test_the_value_at_zero_is_counted_where_a_rule_leaves_it_open():
    """3 x + 1 moves activations away from 0, where later layers round more coarsely."""
    errors = [LipschitzGraph(behind(*body)).prove().errors[0][0, 1] for body in ([Tripled()], [])]
    assert errors[0] > 10 * errors[1]


def test_a_layer_with_a_rule_has_an_exact_value():
    """What `finalize` compares with the layer as Keras evaluates it."""
    missing = {cls.__name__ for cls in set(rules._RULES) - set(exact._RULES)}
    assert not missing


def test_the_report():
    model = final()
    report = model.certificate_report(at_norm=2.0)
    assert [line.layer for line in report.layers] == [layer.name for layer in model.network.layers]
    assert report.layers[0].bound == pytest.approx(model._graph.operators[0].bound(), rel=1e-12)
    assert np.prod([line.bound for line in report.layers[:-1]]) == pytest.approx(report.lipschitz, rel=1e-9)
    assert all(0 <= line.slack < 0.2 for line in report.layers)
    errors = [line.error for line in report.layers]
    assert all(0 < error < 0.1 for error in errors)
    assert 0 < report.radius_spent < 1e-2
    assert report.layers[0].layer in str(report)
    assert json.loads(json.dumps(report.to_dict()))["lipschitz"] == report.lipschitz


def test_rounding_can_be_left_out_and_then_is_an_assumption(tmp_path):
    x = np.random.default_rng(5).standard_normal((50, 6, 6, 2)).astype("float32")
    counted, uncounted = final(), GloroNet(normalised(), epsilon=0.01, rounding=False)
    paid, unpaid = (model.verdicts(x).radius for model in (counted, uncounted))
    assert np.all(paid[unpaid > 0] < unpaid[unpaid > 0])
    assert not any("not counted" in text for text in counted.certificate_assumptions)
    uncounted.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert any("not counted" in text for text in again.certificate_assumptions)
    np.testing.assert_array_equal(again.verdicts(x).radius, unpaid)


def test_metrics_know_what_rounding_costs():
    """Radii read off the scores are those of the verdicts, at eps and at other radii."""
    model = final()
    model.epsilon = 4.0
    x = (100 * np.random.default_rng(6).standard_normal((300, 6, 6, 2))).astype("float32")
    radius = model.verdicts(x).radius
    read = ops.convert_to_numpy(model.radius_from_scores(model(x)))
    np.testing.assert_allclose(read, radius, rtol=1e-3, atol=1e-4)
    assert np.any(radius < 4)
    assert np.any(radius > 4)
    model.compile(metrics=["rejection_rate", defended.metrics.VRA(2.0)])
    y = np.argmax(ops.convert_to_numpy(model.network(x)), axis=1)
    figures = model.evaluate(x, y, verbose=0, return_dict=True)
    assert figures["rejection_rate"] == pytest.approx(np.mean(radius <= model.epsilon.numpy()), abs=0.011)
    assert figures["vra_2eps"] == pytest.approx(np.mean(radius > 8), abs=0.011)
