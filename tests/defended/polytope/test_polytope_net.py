"""PolytopeNet as a defended model: verdicts, state, training, attacks, export, and what it refuses."""

import keras
import numpy as np
import polytopes
import pytest
from keras import layers

from defended import PolytopeNet, callbacks, losses
from defended.attacks import PGD, CertificateDescent, DegradationAttack, susceptibility
from defended.polytope.dual_bounds import DualBounds
from defended.polytope.graph import PolytopeGraph
from defended.polytope.projections import projected_chain
from defended.polytope.radius import ABOVE


def dense(scale=1.0, seed=0):
    return polytopes.randomised(polytopes.NETWORKS["dense"](), np.random.default_rng(seed), scale)


def final(network, epsilon=0.1, **options):
    model = PolytopeNet(network, epsilon=epsilon, **options)
    model.finalize()
    return model


def inputs(n=40, seed=1, shape=(5,)):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return final(dense(), norm="linf", radius_steps=4)


class TestVerdicts:
    def test_answers_radii_and_bounds_agree(self, model):
        x = inputs()
        verdicts, scores = model.verdicts(x), np.asarray(model(x))
        bounds = np.where(np.arange(3) == scores[:, :3].argmax(1)[:, None], np.inf, model.margin_lower_bounds(x))
        assert 0 < verdicts.rejected.mean() < 1
        np.testing.assert_array_equal(verdicts.rejected, scores.argmax(axis=1) == 3)
        np.testing.assert_array_equal(verdicts.rejected, verdicts.radius <= np.float32(0.1))
        clear = np.abs(bounds.min(axis=1)) > 1e-5
        np.testing.assert_array_equal(verdicts.rejected[clear], bounds.min(axis=1)[clear] <= 0)
        slack = scores[:, :3].max(axis=1) - scores[:, 3]
        np.testing.assert_allclose(slack[clear], bounds.min(axis=1)[clear], atol=1e-4)

    def test_radii_are_certified_and_nearly_as_large_as_can_be(self, model):
        x = inputs(20)
        radius = model.verdicts(x).radius
        own = np.asarray(model(x))[:, :3].argmax(axis=1)
        found = np.flatnonzero((radius > 0) & (radius < 0.35))
        assert len(found) >= 5
        # Within the radius no point has another class; well beyond it, the bounds say nothing any more.
        rng = np.random.default_rng(3)
        for index in found:
            delta = rng.choice([-1.0, 1.0, 0.3], (2000, 5)) * radius[index] * (1 - 1e-6)
            logits = np.asarray(model._logits((x[index] + delta).astype("float32"), training=False))
            assert np.all(logits.argmax(axis=1) == own[index])
        bounds = np.asarray(model.margin_lower_bounds(x[found], (radius[found] * 1.2).astype("float32")))
        smallest = np.where(np.arange(3) == own[found][:, None], np.inf, bounds).min(axis=1)
        assert np.mean(smallest > 0) < 0.3

    def test_twice_epsilon_is_one_of_the_radii_that_are_tried(self, model):
        x = inputs(200, seed=4)
        radius = model.verdicts(x).radius
        own = np.asarray(model(x))[:, :3].argmax(axis=1)
        bounds = np.asarray(model.margin_lower_bounds(x, np.float32(0.2) * ABOVE))
        smallest = np.where(np.arange(3) == own[:, None], np.inf, bounds).min(axis=1)
        clear = np.abs(smallest) > 1e-4
        np.testing.assert_array_equal((radius > np.float32(0.2))[clear], (smallest > 0)[clear])

    def test_what_is_not_finite_is_rejected_and_touches_nothing_else(self, model):
        x = inputs(5)
        broken = x.copy()
        broken[1, 0], broken[2, 3], broken[3, 1] = np.nan, np.inf, -np.inf
        verdicts, clean = model.verdicts(broken), model.verdicts(x)
        assert verdicts.rejected[1:4].all()
        assert not verdicts.radius[1:4].any()
        np.testing.assert_array_equal(verdicts.radius[[0, 4]], clean.radius[[0, 4]])
        assert np.all(np.isfinite(model(broken)))

    def test_parts_within_the_memory_budget_change_nothing(self, eagerly):
        network = polytopes.randomised(polytopes.NETWORKS["patches"](), np.random.default_rng(2))
        x = inputs(3, shape=(13, 11, 2))
        small = final(network, memory_budget=1, radius_steps=1)
        assert small.rows_at_once == 1
        large = final(network, radius_steps=1)
        np.testing.assert_allclose(small.margin_lower_bounds(x), large.margin_lower_bounds(x), atol=1e-5)
        np.testing.assert_allclose(small.certified_radius(x), large.certified_radius(x), atol=1e-5)

    def test_competitor_radii_change_sign_at_epsilon(self, model):
        x = inputs()
        radii, verdicts = np.asarray(model.competitor_radii(x)), model.verdicts(x)
        assert np.mean((radii.min(axis=1) > 0.1) == ~verdicts.rejected) == 1


