"""What every attack keeps to, as a table: attacks x models."""

import gc
import json
import weakref
from typing import NamedTuple

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import defended
from defended.attacks import (
    PGD,
    CarliniWagner,
    CertificateDescent,
    DecisionAttack,
    DegradationAttack,
    EpsilonPGD,
    SquareAttack,
    from_foolbox,
)
from defended.attacks.core.attack import Attack
from defended.attacks.core.balls import distances
from defended.margins import certified_slack, competitor_radii, predicted_class

EPSILON = 0.4
SURE = [6, 0, 0, 0, 0]  # a bias with which many inputs are certified


@keras.saving.register_keras_serializable(package="tests")
class LinearLinf(defended.DefendedModel):
    """An l-inf certificate for a single Dense layer, exact: K_ij = ‖w_i - w_j‖₁."""

    certificate_method = "exact, linear"
    certificate_assumptions = ()

    def __init__(self, network, outputs=None, *, epsilon, **kwargs):
        super().__init__(network, outputs, epsilon=epsilon, norm="linf", **kwargs)

    def _rows(self, logits):
        columns = ops.transpose(self.network.layers[-1].kernel)
        matrix = ops.sum(ops.abs(columns[:, None] - columns[None]), axis=-1)
        return ops.take(matrix, predicted_class(logits), axis=0)

    def _slack(self, inputs, logits, epsilon, training, frozen=False):
        return certified_slack(logits, self._rows(logits), epsilon)

    def _radii(self, inputs, logits, frozen=False):
        return competitor_radii(logits, self._rows(logits))

    def _prove(self):
        pass

    def _digest(self):
        return 1


def convolutional_l2():
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(4, 3, padding="same"),
            defended.layers.MinMax(),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    network.layers[-1].bias.assign(SURE)
    model = defended.GloroNet(network, epsilon=EPSILON)
    model.finalize()
    return model


def linear_linf():
    keras.utils.set_random_seed(2)
    network = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Flatten(), keras.layers.Dense(5)])
    network.layers[-1].bias.assign(SURE)
    model = LinearLinf(network, epsilon=EPSILON)
    model.finalize()
    return model


MODELS = {"l2": convolutional_l2, "linf": linear_linf}


@pytest.fixture(scope="module")
def models():
    return {norm: make() for norm, make in MODELS.items()}


class Case(NamedTuple):
    name: str
    attack: Attack
    other_seed: Attack | None = None
    """The same with another seed, where the seed matters."""


BOX = (-0.1, 1.1)
STARTS = np.random.default_rng(3).uniform(size=(3, 4, 4, 2))

# One batch size, so that each loop is compiled once.
SHORT = {"steps": 4, "batch_size": 16}
CARLINI_WAGNER = {**SHORT, "binary_search_steps": 2, "learning_rate": 0.02, "initial_const": 1.0}
SQUARE = {"queries": 30, "batch_size": 16}
DECISION = {"queries": 120, "samples": 20}

