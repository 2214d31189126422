"""Losses, metrics, schedules and radius doubling, against numbers worked by hand."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from defended import GloroNet, calibrate_epsilon, callbacks, datasets, losses, metrics, zoo
from defended.layers import MinMax
from defended.training.optimizers import BiasRateAdam
from defended.training.schedules import interpolate

# Two classes and ⊥: logits (2, 0), ⊥ at 1.
SCORES = np.array([[2.0, 0.0, 1.0]], "float32")


def softmax(values):
    values = np.exp(np.asarray(values, "float64"))
    return values / values.sum()


def test_crossentropy_by_hand():
    expected = -np.log(softmax([2, 0, 1])[[0, 1]])
    got = [float(losses.Crossentropy()(np.array([label]), SCORES)) for label in (0, 1)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "crossentropy"])
def test_trades_by_hand(divergence):
    p, q = softmax([2, 0]), softmax([2, 0, 1])
    robust = np.sum(p * np.log(p / q[:2])) if divergence == "kl" else -np.sum(p * np.log(q[:2]))
    got = float(losses.Trades(1.5, divergence)(np.array([1]), SCORES))
    assert got == pytest.approx(-np.log(p[1]) + 1.5 * robust, rel=1e-5)


def test_soft_labels_are_taken_as_they_are():
    q = softmax([2, 0, 1])
    soft = np.array([[0.25, 0.75]], "float32")
    assert float(losses.Crossentropy()(soft, SCORES)) == pytest.approx(
        -0.25 * np.log(q[0]) - 0.75 * np.log(q[1]), rel=1e-5
    )


def linear(epsilon=0.5, scale=(3.0, 4.0)):
    """y = (3 x1, 4 x2), K_01 = 5."""
    network = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    network.layers[0].kernel.assign(np.diag(scale))
    model = GloroNet(network, epsilon=epsilon)
    model.finalize()
    return model


def test_emma_by_hand():
    """At (2, 0): lead 6 over K = 5 is 1.2, so the rival's room is min(1.2, eps) * 5."""
    x = np.array([[2.0, 0.0]], "float32")
    for epsilon, room in ((0.5, 2.5), (3.0, 6.0)):
        model = linear(epsilon)
        model.compile(loss="emma")
        loss = float(model.loss(np.array([0]), model(x)))
        assert loss == pytest.approx(math.log(1 + math.exp(room - 6)), rel=1e-4)
    # The wrong class leads: the room is eps / 100, not 0.
    assert float(model.loss(np.array([1]), model(x))) == pytest.approx(
        math.log(1 + math.exp(6 + 0.01 * 3 * 5)), rel=1e-4
    )


def test_losses_turn_labels_out_of_range_into_nan():
    for loss in (losses.Crossentropy(), losses.Trades()):
        assert math.isnan(float(loss(np.array([2]), SCORES)))


# radii at (2,0), (0.5,0), (0,1), (0,0.2): 1.2, 0.3, 0.8, 0.16; classes 0, 0, 1, 1.
POINTS = np.array([[2, 0], [0.5, 0], [0, 1], [0, 0.2]], "float32")
LABELS = np.array([0, 0, 1, 0])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.CleanAccuracy(), 0.75),
        (metrics.VRA(), 0.5),
        (metrics.VRA(2.0), 0.25),
        (metrics.VRA(0.5), 0.75),
        (metrics.RejectionRate(), 0.5),
        (metrics.RejectionRate(0.3), 0.0),
        (metrics.FalsePositiveBound(), 0.5),
        (metrics.FalsePositiveBound(0.5), 1 - 2 / 3),
        (metrics.FalsePositiveBound(10.0), 1.0),
    ],
)
def test_metrics_by_hand(metric, expected):
    model = linear(0.5)
    metric.attach(model)
    for half in (slice(0, 2), slice(2, 4)):
        metric.update_state(LABELS[half], model(POINTS[half]))
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    metric.update_state(LABELS[:1], model(POINTS[:1]), sample_weight=np.array([1.0]))
    assert float(metric.result()) == float(metric.result())


