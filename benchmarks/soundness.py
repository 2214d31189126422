"""A campaign against the certificates: random networks, random disturbances, and a gradient search for a false answer.

    python benchmarks/soundness.py [--nets 2000] [--attempts 500] [--seed 0] [--out FILE.csv] [--every 10]

Every network is built at random from the layers that a defence knows (odd and even kernels, strides, groups,
dilation, both paddings, shared layers, residual sums, nested models, extreme weights, equal columns), defended by a
`GloroNet` or a `PolytopeNet`, and proven. Two of three are then disturbed as users do: weights, settings of layers, a
layer's code, the global dtype policy, bounds edited in a file, weights restored from another model. Whatever then
answers is compared with a float64 copy of the network in Keras, which shares no code with the defence. What raises an
error answers nothing.

One attempt is one search from one answered input: projected gradient descent on the exact margin, in float64, within
the radius that was given. A violation is an answer that is not the exact network's class, an exact network whose class
changes within the radius, a verdict within epsilon of an answered input that answers something else, a rejection within
the availability radius of a GloRo Net, or an eager verdict, one alone, or one of another runtime that answers otherwise
than the batch did. Every tenth network is also judged by XLA, as a SavedModel and in ONNX.

Prints nets, attempts and violations; a run that was stopped goes on from the rows in its file.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from defended import GloroNet, PolytopeNet
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax

Array = np.ndarray[Any, np.dtype[Any]]
Rng = np.random.Generator

FIELDS = ("net", "defence", "layers", "disturbance", "outcome", "answered", "attempts", "violations", "what", "seconds")
STEPS = 12


class Verdict(NamedTuple):
    """What was seen of one network."""

    outcome: str
    """`"judged"`, or what was raised where nothing answered."""
    answered: int
    attempts: int
    violations: int
    what: str = ""


# Random networks.


def build(rng: Rng, polytope: bool) -> keras.Model:
    """A random network with logits out, of layers that the defence knows."""
    if rng.random() < 0.35:
        inputs = keras.Input((int(rng.integers(2, 30)),))
    else:
        inputs = keras.Input((int(rng.integers(3, 9)), int(rng.integers(3, 9)), int(rng.integers(1, 4))))
    value, shared = inputs, {}
    for _ in range(int(rng.integers(1, 6))):
        step = (polytope_step if polytope else gloro_step)(rng, value, shared)
        value = value if step is None else step
        if rng.random() < 0.15:
            value = residual(rng, value, polytope)
    if rng.random() < 0.15 and not polytope:
        value = nested(rng, value)
    if len(value.shape) > 2:
        pooled = rng.random() < 0.2
        value = layers.GlobalAveragePooling2D()(value) if pooled else layers.Flatten()(value)
    return keras.Model(inputs, layers.Dense(int(rng.integers(2, 6)))(value))


def gloro_step(rng: Rng, value: Any, shared: dict[Any, Any]) -> Any:
    """One more layer of those that have a Lipschitz rule, or None where the drawn one does not fit."""
    if len(value.shape) == 2:
        makers: list[Callable[[], Any]] = [
            lambda: layers.Dense(2 * int(rng.integers(1, 8)), activation=activation(rng), use_bias=rng.random() < 0.8),
            lambda: same_layer_again(rng, value, shared),
            MinMax, lambda: rectifier(rng), normalisation,
        ]  # fmt: skip
    else:
        height, width, channels = value.shape[1:]
        makers = [
            lambda: convolution(rng, value), lambda: convolution(rng, value), MinMax, lambda: rectifier(rng),
            normalisation,
            lambda: layers.AveragePooling2D(pool(rng, value), strides(rng), padding(rng)),
            lambda: layers.MaxPooling2D(pool(rng, value), strides(rng), padding(rng)),
            lambda: layers.ZeroPadding2D(int(rng.integers(1, 3))), lambda: layers.Cropping2D(((0, 1), (1, 0))),
            lambda: InvertibleDownsampling(2),
            lambda: LiResNetBlock(int(rng.choice([1, 3])), float(rng.uniform(0.1, 1))),
            lambda: layers.Permute((2, 1, 3)), lambda: layers.Reshape((width, height, channels)),
        ]  # fmt: skip
    return applied(makers[int(rng.integers(len(makers)))](), value)


def polytope_step(rng: Rng, value: Any, shared: dict[Any, Any]) -> Any:
    """One more layer of those that have dual bounds."""
    if len(value.shape) == 2:
        makers: list[Callable[[], Any]] = [
            lambda: layers.Dense(int(rng.integers(2, 12)), activation=rng.choice(["relu", "linear"])), layers.ReLU,
        ]  # fmt: skip
    else:
        makers = [
            lambda: convolution(rng, value, plain=True), layers.ReLU,
            lambda: layers.AveragePooling2D(pool(rng, value), strides(rng), padding(rng)),
        ]  # fmt: skip
    return applied(makers[int(rng.integers(len(makers)))](), value)


def applied(layer: Any, value: Any) -> Any:
    """The layer's output; None where it does not fit the value, as with an odd number of channels."""
    if layer is None:
        return None
    try:
        made = layer(value)
    except ValueError:
        return None
    return made if all(side and side > 0 for side in made.shape[1:]) and np.prod(made.shape[1:]) <= 2000 else None


