"""An l-infinity net on MNIST at eps 0.1: training, and Tables 4 and 5 of Leino et al. 2022 for it and a published one.

    DEFENDED_DATA=… python benchmarks/kw.py train [--one NAME]
    DEFENDED_DATA=… DEFENDED_REFERENCE=… python benchmarks/kw.py tables

`train` makes 2C2F nets with ReLU on 57,000 training images: `eps_0.1`, and `eps_0.1_doubled`, trained at 2 eps. Both
train by interval bounds, the cheapest, and are certified by dual bounds. A run that was killed goes on where it was.
Weights, histories and tables go to `benchmarks/results/kw/`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EPSILON, IMAGES, BATCH = 0.1, 57_000, 128


class Recipe(NamedTuple):
    """Adam with a rate falling linearly to 1e-5; the radius rises from 0 to `radius * eps` over `ramp` of them."""

    epochs: int
    radius: float
    ramp: float = 0.6
    rate: float = 2e-3


RECIPES = {"eps_0.1": Recipe(5, 1.5)}


def train(name: str, out: Path) -> None:
    """Train one net by interval bounds."""
    import keras
    import tensorflow as tf

    import defended
    from defended import callbacks
    from defended.polytope import PolytopeNet

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    recipe, work = RECIPES[name], out / ".work" / name
    work.mkdir(parents=True, exist_ok=True)
    data = defended.datasets.load("mnist")
    keras.utils.set_random_seed(0)
    network = defended.zoo.cnn_2c2f(activation="relu")
    model = PolytopeNet(network, epsilon=EPSILON, training_bounds="interval", name=name.replace(".", "_"))
    rate = keras.optimizers.schedules.PolynomialDecay(recipe.rate, recipe.epochs * math.ceil(IMAGES / BATCH), 1e-5)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    model.compile(optimizer, "certified_crossentropy", metrics=["clean_accuracy", "vra"], jit_compile=False)
    steering: Any
    if recipe.radius == 2.0:
        steering = callbacks.RadiusDoubling(ramp=recipe.ramp, by_batch=True, checkpoint=work / "best.weights.h5")
    else:
        steering = callbacks.EpsilonSchedule("linear", end=recipe.radius, ramp=recipe.ramp, by_batch=True)
    model.fit(
        data.x_train[:IMAGES],
        data.y_train[:IMAGES],
        batch_size=BATCH,
        epochs=recipe.epochs,
        verbose=2,
        validation_data=(data.x_train[IMAGES:], data.y_train[IMAGES:]),
        callbacks=[
            keras.callbacks.BackupAndRestore(work / "backup"),
            steering,
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: record_time(work / "time.json")),
            keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
        ],
    )
    network.save_weights(out / f"{name}.weights.h5", overwrite=True)


_CLOCK = [time.perf_counter(), time.process_time()]


def record_time(path: Path) -> None:
    """Add what has passed since the last record, so that a run that was killed and goes on is counted as a whole."""
    before = json.loads(path.read_text()) if path.exists() else {"minutes": 0.0, "cpu_minutes": 0.0}
    now = [time.perf_counter(), time.process_time()]
    passed = [(later - earlier) / 60 for earlier, later in zip(_CLOCK, now, strict=True)]
    _CLOCK[:] = now
    path.write_text(json.dumps({key: before[key] + part for key, part in zip(before, passed, strict=True)}))


def models(out: Path) -> dict[str, Any]:
    """The published net, by the paper's slope, and the ones trained here, by the default."""
    import numpy as np

    import defended

    found = {}
    case = np.load(Path(os.environ["DEFENDED_REFERENCE"]) / "kw" / "mnist_2c2f_linf_0.1.npz")
    network = defended.zoo.cnn_2c2f(activation="relu")
    names = [f"{layer}_{part}" for layer in ("conv1", "conv2", "dense1", "dense2") for part in ("kernel", "bias")]
    network.set_weights([case[name] for name in names])
    found["wong_kolter_0.1"] = defended.PolytopeNet(network, epsilon=EPSILON, slope="wong-kolter", radius_steps=1)
    for name in RECIPES:
        weights = out / f"{name}.weights.h5"
        if weights.exists():
            network = defended.zoo.cnn_2c2f(activation="relu")
            network.load_weights(weights)
            found[name] = defended.PolytopeNet(network, epsilon=EPSILON, slope="wong-kolter", radius_steps=1)
    return found


def tables(out: Path, points: int, steps: int) -> None:
    """Measure every net under the published attack and under descent on the dual bound, on the first test images."""
    import csv

    import defended
    from defended.attacks import CertificateDescent, DegradationAttack, susceptibility

    data = defended.datasets.load("mnist")
    x, y = data.x_test[:points], data.y_test[:points]
    attacks = {
        "published": DegradationAttack.published(EPSILON, norm="linf"),
        "certificate descent": CertificateDescent(steps=steps, jit_compile=False),
    }
    names = ("vra", "vra_2eps", "fpr_lower", "fpr_upper", "vra_under_attack", "utility_reduction", "rejection_rate")
    rows = []
    for net, model in models(out).items():
        model.finalize()
        for attack_name, attack in attacks.items():
            result = susceptibility(model, x, y, attack, progress=False)
            rates = {name: float(getattr(result, name)) for name in names}
            rows.append({"net": net, "attack": attack_name, "points": len(x), **rates})
            print(rows[-1], flush=True)
            with (out / "tables.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(
                    {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
                    for row in rows
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "tables"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kw")
    parser.add_argument("--one", choices=sorted(RECIPES), help="train only this net")
    parser.add_argument("--points", type=int, default=200, help="test images for the tables")
    parser.add_argument("--steps", type=int, default=10, help="of the descent on the dual bound")
    arguments = parser.parse_args()
    if arguments.what == "tables":
        tables(arguments.out, arguments.points, arguments.steps)
        return
    for name in [arguments.one] if arguments.one else RECIPES:
        train(name, arguments.out)


if __name__ == "__main__":
    main()
