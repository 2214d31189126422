"""A membership guard over a polytope net: its verdicts, training, attacks, export and state are those of any guard."""

import keras
import numpy as np
import polytopes
import pytest
import tensorflow as tf
from keras import layers

from defended import MembershipGuard, PolytopeNet, callbacks, losses
from defended.attacks import PGD, CertificateDescent, DegradationAttack, susceptibility
from defended.membership import REASONS, StoredPoints
from defended.serving import export, export_onnx, load, load_onnx

EPSILON = {"linf": 0.08, "l2": 0.16}
CENTRES = np.array([[1.0, 0, 0, 0.5, 0], [0, 1.0, 0, 0, 0.5], [0, 0, 1.0, -0.5, -0.5]])


def data(n=300, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (CENTRES[y] + spread * rng.standard_normal((n, 5))).astype("float32"), y


def polytope(norm="linf", seed=0, **options):
    network = polytopes.sequential((5,), layers.Dense(8, activation="relu"), layers.Dense(3))
    # Without biases boundaries meet at the origin, and the points lie around it.
    polytopes.randomised(network, np.random.default_rng(seed), bias=0.0)
    options = {"slope": "wong-kolter", "radius_steps": 1} | options
    return PolytopeNet(network, epsilon=EPSILON[norm], norm=norm, **options)


def guard_of(norm="linf"):
    """A guard over 60 points around the boundaries of a random net."""
    model, rng = polytope(norm), np.random.default_rng(1)
    points = (0.5 * rng.standard_normal((60, 5))).astype("float32")
    guard = MembershipGuard(model, StoredPoints(points, domain=None), 20)
    guard.finalize()
    x = (points[rng.integers(0, 60, 200)] + 0.5 * EPSILON[norm] * rng.standard_normal((200, 5))).astype("float32")
    return guard, points, x


@pytest.fixture(scope="module")
def compiled():
    """A guard whose graphs all tests use; they leave it as it is. With its points and inputs."""
    return guard_of()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_strict_answers_are_the_models_and_reasons_are_true(norm, eagerly):
    guard, points, x = guard_of(norm)
    ours, alone, reasons = guard.verdicts(x), guard.base.verdicts(x), guard.reasons(x)
    assert np.array_equal(ours.label, alone.label)
    np.testing.assert_allclose(ours.radius, alone.radius, atol=1e-6)
    label, of_points = (np.argmax(guard.undefended_logits(z), axis=1) for z in (x, points))
    delta = np.abs(x[:, None].astype("float64") - points[None])
    distance = delta.max(-1) if norm == "linf" else np.sqrt(np.square(delta).sum(-1))
    found = ((distance <= float(guard.epsilon)) & (label[:, None] != of_points[None])).any(axis=1)
    assert np.array_equal(reasons == "adversarial", found & ours.rejected)
    assert np.array_equal(reasons == "answered", ~ours.rejected)
    assert {*reasons} == {"answered", "adversarial", "not certified"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neighbours_answer_what_dual_bounds_reject(norm, eagerly):
    """Corners within the availability radius keep the answer as a rule, as `PolytopeNet` has it; none turns it."""
    x = (0.5 * np.random.default_rng(3).standard_normal((30, 5))).astype("float32")
    guard = MembershipGuard(polytope(norm), StoredPoints(x, domain=None), accept="separated")
    guard.finalize()
    near = (x + 0.3 * EPSILON[norm] * np.sign(np.random.default_rng(2).standard_normal(x.shape))).astype("float32")
    if norm == "l2":
        near = (x + (near - x) / np.sqrt(5)).astype("float32")
    ours, alone = guard.verdicts(near), guard.base.verdicts(near)
    more = alone.rejected & ~ours.rejected
    assert more.any()
    room = np.asarray(guard.neighbour_radius(near[more])).astype("float64") - EPSILON[norm]
    assert (room > 0).all()
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 5), -1).reshape(-1, 5) / (1 if norm == "linf" else np.sqrt(5))
    moved = near[more][:, None] + (room * (1 - 1e-4))[:, None, None] * corners
    after = guard.verdicts(moved.reshape(-1, 5).astype("float32")).label.reshape(more.sum(), -1)
    kept = after == ours.label[more][:, None]
    assert (kept | (after == -1)).all()
    assert kept.mean() > 0.9, kept.mean()