def activation(rng: Rng) -> Any:
    names = ["linear", "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "elu", "hard_sigmoid", "softsign", "relu6"]
    return str(rng.choice(names))


def rectifier(rng: Rng) -> Any:
    slope = float(rng.choice([0.0, 0.1, 0.3, 1.5]))
    if rng.random() < 0.5:
        return layers.LeakyReLU(slope)
    return layers.ReLU(max_value=None if rng.random() < 0.7 else 2.0, negative_slope=slope)


def normalisation() -> Any:
    return layers.BatchNormalization()


def convolution(rng: Rng, value: Any, plain: bool = False) -> Any:
    channels = int(value.shape[-1])
    groups = channels if not plain and rng.random() < 0.2 else 1
    dilation = int(rng.integers(1, 3)) if not plain and rng.random() < 0.3 else 1
    kind = "relu" if plain and rng.random() < 0.5 else "linear" if plain else activation(rng)
    return layers.Conv2D(
        groups * 2 * int(rng.integers(1, 4)), (int(rng.integers(1, 5)), int(rng.integers(1, 5))),
        strides=strides(rng) if dilation == 1 else 1, padding=padding(rng), groups=groups, dilation_rate=dilation,
        activation=kind, use_bias=rng.random() < 0.8,
    )  # fmt: skip


def pool(rng: Rng, value: Any) -> tuple[int, int]:
    return tuple(int(rng.integers(1, min(side, 4) + 1)) for side in value.shape[1:3])  # type: ignore[return-value]


def strides(rng: Rng) -> tuple[int, int]:
    return int(rng.integers(1, 4)), int(rng.integers(1, 4))


def padding(rng: Rng) -> str:
    return str(rng.choice(["same", "valid"]))


def same_layer_again(rng: Rng, value: Any, shared: dict[Any, Any]) -> Any:
    """A Dense layer that may be used more than once."""
    width = int(value.shape[-1])
    return shared.setdefault(width, layers.Dense(width, activation="tanh" if rng.random() < 0.3 else None))


def residual(rng: Rng, value: Any, polytope: bool) -> Any:
    """The value and a branch of the same shape, joined."""
    width = int(value.shape[-1])
    branch = layers.Dense(width) if len(value.shape) == 2 else layers.Conv2D(width, 3, padding="same")
    other = branch(layers.ReLU()(value))
    joins = [layers.Add] if polytope else [layers.Add, layers.Subtract, layers.Average, layers.Concatenate]
    return joins[int(rng.integers(len(joins)))]()([value, other])


def nested(rng: Rng, value: Any) -> Any:
    """A model within the model."""
    inputs = keras.Input(value.shape[1:])
    width = int(value.shape[-1])
    inner = layers.Dense(width) if len(value.shape) == 2 else layers.Conv2D(width, 1)
    return keras.Model(inputs, layers.LeakyReLU(0.2)(inner(inputs)))(value)


def randomise(network: keras.Model, rng: Rng) -> None:
    """Weights of a random kind: ordinary, tiny, huge, mixed over the layers, with equal columns."""
    kind = rng.choice(["plain", "plain", "plain", "scaled", "extreme", "columns"])
    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        scale = {"scaled": 10.0 ** rng.uniform(-4, 4), "extreme": 10.0 ** rng.uniform(-20, 20)}.get(str(kind), 1.0)
        for weight in layer.weights:
            values = rng.normal(size=weight.shape)
            if "variance" in weight.name:
                values = rng.uniform(0.3, 3, weight.shape)
            elif len(weight.shape) > 1:
                values = values * scale / np.sqrt(np.prod(weight.shape[:-1]))
                if kind == "columns" and weight.shape[-1] > 1:
                    values[..., 1] = values[..., 0]
            else:
                values = values * 0.3
            weight.assign(values.astype("float32"))


# The exact network.


def in_float64(network: keras.Model) -> keras.Model:
    """A copy of the network in Keras that computes in float64, its weights the same numbers."""

    def changed(config: Any) -> Any:
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {**config["config"], "name": "float64"}}
            return {
                key: "float64" if key == "dtype" and item == "float32" else changed(item)
                for key, item in config.items()
            }
        return type(config)(map(changed, config)) if isinstance(config, list | tuple) else config

    copy = type(network).from_config(changed(network.get_config()))
    copy.set_weights([np.asarray(weight, np.float64) for weight in network.get_weights()])
    return copy


