"""What the first answers of a smoothed MobileNetV2 cost, from the network to ten verdicts.

    python benchmarks/smoothing_cost.py [--epochs 10]

MobileNetV2 (alpha 0.35, 32 x 32 x 3 pixels, a Rescaling inside) learns small digits, enlarged, under noise: about two
minutes of a processor. It is smoothed with the defaults at sigma 0.25 and epsilon 0.1, and judges ten test images.
Seconds are those of processors, which other work on the machine does not change much; two idle cores take about half.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import keras
import numpy as np

from defended import SmoothedNet, datasets
from defended.smoothing import NoisyTrainer

SIGMA, EPSILON, ANSWERS = 0.25, 0.1, 10


def enlarged(x: np.ndarray) -> np.ndarray:
    """Return digits `[n, 8, 8, 1]` as pictures `[n, 32, 32, 3]`."""
    return np.ascontiguousarray(np.broadcast_to(x.repeat(4, axis=1).repeat(4, axis=2), (len(x), 32, 32, 3)))


def trained(data: datasets.Dataset, epochs: int) -> keras.Model:
    """The network, trained with little noise first: under all of it, it learns nothing for long."""
    body = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # a few hundred steps
    inputs = keras.Input((32, 32, 3))
    network = keras.Model(inputs, body(keras.layers.Rescaling(2.0, -1.0)(inputs)))
    x = enlarged(data.x_train)
    for sigma, rate in ((SIGMA / 5, 3e-3), (SIGMA, 2e-3)):
        trainer = NoisyTrainer(network, sigma=sigma)
        # XLA takes longer to compile this network than it saves.
        trainer.compile(keras.optimizers.Adam(rate), metrics=["accuracy"], jit_compile=False)
        trainer.fit(x, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    accuracy = trainer.evaluate(enlarged(data.x_test), data.y_test, verbose=0, return_dict=True)["accuracy"]
    print(f"MobileNetV2, {network.count_params():,} weights: accuracy under noise {accuracy:.1%}")
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="with little noise, and as many with all of it")
    figures.add_option(parser)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    data = datasets.load("digits")
    network, x = trained(data, arguments.epochs), enlarged(data.x_test[:ANSWERS])

    start = time.process_time()
    model = SmoothedNet(network, EPSILON, SIGMA)
    verdicts = model.verdicts(x)
    first = time.process_time() - start
    start = time.process_time()
    model.verdicts(x)
    again = time.process_time() - start
    right = int((verdicts.label == data.y_test[:ANSWERS]).sum())
    print(
        f"first {ANSWERS} verdicts: {first:.1f} s of a processor, graphs included; again: {again:.1f} s; {right} right"
    )
    print(model.cost(x[:4]))

    found = figures.Figures()
    found.add(f"first {ANSWERS} verdicts of MobileNetV2", first, "s of a processor", at_most=60)
    found.add(f"{ANSWERS} further ones", again, "s of a processor", at_most=30)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
