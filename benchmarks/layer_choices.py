"""What layers cost a certificate: a usual CNN, each of its layers as users have it, against what `adapt` makes of it.

    DEFENDED_DATA=path/to/data python benchmarks/layer_choices.py [--epochs 10]

The CNN has two 3x3 convolutions (32 and 64 channels) and a Dense layer of 128, each with batch normalisation and ReLU,
and max pooling behind the convolutions. It trains on the first 20,000 images of Fashion-MNIST at an l2 radius of 0.3,
with `callbacks.recipe()` as it is, from random weights: as `adapt` makes it, with one kind of layer left as it was, and
with all of them left. Clean accuracy and VRA are those of the 10,000 test images, proven in float32. Writes
`defended/adapting/measured.json`, from which `defended.diagnose` quotes, and `results/layer_choices.csv`; a variant
that is there is not trained again. Two minutes a variant on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
from keras import layers

import defended
from defended._io import atomic_write_text
from defended.adapting import substitutes
from defended.adapting.endings import to_logits
from defended.adapting.plan import Plan

EPSILON, IMAGES = 0.3, 20_000
PASSES = {
    "batch normalisation": substitutes.fold_normalisations,
    "max pooling": substitutes.replace_pooling,
    "relu": substitutes.replace_activations,
}
VARIANTS = {"adapted": (), **{name: (name,) for name in PASSES}, "as it was": tuple(PASSES)}
"""What is left as it was, by the variant's name."""


def usual_cnn() -> keras.Model:
    """The network that everyone has."""

    def block(layer: Any) -> list[Any]:
        return [layer, layers.BatchNormalization(), layers.ReLU()]

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *block(layers.Conv2D(32, 3, padding="same")), layers.MaxPooling2D(),
            *block(layers.Conv2D(64, 3, padding="same")), layers.MaxPooling2D(),
            layers.Flatten(), *block(layers.Dense(128)), layers.Dense(10, activation="softmax"),
        ]
    )  # fmt: skip


def variant(kept: tuple[str, ...]) -> keras.Model:
    """The CNN with logits out, all but some kinds of its layers replaced."""
    plan = Plan(usual_cnn())
    to_logits(plan)
    substitutes.split_activations(plan)
    for name, replace in PASSES.items():
        if name not in kept:
            replace(plan)
    return plan.build()


def measure(kept: tuple[str, ...], epochs: int, data: Any) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    model = defended.GloroNet(variant(kept), epsilon=EPSILON)
    model.compile("adam", loss="trades_kl.1.5", metrics=["clean_accuracy", "vra"], jit_compile=False)
    start = time.perf_counter()
    model.fit(
        data.x_train[:IMAGES], data.y_train[:IMAGES], validation_split=0.1, epochs=epochs, batch_size=128, verbose=2,
        callbacks=defended.callbacks.recipe(),
    )  # fmt: skip
    figures = model.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0, return_dict=True)
    return {
        "clean_accuracy": round(figures["clean_accuracy"], 4), "vra": round(figures["vra"], 4),
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layer_choices.csv")
    arguments = parser.parse_args()
    rows = list(csv.DictReader(arguments.out.open())) if arguments.out.exists() else []
    found = {row["variant"]: row for row in rows if int(row["epochs"]) == arguments.epochs}
    data = defended.datasets.load("fashion_mnist")
    for name, kept in VARIANTS.items():
        if name in found:
            continue
        found[name] = {"variant": name, "epochs": arguments.epochs, **measure(kept, arguments.epochs, data)}
        print(found[name], flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(found[name]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found.values())
    table = {
        "data": "Fashion-MNIST", "epsilon": EPSILON,
        "kinds": {"activation": "relu", "max pooling": "max pooling", "batch normalisation": "batch normalisation"},
        "variants": {name: {"vra": float(row["vra"])} for name, row in found.items()},
    }  # fmt: skip
    package = Path(defended.__file__).parent / "adapting" / "measured.json"
    atomic_write_text(package, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
