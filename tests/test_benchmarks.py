"""What the benchmarks share: figures with their requirements, the page's table, and peers in processes of their own."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scripts import run_script

from defended import GloroNet, pretrained
from defended.layers import MinMax

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

WORKER = """
import os
from peers.worker import serve

state = {}

def prepare(factor):
    print("a package that talks", flush=True)
    os.write(1, b"even so\\n")
    state["factor"] = factor

def times(number):
    return state["factor"] * number

if __name__ == "__main__":
    serve(("numpy",), {"prepare": prepare, "times": times})
"""


@pytest.fixture(scope="module")
def small_net(tmp_path_factory):
    """The file of a small net whose biases are large and whose layers have uneven spectra."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same"), MinMax(),
            keras.layers.Conv2D(6, 3, strides=2, padding="same"), MinMax(),
            keras.layers.Flatten(), keras.layers.Dense(10), MinMax(), keras.layers.Dense(3),
        ]
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(layer.kernel * np.exp(rng.normal(size=layer.kernel.shape[-1])))
            layer.bias.assign(10 * rng.normal(size=layer.bias.shape))
    path = tmp_path_factory.mktemp("compact") / "small.keras"
    GloroNet(network, epsilon=0.1).save(path)
    return path


@pytest.fixture(scope="module")
def before(small_net):
    return keras.models.load_model(small_net, compile=False)


def module(path):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.parent.name}_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_compact_net_is_small_and_proven_for_its_rounded_weights(tmp_path):
    compact = module(BENCHMARKS / "compact.py")
    for bits in (4, 8):
        weights = np.random.default_rng(bits).standard_normal((30, 40)).astype("float32")
        rounded = compact.on_grid(weights, bits)
        step = np.diff(np.unique(rounded)).min()
        assert np.log2(step) % 1 == 0
        assert np.abs(rounded / step).max() <= 2 ** (bits - 1)
        assert np.abs(rounded - weights).max() <= step / 2
        assert step <= 4 * np.abs(weights).max() / 2**bits
    assert not compact.on_grid(np.zeros((2, 2), "float32"), 8).any()

    source = Path(pretrained.FOLDER) / "mnist-2c2f-0.3.keras"
    compact.compact(source, tmp_path / "small.keras", bits=8, others=11)
    assert (tmp_path / "small.keras").stat().st_size < source.stat().st_size / 3
    before, after = (keras.models.load_model(path, compile=False) for path in (source, tmp_path / "small.keras"))
    assert after.is_final
    kernels = [array for array in after.network.get_weights() if array.ndim > 1]
    largest = max(array.size for array in kernels)
    for kernel in kernels:
        assert len(np.unique(kernel)) <= 2 ** (8 if kernel.size == largest else 11) + 1
    x = np.random.default_rng(0).random((64, 28, 28, 1), dtype="float32")
    np.testing.assert_allclose(after.verdicts(x).radius, before.verdicts(x).radius, atol=0.02)


def test_a_compact_net_may_have_its_biases_centred(small_net, before, tmp_path, monkeypatch):
    compact = module(BENCHMARKS / "compact.py")
    images = np.random.default_rng(0).random((50, 8, 8, 1), dtype="float32")
    monkeypatch.setattr(compact.datasets, "load", lambda name: SimpleNamespace(x_train=images))
    compact.compact(small_net, tmp_path / "centred.keras", bits=24, others=24, centre="mnist")
    after = keras.models.load_model(tmp_path / "centred.keras", compile=False)
    spent = [model.certificate_report().radius_spent for model in (before, after)]
    assert spent[1] < 0.97 * spent[0]


def test_centring_that_changes_answers_is_refused_and_writes_nothing(small_net, tmp_path, monkeypatch):
    compact = module(BENCHMARKS / "compact.py")
    images = np.random.default_rng(0).random((50, 8, 8, 1), dtype="float32")
    monkeypatch.setattr(compact.datasets, "load", lambda name: SimpleNamespace(x_train=images))

    def moved(model, images, padded):
        # The class that was seldom chosen before wins everywhere.
        chosen = np.bincount(compact.answers(model.network, images), minlength=3)
        model.network.layers[-1].bias.assign(1e9 * np.eye(3)[chosen.argmin()])

    monkeypatch.setattr(compact, "centre_biases", moved)
    with pytest.raises(SystemExit, match="Leave out --centre"):
        compact.compact(small_net, tmp_path / "centred.keras", bits=24, others=24, centre="mnist")
    assert not list(tmp_path.iterdir())


