"""gloro 1.1.1 (Leino et al.) on Keras 2: training steps, inference and the head, with the bare networks beside.

Everything is compiled by `tf.function` and asked for as the package's users do: `compile` with its loss by name, and
`freeze_lipschitz_constant` before inference. XLA does not compile its training step (the conversion of its margin layer
fails in TensorFlow 2.21), so the bare network alone is tried with XLA too.
"""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # what gloro imports as tensorflow.keras

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from gloro import GloroNet
from gloro.layers import MinMax

from peers.worker import serve

vars(np)["infty"] = np.inf  # gloro's spelling, which NumPy 2 dropped
keras = tf.keras
layers = keras.layers
CALLS: dict[str, Callable[[], Any]] = {}
STEPS: dict[str, tuple[Callable[[Any], Any], Any]] = {}


def cnn_2c2f() -> Any:
    settings = {"kernel_initializer": "orthogonal"}
    x = inputs = keras.Input((28, 28, 1))
    for filters in (16, 32):
        x = MinMax()(layers.Conv2D(filters, 4, strides=2, padding="same", **settings)(x))
    x = MinMax()(layers.Dense(100, **settings)(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(10, **settings)(x))


def dense(features: int, classes: int) -> Any:
    inputs = keras.Input((features,))
    return keras.Model(inputs, layers.Dense(classes)(inputs))


def prepare(task: str, **arguments: Any) -> None:
    {"training": prepare_training, "inference": prepare_inference}[task](**arguments)


def prepare_training(batch: int, epsilon: float) -> None:
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random((batch, 28, 28, 1)), tf.float32)
    y = tf.constant(rng.integers(0, 10, batch))
    for name, jit in (("bare", False), ("bare, XLA", True)):
        network = cnn_2c2f()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=jit)
        STEPS[name] = network.make_train_function(), (x, y)
    for name, loss in (("cross-entropy", "sparse_crossentropy"), ("TRADES", "sparse_trades_kl.1.5")):
        model = GloroNet(model=cnn_2c2f(), epsilon=epsilon)
        model.compile(loss=loss, optimizer=keras.optimizers.Adam(1e-3))
        STEPS[name] = model.make_train_function(), (x, y)
    for name in STEPS:
        steps(name, 1)


def steps(name: str, number: int) -> None:
    function, example = STEPS[name]
    data = iter(tf.data.Dataset.from_tensors(example).repeat(number))
    for _ in range(number):
        function(data)


def prepare_inference(batches: list[int], epsilon: float, features: int, batch: int, classes: list[int]) -> None:
    rng = np.random.default_rng(0)
    model = GloroNet(model=cnn_2c2f(), epsilon=epsilon).freeze_lipschitz_constant()
    for rows in batches:
        add_both(f"2C2F, batch {rows}", model, tf.constant(rng.random((rows, 28, 28, 1)), tf.float32))
    x = tf.constant(rng.standard_normal((batch, features)), tf.float32)
    for number in classes:
        model = GloroNet(model=dense(features, number), epsilon=epsilon).freeze_lipschitz_constant()
        add_both(f"dense, {number} classes", model, x)
        head, logits = tf.function(model.layers[-1]), tf.constant(rng.standard_normal((batch, number)), tf.float32)
        CALLS[f"head, {number} classes"] = lambda head=head, logits=logits: head(logits)
    for function in CALLS.values():
        function()


def add_both(name: str, model: Any, x: Any) -> None:
    whole, bare = tf.function(model), tf.function(model.f)
    CALLS[f"{name}, defended"] = lambda: whole(x)
    CALLS[f"{name}, bare"] = lambda: bare(x)


def call(name: str) -> None:
    CALLS[name]()


if __name__ == "__main__":
    serve(("gloro", "tf_keras", "tensorflow", "numpy"), {"prepare": prepare, "steps": steps, "call": call})
