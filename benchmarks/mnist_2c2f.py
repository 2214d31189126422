"""The 2C2F MNIST nets at eps 0.3, trained for eps and with radius doubling: the recipe of the committed weights.

    DEFENDED_DATA=path/to/data python benchmarks/mnist_2c2f.py [--out benchmarks/results/mnist_2c2f] [--quick]

Trains both nets side by side, one core each, on 57,000 training images; the last 3,000 choose the best epoch of the
doubled net. Writes for each net its weights (`NAME.keras`) and history (`NAME.csv`), and `results.json` with what holds
on the 10,000 test images, by proven bounds, and the minutes taken. A run that was killed goes on where it was.
`--quick` trains a fiftieth of the epochs.
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


class Recipe(NamedTuple):
    """Adam with a rate falling linearly to 1e-6, and `losses.Trades(weight)` at a radius of `radius * eps`.

    The radius rises linearly over the first two fifths of the epochs, from `start * eps`: a start near 0 lets the net
    memorise the training images, and it takes long to unlearn that.
    """

    epochs: int
    radius: float
    weight: float
    start: float = 0.3
    rate: float = 3e-3


# A net trained at exactly eps overfits: more of the training than of the test images are certified.
RECIPES = {"eps_0.3": Recipe(60, 1.25, 2.0), "eps_0.3_doubled": Recipe(120, 2.0, 1.0)}
IMAGES, BATCH = 57_000, 256
SHARPENING = 200
"""Iterations of `sharpen_bounds` for the trained weights, a minute."""


def train(name: str, out: Path, share: float) -> None:
    """One net in this process, on one core."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import defended
    from defended import callbacks
    from defended.gloro.reparametrise.sharpen import sharpen_bounds

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    recipe, work = RECIPES[name], out / ".work" / name
    epochs = max(math.ceil(recipe.epochs * share), 2)
    data = defended.datasets.load("mnist")
    keras.utils.set_random_seed(0)
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3, name=name.replace(".", "_"))
    rate = keras.optimizers.schedules.PolynomialDecay(recipe.rate, epochs * math.ceil(IMAGES / BATCH), 1e-6)
    metrics = ["clean_accuracy", "vra", "false_positive_bound"]
    model.compile(keras.optimizers.Adam(rate), defended.losses.Trades(recipe.weight), metrics=metrics)
    steering: Any
    if recipe.radius == 2.0:
        steering = callbacks.RadiusDoubling(start=recipe.start, ramp=0.4, checkpoint=work / "best.weights.h5")
    else:
        steering = callbacks.EpsilonSchedule("linear", start=recipe.start, end=recipe.radius, ramp=0.4)
    model.fit(
        data.x_train[:IMAGES],
        data.y_train[:IMAGES],
        batch_size=BATCH,
        epochs=epochs,
        verbose=2,
        validation_data=(data.x_train[IMAGES:], data.y_train[IMAGES:]),
        callbacks=[
            keras.callbacks.BackupAndRestore(work / "backup"),
            steering,
            keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
        ],
    )
    model.save(work / "trained.keras", include_optimizer=False)
    model = keras.models.load_model(work / "trained.keras", compile=False)  # without the optimizer's settings
    sharpen_bounds(model, steps=SHARPENING)
    model.save(out / f"{name}.keras")
    (work / "figures.json").write_text(json.dumps({**figures_of(model, data), "epochs": epochs}, indent=1))


def figures_of(model: Any, data: Any) -> dict[str, float]:
    """What holds on the test images, by proven bounds."""
    import defended

    model.compile(
        metrics=["clean_accuracy", "vra", defended.metrics.VRA(2.0), "rejection_rate", "false_positive_bound"]
    )
    figures = model.evaluate(data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True)
    figures.pop("loss")
    return figures


def prove_again(out: Path, sharpen: bool) -> None:
    """Prove the bounds of the committed weights with this version of the package, and measure them again."""
    import keras
    from compact import save_packed

    import defended
    from defended.gloro.reparametrise.sharpen import sharpen_bounds

    results = json.loads((out / "results.json").read_text())
    data = defended.datasets.load("mnist")
    for name in RECIPES:
        model = keras.models.load_model(out / f"{name}.keras", compile=False)
        if sharpen:
            sharpen_bounds(model, steps=SHARPENING)
        model.finalize()
        save_packed(model, (out / f"{name}.keras").resolve())
        results[name] |= figures_of(model, data)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mnist_2c2f")
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of the epochs, to see what the whole would take"
    )
    parser.add_argument("--one", choices=sorted(RECIPES), help="train only this net, in this process")
    parser.add_argument("--prove", action="store_true", help="train nothing: prove and measure the committed nets anew")
    parser.add_argument("--sharpen", action="store_true", help="with --prove: sharpen their bounds before")
    arguments = parser.parse_args()
    if arguments.prove:
        prove_again(arguments.out, arguments.sharpen)
        return
    share = 0.02 if arguments.quick else 1.0
    if arguments.one:
        train(arguments.one, arguments.out, share)
        return
    start = time.perf_counter()
    children = {}
    for name in RECIPES:
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
    results = {name: json.loads((arguments.out / ".work" / name / "figures.json").read_text()) for name in RECIPES}
    results["minutes"] = round((time.perf_counter() - start) / 60, 1)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