def test_sample_weights_weigh_the_bound():
    metric = metrics.FalsePositiveBound(0.5)
    model = linear(0.5)
    metric.attach(model)
    # Answered at 0.25: points 0, 1, 2 with weights 1, 2, 3; safe at 0.5: points 0 and 2.
    metric.update_state(LABELS, model(POINTS), sample_weight=np.array([1.0, 2.0, 3.0, 9.0]))
    assert float(metric.result()) == pytest.approx(1 - 4 / 6)


def test_metric_names_tell_the_radius():
    assert metrics.VRA().name == "vra"
    assert metrics.VRA(2.0).name == "vra_2eps"
    assert metrics.VRA(0.5).name == "vra_0.5eps"


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("fixed", [3, 3, 3]),
        ("linear", [1, 2, 3]),
        ("log", [1, math.log((math.e + math.e**3) / 2), 3]),
    ],
)
def test_schedules(schedule, values):
    assert [interpolate(schedule, 1, 3, t) for t in (0, 0.5, 1)] == pytest.approx(values)
    assert interpolate(schedule, 1, 3, 7.0) == 3
    assert interpolate(schedule, 1e4, 0, 1.0) == 0


def test_log_schedules_do_not_overflow():
    assert interpolate("log", 0, 1e4, 0.5) == pytest.approx(1e4 - math.log(2))


def test_schedules_move_the_training_radius_and_leave_epsilon_alone():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            model = self.model
            seen.append([float(v) for v in (model.radius_scale, model.robust_weight_scale, model.epsilon)])

    model = linear(0.5)
    model.compile(keras.optimizers.SGD(0.0), "trades_kl", run_eagerly=True)
    model.fit(
        POINTS, LABELS, epochs=4, verbose=0,
        callbacks=[callbacks.EpsilonSchedule(ramp=0.5), callbacks.TradesSchedule(start=1.0, end=3.0, ramp=1.0),
        Watch()],
    )  # fmt: skip
    np.testing.assert_allclose(seen, [[0.5, 1.5, 0.5], [1, 2, 0.5], [1, 2.5, 0.5], [1, 3, 0.5]], rtol=1e-6)
    assert float(model.radius_scale) == 1.0
    assert float(model.robust_weight_scale) == 1.0


def test_the_training_radius_is_scaled_only_while_training():
    model = linear(0.5)
    model.radius_scale.assign(2.0)
    x = POINTS[:1]
    assert float(model(x, training=True)[0, -1]) == pytest.approx(5.0, rel=1e-4)  # 0 + 1.0 * 5
    with model.estimates():
        assert float(model(x)[0, -1]) == pytest.approx(2.5, rel=1e-4)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def doubled(digits, **kwargs):
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    model = GloroNet(network, epsilon=0.3)
    model.compile(keras.optimizers.Adam(1e-2), "trades_kl.1", metrics=["clean_accuracy"])
    callback, kernel = callbacks.RadiusDoubling(epsilon=0.15, **kwargs), network.layers[-1].kernel

    def spoil(epoch, logs):
        """What was learnt is turned round before the last epoch, which therefore is not the best one."""
        if epoch == 3:
            kernel.assign(-ops.convert_to_numpy(kernel))

    history = model.fit(
        digits.x_train, digits.y_train, batch_size=64, epochs=4, verbose=0,
        validation_data=(digits.x_test, digits.y_test),
        callbacks=[callback, keras.callbacks.LambdaCallback(on_epoch_begin=spoil)],
    )  # fmt: skip
    return model, callback, history.history


@pytest.mark.parametrize("in_file", [False, True])
def test_radius_doubling_keeps_the_best_epoch_and_defends_at_eps(digits, tmp_path, in_file):
    path = tmp_path / "best.weights.h5" if in_file else None
    model, callback, history = doubled(digits, checkpoint=path)
    assert float(model.epsilon) == pytest.approx(0.15)
    assert {"val_vra", "val_vra_2eps", "val_rejection_rate", "val_fpr_upper"} <= set(history)
    best = max(history["val_vra_2eps"])
    assert callback.best == pytest.approx(best)
    assert callback.best_epoch == int(np.argmax(history["val_vra_2eps"])) < 3
    verdicts = model.verdicts(digits.x_test)
    right = np.argmax(ops.convert_to_numpy(model.network(digits.x_test)), 1) == digits.y_test
    vra_2eps = np.mean(right & (verdicts.radius > 0.3))
    assert vra_2eps == pytest.approx(best, abs=0.005), "a linear net has no estimates: proven and seen agree"
    for key, value in {
        "val_vra": np.mean(verdicts.label == digits.y_test),
        "val_rejection_rate": np.mean(verdicts.rejected),
        "val_fpr_upper": 1 - np.sum(verdicts.radius > 0.3) / np.sum(verdicts.radius > 0.15),
    }.items():
        assert history[key][callback.best_epoch] == pytest.approx(value, abs=0.005)
    if in_file:
        assert json.loads((tmp_path / "best.weights.json").read_text())["epoch"] == callback.best_epoch
    later = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
    assert set(later) == {"loss", "clean_accuracy"}, "its metrics leave with it"