class TestTraining:
    def guard(self):
        x, y = data()
        model = polytope(training_bounds="interval")
        guard = MembershipGuard(model, StoredPoints(x[:50], domain=None))
        guard.compile(keras.optimizers.Adam(0.02), "certified_crossentropy", metrics=["vra"], jit_compile=False)
        return guard, x, y

    def test_loss_and_metrics_are_those_of_the_model_inside(self):
        """At the schedule's radius too: an eager step of a copy of the model changes the weights in the same way."""
        guard, x, y = self.guard()
        twin = polytope(training_bounds="interval")
        twin.compile(keras.optimizers.Adam(0.02), "certified_crossentropy", metrics=["vra"], run_eagerly=True)
        losses_seen = []
        for scale in (1.0, 2.0):
            for model in (guard, twin):
                model.radius_scale.assign(scale)
            ours, theirs = (model.train_on_batch(x, y, return_dict=True) for model in (guard, twin))
            assert ours == pytest.approx(theirs, rel=1e-5)
            losses_seen.append(ours["loss"])
        ours, theirs = (model.evaluate(x, y, batch_size=100, verbose=0, return_dict=True) for model in (guard, twin))
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert losses_seen[1] > 1.05 * ours["loss"], "the radius of training is not that of evaluation"
        for own, other in zip(guard.network.get_weights(), twin.network.get_weights(), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)

    def test_fit_with_radius_doubling_trains_the_certificate(self, eagerly):
        guard, x, y = self.guard()
        before = np.mean(guard.base.verdicts(x).label == y)
        doubling = callbacks.RadiusDoubling(by_batch=True)
        history = guard.fit(
            x, y, epochs=5, batch_size=50, verbose=0, validation_data=(x, y), callbacks=[doubling]
        ).history
        assert history["val_vra"][-1] >= history["val_vra_2eps"][-1] > 0.7
        assert guard.is_final
        assert guard.base.is_final
        verdicts = guard.verdicts(x)
        assert np.mean(verdicts.label == y) > max(before, 0.9)
        # Validation measures by the training bounds, which are no tighter than the deployed ones.
        assert np.mean((verdicts.label == y) & (verdicts.radius > 2 * EPSILON["linf"])) >= doubling.best - 0.01

    def test_what_was_traced_as_proven_is_not_used_while_it_is_not(self):
        """Judged when final, then thawed: a graph rejects, Python's entries prove, training has estimates."""
        guard, x, _ = self.guard()
        guard.finalize()
        judge = tf.function(lambda x: guard(x), autograph=False)
        proven, scores = guard.verdicts(x[:60]), np.asarray(judge(x[:60]))
        np.testing.assert_array_equal(scores.argmax(axis=1) == guard.num_classes, proven.rejected)
        guard._thaw()
        assert not guard.is_final
        assert (np.asarray(judge(x[:60])).argmax(axis=1) == guard.num_classes).all()
        with guard.estimates():
            estimated = np.asarray(guard(x[:60]))
            np.testing.assert_allclose(estimated, guard.base(x[:60]), atol=1e-6)
        assert np.abs(estimated - scores).max() > 0.01
        np.testing.assert_array_equal(guard.verdicts(x[:60]).radius, proven.radius)
        assert guard.is_final


def test_attacks_and_their_measure(compiled):
    guard, _, x = compiled
    y = np.zeros(len(x), int)
    for attack in (CertificateDescent(steps=10, jit_compile=False), DegradationAttack(PGD(steps=10))):
        found, alone = (susceptibility(model, x, y, attack, progress=False) for model in (guard, guard.base))
        assert 0 < found.fpr_lower <= found.fpr_upper
        # The strict guard answers what the model answers.
        assert found.rejection_rate == alone.rejection_rate
        assert abs(float(found.fpr_lower) - float(alone.fpr_lower)) < 0.05


