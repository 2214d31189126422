"""Training under noise: what the noise is, what the losses are by hand, and what Keras's `fit` does with them."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from scipy.stats import norm

import defended
from defended.layers import GaussianNoiseAugmentation
from defended.smoothing import Consistency, NoisyTrainer, SmoothAdv, SmoothedNet, train_noisy
from defended.smoothing.smooth_adv import smoothed_crossentropy


def linear(weights, bias=None):
    """A Dense classifier with the given kernel `[features, classes]`."""
    weights = np.asarray(weights, "float32")
    network = keras.Sequential([keras.Input(weights.shape[:1]), layers.Dense(weights.shape[1])])
    network.set_weights([weights, np.zeros(weights.shape[1], "float32") if bias is None else np.float32(bias)])
    return network


def still(trainer, **options):
    """Compiled so that training does not move the weights."""
    trainer.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"], **options)
    return trainer


# The layer.


def test_noise_has_the_variance_asked_for_and_is_drawn_anew():
    layer = GaussianNoiseAugmentation(2.5)
    x = np.full((40, 50, 60, 1), 7.0, "float32")
    first, second = (ops.convert_to_numpy(layer(x, training=True)) - 7.0 for _ in range(2))
    n = first.size
    for noise in (first, second):
        assert abs(noise.mean()) < 5 * 2.5 / math.sqrt(n)
        assert noise.var() == pytest.approx(2.5**2, rel=5 * math.sqrt(2 / n))
    # Independent from call to call and from one input to another.
    for one, other in ((first, second), (first[0], first[1]), (first[:, :25], first[:, 25:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(one.size)


def test_at_inference_the_layer_is_the_identity():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    layer = GaussianNoiseAugmentation(1.0)
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)


def test_noise_in_a_network_is_drawn_anew_each_step_of_fit():
    network = keras.Sequential([keras.Input((4,)), GaussianNoiseAugmentation(1.0), layers.Dense(2)])
    network.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [network.fit(np.zeros((8, 4)), np.zeros(8), verbose=0).history["loss"][0] for _ in range(3)]
    assert len(set(losses)) == 3
    assert len({network.evaluate(np.zeros((8, 4)), np.zeros(8), verbose=0) for _ in range(3)}) == 1


def test_the_layer_is_saved_and_a_seed_repeats_it(tmp_path):
    network = keras.Sequential([keras.Input((4,)), GaussianNoiseAugmentation(0.3, seed=5, name="noise")])
    network.save(tmp_path / "n.keras")
    again = keras.models.load_model(tmp_path / "n.keras").get_layer("noise")
    assert (again.sigma, again.seed) == (0.3, 5)
    x = np.zeros((2, 4), "float32")
    repeated = [GaussianNoiseAugmentation(0.3, seed=5)(x, training=True) for _ in range(2)]
    np.testing.assert_array_equal(*repeated)


def test_noise_of_half_precision_inputs_is_not_coarse():
    layer = GaussianNoiseAugmentation(1.0, dtype="float16")
    noisy = layer(np.zeros(20_000, "float16"), training=True)
    assert noisy.dtype == "float16"
    assert len(np.unique(ops.convert_to_numpy(noisy))) > 5000


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_sigma_must_be_positive_and_finite(sigma):
    for make in (GaussianNoiseAugmentation, lambda sigma: NoisyTrainer(linear(np.eye(2)), sigma=sigma)):
        with pytest.raises(ValueError, match="`sigma` must be a positive finite number"):
            make(sigma)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match=r"floating-point inputs.*uint8.*x / 255"):
        GaussianNoiseAugmentation(0.25)(np.zeros((2, 3), "uint8"), training=True)


def test_a_gloro_net_knows_the_layer():
    network = keras.Sequential([keras.Input((2,)), GaussianNoiseAugmentation(0.1), layers.Dense(2)])
    network.layers[-1].set_weights([np.diag([3.0, 4.0]), np.zeros(2)])
    model = defended.GloroNet(network, epsilon=0.1)
    model.finalize()
    assert model.margin_lipschitz[0, 1] == pytest.approx(5.0)


# Consistency.

# Two draws that give the first class 0.9 and 0.5: their mean is (0.7, 0.3).
DRAWS = np.log([[[0.9, 0.1], [0.5, 0.5]]]).astype("float32") + 3.0
DIVERGENCE = (0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1) + 0.7 * math.log(1.4) + 0.3 * math.log(0.6)) / 2
ENTROPY = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)


@pytest.mark.parametrize(("weight", "entropy"), [(1.0, 0.0), (0.0, 1.0), (10.0, 0.5)])
def test_consistency_by_hand(weight, entropy):
    loss = Consistency(weight, entropy)
    assert float(loss(DRAWS, DRAWS)) == pytest.approx(weight * DIVERGENCE + entropy * ENTROPY, rel=1e-5)


def test_draws_that_agree_are_consistent_and_one_that_is_sure_has_no_entropy():
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.standard_normal((5, 1, 10)), 4, axis=1).astype("float32")
    np.testing.assert_allclose(Consistency(1.0, 0.0).call(None, logits), 0.0, atol=1e-6)
    sure = np.array([[[1000.0, 0.0, -1000.0]] * 2], "float32")
    np.testing.assert_array_equal(Consistency(10.0, 0.5).call(None, sure), [0.0])


def test_consistency_of_contradictory_draws_is_finite_and_so_is_its_gradient():
    logits = tf.constant([[[500.0, -500.0], [-500.0, 500.0]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = Consistency(1.0, 0.5)(logits, logits)
    # q = (1/2, 1/2) against two certainties: 500 - log 2 each.
    assert float(loss) == pytest.approx(500 - math.log(2) + 0.5 * math.log(2), rel=1e-5)
    assert np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"entropy_weight": math.nan}, {"weight": math.inf}])
def test_weights_of_consistency_must_not_be_negative(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be finite and not negative"):
        Consistency(**options)


# SmoothAdv.


def test_the_smoothed_cross_entropy_is_of_the_mean_probability():
    logits = DRAWS.reshape(2, 2)
    values = smoothed_crossentropy(np.float32([[1, 0]]), logits)
    np.testing.assert_allclose(values, [-math.log(0.7)], rtol=1e-5)
    values = smoothed_crossentropy(np.float32([[0.5, 0.5]]), logits)
    np.testing.assert_allclose(values, [-0.5 * math.log(0.7) - 0.5 * math.log(0.3)], rtol=1e-5)


@pytest.mark.parametrize("draws", [1, 3])
def test_against_a_linear_network_the_attack_goes_straight_to_the_sphere(draws):
    """Two classes: whatever the noise, the loss grows fastest along the difference of their columns, (3, 4) here."""
    network = linear([[0.0, 3.0], [0.0, 4.0]])
    x = np.float32([[0.5, 0.5], [-1.0, 2.0]])
    noise = np.random.default_rng(0).standard_normal((2 * draws, 2)).astype("float32")
    attack = SmoothAdv(0.5, steps=4)
    targets = np.float32([[1, 0], [0, 1]])
    moved = attack.perturb(network, tf.constant(x), targets, noise) - x
    np.testing.assert_allclose(moved, [[0.3, 0.4], [-0.3, -0.4]], atol=1e-5)
    halfway = attack.perturb(network, tf.constant(x), targets, noise, scale=0.5) - x
    np.testing.assert_allclose(halfway, [[0.15, 0.2], [-0.15, -0.2]], atol=1e-5)
    short = SmoothAdv(0.5, steps=2, step_size=0.1).perturb(network, tf.constant(x), targets, noise) - x
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 0.2, rtol=1e-4)


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_the_attack_stays_in_the_ball_and_the_box_and_raises_the_loss(clip):
    data = defended.datasets.load("digits")
    network = defended.zoo.dense_small()
    x, targets = tf.constant(data.x_train[:32]), ops.one_hot(data.y_train[:32], 10)
    noise = 0.25 * tf.random.normal((32 * 4, 8, 8, 1), seed=1)
    before = [variable.numpy() for variable in network.variables]
    attacked = SmoothAdv(0.5, steps=5, clip=clip).perturb(network, x, targets, noise)
    distance = np.linalg.norm((attacked - x).numpy().reshape(32, -1), axis=1)
    assert distance.max() <= 0.5 * (1 + 1e-5)
    assert clip is not None or distance.min() > 0.49
    if clip is not None:
        assert attacked.numpy().min() >= 0
        assert attacked.numpy().max() <= 1

    def loss(points):
        return smoothed_crossentropy(targets, network(tf.repeat(points, 4, axis=0) + noise)).numpy()

    assert (loss(attacked) > loss(x)).all()
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_sure_network_is_attacked_along_a_gradient_whose_square_underflows():
    network = linear([[0.0, -15.0], [0.0, 20.0]], bias=[60.0, 0.0])  # the loss is exp(-60) or so
    attacked = SmoothAdv(0.5).perturb(network, tf.zeros((1, 2)), np.float32([[1, 0]]), np.zeros((1, 2), "float32"))
    np.testing.assert_allclose(attacked, [[-0.3, 0.4]], atol=1e-5)


def test_where_the_loss_is_flat_the_attack_stays():
    x = tf.constant([[0.25, 0.75]])
    attacked = SmoothAdv(0.5).perturb(linear(np.zeros((2, 2))), x, np.float32([[1, 0]]), np.zeros((2, 2), "float32"))
    np.testing.assert_array_equal(attacked, x)


def test_the_radius_warms_up_by_epochs():
    assert [SmoothAdv(1.0, warmup=4).scale(epoch) for epoch in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert SmoothAdv(1.0, warmup=0).scale(0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` must be a positive finite number"),
        ({"epsilon": math.nan}, "`epsilon`"),
        ({"epsilon": 1.0, "steps": 0}, "`steps` must be a whole number, at least 1"),
        ({"epsilon": 1.0, "steps": 2.5}, "`steps`"),
        ({"epsilon": 1.0, "step_size": -1.0}, "`step_size` must be a positive"),
        ({"epsilon": 1.0, "warmup": -1}, "`warmup` must be a whole number, at least 0"),
        ({"epsilon": 1.0, "clip": (1.0, 0.0)}, "`clip` must be None or a pair"),
    ],
)
def test_settings_of_the_attack_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothAdv(**options)


# The trainer.


def test_the_trainers_loss_by_hand():
    """Cross-entropy over all draws, with the input's label and weight, plus the weighted consistency."""
    trainer = still(NoisyTrainer(linear(np.eye(2)), sigma=1.0, draws=2, consistency=Consistency(10.0, 0.5)))
    logits = np.concatenate([DRAWS, DRAWS[:, :, ::-1]])
    y, weight = np.array([0, 0]), np.float32([1.0, 3.0])
    crossentropy = np.array([-math.log(0.9) - math.log(0.5), -math.log(0.1) - math.log(0.5)]) / 2
    extra = 10 * DIVERGENCE + 0.5 * ENTROPY
    plain = trainer.compute_loss(None, y, tf.constant(logits), None)
    assert float(plain) == pytest.approx(crossentropy.mean() + extra, rel=1e-5)
    weighted = trainer.compute_loss(None, y, tf.constant(logits), weight)
    assert float(weighted) == pytest.approx((weight * (crossentropy + extra)).mean(), rel=1e-5)
    # Validation has one draw and no consistency.
    flat = trainer.compute_loss(None, y, tf.constant(logits[:, 0]), None, training=False)
    assert float(flat) == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2, rel=1e-5)


