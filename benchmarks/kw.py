"""l-infinity nets on MNIST at eps 0.1: recipes and figures of the zoo's `mnist-2c2f-linf-0.1` and `-0.2`.

    DEFENDED_DATA=… python benchmarks/kw.py train [--one eps_0.1_doubled]
    DEFENDED_DATA=… python benchmarks/kw.py measure [--points 10000]

`train` makes 2C2F nets with ReLU on 57,000 training images. They train by interval bounds, the cheapest, and are
certified by dual bounds. The doubled net goes on from the other one: trained for 0.2, defended at 0.1, of the epoch
with the best VRA at 0.2 on the last 3,000 training images. A run that was killed goes on where it was. `measure`
certifies the test images. Weights, history and figures go to `benchmarks/results/kw/`; `defended reproduce table4` and
`table5` attack the nets.
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
    """Adam with a rate falling linearly to 1e-5; over `ramp` of the epochs the radius rises to `radius * eps`.

    From 0, or where the net goes on from another one, from that one's radius.
    """

    epochs: int
    radius: float
    ramp: float
    rate: float = 2e-3
    after: str | None = None


RECIPES = {
    "eps_0.1": Recipe(15, 1.3, 0.4),
    "eps_0.1_doubled": Recipe(3, 2.0, 0.5, rate=1e-3, after="eps_0.1"),
}


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
    network, start = defended.zoo.cnn_2c2f(activation="relu"), 0.0
    if recipe.after is not None:
        network.set_weights(keras.models.load_model(out / f"{recipe.after}.keras", compile=False).get_weights())
        start = RECIPES[recipe.after].radius
    model = PolytopeNet(network, epsilon=EPSILON, training_bounds="interval", name=name.replace(".", "_"))
    rate = keras.optimizers.schedules.PolynomialDecay(recipe.rate, recipe.epochs * math.ceil(IMAGES / BATCH), 1e-5)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    model.compile(optimizer, "certified_crossentropy", metrics=["clean_accuracy", "vra"], jit_compile=False)
    steering: Any
    if recipe.radius == 2.0:
        checkpoint = work / "best.weights.h5"
        steering = callbacks.RadiusDoubling(start=start, ramp=recipe.ramp, by_batch=True, checkpoint=checkpoint)
    else:
        steering = callbacks.EpsilonSchedule("linear", start, recipe.radius, recipe.ramp, by_batch=True)
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
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: record_time(out / f"{name}_time.json")),
            keras.callbacks.CSVLogger(out / f"{name}.csv", append=(work / "backup").exists()),
        ],
    )
    network.save(work / "trained.keras")
    (work / "trained.keras").replace(out / f"{name}.keras")


_CLOCK = [time.perf_counter(), time.process_time()]


def record_time(path: Path) -> None:
    """Add what has passed since the last record, so that a run that was killed and goes on is counted as a whole."""
    before = json.loads(path.read_text()) if path.exists() else {"minutes": 0.0, "cpu_minutes": 0.0}
    now = [time.perf_counter(), time.process_time()]
    passed = [(later - earlier) / 60 for earlier, later in zip(_CLOCK, now, strict=True)]
    _CLOCK[:] = now
    path.write_text(json.dumps({key: before[key] + part for key, part in zip(before, passed, strict=True)}))


def measure(names: list[str], out: Path, points: int) -> None:
    """What holds of nets on the first test images, by the default bounds, rounding counted."""
    import keras
    import numpy as np

    import defended
    from defended.attacks import Rate
    from defended.statistics.rates import InputFacts

    data = defended.datasets.load("mnist")
    x, y = data.x_test[:points], data.y_test[:points]
    results: dict[str, Any] = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else {}
    for name in names:
        network = keras.models.load_model(out / f"{name}.keras", compile=False)
        model = defended.PolytopeNet(network, epsilon=EPSILON, radius_steps=1)  # which tells whether r > 2 eps
        model.finalize()
        verdicts = model.verdicts(x)
        facts = InputFacts.at(verdicts.radius, verdicts.label == y, EPSILON)
        clean = np.argmax(network.predict(data.x_test, verbose=0), axis=-1) == data.y_test
        rates = {
            "clean_accuracy": Rate(int(clean.sum()), len(clean)),
            **{rate: facts.rate(rate) for rate in ("vra", "vra_2eps")},
        }
        results[name] = {key: rate.to_dict() for key, rate in rates.items()}
        results[name] |= json.loads((out / f"{name}_time.json").read_text())
        print(name, {key: f"{float(rate):.4f}" for key, rate in rates.items()})
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kw")
    parser.add_argument("--one", choices=sorted(RECIPES), help="only this net")
    parser.add_argument("--points", type=int, default=10_000, help="test images to measure")
    arguments = parser.parse_args()
    names = [arguments.one] if arguments.one else [*RECIPES]
    if arguments.what == "measure":
        measure(names, arguments.out, arguments.points)
        return
    for name in names:
        train(name, arguments.out)


if __name__ == "__main__":
    main()
