"""The 2C2F MNIST nets at eps 0.3, trained at eps and with radius doubling: the recipe of the committed weights.

    DEFENDED_DATA=path/to/data python benchmarks/mnist_2c2f.py [--out benchmarks/results/mnist_2c2f] [--quick]

Trains both nets side by side, one core each. First on 57,000 training images, radius and TRADES weight rising over the
first half; the last 3,000 images choose the best epoch of the doubled net. Two shorter stages on all 60,000 images
follow, the learning rate back up, with the radii and weights that `STAGES` lists. Writes for each net
its weights (`NAME.keras`), a history of each stage (`NAME.csv`, `NAME_2.csv`, ...), and `results.json` with what holds
on the 10,000 test images, by proven bounds. A run that was killed goes on where it was, a later stage from its start.
`--quick` trains a fiftieth of the epochs and tells the minutes taken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """Epochs of Adam, its rate falling linearly from `rate` to 1e-6, with `losses.Trades(weight)` at `radius * eps`."""

    epochs: int
    radius: float
    rate: float = 1e-3
    weight: float = 1.5


STAGES = {
    "eps_0.3": [Stage(100, 1.0), Stage(12, 1.1, weight=5.0), Stage(9, 1.5, weight=5.0)],
    "eps_0.3_doubled": [Stage(150, 2.0), Stage(40, 2.0), Stage(10, 2.0, rate=5e-4, weight=0.75)],
}
BATCH = 256


def train_stage(name: str, number: int, epochs: int, out: Path, data: Any, model: Any) -> None:
    """One stage; the first takes the radius and the weight up, and holds out the last 3,000 training images."""
    import keras

    import defended
    from defended import callbacks

    stage = STAGES[name][number]
    keras.utils.set_random_seed(number)
    images = 57_000 if number == 0 else 60_000
    rate = keras.optimizers.schedules.PolynomialDecay(stage.rate, epochs * math.ceil(images / BATCH), 1e-6)
    model.compile(
        keras.optimizers.Adam(rate),
        defended.losses.Trades(stage.weight),
        metrics=["clean_accuracy", "vra", "false_positive_bound"],
    )
    work = out / ".work" / name
    options: dict[str, Any] = {}
    history = out / (f"{name}.csv" if number == 0 else f"{name}_{number + 1}.csv")
    if number == 0:
        options["validation_data"] = data.x_train[images:], data.y_train[images:]
        doubling = callbacks.RadiusDoubling(checkpoint=work / "best.weights.h5")
        steering = [
            keras.callbacks.BackupAndRestore(work / "backup"),
            doubling if stage.radius == 2.0 else callbacks.EpsilonSchedule("linear"),
            callbacks.TradesSchedule("linear"),
            keras.callbacks.CSVLogger(history, append=(work / "backup").exists()),
        ]
    else:
        steering = [callbacks.EpsilonSchedule("fixed", end=stage.radius), keras.callbacks.CSVLogger(history)]
    x, y = data.x_train[:images], data.y_train[:images]
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=2, callbacks=steering, **options)


def train(name: str, out: Path, share: float) -> None:
    """All stages of one net in this process, on one core."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import defended

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = defended.datasets.load("mnist")
    keras.utils.set_random_seed(0)
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3, name=name.replace(".", "_"))
    total = 0
    for number, stage in enumerate(STAGES[name]):
        epochs = max(math.ceil(stage.epochs * share), 2)
        total += epochs
        finished = out / ".work" / name / f"stage_{number + 1}.keras"
        if finished.exists():
            model = keras.models.load_model(finished, compile=False)
            continue
        train_stage(name, number, epochs, out, data, model)
        model.save(finished, include_optimizer=False)
    model = keras.models.load_model(finished, compile=False)  # without the optimizer's settings and state
    model.save(out / f"{name}.keras")
    model.compile(
        metrics=["clean_accuracy", "vra", defended.metrics.VRA(2.0), "rejection_rate", "false_positive_bound"]
    )
    figures = model.evaluate(data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True)
    figures.pop("loss")
    (out / ".work" / name / "figures.json").write_text(json.dumps({**figures, "epochs": total}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mnist_2c2f")
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of the epochs, to see what the whole would take"
    )
    parser.add_argument("--one", choices=sorted(STAGES), help="train only this net, in this process")
    arguments = parser.parse_args()
    share = 0.02 if arguments.quick else 1.0
    if arguments.one:
        train(arguments.one, arguments.out, share)
        return
    start = time.perf_counter()
    children = {}
    for name in STAGES:
        work = arguments.out / ".work" / name
        if (work / "figures.json").exists():
            continue
        work.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--out", str(arguments.out), "--one", name, *["--quick"] * arguments.quick]
        with (work / "log.txt").open("a") as log:
            children[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    for name, child in children.items():
        if child.wait():
            sys.exit(f"{name} failed: see {arguments.out / '.work' / name / 'log.txt'}")
    results = {name: json.loads((arguments.out / ".work" / name / "figures.json").read_text()) for name in STAGES}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(
        f"{(time.perf_counter() - start) / 60:.1f} minutes"
        + (", a fiftieth of the training" if arguments.quick else "")
    )


if __name__ == "__main__":
    main()
