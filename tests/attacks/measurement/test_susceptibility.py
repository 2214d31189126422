"""The bracket of the false positive rate: by hand on linear models, interrupted, and with wrong attacks and models."""

import hashlib
import json
import signal
import subprocess
import sys
import time
import tracemalloc

import keras
import numpy as np
import pytest
from nets import overclaiming

import defended
from defended.attacks import (
    PGD,
    CertificateDescent,
    CertificateViolation,
    DegradationAttack,
    EpsilonPGD,
    susceptibility,
)
from defended.attacks.core.balls import distances
from defended.attacks.measurement import engine as pieces
from defended.gloro.legacy.reader import read_gloronet
from defended.provenance import data_digest


def linear(weights, epsilon):
    """A model whose certified radius is the exact distance to the decision boundary."""
    weights = np.asarray(weights, "float32")
    network = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(weights.shape[1])])
    network.set_weights([weights, np.zeros(weights.shape[1], "float32")])
    model = defended.GloroNet(network, epsilon=epsilon)
    model.finalize()
    return model


@pytest.fixture(scope="module")
def line():
    """Logits (x, -x): r(x) = |x|, the class is the sign, and eps is 1/4."""
    return linear([[1, -1]], 0.25)


@pytest.fixture(scope="module")
def planes():
    return linear(np.random.default_rng(0).normal(size=(6, 4)), 0.3)


# x, label: rejected, contested, contested, safe; contested and wrong; safe, safe and wrong, rejected.
LINE = np.array([[0.1], [0.3], [0.45], [0.6], [-0.3], [-0.7], [-0.9], [-0.05]], "float32")
LABELS = np.array([0, 0, 0, 0, 0, 1, 0, 1])
QUICK = CertificateDescent(steps=10, batch_size=16)


def cloud(n=120):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 4, n)


