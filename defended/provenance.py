"""Which data a model was trained on: digests, kept with its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_FILE = "training_data.json"
_PIECE = 4096


def data_digest(x: Array, y: Array | None = None) -> str:
    """SHA-256 of a data set: types, shapes and values of inputs `[n, ...]` and, where given, of targets `[n, ...]`."""
    digest = hashlib.sha256()
    for part in (x, y):
        if part is None:
            continue
        array = np.asarray(part)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for first in range(0, len(array), _PIECE):
            digest.update(np.ascontiguousarray(array[first : first + _PIECE]).tobytes())
    return digest.hexdigest()


def describe_data(x: Any, y: Any) -> dict[str, Any] | None:
    """`{"sha256", "points"}` of arrays that are fitted; None of what is not held in arrays, as `tf.data` is not."""
    arrays = [part for part in (x, y) if part is not None]
    if not arrays or not all(isinstance(part, np.ndarray) and part.dtype.kind in "fiub" for part in arrays):
        return None
    return {"sha256": data_digest(x, y), "points": len(x)}


def write_record(folder: str, record: tuple[dict[str, Any], ...]) -> None:
    """Keep a record in the folder that Keras saves beside the weights."""
    if record:
        Path(folder, _FILE).write_text(json.dumps(record), encoding="utf-8")


def read_record(folder: str | None) -> tuple[dict[str, Any], ...]:
    """The record in such a folder; empty where there is none, as in files of earlier versions."""
    path = None if folder is None else Path(folder, _FILE)
    if path is None or not path.is_file():
        return ()
    found = json.loads(path.read_text(encoding="utf-8"))
    return tuple({"sha256": str(item["sha256"]), "points": int(item["points"])} for item in found)
