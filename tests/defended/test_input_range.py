"""The range of training inputs: what is recorded, what lies outside of it, and what is said of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import defended
from defended import GloroNet, MembershipGuard, SmoothedNet, smoothing
from defended.input_range import MOST_FEATURES, InputRange
from defended.membership import StoredPoints

PIXELS = InputRange(0.0, 1.0)


def network(shape=(4,)):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2)])


def net(shape=(4,)):
    model = GloroNet(network(shape), epsilon=0.1)
    model.compile("sgd", "crossentropy", run_eagerly=True)
    return model


def points(low=-3.0, high=7.0, shape=(4,), n=8):
    x = np.linspace(low, high, n * int(np.prod(shape)), dtype="float32").reshape(n, *shape)
    return x, np.arange(n) % 2


class TestRecord:
    def test_fit_records_arrays_and_files_keep_the_record(self, tmp_path):
        model, (x, y) = net(), points()
        assert model.training_range is None
        model.fit(x, y, verbose=0)
        found = model.training_range
        assert (found.low, found.high) == (-3, 7)
        assert found.features == tuple((float(x[:, i].min()), float(x[:, i].max())) for i in range(4))
        model.fit((x * 2).tolist(), y, verbose=0)
        assert (model.training_range.low, model.training_range.high) == (-6, 14)
        model.save(tmp_path / "model.keras")
        assert keras.models.load_model(tmp_path / "model.keras").training_range == model.training_range

    def test_images_and_many_features_have_one_range(self):
        assert InputRange.of(points(shape=(2, 2))[0]).features is None
        assert InputRange.of(np.zeros((2, MOST_FEATURES), "float32")).features == ((0.0, 0.0),) * MOST_FEATURES
        assert InputRange.of(np.zeros((2, MOST_FEATURES + 1), "float32")).features is None

    def test_after_what_is_not_looked_through_nothing_is_claimed(self, tmp_path):
        model, (x, y) = net(), points()
        model.fit(x, y, verbose=0)
        model.fit(tf.data.Dataset.from_tensor_slices((x * 9, y)).batch(4), shuffle=False, verbose=0)
        assert model.training_range is None
        model.fit(x, y, verbose=0)
        assert model.training_range is None
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        again.fit(x, y, verbose=0)
        assert again.training_range is None
        again.training_range = (-27, 63)
        assert again.training_range == InputRange(-27.0, 63.0)

    def test_defences_of_one_network_share_it(self):
        model, (x, y) = net(), points()
        model.training_range = (-3, 7)
        guard = MembershipGuard(model, StoredPoints(x, y, domain=None))
        assert guard.training_range == model.training_range == GloroNet(model.network, epsilon=1.0).training_range
        bare = network()
        smoothing.train_noisy(bare, x, y, sigma=0.5, verbose=0)
        assert SmoothedNet(bare, epsilon=0.1, sigma=0.5, samples=100, mode="fixed").training_range.high == 7

    def test_a_file_of_before_has_none(self, tmp_path):
        model = net()
        model.save(tmp_path / "model.keras")
        assert keras.models.load_model(tmp_path / "model.keras").training_range is None

    def test_numbers_that_are_not_finite_are_left_out(self):
        x = np.array([[0, np.nan], [np.inf, np.nan], [2, np.nan]], "float32")
        assert InputRange.of(x) == InputRange(0.0, 2.0, ((0.0, 2.0), (0.0, 2.0)))  # a feature of which nothing is known
        assert InputRange.of(x[:, 1:]) is None
        assert InputRange.of(x[:0]) is None

    @pytest.mark.parametrize("value", [(1, 0), (0, np.inf), (np.nan, 1)])
    def test_what_is_no_range_is_refused(self, value):
        with pytest.raises(ValueError, match="two finite numbers"):
            net().training_range = value


class TestOutside:
    @pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", np.inf)])
    def test_no_perturbation_of_size_epsilon_leads_outside(self, norm, order):
        """The worst ones: every input is in a corner of the range, and all of the perturbation leads out of it."""
        rng = np.random.default_rng(0)
        corner = rng.integers(0, 2, (200, 30)).astype("float32")
        away = rng.uniform(size=corner.shape) * np.where(corner > 0, 1, -1)
        away /= np.linalg.norm(away, ord=order, axis=1, keepdims=True)
        assert not PIXELS.outside((corner + 0.3 * away).astype("float32"), 0.3, norm).any()
        assert PIXELS.outside((corner + 0.31 * away).astype("float32"), 0.3, norm).all()

    def test_the_norm_and_not_each_number_counts(self):
        x = np.full((1, 5, 5, 1), -0.1, "float32")  # 0.5 away in l2
        assert PIXELS.outside(x, 0.4, "l2").all()
        assert not PIXELS.outside(x, 0.4, "linf").any()
        assert not PIXELS.outside(x, 0.4, None).any()

    def test_features_have_room_and_their_own_units(self):
        """Age in years beside income: an age in days is outside, an income a little above all others is not."""
        seen = InputRange.of(np.array([[20, 0, 0], [60, 100_000, 0]], "float32"))
        x = np.array([[20 * 365, 5, 0], [79, 149_000, 0], [0, 0, 1], [-1, 0, 0]], "float32")
        np.testing.assert_array_equal(seen.outside(x, 0.5, "l2"), [True, False, False, True])
        np.testing.assert_array_equal(seen.outside(x[:, :1], 0.5, "l2"), [False, False, False, True])

    def test_standardised_data_of_the_same_kind_are_not_outside(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2_000, 30)).astype("float32")
        assert not InputRange.of(x[:1000]).outside(x[1000:], 0.1, "l2").any()

    def test_what_is_not_finite_is_another_matter(self):
        x = np.array([[np.nan, 0.5], [np.inf, 0.5], [9, 0.5], [9, np.nan]], "float32")
        np.testing.assert_array_equal(PIXELS.outside(x, 0.1, "l2"), [False, False, True, False])


class TestWords:
    def test_units_that_differ_by_a_usual_factor_are_named(self):
        images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1)).astype("float32")
        said = PIXELS.complaint(images, 0.3, "l2")
        assert said.startswith("20 of 20 inputs lie outside of the range of training by more than epsilon")
        assert "reach 255, the model was trained on 0 to 1. Divide them by 255." in said
        assert "Divide them by 65535" in PIXELS.complaint(images * 257, 0.3, "l2")
        assert "-1 to 1, the model was trained on 0 to 1. Scale" in PIXELS.complaint(images / 127.5 - 1, 0.3, "l2")

    def test_inputs_that_were_divided_although_training_was_not(self):
        images = np.random.default_rng(0).uniform(size=(20, 4, 4, 1)).astype("float32")
        said = InputRange(0.0, 255.0).complaint(images, 0.3, "l2")
        assert "trained on 0 to 255. Multiply them by 255." in said
        assert InputRange(0.0, 255.0).complaint(images[:5], 0.3, "l2") is None  # five may be dark images
        assert PIXELS.complaint(images, 0.3, "l2") is None

    def test_few_values_of_features_with_long_tails_are_no_finding(self):
        rng = np.random.default_rng(0)
        seen, few = InputRange.of(rng.lognormal(0, 2, (5_000, 20))), rng.lognormal(0, 2, (20, 20))
        assert seen.complaint(few, 0.1, "l2") is None
        assert "fill little" in seen.complaint(few / few.max() * seen.high / 255, 0.1, "l2")

    def test_a_feature_is_named(self):
        seen = InputRange.of(np.array([[20, 0], [60, 100_000]], "float32"))
        said = seen.complaint(np.array([[30, 5], [9_125, 5]], "float32"), 0.5, "l2")
        assert "reach 9125 in feature 0 (in training 20 to 60)" in said
        assert said.startswith("1 of 2 inputs")


def test_a_range_that_differs_is_no_reason_to_refuse_an_answer():
    model, (x, _) = net(), points()
    model.training_range = (-3, 7)
    assert isinstance(model.verdicts(100 * x), defended.defended_model.Verdicts)
