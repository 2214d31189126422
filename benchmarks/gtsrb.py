"""Make `gtsrb.npz` from the files of the German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012).

    python benchmarks/gtsrb.py FOLDER OUT/gtsrb.npz

FOLDER holds what the benchmark's three archives unpack to, `GTSRB_Final_Training_Images.zip`,
`GTSRB_Final_Test_Images.zip` and `GTSRB_Final_Test_GT.zip`; where in it does not matter. They are at
https://benchmark.ini.rub.de. Images become 32 x 32 pixels, by linear interpolation without antialiasing, and keep the
number of their track. Then `DEFENDED_DATA=OUT`, and `datasets.load("gtsrb")` finds them. The figures of this project
are of a copy that was made by others in that manner; how it interpolated is not known, so yours may differ a little.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from defended._io import atomic_write_bytes

SIDE, CLASSES = 32, 43


def small(path: Path) -> np.ndarray:
    """An image, `[32, 32, 3]` uint8."""
    with Image.open(path) as image:
        pixels = (image.width / SIDE, 0, 0, 0, image.height / SIDE, 0)
        resized = image.convert("RGB").transform(
            (SIDE, SIDE), Image.Transform.AFFINE, pixels, Image.Resampling.BILINEAR
        )
    return np.asarray(resized)


def training(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and tracks; a file `00014/00003_00029.ppm` is picture 29 of class 14's track 3."""
    files = sorted(path for path in folder.rglob("[0-9]*_[0-9]*.ppm") if path.parent.name.isdecimal())
    labels = np.array([int(path.parent.name) for path in files])
    missing = sorted(set(range(CLASSES)) - set(labels.tolist()))
    if missing:
        raise SystemExit(f"{folder} holds no training images of the classes {missing}: unpack the first archive there.")
    return np.stack([small(path) for path in files]), labels, np.array([int(path.stem.split("_")[0]) for path in files])


def test(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, in the order of the table of classes."""
    table = next(folder.rglob("GT-final_test.csv"), None)
    if table is None:
        raise SystemExit(f"{folder} holds no GT-final_test.csv: unpack GTSRB_Final_Test_GT.zip there.")
    with table.open(newline="") as stream:
        rows = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(stream, delimiter=";")]
    places = {path.name: path for path in folder.rglob("[0-9]*.ppm") if not path.parent.name.isdecimal()}
    absent = [name for name, _ in rows if name not in places]
    if absent:
        raise SystemExit(f"{folder} lacks {len(absent)} of {len(rows)} test images, such as {absent[0]}.")
    return np.stack([small(places[name]) for name, _ in rows]), np.array([label for _, label in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    x_train, y_train, track_train = training(options.folder)
    x_test, y_test = test(options.folder)
    packed = io.BytesIO()
    arrays = {"x_train": x_train, "y_train": y_train, "track_train": track_train, "x_test": x_test, "y_test": y_test}
    np.savez_compressed(packed, **arrays)
    atomic_write_bytes(options.out, packed.getvalue())
    print(f"{len(x_train)} training and {len(x_test)} test images: {options.out}")


if __name__ == "__main__":
    main()