class TestState:
    def test_saved_and_loaded(self, tmp_path):
        model = final(dense(), norm="l2", slope="wong-kolter", radius_steps=2, rounding=False)
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert loaded.is_final
        assert (loaded.norm, loaded.slope, loaded.radius_steps, loaded.rounding) == ("l2", "wong-kolter", 2, False)
        np.testing.assert_array_equal(loaded.verdicts(inputs()).radius, model.verdicts(inputs()).radius)

    def test_other_weights_are_noticed(self, eagerly):
        model = final(dense())
        model.network.layers[0].bias.assign_add(np.ones(8))
        assert not model.is_final
        radius = model.verdicts(inputs()).radius
        assert model.is_final, "proven again before the answer"
        np.testing.assert_array_equal(radius, final(model.network).verdicts(inputs()).radius)

    def test_networks_of_every_scale_become_final(self):
        """Evaluations of sums in several blocks do not differ by more than is proven, huge or tiny as they are."""
        model = PolytopeNet(polytopes.NETWORKS["long sums"](), epsilon=0.1, radius_steps=1)
        for scale in (1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e30):
            polytopes.randomised(model.network, np.random.default_rng(6), scale)
            assert not model.is_final
            model.finalize()
            assert model.is_final

    def test_weights_that_are_not_finite(self):
        network = dense()
        network.layers[0].bias.assign(np.full(8, np.nan))
        with pytest.raises(ValueError, match=r"'dense.*' cannot be bounded"):
            final(network)


class TestTraining:
    def data(self):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 200)
        centres = np.array([[1.0, 0, 0, 0.5, 0], [0, 1.0, 0, 0, 0.5], [0, 0, 1.0, -0.5, -0.5]])
        return (centres[y] + 0.1 * rng.standard_normal((200, 5))).astype("float32"), y

    @pytest.mark.parametrize("bounds", ["dual", "crown-ibp", "interval", "projected"])
    def test_fit_trains_the_certificate(self, bounds, eagerly):
        x, y = self.data()
        model = PolytopeNet(
            dense(0.5), epsilon=0.15, training_bounds=bounds, projections=20, slope="wong-kolter", radius_steps=1
        )
        model.compile(keras.optimizers.Adam(0.04), losses.CertifiedCrossentropy(), metrics=["vra"], jit_compile=False)
        before = 1 - model.verdicts(x).rejected.mean()
        schedule = callbacks.EpsilonSchedule("linear", by_batch=True)
        history = model.fit(x, y, epochs=6, batch_size=50, verbose=0, callbacks=[schedule])
        assert model.is_final
        verdicts = model.verdicts(x)
        vra = np.mean(verdicts.label == y)
        assert vra > 0.9
        assert vra > before
        assert history.history["vra"][-1] > 0.8

    def test_radius_doubling(self, eagerly):
        x, y = self.data()
        model = PolytopeNet(dense(0.5), epsilon=0.1, training_bounds="interval", slope="wong-kolter", radius_steps=1)
        model.compile(keras.optimizers.Adam(0.04), "certified_crossentropy", jit_compile=False)
        doubling = callbacks.RadiusDoubling(by_batch=True)
        history = model.fit(x, y, epochs=6, batch_size=50, verbose=0, validation_data=(x, y), callbacks=[doubling])
        assert history.history["val_vra"][-1] >= history.history["val_vra_2eps"][-1] > 0.8
        # Interval bounds, by which training measures, are no tighter than those that are deployed.
        assert np.mean((model.verdicts(x).label == y) & (model.verdicts(x).radius > 0.2)) >= doubling.best - 0.01

    def test_the_robust_loss_by_hand(self):
        # y_0 - y_1 = 17 with gradient (3, 4): within 2 in l-infinity at least 3, so the loss is log(1 + exp(-3)).
        network = polytopes.sequential((2,), layers.Dense(2))
        network.set_weights([np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([10.0, 0.0])])
        model = PolytopeNet(network, epsilon=2.0)
        model.compile(loss="certified_crossentropy")
        loss = model.evaluate(np.ones((1, 2)), np.zeros(1, int), verbose=0)
        assert loss == pytest.approx(np.log1p(np.exp(-3.0)), rel=1e-4)
        model.compile(loss=losses.CertifiedCrossentropy(weight=0.25), run_eagerly=True)
        loss = model.evaluate(np.ones((1, 2)), np.zeros(1, int), verbose=0)
        assert loss == pytest.approx(0.25 * np.log1p(np.exp(-3.0)) + 0.75 * np.log1p(np.exp(-17.0)), rel=1e-4)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_projections_estimate_the_papers_bounds(self, norm):
        network = polytopes.randomised(polytopes.residual(), np.random.default_rng(5))
        graph = PolytopeGraph(network)
        bounds = DualBounds(graph, norm, "wong-kolter", counted=False)
        x, radius = inputs(2, shape=(6, 6, 2)), np.full(2, 0.05, "float32")
        (exact,) = bounds.chains(x, radius)
        estimate = projected_chain(bounds, x, radius, 2001, keras.random.SeedGenerator(3))
        for index in (graph.nodes[relu].sources[0] for relu in graph.relus):
            width, guessed = (np.asarray(c.upper[index] - c.lower[index]) for c in (exact, estimate))
            assert np.median(np.abs(guessed / width - 1)) < 0.1


