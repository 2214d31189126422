"""Dual bounds on Wong and Kolter's MNIST net: milliseconds a point, against their procedure plainly written in PyTorch.

    DEFENDED_REFERENCE=… DEFENDED_DATA=… python benchmarks/kw_speed.py [--points 64]

Both run in turn, on the same points at eps 0.1; PyTorch is needed for the baselines only. The baseline is the paper's
algorithm as its authors run it: input by input, layer by layer, the dual variables of the entries whose sign is open
kept as rows and pushed forward through every further layer. Beside it their own package, convex_adversarial, where it
is found (benchmarks/README.md), one point after the other and in small batches, on a network with the same weights.
The times are those of the deployed bounds, which count float32's rounding; theirs do not, so what is compared with them
are the bounds of the paper's slope and the default one with rounding=False.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np
import peers

EPSILON = 0.1
PAPERS, DEFAULT = "slope='wong-kolter'", "slope='adaptive'"
PACKAGE = "convex_adversarial, batches of"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    figures.add_option(parser)
    arguments = parser.parse_args()
    import tensorflow as tf

    import defended

    case = np.load(Path(os.environ["DEFENDED_REFERENCE"]) / "kw" / "mnist_2c2f_linf_0.1.npz")
    x = defended.datasets.load("mnist").x_test[: arguments.points]
    network = defended.zoo.cnn_2c2f(activation="relu")
    names = [f"{layer}_{part}" for layer in ("conv1", "conv2", "dense1", "dense2") for part in ("kernel", "bias")]
    network.set_weights([case[name] for name in names])
    candidates, exact = {}, {}
    for slope in ("wong-kolter", "adaptive"):
        unrounded = defended.PolytopeNet(network, epsilon=EPSILON, slope=slope, rounding=False)
        unrounded.finalize()
        exact[f"slope={slope!r}"] = np.concatenate([unrounded.margin_lower_bounds(point[None]) for point in x])
        model = defended.PolytopeNet(network, epsilon=EPSILON, slope=slope)
        model.finalize()
        bounds = tf.function(lambda batch, model=model: model.margin_lower_bounds(batch), autograph=False)
        rows = 16

        def ours(bounds: Any = bounds, rows: int = rows) -> Any:
            return np.concatenate([bounds(x[first : first + rows]) for first in range(0, len(x), rows)])

        candidates[f"slope={slope!r}"] = ours
    try:
        candidates["the paper's procedure in PyTorch"] = original(case, x)
    except ImportError:
        print("PyTorch is not installed: no baseline")
    with tempfile.TemporaryDirectory() as folder:
        path = peers.save_network(Path(folder) / "network.npz", network, x)
        package = peers.start("convex_adversarial", path=path, epsilon=EPSILON)
    if package is not None:
        print(package.versions)
        for rows in (1, 8):
            candidates[f"{PACKAGE} {rows}"] = lambda rows=rows: np.array(package.ask("bounds", batch=rows))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    found = {name: run() for name, run in candidates.items()}
    for _ in range(arguments.rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / len(x) * 1e3)
    medians = {name: statistics.median(run_times) for name, run_times in times.items()}
    report(medians, found, exact, case["margin_lower_bounds"][: len(x)]).write(arguments.json)


def report(
    medians: dict[str, float], found: dict[str, np.ndarray], exact: dict[str, np.ndarray], theirs: np.ndarray
) -> figures.Figures:
    """Print times, and how the bounds lie to the reference's and the package's."""
    for name, median in medians.items():
        difference = found[name] - theirs
        print(
            f"{name:34} {median:7.1f} ms a point; against the reference "
            f"{difference.min():+.5f} to {difference.max():+.5f}"
        )
    notes = figures.Figures()
    for name, median in medians.items():
        if name not in (PAPERS, DEFAULT):
            notes.add(f"dual bounds, {DEFAULT}", medians[DEFAULT], "ms a point", peer=name, theirs=median, at_most=0.5)
    notes.add(f"dual bounds, {DEFAULT}", medians[DEFAULT], "ms a point", at_most=40)
    references = {"their reference bounds": theirs}
    if f"{PACKAGE} 1" in found:
        references["convex_adversarial"] = found[f"{PACKAGE} 1"]
    for name, bounds in references.items():
        largest = np.abs(exact[PAPERS] - bounds).max()
        print(f"largest difference of {PAPERS} from {name}: {largest:.1e}; required: at most 1e-4")
        notes.add(f"largest difference of {PAPERS} from {name}", largest, "of a logit", at_most=1e-4)
        notes.add(f"least gain of {DEFAULT} on {name}", (exact[DEFAULT] - bounds).min(), "of a logit", at_least=-1e-4)
    return notes


def original(case: Any, x: Any) -> Any:
    """The procedure on one input after the other: `[n, 10]` bounds."""
    import torch
    from torch.nn.functional import conv2d, linear, pad

    def conv(name: str) -> Any:
        kernel = torch.tensor(case[f"{name}_kernel"].transpose(3, 2, 0, 1).copy())
        return lambda z: conv2d(pad(z, (1, 1, 1, 1)), kernel, stride=2)

    dense1 = torch.tensor(case["dense1_kernel"].reshape(7, 7, 32, 100).transpose(3, 2, 0, 1).reshape(100, -1).copy())
    dense2 = torch.tensor(case["dense2_kernel"].T.copy())
    maps = [conv("conv1"), conv("conv2"), lambda z: linear(z.flatten(1), dense1), lambda z: linear(z, dense2)]
    biases = [torch.tensor(case[f"{name}_bias"]) for name in ("conv1", "conv2", "dense1", "dense2")]
    biases = [bias[None, :, None, None] if index < 2 else bias[None] for index, bias in enumerate(biases)]
    unit = torch.eye(784).reshape(784, 1, 28, 28)

    def bound(image: Any, predicted: int) -> Any:
        last = dense2[predicted][None] - dense2  # the margins, as the last layer
        forward = [*maps[:3], lambda z: linear(z, last)]
        offsets = [*biases[:3], (biases[3][0, predicted] - biases[3])]
        centre = forward[0](image[None, None]) + offsets[0]
        ball = forward[0](unit)  # one row for each entry of the input
        open_rows: list[Any] = []  # (rows, lower bounds) of each ReLU layer
        for layer in range(1, 4):
            radius = EPSILON * ball.abs().sum(0, keepdim=True)
            low, high = centre - radius, centre + radius
            for rows, lower in open_rows:
                # [nu]+ and [-nu]+ against the lower bounds: what the lines leave.
                view = lower.reshape(-1, *[1] * (rows.dim() - 1))
                low = low + (view * (-rows).clamp(min=0)).sum(0, keepdim=True)
                high = high - (view * rows.clamp(min=0)).sum(0, keepdim=True)
            crossing = (low < 0) & (high > 0)
            slope = torch.where(crossing, high / (high - low).clamp(min=1e-12), (low >= 0).float())
            index = crossing.flatten().nonzero().flatten()
            rows = torch.zeros(len(index), slope.numel())
            rows[torch.arange(len(index)), index] = slope.flatten()[index]
            rows = rows.reshape(-1, *slope.shape[1:])
            centre = forward[layer](centre * slope) + offsets[layer]
            ball = forward[layer](ball * slope)
            open_rows = [(forward[layer](old * slope), lower) for old, lower in open_rows]
            open_rows.append((forward[layer](rows), low.flatten()[index]))
        result = centre - EPSILON * ball.abs().sum(0, keepdim=True)
        for rows, lower in open_rows:
            # A margin's lower bound takes the upper line where its coefficient is negative.
            result = result + (lower[:, None] * (-rows).clamp(min=0)).sum(0, keepdim=True)
        return result[0].numpy()

    images = torch.tensor(x[..., 0])

    def run() -> Any:
        with torch.no_grad():
            return np.stack([bound(image, int(j)) for image, j in zip(images, case["prediction"], strict=False)])

    return run


if __name__ == "__main__":
    main()
