"""Training in bfloat16: on which processors, and what is said on the others."""

import keras
import pytest
import tensorflow as tf

from defended.exceptions import BFloat16Warning
from defended.training import bfloat16, training_run
from defended.training.bfloat16 import BFloat16Training, supports_bfloat16
from defended.training.training_run import TrainingSettings, train

OPTION = "auto_mixed_precision_onednn_bfloat16"
SMALL = {"net": "dense", "epochs": 1, "epsilon": 0.1, "batch_size": 512}


def cpuinfo(tmp_path, flags, key="flags\t\t"):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: avx512f of a name\n{key}: {flags}\n\n" * 2, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("flags", "able"),
    [
        ("fpu sse2 avx2 avx512f avx512bw avx512_bf16 amx_bf16", True),
        ("fpu avx512f", True),
        ("fpu avx2 avx_vnni avx_ne_convert", True),
        ("fpu sse2 avx2 f16c", False),
        ("fpu avx512fancy avx512_vp2intersect", False),
        ("", False),
    ],
)
def test_the_processors_flags_decide(tmp_path, flags, able):
    assert supports_bfloat16(cpuinfo(tmp_path, flags)) is able


def test_other_processors_and_systems_are_not_able(tmp_path):
    assert not supports_bfloat16(cpuinfo(tmp_path, "bf16 avx512f", key="Features\t"))
    assert not supports_bfloat16(tmp_path / "none")


def test_the_callback_asks_tensorflow_for_it_while_training():
    callback = BFloat16Training()
    callback.on_train_begin()
    assert tf.config.optimizer.get_experimental_options()[OPTION]
    callback.on_train_end()
    assert not tf.config.optimizer.get_experimental_options()[OPTION]


def linear(input_shape, num_classes):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)])


@pytest.fixture
def asked(monkeypatch):
    """What TensorFlow is asked for, in order; it is not told. The network that is trained is a linear one."""
    seen = []
    monkeypatch.setitem(training_run.NETWORKS, "dense", linear)
    monkeypatch.setattr(BFloat16Training, "_set", lambda self, value: seen.append(value))
    return seen


def test_a_run_on_another_processor_says_so_and_trains_in_float32(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(bfloat16, "_CPUINFO", cpuinfo(tmp_path, "fpu avx2"))
    with pytest.warns(BFloat16Warning, match=r"AVX-512.*training in float32") as caught:
        run = train(TrainingSettings(**SMALL, bfloat16=True), tmp_path / "run", verbose=0)
    assert len([item for item in caught if item.category is BFloat16Warning]) == 1
    assert run.model.is_final
    assert not asked


def test_a_run_on_a_processor_that_can_trains_in_it_and_proves_without(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(bfloat16, "_CPUINFO", cpuinfo(tmp_path, "fpu avx512f"))
    train(TrainingSettings(**SMALL, bfloat16=True), tmp_path / "run", verbose=0)
    assert asked[0] is True
    assert asked[-1] is False