CASES = [
    Case("PGD", PGD(**SHORT), PGD(**SHORT, seed=1)),
    Case("PGD from x", PGD(**SHORT, random_start=False)),
    Case("PGD boxed, momentum, 2 restarts", PGD(**SHORT, clip=BOX, momentum=0.5, restarts=2)),
    Case("PGD margin", PGD(**SHORT, loss="margin", step_size=0.3)),
    Case("PGD targeted", PGD(**SHORT, targeted=True)),
    Case("PGD targeted margin", PGD(**SHORT, targeted=True, loss="margin")),
    Case("PGD, radius of its own", PGD(**SHORT, epsilon=0.05)),
    Case("EpsilonPGD", EpsilonPGD(**SHORT)),
    Case("Algorithm 3.1", DegradationAttack(PGD(**SHORT)), DegradationAttack(PGD(**SHORT, seed=1))),
    Case("authors' script", DegradationAttack(PGD(**SHORT, clip=(-0.8, 1.8)), scale_to_sphere=True)),
    Case("CertificateDescent", CertificateDescent(**SHORT)),
    Case("CertificateDescent boxed", CertificateDescent(**SHORT, clip=BOX)),
    Case(
        "CertificateDescent, targets and restarts",
        CertificateDescent(**SHORT, targets=3, restarts=2),
        CertificateDescent(**SHORT, targets=3, restarts=2, seed=1),
    ),
    Case("CarliniWagner", CarliniWagner(**CARLINI_WAGNER)),
    Case("CarliniWagner boxed, 2 targets", CarliniWagner(**CARLINI_WAGNER, targets=2, clip=BOX, confidence=0.1)),
    Case("CarliniWagner targeted", CarliniWagner(**CARLINI_WAGNER, targeted=True)),
    Case("Algorithm 3.1 of CarliniWagner", DegradationAttack(CarliniWagner(**CARLINI_WAGNER))),
    Case("Square", SquareAttack(**SQUARE), SquareAttack(**SQUARE, seed=1)),
    Case("Square boxed, against the certificate", SquareAttack(**SQUARE, clip=BOX, objective="certificate")),
    Case("Decision", DecisionAttack(**DECISION), DecisionAttack(**DECISION, seed=1)),
    Case("Decision boxed, from starts", DecisionAttack(**DECISION, clip=(-9, 9), starts=9 * STARTS)),
    Case(
        "foolbox PGD",
        from_foolbox(foolbox.attacks.L2PGD(steps=2)),
        from_foolbox(foolbox.attacks.L2PGD(steps=2), seed=1),
    ),
    Case("foolbox DeepFool boxed", from_foolbox(foolbox.attacks.L2DeepFoolAttack(steps=1, candidates=2), clip=BOX)),
]

for_every_attack = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
for_every_norm = pytest.mark.parametrize("norm", MODELS)
# In l-inf only projections and steps differ: one objective of each kind, with and without a box.
LINF = (
    "PGD",
    "PGD boxed, momentum, 2 restarts",
    "Algorithm 3.1",
    "CertificateDescent",
    "CertificateDescent boxed",
    "Square",
    "Square boxed, against the certificate",
    "Decision",
    "Decision boxed, from starts",
)
BOTH_NORMS = [("l2", case) for case in CASES] + [("linf", case) for case in CASES if case.name in LINF]
for_both_norms = pytest.mark.parametrize(
    ("norm", "case"), BOTH_NORMS, ids=[f"{norm}, {c.name}" for norm, c in BOTH_NORMS]
)


def inputs(n=21):
    return np.random.default_rng(5).uniform(size=(n, 4, 4, 2)).astype("float32")


@for_both_norms
def test_results_keep_to_ball_and_box(models, case, norm):
    model, x = models[norm], inputs()
    attacked = case.attack(model, x)
    assert isinstance(attacked, np.ndarray)
    assert (attacked.dtype, attacked.shape) == (np.float32, x.shape)
    assert np.isfinite(attacked).all()
    radius = float(case.attack.epsilon or np.float32(EPSILON))
    size = distances(x, attacked, norm)
    assert (size <= radius).all()
    assert size.max() > 0
    if case.attack.clip is not None:
        assert attacked.min() >= np.float32(case.attack.clip[0])
        assert attacked.max() <= np.float32(case.attack.clip[1])


@for_every_attack
def test_the_seed_decides_everything(models, case):
    model, x = models["l2"], inputs()
    first = case.attack(model, x)
    np.testing.assert_array_equal(case.attack(model, x), first)
    if case.other_seed is not None:
        assert (case.other_seed(model, x) != first).any()


@for_every_attack
def test_inputs_are_attacked_the_same_in_any_company(models, case):
    model, x = models["l2"], inputs(40)
    whole = case.attack(model, x)
    rows = np.array([33, 2, 17])
    np.testing.assert_allclose(case.attack(model, x[rows], index=rows), whole[rows], atol=1e-5)


@for_both_norms
def test_the_model_and_the_inputs_stay_as_they_were(models, case, norm):
    model, x = models[norm], inputs()
    before, kept = [np.array(variable) for variable in model.variables], x.copy()
    case.attack(model, x, np.arange(len(x)) % 5)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert model.is_final
    np.testing.assert_array_equal(x, kept)


