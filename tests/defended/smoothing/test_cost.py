"""What an answer is said to cost, against what answers take."""

import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from defended import SmoothedNet, progress
from defended.smoothing.cost import stops

EASY = np.float32([[3.0], [4.0]])
HARD = np.float32([[0.25]])  # the threshold itself


def smoothed(**options):
    """The vote for class 1 at x has share Phi(x / sigma)."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    network.set_weights([np.float32([[-1.0, 1.0]]), np.zeros(2, "float32")])
    return SmoothedNet(network, epsilon=0.25, sigma=0.5, **{"samples": 3000, "seed": 0, **options})


@pytest.fixture(scope="module")
def model():
    return smoothed()


def test_easy_inputs_take_few_draws_and_hard_ones_many(model):
    easy, hard = model.cost(EASY), model.cost(HARD)
    assert easy.draws == model.audit(EASY)["samples_used"].max() == 100 + model.gate.checkpoints[0]
    assert hard.mean_draws > 5 * easy.mean_draws
    assert easy.most_draws == hard.most_draws == 3100
    assert 0 < easy.seconds <= easy.mean_seconds < easy.most_seconds
    assert (easy.measured, hard.measured) == (2, 1)
    assert "at most 3,100 in" in str(easy)
    assert "cost(x)" in repr(model)


def test_the_gate_is_played_as_it_is(model):
    """The mean of many played games is that of many answers."""
    x = np.full((400, 1), 0.45, "float32")  # Phi(0.9) of the votes
    used = smoothed(seed=None).audit(x)["samples_used"] - 100
    played = stops(model.gate, 0.8159, games=4000)
    assert played.mean() == pytest.approx(used.mean(), rel=0.15)
    assert set(played) <= set(model.gate.checkpoints)


def test_a_fixed_gate_takes_the_same_draws_of_every_input():
    cost = smoothed(mode="fixed", samples=400).cost(np.concatenate([EASY, HARD]))
    assert cost.draws == cost.mean_draws == cost.most_draws == 500


def test_inputs_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="at least one input"):
        model.cost(EASY[:0])
    with pytest.raises(ValueError, match=r"`x` must have shape \[n, 1\]"):
        model.cost(np.zeros((2, 3)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_long_verdicts_begin_with_the_seconds_to_be_expected(model, monkeypatch):
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=(stream := Terminal())))
    monkeypatch.setattr(progress, "PATIENCE", 1000.0)
    monkeypatch.setenv("TERM", "xterm")
    before = model.verdicts(EASY)
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    for judge in (model.verdicts, model.audit):
        stream.truncate(0)
        stream.seek(0)
        judge(EASY)
        assert "About " in stream.getvalue()
        assert "s are to be expected for 2 answers. An answer typically takes" in stream.getvalue().replace("\n", " ")
        stream.truncate(0)
        judge(EASY, progress=False)
        assert stream.getvalue() == ""
    monkeypatch.undo()
    np.testing.assert_array_equal(model.verdicts(EASY).radius, before.radius)
