"""Architectures of the papers, and files that are whole or absent."""

import os

import numpy as np
import pytest

from defended import GloroNet, zoo
from defended._io import atomic_write_bytes, atomic_write_text, sha256_file


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        # 4*4*1*16 + 16, 4*4*16*32 + 32, 1568*100 + 100, 100*10 + 10
        (zoo.cnn_2c2f, 272 + 8224 + 156_900 + 1010),
        # 3*3*1*32 + 32, 4*4*32*32 + 32, 3*3*32*64 + 64, 4*4*64*64 + 64, 3136*512 + 512, 512*512 + 512, 512*10 + 10
        (zoo.cnn_4c3f, 320 + 16_416 + 18_496 + 65_600 + 1_606_144 + 262_656 + 5130),
        (zoo.dense_small, 64 * 64 + 64 + 64 * 64 + 64 + 650),
    ],
)
def test_sizes_by_hand(build, parameters):
    network = build()
    assert network.count_params() == parameters
    assert GloroNet(network, epsilon=0.1).num_classes == 10


def test_other_shapes_and_activations():
    network = zoo.cnn_2c2f((32, 32, 3), num_classes=7, activation="relu")
    assert network.output_shape == (None, 7)
    assert network(np.zeros((2, 32, 32, 3), "float32")).shape == (2, 7)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = atomic_write_text(tmp_path / "deep" / "file.txt", "old")

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_sha256_by_hand(tmp_path):
    path = atomic_write_bytes(tmp_path / "abc", b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