def test_radius_doubling_without_validation_warns(digits):
    model = linear()
    model.compile(run_eagerly=True)
    with pytest.warns(UserWarning, match="no validation data"):
        model.fit(POINTS, LABELS, verbose=0, callbacks=[callbacks.RadiusDoubling()])
    assert float(model.epsilon) == pytest.approx(0.5)


def test_doubling_lowers_the_false_positive_bound(digits):
    """The point of the paper's section 4.1, on real digits."""
    bounds = {}
    for schedule in (callbacks.EpsilonSchedule(), callbacks.RadiusDoubling()):
        keras.utils.set_random_seed(1)
        model = GloroNet(zoo.dense_small(), epsilon=0.25)
        model.compile(keras.optimizers.Adam(6e-3), "trades_kl.1.5", metrics=["false_positive_bound"])
        data = {"validation_data": (digits.x_test, digits.y_test)}
        model.fit(digits.x_train, digits.y_train, batch_size=128, epochs=6, verbose=0, callbacks=[schedule], **data)
        logs = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
        bounds[type(schedule).__name__] = logs["false_positive_bound"]
    assert bounds["RadiusDoubling"] < bounds["EpsilonSchedule"] - 0.05


def test_calibration_spends_what_is_allowed_and_no_more():
    model = linear(0.5)
    # radii 1.2, 0.3, 0.8, 0.16
    for rate, last_kept, share in ((0.0, 0.16, 0.0), (0.25, 0.3, 0.25), (0.5, 0.8, 0.5), (0.74, 0.8, 0.5)):
        epsilon = calibrate_epsilon(model, POINTS, rate)
        assert epsilon == pytest.approx(last_kept, rel=1e-4)
        model.epsilon = epsilon
        assert model.verdicts(POINTS).rejected.mean() == share
        model.epsilon = epsilon * 1.001
        assert model.verdicts(POINTS).rejected.mean() > share


