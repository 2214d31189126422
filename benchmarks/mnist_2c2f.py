"""The 2C2F MNIST nets at eps 0.3, trained at eps and with radius doubling: the command behind the committed weights.

    DEFENDED_DATA=path/to/data python benchmarks/mnist_2c2f.py [--out benchmarks/results/mnist_2c2f] [--quick]

Trains both nets side by side, one core each. First a run on 57,000 training images, radius and TRADES weight rising
over its first half; the last 3,000 images choose the best epoch of the doubled net. Then, for the doubled net, a
shorter second run on all 60,000 with the learning rate back at its start. Writes for each net its weights
(`NAME.keras`), its histories (`NAME.csv`, `NAME_second.csv`), and `results.json` with what holds on the 10,000 test
images, by proven bounds. A run that was killed goes on where it was. `--quick` trains a fiftieth of the epochs and
tells the minutes taken.
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


class Plan(NamedTuple):
    """How a net is trained."""

    doubled: bool
    epochs: int
    second: int
    """Epochs of the second run; 0 for none."""


PLANS = {"eps_0.3": Plan(False, 100, 0), "eps_0.3_doubled": Plan(True, 150, 40)}
BATCH = 256


def compile_model(model: Any, images: int, epochs: int) -> None:
    """Adam, its rate falling linearly from 1e-3 to 1e-6 over the epochs; TRADES with weight 1.5."""
    import keras

    steps = epochs * -(-images // BATCH)
    rate = keras.optimizers.schedules.PolynomialDecay(1e-3, steps, 1e-6)
    model.compile(
        keras.optimizers.Adam(rate), "trades_kl.1.5", metrics=["clean_accuracy", "vra", "false_positive_bound"]
    )


def first_run(name: str, out: Path, epochs: int, data: Any) -> Any:
    """The network from scratch, radius and weight rising over the first half."""
    import keras

    import defended

    keras.utils.set_random_seed(0)
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3, name=name.replace(".", "_"))
    compile_model(model, 57_000, epochs)
    work = out / ".work" / name
    radius = (
        defended.callbacks.RadiusDoubling(checkpoint=work / "best.weights.h5")
        if PLANS[name].doubled
        else defended.callbacks.EpsilonSchedule("linear")
    )
    model.fit(
        data.x_train[:57_000],
        data.y_train[:57_000],
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(data.x_train[57_000:], data.y_train[57_000:]),
        verbose=2,
        callbacks=[
            keras.callbacks.BackupAndRestore(work / "backup"),
            radius,
            defended.callbacks.TradesSchedule("linear"),
            keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
        ],
    )
    return model


def second_run(name: str, out: Path, epochs: int, data: Any, model: Any) -> None:
    """From the first run's weights, at the full radius, on all training images."""
    import keras

    import defended

    keras.utils.set_random_seed(1)
    compile_model(model, 60_000, epochs)
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        epochs=epochs,
        verbose=2,
        callbacks=[
            defended.callbacks.EpsilonSchedule("fixed", end=2.0 if PLANS[name].doubled else 1.0),
            keras.callbacks.CSVLogger(out / f"{name}_second.csv"),
        ],
    )


def train(name: str, out: Path, share: float) -> None:
    """Both runs of one net in this process, on one core."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import defended

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = defended.datasets.load("mnist")
    epochs, second = (math.ceil(count * share) for count in PLANS[name][1:])
    first = out / ".work" / name / "first.keras"
    if first.exists():
        model = keras.models.load_model(first)
    else:
        model = first_run(name, out, max(epochs, 2), data)
        model.save(first)
    if second:
        second_run(name, out, second, data, model)
    model.compile(
        metrics=["clean_accuracy", "vra", defended.metrics.VRA(2.0), "rejection_rate", "false_positive_bound"]
    )
    figures = model.evaluate(data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True)
    figures.pop("loss")
    model.save(out / f"{name}.keras", include_optimizer=False)
    (out / ".work" / name / "figures.json").write_text(json.dumps({**figures, "epochs": epochs + second}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mnist_2c2f")
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of the epochs, to see what the whole would take"
    )
    parser.add_argument("--one", choices=sorted(PLANS), help="train only this net, in this process")
    arguments = parser.parse_args()
    share = 0.02 if arguments.quick else 1.0
    if arguments.one:
        train(arguments.one, arguments.out, share)
        return
    start = time.perf_counter()
    children = {}
    for name in PLANS:
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
    results = {name: json.loads((arguments.out / ".work" / name / "figures.json").read_text()) for name in PLANS}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(
        f"{(time.perf_counter() - start) / 60:.1f} minutes"
        + (", a fiftieth of the training" if arguments.quick else "")
    )


if __name__ == "__main__":
    main()