@for_every_attack
def test_configurations_are_json_and_name_the_attack(case):
    config = json.loads(json.dumps(case.attack.config()))
    assert config["attack"] == type(case.attack).__name__
    assert repr(case.attack).startswith(type(case.attack).__name__ + "(")


def test_tensors_in_tensors_out(models):
    x = inputs()
    result = CertificateDescent(**SHORT)(models["l2"], tf.constant(x))
    assert tf.is_tensor(result)
    np.testing.assert_array_equal(result, CertificateDescent(**SHORT)(models["l2"], x))


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8"])
def test_other_real_types_are_converted(models, dtype):
    x = (inputs() * 4).astype(dtype)
    attacked = CertificateDescent(**SHORT)(models["l2"], x)
    assert attacked.dtype == np.float32
    assert (distances(x.astype("float32"), attacked, "l2") <= np.float32(EPSILON)).all()


def test_batches_of_any_size_give_the_same_points(models):
    x = inputs(50)
    whole = PGD(**SHORT)(models["l2"], x)
    for size in (7, 50):
        np.testing.assert_allclose(PGD(steps=4, batch_size=size)(models["l2"], x), whole, atol=1e-5)


def test_with_and_without_xla(models):
    x = inputs()
    compiled, plain = (CertificateDescent(**SHORT, jit_compile=jit)(models["l2"], x) for jit in (True, False))
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


@for_every_norm
def test_certificate_descent_lowers_the_radius_and_more_runs_lower_it_further(models, norm):
    model, x = models[norm], inputs()
    few, many = CertificateDescent(steps=20), CertificateDescent(steps=20, targets=4, restarts=2)
    clean, one, more = (np.asarray(model.certified_radius(points)) for points in (x, few(model, x), many(model, x)))
    assert (one < clean).all()
    assert (more <= one + 1e-6).all()
    # A radius falls by at most one per unit of distance, while the class holds.
    held = clean > EPSILON
    assert held.any()
    assert (clean[held] - one[held] <= EPSILON * (1 + 1e-4)).all()


def test_certificate_descent_reaches_the_optimum_of_a_linear_model(models):
    """There r(x) = min over i of (y_j - y_i) / K_ij is a distance to a plane: it can be lowered by exactly eps."""
    model, x = models["linf"], inputs()
    clean = np.asarray(model.certified_radius(x))
    held = clean > EPSILON
    assert held.any()
    reached = np.asarray(model.certified_radius(CertificateDescent(steps=50)(model, x)))
    np.testing.assert_allclose(reached[held], clean[held] - EPSILON, atol=1e-3)


