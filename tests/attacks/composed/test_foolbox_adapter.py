"""Foolbox's attacks in the adapter: what they are given, what comes back, and what is refused."""

import builtins
import json
import sys

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf

import defended
from defended.attacks import PGD, DegradationAttack, from_foolbox, susceptibility
from defended.attacks.core.balls import distances


@pytest.fixture(scope="module")
def images():
    keras.utils.set_random_seed(3)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model = defended.GloroNet(network, epsilon=0.5)
    model.finalize()
    return model, np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype("float32")


LINE = np.array([[0.1], [0.3], [0.45], [0.6], [-0.3], [-0.7]], "float32")

ATTACKS = {
    "L2PGD": foolbox.attacks.L2PGD(steps=10, rel_stepsize=0.25),
    "LinfPGD": foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25),
    "L2DeepFool": foolbox.attacks.L2DeepFoolAttack(steps=10),
    "L2FMN": foolbox.attacks.L2FMNAttack(steps=20),
    "boundary": foolbox.attacks.BoundaryAttack(steps=20),
    "noise": foolbox.attacks.L2RepeatedAdditiveGaussianNoiseAttack(repeats=3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_kind_of_attack_finds_what_exists(line, name):
    """The sign can be changed within 0.4 exactly where |x| < 0.4; in one dimension every norm is the same."""
    attack = from_foolbox(ATTACKS[name], epsilon=0.4)
    x = np.array([[0.1], [-0.2], [0.6]], "float32") if name != "boundary" else np.array([[0.1], [-0.2]], "float32")
    attacked = attack(line, x)
    assert attacked.dtype == np.float32
    assert (distances(x, attacked, "l2") <= 0.4).all()
    flipped = np.sign(attacked) != np.sign(x)
    assert not flipped[2:].any()
    if name != "noise":
        assert flipped[:2].all()


def test_algorithm_31_around_a_foolbox_attack(line):
    attack = DegradationAttack(from_foolbox(foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.1)))
    result = susceptibility(line, LINE, [0, 0, 0, 0, 1, 1], attack)
    assert (result.fpr_lower.count, result.fpr_lower.total) == (3, 5)


def test_the_network_is_attacked_and_bottom_is_no_success(line):
    """At 0.3 the ball reaches ⊥ and not the other class: an attack that counted ⊥ would stop there."""
    attack = from_foolbox(foolbox.attacks.L2DeepFoolAttack(steps=20))
    x = np.array([[0.3]], "float32")
    assert attack(line, x)[0, 0] == pytest.approx(0.05, abs=1e-4)


def test_without_random_start_it_goes_the_way_of_our_own(images):
    """Equal steps, size and floor: cross-entropy along the normalised gradient, the last iterate."""
    model, x = images
    theirs = from_foolbox(foolbox.attacks.L2PGD(steps=5, rel_stepsize=0.1, random_start=False))(model, x)
    ours = PGD(steps=5, step_size=0.05, random_start=False, gradient_floor=1e-12)(model, x)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_the_box_is_foolboxs_bounds(images):
    model, x = images
    attacked = from_foolbox(foolbox.attacks.LinfPGD(steps=5), clip=(0, 1))(model, x)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert distances(x, attacked, "linf").max() == pytest.approx(0.5, abs=1e-4)


def test_labels_and_targets(images):
    model, x = images
    own = np.asarray(model.network(x)).argmax(axis=1)
    wanted = (own + 1) % 3
    attack = from_foolbox(foolbox.attacks.L2PGD(steps=30), targeted=True, epsilon=20.0, batch_size=8)
    assert (np.asarray(model.network(attack(model, x, wanted))).argmax(axis=1) == wanted).mean() >= 0.75


def test_other_programs_keep_their_random_numbers(images):
    model, x = images
    np.random.seed(1)  # noqa: NPY002
    tf.random.set_seed(1)
    expected = np.random.random(), float(tf.random.uniform(()))  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    tf.random.set_seed(1)
    from_foolbox(foolbox.attacks.L2PGD(steps=1))(model, x[:2])
    assert (np.random.random(), float(tf.random.uniform(()))) == expected  # noqa: NPY002


def test_configurations_tell_the_class_and_its_settings():
    attack = from_foolbox(foolbox.attacks.L2PGD(steps=7).repeat(3), seed=4)
    config = json.loads(json.dumps(attack.config()))
    assert config["attack"] == "FoolboxAttack"
    assert config["seed"] == 4
    assert config["wrapped"]["times"] == 3
    assert config["wrapped"]["attack"]["attack"] == "L2ProjectedGradientDescentAttack"
    assert config["wrapped"]["attack"]["steps"] == 7
    other = from_foolbox(foolbox.attacks.L2PGD(steps=8).repeat(3), seed=4)
    assert other.config() != attack.config()
    assert repr(from_foolbox(foolbox.attacks.FGSM(random_start=True))).startswith("FoolboxAttack(LinfFastGradient")


class Broken(foolbox.attacks.base.FixedEpsilonAttack):
    """Returns what it was made with, added to the inputs."""

    distance = foolbox.distances.l2

    def __init__(self, shift):
        self.shift = shift

    def run(self, model, inputs, criterion, *, epsilon, **kwargs):
        return inputs + self.shift


class LeavesTheBall(Broken):
    @property
    def distance(self):
        class Unclipped(foolbox.distances.LpDistance):
            def clip_perturbation(self, references, perturbed, epsilon):
                return perturbed

        return Unclipped(2)


def test_bad_results_are_named(line):
    with pytest.raises(ValueError, match=r"FoolboxAttack\(Broken\(shift=nan\)\) returned NaN or infinity for 6 of 6"):
        from_foolbox(Broken(float("nan")))(line, LINE)
    with pytest.raises(ValueError, match=r"left the l2 ball of radius 0\.25 for 6 of 6"):
        from_foolbox(LeavesTheBall(1.0))(line, LINE)


def test_what_foolbox_cannot_do_is_an_error_with_its_words(line):
    attack = from_foolbox(foolbox.attacks.NewtonFoolAttack(), targeted=True)
    with pytest.raises(ValueError, match=r"foolbox's NewtonFoolAttack gave up: .*criterion"):
        attack(line, LINE)


def test_other_distances_and_objects_are_refused():
    for attack in (foolbox.attacks.L1FMNAttack(), foolbox.attacks.GaussianBlurAttack()):
        with pytest.raises(ValueError, match="must measure perturbations by l2 or linf"):
            from_foolbox(attack)
    with pytest.raises(TypeError, match="must be an attack of foolbox"):
        from_foolbox(PGD())


def test_without_foolbox_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("foolbox"):
            raise ModuleNotFoundError("No module named 'foolbox'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "foolbox")
    with pytest.raises(ImportError, match=r'pip install "keras-defended\[attacks\]"'):
        from_foolbox(object())


def test_the_random_numbers_foolbox_asks_for_are_the_inputs_own(images):
    """What eagerpy draws for a tensor comes from the seed, for each input apart."""
    model, x = images
    attack = from_foolbox(foolbox.attacks.L2AdditiveGaussianNoiseAttack())
    first = attack(model, x) - x
    assert (np.abs(first[0] - first[1]) > 0).any()
    np.testing.assert_array_equal(attack(model, x[5:6], index=[5])[0], (first + x)[5])
