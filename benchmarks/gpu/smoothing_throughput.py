"""Smoothing's throughput against the bare network's, on one GPU, with TensorFlow or with JAX.

    KERAS_BACKEND=tensorflow python benchmarks/gpu/smoothing_throughput.py [--samples 100000] [--batch 1000 4000]
    KERAS_BACKEND=jax python benchmarks/gpu/smoothing_throughput.py [--net 2c2f | --network net.keras] [--out FILE]

One input is judged. In each round the bare network evaluates so many rows in batches, then the smoothed one draws as
many samples in batches of the same size, so that drifts of the machine cancel in the ratios (smoothed / bare).

With TensorFlow, `SmoothedNet.sample_counts` is timed: the sampler of mode "fixed". On a CPU it keeps two half batches
in flight. With JAX, which `SmoothedNet` does not run on, this file writes the same loop: a chunk of normal noise, the
network, argmax and counts, again and again in one compiled call. JAX needs no TensorFlow. Many GPUs compute float32 in
TF32, here too, for both networks.

Before the clock starts, the votes must sum to the samples and agree with a count written plainly in NumPy, within what
chance allows. That shows little where all votes are for one class, so the table tells the largest share. The networks
that are made here have random weights, and biases that spread the votes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from defended import DefendedModel, SmoothedNet, __version__, zoo
from defended._io import atomic_write_text, canonical_json
from defended.arguments import positive_number, whole_number
from defended.smoothing.bounds import MAX_SAMPLES

NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "resnet": zoo.resnet,
    "2c2f": lambda: zoo.cnn_2c2f(activation="relu"),
}
PACKAGES = {"tensorflow": ("tensorflow", "tensorflow-probability"), "jax": ("jax", "jaxlib")}
PLAIN = 2000  # draws of the plain count
FALSE_ALARM = 1e-6  # of the comparison with it

Runs = tuple[Callable[[], Any], Callable[[], np.ndarray], Callable[[np.ndarray], Any]]
"""The bare network's run; the smoothed one's, which returns its votes `[m]`; and plain logits of inputs `[n, …]`."""


def made(name: str, sigma: float) -> keras.Model:
    """A network with random weights that takes noisy random images for various classes."""
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]()
    rng, shape = np.random.default_rng(1), (100, *network.input_shape[1:])
    images = rng.random(shape, dtype="float32") + np.float32(sigma) * rng.standard_normal(shape, dtype="float32")
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(images, training=True)  # statistics of these images, without which bfloat16 would decide many votes
    network.layers[-1].bias.assign_sub(network.predict(images, verbose=0).mean(axis=0))
    return network


def loaded(path: Path) -> keras.Model:
    """The network of a file, if it is one that can be smoothed."""
    if not path.is_file():
        raise SystemExit(f"--network: there is no file {path}")
    try:
        network = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds
        raise SystemExit(f"--network: Keras cannot load {path}: {str(error).strip().partition(chr(10))[0]}") from None
    if isinstance(network, DefendedModel):
        raise SystemExit(f"--network: {path} holds a {type(network).__name__}; save its `network` and name that file")
    single = len(getattr(network, "inputs", None) or []) == len(network.outputs) == 1
    if not single or None in network.input_shape[1:] or len(network.output_shape) != 2:
        raise SystemExit(f"--network: {path} must take one input of a known shape, and give logits [batch, m]")
    return network


def compute_in(network: keras.Model, precision: str) -> None:
    """Let all layers compute in this type; their weights stay float32."""
    policy = keras.DTypePolicy(precision if precision == "float32" else f"mixed_{precision}")
    for layer in network._flatten_layers():
        layer.dtype_policy = policy


def on_tensorflow(
    network: keras.Model, x: np.ndarray, sigma: float, samples: int, rows: int, precision: str = "float32"
) -> Runs:
    """The runs with TensorFlow: smoothing is `SmoothedNet`'s own."""
    import tensorflow as tf

    try:
        model = SmoothedNet(network, epsilon=sigma, sigma=sigma, max_batch=rows, precision=precision, mode="fixed")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    points = tf.constant(np.repeat(x[None], rows, axis=0))

    @tf.function(autograph=False)
    def bare(points: Any) -> Any:
        def body(step: Any, total: Any) -> tuple[Any, Any]:
            # The input depends on the step, and the sum on every output: nothing can be taken out of the loop.
            return step + 1, total + model.undefended_logits(points + 1e-6 * tf.cast(step, tf.float32))

        start = (tf.constant(0), tf.zeros([rows, network.output_shape[-1]]))
        return tf.while_loop(lambda step, _: step < samples // rows, body, start, parallel_iterations=1)[1]

    return lambda: bare(points).numpy(), lambda: model.sample_counts(x[None], samples)[0], model.undefended_logits


def on_jax(
    network: keras.Model, x: np.ndarray, sigma: float, samples: int, rows: int, precision: str = "float32"
) -> Runs:
    """The runs with JAX: each is one call of a compiled loop."""
    import jax
    from jax import numpy as jnp

    classes, steps = network.output_shape[-1], samples // rows
    # Arguments, since constants would be folded.
    weights = [[v.value for v in kind] for kind in (network.trainable_variables, network.non_trainable_variables)]
    point, keys = jnp.asarray(x), map(jax.random.key, itertools.count())

    def plain(points: Any) -> Any:
        compute_in(network, precision)
        return network(points, training=False).astype("float32")

    def logits(weights: Any, points: Any) -> Any:
        compute_in(network, precision)
        return network.stateless_call(*weights, points, training=False)[0].astype("float32")

    @jax.jit
    def bare(weights: Any, points: Any) -> Any:
        # As with TensorFlow, nothing can be taken out of the loop.
        body = lambda step, total: total + logits(weights, points + 1e-6 * step)  # noqa: E731
        return jax.lax.fori_loop(0, steps, body, jnp.zeros([rows, classes]))

    @jax.jit
    def smoothed(weights: Any, point: Any, key: Any) -> Any:
        def body(step: Any, counts: Any) -> Any:
            noise = jax.random.normal(jax.random.fold_in(key, step), [rows, *point.shape])
            found = logits(weights, point + sigma * noise)
            votes = jax.nn.one_hot(found.argmax(axis=-1), classes, dtype="int32")
            # As in SmoothedNet, logits that are not finite vote for no class.
            return counts + (votes * jnp.isfinite(found).all(axis=-1, keepdims=True)).sum(axis=0)

        return jax.lax.fori_loop(0, steps, body, jnp.zeros([classes], "int32"))

    points = jnp.repeat(point[None], rows, axis=0)
    return lambda: np.asarray(bare(weights, points)), lambda: np.asarray(smoothed(weights, point, next(keys))), plain


def plain_votes(logits: Callable[[np.ndarray], Any], x: np.ndarray, sigma: float, rows: int = 500) -> np.ndarray:
    """Votes `[m]` of `PLAIN` draws: NumPy's noise, the network called eagerly, a count on the host."""
    rng, classes = np.random.default_rng(2), []
    for _ in range(PLAIN // rows):
        found = np.asarray(logits(x + np.float32(sigma) * rng.standard_normal((rows, *x.shape), dtype="float32")))
        classes.append(found.argmax(axis=1))
    return np.bincount(np.concatenate(classes), minlength=found.shape[1])


def check_votes(votes: np.ndarray, samples: int, plain: np.ndarray) -> dict[str, float]:
    """Compare shares of votes `[m]` with the plain ones, and end the program where they cannot be one network's.

    Shares of t and of v draws of one network differ by more than `sqrt(l / 2t) + sqrt(l / 2v)`, `l = log(4m / a)`, with
    probability at most a = `FALSE_ALARM`: Hoeffding's inequality for each class and either count.
    """
    if votes.sum() != samples:
        raise SystemExit(f"The votes are wrong: of {samples} samples, {votes.sum()} voted. Are all logits finite?")
    shares, log = votes / samples, math.log(4 * len(votes) / FALSE_ALARM)
    difference = float(np.abs(shares - plain / plain.sum()).max())
    allowed = math.sqrt(log / (2 * samples)) + math.sqrt(log / (2 * plain.sum()))
    if difference > allowed:
        raise SystemExit(
            f"The votes are wrong: a class's share differs by {difference:.3f} from that of a plain count, and chance "
            f"allows {allowed:.3f}."
        )
    return {"largest_share": float(shares.max()), "difference": difference, "allowed": allowed}


def interleaved(functions: tuple[Callable[[], Any], ...], rounds: int) -> np.ndarray:
    """Seconds `[functions, rounds]`; every round runs every function, and a first round is not counted."""
    seconds = np.zeros((len(functions), rounds + 1))
    for turn, (place, function) in itertools.product(range(rounds + 1), enumerate(functions)):
        start = time.perf_counter()
        function()
        seconds[place, turn] = time.perf_counter() - start
    return seconds[:, 1:]


def device() -> str:
    """The name of the device that both networks run on."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return str(tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU")) if found else "cpu"


def measure(options: argparse.Namespace, network: keras.Model) -> list[dict[str, Any]]:
    """Print a row for each precision and size of batch, and return them."""
    x = np.random.default_rng(0).random(network.input_shape[1:], dtype="float32")
    runs_of = on_jax if keras.backend.backend() == "jax" else on_tensorflow
    print("precision   batch   bare samples/s  smoothed samples/s  ratio                 votes: largest share, check")
    rows = []
    for precision, batch in itertools.product(options.precision, options.batch):
        bare, smoothed, plain = runs_of(network, x, options.sigma, options.samples, batch, precision)
        checked = check_votes(smoothed(), options.samples, plain_votes(plain, x, options.sigma))
        rates = options.samples / interleaved((bare, smoothed), options.rounds)
        ratios = rates[1] / rates[0]
        row = {
            "precision": precision, "batch": batch, "bare": np.median(rates[0]), "smoothed": np.median(rates[1]),
            "ratio": np.median(ratios), "least_ratio": ratios.min(), "largest_ratio": ratios.max(), **checked,
        }  # fmt: skip
        rows.append({name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()})
        print(
            f"{precision:9s} {batch:7d} {row['bare']:16.0f} {row['smoothed']:19.0f}  {row['ratio']:5.3f} "
            f"({ratios.min():.3f} to {ratios.max():.3f})  {checked['largest_share']:.2f}, off by "
            f"{checked['difference']:.3f} of {checked['allowed']:.3f} allowed",
            flush=True,
        )
    return rows


def refuse_bad(options: argparse.Namespace) -> None:
    """End the program with one line for what cannot be measured."""
    backend = keras.backend.backend()
    if backend not in PACKAGES:
        raise SystemExit(f"Keras runs on {backend}: set KERAS_BACKEND to {' or '.join(PACKAGES)}")
    try:
        whole_number("--samples", options.samples, 1, MAX_SAMPLES)
        whole_number("--rounds", options.rounds, 1)
        positive_number("--sigma", options.sigma, "in input units")
        for batch in options.batch:
            whole_number("--batch", batch, 1)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    odd = [batch for batch in options.batch if options.samples % batch]
    if odd:
        raise SystemExit(f"--samples must be a multiple of every --batch. Received: {options.samples} and {odd[0]}")
    if options.out and options.out.is_dir():
        raise SystemExit(f"--out must be a file, and {options.out} is a folder")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000, help="draws for the input in a round")
    parser.add_argument("--batch", type=int, nargs="+", default=[1000], help="rows at a time; each is tried in turn")
    parser.add_argument("--rounds", type=int, default=5)
    networks = parser.add_mutually_exclusive_group()
    networks.add_argument("--net", choices=NETWORKS, default="resnet", help="with random weights")
    networks.add_argument("--network", type=Path, metavar="FILE", help="a .keras file of a network without a defence")
    parser.add_argument("--sigma", type=float, default=0.25, help="of the noise, in input units")
    kinds = ["float32", "bfloat16"]
    parser.add_argument("--precision", nargs="+", choices=kinds, default=kinds, help="what the networks compute in")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures into this file too, as JSON")
    options = parser.parse_args()
    refuse_bad(options)
    network = made(options.net, options.sigma) if options.network is None else loaded(options.network)
    backend = keras.backend.backend()
    facts = {
        "device": device(), "backend": backend, "network": str(options.network or options.net),
        "versions": {
            "defended": __version__, **{name: version(name) for name in ("keras", "numpy", *PACKAGES[backend])},
        },
        "sigma": options.sigma, "samples": options.samples, "rounds": options.rounds,
    }  # fmt: skip
    print(f"{facts['network']} on {facts['device']}, {backend}: {options.samples} samples, {options.rounds} rounds")
    print(", ".join(" ".join(pair) for pair in facts["versions"].items()))
    facts["rows"] = measure(options, network)
    if options.out:
        atomic_write_text(options.out, canonical_json(facts))
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
