"""Which data a model was trained on: digests, kept with its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_FILE = "training_data.json"
_PIECE = 4096


def data_digest(x: Array, y: Array | None = None) -> str:
    """Return the SHA-256 of the types, shapes and values of inputs `[n, ...]` and, where given, of targets `[n, ...]`.

    Whole numbers as targets count as int64: how a file stores class numbers says nothing about the data.
    """
    return next(possible_digests(x, y))


def possible_digests(x: Array, y: Array | None = None) -> Iterator[str]:
    """Yield what `data_digest` gives for a data set, and then what it may have given: for other types of class numbers,
    or for inputs alone.

    Args:
        x: `[n, ...]`, in float32 where training took it in that type.
        y: targets `[n, ...]`; None where they are not known. Earlier versions distinguished types of class numbers.
    """
    inputs = hashlib.sha256()
    _add(inputs, np.asarray(x))
    for target in () if y is None else chain([_class_numbers(y)], _as_stored(np.asarray(y))):
        both = inputs.copy()
        _add(both, target)
        yield both.hexdigest()
    yield inputs.hexdigest()


def _add(digest: Any, array: Array) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    for first in range(0, len(array), _PIECE):
        digest.update(np.ascontiguousarray(array[first : first + _PIECE]).data)


def _class_numbers(y: Any) -> Array:
    array = np.asarray(y)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _as_stored(y: Array) -> Iterator[Array]:
    """Yield class numbers as training may have received them: of any type that holds them, flat or in a column."""
    for kind in ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "f4", "f8"):
        stored = y.astype(kind)
        if np.array_equal(stored, y):
            yield from (stored, stored.reshape(-1, 1))


def describe_data(x: Any, y: Any) -> dict[str, Any] | None:
    """Return `{"sha256", "points"}` of arrays that are fitted; None for data not held in arrays, such as `tf.data`."""
    arrays = [part for part in (x, y) if part is not None]
    if not arrays or not all(isinstance(part, np.ndarray) and part.dtype.kind in "fiub" for part in arrays):
        return None
    return {"sha256": data_digest(x, y), "points": len(x)}


def write_training_data(folder: str, record: tuple[dict[str, Any], ...]) -> None:
    """Write a record to the folder that Keras saves beside the weights."""
    if record:
        Path(folder, _FILE).write_text(json.dumps(record), encoding="utf-8")


def read_training_data(folder: str | None) -> tuple[dict[str, Any], ...]:
    """Return the record in such a folder; empty where there is none, as in files of earlier versions."""
    path = None if folder is None else Path(folder, _FILE)
    if path is None or not path.is_file():
        return ()
    found = json.loads(path.read_text(encoding="utf-8"))
    return tuple({"sha256": str(item["sha256"]), "points": int(item["points"])} for item in found)
