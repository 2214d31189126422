"""PGD against foolbox's L2PGD: the same steps, step size, radius, labels and cross-entropy, on several networks.

    DEFENDED_REFERENCE=... DEFENDED_DATA=... python benchmarks/pgd_vs_foolbox.py [--points 512] [--rounds 3]

Both take turns in one run, warm, in batches of one size. Printed are the medians of the times and of their ratios, and
the shares of the network's answers that change within the radius. Foolbox runs as its users run it, eagerly, on the
bare network. Ours runs twice: from a random start as foolbox does, where the two differ by the luck of the start, and
from x itself.

Networks: the MNIST net of the paper's authors (DEFENDED_REFERENCE), the two in `results/mnist_2c2f` (images of
DEFENDED_DATA), two small ones trained on scikit-learn's digits without a defence, and a 2C2F net with random weights.
Those whose folder is not named are left out. The radius is twice the model's, as in Algorithm 3.1.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import keras
import numpy as np
import tensorflow as tf

import defended
from defended.attacks import PGD

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

RESULTS = Path(__file__).parent / "results" / "mnist_2c2f"
_TRAVEL = 1.25


def trained_on_digits(*body: Any) -> tuple[Any, Any]:
    data = defended.datasets.load("digits")
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input(data.x_train.shape[1:]), *body, keras.layers.Dense(10)])
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(data.x_train, data.y_train, epochs=15, verbose=0)
    return defended.GloroNet(network, epsilon=0.25), data.x_test


def networks() -> Iterator[tuple[str, Any, Any]]:
    """Name, model and inputs."""
    images = defended.datasets.load("mnist").x_test if os.environ.get("DEFENDED_DATA") else None
    if images is not None and os.environ.get("DEFENDED_REFERENCE"):
        path = Path(os.environ["DEFENDED_REFERENCE"]) / "gloro" / "mnist_0.3_N.gloronet"
        model = defended.load_gloronet(str(path))
        model.epsilon = 0.3
        yield "mnist_0.3_N", model, images
    if images is not None:
        for path in sorted(RESULTS.glob("*.keras")):
            yield path.stem, keras.models.load_model(path), images
    layers = keras.layers
    yield "digits, dense", *trained_on_digits(layers.Flatten(), layers.Dense(64, activation="relu"))
    yield "digits, convolutional", *trained_on_digits(layers.Conv2D(16, 3, activation="relu"), layers.Flatten())
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(0).random((2000, 28, 28, 1), dtype=np.float32)
    yield "2C2F, random", defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3), random


def foolbox_pgd(model: Any, x: Any, labels: Any, radius: float, steps: int, batch_size: int) -> Any:
    attack = foolbox.attacks.L2PGD(steps=steps, rel_stepsize=_TRAVEL / steps)
    wide = (float(x.min()) - 2 * radius, float(x.max()) + 2 * radius)
    wrapped = foolbox.TensorFlowModel(
        lambda points: model.network(points, training=False), bounds=wide, device="/GPU:0" if _gpu() else "/CPU:0"
    )
    parts = []
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        _, clipped, _ = attack(wrapped, tf.constant(x[rows]), tf.constant(labels[rows]), epsilons=radius)
        parts.append(clipped.numpy())
    return np.concatenate(parts)


def _gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def answers(model: Any, x: Any) -> Any:
    return np.concatenate(
        [model.network(x[i : i + 256], training=False).numpy().argmax(1) for i in range(0, len(x), 256)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    figures.add_option(parser)
    arguments = parser.parse_args()
    steps, batch_size = arguments.steps, arguments.batch_size
    found = figures.Figures()

    print(f"{arguments.points} points, {steps} steps, batches of {batch_size}, {os.cpu_count()} cores")
    print(f"{'network':22s} {'radius':>6s} {'foolbox':>18s} {'PGD, random start':>26s} {'PGD, from x':>26s}")
    for name, model, inputs in networks():
        x = inputs[: arguments.points]
        labels, radius = answers(model, x), 2 * float(keras.ops.convert_to_numpy(model.epsilon))
        settings = {"norm": "l2", "steps": steps, "epsilon": radius, "batch_size": batch_size}
        plain, from_x = PGD(**settings), PGD(**settings, random_start=False)
        ways = {
            "foolbox": lambda model=model, x=x, labels=labels, radius=radius: foolbox_pgd(
                model, x, labels, radius, steps, batch_size
            ),
            "plain": lambda model=model, x=x, labels=labels, attack=plain: attack(model, x, labels),
            "from x": lambda model=model, x=x, labels=labels, attack=from_x: attack(model, x, labels),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        flipped: dict[str, float] = {}
        for number in range(arguments.rounds + 1):
            for way, attack in ways.items():
                start = time.perf_counter()
                attacked = attack()
                if number:  # the first round compiles
                    times[way].append(1000 * (time.perf_counter() - start) / len(x))
                flipped[way] = float((answers(model, attacked) != labels).mean())
        base = np.array(times["foolbox"])
        line = f"{name:22s} {radius:6.3g} {np.median(base):7.2f} ms {flipped['foolbox']:7.2%}"
        for way in ("plain", "from x"):
            ratio = np.median(base / np.array(times[way]))
            line += f"  {np.median(times[way]):7.2f} ms ({ratio:4.1f} x) {flipped[way]:7.2%}"
        print(line, flush=True)
        ours, against = np.array(times["plain"]), {"peer": "foolbox", "theirs": float(np.median(base))}
        ratio = float(np.median(ours / base))
        found.add(f"PGD, {name}", float(np.median(ours)), "ms a point", **against, ratio=ratio, at_most=0.5)
        changed = {"peer": "foolbox", "theirs": flipped["foolbox"]}
        found.add(f"PGD from x, {name}", flipped["from x"], "of the answers changed", **changed, at_least=1)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