# Disturbances: each changes a proven model, and returns the model to be judged.


def weights(model: Any, rng: Rng) -> Any:
    """All kernels times a number."""
    factor = float(10.0 ** rng.uniform(-2, 2))
    model.network.set_weights([value * np.float32(factor) for value in model.network.get_weights()])
    return model


def one_weight(model: Any, rng: Rng) -> Any:
    """One entry of one variable."""
    variables = model.network.weights
    chosen = variables[int(rng.integers(len(variables)))]
    value = np.array(chosen)
    value.reshape(-1)[int(rng.integers(value.size))] += 3.0
    chosen.assign(np.abs(value) if "variance" in chosen.name else value)
    return model


def settings(model: Any, rng: Rng) -> Any:
    """A slope, an epsilon of normalisation, or an activation, assigned to a layer."""
    for layer in rng.permutation(np.array(model.network.layers, dtype=object)):
        if isinstance(layer, layers.LeakyReLU):
            layer.negative_slope = 30.0
        elif isinstance(layer, layers.BatchNormalization):
            layer.epsilon = 1e-7
        elif isinstance(layer, layers.Dense | layers.Conv2D) and layer is not model.network.layers[-1]:
            layer.activation = keras.activations.softplus
        else:
            continue
        break
    return model


def code(model: Any, rng: Rng) -> Any:
    """A layer whose `call` was replaced."""
    layer = model.network.layers[1 + int(rng.integers(len(model.network.layers) - 1))]
    honest = layer.call
    layer.call = lambda *given, **named: 1.5 * honest(*given, **named) + 0.25
    return model


def file(model: Any, rng: Rng) -> Any:
    """Saved, the bounds in the file made smaller, and loaded."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        whole, edited = Path(folder, "whole.keras"), Path(folder, "edited.keras")
        model.save(whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(edited, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith(".h5"):
                    buffer = io.BytesIO(content)
                    with h5py.File(buffer, "r+") as opened:
                        own = opened["vars"]
                        for key in own:
                            if "digest" not in key and own[key].dtype.kind == "f" and own[key].shape:
                                own[key][...] = own[key][()] * 1e-3
                    content = buffer.getvalue()
                new.writestr(name, content)
        return keras.models.load_model(edited)


def restored(model: Any, rng: Rng) -> Any:
    """Another model's weights, restored from a file; and back again, or not."""
    with tempfile.TemporaryDirectory() as folder:
        own, other = Path(folder, "own.weights.h5"), Path(folder, "other.weights.h5")
        model.save_weights(own)
        weights(model, rng)
        model.finalize()
        model.save_weights(other)
        model.load_weights(own)
        if rng.random() < 0.5:
            model.load_weights(other)
    return model


