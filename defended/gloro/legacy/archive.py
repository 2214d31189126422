"""A `.gloronet` file, read by another process (`child.py`), whose answer is plain texts and numbers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defended.gloro.legacy.weights import Weights

MAX_FILE = 2**30
"""Bytes of the file, and of what it unpacks to."""
CPU_SECONDS = 30
"""Processor time for reading one file; one of 16 MiB takes half a second."""
WALL_SECONDS = 600
"""Time for reading one file on a machine that is busy with other things."""

CHILD = Path(__file__).with_name("child.py")
RESAVE = "Save the model again with gloro's `GloroNet.save`, and load files from sources that you trust."
_UNREADABLE = "it is damaged and cannot be read: the process that reads it"


class Archive(NamedTuple):
    """What a `.gloronet` file holds: a folder, settings, the text that describes the architecture, and weights."""

    folder: str
    config: dict[str, Any]
    architecture: str
    weights: Weights


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Return what the `.gloronet` file at `path` holds.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the member, the reason and the remedy, for anything but what gloro writes.
    """
    data = _read(Path(path))
    command = [sys.executable, "-I", str(CHILD), str(MAX_FILE), str(CPU_SECONDS), *sys.path]
    # One thread needs no memory for others, and HDF5 looks for no filters.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        head, _, body = subprocess.run(
            command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=True,
            timeout=WALL_SECONDS,
        ).stdout.partition(b"\n")  # fmt: skip
        folder, settings, architecture, names, refusal = json.loads(head)
        values = np.frombuffer(body, "<f4").astype(np.float32)
        weights: Weights = {}
        for (layer, *parts), shape in names:
            value, values = np.split(values, [math.prod(shape)])
            weights.setdefault(layer, {})[tuple(parts)] = value.reshape(shape)
    except subprocess.TimeoutExpired:
        refusal = f"{_UNREADABLE} takes more than {WALL_SECONDS} seconds"
    except subprocess.CalledProcessError as error:
        refusal = f"{_UNREADABLE} ended with status {error.returncode}"
    except (TypeError, ValueError):
        refusal = f"{_UNREADABLE} does not answer in its form"
    if refusal:
        raise ValueError(f"{refusal}. {RESAVE}")
    config = parsed_object(settings.encode("latin-1"), f"member {f'{folder}/config.json'!r}")
    return Archive(folder, config, architecture, weights)


def parsed_object(text: bytes | str, what: str) -> dict[str, Any]:
    """Return the JSON object in `text`; `what` names it in errors. Repeated keys are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {str(error)[:200]}. {RESAVE}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} must hold a JSON object. Received: {type(parsed).__name__}. {RESAVE}")
    return parsed


def _read(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}. Name a `.gloronet` file that gloro saved.")
    if not path.is_file():
        raise ValueError("it is not a regular file. Name a `.gloronet` file that gloro saved.")
    with path.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"it is too large: more than {MAX_FILE} bytes. Rebuild the network and set its weights.")
    return data
