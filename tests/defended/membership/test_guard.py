"""MembershipGuard over stored points: verdicts worked by hand, soundness by search, its life as a DefendedModel."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from nets import finalized, randomised, sequential, set_weights

from defended import DefendedModel, GloroNet, MembershipGuard, SmoothedNet
from defended.attacks import CertificateDescent, susceptibility
from defended.defended_model import Verdicts
from defended.margins import competitor_radii, predicted_class, radius_slack
from defended.membership import REASONS, StoredPoints
from defended.membership.decision import Reach, decide, still_answered
from defended.membership.guard_certificate import ROOM
from defended.membership.oracle import Nearest

EPSILON = 0.25
A, B = [0.5, 0.0], [-0.5, 0.0]


def line(epsilon=EPSILON):
    """Logits (x0, -x0) in two dimensions: class 0 to the right, the certified radius is |x0|, less some rounding."""
    network = sequential((2,), keras.layers.Dense(2))
    set_weights(network.layers[-1], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0])
    return finalized(network, epsilon)


@functools.cache
def shared_line():
    """A line that no test changes."""
    return line()


def guarded(points, y=None, model=None, **options):
    guard = MembershipGuard(model or shared_line(), StoredPoints(np.array(points), y, domain=None), **options)
    guard.finalize()
    return guard


@functools.cache
def shared_guard(accept):
    """A guard of the line by A and B that no test changes; accepting, it reaches 0.75 - 0.25 = 0.5."""
    return guarded([A, B], accept=accept, separation=0.75 if accept == "separated" else None)


@functools.cache
def _strict_guard():
    return guarded([A, B])


def strict_guard(points):
    """The one strict guard whose two points tests change: whoever takes it gives it points."""
    guard = _strict_guard()
    guard.oracle.points.assign(points)
    guard.finalize()
    return guard


@functools.cache
def taught_guard():
    """A guard that no test changes: at 0.3 the model proves class 0, and a point beside it is of class 1."""
    return guarded([[0.3, 0.1], A], [1, 0])


@keras.saving.register_keras_serializable(package="test_membership")
class LinearMaxNorm(DefendedModel):
    """Logits of one Dense layer, certified in the maximum norm: K_ij is the l1 norm of w_j - w_i."""

    certificate_method, certificate_assumptions = "l1 norms of a linear map", ()

    def __init__(self, network, *, epsilon, name=None, **kwargs):
        super().__init__(network, epsilon=epsilon, norm="linf", name=name, **kwargs)

    def _rows(self, logits):
        kernel = ops.convert_to_tensor(self.network.layers[-1].kernel)
        constants = ops.sum(ops.abs(kernel[:, :, None] - kernel[:, None]), axis=0)
        return ops.take(constants, predicted_class(logits), axis=0)

    def _radii(self, inputs, logits, frozen=False):
        return competitor_radii(logits, self._rows(logits))

    def _slack(self, inputs, logits, epsilon, training, frozen=False):
        return radius_slack(logits, self._rows(logits), epsilon)

    def _prove(self):
        pass

    def _digest(self):
        return 1


def max_norm(rng, epsilon, features=4, classes=3):
    network = sequential((features,), keras.layers.Dense(classes))
    return LinearMaxNorm(randomised(network, rng), epsilon=epsilon)


# By hand.


def test_a_point_of_another_class_within_epsilon_rejects_for_certain():
    """x' = 0.05 is labelled 0, the stored point at -0.1 is labelled 1 and 0.15 away."""
    guard = strict_guard([[-0.1, 0.0], A])
    x = np.array([[0.05, 0.0], [0.2, 0.0], [0.3, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    assert guard.reasons(x).tolist() == ["adversarial", "not certified", "answered", "not finite", "adversarial"]
    assert guard.verdicts(x).label.tolist() == [-1, -1, 0, -1, -1]
    assert guard.verdicts(x).radius == pytest.approx([0.05, 0.2, 0.3, 0.0, 0.0], abs=1e-5)


def test_given_classes_overrule_a_certificate():
    """At 0.3 the model proves class 0; a stored point beside it, 0.1 away, is of class 1."""
    x = np.array([[0.3, 0.0], [0.9, 0.0]])
    assert strict_guard([[0.3, 0.1], A]).verdicts(x).label.tolist() == [0, 0]
    guard = taught_guard()
    assert guard.verdicts(x).label.tolist() == [-1, 0]
    assert guard.reasons(x).tolist() == ["adversarial", "answered"]
    # The certified radius at 0.9 is 0.9, but 0.6083 away is the point that would make it reject.
    assert guard.verdicts(x).radius == pytest.approx([0.1, np.hypot(0.6, 0.1)], abs=1e-5)


def test_neighbours_of_one_class_answer_what_the_check_rejects():
    """reach = 0.75 - 0.25 = 0.5. At 0.1: own 0.4, other 0.6, r 0.1, so the input may move by 0.1."""
    guard = shared_guard("separated")
    assert guard.reach == pytest.approx(0.5)
    x = np.array([[0.1, 0.0], [0.3, 0.0], [0.02, 0.0], [0.05, 0.4], [0.1, 3.0]])
    verdicts = guard.verdicts(x)
    assert verdicts.label.tolist() == [0, 0, 0, -1, -1]
    # The certificate is the model's own; at 0.3 neighbours have epsilon + min(0.5 - 0.2, 0.8 - 0.5, 0.3).
    assert verdicts.radius == pytest.approx([0.1, 0.3, 0.02, 0.05, 0.1], abs=1e-4)
    neighbourly = ops.convert_to_numpy(guard.neighbour_radius(x.astype("float32")))
    assert neighbourly == pytest.approx([0.35, 0.55, 0.27, 0, 0], abs=1e-4)
    availability = ops.convert_to_numpy(guard.availability_radius(x.astype("float32")))
    assert availability == pytest.approx([0.1, 0.3, 0.02, 0, 0], abs=1e-4)
    assert guard.reasons(x).tolist() == ["answered"] * 3 + ["not certified"] * 2
    # With the smallest separation, 2 epsilon, the stored point is too far: 0.4 > 0.25.
    assert guarded([A, B], accept="separated").verdicts(x[:1]).label.tolist() == [-1]


def test_neighbours_of_two_classes_answer_nothing():
    """reach 0.6: at 0.02, own is 0.48 and other 0.52; the assumption allows no valid input within epsilon of there."""
    guard = guarded([A, B], accept="separated", separation=0.85)
    x = np.array([[0.02, 0.0], [0.2, 0.0]])
    assert guard.reasons(x).tolist() == ["not certified", "answered"]


def test_the_model_must_agree_with_the_neighbours():
    """The only point near is of class 1, the model says 0: no answer, whichever mode."""
    guard = guarded([[0.4, 0.0], [-0.9, 0.0]], [1, 0], accept="separated", separation=0.75)
    x = np.array([[0.05, 0.0], [0.2, 0.0], [0.6, 0.0]])
    assert guard.reasons(x).tolist() == ["not certified", "adversarial", "adversarial"]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_closed_ball_counts(norm):
    """At exactly epsilon, a number of float32, a stored point is found; at the next float32 beyond 1e-5 it is not."""
    points = [[-0.125, 0.0], [-0.125, 8.0]]
    if norm == "l2":
        guard = strict_guard(points)
    else:
        model = max_norm(np.random.default_rng(0), EPSILON, 2, 2)
        set_weights(model.network.layers[-1], [[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0])
        guard = guarded(points, model=model)
    x = np.array([[0.125, 0.0], [0.125 + 2e-5, 8.0]], "float32")
    assert guard.reasons(x).tolist() == ["adversarial", "not certified"]


# What holds for any model.


@functools.cache
def random_guard(norm):
    """Return a guard, its points and inputs near them; no test changes them."""
    rng = np.random.default_rng({"l2": 0, "linf": 2}[norm])
    if norm == "linf":
        model = max_norm(rng, 0.03)
    else:
        body = keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)
        model = finalized(randomised(sequential((4,), *body), rng), 0.05)
    # Without biases, boundaries meet at the origin, and the points lie around it.
    for variable in model.network.variables:
        if "bias" in variable.path:
            variable.assign(np.zeros(variable.shape))
    points = (0.2 * rng.uniform(0, 1, (60, 1)) ** 2 * rng.standard_normal((60, 4))).astype("float32")
    model.finalize()
    guard = MembershipGuard(model, StoredPoints(points, domain=None))
    guard.finalize()
    x = (points[rng.integers(0, 60, 400)] + 0.02 * rng.standard_normal((400, 4))).astype("float32")
    return guard, points, x


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_strict_answers_are_the_models_and_reasons_are_true(norm):
    """A sound certificate leaves no differently labelled point in the ball; brute force checks every `adversarial`."""
    guard, points, x = random_guard(norm)
    ours, base = guard.verdicts(x), guard.base.verdicts(x)
    assert np.array_equal(ours.label, base.label)
    assert np.array_equal(ours.radius, base.radius) or np.allclose(ours.radius, base.radius, atol=1e-6)
    label = np.argmax(guard.undefended_logits(x), axis=1)
    of_points = np.argmax(guard.undefended_logits(points), axis=1)
    delta = np.abs(x[:, None].astype("float64") - points[None])
    distance = np.sqrt(np.square(delta).sum(-1)) if norm == "l2" else delta.max(-1)
    found = ((distance <= float(guard.epsilon)) & (label[:, None] != of_points[None])).any(axis=1)
    reasons = guard.reasons(x)
    assert np.array_equal(reasons == "adversarial", found & ours.rejected)
    assert np.array_equal(reasons == "answered", ~ours.rejected)
    assert found.sum() > 10
    assert (~ours.rejected).sum() > 10


def test_given_classes_only_ever_take_answers_away():
    guard, points, x = random_guard("l2")
    taught = guarded(points, np.random.default_rng(3).integers(0, 3, len(points)), guard.base)
    base, ours = guard.base.verdicts(x), taught.verdicts(x)
    assert ((ours.label == base.label) | (ours.label == -1)).all()
    assert (ours.label != base.label).any()
    assert (ours.radius <= base.radius).all()


@functools.cache
def closed_world(norm):
    """Stored points that keep their distance, and a model that fits most of them; no test changes them."""
    rng, epsilon = np.random.default_rng(4), EPSILON
    spread = 4.5 * epsilon
    grid = spread * np.stack(np.meshgrid(*[np.arange(4)] * 2), -1).reshape(-1, 2)
    points = (grid + rng.uniform(-0.8, 0.8, grid.shape) * epsilon).astype("float32")
    labels = (grid[:, 0] + grid[:, 1] > 3 * spread).astype(int)
    network = sequential((2,), keras.layers.Dense(2))
    normal = np.array([[-1.0, 1.0], [-1.0, 1.0]])
    set_weights(network.layers[-1], normal, [3.5 * spread, -3.5 * spread])
    model = finalized(network, epsilon) if norm == "l2" else LinearMaxNorm(network, epsilon=epsilon)
    guard = MembershipGuard(model, StoredPoints(points, labels, domain=None), accept="separated")
    guard.finalize()
    return guard, points, labels


def on_the_sphere(rng, shape, norm):
    direction = rng.standard_normal(shape)
    size = (
        np.linalg.norm(direction, axis=-1, keepdims=True) if norm == "l2" else np.abs(direction).max(-1, keepdims=True)
    )
    return direction / size


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_in_a_closed_world_answers_are_right_and_cannot_be_forced_away(norm):
    """For every stored x with r(x) > eps: each x' within eps of it is answered, and with the class of x."""
    rng, epsilon = np.random.default_rng(5), EPSILON
    guard, points, labels = closed_world(norm)
    alone, ours = guard.base.verdicts(points), guard.verdicts(points)
    certified = ~alone.rejected & (alone.label == labels)
    contested = certified & (alone.radius <= 2 * epsilon)
    assert contested.any()
    np.testing.assert_array_equal(ours.radius, alone.radius)
    availability = ops.convert_to_numpy(guard.availability_radius(points.astype("float32")))
    assert (availability[certified] > epsilon).all()
    moved = points[:, None] + epsilon * on_the_sphere(rng, (len(points), 400, 2), norm)
    flat = (moved * 1.0).reshape(-1, 2).astype("float32")
    label = guard.verdicts(flat).label.reshape(len(points), -1)
    assert ((label == labels[:, None]) | (label == -1)).all()
    assert (label[certified] >= 0).all()
    # The check alone can be forced.
    assert (guard.base.verdicts(flat).rejected.reshape(label.shape)[contested]).any()


def test_an_input_stays_answered_within_its_availability_radius():
    rng = np.random.default_rng(0)
    guard, points, _ = closed_world("l2")
    x = (points[:, None] + 0.4 * rng.standard_normal((len(points), 120, 2))).reshape(-1, 2).astype("float32")
    verdicts = guard.verdicts(x)
    room = ops.convert_to_numpy(guard.availability_radius(x)).astype("float64")
    answered = ~verdicts.rejected & (room > 1e-5)
    by_neighbours = answered & guard.base.verdicts(x).rejected
    assert by_neighbours.sum() > 5
    moved = x[:, None] + (room * (1 - 1e-5))[:, None, None] * on_the_sphere(rng, (len(x), 30, 2), "l2")
    after = guard.verdicts(moved.reshape(-1, 2).astype("float32")).label.reshape(len(x), -1)
    assert (after[answered] == verdicts.label[answered][:, None]).all()


def test_measuring_finds_that_nothing_can_be_degraded_in_a_closed_world():
    guard, points, labels = closed_world("l2")
    attack = CertificateDescent(steps=20, early_stop=True)
    alone = susceptibility(guard.base, points, labels, attack, progress=False)
    ours = susceptibility(guard, points, labels, attack, progress=False)
    assert alone.fpr_lower > 0
    assert ours.fpr_upper == 0
    assert ours.vra_under_attack == ours.vra >= alone.vra > alone.vra_under_attack


def test_the_radius_is_the_smallest_of_the_competitors():
    for accept in ("strict", "separated"):
        guard = shared_guard(accept)
        x = np.random.default_rng(7).uniform(-1, 1, (200, 2)).astype("float32")
        smallest = ops.convert_to_numpy(guard.competitor_radii(x)).min(axis=1)
        radius = ops.convert_to_numpy(guard.certified_radius(x))
        answered = radius > EPSILON
        np.testing.assert_allclose(radius[answered], smallest[answered], rtol=1e-5)
        assert (smallest[~answered] <= EPSILON * (1 + 1e-5)).all()


def test_attacks_descend_through_the_oracle():
    """At (0.35, 0) only a stored point of class 1 at (0.35, 0.4) can take the answer away: the attack must go there."""
    guard = guarded([[0.4, 0.4], A], [1, 0], model=line(0.2))
    x = np.array([[0.45, 0.1]], "float32")
    assert guard.verdicts(x).label[0] == 0
    attacked = CertificateDescent(steps=30)(guard, x)
    assert guard.reasons(attacked).tolist() == ["adversarial"]
    assert attacked[0, 1] > 0.2
    assert guard.base.verdicts(attacked).label[0] == 0


# Its life.


def test_training_trains_the_model_and_labels_the_points_anew():
    rng = np.random.default_rng(8)
    x = rng.uniform(size=(512, 2)).astype("float32")
    y = (x[:, 0] + x[:, 1] > 1).astype(int)
    points = np.array([[0.2, 0.2], [0.8, 0.8]])
    network = sequential((2,), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2))
    guard = MembershipGuard(GloroNet(network, epsilon=0.05), StoredPoints(points))
    assert not guard.is_final
    assert "not final" in repr(guard)
    guard.compile(keras.optimizers.Adam(0.05), metrics=["clean_accuracy", "vra"])
    history = guard.fit(x, y, epochs=4, batch_size=64, verbose=0, validation_data=(x, y), validation_batch_size=512)
    assert history.history["val_vra"][-1] > 0.7
    assert guard.is_final
    assert guard.base.is_final
    assert guard.oracle.labels.numpy().tolist() == [0, 1]
    guard.fit(x, 1 - y, epochs=10, batch_size=64, verbose=0)
    assert guard.oracle.labels.numpy().tolist() == [1, 0]


def test_until_it_is_final_nothing_is_answered():
    model = line()
    guard = MembershipGuard(model, StoredPoints(np.array([A, B]), domain=None), accept="separated", separation=0.75)
    x = np.array([[0.1, 0.0], [0.3, 0.0]])
    judge = tf.function(lambda x: guard(x), autograph=False)
    assert not guard.is_final
    assert ops.convert_to_numpy(judge(x)).argmax(axis=1).tolist() == [2, 2], "a graph of nothing proven rejects"
    assert guard.verdicts(x).label.tolist() == [0, 0], "what is not proven is proven first"
    assert guard.is_final
    assert ops.convert_to_numpy(judge(x)).argmax(axis=1).tolist() == [0, 0]


def test_weights_changed_behind_its_back_void_the_proof():
    guard = guarded([A, B], model=line())
    for judge in (guard.verdicts, guard.reasons):
        guard.base.network.layers[-1].kernel.assign(np.asarray(guard.base.network.layers[-1].kernel) * [[-1], [1]])
        assert not guard.is_final
        judge(np.array([A]))
        assert guard.is_final, "proven again before the answer"
    guard.oracle.points.assign([[0.0, 0.0], [1.0, 1.0]])
    assert not guard.is_final


def test_epsilon_moves_both_and_asks_for_a_new_check():
    guard = guarded([A, B], model=line(), accept="separated")
    guard.epsilon = 0.2
    assert float(guard.base.epsilon) == float(guard.epsilon) == np.float32(0.2)
    assert guard.is_final
    assert guard.reach == pytest.approx(0.2, rel=0.01)
    guard.epsilon = 0.4
    assert not guard.is_final
    guard.finalize()
    guard.epsilon = 0.6  # A and B are 1 apart
    with pytest.raises(ValueError, match=r"1 pairs of stored points .* 1 apart.*at most 0\.49"):
        guard.finalize()
    assert not guard.is_final
    fixed = MembershipGuard(line(), stored(), accept="separated", separation=0.75)
    with pytest.raises(ValueError, match=r"2 epsilon = 0\.8"):
        fixed.epsilon = 0.4
    assert float(fixed.epsilon) == EPSILON


def test_the_largest_epsilon_named_is_accepted():
    points, y = np.array([[0.0, 0.0], [0.3, 0.4], [9.0, 9.0]]), [0, 1, 1]
    guard = MembershipGuard(line(0.3), StoredPoints(points, y, domain=None), accept="separated")
    with pytest.raises(ValueError, match=r"0\.5 apart") as error:
        guard.finalize()
    named = float(str(error.value).split("at most ")[1].split(",")[0])
    assert 0.245 < named < 0.25
    guard.epsilon = named
    guard.finalize()


def test_its_assumptions_are_those_of_its_answers():
    model, strict, accepting = shared_line(), shared_guard("strict"), guarded([A, B], accept="separated")
    assert strict.certificate_assumptions == model.certificate_assumptions
    added = accepting.certificate_assumptions[len(model.certificate_assumptions) :]
    assert len(added) == 1
    assert "0.500" in added[0]
    assert "whether stored or not" in added[0]
    assert "2 stored points" in accepting.certificate_method


@pytest.mark.parametrize("make", [taught_guard, lambda: shared_guard("separated")])
def test_saved_and_loaded(tmp_path, make):
    """Strict with given classes, and accepting with the model's own."""
    guard = make()
    guard.save(tmp_path / "guard.keras")
    loaded = keras.models.load_model(tmp_path / "guard.keras")
    assert loaded.is_final
    assert loaded.get_config()["separation"] == guard.separation
    x = np.random.default_rng(9).uniform(-1, 1, (50, 2))
    for ours, theirs in zip(guard.verdicts(x), loaded.verdicts(x), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(guard.reasons(x), loaded.reasons(x))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_faiss_and_the_graph_judge_alike(norm):
    guard, points, labels = closed_world(norm)
    oracle = StoredPoints(points, labels, domain=None, max_in_graph=1)
    outside = MembershipGuard(guard.base, oracle, accept="separated")
    outside.finalize()
    x = np.random.default_rng(11).uniform(-1, 4, (400, 2))
    assert np.array_equal(guard.verdicts(x).label, outside.verdicts(x).label)
    assert np.array_equal(guard.reasons(x), outside.reasons(x))
    assert {*guard.reasons(x)} >= {"answered", "not certified"}
    with pytest.raises(RuntimeError, match="cannot be exported"):
        outside.deployed(x)


# Bad input.


def stored(**options):
    return StoredPoints(np.array([A, B]), domain=None, **options)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: StoredPoints(np.zeros((0, 2))), ValueError, "at least one point"),
        (lambda: StoredPoints(np.zeros(3)), ValueError, "at least one point"),
        (lambda: StoredPoints(np.array([[0.0, np.nan]])), ValueError, "1 of 1 points hold NaN"),
        (lambda: StoredPoints(np.array([[0.0, 255.0]])), ValueError, "domain .*255"),
        (lambda: StoredPoints(np.array([["a", "b"]])), TypeError, "real numbers"),
        (lambda: StoredPoints(np.zeros((2, 2)), [0]), ValueError, "2 class numbers"),
        (lambda: StoredPoints(np.zeros((2, 2)), [0, -1]), ValueError, "class numbers"),
        (lambda: StoredPoints(np.zeros((2, 2)), [0.0, 1.0]), ValueError, "class numbers"),
        (lambda: MembershipGuard(shared_line(), StoredPoints(np.zeros((2, 3)))), ValueError, r"shape \[2\].*\[3\]"),
        (lambda: MembershipGuard(shared_line(), StoredPoints(np.zeros((2, 2)), [0, 2])), ValueError, "0 to 1.*up to 2"),
        (lambda: MembershipGuard(shared_line(), stored(), 0), ValueError, "`budget`.*is the model itself"),
        (lambda: MembershipGuard(shared_line(), stored(), -3), ValueError, "`budget`"),
        (lambda: MembershipGuard(shared_line(), stored(), 1.5), ValueError, "`budget`"),
        (lambda: MembershipGuard(shared_line(), stored(), accept="all"), ValueError, "'strict', 'separated'"),
        (lambda: MembershipGuard(shared_line(), stored(), separation=1.0), ValueError, "Leave it None"),
        (
            lambda: MembershipGuard(shared_line(), stored(), accept="separated", separation=0.5),
            ValueError,
            "2 epsilon = 0.5",
        ),
        (lambda: MembershipGuard(shared_line(), stored(), accept="separated", separation=np.nan), ValueError, "finite"),
        (lambda: MembershipGuard(shared_line(), "points"), TypeError, "MembershipOracle"),
        (lambda: MembershipGuard(shared_line().network, stored()), TypeError, "defended model"),
        (lambda: MembershipGuard(shared_guard("strict"), stored()), TypeError, "guarded already"),
        (lambda: shared_guard("strict").reasons(np.zeros((3, 5))), ValueError, r"\[n, 2\]"),
    ],
)
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_model_that_draws_its_verdicts_is_refused():
    network = sequential((2,), keras.layers.Dense(2))
    with pytest.raises(TypeError, match="draws its verdicts"):
        MembershipGuard(SmoothedNet(network, epsilon=0.1, sigma=0.25, samples=1000, mode="fixed"), stored())


