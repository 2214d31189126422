"""What rounding costs a GloRo Net, and what saves it: blocks of inner products, and a second look in float64.

    DEFENDED_DATA=path/to/data python benchmarks/rounding.py NETWORK --data mnist [--epsilon 0.3] [--points 10000]

NETWORK is a zoo name, or a `.keras` or `.gloronet` file, defended or not. A line for each way to evaluate:

- *spent*: what rounding takes off the radius of the median image;
- VRA at epsilon, VRA at 2 epsilon, and the images that are answered rightly and proven to stay so within epsilon;
- *again*: the share of images that are evaluated in float64, too;
- *time 32* and *time 256*: of a batch, over the first line's, both timed in turn.

The first line, `paid twice`, is the cost of a statement about every point of the ball, rejected ones included; it is
reckoned from the radii of the second.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from inference import clocked, in_turn

import defended
from defended.gloro import rounding

WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "paid once": (128, {}),
    "blocks of 64": (64, {}),
    "blocks of 32": (32, {}),
    "no blocks": (2**31, {}),
    "second look": (128, {"second_look": True}),
    "second look, no blocks": (2**31, {"second_look": True}),
    "real arithmetic": (128, {"rounding": False}),
}


def network_of(name: str) -> tuple[keras.Model, float | None]:
    """Return a network, and the radius that it was defended with."""
    if name.endswith(".gloronet"):
        model: Any = defended.load_gloronet(name)
    else:
        model = keras.models.load_model(name) if Path(name).exists() else defended.zoo.load(name)
    defence = isinstance(model, defended.GloroNet)
    return (model.network, float(model.epsilon.numpy())) if defence else (model, None)


def measure(network: keras.Model, epsilon: float, way: str, x: np.ndarray, y: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Return a function of a batch of images, compiled, and the figures of a way to evaluate."""
    block, options = WAYS[way]
    rounding.BLOCK = block
    model = defended.GloroNet(network, epsilon=epsilon, **options)
    model.finalize()
    found = model.audit(x, batch_size=500)
    t0, t1, _ = model.certificate_report().budget
    paid = t0 + t1 * np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)
    right, radius = found["label"] == y, found["certified_radius"]
    kept = right & (found["availability_radius"] > np.float32(epsilon))
    figures = {"paid": paid, "right": right, "radius": radius, "kept": kept}
    deployed = tf.function(lambda batch: model.deployed(batch)["label"], autograph=False)
    for size in (32, 256):
        deployed(tf.constant(x[:size]))  # traced while the blocks are these
    return deployed, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each batch size")
    arguments = parser.parse_args()
    network, known = network_of(arguments.network)
    epsilon = arguments.epsilon or known
    if epsilon is None:
        parser.error("the network is not defended: say --epsilon")
    data = defended.datasets.load(arguments.data)
    x, y = data.x_test[: arguments.points], data.y_test[: arguments.points]
    calls, figures = {}, {}
    for way in WAYS:
        calls[way], figures[way] = measure(network, epsilon, way, x, y)
    times = {
        size: in_turn(
            {way: clocked(lambda call=call, batch=tf.constant(x[:size]): call(batch)) for way, call in calls.items()},
            arguments.seconds,
        )
        for size in (32, 256)
    }
    names = ("spent", "VRA", "VRA at 2 eps", "stays", "again", "time 32", "time 256")
    print(f"{arguments.network} at {epsilon:g}, {len(x)} images of {arguments.data}")
    print(f"{'':24s}" + "".join(f"{name:>14s}" for name in names))
    once = figures["paid once"]
    smaller = once["radius"] - once["paid"]
    right = once["right"] & (smaller > epsilon)
    row("paid twice", 2 * np.median(once["paid"]), right, right & (smaller > 2 * epsilon), None, None, [])
    for way, seen in figures.items():
        spent = np.median(seen["paid"])
        again = None
        if WAYS[way][1].get("second_look"):
            # What float32 alone does not answer, and might with its errors given back.
            plain = figures["paid once" if WAYS[way][0] == 128 else "no blocks"]
            again = (plain["radius"] <= epsilon) & (plain["radius"] + 2 * plain["paid"] > epsilon)
        ratios = [
            float(np.median(of[way]) / np.median(of["paid once"])) if way != "real arithmetic" else None
            for of in times.values()
        ]
        row(way, spent, seen["right"], seen["right"] & (seen["radius"] > 2 * epsilon), seen["kept"], again, ratios)


def row(way: str, spent: float, *shares: Any) -> None:
    """Print a line: a radius, shares of the images, and ratios of times."""
    *masks, ratios = shares
    cells = [f"{spent:.5f}", *("" if mask is None else f"{100 * np.mean(mask):.2f} %" for mask in masks)]
    cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    print(f"{way:24s}" + "".join(f"{cell:>14s}" for cell in cells))


if __name__ == "__main__":
    main()
