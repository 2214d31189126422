"""Architectures of the papers, the nets that ship, and files that are whole or absent."""

import json
import os

import keras
import numpy as np
import pytest

from defended import GloroNet, SmoothedNet, pretrained, zoo
from defended._io import atomic_write_bytes, atomic_write_text, sha256_file
from defended.pretrained import cards
from defended.pretrained.cards import measured


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        # 4*4*1*16 + 16, 4*4*16*32 + 32, 1568*100 + 100, 100*10 + 10
        (zoo.cnn_2c2f, 272 + 8224 + 156_900 + 1010),
        # 3*3*1*32 + 32, 4*4*32*32 + 32, 3*3*32*64 + 64, 4*4*64*64 + 64, 3136*512 + 512, 512*512 + 512, 512*10 + 10
        (zoo.cnn_4c3f, 320 + 16_416 + 18_496 + 65_600 + 1_606_144 + 262_656 + 5130),
        # 3*3*3*32 + 32, 4*4*32*32 + 32, 3*3*32*64 + 64, 4*4*64*64 + 64, 3*3*64*64 + 64, 4*4*64*64 + 64, 1024*512 + 512,
        # 512*10 + 10
        (zoo.cnn_6c2f, 896 + 16_416 + 18_496 + 65_600 + 36_928 + 65_600 + 524_800 + 5130),
        (zoo.dense_small, 64 * 64 + 64 + 64 * 64 + 64 + 650),
    ],
)
def test_sizes_by_hand(build, parameters):
    network = build()
    assert network.count_params() == parameters
    assert GloroNet(network, epsilon=0.1).num_classes == 10


def test_a_resnet_is_he_and_others_with_projections():
    # 3x3 kernels; 1x1 kernels of the two projections; the dense layer; 4 values a channel of batch normalisation.
    kernels = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    expected = kernels + 16 * 32 + 32 * 64 + 650 + 4 * 7 * (16 + 32 + 64)
    network = zoo.resnet()
    assert network.count_params() == expected
    assert [layer.output.shape[1] for layer in network.layers if isinstance(layer, keras.layers.Add)] == [
        *[32] * 3, *[16] * 3, *[8] * 3
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        zoo.resnet(depth=18)


def test_layers_have_the_names_and_order_of_saved_networks():
    """A network's digest, and initial weights under a seed, hang on both."""
    conv = lambda number: [f"conv2d{f'_{number}' if number else ''}", f"min_max{f'_{number}' if number else ''}"]  # noqa: E731
    keras.backend.clear_session()
    assert [layer.name for layer in zoo.cnn_4c3f().layers] == [
        *conv(0), *conv(1), *conv(2), *conv(3), "flatten", "dense", "min_max_4", "dense_1", "min_max_5", "dense_2",
    ]  # fmt: skip
    keras.backend.clear_session()
    assert [layer.name for layer in zoo.dense_small(units=4).layers] == [
        "flatten", "dense", "min_max", "dense_1", "min_max_1", "dense_2",
    ]  # fmt: skip
    keras.backend.clear_session()
    assert [layer.name for layer in zoo.liresnet(depth=2, width=4, units=8).layers] == [
        "conv2d", "min_max_2", "li_res_net_block", "min_max", "li_res_net_block_1", "min_max_1",
        "conv2d_1", "min_max_3", "flatten", "dense", "min_max_4", "dense_1",
    ]  # fmt: skip


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


def test_nets_that_ship():
    assert {"mnist-2c2f-0.3", "mnist-2c2f-0.6"} <= set(zoo.names())
    model = zoo.load("mnist-2c2f-0.6")
    assert isinstance(model, GloroNet)
    assert model.is_final
    assert float(model.epsilon) == pytest.approx(0.3)
    assert float(zoo.load("mnist-2c2f-0.6", epsilon=0.2).epsilon) == pytest.approx(0.2)
    smoothed = zoo.load("mnist-2c2f-smoothed-0.5", samples=500)
    assert isinstance(smoothed, SmoothedNet)
    assert smoothed.sampling["sigma"] == 0.5
    assert smoothed.sampling["mode"] == "fixed"
    for name in zoo.names():
        assert pretrained.path(name).stat().st_size < 2_000_000


class TestCards:
    @pytest.mark.parametrize("name", zoo.names())
    def test_every_net_has_figures_of_its_own_file(self, name):
        text = zoo.card(name)
        entry = pretrained.entry_of(name)
        assert entry.command in text
        assert entry.sha256 in text
        assert entry.network in text
        assert measured()[name]["sha256"] == entry.sha256
        for rate in ("clean_accuracy", "vra", "fpr_upper"):
            assert f"`{rate}`" in text

    def test_figures_by_hand(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cards, "MEASURED", tmp_path / "measured.json")
        name = "mnist-2c2f-0.3"
        assert "Nothing was measured" in zoo.card(name)
        found = {"inputs": "all 10 test images", "command": "measure", "rates": {"vra": [9, 10]}}
        found["sha256"] = pretrained.entry_of(name).sha256
        cards.MEASURED.write_text(json.dumps({name: found}))
        assert "correct and certified at eps | 90.00 | 55.50 to 99.75 |" in zoo.card(name)
        cards.MEASURED.write_text(json.dumps({name: found | {"sha256": "of another file"}}))
        assert "Nothing was measured" in zoo.card(name)
        with pytest.raises(ValueError, match="Unknown net"):
            zoo.card("mnist")

    def test_the_figures_are_the_nets(self, real_data):
        data, name = real_data("mnist"), "mnist-2c2f-0.3"
        verdicts = zoo.load(name).verdicts(data.x_test)
        count = int(np.sum(~verdicts.rejected & (verdicts.label == data.y_test)))
        assert measured()[name]["rates"]["vra"] == [count, 10_000]


def test_files_hold_their_proof():
    """So that they open without proving anything: `load` believes a file whose hash is known."""
    for name in zoo.names():
        if pretrained.entry_of(name).kind == "GloroNet":
            assert keras.models.load_model(pretrained.path(name), compile=False).trust_file(), name


def test_bad_names_and_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'resnet'.*mnist-2c2f-0\.3"):
        zoo.load("resnet")
    with pytest.raises(ValueError, match=r"only takes `epsilon`.*sigma"):
        zoo.load("mnist-2c2f-0.3", sigma=1.0)
    monkeypatch.setenv("DEFENDED_ZOO", str(tmp_path))
    changed = bytearray(pretrained.path("mnist-2c2f-0.3").read_bytes())
    changed[1000] ^= 1
    (tmp_path / "mnist-2c2f-0.3.keras").write_bytes(changed)
    with pytest.raises(ValueError, match="not the net that was published"):
        zoo.load("mnist-2c2f-0.3")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (tmp_path / "index.json").write_text(
        '{"a": {"kind": "GloroNet", "data": "mnist", "settings": {}, "command": "train a", "sha256": ""}}'
    )
    with pytest.raises(FileNotFoundError, match=r"DEFENDED_ZOO.*`train a`"):
        zoo.load("a")


def test_publishing_replaces_the_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "net").write_bytes(b"abc")
    facts = {"kind": "GloroNet", "data": "mnist", "settings": {"epsilon": 0.3}, "command": "train"}
    pretrained.publish("b", tmp_path / "net", **facts)
    pretrained.publish("a", tmp_path / "net", **facts)
    assert zoo.names() == ["a", "b"]
    assert pretrained.path("a").read_bytes() == b"abc"