def test_every_figure_by_hand(line):
    result = susceptibility(line, LINE, LABELS, QUICK)
    shares = {name: (getattr(result, name).count, getattr(result, name).total) for name in (
        "clean_accuracy", "rejection_rate", "vra", "vra_2eps", "vra_under_attack", "utility_reduction",
        "fpr_lower", "fpr_upper", "fpr_lower_correct", "fpr_upper_correct",
    )}  # fmt: skip
    assert shares == {
        "clean_accuracy": (6, 8),
        "rejection_rate": (2, 8),
        "vra": (4, 8),
        "vra_2eps": (2, 8),
        "vra_under_attack": (2, 8),
        "utility_reduction": (2, 8),
        "fpr_lower": (3, 6),
        "fpr_upper": (3, 6),
        "fpr_lower_correct": (2, 4),
        "fpr_upper_correct": (2, 4),
    }
    assert (result.test_R, result.test_A) == (6, 3)
    assert (result.epsilon, result.norm, result.final) == (0.25, "l2", True)
    assert result.fpr_lower == 0.5
    assert result.fpr_lower.interval == pytest.approx((0.11811, 0.88189), abs=1e-5)
    records = result.records
    np.testing.assert_array_equal(records.rejected, [1, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(records.contested, [0, 1, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(records.degraded, records.contested)
    np.testing.assert_array_equal(records.predicted, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(
        records.radius, np.abs(LINE[:, 0]) * ~records.rejected + records.radius * records.rejected, rtol=1e-5
    )
    assert (records.distance[~records.contested] == 0).all()
    np.testing.assert_array_equal(result.adversarial.index, [1, 2, 4])
    assert line.verdicts(result.adversarial.inputs).rejected.all()
    assert (distances(LINE[[1, 2, 4]], result.adversarial.inputs, "l2") <= 0.25).all()


def test_every_class_by_hand(line):
    result = susceptibility(line, LINE, LABELS, QUICK)
    classes = result.by_class(["left", "right"])
    counts = [{name: (rate.count, rate.total) for name, rate in row.rates.items()} for row in classes]
    assert [(row.number, row.name, row.inputs) for row in classes] == [(0, "left", 6), (1, "right", 2)]
    assert counts == [
        {"clean_accuracy": (4, 6), "rejection_rate": (1, 6), "vra": (3, 6), "fpr_lower": (3, 5), "fpr_upper": (3, 5)},
        {"clean_accuracy": (2, 2), "rejection_rate": (1, 2), "vra": (1, 2), "fpr_lower": (0, 1), "fpr_upper": (0, 1)},
    ]
    assert [row.name for row in classes.sorted("rejection_rate")] == ["right", "left"]
    assert str(classes).splitlines()[1].split()[:5] == ["left", "6", "66.7", "16.7", "50.0"]
    assert classes.to_csv().splitlines()[2].startswith("1,right,2,2,2,")
    assert [row.name for row in result.by_class()] == ["0", "1"]
    with pytest.raises(ValueError, match=r"all classes up to 1\. Received: 1 names"):
        result.by_class(["left"])
    named = result.by_class({"right": 1, "left": 0})
    assert [row.name for row in named] == ["left", "right"]
    with pytest.raises(ValueError, match=r"`names` must .* a set has no order"):
        result.by_class({"left", "right"})
    with pytest.raises(ValueError, match="`rate` must be one of"):
        classes.sorted("radius")


def test_on_a_linear_model_both_bounds_meet(planes):
    """The radius is the distance to the nearest of the planes, so whatever is contested can be degraded."""
    x, y = cloud()
    result = susceptibility(planes, x, y, CertificateDescent(steps=50, batch_size=64))
    assert 10 < result.test_A < result.test_R
    assert result.fpr_lower == result.fpr_upper
    assert result.vra_under_attack == result.vra_2eps


def test_an_attack_that_does_nothing_finds_nothing(line):
    result = susceptibility(line, LINE, LABELS, lambda model, x, y: x)
    assert (result.fpr_lower, result.fpr_upper) == (0.0, 0.5)
    assert result.vra_under_attack == result.vra
    assert result.attack["attack"].endswith("<lambda>")


def test_only_contested_inputs_are_attacked_and_with_the_answered_label(line):
    seen = []

    def attack(model, x, y):
        seen.append((x[:, 0].tolist(), y.tolist()))
        return x

    susceptibility(line, LINE, LABELS, attack)
    assert seen == [(LINE[[1, 2, 4], 0].tolist(), [0, 0, 1])]


def test_nothing_certified(line):
    result = susceptibility(line, LINE[[0, 7]], LABELS[[0, 7]], QUICK)
    assert (result.test_R, result.test_A, result.seconds_per_point) == (0, 0, 0.0)
    assert (result.fpr_lower, result.fpr_lower.interval) == (0.0, (0.0, 1.0))
    assert result.adversarial.inputs.shape == (0, 1)


def test_exactly_two_eps_is_not_called_safe(line):
    """At r = 2 eps a perturbation of norm eps leaves a slack of 0, and that is a rejection."""
    result = susceptibility(line, np.array([[0.5]], "float32"), [0], QUICK)
    assert (result.vra, result.vra_2eps, result.fpr_upper) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "attack", [DegradationAttack(PGD(batch_size=16)), EpsilonPGD(batch_size=16), PGD(targeted=True)]
)
def test_the_published_attacks_run_and_stay_below_the_upper_bound(planes, attack):
    result = susceptibility(planes, *cloud(), attack)
    assert 0 < result.fpr_lower <= result.fpr_upper


def test_summary_and_table_tell_the_same(line):
    result = susceptibility(line, LINE, LABELS, QUICK, confidence=0.9)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["fpr_lower"] == {
        "value": 0.5, "count": 3, "total": 6, "interval": list(result.fpr_lower.interval), "confidence": 0.9
    }  # fmt: skip
    assert (summary["test_R"], summary["test_A"], summary["attacked"]) == (6, 3, 3)
    assert summary["attack"]["steps"] == 10
    table = result.to_table()
    assert "90 % interval" in table
    assert "3/6" in table
    assert "bounds proven" in table


def test_a_model_that_is_not_final_is_proven_first(line):
    model = defended.GloroNet(line.network, epsilon=0.25)
    assert not model.is_final
    result = susceptibility(model, LINE, LABELS, QUICK)
    assert result.final
    assert model.is_final
    np.testing.assert_array_equal(result.records.radius, line.verdicts(LINE).radius)


def test_the_progress_bar_goes_to_stderr(line, capsys):
    susceptibility(line, LINE, LABELS, QUICK, progress=True)
    shown = capsys.readouterr()
    assert "attacking" in shown.err
    assert shown.out == ""


def same(one, other):
    for field in one.records._fields:
        np.testing.assert_array_equal(getattr(one.records, field), getattr(other.records, field), err_msg=field)
    np.testing.assert_array_equal(one.adversarial.index, other.adversarial.index)
    np.testing.assert_array_equal(one.adversarial.inputs, other.adversarial.inputs)


def test_the_result_does_not_depend_on_how_the_work_is_cut(planes):
    attack = DegradationAttack(PGD(steps=10, batch_size=16))
    whole = susceptibility(planes, *cloud(), attack)
    for batch_size in (7, 30):
        cut = susceptibility(planes, *cloud(), attack, batch_size=batch_size)
        np.testing.assert_array_equal(cut.records.degraded, whole.records.degraded)
        np.testing.assert_allclose(cut.adversarial.inputs, whole.adversarial.inputs, atol=1e-5)


def test_a_killed_measurement_goes_on_where_it_was(planes, tmp_path, monkeypatch):
    attack, folder = CertificateDescent(steps=5, batch_size=16), tmp_path / "run"
    original, attacked = pieces.attack_inputs, []

    def counted(*arguments, index, **arrays):
        attacked.append(index)
        return original(*arguments, index=index, **arrays)

    def killed_at_the_third(*arguments, **arrays):
        if len(attacked) == 2:
            raise KeyboardInterrupt
        return counted(*arguments, **arrays)

    monkeypatch.setattr(pieces, "attack_inputs", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        susceptibility(planes, *cloud(), attack, batch_size=10, resume=folder)
    (folder / ".attacked_000000020.npz.half").write_bytes(b"what a kill in the middle of writing leaves")

    monkeypatch.setattr(pieces, "attack_inputs", counted)
    result = susceptibility(planes, *cloud(), attack, batch_size=10, resume=folder)
    # Each contested input was attacked once, in both calls together.
    np.testing.assert_array_equal(np.concatenate(attacked), np.flatnonzero(result.records.contested))
    assert len(attacked) > 3
    same(result, susceptibility(planes, *cloud(), attack, batch_size=10))

    attacked.clear()
    # A directory of an earlier version names the data by another digest of the same.
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["data"] == data_digest(*cloud())
    x, y = cloud()
    plan["data"] = hashlib.sha256(f"{x.shape}".encode() + x.tobytes() + y.astype("int64").tobytes()).hexdigest()
    (folder / "plan.json").write_text(json.dumps(plan))
    again = susceptibility(planes, *cloud(), attack, batch_size=10, resume=folder)
    assert not attacked
    same(again, result)
    assert again.summary() == result.summary()


class Slow:
    """An attack that takes its time, and tells how it is configured."""

    targeted = False

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def config(self):
        return {"attack": "Slow"}

    def __call__(self, model, x, y):
        time.sleep(self.seconds)
        self.calls += 1
        return QUICK(model, x, y)


def test_a_time_budget_leaves_a_valid_lower_bound_and_can_be_continued(planes, tmp_path):
    x, y = cloud()
    whole = susceptibility(planes, x, y, Slow(0), batch_size=10)
    attack = Slow(0.2)
    some = susceptibility(planes, x, y, attack, batch_size=10, time_budget=0.3, resume=tmp_path)
    assert 0 < some.records.attacked.sum() < some.records.contested.sum() == whole.records.attacked.sum()
    assert not some.records.degraded[~some.records.attacked].any()
    assert some.fpr_lower <= whole.fpr_lower
    assert some.fpr_upper == whole.fpr_upper
    assert some.summary()["attacked"] == some.records.attacked.sum()
    before = attack.calls
    rest = susceptibility(planes, x, y, attack, batch_size=10, resume=tmp_path)
    np.testing.assert_array_equal(rest.records.degraded, whole.records.degraded)
    assert attack.calls == -(-int(whole.records.contested.sum()) // 10)
    assert before < attack.calls
    with pytest.raises(ValueError, match="`time_budget`"):
        susceptibility(planes, x, y, attack, time_budget=0)


def test_degraded_inputs_of_a_resumable_measurement_stay_on_disk(planes, tmp_path):
    x, y = cloud()
    held = susceptibility(planes, x, y, QUICK, batch_size=16)
    kept = susceptibility(planes, x, y, QUICK, batch_size=16, resume=tmp_path)
    assert callable(kept.adversarial._inputs)
    np.testing.assert_array_equal(kept.adversarial.index, held.adversarial.index)
    np.testing.assert_allclose(kept.adversarial.inputs, held.adversarial.inputs, atol=1e-6)
    assert len(kept.adversarial) == held.test_A


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """Three times the inputs, read from a file that is mapped into memory: the peak grows by the records alone."""
    rng = np.random.default_rng(0)
    model = linear(rng.normal(size=(1000, 4)), 0.02)

    def peak(n, watched=True):
        path = tmp_path / f"{n}.npy"
        x = np.lib.format.open_memmap(path, "w+", "float32", (n, 1000))
        x[:] = rng.normal(size=(n, 1000)) / 30
        x.flush()
        mapped = np.load(path, mmap_mode="r")
        attack = CertificateDescent(steps=2, batch_size=16)
        if watched:
            tracemalloc.start()
        result = susceptibility(
            model, mapped, np.zeros(n, int), attack, batch_size=50, resume=tmp_path / f"run_{n}", progress=False
        )
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.test_A > n // 20
        return size

    peak(60, watched=False)  # which compiles
    small, large = peak(200), peak(600)
    assert small > 50 * 1000 * 4  # it holds a batch
    assert large - small < 400 * 300  # and 300 bytes of records a further input, where an input has 4,000


KILLED = """
import os, signal, sys
import numpy as np, keras
import defended
from defended.attacks import CertificateDescent, susceptibility
from defended.attacks.measurement import engine
network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
network.set_weights([np.random.default_rng(0).normal(size=(6, 4)).astype("float32"), np.zeros(4, "float32")])
rng = np.random.default_rng(1)
x, y = rng.normal(size=(120, 6)).astype("float32"), rng.integers(0, 4, 120)
original, pieces = engine.attack_inputs, []
def killed_at_the_third(*arguments, **arrays):
    pieces.append(len(pieces))
    if len(pieces) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **arrays)
engine.attack_inputs = killed_at_the_third
attack = CertificateDescent(steps=10, batch_size=16)
model = defended.GloroNet(network, epsilon=0.3)
model.finalize()
susceptibility(model, x, y, attack, batch_size=8, resume=sys.argv[1])
"""


def test_a_process_that_is_killed_loses_and_repeats_nothing(planes, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("attacked_*")}
    assert len(kept) == 2
    result = susceptibility(planes, *cloud(), QUICK, batch_size=8, resume=tmp_path)
    for path, time_written in kept.items():
        assert path.stat().st_mtime_ns == time_written
    same(result, susceptibility(planes, *cloud(), QUICK, batch_size=8))


def test_resume_refuses_another_measurement(planes, line, tmp_path):
    x, y = cloud(20)
    attack = CertificateDescent(steps=5, batch_size=16)
    susceptibility(planes, x, y, attack, resume=tmp_path)
    with pytest.raises(ValueError, match=r"another measurement \(attack"):
        susceptibility(planes, x, y, CertificateDescent(steps=6, batch_size=16), resume=tmp_path)
    with pytest.raises(ValueError, match="data"):
        susceptibility(planes, x[::-1], y, attack, resume=tmp_path)
    with pytest.raises(ValueError, match="weights"):
        susceptibility(linear(np.random.default_rng(9).normal(size=(6, 4)), 0.3), x, y, attack, resume=tmp_path)
    planes.epsilon = 0.2
    try:
        with pytest.raises(ValueError, match=r"epsilon: 0\.3"):
            susceptibility(planes, x, y, attack, resume=tmp_path)
    finally:
        planes.epsilon = 0.3
    with pytest.raises(ValueError, match="config"):
        susceptibility(planes, x, y, lambda model, x, y: x, resume=tmp_path)


def test_resume_refuses_a_folder_of_other_things(line, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        susceptibility(line, LINE, LABELS, QUICK, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_piece_is_named(line, tmp_path):
    susceptibility(line, LINE, LABELS, QUICK, resume=tmp_path)
    (tmp_path / "attacked_000000000.npz").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=r"attacked_000000000\.npz cannot be read"):
        susceptibility(line, LINE, LABELS, QUICK, resume=tmp_path)


def broken_model():
    """A model that claims ten times the radius it has."""
    return overclaiming(linear([[1, -1]], 0.25))


def test_a_broken_certificate_is_reported_loudly():
    x = np.array([[0.04], [5.0]], "float32")
    with pytest.raises(CertificateViolation, match="The certificate is broken") as raised:
        susceptibility(broken_model(), x, [0, 0], lambda model, x, y: x - 0.2)
    np.testing.assert_array_equal(raised.value.index, [0])
    np.testing.assert_allclose(raised.value.inputs, [[-0.16]], atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (lambda model, x, y: x * np.nan, "returned NaN or infinity"),
        (lambda model, x, y: x + 0.3, "left the l2 ball of radius 0.25"),
        (lambda model, x, y: x[:1], "shape of `x`"),
        (PGD(norm="linf"), "keeps to an linf ball, the model defends l2"),
        (PGD(epsilon=0.5), "set to epsilon=0.5, the model defends 0.25"),
    ],
)
def test_attacks_that_are_wrong(line, attack, match):
    with pytest.raises(ValueError, match=match):
        susceptibility(line, LINE, LABELS, attack)


def test_an_overshoot_by_rounding_is_pulled_back(line):
    result = susceptibility(line, LINE, LABELS, lambda model, x, y: x + 0.25 * np.sign(x) * (1 + 1e-5))
    assert (result.records.distance <= 0.25).all()


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (LINE[:0], LABELS[:0], "empty"),
        (LINE, LABELS[:3], "8 class numbers"),
        (LINE, LABELS + 1, r"\[0, 2\)"),
        (LINE * np.nan, LABELS, "finite"),
        (LINE[:, 0], LABELS, "shape"),
    ],
)
def test_bad_data(line, x, y, match):
    with pytest.raises(ValueError, match=match):
        susceptibility(line, x, y, QUICK)


def test_bad_arguments(line):
    with pytest.raises(TypeError, match="DefendedModel"):
        susceptibility(line.network, LINE, LABELS, QUICK)
    with pytest.raises(TypeError, match="`attack`"):
        susceptibility(line, LINE, LABELS, "pgd")
    with pytest.raises(ValueError, match="`confidence`"):
        susceptibility(line, LINE, LABELS, QUICK, confidence=95)
    with pytest.raises(ValueError, match="`batch_size`"):
        susceptibility(line, LINE, LABELS, QUICK, batch_size=0)


def test_the_authors_mnist_model(reference_dir, mnist):
    """On its first 2,000 test points their script degrades 4.6 %; descent on the certificate four times as many."""
    path = reference_dir / "gloro" / "mnist_0.3_N.gloronet"
    # Without rounding, as their figures were made.
    model = read_gloronet(
        path, 0.3, lambda network, epsilon: defended.GloroNet(network, epsilon=epsilon, rounding=False)
    )
    model.finalize()
    x, y = mnist.x_test[:2000], mnist.y_test[:2000]
    ours = susceptibility(model, x, y, CertificateDescent(steps=12, early_stop=True))
    assert ours.fpr_lower_correct.total == pytest.approx(1818, abs=3)
    assert ours.fpr_upper_correct == pytest.approx(0.384, abs=0.002)
    assert ours.fpr_lower_correct >= 0.19
    theirs = susceptibility(model, x, y, DegradationAttack.published(0.3))
    assert theirs.fpr_lower_correct == pytest.approx(0.046, abs=0.007)
