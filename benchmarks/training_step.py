"""Training step of a GloRo Net against the same bare network, timed in turn in one run.

    python benchmarks/training_step.py [--batch-size 128] [--steps 40] [--rounds 5]

Prints the median milliseconds of a `train_on_batch`-sized step on the 2C2F MNIST network and the ratio defended / bare,
round by round. Both run as Keras compiles them best on this machine: bare with and without XLA, the faster one counts.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import defended


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

    for name in models:
        round_of(name)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(arguments.rounds):
        for name in models:
            times[name].append(round_of(name))
    best_bare = min(("bare", "bare, XLA"), key=lambda name: np.median(times[name]))
    print(
        f"2C2F, batch {arguments.batch_size}, "
        f"{tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()} threads"
    )
    for name, values in times.items():
        ratios = np.array(values) / np.array(times[best_bare])
        print(
            f"{name:26s} {np.median(values):8.2f} ms a step   ratio to {best_bare!r}: "
            f"{np.median(ratios):.2f} (from {ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