def test_a_compact_net_may_have_its_bounds_sharpened(small_net, before, tmp_path, capsys):
    compact = module(BENCHMARKS / "compact.py")
    compact.compact(small_net, tmp_path / "sharp.keras", bits=24, others=24, sharpen=True)
    after = keras.models.load_model(tmp_path / "sharp.keras", compile=False)
    pairs = np.triu_indices(3, 1)
    ratio = np.exp(np.mean(np.log(after.margin_lipschitz[pairs] / before.margin_lipschitz[pairs])))
    assert ratio < 0.9
    said = re.search(r"sharpened: K is (\d\.\d{4}) of what it was", capsys.readouterr().out)
    assert float(said.group(1)) == pytest.approx(ratio, abs=2e-4)


class TestFigures:
    def test_the_ratio_is_judged_where_there_is_one_else_the_figure(self, tmp_path):
        figures = module(BENCHMARKS / "figures.py").Figures()
        figures.add("step", 12.0, "ms", peer="bare", theirs=10.0, at_most=1.25)
        figures.add("step", 13.0, "ms", peer="bare", theirs=10.0, at_most=1.25)
        figures.add("rate", 95.0, "samples/s", peer="bare", theirs=100.0, ratio=0.91, at_least=0.9)
        figures.add("import", 0.4, "s", at_most=0.3)
        figures.add("verified loading", 2.0, "s")
        figures.write(tmp_path / "figures.json")
        rows = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
        assert [row["met"] for row in rows] == [True, False, True, False, None]
        assert [row["ratio"] for row in rows] == [1.2, 1.3, 0.91, None, None]
        assert [row["required"] for row in rows] == ["≤ 1.25", "≤ 1.25", "≥ 0.9", "≤ 0.3", None]
        figures.write(None)

    @pytest.fixture
    def run_all(self, monkeypatch):
        monkeypatch.syspath_prepend(BENCHMARKS)
        return module(BENCHMARKS / "run_all.py")

    def test_the_table_says_what_is_not_met(self, run_all):
        figures = module(BENCHMARKS / "figures.py").Figures()
        figures.add("step", 13.0, "ms", peer="bare network", theirs=10.0, at_most=1.25)
        figures.add("answers", 0.19482, "of the answers", at_least=0.19)
        table = run_all.table([{"benchmark": "some", **row} for row in figures.rows])
        assert table[2] == "| some | step | 13 ms | bare network | 10 ms | 1.30 | **≤ 1.25: not met** |"
        assert table[3] == "| some | answers | 19.48% of the answers |  |  |  | ≥ 0.19 |"

    def test_every_benchmark_of_the_page_exists_and_takes_the_option(self, run_all):
        for benchmark in run_all.BENCHMARKS.values():
            text = (BENCHMARKS / f"{benchmark.script}.py").read_text(encoding="utf-8")
            assert "figures.add_option(parser)" in text
            assert ".write(" in text


class TestPeers:
    @pytest.fixture
    def peers(self, tmp_path, monkeypatch):
        folder = tmp_path / "peers"
        folder.mkdir()
        (folder / "__init__.py").touch()
        shutil.copy(BENCHMARKS / "peers" / "worker.py", folder)
        (folder / "some_worker.py").write_text(WORKER, encoding="utf-8")
        found = module(BENCHMARKS / "peers" / "__init__.py")
        monkeypatch.setattr(found, "BENCHMARKS", tmp_path)
        for variable in ("DEFENDED_PEERS_PYTHON", "DEFENDED_SOME_PYTHON", "DEFENDED_NONE_PYTHON"):
            monkeypatch.delenv(variable, raising=False)
        return found

    def test_calls_are_answered_and_clocked_whatever_the_package_prints(self, peers):
        peer = peers.start("some", factor=3)
        assert peer.versions.startswith("numpy ")
        assert peer.ask("times", number=14) == 42
        assert 0 < peer.milliseconds("times", number=14) < 1000
        with pytest.raises(peers.PeerError, match="TypeError"):
            peer.ask("times")
        with pytest.raises(peers.PeerError, match="KeyError: 'nothing'"):
            peer.ask("nothing")
        assert peer.ask("times", number=1) == 3  # an error ends the call, not the worker
        peer.close()

    def test_a_peer_that_is_not_there_is_left_out_with_its_reason(self, peers, capsys, tmp_path):
        (tmp_path / "peers" / "none_worker.py").write_text("import no_such_package\n", encoding="utf-8")
        assert peers.start("none") is None
        assert "none, left out" in (said := capsys.readouterr().out)
        assert "No module named 'no_such_package'" in said

    def test_interpreters_are_named_for_one_or_for_all(self, peers, monkeypatch, capsys):
        assert peers.interpreter("some") == sys.executable
        monkeypatch.setenv("DEFENDED_PEERS_PYTHON", "/all/python")
        assert peers.interpreter("some") == "/all/python"
        monkeypatch.setenv("DEFENDED_SOME_PYTHON", "/some/python")
        assert peers.interpreter("some") == "/some/python"
        assert peers.start("some", factor=1) is None
        assert "some, left out (by /some/python)" in capsys.readouterr().out
        assert peers.version("some", "numpy") == "numpy not installed"

    def test_versions_are_those_of_the_peers_environment(self, peers):
        assert peers.version("some", "numpy") == f"numpy {np.__version__}"
        assert peers.version("some", "no-such-package") == "no-such-package not installed"


