"""Training step of a GloRo Net against the same bare network, timed in turn in one run.

    python benchmarks/training_step.py [--batch-size 128] [--steps 40] [--rounds 5]

Prints the median milliseconds of a `train_on_batch`-sized step on the 2C2F MNIST network and the ratio defended / bare,
round by round. Both run as Keras compiles them best on this machine: bare with and without XLA, the faster one counts.
Where gloro is found (benchmarks/README.md), its steps take turns with ours, against the same network bare on its Keras.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import keras
import numpy as np
import peers
import tensorflow as tf

import defended

BARE, LOSSES = ("bare", "bare, XLA"), ("cross-entropy", "TRADES")


def bare(jit: bool) -> keras.Model:
    network = defended.zoo.cnn_2c2f()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=jit)
    return network


def gloro(loss: str, jit: bool) -> keras.Model:
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=jit)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    figures.add_option(parser)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random((arguments.batch_size, 28, 28, 1)), tf.float32)
    y = tf.constant(rng.integers(0, 10, arguments.batch_size))
    models = {
        "bare": bare(False), "bare, XLA": bare(True),
        "GloRo, cross-entropy": gloro("crossentropy", False), "GloRo, cross-entropy, XLA": gloro("crossentropy", True),
        "GloRo, TRADES": gloro("trades_kl.1.5", False), "GloRo, TRADES, XLA": gloro("trades_kl.1.5", True),
        "GloRo, EMMA, XLA": gloro("emma", True),
    }  # fmt: skip
    functions = {name: model.make_train_function() or model.train_function for name, model in models.items()}

    def round_of(name: str) -> float:
        data = iter(tf.data.Dataset.from_tensors((x, y)).repeat(arguments.steps))
        start = time.perf_counter()
        for _ in range(arguments.steps):
            functions[name](data)
        return 1000 * (time.perf_counter() - start) / arguments.steps

    rounds = {name: lambda name=name: round_of(name) for name in models}
    gloro_net = peers.start("gloro", task="training", batch=arguments.batch_size, epsilon=0.3)
    if gloro_net is not None:

        def their_round(name: str) -> float:
            return gloro_net.milliseconds("steps", name=name, number=arguments.steps) / arguments.steps

        rounds |= {f"gloro, {name}": lambda name=name: their_round(name) for name in (*BARE, *LOSSES)}

    for one_round in rounds.values():
        one_round()
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(arguments.rounds):
        for name, one_round in rounds.items():
            times[name].append(one_round())
    print(
        f"2C2F, batch {arguments.batch_size}, "
        f"{tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()} threads"
    )
    ratios = table({name: times[name] for name in models}, BARE)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    best = {loss: min((f"GloRo, {loss}", f"GloRo, {loss}, XLA"), key=medians.__getitem__) for loss in LOSSES}
    found = figures.Figures()
    for loss, name in best.items():
        against = {"peer": "bare network", "theirs": min(medians[bare] for bare in BARE), "ratio": ratios[name]}
        found.add(f"training step, {loss}", medians[name], "ms", **against, at_most=1.25)
    if gloro_net is not None:
        print(gloro_net.versions)
        theirs = table({name: times[name] for name in times if name not in models}, [f"gloro, {n}" for n in BARE])
        for loss, name in best.items():
            found.add(f"training step, {loss}", medians[name], "ms", peer="gloro", theirs=medians[f"gloro, {loss}"])
            over_bare = theirs[f"gloro, {loss}"]
            found.add(f"training step, {loss}, over bare", ratios[name], "x", peer="gloro", theirs=over_bare)
    found.write(arguments.json)


def table(times: dict[str, list[float]], bare: Sequence[str]) -> dict[str, float]:
    """Print milliseconds, and the ratios to the bare network at its fastest, whose medians are returned."""
    baseline = min(bare, key=lambda name: np.median(times[name]))
    medians = {}
    for name, values in times.items():
        ratios = np.array(values) / np.array(times[baseline])
        medians[name] = float(np.median(ratios))
        print(
            f"{name:26s} {np.median(values):8.2f} ms a step   ratio to {baseline!r}: "
            f"{medians[name]:.2f} (from {ratios.min():.2f} to {ratios.max():.2f})"
        )
    return medians


if __name__ == "__main__":
    main()
