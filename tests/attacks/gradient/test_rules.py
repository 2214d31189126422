"""Steps, losses and the queue of gradient attacks, against numbers worked by hand."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import affine

import defended
from defended.attacks import APGD, PGD, CertificateDescent, DegradationAttack
from defended.attacks.core.balls import distances
from defended.attacks.gradient import gradient_attack
from defended.attacks.gradient.objectives import logits_ratio, loss_of_logits
from defended.attacks.gradient.rules import AutoSteps, Steepest


@functools.cache
def wavy(epsilon=0.5, units=24):
    """A network whose margin has many local minima, which no test changes."""
    keras.utils.set_random_seed(3)
    network = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=1.5)),
            defended.layers.MinMax(),
            keras.layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5)),
            defended.layers.MinMax(),
            keras.layers.Dense(5),
        ]
    )
    model = defended.GloroNet(network, epsilon=epsilon)
    model.finalize()
    return model


def cloud(n=60, d=6):
    return np.random.default_rng(1).normal(size=(n, d)).astype("float32")


LOGITS = np.array([[3.0, 1.0, 0.0, -4.0], [1.0, 5.0, 4.0, 2.0]], "float32")


def test_the_dlr_loss_by_hand():
    """Croce and Hein 2020, equations 6 and 7, with the sign of what is descended."""
    away = logits_ratio(tf.constant(LOGITS), tf.constant([0, 2]), targeted=False).numpy()
    np.testing.assert_allclose(away, [(3 - 1) / (3 - 0), (4 - 5) / (5 - 2)], rtol=1e-6)
    toward = logits_ratio(tf.constant(LOGITS), tf.constant([1, 0]), targeted=True).numpy()
    np.testing.assert_allclose(toward, [(1 - 3) / (3 - (0 - 4) / 2), (1 - 5) / (5 - (2 + 1) / 2)], rtol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_dlr_loss_ignores_scale_and_shift_of_the_logits(targeted):
    labels = tf.constant([0, 2])
    base = logits_ratio(tf.constant(LOGITS), labels, targeted)
    np.testing.assert_allclose(logits_ratio(tf.constant(100 * LOGITS - 7), labels, targeted), base, rtol=1e-4)


@pytest.mark.parametrize("loss", ["crossentropy", "margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_lower_is_better_for_the_attacker(loss, targeted):
    labels = tf.constant([0])
    nearer, farther = tf.constant([[1.0, 0.9, 0.0, -1.0]]), tf.constant([[2.0, 0.0, -0.5, -1.0]])
    if targeted:
        nearer, farther = tf.constant([[0.9, 1.0, 0.0, -1.0]]), tf.constant([[0.0, 2.0, 0.5, -1.0]])
    for part in range(2):
        assert (
            loss_of_logits(loss, targeted, nearer, labels)[part] < loss_of_logits(loss, targeted, farther, labels)[part]
        )


@pytest.mark.parametrize(("attack", "classes"), [(PGD(loss="dlr"), 2), (APGD(targeted=True), 3)])
def test_dlr_needs_enough_classes(attack, classes):
    model = affine(np.eye(4)[:, :classes])
    with pytest.raises(ValueError, match="'dlr' compares the"):
        attack(model, cloud(3, 4))


@pytest.mark.parametrize(
    ("schedule", "sizes"),
    [("constant", [0.4, 0.4, 0.4, 0.4]), ("linear", [0.4, 0.3, 0.2, 0.1]), ("cosine", [0.4, 0.341421, 0.2, 0.058579])],
)
def test_step_schedules_by_hand(schedule, sizes):
    attack = PGD(steps=4, step_size=0.4, schedule=schedule, momentum=0.5, norm="l2")
    task = attack_task(attack)
    rule, control = attack._rule(task)
    assert rule == Steepest("l2")
    np.testing.assert_allclose(control, np.column_stack([[*sizes, 0.0], np.full(5, 0.5)]), atol=1e-5)


def attack_task(attack, radius=1.0):
    from defended.attacks.core.attack import Task

    return Task(None, np.zeros((1, 2), np.float32), None, radius, attack.norm, np.zeros(1, np.int64))


def test_keep_last_returns_the_point_where_the_steps_end():
    """On logits (x, -x) two steps of 0.3 from x = 0.5 lead to 0.2 and -0.1, and the ball ends at 0.1 (radius 0.4)."""
    model, x = affine([[1, -1]]), np.array([[0.5]], "float32")
    settings = {"steps": 2, "step_size": 0.3, "random_start": False, "epsilon": 0.4}
    np.testing.assert_allclose(PGD(**settings, keep="last")(model, x), [[0.1]], atol=1e-6)
    # A step that is too wide comes back: 0.7 from 0.5 is cut to 0.1, where the label is still the same, and so on.
    away = {"steps": 1, "step_size": 0.3, "random_start": False, "epsilon": 0.4, "loss": "margin", "targeted": True}
    wrong_way = PGD(**away, keep="last")(model, x, [0])
    best = PGD(**away, keep="best")(model, x, [0])
    np.testing.assert_allclose((wrong_way, best), ([[0.8]], [[0.8]]), atol=1e-6)


def test_the_best_point_is_kept_where_a_step_overshoots():
    """Descending |x|-like radii with one huge step past the boundary and a projection: the best iterate wins."""
    model, x = affine([[1, -1]]), np.array([[0.3]], "float32")
    settings = {"steps": 1, "step_size": 0.2, "epsilon": 0.25}
    best = CertificateDescent(**settings)(model, x)
    np.testing.assert_allclose(best, [[0.1]], atol=1e-6)
    two = CertificateDescent(steps=2, step_size=0.5, epsilon=0.25)(model, x)  # 0.3 -> 0.05 -> back by 0.25
    np.testing.assert_allclose(two, [[0.05]], atol=1e-6)


def test_checkpoints_of_apgd_by_hand():
    """Shares 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps, and three quarters of the way between."""
    control = AutoSteps.control(100, 0.5)
    at = np.flatnonzero(control[:, 2])
    np.testing.assert_array_equal(at, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_allclose(control[at, 3], 0.75 * np.diff([0, *at]))
    assert (control[:, 4] == 1.0).all()
    assert (control[:-1, 0] == 1).all()
    assert control[-1, 0] == 0


def test_apgd_reaches_the_planes_of_a_linear_network_without_a_step_size():
    """There the smallest margin in the ball is known: (y_j - y_i) - radius * |w_j - w_i|, over the nearest rival."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 4))
    model, x = affine(weights), cloud()
    radius = 0.3
    logits = x @ weights
    top = logits.argmax(axis=1)
    distance = np.linalg.norm(weights[:, None] - weights[:, :, None], axis=0)
    reachable = logits[np.arange(len(x)), top][:, None] - logits - radius * distance[top]
    reachable[np.arange(len(x)), top] = np.inf

    def excess(attack):
        found = attack(model, x) @ weights
        margin = found[np.arange(len(x)), top] - np.where(np.eye(4, dtype=bool)[top], -np.inf, found).max(axis=1)
        return margin - reachable.min(axis=1)

    settings = {"steps": 40, "epsilon": radius, "random_start": False}
    of_margins = excess(APGD(**settings, loss="margin"))
    assert (of_margins > -1e-4).all()
    assert (of_margins < 0.02).mean() > 0.9  # a plane that is not the nearest at x can hold a descent
    # The least DLR loss lies elsewhere than the least margin, so the best iterate is some way off.
    assert excess(APGD(**settings)).mean() < excess(PGD(**settings, loss="dlr")).mean()


