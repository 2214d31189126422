"""Nets for randomized smoothing: the recipes of the committed weights.

    DEFENDED_DATA=path/to/data python benchmarks/smoothed_nets.py [--out FOLDER] [--quick] [--choose]

Trains four 2C2F nets for MNIST and Fashion-MNIST, sigma 0.25 and 0.5, and a ResNet-14 for CIFAR-10, sigma 0.25, under
noise, two side by side, one core each; a twentieth of the training images, the last, are for validation. Writes for
each net its weights (`NAME.keras`) and history (`NAME.csv`). A run that was killed goes on where it was. `--one NAME`
trains one net; `--quick` a tenth of the epochs. The ResNet takes three minutes an epoch where oneDNN is on.

`--choose` trains candidates for the recipe on Fashion-MNIST at sigma 0.5 and writes to `choice.csv` what their smoothed
classifiers reach on the first 300 of the validation images, with 1,000 samples each: the mean certified radius
(0 where wrong), and VRA at 0.25, 0.5 and 1.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """Adam, its rate falling linearly to 1e-6; the loss's draws, consistency weight and attack."""

    network: str = "2c2f"
    activation: str = "relu"
    draws: int = 1
    consistency: float = 0.0
    attack_steps: int = 0
    epochs: int = 4
    rate: float = 2e-3
    batch: int = 256
    augment: str | None = None


CANDIDATES = {
    "relu, Cohen": Recipe(),
    "relu, consistency 10": Recipe(draws=2, consistency=10.0),
    "relu, SmoothAdv": Recipe(draws=2, attack_steps=2),
    "minmax, Cohen": Recipe(activation="minmax"),
    "relu, consistency 5": Recipe(draws=2, consistency=5.0),
}
CHOSEN = Recipe(draws=2, consistency=10.0, epochs=16)
RESNET = Recipe("resnet", epochs=24, rate=3e-3, batch=128, augment="flip-shift")
NETS = [*((data, sigma) for data in ("mnist", "fashion_mnist") for sigma in (0.25, 0.5)), ("cifar10", 0.25)]
HELD_OUT = 0.05


def net_name(data: str, sigma: float) -> str:
    return f"{data}_sigma_{sigma:.2f}"


def trained(data: Any, sigma: float, recipe: Recipe, callbacks: list[Any]) -> Any:
    """The network of a recipe, trained on one core."""
    import keras

    import defended
    from defended.smoothing import Consistency, NoisyTrainer, SmoothAdv

    keras.utils.set_random_seed(0)
    zoo = defended.zoo
    network = zoo.resnet(depth=14) if recipe.network == "resnet" else zoo.cnn_2c2f(activation=recipe.activation)
    trainer = NoisyTrainer(
        network,
        sigma=sigma,
        draws=recipe.draws,
        consistency=Consistency(recipe.consistency) if recipe.consistency else None,
        adversary=SmoothAdv(sigma, steps=recipe.attack_steps, warmup=2) if recipe.attack_steps else None,
    )
    trained_on, held_out = data.split(HELD_OUT)
    steps = recipe.epochs * math.ceil(len(trained_on) / recipe.batch)
    rate = keras.optimizers.schedules.PolynomialDecay(recipe.rate, steps, 1e-6)
    # Small convolutions are slower with XLA on CPUs.
    trainer.compile(keras.optimizers.Adam(rate), metrics=["accuracy"], jit_compile=False)
    trainer.fit(
        batches(data.x_train[trained_on], data.y_train[trained_on], recipe),
        epochs=recipe.epochs,
        verbose=2,
        shuffle=False,
        validation_data=(data.x_train[held_out], data.y_train[held_out]),
        validation_batch_size=recipe.batch,
        callbacks=callbacks,
    )
    return network


def batches(x: Any, y: Any, recipe: Recipe) -> Any:
    """Shuffled training data, its images changed as the recipe says."""
    import tensorflow as tf

    from defended.training.training_data import augmentation

    changed = augmentation(recipe.augment, seed=0) if recipe.augment else lambda images: images
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).batch(recipe.batch)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.map(lambda images, labels: (changed(images), labels)).prefetch(2).with_options(options)


