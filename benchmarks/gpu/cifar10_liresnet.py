"""A LiResNet with EMMA on CIFAR-10: trained on a GPU, in JAX, in minutes; proven and measured on a CPU.

    KERAS_BACKEND=jax DEFENDED_DATA=… python benchmarks/gpu/cifar10_liresnet.py train net.keras [--minutes 12]
    DEFENDED_DATA=… python benchmarks/gpu/cifar10_liresnet.py prove net.keras defended.keras [--sharpen]

`train` needs Keras, JAX and NumPy, and no TensorFlow. From epoch to epoch, the learning rate and the training radius
follow the time that has passed, so that the run ends when it should, whatever the machine. Images are mirrored and
moved. The weights are the mean of those of the last tenth of the time. Nothing is proven there: many GPUs compute in
TF32.

`prove` proves the bounds on this machine's CPU, with a second look in float64, and prints what holds on the test images
that are lossless.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import defended
from defended import GloroNet, datasets, zoo

EPSILON = 0.141
RADIUS = 1.1  # of training, in epsilons
RATE = 2e-3


class Unproven(GloroNet):
    """A GloRo Net whose `fit` ends without a proof: that is for a CPU."""

    def finalize(self) -> None:
        """Prove nothing."""


class Course(keras.callbacks.Callback):
    """Learning rate, training radius and averaged weights by the time that has passed; stops when it is over.

    Args:
        seconds: of the course, from the end of the first step, which compiles.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.start, self.count = seconds, math.nan, 0
        self.total: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set what the time says: between batches, JAX's compiled step would not see it."""
        passed = 0.0 if math.isnan(self.start) else (time.monotonic() - self.start) / self.seconds
        rising, falling = min(passed / 0.05, 1.0), max(1 - passed, 0.0)
        self.model.optimizer.learning_rate.assign(RATE * max(min(rising, falling), 1e-3))
        self.model.radius_scale.assign(RADIUS * min(0.1 + 0.9 * passed / 0.5, 1.0))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Begin the clock after the first step, and stop in time."""
        if math.isnan(self.start):
            self.start = time.monotonic()
        if time.monotonic() - self.start > self.seconds:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the weights to the mean, near the end."""
        print(f"{time.monotonic() - self.start:7.1f} s", {name: round(float(v), 4) for name, v in (logs or {}).items()})
        if time.monotonic() - self.start > 0.9 * self.seconds:
            weights = [np.asarray(value, np.float64) for value in self.model.network.get_weights()]
            self.total = weights if not self.count else [a + b for a, b in zip(self.total, weights, strict=True)]
            self.count += 1

    def on_train_end(self, logs: Any = None) -> None:
        """Give the network its mean weights."""
        if self.count:
            self.model.network.set_weights([(value / self.count).astype("float32") for value in self.total])


class Batches(keras.utils.PyDataset):
    """Random training images, mirrored and moved by up to `shift` pixels."""

    def __init__(self, x: np.ndarray, y: np.ndarray, size: int, steps: int, shift: int = 3):
        super().__init__(workers=4, max_queue_size=16)
        self.x = np.pad(x, [(0, 0), (shift, shift), (shift, shift), (0, 0)])
        self.y, self.size, self.steps, self.shift, self.side = y, size, steps, shift, x.shape[1]
        self.seeds = np.random.SeedSequence(0)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seeds.spawn(1)[0])
        rows = rng.choice(len(self.x), self.size, replace=False)
        down, right = rng.integers(0, 2 * self.shift + 1, (2, self.size))
        span = np.arange(self.side)
        columns = right[:, None] + np.where(rng.random((self.size, 1)) < 0.5, span, span[::-1])
        batch = self.x[rows[:, None, None], (down[:, None] + span)[:, :, None], columns[:, None, :]]
        return batch, self.y[rows]


def train(options: argparse.Namespace) -> None:
    """Train, and write the network without its defence."""
    data = datasets.load("cifar10")
    keras.utils.set_random_seed(0)
    model = Unproven(zoo.liresnet(depth=options.depth, width=options.width, units=options.units), epsilon=EPSILON)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=0.0)
    model.compile(optimizer, loss="emma", metrics=["clean_accuracy", "vra"], jit_compile=True)
    batches = Batches(data.x_train, data.y_train, options.batch, options.steps or len(data.x_train) // options.batch)
    course = Course(60 * options.minutes)
    model.fit(batches, epochs=options.epochs, callbacks=[course], verbose=0)
    aside = options.net.with_name(f".{options.net.name}.part.keras")
    model.network.save(aside)
    os.replace(aside, options.net)
    print(f"wrote {options.net}")


def prove(options: argparse.Namespace) -> None:
    """Prove the bounds, measure them, and write the defended model."""
    from defended.gloro.reparametrise.sharpen import sharpen_bounds

    model = GloroNet(keras.models.load_model(options.net), epsilon=EPSILON, second_look=True)
    start = time.perf_counter()
    if options.sharpen:
        print(f"sharpened: K is {sharpen_bounds(model):.4f} of what it was")
    model.finalize()
    print(f"proven in {time.perf_counter() - start:.0f} s")
    data = datasets.load("cifar10")
    x, y = data.x_test[: options.points], data.y_test[: options.points]
    found = model.audit(x)
    facts = defended.statistics.rates.InputFacts.at(
        found["certified_radius"], found["scores"].argmax(axis=1) == y, EPSILON, available=found["availability_radius"]
    )
    for name in ("clean_accuracy", "vra", "vra_2eps", "rejection_rate", "fpr_upper"):
        print(f"{name:16s} {100 * facts.rate(name):6.2f} %")
    aside = options.out.with_name(f".{options.out.name}.part.keras")
    model.save(aside)
    os.replace(aside, options.out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("net", type=Path)
    training.add_argument("--minutes", type=float, default=12.0, help="of training, compilation apart")
    training.add_argument("--batch", type=int, default=512)
    training.add_argument("--epochs", type=int, default=10_000, help="at most")
    training.add_argument("--steps", type=int, help="in an epoch; by default, as many as the data fill")
    training.add_argument("--depth", type=int, default=12)
    training.add_argument("--width", type=int, default=128)
    training.add_argument("--units", type=int, default=1024)
    training.set_defaults(run=train)
    proving = commands.add_parser("prove")
    proving.add_argument("net", type=Path)
    proving.add_argument("out", type=Path)
    proving.add_argument("--sharpen", action="store_true")
    proving.add_argument("--points", type=int, help="test images; by default all")
    proving.set_defaults(run=prove)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
