"""Make a trained net's file small: its weights on a grid, its bounds proven anew for those weights, the file packed.

    python benchmarks/compact.py MODEL.keras OUT.keras [--bits 8] [--others 11] [--sharpen] [--centre DATA]

A kernel's entries become whole multiples of a power of two, at most 2^(bits - 1) times it, which packs 4 to 5 times as
small; biases stay. The largest kernel, which is most of the file, has `--bits`; the others, where a bit costs little
and is worth more, `--others`. `--sharpen` first rewrites the weights as `sharpen_bounds` does. `--centre mnist` (with
DEFENDED_DATA set) then moves constants out of the biases, into zero-padded layers too, as `centre_biases` finds them on
that data's images; it is refused where that changes more than 2 % of the answers to them. What is certified is
certified for the weights in the file. Prints the sizes.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

from defended import DefendedModel, datasets
from defended._io import atomic_write_bytes
from defended.gloro.reparametrise.centre import centre_biases
from defended.gloro.reparametrise.sharpen import sharpen_bounds

IMAGES = 3000
MOST_CHANGED = 0.02
"""The largest share of answers that centring may change, in layers that are padded with zeros."""


def on_grid(weights: np.ndarray, bits: int) -> np.ndarray:
    """`weights` as multiples of the smallest power of two that leaves at most `2**(bits - 1)` of either sign."""
    step = 2.0 ** np.ceil(np.log2(max(np.abs(weights).max(), 1e-30) / 2 ** (bits - 1)))
    return (step * np.round(weights / step)).astype(weights.dtype)


def answers(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """The classes of images, `[n]`."""
    return network.predict(images, batch_size=500, verbose=0).argmax(axis=1)


def compact(
    source: Path, target: Path, bits: int, others: int, *, sharpen: bool = False, centre: str | None = None
) -> None:
    """Write the net of `source` to `target` without its optimizer, the largest kernel in `bits`, others in `others`.

    With `sharpen`, its bounds are sharpened first; with `centre`, a data set's name, its biases are then centred, on
    the first training images.
    """
    model = keras.models.load_model(source, compile=False)
    if not isinstance(model, DefendedModel):
        raise SystemExit(f"{source} holds an undefended {type(model).__name__}: `defended train` writes defended ones.")
    network = model.network
    if sharpen:
        print(f"sharpened: K is {sharpen_bounds(model):.4f} of what it was")
    if centre is not None:
        images = datasets.load(centre).x_train[:IMAGES]
        before = answers(network, images)
        centre_biases(model, images, padded=True)
        changed = float(np.mean(answers(network, images) != before))
        if changed > MOST_CHANGED:
            raise SystemExit(
                f"Centring changes {100 * changed:.1f} % of the answers to images of {centre}: at the borders of this "
                f"net's layers zeros stand for values far from them. Leave out --centre."
            )
        print(f"centred: {100 * changed:.1f} % of the answers to images of {centre} changed")
    weights = network.get_weights()
    largest = max(array.size for array in weights)
    network.set_weights(
        [array if array.ndim < 2 else on_grid(array, bits if array.size == largest else others) for array in weights]
    )
    model.finalize()
    save_packed(model, target)
    print(f"{source.stat().st_size / 2**20:.2f} MiB -> {target.stat().st_size / 2**20:.2f} MiB")


def save_packed(model: keras.Model, target: Path) -> None:
    """Save a model in a file that is compressed, which Keras's own are not."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model.keras"
        model.save(plain)
        with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    atomic_write_bytes(target, packed.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--others", type=int, default=11)
    parser.add_argument("--sharpen", action="store_true")
    parser.add_argument("--centre", metavar="DATA")
    compact(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
