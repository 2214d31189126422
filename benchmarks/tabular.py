"""What the tabular recipe reaches on scikit-learn's breast cancer and wine data.

    python benchmarks/tabular.py

Three random splits of each, 30 % of the rows held out; features standardised by the training rows; `zoo.dense_small`
at an l2 radius of 0.1, `callbacks.recipe("tabular")`, 100 epochs. Prints clean accuracy and VRA on the held-out rows.
Half a minute for each on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import keras
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split

import defended
from defended.standardisation import Standardisation


def measure(load: Any, seed: int) -> tuple[float, float]:
    """Clean accuracy and VRA on the held-out rows of one split."""
    x, y = load(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    scaled = Standardisation.of(x_train)
    keras.utils.set_random_seed(seed)
    model = defended.GloroNet(defended.zoo.dense_small(x.shape[1:], int(y.max()) + 1), epsilon=0.1)
    model.compile("adam", loss="trades_kl.1.5", metrics=["clean_accuracy", "vra"])
    model.fit(
        scaled(x_train), y_train, validation_split=0.1, epochs=100, batch_size=32, verbose=0,
        callbacks=defended.callbacks.recipe("tabular"),
    )  # fmt: skip
    found = model.evaluate(scaled(x_test), y_test, verbose=0, return_dict=True)
    return found["clean_accuracy"], found["vra"]


def main() -> None:
    for load in (load_breast_cancer, load_wine):
        for seed in range(3):
            clean, vra = measure(load, seed)
            print(f"{load.__name__[5:]:15} split {seed}: clean {clean:.1%}, VRA at 0.1 {vra:.1%}", flush=True)


if __name__ == "__main__":
    main()