@pytest.mark.parametrize("draws", [1, 3])
def test_training_and_evaluation_see_the_noise_and_predictions_do_not(draws):
    """At distance 0.3 from the boundary the vote is right with probability Phi(0.3 / sigma)."""
    trainer = still(NoisyTrainer(linear([[-1.0, 1.0]]), sigma=0.5, draws=draws))
    x, y = np.full((8000, 1), 0.3, "float32"), np.ones(8000, int)
    share, spread = norm.cdf(0.3 / 0.5), 5 * 0.5 / math.sqrt(8000)
    history = trainer.fit(x, y, batch_size=1000, verbose=0, validation_data=(x, y)).history
    assert history["accuracy"][0] == pytest.approx(share, abs=spread)
    assert history["val_accuracy"][0] == pytest.approx(share, abs=spread)
    assert trainer.evaluate(x, y, batch_size=1000, verbose=0, return_dict=True)["accuracy"] < 1
    np.testing.assert_array_equal(trainer(x[:5]), trainer.network(x[:5]))
    np.testing.assert_array_equal(trainer.predict(x[:5], verbose=0), trainer.network(x[:5]))


def test_class_weights_and_sample_weights_weight_the_inputs():
    trainer = still(NoisyTrainer(linear([[0.0, 1.0]]), sigma=1e-6, draws=2))
    x, y = np.float32([[1.0], [1.0]]), np.array([0, 1])
    losses = np.log1p(np.exp([1.0, -1.0]))  # of the labels 0 and 1

    def fitted(**options):
        return trainer.fit(x, y, verbose=0, **options).history["loss"][0]

    assert fitted() == pytest.approx(losses.mean(), rel=1e-4)
    assert fitted(class_weight={0: 4.0, 1: 0.0}) == pytest.approx(2 * losses[0], rel=1e-4)
    assert fitted(sample_weight=np.array([0.0, 6.0])) == pytest.approx(3 * losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draws": 2, "adversary": SmoothAdv(0.3, steps=2, warmup=2), "consistency": Consistency(1.0)},
    ],
    ids=["Cohen", "SmoothAdv and consistency"],
)
def test_every_method_trains_a_plain_network_in_place(options):
    data = defended.datasets.load("digits")
    network = defended.zoo.dense_small(activation="relu")
    variables, before = len(network.variables), network.get_weights()
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    history = train_noisy(
        network, data.x_train, data.y_train, sigma=0.25, epochs=3, batch_size=64, verbose=0, callbacks=watch,
        validation_data=(data.x_test, data.y_test), optimizer=keras.optimizers.Adam(3e-3), **options,
    ).history  # fmt: skip
    assert len(seen) == 3
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.75
    assert len(network.variables) == variables
    assert all((now != then).any() for now, then in zip(network.get_weights()[::2], before[::2], strict=True))
    model = SmoothedNet(network, epsilon=0.05, sigma=0.25, samples=200, seed=0, mode="fixed")
    verdicts = model.verdicts(data.x_test[:64])
    assert np.mean(verdicts.label == data.y_test[:64]) > 0.5


