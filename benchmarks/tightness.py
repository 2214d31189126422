"""How far the certificate lies above what the network does: where a sharper constant could gain, and how much.

    DEFENDED_DATA=path/to/data python benchmarks/tightness.py MODEL.keras|MODEL.gloronet [--points 500] [--steps 100]

For a 2C2F-like chain of linear layers and MinMax, on MNIST test images:

1. VRA in real arithmetic, with the rounding budget, and with it if long Dense layers were not evaluated in blocks;
2. the length of the gradient of the leading margin over K_ij at the images, and layer by layer over the layer's norm;
3. an adversary who chooses every MinMax's permutation freely, and the direction: the share of K_ij that coordinate
   ascent reaches for the last hidden layer alone, and for the whole chain. A bound that knows the layers but not which
   permutations belong together cannot be below that;
4. the share of K_ij that is left after `sharpen_bounds`, and what is then proven: VRA at epsilon and at twice that, and
   the false positive rate's upper bound.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import defended
from defended.gloro import rounding
from defended.gloro.reparametrise.sharpen import sharpen_bounds


def vra(network: Any, epsilon: float, data: Any, **options: Any) -> float:
    model = defended.GloroNet(network, epsilon=epsilon, **options)
    model.finalize()
    return float(np.mean(model.verdicts(data.x_test, batch_size=1000).label == data.y_test))


def certified(model: Any, data: Any) -> str:
    radii = model.certified_radius(data.x_test)
    right = model.network.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1) == data.y_test
    once, twice = (float(np.mean(right & (radii > times * model.epsilon.numpy()))) for times in (1, 2))
    answered = float(np.mean(radii > model.epsilon.numpy()))
    degradable = 1 - float(np.mean(radii > 2 * model.epsilon.numpy())) / answered
    return f"VRA {once:.2%}, at twice epsilon {twice:.2%}, at most {degradable:.2%} degradable"


def gradients(model: defended.GloroNet, x: Any) -> dict[str, np.ndarray]:
    """Length of the leading margin's gradient over K_ij, and what each linear layer passes on of the norm it may."""
    network = model.network
    outputs = keras.Model(network.inputs, [layer.output for layer in network.layers])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        values = outputs(x)
        first, second = tf.unstack(tf.math.top_k(values[-1], 2).indices, axis=1)
        margin = tf.gather(values[-1], first, batch_dims=1) - tf.gather(values[-1], second, batch_dims=1)
    lengths = {
        layer.name: np.linalg.norm(tape.gradient(margin, value).numpy().reshape(len(x), -1), axis=1)
        for layer, value in zip(network.layers, values, strict=True)
    }
    at_input = np.linalg.norm(tape.gradient(margin, x).numpy().reshape(len(x), -1), axis=1)
    found = {"whole network": at_input / model.margin_lipschitz[first.numpy(), second.numpy()]}
    linear = [layer for layer in network.layers if hasattr(layer, "kernel")][:-1]
    entering = [at_input, *(lengths[layer.name] for layer in linear)]
    for layer, operator, before, after in zip(linear, model._graph.operators, entering, entering[1:], strict=False):
        found[layer.name] = before / (after * operator.bound())
    return found


def free_permutations(operators: list[Any], direction: np.ndarray, steps: int) -> float:
    """`max |A_1^T P_1^T ... A_n^T P_n^T v|` over permutations P of neighbouring pairs, by coordinate ascent."""
    rng = np.random.default_rng(0)
    swaps = [rng.random(int(np.prod(operator.output_shape)) // 2) < 0.5 for operator in operators]
    vector, best = rng.standard_normal((1, *operators[0].input_shape)).astype("float32"), 0.0
    for step in range(steps):
        images = []
        for operator, swap in zip(operators, swaps, strict=True):
            image = operator.apply(vector.reshape(1, *operator.input_shape)).numpy()
            images.append(image)
            vector = swapped(image, swap)
        vector = direction
        for number in reversed(range(len(operators))):
            pairs, toward = images[number].reshape(-1, 2), vector.reshape(-1, 2)
            if step % 5 == 4:
                swaps[number] = np.sum(pairs[:, ::-1] * toward, axis=1) > np.sum(pairs * toward, axis=1)
            vector = swapped(vector.reshape(images[number].shape), swaps[number])
            vector = operators[number].adjoint(vector).numpy()
        length = float(np.linalg.norm(vector))
        best, vector = max(best, length), vector / length
    return best


def swapped(values: np.ndarray, swap: np.ndarray) -> np.ndarray:
    pairs = values.reshape(-1, 2).copy()
    pairs[swap] = pairs[swap][:, ::-1]
    return pairs.reshape(values.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    load = defended.load_gloronet if arguments.model.suffix == ".gloronet" else keras.models.load_model
    model = load(arguments.model)
    model.finalize()
    data, epsilon = defended.datasets.load("mnist"), float(model.epsilon.numpy())

    exact, paid = (vra(model.network, epsilon, data, rounding=counted) for counted in (False, True))
    block, rounding.BLOCK = rounding.BLOCK, 2**31
    whole = vra(model.network, epsilon, data)
    print(f"VRA at {epsilon:g}: {exact:.2%} in real arithmetic, {paid:.2%} with rounding, {whole:.2%} without blocks")

    print("the margin's gradient over what its bound allows, 5 %, median and 95 % of the points")
    for name, shares in gradients(model, tf.constant(data.x_test[: arguments.points])).items():
        print(f"  {name:16s}" + "".join(f"{share:8.3f}" for share in np.quantile(shares, [0.05, 0.5, 0.95])))

    print("reached with freely chosen permutations, over K_ij")
    operators = model._graph.operators
    kernel, constants = model.network.layers[-1].kernel.numpy(), model.margin_lipschitz
    for i, j in ((0, 1), (3, 5), (4, 9)):
        direction = (kernel[:, j] - kernel[:, i])[None]
        last = free_permutations(operators[-1:], direction, arguments.steps)
        last /= operators[-1].bound() * np.linalg.norm(direction)
        chain = free_permutations(operators, direction, arguments.steps) / constants[i, j]
        print(f"  classes {i} and {j}: last hidden layer {last:.3f}, whole chain {chain:.3f}")

    rounding.BLOCK = block
    print(f"as it is: {certified(model, data)}")
    share = sharpen_bounds(model)
    print(f"sharpened, K_ij is {share:.4f} of what it was: {certified(model, data)}")


if __name__ == "__main__":
    main()
