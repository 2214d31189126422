"""Defended inference against the bare network, and the rejection head at 10, 200 and 1000 classes, timed in turn.

    python benchmarks/inference.py [--seconds 10]

Tables of median milliseconds and of ratios. Calls alternate one by one, in an order drawn anew each time, so that
the machine's moods cancel; a ratio is that of the medians, and beside it that of the fastest tenths.

1. 2C2F on batches of MNIST size: the defended model, and the graph that is exported (`deployed`), against the network;
2. a dense classifier on 2048 features at 10, 200 and 1000 classes: defended against bare;
3. the head alone (K's rows, slack, ⊥) on logits of 10, 200 and 1000 classes against its own time at 10, beside the same
   head on a class-by-class tensor per input, `[batch, features, classes]`, which other implementations form;
4. where gloro is found (benchmarks/README.md): its own network, classifiers and head beside ours, each side against the
   same network bare on its Keras.
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
import peers
import tensorflow as tf

import defended
from defended.margins import predicted_class

BATCH, FEATURES = 32, 2048
CLASSES = (10, 200, 1000)
BATCHES = (1, 32, 128, 256)


def clocked(function: Callable[[], Any]) -> Callable[[], float]:
    """A call's milliseconds."""

    def milliseconds() -> float:
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)

    return milliseconds


