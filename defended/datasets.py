"""The data sets that the commands, examples and benchmarks run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defended.arguments import number_in, positive_number
from defended.class_names import CLASS_NAMES, in_order

Array = np.ndarray[Any, np.dtype[Any]]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL_ARRAYS = ("lossless_train", "lossless_test", "track_train", "class_names")
_IMAGES = {"cifar10": (10, (32, 32, 3)), "gtsrb": (43, (32, 32, 3))}
"""Classes and image shape of the sets whose files users make themselves."""

_SOURCES = {
    "gtsrb": "GTSRB (Stallkamp et al. 2012) is at https://benchmark.ini.rub.de; `python benchmarks/gtsrb.py`, in a "
    "clone of this project, makes gtsrb.npz of it.",
}


class Dataset(NamedTuple):
    """Images in [0, 1], or whatever else the inputs are, and class numbers."""

    name: str
    x_train: Array
    """`[n, height, width, channels]` float32, or `[n, features]`."""
    y_train: Array
    """`[n]` int64."""
    x_test: Array
    y_test: Array
    track_train: Array | None = None
    """`[n]`, where training images are frames of films: images of one class and one number show the same thing, so a
    network that saw some of them knows the others."""
    class_names: tuple[str, ...] | None = None
    """What the classes are called, in the order of their numbers, where that is known."""
    scaling: str | None = None
    """What was done to the numbers of the source, in words, such as "images of uint8: divided by 255"; None where they
    are floats and were taken as they are."""

    @property
    def num_classes(self) -> int:
        return int(max(self.y_train.max(initial=0), self.y_test.max(initial=0))) + 1

    def split(self, share: float) -> tuple[Array, Array]:
        """Return the indices of the training images to train on, and of about a `share` of them to hold out.

        The last images are held out or, where images belong to tracks, whole tracks of each class, drawn by a fixed
        seed, so that no film is on both sides; a class with a single track stays on the training side.

        Args:
            share: in [0, 1).

        Returns:
            Two arrays `[n]` int64, each increasing; together they hold all indices.
        """
        share = number_in("share", share, "[0, 1)")
        n = len(self.x_train)
        if self.track_train is None:
            return np.arange(int(n * (1 - share))), np.arange(int(n * (1 - share)), n)
        draw, is_held_out = np.random.default_rng(0), np.zeros(n, dtype=bool)
        for label in np.unique(self.y_train):
            members = np.flatnonzero(self.y_train == label)
            tracks = self.track_train[members]
            order = draw.permutation(np.unique(tracks))
            wanted = round(share * len(order)) if share * len(order) < 1 else int(share * len(order))
            is_held_out[members[np.isin(tracks, order[: min(wanted, len(order) - 1)])]] = True
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def load(name: str | os.PathLike[str], scale: str | float = "auto") -> Dataset:
    """Load a data set by name or from an `.npz` file.

    Args:
        name: `"digits"`, the 1,797 8x8 digits that scikit-learn ships (the last 360 are the test set), which needs no
            download; `"mnist"`, `"fashion_mnist"` or `"cifar10"`, looked for as `NAME.npz` in the folder that the
            environment variable `DEFENDED_DATA` names, then fetched by Keras; `"gtsrb"`, the German road signs, looked
            for in that folder only; or the path of an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`.
        scale: what the inputs are divided by: `"auto"`, `"none"`, or a number, which divides whatever there is.
            `"auto"` divides images of whole numbers by 255, and leaves floats and tables `[n, features]` as they are.
            `Dataset.scaling` says what was done.

    A file may also hold `track_train` and `class_names` (see `Dataset`), and `lossless_train` and `lossless_test`,
    `[n]` bool: images that are False there differ from the published ones and are left out.

    Raises:
        FileNotFoundError: when the data cannot be obtained, saying where it was looked for.
        ValueError: for an unknown name; for a scale that is none; when a file lacks an array, holds NaN or infinity or,
            with `"auto"`, images outside [0, 1]; or when shapes do not match.
    """
    name, divisor = str(name), _divisor(scale)
    if name == "digits":
        return _digits(divisor)
    if name in ("mnist", "fashion_mnist", "cifar10", "gtsrb"):
        folder = os.environ.get("DEFENDED_DATA")
        path = Path(folder or ".") / f"{name}.npz"
        if folder and path.exists():
            return _from_npz(path, name, divisor)
        if name in _SOURCES:
            looked = path if folder else "no folder, since the environment variable DEFENDED_DATA is not set"
            raise FileNotFoundError(
                f"{name} was looked for in {looked}. {_SOURCES[name]} Put {name}.npz ({', '.join(_ARRAYS)} and, for "
                f"the films, track_train) in a folder and set DEFENDED_DATA to that folder."
            )
        return _from_keras(name, path if folder else None, divisor)
    if name.endswith(".npz"):
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(
                f"No data at {path}. Give the path of an .npz file with x_train, y_train, x_test, y_test."
            )
        return _from_npz(path, path.stem, divisor)
    raise ValueError(
        f"Unknown data set {name!r}. Known: 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'gtsrb', or the path of an "
        f".npz file."
    )


def _divisor(scale: str | float) -> float | None:
    """Return what inputs are divided by, 1 for nothing; None where their type decides."""
    if scale in ("auto", "none"):
        return None if scale == "auto" else 1.0
    try:
        return positive_number("scale", float(scale))
    except (TypeError, ValueError):
        raise ValueError(
            f'`scale` must be "auto", "none", or a positive number to divide by, such as 255. Received: {scale!r}.'
        ) from None


def _digits(divisor: float | None) -> Dataset:
    from sklearn.datasets import load_digits

    bunch, by = load_digits(), divisor or 16.0
    x = (bunch.images / by).astype("float32")[..., None]
    y = bunch.target.astype("int64")
    return Dataset(
        "digits", x[:-360], y[:-360], x[-360:], y[-360:], class_names=CLASS_NAMES["digits"],
        scaling=_in_words("images of shades 0 to 16", by),
    )  # fmt: skip


def _from_keras(name: str, looked: Path | None, divisor: float | None) -> Dataset:
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        tried = f"{looked} (from DEFENDED_DATA) and " if looked else ""
        raise FileNotFoundError(
            f"{name} was not found in {tried}Keras's cache, and could not be downloaded: {error}. "
            f"Put {name}.npz (x_train, y_train, x_test, y_test) in a folder and set DEFENDED_DATA to that folder."
        ) from error
    return _dataset(name, divisor, x_train, y_train, x_test, y_test)


def _from_npz(path: Path, name: str, divisor: float | None) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in _ARRAYS if key not in arrays]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            optional = [key for key in _OPTIONAL_ARRAYS if key in arrays]
            return _dataset(name, divisor, **{key: arrays[key] for key in (*_ARRAYS, *optional)})
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a usable data set: {error}") from error


def _dataset(
    name: str,
    divisor: float | None,
    x_train: Array,
    y_train: Array,
    x_test: Array,
    y_test: Array,
    lossless_train: Array | None = None,
    lossless_test: Array | None = None,
    track_train: Array | None = None,
    class_names: Array | None = None,
) -> Dataset:
    train = [part for part in (x_train, y_train.reshape(-1), track_train) if part is not None]
    train = _chosen(train, lossless_train, "train")
    test = _chosen([x_test, y_test.reshape(-1)], lossless_test, "test")
    for x, y in (train[:2], test):
        _check_images(name, x, y)
    (x_train, done), (x_test, other) = _inputs(train[0], divisor), _inputs(test[0], divisor)
    y_train, y_test = train[1].astype("int64"), test[1].astype("int64")
    track_train = train[2] if track_train is not None else None
    scaling = done if done == other else f"in training {done or 'floats as they are'}; for tests {other or 'the same'}"
    data = Dataset(name, x_train, y_train, x_test, y_test, track_train, scaling=scaling)
    known = CLASS_NAMES.get(name, ())
    if class_names is None:
        return data._replace(class_names=known if len(known) >= data.num_classes else None)
    if len(class_names) < data.num_classes:
        raise ValueError(f"labels are 0 to {data.num_classes - 1}, but there are {len(class_names)} class_names")
    return data._replace(class_names=in_order(class_names.astype(str).tolist()))


def _chosen(parts: list[Array], mask: Array | None, what: str) -> list[Array]:
    """Return the rows of `parts` that a mask `[n]` keeps; raise `ValueError` where their numbers differ."""
    images, labels = len(parts[0]), len(parts[1])
    if labels != images:
        raise ValueError(f"{images} images but {labels} labels")
    for values, key in ((parts[2] if len(parts) > 2 else None, "track"), (mask, "lossless")):
        if values is not None and values.shape != (images,):
            raise ValueError(f"{key}_{what} has shape {values.shape} for {images} images")
    return parts if mask is None else [part[mask.astype(bool)] for part in parts]


def _check_images(name: str, x: Array, y: Array) -> None:
    """Refuse data that cannot be the set of this name, where it is one whose file users make themselves."""
    if name not in _IMAGES:
        return
    classes, shape = _IMAGES[name]
    if x.shape[1:] != shape:
        raise ValueError(f"images of {name} are {'x'.join(map(str, shape))}, and these have shape {x.shape[1:]}")
    if len(y) and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"labels of {name} are 0 to {classes - 1}, and these are {y.min()} to {y.max()}")


def _inputs(x: Array, divisor: float | None) -> tuple[Array, str | None]:
    """Return inputs as float32, images with an axis of channels, and what was done to them, in words."""
    whole, table = np.issubdtype(x.dtype, np.integer), x.ndim <= 2
    largest = 255 if whole else 1
    if divisor is None and not table and x.size and not (np.min(x) >= 0 and np.max(x) <= largest):
        raise ValueError(
            "images must be integers in [0, 255] or floats in [0, 1]; the scale `none` takes others as they are, a "
            f"number divides them. These reach from {np.min(x):g} to {np.max(x):g}"
        )
    by = divisor or (255.0 if whole and not table else 1.0)
    # In one pass: memory for a second copy takes far longer to get than the division.
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        scaled = x.astype("float32", copy=False) if by == 1 else np.divide(x, np.float32(by), dtype="float32")
    if scaled.size and not (np.isfinite(np.min(scaled)) and np.isfinite(np.max(scaled))):
        raise ValueError("inputs must be finite numbers, and some are NaN or infinite")
    words = _in_words(f"{'a table' if table else 'images'} of {x.dtype}", by) if whole or by != 1 else None
    return (scaled[..., None] if scaled.ndim == 3 else scaled), words


def _in_words(what: str, by: float) -> str:
    return f"{what}: " + ("taken as they are" if by == 1 else f"divided by {by:g}")
