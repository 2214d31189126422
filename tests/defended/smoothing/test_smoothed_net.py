"""SmoothedNet against closed forms: for a linear network everything about the smoothed classifier is known."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

import defended
from defended import SmoothedNet
from defended.attacks import CertificateDescent
from defended.margins import FLOAT_MAX
from defended.smoothing import lower_confidence_bound
from defended.smoothing.budget import fastest_rows

SIGMA, EPSILON = 0.5, 0.25
W = np.array([[3.0, -1.0], [0.0, 2.0], [1.0, 1.0]], "float32")  # the boundary's normal, w_0 - w_1, is (4, -2, 0)


def linear(weights=W, bias=(0.0, 0.0)):
    network = keras.Sequential([keras.Input((len(weights),)), layers.Dense(len(bias))])
    network.set_weights([np.asarray(weights, "float32"), np.asarray(bias, "float32")])
    return network


def at_distances(distances):
    """Points at signed distances from the boundary; class 0 where positive."""
    normal = (W[:, 0] - W[:, 1]) / np.linalg.norm(W[:, 0] - W[:, 1])
    return (np.asarray(distances)[:, None] * normal + [[0.0, 0.0, 0.7]]).astype("float32")


DISTANCES = np.array([-1.3, -0.6, -0.4, -0.2, 0.02, 0.25, 0.3, 0.5, 1.0, 3.0])
X = at_distances(DISTANCES)
both_modes = pytest.mark.parametrize("mode", ["fixed", "sequential"])


def smoothed(network=None, epsilon=EPSILON, sigma=SIGMA, **options):
    return SmoothedNet(network or linear(), epsilon, sigma, **{"samples": 5000, "seed": 0, "mode": "fixed", **options})


MANY = {"samples": 50_000, "max_batch": 2**14}


@functools.cache
def shared(mode="fixed"):
    """A model of many draws, which no test changes."""
    return smoothed(mode=mode, **MANY)


@functools.cache
def shared_verdicts(mode="fixed"):
    """What the shared model says of X."""
    return shared(mode).verdicts(X)


@functools.cache
def unseeded():
    """A model whose noise is fresh at every call, which no test changes."""
    return smoothed(seed=None, samples=2000)


def judged(model, x=X, frozen=False):
    return {name: np.asarray(value) for name, value in model._outputs(tf.constant(x), frozen=frozen).items()}


class TestTheGuarantee:
    @both_modes
    def test_radii_lie_below_the_true_distances(self, mode):
        """R(x) = |distance|: P(network votes j) = Phi(distance / sigma). At alpha = 0.05, 400 verdicts a point."""
        model = smoothed(mode=mode, samples=400, alpha=0.05, seed=None, max_batch=2**14)
        calls = 400
        radius = model.verdicts(np.concatenate([X] * calls), batch_size=100 * len(X)).radius.reshape(calls, len(X))
        wrong = (radius > np.abs(DISTANCES)).sum(axis=0)
        low = stats.beta.ppf(0.001, np.maximum(wrong, 1), calls - np.maximum(wrong, 1) + 1)
        assert (low <= 0.05).all(), f"{wrong} of {calls}"

    @both_modes
    def test_verdicts_where_they_are_clear(self, mode):
        verdicts = shared_verdicts(mode)
        clear = np.array([-1.3, -0.6, -0.4, 0.5, 1.0, 3.0])
        rows = np.isin(DISTANCES, clear)
        np.testing.assert_array_equal(verdicts.label[rows], np.where(clear > 0, 0, 1))
        near = np.isin(DISTANCES, [-0.2, 0.02])
        assert verdicts.rejected[near].all()
        assert (verdicts.label[near] == -1).all()
        assert (verdicts.radius[~verdicts.rejected] > np.float32(EPSILON)).all()
        assert (verdicts.radius[verdicts.rejected] <= np.float32(EPSILON)).all()

    def test_fixed_radii_are_close_to_the_true_ones(self):
        model = shared()
        radius = shared_verdicts().radius
        for found, distance in zip(radius, np.abs(DISTANCES), strict=True):
            if distance > 2:
                assert found == pytest.approx(model.radius_ceiling, rel=1e-6)
            elif distance > 0.1:
                assert found == pytest.approx(distance, abs=0.05)

    def test_certify_is_what_the_counts_say(self):
        """CERTIFY written out on the votes that the same seed draws."""
        draws = 3000
        model = smoothed(samples=draws)
        outputs = judged(model)
        counts = np.rint(outputs["scores"] * draws).astype(int)
        assert (counts.sum(axis=1) == draws).all()
        bound = lower_confidence_bound(counts.max(axis=1), draws, 0.001)
        radius = np.where(bound > 0.5, SIGMA * stats.norm.ppf(bound), 0)
        np.testing.assert_allclose(outputs["certified_radius"], radius, rtol=1e-6, atol=1e-9)
        assert (outputs["samples_used"] == draws + 100).all()
        needed = model.gate.answer[0]
        np.testing.assert_array_equal(outputs["rejected"], counts.max(axis=1) < needed)
        # The score of ⊥ is the share that the leader must exceed.
        far = np.abs(DISTANCES) > 0.1  # elsewhere the candidate may not be the leader
        np.testing.assert_allclose(outputs["scores_with_bottom"][far, 2], (needed - 1) / draws, rtol=1e-5)

    def test_a_wrong_candidate_is_rejected(self):
        """One selection draw picks the wrong class, which lacks the majority, with probability 1 - Phi(0.7) = 0.24."""
        model = smoothed(samples=2000, selection_samples=1, seed=None, max_batch=2**14)
        verdicts = model.verdicts(np.repeat(at_distances([0.35]), 100, axis=0))
        assert set(verdicts.label) == {-1, 0}
        assert 0.55 < (verdicts.label == 0).mean() < 0.92

    def test_predict_is_the_binomial_test(self):
        model = shared()
        np.testing.assert_array_equal(model.predict_class(X, 2000)[[0, 1, 2, 7, 8, 9]], [1, 1, 1, 0, 0, 0])
        assert model.predict_class(at_distances([0.0]), 2000)[0] == -1
        # 9 of 9 votes: p = 2 / 2^9 > 0.001; 11 of 11: 2 / 2^11 < 0.001.
        far = at_distances([9.0])
        assert model.predict_class(far, 9)[0] == -1
        assert model.predict_class(far, 11)[0] == 0

    def test_predict_errs_with_probability_at_most_alpha(self):
        model = smoothed(alpha=0.05, seed=None)
        x = np.repeat(at_distances([0.01]), 2000, axis=0)
        answers = model.predict_class(x, 50)
        wrong = int((answers == 1).sum())
        assert stats.beta.ppf(0.001, max(wrong, 1), 2000 - max(wrong, 1) + 1) <= 0.05
        assert (answers == -1).mean() > 0.8


class TestTheNoise:
    def test_is_normal_and_independent(self):
        noise = np.asarray(shared()._certificate.sampler.noise(40_000, tf.constant([3, 4])))
        assert noise.shape == (40_000, 3)
        for column in noise.T:
            assert stats.kstest(column / 0.5, "norm").pvalue > 1e-4
        assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.025
        assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.025

    @pytest.mark.parametrize("max_batch", [None, 100])  # with and without slices of a batch
    def test_is_each_inputs_own_and_fresh_in_the_next_call(self, max_batch):
        x = np.repeat(at_distances([0.1]), 400, axis=0)
        model = unseeded() if max_batch is None else smoothed(seed=None, max_batch=max_batch)
        first, second = (model.sample_counts(x, 100, batch_size=400)[:, 0] for _ in range(2))
        assert (first != second).any()
        # Independent draws of one binomial distribution: the variance among inputs is that of one input.
        p = first.mean() / 100
        assert (
            stats.chi2.ppf(1e-4, 399)
            < ((first - first.mean()) ** 2).sum() / (100 * p * (1 - p))
            < stats.chi2.ppf(1 - 1e-4, 399)
        )
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.2

    def test_verdicts_of_a_batch_are_as_independent_as_those_of_single_inputs(self):
        """Copies of an input that is answered in some draws only: neither all of them are answered, nor none."""
        edge = np.repeat(at_distances([EPSILON + 0.045]), 64, axis=0)
        model = unseeded()
        for judge in (model.verdicts, lambda x: model.verdicts(x, batch_size=1)):
            assert 3 < judge(edge).rejected.sum() < 61

    def test_no_global_seed_fixes_it(self):
        def votes():
            keras.utils.set_random_seed(1)
            return smoothed(seed=None).sample_counts(X, 500)

        assert (votes() != votes()).any()

    def test_a_seed_fixes_it_for_a_batch_and_another_batch_gets_another(self):
        first, second = shared(), smoothed(**MANY)
        np.testing.assert_array_equal(first.sample_counts(X), second.sample_counts(X))
        for a, b in zip(shared_verdicts(), first.verdicts(X), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (first.sample_counts(X) != smoothed(seed=6, **MANY).sample_counts(X)).any()
        # The same point in other company: other noise.
        assert (first.sample_counts(X[3:5])[0] != first.sample_counts(X[3:6])[0]).any()

    def test_chunks_of_a_call_are_different(self):
        """With one draw a chunk, equal chunks would give each point all votes or none."""
        counts = smoothed(max_batch=1).sample_counts(at_distances([0.0]), 200)
        assert counts.sum() == 200
        assert 60 < counts[0, 0] < 140

    @pytest.mark.parametrize(("mode", "max_batch"), [("fixed", 7), ("sequential", 3), ("sequential", 10_000)])
    def test_any_budget_gives_all_draws(self, mode, max_batch):
        model = smoothed(mode=mode, samples=500, max_batch=max_batch)
        outputs = judged(model)
        drawn = outputs["samples_used"] - 100
        assert set(drawn) <= set(model.gate.checkpoints)
        counts = outputs["scores"] * drawn[:, None]
        np.testing.assert_allclose(counts.sum(axis=1), drawn, rtol=1e-5)
        assert outputs["label"][[0, -1]].tolist() == [1, 0]

    def test_no_evaluation_is_wider_than_the_budget(self):
        rows = []

        @keras.saving.register_keras_serializable(package="tests")
        class Watch(layers.Layer):
            def call(self, x):
                tf.py_function(lambda size: rows.append(int(size)), [tf.shape(x)[0]], [])
                return x

        network = keras.Sequential([keras.Input((3,)), Watch(), layers.Dense(2)])
        model = SmoothedNet(network, EPSILON, SIGMA, samples=200, max_batch=32, mode="fixed")
        rows.clear()
        model.sample_counts(np.concatenate([X] * 5), 40)  # 50 points
        model.sample_counts(X, 40)
        assert max(rows) == 16, "two are under way at a time"
        assert sum(rows) == 40 * 50 + 40 * 10


class TestSequential:
    def test_easy_inputs_stop_early_and_hard_ones_run_to_the_cap(self):
        model = shared("sequential")
        used = dict(zip(DISTANCES, judged(model)["samples_used"], strict=True))
        assert used[3.0] == 100 + model.gate.checkpoints[0]
        assert used[0.02] < 500
        assert used[0.25] > 10_000, "epsilon itself"

    def test_the_company_does_not_matter_for_the_number_of_draws(self):
        model = shared("sequential")
        used = judged(model, X[[9, 5]])["samples_used"]
        assert used[0] == 100 + model.gate.checkpoints[0]

    def test_the_ceiling_is_that_of_half_alpha(self):
        fixed, sequential = smoothed(alpha=0.001), smoothed(alpha=0.002, mode="sequential")
        assert fixed.radius_ceiling == sequential.radius_ceiling


class TestTheContract:
    @both_modes
    def test_scores_verdicts_and_radii_are_of_one_run(self, mode):
        model = shared(mode)
        outputs = judged(model)
        scores = outputs["scores_with_bottom"]
        np.testing.assert_array_equal(scores.argmax(axis=1) == 2, outputs["rejected"])
        np.testing.assert_array_equal(outputs["certified_radius"] > np.float32(EPSILON), ~outputs["rejected"])
        np.testing.assert_array_equal(
            outputs["availability_radius"], np.maximum(outputs["certified_radius"] - np.float32(EPSILON), 0)
        )
        np.testing.assert_array_equal(np.asarray(model(X)), scores)
        np.testing.assert_array_equal(np.asarray(model.certified_radius(X)), outputs["certified_radius"])
        np.testing.assert_array_equal(np.asarray(model.availability_radius(X)), outputs["availability_radius"])
        verdicts = model.verdicts(X)
        np.testing.assert_array_equal(verdicts.label, outputs["label"])
        np.testing.assert_allclose(outputs["logits"], np.asarray(model.network(X)), rtol=1e-5, atol=1e-5)

    def test_it_is_a_keras_model(self, tmp_path):
        model = smoothed(
            mode="sequential", alpha=0.01, selection_samples=50, max_batch=5000, attack_samples=8, name="clever"
        )
        path = tmp_path / "model.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
        assert isinstance(loaded, SmoothedNet)
        ours, theirs = (dict(m.get_config(), network=None) for m in (model, loaded))
        assert ours == theirs
        for mine, other in zip(model.verdicts(X), loaded.verdicts(X), strict=True):
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(model.predict(X, verbose=0), np.asarray(model(X)))
        model.compile(metrics=["vra", "rejection_rate"])
        logs = model.evaluate(X, (DISTANCES < 0).astype(int), batch_size=len(X), verbose=0, return_dict=True)
        verdicts = model.verdicts(X)
        assert logs["rejection_rate"] == pytest.approx(verdicts.rejected.mean())
        assert logs["vra"] == pytest.approx((verdicts.label == (DISTANCES < 0)).mean())

    def test_new_models_are_sequential_and_what_was_written_keeps_its_mode(self):
        new = SmoothedNet(linear(), EPSILON, SIGMA)
        assert new.mode == "sequential"
        assert SmoothedNet.from_config(new.get_config()).mode == "sequential"
        earlier = {name: value for name, value in new.get_config().items() if name != "mode"}
        assert SmoothedNet.from_config(earlier).mode == "fixed"
        assert SmoothedNet.from_config(smoothed(mode="fixed").get_config()).mode == "fixed"

    def test_radii_from_scores(self):
        model = shared()
        found, certified = np.asarray(model.radius_from_scores(model(X))), np.asarray(model.certified_radius(X))
        # Beside the boundary the candidate may be another class than the leader: it is rejected, with radius 0.
        told = (certified > 0) | (np.abs(DISTANCES) > 0.1)
        assert told.sum() >= len(X) - 1
        np.testing.assert_array_equal(found[told], certified[told])
        assert (found[~told] <= EPSILON).all()
        stopped = shared("sequential")
        radius = np.asarray(stopped.radius_from_scores(stopped(X)))
        assert (radius <= np.asarray(stopped.certified_radius(X))).all()
        np.testing.assert_array_equal(radius > np.float32(EPSILON), ~shared_verdicts("sequential").rejected)

    def test_training_is_told_where_it_belongs(self):
        model = smoothed()
        model.compile()
        for train in (lambda: model.fit(X, np.zeros(10)), lambda: model(X, training=True)):
            with pytest.raises(RuntimeError, match="train_noisy"):
                train()

    def test_it_is_final_from_the_start_and_says_what_it_is(self):
        model = unseeded()
        assert model.is_final
        model.finalize()
        assert "sigma=0.5" in repr(model)
        assert "fixed n=2000" in repr(model)
        assert any("probability at least 0.999" in text for text in model.certificate_assumptions)
        assert not any("float16" in text for text in model.certificate_assumptions)
        assert any("float16" in text for text in smoothed(precision="bfloat16").certificate_assumptions)

    @both_modes
    def test_another_epsilon_moves_the_gate(self, mode):
        model = smoothed(mode=mode)
        verdict = tf.function(model)
        before = verdict(X)
        model.epsilon = 0.6
        gate = smoothed(mode=mode, epsilon=0.6).gate
        for ours, theirs in zip(model.gate, gate, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        verdicts = model.verdicts(X)
        assert (verdicts.radius[~verdicts.rejected] > np.float32(0.6)).all()
        # A graph made for another epsilon answers nothing that is not proven for this one.
        answered = np.asarray(verdict(X)).argmax(axis=1) != 2
        assert answered.sum() < (np.asarray(before).argmax(axis=1) != 2).sum()
        assert not (answered & (np.abs(DISTANCES) < 0.55)).any()

    def test_an_epsilon_out_of_reach_is_refused_and_the_old_one_kept(self):
        model = smoothed(samples=100)
        with pytest.raises(ValueError, match=r"can never certify epsilon=1\.5"):
            model.epsilon = 1.5
        assert float(model.epsilon) == EPSILON
        model.epsilon.assign(1.5)  # past the check: then nothing is answered
        assert model.verdicts(X).rejected.all()

    def test_training_the_network_further_is_seen(self):
        model = smoothed()
        assert model.verdicts(X).label[-1] == 0
        model.network.layers[0].kernel.assign(-W)
        assert model.verdicts(X).label[-1] == 1

    def test_calibration_and_susceptibility_take_it(self):
        model = smoothed(samples=2000)
        epsilon = defended.calibrate_epsilon(model, X, 0.5)
        assert 0.2 < epsilon < 0.6
        result = defended.attacks.susceptibility(model, X, (DISTANCES < 0).astype(int), CertificateDescent(steps=10))
        assert 0 < result.fpr_lower <= result.fpr_upper


class TestFailClosed:
    @both_modes
    def test_inputs_that_are_not_finite_are_rejected_before_any_sampling(self, mode):
        x = X[[9, 9, 9, 9, 0]].copy()
        x[1:4, 2] = np.nan, np.inf, -np.inf
        outputs = judged(shared(mode), x, frozen=True)
        assert outputs["label"].tolist() == [0, -1, -1, -1, 1]
        assert (outputs["samples_used"][1:4] == 0).all()
        assert (outputs["certified_radius"][1:4] == 0).all()
        assert np.isfinite(outputs["scores_with_bottom"]).all()
        assert shared(mode).predict_class(x).tolist() == [0, -1, -1, -1, 1]

    @both_modes
    def test_a_batch_of_nothing_but_nan_ends_at_once(self, mode):
        verdicts = shared(mode).verdicts(np.full((4, 3), np.nan, "float32"))
        assert verdicts.rejected.all()

    def test_logits_that_are_not_finite_vote_for_nobody(self):
        """sqrt of a negative coordinate is NaN: half of the draws at 0, nearly none at 3."""
        inputs = keras.Input((1,))
        root = keras.ops.sqrt(inputs)
        network = keras.Model(inputs, layers.Concatenate()([root + 1, -root]))
        model = SmoothedNet(network, 0.1, 0.5, samples=2000, seed=1, mode="fixed")
        x = np.array([[0.0], [3.0]], "float32")
        counts = model.sample_counts(x)
        assert counts[0, 1] == 0
        assert 900 < counts[0, 0] < 1100
        assert counts[1].tolist() == [2000, 0]
        assert model.verdicts(x).label.tolist() == [-1, 0], "half of the draws are no majority"

    def test_infinite_logits_too(self):
        model = smoothed(linear(W * 1e38), samples=500)
        x = 5 * X
        assert model.verdicts(x).rejected.all()
        assert model.sample_counts(x).sum() < 0.5 * 500 * len(X)


class TestEstimates:
    def test_of_the_radius_are_differentiable_and_bounded_as_promised(self):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((4,)), layers.Dense(16, activation="relu"), layers.Dense(5)])
        model = SmoothedNet(network, 0.1, 0.3, samples=1000, attack_samples=16, mode="fixed")
        x = tf.constant(np.random.default_rng(0).standard_normal((6, 4)), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            radii = model.competitor_radii(x)
            smallest = tf.reduce_min(radii, axis=1)
        gradient = tape.gradient(smallest, x)
        assert radii.shape == (6, 5)
        assert (np.asarray(radii) == FLOAT_MAX).sum(axis=1).tolist() == [1] * 6
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max(axis=1) > 0).all()
        # By hand, in float64: the radius that CERTIFY would give to the mean softmax.
        noise = np.asarray(model._compiled.kept["noise"], np.float64)
        logits = np.stack([np.asarray(network(x + tf.constant(d, tf.float32)), np.float64) for d in noise], axis=1)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares = (shares / shares.sum(-1, keepdims=True)).mean(axis=1)
        np.testing.assert_allclose(smallest, 0.3 * stats.norm.ppf(shares.max(axis=1)), rtol=1e-3, atol=1e-4)

    def test_do_not_saturate_where_the_vote_is_unanimous(self):
        x = tf.constant(at_distances([0.5, 30.0]))
        model = smoothed(linear(50 * W), sigma=0.1, epsilon=0.1)
        with tf.GradientTape() as tape:
            tape.watch(x)
            radii = tf.reduce_min(model.competitor_radii(x), axis=1)
        assert np.isfinite(radii).all()
        assert np.isfinite(tape.gradient(radii, x)).all()

    def test_an_attack_descends_them_and_the_deployed_check_judges(self):
        model = shared()
        x = at_distances([0.45])
        attacked = CertificateDescent(steps=20)(model, x)
        assert np.linalg.norm(attacked - x) <= EPSILON
        assert not model.verdicts(x).rejected[0]
        assert model.verdicts(attacked).rejected[0]


class TestPrecision:
    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_the_network_computes_in_it_and_stays_as_it_was(self, precision):
        network = keras.Sequential([keras.Input((3,)), layers.Dense(64, activation="relu"), layers.Dense(2)])
        model = smoothed(network, precision=precision, samples=500)
        exact, reduced = np.asarray(network(X)), np.asarray(model.undefended_logits(X))
        assert reduced.dtype == np.float32
        assert 0 < np.abs(exact - reduced).max() < 0.1
        assert [layer.compute_dtype for layer in network.layers] == ["float32"] * 2
        assert {v.dtype for v in network.variables} == {"float32"}
        np.testing.assert_array_equal(np.asarray(network(X)), exact)
        assert model.verdicts(X).label.shape == (10,)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"sigma": 0}, "`sigma` must be a positive"),
            ({"sigma": -1}, "`sigma` must be a positive"),
            ({"sigma": float("nan")}, "`sigma` must be a positive"),
            ({"sigma": float("inf")}, "`sigma` must be a positive"),
            ({"alpha": 0}, "`alpha` must lie strictly"),
            ({"alpha": 1}, "`alpha` must lie strictly"),
            ({"epsilon": 0}, "`epsilon` must be a positive"),
            ({"samples": 0}, "`samples` must be a whole number"),
            ({"samples": 2.5}, "`samples` must be a whole number"),
            ({"samples": 2**22 + 1}, "`samples` must be a whole number"),
            ({"selection_samples": 0}, "`selection_samples`"),
            ({"max_batch": 0}, "`max_batch` must be a whole number from 1"),
            ({"seed": -1}, "`seed`"),
            ({"mode": "adaptive"}, "'fixed', 'sequential'"),
            ({"precision": "int8"}, "`precision` must be one of 'float32'"),
            ({"attack_samples": 0}, "`attack_samples`"),
            ({"samples": 10}, r"samples=10 can never certify epsilon=0.25 .*Take samples >= 19,"),
            ({"samples": 19, "mode": "sequential"}, r"Take samples >= 21,"),
            ({"epsilon": 4}, "Take a sigma above 0.5"),
        ],
    )
    def test_arguments(self, options, match):
        with pytest.raises(ValueError, match=match):
            smoothed(**options)

    def test_the_number_that_an_error_names_is_enough(self):
        smoothed(samples=19)
        smoothed(samples=21, mode="sequential")

    def test_augmentation_that_acts_in_training_only_is_taken(self):
        network = keras.Sequential(
            [keras.Input((6, 6, 1)), layers.RandomFlip(), layers.RandomRotation(0.1), layers.Flatten(), layers.Dense(3)]
        )
        model = SmoothedNet(network, epsilon=0.1, sigma=0.25, samples=200, seed=0, mode="fixed")
        x = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("float32")
        np.testing.assert_array_equal(model.verdicts(x).label, model.verdicts(x).label)

    def test_networks_that_are_random_at_inference(self):
        inputs = keras.Input((3,))
        noisy = keras.Model(inputs, layers.Dense(2)(layers.GaussianNoise(0.5)(inputs, training=True)))
        with pytest.raises(ValueError, match=r"'gaussian_noise.*training=True"):
            smoothed(noisy)
        drawn = keras.Model(inputs, layers.Dense(2)(layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))(inputs)))
        with pytest.raises(ValueError, match="random at inference"):
            smoothed(drawn)

    def test_networks_that_look_at_the_batch(self):
        inputs = keras.Input((3,))
        hidden = layers.Lambda(lambda x: x - tf.reduce_mean(x, axis=0))(inputs)
        with pytest.raises(ValueError, match="depends on the rest of the batch"):
            smoothed(keras.Model(inputs, layers.Dense(2)(hidden)))

    def test_noise_for_training_only_is_fine(self):
        network = keras.Sequential(
            [
                keras.Input((3,)),
                layers.GaussianNoise(0.5),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
                layers.Dense(2),
            ]
        )
        assert smoothed(network).verdicts(X).label.shape == (10,)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"shape \[n, 3\]"):
            shared().verdicts(X[0])
        with pytest.raises(ValueError, match=r"shape \[n, 3\]"):
            shared().predict_class(X[:, :2])

    def test_nothing_is_asked_of_no_inputs(self):
        model = shared()
        assert model.verdicts(X[:0]).label.shape == (0,)
        for ask in (model.certified_radius, model.availability_radius):
            assert np.asarray(ask(X[:0])).shape == (0,)
        assert np.asarray(model(X[:0])).shape == (0, 3)
        assert np.asarray(model.deployed(X[:0])["label"]).shape == (0,)
        assert model.sample_counts(X[:0]).shape == (0, 2)


class TestBudget:
    def out_of_memory(self, above, cost=lambda rows: 1.0 + rows / 500):
        def seconds(rows):
            if rows > above:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM")
            return cost(rows)

        return seconds

    def test_doubles_while_it_pays(self):
        # rows / (1 + rows / 500): doubling from 4096 to 8192 gains 5.7 %, the next 3 %.
        assert fastest_rows(self.out_of_memory(2**30)) == 8192

    def test_stops_at_the_memory(self):
        assert fastest_rows(self.out_of_memory(1500)) == 1024
        assert fastest_rows(self.out_of_memory(5)) == 4

    def test_a_memory_too_small_for_one(self):
        with pytest.raises(MemoryError, match="a single noisy input"):
            fastest_rows(self.out_of_memory(0))
