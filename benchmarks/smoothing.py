"""Smoothing's throughput against the bare network and Cohen et al.'s procedure in PyTorch, and the sequential gate.

    python benchmarks/smoothing.py [--rounds 9] [--samples 10000]
    python benchmarks/smoothing.py --model smoothed.keras --data mnist --points 500

Without a model, 2C2F on images of MNIST's size, round by round, so that drifts of the machine cancel in the ratios:

1. one input: samples/s of `SmoothedNet`, of the bare network, and of CERTIFY written plainly in PyTorch, the network
   with the same weights, batches of 1000 (`pip install torch`; left out where it is missing), and by ART and Cohen et
   al.'s own code where they run here (benchmarks/README.md), of as many draws with the same sigma and alpha;
2. 64 inputs that share their noise, against the bare network, which is compiled too and takes the same rows at a time.

With a model (a `SmoothedNet`, or a network together with --sigma and --epsilon), on test points: what the sequential
gate draws, and how its decisions agree with those of the fixed 100,000.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import keras
import numpy as np
import peers
import tensorflow as tf

import defended
from defended import SmoothedNet

SIGMA, EPSILON, BATCH = 0.25, 0.25, 64
ALPHA, SELECTION = 0.001, 100  # CERTIFY's, and the draws that choose its class


def interleaved(functions: dict[str, Callable[[], Any]], samples: dict[str, int], rounds: int) -> dict[str, np.ndarray]:
    """Samples a second, `[rounds]` each; every round runs every function."""
    for function in functions.values():
        function()
        function()
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            rates[name].append(samples[name] / (time.perf_counter() - start))
    return {name: np.array(values) for name, values in rates.items()}


def row(label: str, rates: np.ndarray, baseline: np.ndarray) -> float:
    ratios = rates / baseline
    print(
        f"  {label:38s} {np.median(rates):9.0f} samples/s   ratio {np.median(ratios):5.2f} "
        f"(from {ratios.min():.2f} to {ratios.max():.2f})"
    )
    return float(np.median(ratios))


def bare(network: keras.Model, rows: int, samples: int) -> Callable[[], Any]:
    """The network on batches of so many rows, compiled, its loop in the graph as the sampler's is."""
    x = tf.random.uniform([rows, *network.input_shape[1:]])

    @tf.function(autograph=False)
    def run(x: Any) -> Any:
        # The sum keeps every evaluation; the input depends on the round, so that none is taken out of the loop.
        body = lambda i, total: (i + 1, total + network(x + 0 * total[0, 0], training=False))  # noqa: E731
        start = (tf.constant(0), tf.zeros([rows, network.output_shape[-1]]))
        return tf.while_loop(lambda i, _: i < samples // rows, body, start, parallel_iterations=1)[1]

    return lambda: run(x).numpy()


def pytorch(network: keras.Model, x: np.ndarray, samples: int) -> Callable[[], Any] | None:
    """CERTIFY of Cohen et al. 2019 as one would write it: repeat, add noise, argmax, count on the host."""
    try:
        import torch
        from peers import torch_2c2f
    except ImportError:
        return None
    model = torch_2c2f.network(network.get_weights())
    image = torch.from_numpy(x[:1].transpose(0, 3, 1, 2).copy())

    def sample_under_noise(number: int, batch_size: int = 1000) -> np.ndarray:
        with torch.no_grad():
            counts = np.zeros(10, dtype=int)
            for _ in range(math.ceil(number / batch_size)):
                size = min(batch_size, number)
                number -= size
                batch = image.repeat((size, 1, 1, 1))
                predictions = model(batch + torch.randn_like(batch) * SIGMA).argmax(1)
                counts += np.bincount(predictions.numpy(), minlength=10)
            return counts

    with torch.no_grad():
        assert_same(model(image).numpy(), network, x)
    return lambda: (sample_under_noise(SELECTION), sample_under_noise(samples))


def assert_same(logits: Any, network: keras.Model, x: np.ndarray) -> None:
    difference = np.abs(logits - network(x[:1]).numpy()).max()
    assert difference < 1e-4, f"the PyTorch network is another one: logits differ by {difference}"


def started(network: keras.Model, x: np.ndarray, folder: Path) -> dict[str, peers.Peer]:
    """ART and Cohen et al.'s code, as far as they run here, with the same weights."""
    path = peers.save_network(folder / "network.npz", network, x[:1])
    settings = {"path": path, "sigma": SIGMA, "alpha": ALPHA, "selection": SELECTION}
    found = {"ART": peers.start("art", **settings)}
    clone = os.environ.get("DEFENDED_COHEN")
    if clone:
        found["Cohen's code"] = peers.start("cohen", folder=str(Path(clone).resolve()), **settings)
    else:
        print("cohen, left out: DEFENDED_COHEN names no clone of github.com/locuslab/smoothing")
    running = {name: peer for name, peer in found.items() if peer is not None}
    for name, peer in running.items():
        print(f"{name}: {peer.versions}")
        assert_same(np.array(peer.ask("logits")), network, x)
    return running


def throughput(rounds: int, samples: int, found: figures.Figures) -> None:
    network = defended.zoo.cnn_2c2f(activation="relu")
    x = np.random.default_rng(0).random((BATCH, 28, 28, 1)).astype("float32")
    model = SmoothedNet(network, EPSILON, SIGMA, samples=samples, mode="fixed")
    rows = min(model._rows_at_once(), samples)
    judge = tf.function(lambda x: model.deployed(x)["label"])
    one, many = tf.constant(x[:1]), tf.constant(x)

    print(f"2C2F, {rows} rows at a time")
    functions: dict[str, Callable[[], Any]] = {
        "bare network": bare(network, rows, samples),
        "SmoothedNet, one input": lambda: judge(one).numpy(),
    }
    counts = {"bare network": samples // rows * rows, "SmoothedNet, one input": samples + SELECTION}
    baseline = pytorch(network, x, samples)
    if baseline is None:
        print("  PyTorch is not installed: its column is left out")
    else:
        functions["PyTorch, one input"], counts["PyTorch, one input"] = baseline, samples + SELECTION
    with tempfile.TemporaryDirectory() as folder:
        for name, peer in started(network, x, Path(folder)).items():
            functions[name] = lambda peer=peer: peer.ask("certify", samples=samples, batch_size=1000)
            counts[name] = samples + SELECTION
        rates = interleaved(functions, counts, rounds)
    to_bare = {name: row(name + ", to bare", values, rates["bare network"]) for name, values in rates.items()}
    ours = rates.pop("SmoothedNet, one input")
    for name, values in rates.items():
        bare_too = name == "bare network"
        ratio = to_bare["SmoothedNet, one input"] if bare_too else row(f"SmoothedNet to {name}", ours, values)
        against = {"peer": name.removesuffix(", one input"), "theirs": float(np.median(values)), "ratio": ratio}
        least = 1.0 if name == "PyTorch, one input" else None
        found.add("one input", np.median(ours), "samples/s", **against, at_least=least)

    judge_many = tf.function(lambda x: short.deployed(x)["label"])
    short = SmoothedNet(network, EPSILON, SIGMA, samples=max(100, samples // 20), mode="fixed")
    drawn = BATCH * (short.samples + short.selection_samples)
    functions = {"bare network": bare(network, rows, drawn), "SmoothedNet, 64 inputs": lambda: judge_many(many).numpy()}
    rates = interleaved(functions, {"bare network": drawn // rows * rows, "SmoothedNet, 64 inputs": drawn}, rounds)
    for name, values in rates.items():
        ratio = row(name + ", to bare", values, rates["bare network"])
    ours, theirs = (np.median(values) for values in (rates["SmoothedNet, 64 inputs"], rates["bare network"]))
    found.add("64 inputs", ours, "samples/s", peer="bare network", theirs=theirs, ratio=ratio, at_least=0.9)


def gate(arguments: argparse.Namespace, judged: figures.Figures) -> None:
    network = keras.models.load_model(arguments.model)
    if isinstance(network, SmoothedNet):
        sigma, epsilon, network = network.sigma, float(network.epsilon), network.network
    else:
        sigma, epsilon = arguments.sigma, arguments.epsilon
    data = defended.datasets.load(arguments.data)
    rows = np.random.default_rng(0).permutation(len(data.x_test))[: arguments.points]
    x, y = data.x_test[rows], data.y_test[rows]
    print(
        f"{arguments.model}, {arguments.data}: {len(x)} test points, sigma {sigma:g}, epsilon {epsilon:g}, alpha 0.001"
    )

    found, used = {}, np.zeros(0)
    for mode in ("sequential", "fixed"):
        model = SmoothedNet(network, epsilon, sigma, mode=mode)
        judge = tf.function(model.deployed, reduce_retracing=True)
        start = time.perf_counter()
        parts = [judge(tf.constant(x[first : first + BATCH])) for first in range(0, len(x), BATCH)]
        label, used = (np.concatenate([part[name].numpy() for part in parts]) for name in ("label", "samples_used"))
        seconds = time.perf_counter() - start
        found[mode] = label
        quantiles = np.quantile(used, (0.5, 0.9, 0.99), method="inverted_cdf").astype(int)
        print(
            f"  {mode:10s} draws: median {quantiles[0]}, 90 % {quantiles[1]}, 99 % {quantiles[2]}, mean "
            f"{used.mean():.0f}; {1000 * seconds / len(x):.1f} ms a point; answered {np.mean(label >= 0):.2%}, "
            f"VRA {np.mean(label == y):.2%}"
        )
        limit = 1000 if mode == "sequential" else None
        judged.add(f"{mode} gate, median draws", quantiles[0], "draws", at_most=limit)
    first, second = found["sequential"], found["fixed"]
    print(f"  the same decision on {np.mean(first == second):.2%} ({np.sum(first != second)} of {len(x)} differ)")
    judged.add("sequential gate, the same decision as fixed", np.mean(first == second), "of the points", at_least=0.99)
    print(f"  two different answers: {np.sum((first >= 0) & (second >= 0) & (first != second))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=10_000, help="draws for one input in a round")
    parser.add_argument("--model", help="a .keras file: judge test points with it, instead of the throughput")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--sigma", type=float, default=SIGMA, help="for a model that is a bare network")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="for a model that is a bare network")
    figures.add_option(parser)
    arguments = parser.parse_args()
    found = figures.Figures()
    if arguments.model:
        gate(arguments, found)
    else:
        throughput(arguments.rounds, arguments.samples, found)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