def test_attacks_and_their_measure():
    x, y = inputs(60, seed=7), np.zeros(60, int)
    model = final(dense(), epsilon=0.2, slope="wong-kolter", radius_steps=1)
    found = {}
    for attack in (DegradationAttack(PGD(steps=10)), CertificateDescent(steps=15, jit_compile=False)):
        result = susceptibility(model, x, y, attack, progress=False)
        found[type(attack).__name__] = result.fpr_lower
        assert result.fpr_lower <= result.fpr_upper
    assert found["CertificateDescent"] > 0
    assert found["CertificateDescent"] >= found["DegradationAttack"]


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ([layers.Dense(4, activation="tanh")], "activation 'tanh'.*relu"),
            ([layers.Dense(4), layers.ELU()], "ELU.*GloroNet"),
            ([layers.Dense(4), layers.ReLU(max_value=6.0)], "not a plain ReLU.*max_value"),
            ([layers.Dense(4), layers.LayerNormalization()], "LayerNormalization.*Replace it by known layers"),
            ([layers.Dense(4), layers.ReLU(threshold=0.5)], "not a plain ReLU.*threshold"),
            ([layers.Dense(4), layers.Activation("sigmoid")], "sigmoid"),
        ],
    )
    def test_layers(self, body, message):
        with pytest.raises(ValueError, match=message):
            PolytopeNet(polytopes.sequential((5,), *body, layers.Dense(3)), epsilon=0.1)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ([layers.UpSampling2D(2, interpolation="bilinear")], "interpolation='bilinear'.*'nearest'"),
            ([layers.CenterCrop(5, 4)], "more than moving entries.*Resize"),
            ([layers.BatchNormalization(axis=1)], "normalises axis 1.*axis=-1"),
            ([layers.Rescaling(2.0), layers.MaxPooling2D(data_format="channels_first")], "channels_last"),
            ([layers.DepthwiseConv2D(2, dilation_rate=2)], "DepthwiseConv2D.*dilation_rate"),
            ([layers.Conv2D(2, 2, activation="elu")], "activation 'elu'.*leaky_relu"),
            ([layers.Conv2D(2, 2, dilation_rate=2)], "dilation_rate"),
            ([layers.Conv2D(2, 2, groups=2)], "groups=2"),
            ([layers.Dense(2)], "Flatten"),
        ],
    )
    def test_layers_of_maps(self, body, message):
        with pytest.raises(ValueError, match=message):
            PolytopeNet(polytopes.sequential((4, 4, 2), *body, layers.Flatten(), layers.Dense(3)), epsilon=0.1)

    def test_several_outputs(self):
        x = keras.Input((5,))
        with pytest.raises(ValueError, match="one output"):
            PolytopeNet(keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)]), epsilon=0.1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": -0.1}, "`epsilon`"),
            ({"norm": "l1"}, "`norm` must be one of 'linf', 'l2'"),
            ({"slope": "steep"}, "`slope`"),
            ({"training_bounds": "ibp"}, "`training_bounds`"),
            ({"projections": 0}, "`projections`"),
            ({"radius_steps": 0}, "`radius_steps`"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            PolytopeNet(dense(), **{"epsilon": 0.1, **options})

    def test_a_negative_radius(self, model):
        with pytest.raises(ValueError, match="`epsilon` must be a finite number that is not negative"):
            model.margin_lower_bounds(inputs(), -0.1)

    def test_a_loss_without_bounds(self):
        with pytest.raises(ValueError, match="not attached"):
            losses.CertifiedCrossentropy()(np.zeros(1), np.zeros((1, 4)))
        with pytest.raises(ValueError, match="`weight`"):
            losses.CertifiedCrossentropy(weight=2.0)
        with pytest.raises(ValueError, match="PolytopeNet"):
            losses.CertifiedCrossentropy().attach(dense())