def policy(model: Any, rng: Rng) -> Any:
    """Wrapped again while the global policy computes in bfloat16."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        config = {key: value for key, value in model.get_config().items() if key not in ("name", "network")}
        return type(model)(model.network, **config)
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def cloned(model: Any, rng: Rng) -> Any:
    """A clone, whose weights are new."""
    copy = keras.models.clone_model(model)
    randomise(copy.network, rng)
    return copy


def trained(model: Any, rng: Rng) -> Any:
    """A step of training in a loop of one's own."""
    x = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
    model(x, training=True)
    for variable in model.network.trainable_variables:
        variable.assign_sub(0.1 * rng.normal(size=variable.shape))
    return model


DISTURBANCES: dict[str, Callable[[Any, Rng], Any]] = {
    function.__name__: function
    for function in (weights, one_weight, settings, code, file, restored, policy, cloned, trained)
}


# Judging.


def judge(model: Any, rng: Rng, attempts: int, elsewhere: bool = False) -> Verdict:
    """Search for a false answer of a model, whatever was done to it."""
    x = inputs_for(model, rng, attempts)
    found = model.verdicts(x)
    positive = found.radius[found.radius > 0]
    if not len(positive):
        return Verdict("judged", 0, 0, 0)
    # Small beside most radii, so that most of what can be answered is.
    model.epsilon = max(float(np.quantile(positive, 0.05)) * 0.5, 1e-30)
    found = model.verdicts(x)
    rows = np.flatnonzero(~found.rejected)
    if not len(rows):
        return Verdict("judged", 0, 0, 0)
    truth = in_float64(model.network)
    faults: dict[str, int] = {}

    def note(what: str, count: int) -> None:
        if count:
            faults[what] = faults.get(what, 0) + int(count)

    exact = truth(x[rows].astype("float64"), training=False).numpy()
    note("not the class of the exact network", (exact.argmax(axis=1) != found.label[rows]).sum())
    kerass = np.asarray(model.network(x[rows], training=False)).argmax(axis=1)
    note("not the class of Keras's network", (kerass != found.label[rows]).sum())
    eager = np.asarray(model(x[rows])).argmax(axis=1)
    note("eager: another answer", ((eager != found.label[rows]) & (eager < model.num_classes)).sum())
    alone = model.verdicts(x[rows[:20]], batch_size=1).label
    note("alone: another answer", ((alone >= 0) & (alone != found.label[rows[:20]])).sum())
    # Of a polytope net it is no proof.
    available = np.asarray(model.availability_radius(x)) if isinstance(model, GloroNet) else None
    tried = 0
    while tried < attempts:
        part = rows[: attempts - tried]
        moved, broken = search(truth, x[part], found.label[part], found.radius[part], model.norm, rng)
        note("another class within the radius", broken.sum())
        near = (
            x[part]
            + (moved - x[part])
            * np.minimum(1.0, float(model.epsilon) / found.radius[part])[(slice(None), *[None] * (x.ndim - 1))]
        )
        again = model.verdicts(near.astype("float32")).label
        inside = distance(near.astype("float32"), x[part], model.norm) <= float(model.epsilon)
        note("another answer within epsilon", ((again >= 0) & (again != found.label[part]) & inside).sum())
        if available is not None:
            share = np.minimum(1.0, available[part] * (1 - 1e-6) / found.radius[part])
            near = (x[part] + (moved - x[part]) * share[(slice(None), *[None] * (x.ndim - 1))]).astype("float32")
            lost = model.verdicts(near).rejected & (distance(near, x[part], model.norm) < available[part])
            note("rejected within the availability radius", lost.sum())
        tried += len(part)
    if elsewhere:
        for what, labels in other_runtimes(model, x):
            wrong = (labels >= 0) & (found.label >= 0) & (labels != found.label)
            note(f"{what}: another answer", wrong.sum())
    return Verdict("judged", len(rows), tried, sum(faults.values()), "; ".join(sorted(faults)))


