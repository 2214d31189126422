"""Susceptibility while training."""

import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

import defended
from defended.attacks import CertificateDescent, CertificateViolation, DegradationMonitor, susceptibility

KEYS = ("degradation_fpr_lower", "degradation_fpr_upper", "degradation_vra_under_attack")


@pytest.fixture(scope="module")
def digits():
    return defended.datasets.load("digits")


def train(digits, callbacks, epochs=3):
    keras.utils.set_random_seed(7)
    model = defended.GloroNet(defended.zoo.dense_small(units=16), epsilon=0.2)
    model.compile("adam", loss="crossentropy")
    history = model.fit(
        digits.x_train[:400], digits.y_train[:400], epochs=epochs, batch_size=50, verbose=0, callbacks=callbacks
    )
    return model, history.history


class Watched(NamedTuple):
    """A training under a monitor that measures every other epoch."""

    x: np.ndarray
    y: np.ndarray
    monitor: DegradationMonitor
    model: defended.GloroNet
    history: dict[str, list[float]]
    log_dir: Path


ATTACK = CertificateDescent(steps=20, batch_size=64)


@pytest.fixture(scope="module")
def watched(digits, tmp_path_factory):
    x, y, log_dir = digits.x_test[:120], digits.y_test[:120], tmp_path_factory.mktemp("logs")
    monitor = DegradationMonitor(x, y, ATTACK, every=2, log_dir=log_dir, pairs=3)
    return Watched(x, y, monitor, *train(digits, [monitor], epochs=8), log_dir)


def test_figures_join_the_history_and_training_is_not_disturbed(digits, watched):
    monitor, history = watched.monitor, watched.history
    plain, other = train(digits, [], epochs=8)
    for one, two in zip(watched.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert history["loss"] == other["loss"]
    assert sorted(monitor.results) == [1, 3, 5, 7]
    for key in KEYS:
        assert len(history[key]) == 4
        assert all(type(value) is float and 0 <= value <= 1 for value in history[key])
    assert all(low <= high for low, high in zip(history[KEYS[0]], history[KEYS[1]], strict=True))
    assert monitor.results[1]["final"], "bounds are proven for the epoch's weights"
    assert watched.model.is_final


def test_the_last_epoch_agrees_with_a_measurement_afterwards(watched):
    """Both are of proven bounds for the same weights."""
    after = susceptibility(watched.model, watched.x, watched.y, ATTACK)
    assert watched.monitor.results[7]["vra"]["value"] == float(after.vra)
    assert watched.history["degradation_vra_under_attack"][-1] == float(after.vra_under_attack)


def test_a_broken_certificate_ends_the_training(digits):
    x, y = digits.x_test[:60], digits.y_test[:60]

    def violating(model, x, y):
        raise CertificateViolation("accepted with another label", np.zeros(1, np.int64), x[:1])

    model = defended.GloroNet(defended.zoo.dense_small(units=16), epsilon=0.1)
    # Some inputs must be contested, or nothing is attacked.
    model.epsilon = float(np.median(model.verdicts(x).radius)) / 1.5
    monitor = DegradationMonitor(x, y, violating)
    monitor.set_model(model)
    with pytest.raises(CertificateViolation):
        monitor.on_epoch_end(0, {})


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"every": 0}, ValueError, "`every`"),
        ({"every": 1.5}, TypeError, "`every`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"attack": "pgd"}, TypeError, "`attack`"),
    ],
)
def test_bad_arguments(digits, keywords, error, match):
    with pytest.raises(error, match=match):
        DegradationMonitor(digits.x_test, digits.y_test, **keywords)


def test_wrong_data_and_wrong_models_fail_before_the_first_epoch(digits):
    with pytest.raises(ValueError, match="class numbers"):
        train(digits, [DegradationMonitor(digits.x_test[:10], digits.y_test[:9])])
    with pytest.raises(ValueError, match="shape"):
        train(digits, [DegradationMonitor(digits.x_test[:10, :4], digits.y_test[:10])])
    with pytest.raises(TypeError, match="DefendedModel"):
        DegradationMonitor(digits.x_test[:10], digits.y_test[:10]).set_model(defended.zoo.dense_small())


def test_pictures_and_figures_go_to_tensorboard(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched.log_dir), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert set(KEYS) | {"degraded pairs"} <= set(events.Tags()["tensors"])
    steps = [event.step for event in events.Tensors(KEYS[0])]
    assert steps == [1, 3, 5, 7]
    image = events.Tensors("degraded pairs")[0].tensor_proto.string_val
    assert image[2].startswith(b"\x89PNG")
    assert max(watched.history[KEYS[0]]) > 0


def test_a_time_budget_holds_the_epoch_up_no_longer(digits):
    """Batches of 10 at a second each, and half a second to spend: one batch an epoch."""
    calls = []

    def slow(model, x, y):
        calls.append(len(x))
        time.sleep(1)
        return x

    x, y = digits.x_test[:200], digits.y_test[:200]
    monitor = DegradationMonitor(x, y, slow, every=6, time_budget=0.5, batch_size=10)
    train(digits, [monitor], epochs=6)
    assert calls == [10]
    assert monitor.results[5]["attacked"] == 10 < monitor.results[5]["contested"]
