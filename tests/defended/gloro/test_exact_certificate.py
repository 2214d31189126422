"""The certificate against exact arithmetic: every radius, every constant, and both sides of every edge, ulp by ulp."""

import math

import numpy as np
import pytest
import tensorflow as tf
from exact import BITS, exact_logits, exactly
from nets import NETWORKS, any_inputs, classes, near_the_boundary, randomised, reweighted, shared

from defended.margins import FLOAT_MAX, Budget, competitor_radii


def exact_margins(model, x, answer):
    values = exact_logits(model.network, x)
    return np.take_along_axis(values, answer[:, None], axis=1) - values


def assert_exactly_certified(model, x, answer, radii):
    """`y_j - y_i > K_ij r` in exact arithmetic for every rival, with the deployed constants."""
    needed = exactly(constants_of(model)[answer]) * exactly(radii)[:, None] >> BITS
    rivals = np.arange(model.num_classes) != answer[:, None]
    assert np.all((exact_margins(model, x, answer) > needed)[rivals])


def constants_of(model):
    """K; a constant above float32's range counts as the largest number, with which nothing is certified either."""
    return np.minimum(model.margin_lipschitz, np.float32(FLOAT_MAX))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_certified_radius_and_every_constant_is_an_exact_one(name):
    """Exact margins exceed K r, and no exact secant is steeper than K, at any scale and without any tolerance."""
    rng = np.random.default_rng(14)
    certified = 0
    for scale in (1.0, (1e-10, 1e10)[list(NETWORKS).index(name) % 2], "mixed"):
        try:
            model = reweighted(name, rng, scale)
        except ValueError:
            continue
        x = np.concatenate([near_the_boundary(model, 12, rng), any_inputs(rng, model.input_shape[1:])])
        radii = np.asarray(model.certified_radius(x))
        answer, some = classes(model, x), radii > 0
        certified += some.sum()
        if some.any():
            assert_exactly_certified(model, x[some], answer[some], radii[some])
        one = np.concatenate([x[:4]] * 3)
        steps = [10.0**power * rng.standard_normal((4, *x.shape[1:])) for power in (-3, 0, 3)]
        other = (one + np.concatenate(steps)).astype("float32")
        change = exact_logits(model.network, one) - exact_logits(model.network, other)
        change = change[:, :, None] - change[:, None, :]
        distance = ((exactly(one) - exactly(other)) ** 2).reshape(len(one), -1).sum(axis=1)[:, None, None]
        # Pooling and normalisation are rounded down to multiples of 2^-1024.
        steep = np.abs(change) - (1 << (BITS // 2)) > isqrt(exactly(constants_of(model)) ** 2 * distance >> 2 * BITS)
        assert not np.any(steep & (constants_of(model) < FLOAT_MAX))
    assert certified > 10


isqrt = np.frompyfunc(lambda value: math.isqrt(int(value)), 1, 1)


def test_no_overflow_hides_in_an_answer():
    """ReLU, MinMax and pooling swallow infinities: with weights and inputs up to 1e38 all that is answered is exact."""
    rng = np.random.default_rng(22)
    answers = 0
    for name in NETWORKS:
        model = shared(name)
        randomised(model.network, rng, 10.0 ** rng.uniform(0, 14))
        kernel = model.network.trainable_variables[0]
        kernel.assign(np.asarray(kernel) * 10.0 ** rng.uniform(0, 20, kernel.shape))
        try:
            model.finalize()
        except ValueError:  # products of its weights may overflow
            continue
        sizes = 10.0 ** np.linspace(-30, 38.4, 30).reshape(-1, *[1] * len(model.input_shape[1:]))
        x = sizes * rng.standard_normal((30, *model.input_shape[1:]))
        x = np.clip(x, -FLOAT_MAX, FLOAT_MAX).astype("float32")
        radii = np.asarray(model.certified_radius(x))
        assert np.isfinite(radii).all(), name
        some = radii > 0
        answers += some.sum()
        if some.any():
            assert_exactly_certified(model, x[some], classes(model, x)[some], radii[some])
    assert answers > 100


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_radii_are_rounded_down_whatever_the_numbers(wide, compiled):
    """`y_j - y_i >= K (paid + growth r)` exactly: over all of float32's range, and where the two nearly cancel."""
    rng = np.random.default_rng(15)
    n = 10_000

    def power(low, high, *shape):
        return (10.0 ** rng.uniform(low, high, shape)).astype("float32")

    if wide:
        logits = np.concatenate([power(-37, 38.5, n // 2, 3), power(38, 38.5, n // 2, 3)])
        logits *= rng.choice([-1, 1], (n, 3)).astype("float32")
        constants, paid = power(-37.9, 30, n, 3), power(-37, 10, n)
    else:
        logits = power(-3, 3, n, 1) * (1 - rng.choice([0, 1, 1, 1], (n, 3)) * power(-8, 0, n, 3)).astype("float32")
        constants = power(-3, 3, n, 3)
        margin = logits.max(axis=1, keepdims=True) - logits
        paid = np.where(margin > 0, margin / constants, 1e9).min(axis=1) * (1 - power(-7.5, -0.1, n))
    budget = Budget(paid.astype("float32")[:, None], power(0, 38, n, 1))
    function = tf.function(lambda *x: competitor_radii(*x, budget), autograph=False, jit_compile=compiled)
    radii = np.asarray(function(logits, constants))
    answer = logits.argmax(axis=1)
    certified = (radii > 0) & (np.arange(3) != answer[:, None])
    assert certified.sum() > n
    values = exactly(logits)
    margin = np.take_along_axis(values, answer[:, None], axis=1) - values
    spent = exactly(budget.paid) + exactly(np.where(certified, radii, 0))
    assert np.all((margin >= exactly(constants) * spent >> BITS)[certified])


# One unit in the last place after the other.


@pytest.mark.parametrize(
    ("name", "offset"), [("linear", 0), ("linear", 1e3), ("dense", 0), ("conv", 0), ("liresnet", 0)]
)
def test_verdicts_agree_with_radii_ulp_by_ulp(name, offset):
    """Across the edge between an answer and a rejection: answered points exceed epsilon and are exactly certified."""
    rng = np.random.default_rng(16)
    model = reweighted(name, rng)
    x = near_the_boundary(model, 200, rng, offset)
    radii = np.asarray(model.certified_radius(x))
    model.epsilon = float(np.median(radii[radii > 0]))
    answered = model.deployed(x)["label"].numpy() >= 0
    inner, outer = x[answered][:6].copy(), x[~answered][:6].copy()
    for _ in range(60):
        middle = inner / 2 + outer / 2
        kept = (model.deployed(middle)["label"].numpy() >= 0).reshape(-1, *[1] * (x.ndim - 1))
        inner, outer = np.where(kept, middle, inner), np.where(kept, outer, middle)
    crossings = 0
    for start in inner:
        walk = np.repeat(start[None], 4001, axis=0)
        column = walk.reshape(len(walk), -1)[:, rng.integers(start.size)]
        column[:] = (column.view("int32") + np.arange(-2000, 2001, dtype="int32")).view("float32")
        crossings += check_verdicts(model, walk)
    assert crossings > 0, "the walks cross the edge"


def smallest_constant(model):
    return model.margin_lipschitz[~np.eye(model.num_classes, dtype=bool)].min()


def check_verdicts(model, x):
    """Verdicts against radii; returns how many neighbouring points have different verdicts."""
    outputs = {key: value.numpy() for key, value in model.deployed(x).items()}
    answered, epsilon = outputs["label"] >= 0, np.float32(model.epsilon)
    beyond = outputs["certified_radius"] > epsilon
    assert not np.any(answered & ~beyond)
    # A slack below the resolution of the scores may reject, too.
    scores = outputs["scores"]
    answer = scores.argmax(axis=1)
    slack = (outputs["certified_radius"] - epsilon) * smallest_constant(model)
    assert np.all(answered | ~beyond | (slack <= 2.0**-20 * np.abs(scores).max(axis=1)))
    edge = np.flatnonzero(answered[1:] != answered[:-1])
    near = np.unique(np.clip(np.concatenate([edge, edge + 1])[:16], 0, len(x) - 1))
    near = near[answered[near]]
    if len(near):
        assert_exactly_certified(model, x[near], answer[near], np.full(len(near), epsilon))
    return len(edge)


@pytest.mark.parametrize("name", ["linear", "dense", "conv", "normalisation folded"])
def test_epsilon_one_ulp_on_either_side_of_the_radius(name):
    rng = np.random.default_rng(17)
    model = reweighted(name, rng)
    x = near_the_boundary(model, 40, rng)
    outputs = model.deployed(x)
    radii, top = outputs["certified_radius"].numpy(), np.abs(outputs["scores"].numpy()).max(axis=1)
    visible = radii * smallest_constant(model) * 2.0**-12 > top * 2.0**-20
    assert visible.sum() > 3
    for i in np.flatnonzero(visible)[:12]:
        # Some processors round the same row differently in batches of other sizes.
        radius = model.deployed(x[i : i + 1])["certified_radius"].numpy()[0]
        for toward, steps in ((np.inf, (0, 1, 2)), (0, (1, 2, 2**12))):
            for count in steps:
                epsilon = (radius.view("int32") + (count if toward else -count)).view("float32")
                model.epsilon.assign(epsilon)
                label = model.deployed(x[i : i + 1])["label"].numpy()[0]
                assert toward == 0 or label == -1, "a ball that is not larger than its radius is not certified"
                assert count != 2**12 or label >= 0, "5e-4 below it, it is"
                if label >= 0:
                    assert_exactly_certified(model, x[i : i + 1], np.array([label]), np.array([epsilon]))