def inputs_for(model: Any, rng: Rng, count: int) -> Array:
    """Inputs `[n, ...]` of several sizes, some of them between two others, where classes change."""
    shape = model.input_shape[1:]
    size = 10.0 ** rng.uniform(-1, 1.5)
    x = rng.normal(size=(max(count // 2, 64), *shape)) * size
    mixed = x[rng.permutation(len(x))]
    return np.concatenate([x, x + (mixed - x) * rng.uniform(size=(len(x), *[1] * len(shape)))]).astype("float32")


def search(truth: Any, x: Array, label: Array, radius: Array, norm: str, rng: Rng) -> tuple[Array, Array]:
    """Points within the radius where the exact margin was descended, and where another class is larger there."""
    axes = tuple(range(1, x.ndim))
    centre, reach = (
        tf.constant(x, tf.float64),
        tf.constant(radius.astype("float64")[(slice(None), *[None] * len(axes))]),
    )
    chosen = tf.one_hot(label, truth.output_shape[-1], on_value=True, off_value=False, dtype=tf.bool)

    def margin(point: Any) -> Any:
        logits = truth(point, training=False)
        own = tf.reduce_sum(tf.where(chosen, logits, 0.0), axis=1)
        return own - tf.reduce_max(tf.where(chosen, tf.constant(-np.inf, tf.float64), logits), axis=1)

    def unit(direction: Any) -> Any:
        if norm == "linf":
            return tf.sign(direction)
        length = tf.sqrt(tf.reduce_sum(tf.square(direction), axes, keepdims=True))
        return direction / tf.maximum(length, 1e-300)

    def back(point: Any) -> Any:
        away = point - centre
        if norm == "linf":
            return centre + tf.clip_by_value(away, -reach, reach)
        length = tf.sqrt(tf.reduce_sum(tf.square(away), axes, keepdims=True))
        return centre + away * tf.minimum(1.0, reach / tf.maximum(length, 1e-300))

    reach = reach * (1 - 1e-9)
    point = centre + unit(tf.constant(rng.normal(size=x.shape))) * reach * rng.uniform(size=(len(x), *[1] * len(axes)))
    lowest, best = margin(point), point
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = margin(point)
        gradient = tape.gradient(value, point)
        point = back(point - unit(gradient) * reach * (2.0 * (1 - step / STEPS)))
        found = margin(point)
        lower = (found < lowest)[(slice(None), *[None] * len(axes))]
        lowest, best = tf.minimum(found, lowest), tf.where(lower, point, best)
    size = np.abs(truth(best, training=False).numpy()).max(axis=1)
    return best.numpy(), lowest.numpy() < -1e-12 * size


def distance(a: Array, b: Array, norm: str) -> Array:
    away = np.abs(a.astype("float64") - b).reshape(len(a), -1)
    return away.max(axis=1) if norm == "linf" else np.sqrt((away**2).sum(axis=1))


def other_runtimes(model: Any, x: Array) -> Iterator[tuple[str, Array]]:
    """The labels of XLA, of the SavedModel and of ONNX, where they can be had."""
    from defended.serving import OnnxModel, export

    compiled = tf.function(lambda batch: model.deployed(batch)["label"], jit_compile=True, autograph=False)
    yield "XLA", compiled(tf.constant(x)).numpy()
    folder = Path(tempfile.mkdtemp())
    try:
        path = export(model, folder, "net", 1, sample=x[:32], warm_up=False, serving_files=False)
        served = tf.saved_model.load(str(path)).signatures["audit"]
        yield "SavedModel", served(image=tf.constant(x))["label"].numpy()
        onnx = path / "assets.extra" / "model.onnx"
        if onnx.exists():
            yield "ONNX", OnnxModel(onnx.read_bytes()).run(x)["label"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# The campaign.


@contextmanager
def quiet() -> Iterator[None]:
    """Keras and the library warn of what is done here on purpose."""
    import logging
    import warnings

    loggers = {logger: logger.level for logger in (logging.getLogger("defended"), tf.get_logger())}
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def attempt(
    number: int, seed: int, attempts: int, every: int = 0, defence: str | None = None, disturbance: str | None = None
) -> dict[str, Any]:
    """One network: built, proven, perhaps disturbed, judged; a row of the table.

    Args:
        number: of the network; together with the seed it decides everything.
        seed: of the campaign.
        attempts: searches.
        every: other runtimes judge every so manieth network; 0: none.
        defence: `"GloroNet"` or `"PolytopeNet"`; None for a random one.
        disturbance: one of `DISTURBANCES` or `"none"`; None for a random one.
    """
    rng, start = np.random.default_rng([seed, number]), time.perf_counter()
    keras.backend.clear_session()
    keras.utils.set_random_seed(number)
    polytope = rng.random() < 0.2 if defence is None else defence == "PolytopeNet"
    network = build(rng, polytope)
    randomise(network, rng)
    names = " ".join(type(layer).__name__ for layer in network.layers[1:])
    if disturbance is None:
        disturbance = str(rng.choice(list(DISTURBANCES))) if number % 3 else "none"
    try:
        if polytope:
            model: Any = PolytopeNet(network, epsilon=0.1, norm=str(rng.choice(["l2", "linf"])), radius_steps=1)
        else:
            model = GloroNet(network, epsilon=0.1)
        model.finalize()
        if disturbance != "none":
            model = DISTURBANCES[disturbance](model, rng)
        seen = judge(model, rng, attempts, elsewhere=every > 0 and number % every == 0)
    except (ValueError, RuntimeError) as error:
        seen = Verdict(f"refused: {str(error).splitlines()[0][:100]}", 0, 0, 0)
    return {
        "net": number, "defence": "PolytopeNet" if polytope else "GloroNet", "layers": names,
        "disturbance": disturbance, **seen._asdict(), "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip


def campaign(nets: int, attempts: int, seed: int, out: Path | None, every: int, first: int = 0) -> list[dict[str, Any]]:
    """All networks that are not in the file yet; every row as it comes."""
    rows: list[dict[str, Any]] = []
    if out is not None and out.exists():
        with out.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    done = {int(row["net"]) for row in rows}
    with quiet():
        for number in range(first, first + nets):
            if number in done:
                continue
            row = attempt(number, seed, attempts, every)
            rows.append(row)
            if out is not None:
                is_new = not out.exists()
                with out.open("a", newline="", encoding="utf-8") as stream:
                    writer = csv.DictWriter(stream, FIELDS)
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)
            if int(row["violations"]):
                print(f"VIOLATION in net {number}: {row}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """A table of nets, attempts and violations by disturbance."""
    kinds = sorted({row["disturbance"] for row in rows}, key=lambda kind: (kind != "none", kind))
    lines = ["| disturbance | nets | refused | answered inputs | attempts | violations |", "|---|---|---|---|---|---|"]
    for kind in [*kinds, "all"]:
        chosen = [row for row in rows if kind in ("all", row["disturbance"])]
        refused = sum(row["outcome"] != "judged" for row in chosen)
        sums = [sum(int(row[key]) for row in chosen) for key in ("answered", "attempts", "violations")]
        lines.append(f"| {kind} | {len(chosen)} | {refused} | {' | '.join(f'{value:,}' for value in sums)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=2000)
    parser.add_argument("--attempts", type=int, default=500, help="for each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--every", type=int, default=10, help="networks that are judged in other runtimes too; 0: none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = campaign(options.nets, options.attempts, options.seed, options.out, options.every, options.first)
    print(summary(rows))
    sys.exit(1 if any(int(row["violations"]) for row in rows) else 0)


if __name__ == "__main__":
    main()
