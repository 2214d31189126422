"""How long proving takes, with the comparison of what evaluates: a fresh network, and again after its weights changed.

    python benchmarks/finalize.py [NET ...]

Prints seconds of `finalize()` for untrained networks of the zoo (by default all), first and again, and the share of
the second that the comparison took.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from defended import GloroNet, zoo

NETS = ("dense_small", "cnn_2c2f", "cnn_4c3f", "cnn_6c2f", "liresnet")


def seconds(function: object) -> float:
    start = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    print("| network | first, s | again, s | of it comparing, s |")
    print("|---|---|---|---|")
    for name in sys.argv[1:] or NETS:
        model = GloroNet(getattr(zoo, name)(), epsilon=0.1)
        first = seconds(model.finalize)
        model.network.set_weights([np.float32(0.9) * weight for weight in model.network.get_weights()])
        again = seconds(model.finalize)
        print(f"| {name} | {first:.2f} | {again:.2f} | {seconds(model._check):.2f} |", flush=True)


if __name__ == "__main__":
    main()
