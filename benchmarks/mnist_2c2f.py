"""The 2C2F MNIST nets at eps 0.3, trained at eps and with radius doubling: the command behind the committed weights.

    DEFENDED_DATA=path/to/data python benchmarks/mnist_2c2f.py [--out benchmarks/results/mnist_2c2f]

Trains both nets side by side, one core each, on the first 57,000 training images; the last 3,000 choose the best epoch
of the doubled net. Writes for each net its weights (`NAME.keras`), its history (`NAME.csv`), and `results.json` with
what holds on the 10,000 test images, by proven bounds, and the minutes taken. A run that was killed goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = {"eps_0.3": False, "eps_0.3_doubled": True}


def train(name: str, out: Path, epochs: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import defended

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    started = time.perf_counter()
    keras.utils.set_random_seed(0)
    data = defended.datasets.load("mnist")
    x, y = data.x_train[:57_000], data.y_train[:57_000]
    held_out = data.x_train[57_000:], data.y_train[57_000:]
    batch = 256
    steps = epochs * -(-len(x) // batch)
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3, name=name.replace(".", "_"))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(1e-3, steps, 1e-6)),
        loss="trades_kl.1.5",
        metrics=["clean_accuracy", "vra", "false_positive_bound"],
    )
    work = out / ".work" / name
    radius: Any = (
        defended.callbacks.RadiusDoubling(checkpoint=work / "best.weights.h5")
        if RUNS[name]
        else defended.callbacks.EpsilonSchedule("linear")
    )
    model.fit(
        x,
        y,
        batch_size=batch,
        epochs=epochs,
        validation_data=held_out,
        verbose=2,
        callbacks=[
            keras.callbacks.BackupAndRestore(work / "backup"),
            radius,
            defended.callbacks.TradesSchedule("linear"),
            keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
        ],
    )
    model.compile(
        metrics=["clean_accuracy", "vra", defended.metrics.VRA(2.0), "rejection_rate", "false_positive_bound"]
    )
    figures = model.evaluate(data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True)
    figures.pop("loss")
    figures["minutes"] = (time.perf_counter() - started) / 60
    figures["epochs"] = epochs
    model.save(out / f"{name}.keras", include_optimizer=False)
    (work / "figures.json").write_text(json.dumps(figures, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mnist_2c2f")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--one", choices=sorted(RUNS), help="train only this net, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        train(arguments.one, arguments.out, arguments.epochs)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--out", str(arguments.out), "--epochs", str(arguments.epochs), "--one"]
    children = {}
    for name in RUNS:
        if (arguments.out / ".work" / name / "figures.json").exists():
            continue
        (arguments.out / ".work" / name).mkdir(parents=True, exist_ok=True)
        log = (arguments.out / ".work" / name / "log.txt").open("a")
        children[name] = subprocess.Popen([*command, name], stdout=log, stderr=subprocess.STDOUT)
    for name, child in children.items():
        if child.wait():
            sys.exit(f"{name} failed: see {arguments.out / '.work' / name / 'log.txt'}")
    results = {name: json.loads((arguments.out / ".work" / name / "figures.json").read_text()) for name in RUNS}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