def train(name: str, out: Path, share: float) -> None:
    """One net in this process."""
    import keras

    import defended

    data_name, sigma = next(net for net in NETS if net_name(*net) == name)
    work = out / ".work" / name
    recipe = RESNET if data_name == "cifar10" else CHOSEN
    recipe = recipe._replace(epochs=max(math.ceil(recipe.epochs * share), 2))
    callbacks = [
        keras.callbacks.BackupAndRestore(work / "backup"),
        keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
    ]
    network = trained(defended.datasets.load(data_name), sigma, recipe, callbacks)
    network.save(work / "trained.keras", include_optimizer=False)
    (work / "trained.keras").replace(out / f"{name}.keras")


def choose(out: Path, share: float) -> None:
    """All candidates, in this process; those that `choice.csv` holds already are kept."""
    import numpy as np

    import defended

    data, sigma, radii = defended.datasets.load("fashion_mnist"), 0.5, (0.25, 0.5, 1.0)
    held_out = data.split(HELD_OUT)[1][:300]
    x, y = data.x_train[held_out], data.y_train[held_out]
    path = out / "choice.csv"
    if not path.exists():
        path.write_text(",".join(["recipe", "epochs", "mean_radius", *(f"vra_{r:g}" for r in radii)]) + "\n")
    done = {row[0] for row in csv.reader(path.open())}
    for name, recipe in CANDIDATES.items():
        if name in done:
            continue
        recipe = recipe._replace(epochs=max(math.ceil(recipe.epochs * share), 1))
        network = trained(data, sigma, recipe, [])
        label, radius = certified(network, x, sigma)
        radius = np.where(label == y, radius, 0.0)
        figures = [f"{radius.mean():.4f}", *(f"{(radius > r).mean():.4f}" for r in radii)]
        with path.open("a", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow([name, recipe.epochs, *figures])


def certified(network: Any, x: Any, sigma: float, samples: int = 1000, alpha: float = 0.001) -> tuple[Any, Any]:
    """Labels and radii of Cohen et al.'s CERTIFY, plainly: 100 samples choose the class, `samples` bound its share."""
    import numpy as np
    import tensorflow as tf
    from scipy import stats

    @tf.function(autograph=False)
    def votes(image: Any, number: int) -> Any:
        noisy = image[None] + tf.random.normal((number, *image.shape), stddev=sigma)
        return tf.math.bincount(tf.argmax(network(noisy, training=False), -1, tf.int32), minlength=10)

    label, radius = np.zeros(len(x), int), np.zeros(len(x))
    for i, image in enumerate(x):
        label[i] = np.argmax(votes(tf.constant(image), 100))
        count = votes(tf.constant(image), samples).numpy()[label[i]]
        share = stats.beta.ppf(alpha, count, samples - count + 1) if count else 0.0
        radius[i] = sigma * stats.norm.ppf(share) if share > 0.5 else 0.0
    return label, radius


def one_core() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smoothed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the epochs")
    parser.add_argument("--choose", action="store_true", help="compare the candidates for the recipe, and no more")
    parser.add_argument("--one", help="train only this net, in this process")
    arguments = parser.parse_args()
    out, share = arguments.out, 0.1 if arguments.quick else 1.0
    (out / ".work").mkdir(parents=True, exist_ok=True)
    if arguments.choose:
        one_core()
        choose(out, share)
    elif arguments.one:
        one_core()
        train(arguments.one, out, share)
    else:
        train_all(out, arguments.quick)


def train_all(out: Path, quick: bool) -> None:
    """The nets whose weights are not there yet, each in a process of its own, two at a time."""

    def run(name: str) -> int:
        command = [sys.executable, __file__, "--out", str(out), "--one", name, *["--quick"] * quick]
        with (out / ".work" / f"{name}.log").open("a") as log:
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode

    missing = [net_name(*net) for net in NETS if not (out / f"{net_name(*net)}.keras").exists()]
    with ThreadPoolExecutor(2) as pool:
        for name, status in zip(missing, pool.map(run, missing), strict=True):
            if status:
                sys.exit(f"{name} failed: see {out / '.work' / f'{name}.log'}")


if __name__ == "__main__":
    main()
