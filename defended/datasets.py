"""The data sets that the commands, examples and benchmarks run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Dataset(NamedTuple):
    """Images in [0, 1] and class numbers."""

    name: str
    x_train: Array
    """`[n, height, width, channels]` float32."""
    y_train: Array
    """`[n]` int64."""
    x_test: Array
    y_test: Array

    @property
    def num_classes(self) -> int:
        return int(max(self.y_train.max(initial=0), self.y_test.max(initial=0))) + 1


def load(name: str | os.PathLike[str]) -> Dataset:
    """Load a data set by name or from an `.npz` file.

    Args:
        name: `"digits"`, the 1,797 8x8 digits that scikit-learn ships (the last 360 are the test set), which needs no
            download; `"mnist"`, `"fashion_mnist"` or `"cifar10"`, looked for as `NAME.npz` in the folder that the
            environment variable `DEFENDED_DATA` names, then fetched by Keras; or the path of an `.npz` file with
            `x_train`, `y_train`, `x_test`, `y_test`. Integer images are divided by 255.

    Raises:
        FileNotFoundError: when the data cannot be had, saying where it was looked for.
        ValueError: when a file lacks an array, holds values outside [0, 1], or shapes do not match.
    """
    name = str(name)
    if name == "digits":
        return _digits()
    if name in ("mnist", "fashion_mnist", "cifar10"):
        folder = os.environ.get("DEFENDED_DATA")
        path = Path(folder or ".") / f"{name}.npz"
        if folder and path.exists():
            return _from_npz(path, name)
        return _from_keras(name, path if folder else None)
    if name.endswith(".npz"):
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(
                f"No data at {path}. Give the path of an .npz file with x_train, y_train, x_test, y_test."
            )
        return _from_npz(path, path.stem)
    raise ValueError(
        f"Unknown data set {name!r}. Known: 'digits', 'mnist', 'fashion_mnist', 'cifar10', or the path of an .npz file."
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16.0).astype("float32")[..., None]
    y = bunch.target.astype("int64")
    return Dataset("digits", x[:-360], y[:-360], x[-360:], y[-360:])


def _from_keras(name: str, looked: Path | None) -> Dataset:
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        tried = f"{looked} (from DEFENDED_DATA) and " if looked else ""
        raise FileNotFoundError(
            f"{name} was not found in {tried}Keras's cache, and could not be downloaded: {error}. "
            f"Put {name}.npz (x_train, y_train, x_test, y_test) in a folder and set DEFENDED_DATA to that folder."
        ) from error
    return _dataset(name, x_train, y_train, x_test, y_test)


def _from_npz(path: Path, name: str) -> Dataset:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in keys if key not in arrays]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            values = [arrays[key] for key in keys]
        return _dataset(name, *values)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a usable data set: {error}") from error


def _dataset(name: str, x_train: Array, y_train: Array, x_test: Array, y_test: Array) -> Dataset:
    return Dataset(name, _images(x_train), _labels(y_train, x_train), _images(x_test), _labels(y_test, x_test))


def _images(x: Array) -> Array:
    scaled = x.astype("float32") / (255.0 if np.issubdtype(x.dtype, np.integer) else 1.0)
    if scaled.size and not (np.min(scaled) >= 0 and np.max(scaled) <= 1):
        raise ValueError("images must be integers in [0, 255] or floats in [0, 1]")
    return scaled[..., None] if scaled.ndim == 3 else scaled


def _labels(y: Array, x: Array) -> Array:
    y = y.reshape(-1)
    if len(y) != len(x):
        raise ValueError(f"{len(x)} images but {len(y)} labels")
    return y.astype("int64")