def test_points_where_the_model_overflows_are_refused():
    network = sequential((2,), keras.layers.Dense(2))
    set_weights(network.layers[-1], [[1e30, 0.0], [0.0, 0.0]], [0.0, 0.0])
    model = finalized(network, 0.25)
    with pytest.raises(ValueError, match="not finite at 1 stored points, the first at index 1"):
        guarded([[0.0, 0.0], [1e30, 0.0]], model=model)


def test_nobody_is_answered_without_a_finite_input():
    guard = shared_guard("separated")
    x = np.array([[np.inf, 0.0], [0.5, np.nan], [-np.inf, np.nan], [3e38, -3e38]])
    verdicts = guard.verdicts(x)
    assert isinstance(verdicts, Verdicts)
    assert verdicts.rejected[:3].all()
    assert (verdicts.radius[:3] == 0).all()
    assert guard.reasons(x)[:3].tolist() == ["not finite"] * 3
    assert np.isfinite(ops.convert_to_numpy(guard(x))).all()
    assert not len(guard.reasons(np.zeros((0, 2))))
    assert set(guard.reasons(x)) <= set(REASONS)


def test_availability_by_neighbours_counts_roundings_at_the_point_too():
    """Straight away from the stored point: half a thousandth of the room within it, neighbours still answer."""
    rng, one = np.random.default_rng(12), np.ones(300, "float32")
    epsilon, room = rng.uniform(0.05, 1, 300).astype("float32"), (10.0 ** rng.uniform(-6, -3, 300)).astype("float32")
    far = epsilon * np.float32(1 + 2 * ROOM)
    reach = Reach(epsilon, far, accepting=True)
    near = Nearest(far - room, 1e3 * one)
    left = ops.convert_to_numpy(still_answered(-one, epsilon / 2, near, reach)).astype("float64")
    assert (left > 0).sum() > 100
    moved = Nearest(np.nextafter((near.own + 0.999 * left).astype("float32"), np.float32(np.inf)), 900 * one)
    found = decide(np.float32(0.4) * epsilon, np.float32(0.4) * epsilon, moved, reach)
    assert ops.convert_to_numpy(found.by_neighbours)[left > 0].all()
    assert (ops.convert_to_numpy(found.neighbour_radius) > epsilon)[left > 0].all()


def test_availability_counts_what_an_in_graph_search_loses_there():
    """A distance is found low by what its squares lose, which near epsilon is more than a rounding."""
    epsilon, blur, other = np.float32(0.1412), np.float32(2.6e-3), 0.2
    reach = Reach(epsilon, epsilon * (1 + 2 * ROOM), accepting=False, blur=blur)
    left = float(still_answered(np.float32(1), np.float32(1), Nearest(np.float32(1), np.float32(other)), reach))
    assert left < other - epsilon
    # Where the point has moved so far, the distance is found as low as it may.
    assert np.sqrt((other - left) ** 2 - float(blur) ** 2) > epsilon