def test_pgd_finds_what_exists_on_a_linear_network():
    """Two classes, y = (x, -x): points with |x| < eps have another class within eps, others have none."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
    model = defended.GloroNet(network, epsilon=0.25)
    x = np.array([[-0.6], [-0.24], [-0.1], [0.1], [0.24], [0.26]], "float32")
    wide = {"steps": 20, "step_size": 0.05}  # enough to cross the ball from any start
    for attack in (PGD(**wide), PGD(**wide, loss="margin"), PGD(**wide, targeted=True)):
        moved = network.predict(attack(model, x), verbose=0).argmax(axis=1)
        clean = network.predict(x, verbose=0).argmax(axis=1)
        np.testing.assert_array_equal(moved != clean, np.abs(x[:, 0]) < 0.25)


def test_labels_tell_pgd_what_to_leave_and_where_to_go(models):
    model, x = models["l2"], inputs()
    attacked = PGD(steps=30, epsilon=20.0)(model, x)
    predicted = np.asarray(model.network(x)).argmax(axis=1)
    assert (np.asarray(model.network(attacked)).argmax(axis=1) != predicted).mean() > 0.8
    wanted = (predicted + 1) % 5
    reached = PGD(steps=30, epsilon=20.0, targeted=True)(model, x, keras.utils.to_categorical(wanted, 5))
    assert (np.asarray(model.network(reached)).argmax(axis=1) == wanted).mean() > 0.8


@for_every_norm
def test_algorithm_31_takes_the_base_attack_half_way_back(models, norm):
    model, x, epsilon = models[norm], inputs(), float(np.float32(EPSILON))

    def base(model, x, y=None, *, epsilon):
        assert epsilon == pytest.approx(2 * EPSILON)
        shift = np.zeros_like(x)
        shift[:, 0, 0, 0], shift[:, 1, 1, 1] = 0.6, 0.1
        shift[0] *= 0.1
        return x + shift

    delta = DegradationAttack(base)(model, x) - x
    a, b = delta[:, 0, 0, 0], delta[:, 1, 1, 1]
    scale = epsilon / np.hypot(0.6, 0.1)
    expected = (0.6 * scale, 0.1 * scale) if norm == "l2" else (epsilon, 0.1)
    np.testing.assert_allclose(a[1:], expected[0], rtol=1e-5)
    np.testing.assert_allclose(b[1:], expected[1], rtol=1e-5)
    np.testing.assert_allclose((a[0], b[0]), (0.06, 0.01), rtol=1e-4)
    rescaled = DegradationAttack(base, scale_to_sphere=True)(model, x)
    np.testing.assert_allclose(distances(x, rescaled, norm), epsilon, rtol=1e-5)


def test_base_attacks_without_an_epsilon_keyword_keep_their_radius(models):
    x = inputs()
    attacked = DegradationAttack(lambda model, x, y=None: x + 0.01)(models["l2"], x)
    np.testing.assert_allclose(attacked, x + 0.01, atol=1e-6)


def test_the_published_configuration(models):
    attack = DegradationAttack.published(0.3)
    assert attack.clip == (-0.6, 1.6)
    assert attack.config()["base_attack"]["gradient_floor"] == 1e-12
    assert distances(inputs(), attack(models["l2"], inputs()), "l2").max() <= 0.3


def test_a_model_in_training_is_attacked_as_it_is_now():
    model, x = convolutional_l2(), inputs()
    attack = CertificateDescent(**SHORT)
    before = attack(model, x)
    kernel = model.network.layers[-1].kernel
    kernel.assign(-kernel)
    after = attack(model, x)
    assert (before != after).any()
    fresh = convolutional_l2()
    fresh.network.set_weights(model.network.get_weights())
    np.testing.assert_array_equal(attack(fresh, x), after)


def test_the_radius_is_read_at_every_call():
    model, x = convolutional_l2(), inputs()
    for epsilon in (0.1, 0.3):
        model.epsilon = epsilon
        assert distances(x, CertificateDescent(**SHORT)(model, x), "l2").max() == pytest.approx(epsilon, rel=1e-4)


def test_a_model_that_is_not_final_can_be_attacked():
    model = convolutional_l2()
    thawed = defended.GloroNet(model.network, epsilon=EPSILON)
    assert not thawed.is_final
    assert np.isfinite(PGD(**SHORT)(thawed, inputs())).all()
    assert not thawed.is_final, "the network's logits need no proof"
    found = CertificateDescent(**SHORT)(thawed, inputs())
    assert thawed.is_final, "radii do"
    np.testing.assert_array_equal(found, CertificateDescent(**SHORT)(model, inputs()))


def test_attacks_keep_no_model_alive():
    model = convolutional_l2()
    CertificateDescent(**SHORT, targets=2)(model, inputs())
    PGD(**SHORT)(model, inputs())
    CarliniWagner(**CARLINI_WAGNER)(model, inputs())
    SquareAttack(**SQUARE)(model, inputs())
    DecisionAttack(**DECISION)(model, inputs())
    from_foolbox(foolbox.attacks.L2FastGradientAttack())(model, inputs())
    alive = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None


# Bad input.

X = inputs(4)
NAN = np.where(np.arange(4)[:, None, None, None] == 2, np.nan, X).astype("float32")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PGD(steps=0), "`steps` must be a whole number of at least 1"),
        (lambda: CertificateDescent(steps=0), "`steps` must be a whole number of at least 1"),
        (lambda: CertificateDescent(restarts=0), "`restarts`"),
        (lambda: CertificateDescent(targets=0), "`targets`"),
        (lambda: PGD(epsilon=0), "`epsilon` must be a positive finite number"),
        (lambda: PGD(epsilon=float("nan")), "`epsilon` must be a positive finite number"),
        (lambda: PGD(step_size=-1), "`step_size`"),
        (lambda: PGD(clip=(1, 0)), "low < high"),
        (lambda: PGD(clip=0.5), "pair"),
        (lambda: PGD(norm="l1"), "'l2', 'linf'"),
        (lambda: PGD(loss="hinge"), "'crossentropy', 'margin', 'dlr'"),
        (lambda: PGD(momentum=1), "`momentum`"),
        (lambda: PGD(seed=-1), "`seed`"),
        (lambda: PGD(gradient_floor=-1), "`gradient_floor`"),
        (lambda: DegradationAttack(PGD(epsilon=0.1)), "must be None"),
        (lambda: DegradationAttack(epsilon=0), "`epsilon`"),
        (lambda: DegradationAttack(CarliniWagner(epsilon=0.1)), "must be None"),
    ],
)
def test_bad_configurations(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [(lambda: PGD(steps=2.5), "whole number"), (lambda: DegradationAttack(3), "must be an attack")],
)
def test_bad_types(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@pytest.mark.parametrize(
    ("arguments", "keywords", "match"),
    [
        ((X[:0],), {}, "empty"),
        ((X[0],), {}, r"shape \[n, 4, 4, 2\]"),
        ((X[..., :1],), {}, r"shape \[n, 4, 4, 2\]"),
        ((NAN,), {}, "1 of 4 inputs, the first at index 2"),
        ((X, [0, 1, 2]), {}, "4 class numbers"),
        ((X, [0, 1, 2, 5]), {}, r"\[0, 5\). Received: values from 0 to 5"),
        ((X, [0, 1, 2, -1]), {}, "values from -1 to 2"),
        ((X, [0, 1, 2, 0.5]), {}, "whole class numbers"),
        ((X, np.full((4, 5), 0.2)), {}, "one-hot"),
        ((X,), {"epsilon": 0.0}, "`epsilon`"),
        ((X,), {"index": [1, 2]}, "`index`"),
    ],
)
def test_bad_calls(models, arguments, keywords, match):
    for attack in (PGD(**SHORT), CertificateDescent(**SHORT), DegradationAttack(PGD(**SHORT))):
        with pytest.raises(ValueError, match=match):
            attack(models["l2"], *arguments, **keywords)


def test_complex_inputs_are_refused(models):
    with pytest.raises(TypeError, match="real numbers"):
        PGD(**SHORT)(models["l2"], X.astype("complex64"))


def test_inputs_outside_the_box(models):
    with pytest.raises(ValueError, match="lie in the box"):
        PGD(**SHORT, clip=(0.4, 0.6))(models["l2"], X)


def test_more_targets_than_competitors(models):
    with pytest.raises(ValueError, match="less than the number of classes, 5"):
        CertificateDescent(targets=5)(models["l2"], X)


@pytest.mark.parametrize(
    ("base", "match"),
    [
        (lambda model, x, y: x * np.nan, "returned NaN or infinity for 4 of 4"),
        (lambda model, x, y: x + 1, "left the l2 ball of radius 0.8"),
        (lambda model, x, y: x[:2], "shape of `x`"),
    ],
)
def test_bad_base_attacks(models, base, match):
    with pytest.raises(ValueError, match=match):
        DegradationAttack(base)(models["l2"], X)


def test_a_network_without_gradients():
    network = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Flatten(), keras.layers.Dense(5)])
    stopped = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Lambda(tf.stop_gradient), network])
    model = convolutional_l2()
    model.network = stopped
    with pytest.raises(ValueError, match="no gradient"):
        PGD(**SHORT)(model, X)


def test_logits_that_are_not_finite_leave_points_that_are():
    model = convolutional_l2()
    kernel = model.network.layers[-1].kernel
    kernel.assign(np.where(np.arange(5) == 3, np.nan, np.array(kernel)))
    for attack in (PGD(**SHORT), CertificateDescent(**SHORT)):
        assert np.isfinite(attack(model, X)).all()