def test_the_gpu_training_runs_without_tensorflow_and_its_net_can_be_defended_here(tmp_path):
    """A few steps on a CPU, in JAX; the network that is written is defended in this process."""
    rng = np.random.default_rng(0)
    parts = {"x_train": (64, 32, 32, 3), "x_test": (16, 32, 32, 3)}
    images = {name: rng.integers(0, 256, shape).astype("uint8") for name, shape in parts.items()}
    np.savez(tmp_path / "cifar10.npz", y_train=np.arange(64) % 10, y_test=np.arange(16) % 10, **images)
    words = ["train", tmp_path / "net.keras", "--minutes", "0.02", "--batch", "8", "--steps", "2", "--epochs", "3"]
    words += ["--depth", "1", "--width", "4", "--units", "8"]
    script = f"""
        import runpy, sys
        sys.modules["tensorflow"] = None
        sys.argv = {["script", *map(str, words)]}
        runpy.run_path({str(BENCHMARKS / "gpu" / "cifar10_liresnet.py")!r}, run_name="__main__")
    """
    run_script(script, KERAS_BACKEND="jax", DEFENDED_DATA=str(tmp_path), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    network = keras.models.load_model(tmp_path / "net.keras")
    assert GloroNet(network, epsilon=0.1, second_look=True).num_classes == 10


def test_the_gpu_throughput_of_smoothing_checks_its_votes_and_runs_without_tensorflow(tmp_path):
    """A few samples on a CPU, in JAX; noise of another size, and noise that repeats, would be noticed."""
    script = f"""
        import runpy, sys
        import numpy as np
        sys.modules["tensorflow"] = None
        found = runpy.run_path({str(BENCHMARKS / "gpu" / "smoothing_throughput.py")!r})
        from keras import Input, Sequential, layers, utils

        utils.set_random_seed(0)

        parts = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(5)]
        network = Sequential([Input((6, 6, 1)), *parts])
        found["NETWORKS"]["2c2f"] = lambda: network

        def main(*words):
            sys.argv = ["script", "--samples", "400", "--rounds", "2", *words]
            found["main"]()

        def refusal(function, *words):
            try:
                function(*words)
            except SystemExit as error:
                return str(error)

        main("--net", "2c2f", "--batch", "100", "--precision", "bfloat16", "--out", {str(tmp_path / "figures.json")!r})
        assert "a multiple of every --batch" in refusal(main, "--batch", "100", "30")
        assert "`--sigma` must be a positive finite number" in refusal(main, "--sigma", "nan")
        assert "there is no file nowhere.keras" in refusal(main, "--network", "nowhere.keras", "--batch", "100")

        x = np.random.default_rng(0).random((6, 6, 1), dtype="float32")
        _, smoothed, logits = found["on_jax"](network, x, 0.25, 400, 40)
        plain, first, second = found["plain_votes"](logits, x, 0.25), smoothed(), smoothed()
        assert (first % 10).any()  # ten chunks under the same noise would vote alike
        assert (first != second).any()
        assert found["check_votes"](first, 400, plain)["largest_share"] < 0.7
        little = found["on_jax"](network, x, 0.01, 400, 100)[1]()
        assert "chance allows" in refusal(found["check_votes"], little, 400, plain)
        assert "of 401 samples, 400 voted" in refusal(found["check_votes"], first, 401, plain)
    """
    said = run_script(script, KERAS_BACKEND="jax", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    facts = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (facts["backend"], facts["device"]) == ("jax", "cpu")
    [row] = facts["rows"]
    assert row["least_ratio"] <= row["ratio"] <= row["largest_ratio"]
    assert f"{row['ratio']:.3f} ({row['least_ratio']:.3f} to {row['largest_ratio']:.3f})" in said