def chain(use_bias=True):
    """A net whose layers are out of proportion, and points to judge it by."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=use_bias), MinMax(),
            layers.Conv2D(6, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10), MinMax(),
            layers.Dense(3),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    network.set_weights(
        [factor * rng.standard_normal(w.shape) for factor, w in zip(np.geomspace(0.01, 3, 8)[-len(network.weights) :],
                                                                    network.get_weights(), strict=True)]
    )  # fmt: skip
    return GloroNet(network, epsilon=0.3), rng.random((30, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 30)


def kernel_norms(model):
    kernels = [layer.kernel.numpy() for layer in model.network.layers if hasattr(layer, "kernel")]
    return np.array([np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2) for kernel in kernels])


def test_balancing_brings_proportion_and_changes_no_logit():
    model, x, y = chain()
    model.compile("adam", loss="emma", run_eagerly=True)
    model.fit(x, y, epochs=1, verbose=0)
    trained, before, norms = model.network.get_weights(), model.network(x).numpy(), kernel_norms(model)
    for proportions in (None, (1.0, 2.0, 8.0, 1.0)):
        model.network.set_weights(trained)
        balance = callbacks.BalanceLayers(proportions)
        balance.set_model(model)
        balance.on_train_begin()
        balance.on_epoch_end(0)
        np.testing.assert_array_equal(model.network(x).numpy(), before)
        after = kernel_norms(model)
        assert np.prod(after) == pytest.approx(np.prod(norms), rel=1e-5)
        spread = [values.max() / values.min() for values in (after / np.array(proportions or 1.0), norms)]
        assert spread[0] < 4 < 10 < spread[1]


def test_balancing_scales_the_moments_of_adam_as_gradients_scale():
    """The next step's gradient and the moments, in units of their layer, are as they would have been."""
    model, x, y = chain(use_bias=False)
    # An epsilon that counts for nothing beside any gradient, and keeps a gradient of 0 from being divided by 0.
    model.compile(keras.optimizers.Adam(1e-4, epsilon=1e-30, use_ema=True), loss="emma", run_eagerly=True)
    model.fit(x, y, epochs=2, batch_size=15, shuffle=False, verbose=0)
    optimizer = model.optimizer

    def state(gradient_scales):
        return [
            [optimizer._momentums[i].numpy() * scale for i, scale in enumerate(gradient_scales)],
            [optimizer._velocities[i].numpy() * scale**2 for i, scale in enumerate(gradient_scales)],
            [optimizer._model_variables_moving_average[i].numpy() / s for i, s in enumerate(gradient_scales)],
        ]

    plain, start = state([1.0, 1.0, 1.0]), kernel_norms(model)
    balance = callbacks.BalanceLayers()
    balance.set_model(model)
    balance.on_epoch_end(0)
    factors = kernel_norms(model) / start
    assert np.ptp(np.log2(factors)) > 2
    scaled = state([float(factors[0]), float(factors[1]), float(np.prod(factors[:2]))])
    for before, after in zip(plain, scaled, strict=True):
        for expected, got in zip(before, after, strict=True):
            assert expected.any()
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)


def test_balancing_refuses_what_it_cannot_keep_the_same():
    inputs = keras.Input((4,))
    hidden = layers.Dense(4)(inputs)
    branched = keras.Model(inputs, layers.Dense(2)(layers.Add()([inputs, hidden])))
    curved = keras.Sequential([inputs, layers.Dense(4, activation="tanh", name="bent"), layers.Dense(2)])
    plain = keras.Sequential([inputs, layers.Dense(4), layers.ReLU(), layers.Dense(2)])
    capped = keras.Sequential([inputs, layers.Dense(4), layers.ReLU(max_value=6.0, name="capped"), layers.Dense(2)])
    noisy = keras.Sequential([inputs, layers.Dense(4), layers.GaussianNoise(0.1, name="noise"), layers.Dense(2)])
    with pytest.raises(ValueError, match="chain"):
        callbacks.BalanceLayers().set_model(GloroNet(branched, epsilon=0.1))
    for network, name in ((curved, "bent"), (capped, "capped"), (noisy, "noise")):
        with pytest.raises(ValueError, match=name):
            callbacks.BalanceLayers().set_model(GloroNet(network, epsilon=0.1))
    with pytest.raises(ValueError, match="a value for each layer"):
        callbacks.BalanceLayers([1.0]).set_model(GloroNet(plain, epsilon=0.1))
    with pytest.raises(ValueError, match="positive"):
        callbacks.BalanceLayers([1.0, 0.0])
    with pytest.raises(TypeError, match="GloroNet"):
        callbacks.BalanceLayers().set_model(plain)
    model = GloroNet(plain, epsilon=0.1)
    model.compile("sgd", loss="emma")
    with pytest.raises(TypeError, match="SGD"):
        model.fit(np.zeros((4, 4)), np.zeros(4, int), callbacks=[callbacks.BalanceLayers()], verbose=0)


def test_biases_learn_at_their_own_rate():
    moved = []
    for rate in (1.0, 0.25):
        model = GloroNet(keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_initializer="ones")]), epsilon=0.1)
        model.compile(BiasRateAdam(1e-2, rate), loss="crossentropy", run_eagerly=False)
        model.fit(np.ones((4, 3)), np.zeros(4, int), verbose=0)
        moved.append(
            [np.abs(w - start).max() for w, start in zip(model.network.get_weights(), (1.0, 0.0), strict=True)]
        )
    np.testing.assert_allclose(moved, [[1e-2, 1e-2], [1e-2, 2.5e-3]], rtol=1e-3)
    assert BiasRateAdam.from_config(BiasRateAdam(bias_rate=0.5).get_config()).bias_rate == 0.5
