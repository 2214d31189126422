"""Pieces of a run as Parquet files in a directory, with a manifest of their hashes at the end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended._io import atomic_write_bytes, atomic_write_text, canonical_json, sha256_file
from defended.attacks.core.checks import Array
from defended.attacks.measurement.chunk_store import ChunkStore
from defended.attacks.measurement.records import _pyarrow

MANIFEST = "manifest.json"
_FORMAT = 1
_KEY = b"defended"
_SECONDS = "seconds"


class ParquetStore(ChunkStore):
    """A `ChunkStore` of Parquet files.

    Arrays with a row for each input are columns, lists where a row has several values; `inputs`, which has rows for the
    degraded inputs only, is a column with gaps. Single numbers are in the file's metadata, the time taken in a file
    beside it: the files of two runs are the same, byte for byte, where their results are.
    """

    def get(self, name: str) -> dict[str, Array] | None:
        """Return the arrays kept under a name, or None."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            arrays = read_piece(path)
            seconds = path.with_suffix(f".{_SECONDS}")
            arrays[_SECONDS] = np.array(float(seconds.read_text()) if seconds.exists() else 0.0)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Remove that file to have its part computed again."
            ) from error
        return arrays

    def put(self, name: str, **arrays: Any) -> dict[str, Array]:
        """Keep arrays under a name, and return them."""
        path = self._path(name)
        if path is not None:
            taken = arrays.get(_SECONDS)
            if taken is not None:
                atomic_write_text(path.with_suffix(f".{_SECONDS}"), f"{float(taken)!r}\n")
            atomic_write_bytes(path, piece_bytes({k: v for k, v in arrays.items() if k != _SECONDS}))
        return arrays

    def _path(self, name: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{name}.parquet"


def piece_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Return a Parquet file's content for the arrays of a piece."""
    pyarrow, parquet = _pyarrow()
    values = {name: np.asarray(value) for name, value in arrays.items()}
    single = {name: value for name, value in values.items() if value.ndim == 0}
    gapped = "degraded" if "inputs" in values else None
    rows = len(values[gapped]) if gapped else max((len(v) for v in values.values() if v.ndim), default=0)
    columns: dict[str, Any] = {}
    shapes: dict[str, list[int]] = {}
    for name, value in values.items():
        if value.ndim == 0:
            continue
        mask = None
        if name == "inputs" and gapped:
            whole = np.zeros((rows, *value.shape[1:]), value.dtype)
            whole[values[gapped]] = value
            value, mask = whole, pyarrow.array(~values[gapped])
        if len(value) != rows:
            raise ValueError(f"{name!r} has {len(value)} rows, the piece {rows}.")
        if value.ndim == 1:
            columns[name] = pyarrow.array(value)
            continue
        shapes[name] = list(value.shape[1:])
        width = int(np.prod(value.shape[1:]))
        flat = pyarrow.array(np.ascontiguousarray(value).reshape(-1))
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, width, mask=mask)
    notes = {
        "shapes": shapes,
        "single": {name: [value.dtype.name, value.item()] for name, value in single.items()},
        "gapped": gapped,
    }
    table = pyarrow.table(columns).replace_schema_metadata({_KEY: json.dumps(notes, sort_keys=True)})
    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()


def read_piece(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return the arrays of a file that `piece_bytes` made.

    Raises:
        ValueError, OSError: the file is not one.
    """
    pyarrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    notes = json.loads((table.schema.metadata or {})[_KEY])
    arrays: dict[str, Array] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name not in notes["shapes"]:
            arrays[name] = np.array(column.to_numpy(zero_copy_only=False))
            continue
        shape = notes["shapes"][name]
        kept = column.drop_null() if notes["gapped"] and name == "inputs" else column
        flat = kept.flatten().to_numpy(zero_copy_only=False)
        arrays[name] = np.array(flat).reshape(len(kept), *shape)
    for name, (dtype, value) in notes["single"].items():
        arrays[name] = np.dtype(dtype).type(value)
    return arrays


def write_manifest(directory: str | os.PathLike[str], task: str, plan: dict[str, Any], summary: dict[str, Any]) -> Path:
    """Write `manifest.json` beside the pieces of a finished run: settings, hashes, and what came of it.

    Nothing in it depends on the engine or on time, so equal runs have equal manifests.

    Args:
        directory: directory of the run.
        task: what was done.
        plan: the settings that the result depends on.
        summary: figures, ready for JSON.

    Returns:
        The manifest's path.
    """
    folder = Path(directory)
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*.parquet"))
        if not path.name.startswith(".")
    }
    content = {"format_version": _FORMAT, "task": task, "settings": plan, "files": files, "summary": summary}
    return atomic_write_text(folder / MANIFEST, canonical_json(content))


def verify_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare the pieces of a finished run with its manifest, and return the manifest.

    Raises:
        ValueError: a file is missing or changed, or there is no manifest: the run is not finished.
    """
    folder = Path(directory)
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no finished run: {MANIFEST} cannot be read ({error}).") from error
    wrong = [
        name
        for name, record in listed.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != record["sha256"]
    ]
    if wrong:
        raise ValueError(f"{folder} is not what its manifest lists; missing or changed: {', '.join(sorted(wrong))}.")
    return content


def read_shards(directory: str | os.PathLike[str], prefix: str = "certified") -> dict[str, Array]:
    """Return the columns of all pieces of a kind, in the order of the inputs."""
    paths = sorted(Path(directory).glob(f"shards/{prefix}_*.parquet"))
    if not paths:
        raise ValueError(f"{os.fspath(directory)} holds no pieces `shards/{prefix}_*.parquet`.")
    parts = [read_piece(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}
