"""Attack time a point: CertificateDescent against PGD of as many steps, and against plain ways to write the same loop.

    python benchmarks/attack_speed.py [--model model.keras] [--points 512] [--steps 50] [--rounds 3]

Everything is warm and timed in turn in one run; the ratios are the result. The baselines descend the same objective, in
the same batches, with the same steps: `eager` calls `tf.GradientTape` step by step, as most attack code does, `graph`
wraps one step in `tf.function`. The model is a 2C2F GloRo Net with random weights, or the one given. Points are MNIST's
test images where the environment variable DEFENDED_DATA names a folder with `mnist.npz` and they fit the model, else
random.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import keras
import numpy as np
import tensorflow as tf

import defended
from defended.attacks import PGD, CertificateDescent


def plain_descent(model: Any, steps: int, batch_size: int, compiled: bool) -> Callable[[Any], Any]:
    """Projected descent on the certified radius, written down as it comes to mind."""
    epsilon = float(keras.ops.convert_to_numpy(model.epsilon))

    def step(x: Any, delta: Any, size: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(delta)
            radius = tf.reduce_min(model.competitor_radii(x + delta), axis=-1)
        gradient = tape.gradient(radius, delta)
        axes = list(range(1, len(x.shape)))
        length = tf.sqrt(tf.reduce_sum(gradient**2, axes, keepdims=True))
        delta = delta - size * gradient / tf.maximum(length, 1e-12)
        norm = tf.sqrt(tf.reduce_sum(delta**2, axes, keepdims=True))
        return delta * tf.minimum(1.0, epsilon / tf.maximum(norm, 1e-12))

    one_step = tf.function(step, reduce_retracing=True) if compiled else step

    def attack(x: Any) -> Any:
        parts = []
        for first in range(0, len(x), batch_size):
            batch = tf.constant(x[first : first + batch_size])
            delta = tf.zeros_like(batch)
            for number in range(steps):
                size = epsilon * (1 + np.cos(np.pi * number / steps))
                delta = one_step(batch, delta, tf.constant(size, tf.float32))
            parts.append((batch + delta).numpy())
        return np.concatenate(parts)

    return attack


def points_for(model: Any, count: int) -> Any:
    shape = tuple(model.input_shape[1:])
    folder = os.environ.get("DEFENDED_DATA")
    if folder and os.path.exists(os.path.join(folder, "mnist.npz")):
        x = defended.datasets.load("mnist").x_test[:count]
        if x.shape[1:] == shape:
            return x, "MNIST test images"
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32), "random images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a saved DefendedModel (.keras)")
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    figures.add_option(parser)
    arguments = parser.parse_args()

    if arguments.model:
        model = keras.models.load_model(arguments.model)
    else:
        model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3)
    model.finalize()
    x, origin = points_for(model, arguments.points)
    settings = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    descent, pgd = CertificateDescent(**settings), PGD(**settings)
    few = x[: arguments.batch_size]  # the baselines are slow
    ways: dict[str, tuple[Callable[..., Any], Any]] = {
        "CertificateDescent": (lambda points: descent(model, points), x),
        "PGD, cross-entropy": (lambda points: pgd(model, points), x),
        "plain descent, graph": (plain_descent(model, **settings, compiled=True), few),
        "plain descent, eager": (plain_descent(model, **settings, compiled=False), few),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, (attack, points) in ways.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            attack(points)
            if number:  # the first round compiles
                wall[name].append(1000 * (time.perf_counter() - start) / len(points))
                cpu[name].append(1000 * (time.process_time() - start_cpu) / len(points))

    batches = f"{arguments.steps} steps, batches of {arguments.batch_size}, {os.cpu_count()} cores"
    print(f"{model.name}, {len(x)} {origin}, {batches}")
    found, descent_time = figures.Figures(), float(np.median(wall["CertificateDescent"]))
    found.add(f"CertificateDescent, {arguments.steps} steps", descent_time, "ms a point", at_most=6)
    for name in ways:
        ratios = np.array(wall[name]) / np.array(wall["CertificateDescent"])
        print(
            f"{name:21s} {np.median(wall[name]):7.2f} ms a point ({np.median(cpu[name]):6.2f} ms of CPU)  "
            f"{np.median(ratios):6.2f} x CertificateDescent (from {ratios.min():.2f} to {ratios.max():.2f})"
        )
        if name != "CertificateDescent":
            theirs, ratio = float(np.median(wall[name])), float(np.median(1 / ratios))
            found.add("CertificateDescent", descent_time, "ms a point", peer=name, theirs=theirs, ratio=ratio)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
