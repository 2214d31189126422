"""Average the weights of nets that were trained on from one another, and prove the bounds of the mean.

    python benchmarks/average.py NET.keras OTHER.keras ... --out MEAN.keras [--sharpen]

Runs that end in one basin with different losses lie on different sides of what generalises best; their mean is often
better than each ("model soups", Wortsman et al. 2022). A net that is named twice counts twice. `--sharpen` rewrites
the mean's weights as `sharpen_bounds` does; nets that were sharpened each on its own have no useful mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np

from defended.gloro.reparametrise.sharpen import sharpen_bounds
from defended.training.training_run import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", type=Path, nargs="+", help="defended nets of one architecture")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sharpen", action="store_true")
    arguments = parser.parse_args()
    models = [keras.models.load_model(path, compile=False) for path in arguments.nets]
    weights = zip(*(model.network.get_weights() for model in models), strict=True)
    models[0].network.set_weights([np.mean(arrays, axis=0) for arrays in weights])
    models[0].finalize()
    if arguments.sharpen:
        sharpen_bounds(models[0])
    save(models[0], arguments.out)
    print(f"{arguments.out}: the mean of {len(models)} nets")


if __name__ == "__main__":
    main()