def test_known_classes_are_what_an_attack_descends_to():
    """A point of class 2 beside inputs of class 0, which dual bounds certify: only the oracle can take them away."""
    x, y = data(40, spread=0.01)
    model = polytope(training_bounds="interval")
    model.compile(keras.optimizers.Adam(0.02), losses.CertifiedCrossentropy(), jit_compile=False)
    model.fit(x, y, epochs=40, batch_size=20, verbose=0)
    inputs = x[y == 0][:4]
    beside = inputs[:1] + np.float32(1.5 * EPSILON["linf"])
    guard = MembershipGuard(model, StoredPoints(np.concatenate([beside, x]), np.append(2, y), domain=None))
    guard.finalize()
    assert not guard.verdicts(inputs).rejected.any()
    attacked = CertificateDescent(steps=20, jit_compile=False)(guard, inputs)
    assert (guard.reasons(attacked) == "adversarial").all()
    assert not guard.base.verdicts(attacked).rejected.any()


def test_artefact_and_onnx_file_answer_with_the_same_reasons(compiled, tmp_path):
    guard, _, x = compiled
    x = np.concatenate([x[:80], np.full_like(x[:1], np.nan)])
    verdicts, reasons = guard.verdicts(x), guard.reasons(x)
    assert {*reasons} >= {"answered", "not certified", "not finite"}
    export_onnx(guard, tmp_path / "guard.onnx", audit=True, sample=x[:-1])
    with load(export(guard, tmp_path, "guard", onnx=False, sample=x[:-1])) as artefact:
        assert artefact.manifest.defence == "MembershipGuard"
        assert artefact.manifest.norm == "linf"
        found = artefact.audit(x), load_onnx(tmp_path / "guard.onnx").run(x)
    for outputs in found:
        assert np.array_equal(outputs["label"], verdicts.label)
        assert np.array_equal(np.array(REASONS)[outputs["reason"]], reasons)
        np.testing.assert_allclose(outputs["certified_radius"], verdicts.radius, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(compiled, tmp_path):
    guard, _, x = compiled
    guard.save(tmp_path / "guard.keras")
    loaded = keras.models.load_model(tmp_path / "guard.keras")
    assert loaded.is_final
    assert isinstance(loaded.base, PolytopeNet)
    assert np.array_equal(loaded.verdicts(x).label, guard.verdicts(x).label)
    assert np.array_equal(loaded.reasons(x), guard.reasons(x))


def test_batches_keep_to_the_memory_budget_of_the_model():
    """Verdicts, reasons, scores and radii of many inputs are computed in parts, and are what they were."""
    network = polytopes.sequential((6, 6, 1), layers.Conv2D(2, 3, activation="relu"), layers.Flatten(), layers.Dense(3))
    polytopes.randomised(network, np.random.default_rng(3))
    x = np.random.default_rng(4).uniform(size=(7, 6, 6, 1)).astype("float32")
    small, large = (
        MembershipGuard(
            PolytopeNet(network, epsilon=0.02, slope="wong-kolter", radius_steps=1, memory_budget=budget),
            StoredPoints(x),
        )
        for budget in (1, 2**28)
    )
    with polytopes.eagerly():
        reasons, radius, scores = large.reasons(x), large.verdicts(x).radius, np.asarray(large(x))
    assert small.rows_at_once == 1
    assert np.array_equal(small.reasons(x), reasons)
    np.testing.assert_allclose(small.verdicts(x).radius, radius, atol=1e-6)
    np.testing.assert_allclose(small(x), scores, atol=1e-5)
    np.testing.assert_allclose(small.certified_radius(x), radius, atol=1e-6)

    sizes = []
    for name, graph in dict(small._compiled.kept).items():
        small._compiled.kept[name] = lambda batch, graph=graph: sizes.append(len(batch)) or graph(batch)
    for ask in (small.reasons, small.verdicts, small, small.certified_radius):
        ask(x)
    assert sizes == [1] * 4 * len(x)