def test_apgd_is_not_weaker_than_pgd_of_as_many_steps():
    model, x = wavy(), cloud(100)
    predicted = model.network.predict(x, verbose=0).argmax(axis=1)

    def flipped(attack):
        return (model.network.predict(attack(model, x), verbose=0).argmax(axis=1) != predicted).mean()

    settings = {"steps": 20, "epsilon": 0.25, "loss": "margin"}
    assert flipped(APGD(**settings)) >= flipped(PGD(**settings)) - 0.02
    assert flipped(APGD(**settings, norm="linf")) > 0.2


def test_apgd_halves_its_steps_where_they_stop_paying():
    """On a line with the minimum inside the ball, steps of twice the radius jump about until they are halved."""
    rule, control = AutoSteps("l2"), AutoSteps.control(30, 1.0)
    delta = np.array([[0.9]], np.float32)
    state = [tf.constant(part) for part in rule.start(delta)]
    delta = tf.constant(delta)
    for row in control:
        value, gradient = tf.abs(delta - 0.3)[:, 0], tf.sign(delta - 0.3)
        delta, state = rule.move(
            delta, gradient, value, state, tf.constant(row[None]), lambda moved: tf.clip_by_value(moved, -1.0, 1.0)
        )
    assert state[7].numpy() >= 3  # halvings
    assert state[3].numpy() < 0.05  # the best value
    assert abs(state[1].numpy()[0, 0] - 0.3) < 0.05


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_leave_the_batch_change_nobody_elses_result(workers, monkeypatch):
    """A queue of 90 inputs through batches of 16: those that finish early free their places for those that wait."""
    monkeypatch.setattr(gradient_attack, "workers", lambda: workers)
    model, x = wavy(0.05), cloud(90)
    settings = {"steps": 30, "targets": 2, "restarts": 2, "batch_size": 16, "epsilon": 0.05}
    whole = np.asarray(model.certified_radius(CertificateDescent(**settings)(model, x)))
    stopped = CertificateDescent(**settings, early_stop=True)(model, x)
    radius = np.asarray(model.certified_radius(stopped))
    done = whole < 0.05 * (1 - 2e-4)
    assert 5 < done.sum() < 85
    assert (radius[done] <= 0.05).all()
    np.testing.assert_allclose(radius[~done], whole[~done], atol=1e-6)


def test_early_stop_of_pgd_leaves_a_changed_label():
    model, x = wavy(), cloud(80)
    predicted = model.network.predict(x, verbose=0).argmax(axis=1)
    full, early = (PGD(steps=20, epsilon=0.3, early_stop=stop, random_start=False)(model, x) for stop in (False, True))
    changed = model.network.predict(full, verbose=0).argmax(axis=1) != predicted
    assert 5 < changed.sum() < 80
    np.testing.assert_array_equal(model.network.predict(early, verbose=0).argmax(axis=1) != predicted, changed)
    assert (distances(x, early, "l2")[changed] <= distances(x, full, "l2")[changed] + 1e-6).mean() > 0.8


def test_the_authors_settings_for_linf():
    attack = DegradationAttack.published(0.1, norm="linf")
    base = attack.base_attack
    assert (base.norm, base.keep, base.random_start, attack.scale_to_sphere) == ("linf", "last", False, False)
    assert base.step_size == pytest.approx(4 * 0.1 / 50)
    with pytest.raises(ValueError, match="l2 only"):
        DegradationAttack.published(0.1, norm="linf", sigma=0.5)