def interleaved(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Milliseconds a call, `[calls]` each, in about so many seconds."""
    return in_turn({name: clocked(function) for name, function in functions.items()}, seconds)


def in_turn(functions: dict[str, Callable[[], float]], seconds: float) -> dict[str, np.ndarray]:
    """What functions that tell their milliseconds told, `[calls]` each, in about so many seconds."""
    for function in functions.values():
        function()
    start = time.perf_counter()
    for function in functions.values():
        function()
    rounds = max(10, int(seconds / (time.perf_counter() - start)))
    order, rng = list(functions), np.random.default_rng(0)
    times = {name: np.zeros(rounds) for name in functions}
    for number in range(rounds):
        for name in rng.permutation(order):
            times[name][number] = functions[name]()
    return times


def row(label: str, times: np.ndarray, baseline: np.ndarray) -> float:
    medians, tenths = (np.quantile(times, q) / np.quantile(baseline, q) for q in (0.5, 0.1))
    print(f"{label:34s} {np.median(times):8.3f} ms   ratio {medians:6.2f}   of the fastest tenths {tenths:6.2f}")
    return float(medians)


def calls(model: defended.GloroNet, x: Any) -> dict[str, Callable[[], Any]]:
    bare, whole = tf.function(model.network), tf.function(model)

    @tf.function
    def exported(x: Any) -> Any:
        outputs = model.deployed(x)
        return {name: outputs[name] for name in ("label", "rejected", "scores")}

    return {"bare": lambda: bare(x), "defended": lambda: whole(x), "deployed": lambda: exported(x)}


def dense(classes: int) -> defended.GloroNet:
    network = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(classes)])
    model = defended.GloroNet(network, epsilon=0.1)
    model.finalize()
    return model


def head(model: defended.GloroNet, x: Any, logits: Any) -> Callable[[], Any]:
    @tf.function
    def run(logits: Any) -> Any:
        slack = model._certificate.find(x, logits, model.epsilon).slack
        return model.head(logits, slack)

    return lambda: run(logits)


def head_per_input(model: defended.GloroNet, logits: Any) -> Callable[[], Any]:
    kernel = tf.constant(model.network.layers[-1].kernel.numpy())

    @tf.function
    def run(logits: Any) -> Any:
        chosen = tf.gather(tf.transpose(kernel), predicted_class(logits))
        rows = tf.norm(chosen[:, :, None] - kernel[None], axis=1)
        return tf.reduce_max(logits + model.epsilon * rows, axis=1)

    return lambda: run(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each table row's calls, all ways together")
    figures.add_option(parser)
    arguments = parser.parse_args()
    seconds = arguments.seconds
    rng, found = np.random.default_rng(0), figures.Figures()

    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3)
    model.finalize()
    print("2C2F, defended against bare")
    for batch in BATCHES:
        times = interleaved(calls(model, tf.constant(rng.random((batch, 28, 28, 1)), tf.float32)), seconds)
        for way in ("defended", "deployed"):
            row(f"  batch {batch}: {way}", times[way], times["bare"])
            note(found, f"2C2F, batch {batch}, {way}", times[way], "bare network", times["bare"], at_most=1.05)

    print(f"Dense on {FEATURES} features, batch {BATCH}, defended against bare")
    models = {classes: dense(classes) for classes in CLASSES}
    x = tf.constant(rng.standard_normal((BATCH, FEATURES)), tf.float32)
    for classes, model in models.items():
        times = interleaved(calls(model, x), seconds)
        row(f"  {classes} classes: defended", times["defended"], times["bare"])
        limit = 1.05 if classes == CLASSES[0] else None
        note(found, f"dense, {classes} classes", times["defended"], "bare network", times["bare"], limit)

    print(f"The head alone, {FEATURES} features, batch {BATCH}, against its time at {CLASSES[0]} classes")
    logits = {classes: tf.constant(rng.standard_normal((BATCH, classes)), tf.float32) for classes in CLASSES}
    functions = {f"  {c} classes: gathered rows of K": head(models[c], x, logits[c]) for c in CLASSES}
    functions |= {f"  {c} classes: a tensor per input": head_per_input(models[c], logits[c]) for c in CLASSES}
    times = interleaved(functions, seconds)
    baseline = times[f"  {CLASSES[0]} classes: gathered rows of K"]
    for name, values in times.items():
        row(name, values, baseline)
    for classes in CLASSES[1:]:
        ours, limit = times[f"  {classes} classes: gathered rows of K"], 2 if classes == CLASSES[-1] else None
        note(found, f"head, {classes} classes", ours, f"itself at {CLASSES[0]} classes", baseline, limit)

    beside_gloro(models, x, logits, seconds, found)
    found.write(arguments.json)


def note(
    found: figures.Figures, quantity: str, ours: np.ndarray, peer: str, theirs: np.ndarray, at_most: float | None = None
) -> None:
    found.add(quantity, np.median(ours), "ms", peer=peer, theirs=np.median(theirs), at_most=at_most)


def beside_gloro(
    dense_models: dict[int, defended.GloroNet], x: Any, logits: dict[int, Any], seconds: float, found: figures.Figures
) -> None:
    shapes = {"features": FEATURES, "batch": BATCH, "classes": CLASSES}
    gloro = peers.start("gloro", task="inference", batches=BATCHES, epsilon=0.3, **shapes)
    if gloro is None:
        return
    print(f"Beside gloro: {gloro.versions}")
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3)
    model.finalize()
    rng = np.random.default_rng(0)
    pairs = {
        f"2C2F, batch {batch}": calls(model, tf.constant(rng.random((batch, 28, 28, 1)), tf.float32))
        for batch in BATCHES
    }
    pairs |= {f"dense, {classes} classes": calls(model, x) for classes, model in dense_models.items()}
    for name, ours in pairs.items():
        ways = {f"ours, {way}": clocked(ours[way]) for way in ("defended", "bare")}
        ways |= {
            f"gloro, {way}": lambda way=way, name=name: gloro.milliseconds("call", name=f"{name}, {way}")
            for way in ("defended", "bare")
        }
        times = in_turn(ways, seconds)
        over_bare = {
            side: row(f"  {name}: {side}", times[f"{side}, defended"], times[f"{side}, bare"])
            for side in ("ours", "gloro")
        }
        found.add(f"{name}, over bare", over_bare["ours"], "x", peer="gloro", theirs=over_bare["gloro"])
    for classes, model in dense_models.items():
        name = f"head, {classes} classes"
        ways = {
            "ours": clocked(head(model, x, logits[classes])),
            "gloro": lambda name=name: gloro.milliseconds("call", name=name),
        }
        times = in_turn(ways, seconds)
        row(f"  {name}: ours, to gloro's", times["ours"], times["gloro"])
        note(found, name, times["ours"], "gloro", times["gloro"])
    gloro.close()


if __name__ == "__main__":
    main()