def test_datasets_one_hot_labels_and_keras_own_losses():
    data = defended.datasets.load("digits")
    one_hot = np.eye(10, dtype="float32")[data.y_train[:160]]
    pairs = tf.data.Dataset.from_tensor_slices((data.x_train[:160], one_hot)).batch(64)
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    attacked = {"draws": 2, "adversary": SmoothAdv(0.1, steps=1)}
    for loss, options in (("crossentropy", attacked), ("categorical_crossentropy", {}), (smoothed, {})):
        history = train_noisy(
            defended.zoo.dense_small(units=8), pairs, sigma=0.1, loss=loss, epochs=1, verbose=0,
            validation_data=pairs.take(2), shuffle=False, **options,
        ).history  # fmt: skip
        assert np.isfinite([history["loss"], history["val_loss"]]).all()


def test_a_cross_entropy_by_name_takes_logits():
    trainer = still(NoisyTrainer(linear([[-50.0, 50.0]]), sigma=1e-6), loss="sparse_categorical_crossentropy")
    # Read as probabilities, logits of -50 and 50 would be clipped: 16.1 at most.
    wrong = trainer.evaluate(np.float32([[1.0]]), np.array([0]), verbose=0, return_dict=True)
    assert wrong["loss"] == pytest.approx(100.0, rel=1e-4)


