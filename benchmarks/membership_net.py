"""The Fashion-MNIST net that `benchmarks/membership.py` guards: 2C2F, trained briefly for eps 0.3.

    DEFENDED_DATA=path/to/data python benchmarks/membership_net.py [--out benchmarks/results/membership] [--epochs 10]

Trains on the first 57,000 images on one core, so that the last 3,000 stay unseen for the calibration of scores, and
writes `fashion_mnist_eps_0.3.keras`, final, and its history.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

IMAGES, BATCH = 57_000, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/membership"))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import defended

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    data = defended.datasets.load("fashion_mnist")
    model = defended.GloroNet(defended.zoo.cnn_2c2f(), epsilon=0.3, name="fashion_mnist_eps_0_3")
    steps = arguments.epochs * -(-IMAGES // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(3e-3, steps, 1e-6)),
        "trades_kl.1.5",
        metrics=["clean_accuracy", "vra"],
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.fit(
        data.x_train[:IMAGES],
        data.y_train[:IMAGES],
        batch_size=BATCH,
        epochs=arguments.epochs,
        verbose=2,
        callbacks=[
            defended.callbacks.EpsilonSchedule("linear", start=0.3, end=1.25, ramp=0.4),
            keras.callbacks.CSVLogger(arguments.out / "fashion_mnist_eps_0.3.csv"),
        ],
    )
    path = arguments.out / "fashion_mnist_eps_0.3.keras"
    model.save(path, include_optimizer=False)
    model = keras.models.load_model(path, compile=False)  # without the optimizer's settings
    model.save(path)


if __name__ == "__main__":
    main()
