"""How attacks are configured and called, and what they say of arguments that do not fit."""

import inspect
import pickle
import re

import numpy as np
import pytest
from attacked import SHORT, inputs

from defended import attacks
from defended.attacks import PGD, CarliniWagner, CertificateDescent, DegradationAttack
from defended.attacks.core.attack import Attack


def declares_its_arguments(name):
    kind = getattr(attacks, name)
    return isinstance(kind, type) and issubclass(kind, Attack) and kind is not Attack


@pytest.mark.parametrize("name", [name for name in attacks.__all__ if declares_its_arguments(name)])
def test_every_argument_is_documented(name):
    """Of each keyword of a constructor, and of nothing else, the docstring says what it means."""
    attack = getattr(attacks, name)
    section = re.search(r"^Args:\n((?:    .*\n?)+)", inspect.getdoc(attack), re.MULTILINE).group(1)
    documented = re.findall(r"^    (\w+): \S", section, re.MULTILINE)
    assert sorted(documented) == sorted(inspect.signature(attack).parameters)


def test_an_attack_is_configured_once():
    attack = PGD(steps=3)
    with pytest.raises(AttributeError):
        attack.steps = 4
    assert repr(attack) == "PGD(steps=3)"
    assert repr(pickle.loads(pickle.dumps(attack))) == repr(attack)
    assert attack == attack
    assert attack != PGD(steps=3)
    assert len({attack, PGD(steps=3)}) == 2


# Bad input.

X = inputs(4)
NAN = np.where(np.arange(4)[:, None, None, None] == 2, np.nan, X).astype("float32")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PGD(steps=0), "`steps` must be a whole number, at least 1. Received: steps=0"),
        (lambda: CertificateDescent(steps=0), "`steps` must be a whole number, at least 1. Received: steps=0"),
        (lambda: CertificateDescent(restarts=0), "`restarts`"),
        (lambda: CertificateDescent(targets=0), "`targets`"),
        (lambda: PGD(epsilon=0), "`epsilon` must be a positive finite number. Received: epsilon=0"),
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
    [
        (lambda: PGD(steps=2.5), "whole number"),
        (lambda: PGD(10), "positional"),
        (lambda: DegradationAttack(3), "must be an attack"),
    ],
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