def test_the_attack_warms_up_while_fitting_wherever_it_starts():
    trainer = still(NoisyTrainer(linear(np.eye(2)), sigma=0.1, adversary=SmoothAdv(0.1, steps=1, warmup=4)))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(float(trainer.attack_scale.numpy()))

    x, y = np.zeros((4, 2), "float32"), np.zeros(4, int)
    trainer.fit(x, y, epochs=2, verbose=0, callbacks=[Watch()])
    trainer.fit(x, y, epochs=5, initial_epoch=2, verbose=0, callbacks=(Watch(),))
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_batch_statistics_move_once_a_step_and_not_in_the_attack():
    network = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(momentum=0.5), layers.Dense(2)])
    trainer = still(NoisyTrainer(network, sigma=1e-6, draws=2, adversary=SmoothAdv(1e-6, steps=3, warmup=0)))
    trainer.fit(np.ones((8, 3), "float32"), np.zeros(8, int), batch_size=8, verbose=0)
    np.testing.assert_allclose(network.layers[0].moving_mean, 0.5, rtol=1e-4)


def test_a_trainer_is_saved_with_its_settings(tmp_path):
    trainer = NoisyTrainer(
        linear(np.eye(2)), sigma=0.3, draws=3, consistency=Consistency(7.0, 0.2), name="t",
        adversary=SmoothAdv(0.4, steps=2, step_size=0.05, warmup=3, clip=(0.0, 1.0)),
    )  # fmt: skip
    still(trainer)
    x, y = np.ones((4, 2), "float32"), np.zeros(4, int)
    trainer.fit(x, y, verbose=0)
    trainer.save(tmp_path / "t.keras")
    again = keras.models.load_model(tmp_path / "t.keras")
    assert (again.sigma, again.draws) == (0.3, 3)
    assert again.consistency.get_config() == trainer.consistency.get_config()
    assert again.adversary.get_config() == trainer.adversary.get_config()
    np.testing.assert_array_equal(again(x), trainer(x))
    again.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "`draws` must be a whole number, at least 1"),
        ({"draws": 1.5}, "`draws` must be a whole number"),
        ({"consistency": Consistency()}, "`consistency` compares noise draws of one input. Received: draws=1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NoisyTrainer(linear(np.eye(2)), sigma=0.1, **options)


def test_what_cannot_be_smoothed_is_refused_before_it_is_trained():
    with pytest.raises(ValueError, match="must return logits"):
        NoisyTrainer(keras.Sequential([keras.Input((2,)), layers.Dense(2, "softmax")]), sigma=0.1)
    with pytest.raises(ValueError, match=r"whole class numbers in \[0, 2\)"):
        train_noisy(linear(np.eye(2)), np.zeros((2, 2), "float32"), np.array([0, 2]), sigma=0.1)
    with pytest.raises(ValueError, match="Scale the images first"):
        train_noisy(linear(np.eye(2)), np.zeros((2, 2), "uint8"), np.array([0, 1]), sigma=0.1, verbose=0)
