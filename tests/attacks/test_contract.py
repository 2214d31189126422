"""What every attack keeps to, as a table: attacks x models."""

import functools
import gc
import json
import weakref
from typing import NamedTuple

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from attacked import EPSILON, MODELS, SHORT, convolutional_l2, inputs
from nets import affine

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


class Case(NamedTuple):
    name: str
    attack: Attack
    other_seed: Attack | None = None
    """The same with another seed, where the seed matters."""


BOX = (-0.1, 1.1)
STARTS = np.random.default_rng(3).uniform(size=(3, 4, 4, 2))

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


WEIGHTS = np.random.default_rng(0).normal(size=(6, 5))


@functools.cache
def _planes():
    return affine(WEIGHTS, epsilon=EPSILON)


def planes():
    """The one model whose weights and radius tests change: whoever takes it gets it as it was."""
    model = _planes()
    model.network.layers[-1].kernel.assign(WEIGHTS)
    model.epsilon = EPSILON
    return model


def cloud(n=21):
    return np.random.default_rng(6).normal(size=(n, 6)).astype("float32")


def test_a_model_in_training_is_attacked_as_it_is_now():
    model, x = planes(), cloud()
    attack = CertificateDescent(**SHORT)
    before = attack(model, x)
    kernel = model.network.layers[-1].kernel
    kernel.assign(-kernel)
    after = attack(model, x)
    assert (before != after).any()
    np.testing.assert_array_equal(attack(affine(-WEIGHTS, epsilon=EPSILON), x), after)


def test_the_radius_is_read_at_every_call():
    model, x = planes(), cloud()
    for epsilon in (0.1, 0.3):
        model.epsilon = epsilon
        assert distances(x, CertificateDescent(**SHORT)(model, x), "l2").max() == pytest.approx(epsilon, rel=1e-4)


def test_a_model_that_is_not_final_can_be_attacked(models):
    model = models["l2"]
    thawed = defended.GloroNet(model.network, epsilon=EPSILON)
    assert not thawed.is_final
    assert np.isfinite(PGD(**SHORT)(thawed, inputs())).all()
    assert not thawed.is_final, "the network's logits need no proof"
    found = CertificateDescent(**SHORT)(thawed, inputs())
    assert thawed.is_final, "radii do"
    np.testing.assert_array_equal(found, CertificateDescent(**SHORT)(model, inputs()))


def test_attacks_keep_no_model_alive():
    model = affine(WEIGHTS, epsilon=EPSILON)
    for attack in (
        CertificateDescent(**SHORT, targets=2), PGD(**SHORT), CarliniWagner(**CARLINI_WAGNER), SquareAttack(**SQUARE),
        DecisionAttack(**DECISION), from_foolbox(foolbox.attacks.L2FastGradientAttack()),
    ):  # fmt: skip
        attack(model, cloud())
    alive = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None


def test_a_network_without_gradients():
    network = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Flatten(), keras.layers.Dense(5)])
    stopped = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Lambda(tf.stop_gradient), network])
    model = convolutional_l2()
    model.network = stopped
    with pytest.raises(ValueError, match="no gradient"):
        PGD(**SHORT)(model, inputs(4))


def test_logits_that_are_not_finite_leave_points_that_are():
    model = planes()
    kernel = model.network.layers[-1].kernel
    kernel.assign(np.where(np.arange(5) == 3, np.nan, np.array(kernel)))
    for attack in (PGD(**SHORT), CertificateDescent(**SHORT)):
        assert np.isfinite(attack(model, cloud(4))).all()
