"""The files that TensorFlow Serving and its surroundings read, written beside the artefacts of a directory.

The files are made from what is in the directory, for all of its models together, after every export. Each begins with a
line that holds a hash of the rest. A file whose hash still holds is replaced; one that somebody edited is left alone,
and what would have been written goes into a file beside it, `NAME.new`, with a warning that says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from defended._io import atomic_write_text, lock_file
from defended.exceptions import EditedFileWarning
from defended.serving.artefacts.manifest import MANIFEST, NAME, versions_below
from defended.serving.exporting.templating import render
from defended.serving.exporting.warm_up import BATCH_SIZES

_LOCK = ".serving-files.lock"
_HEAD = "# Written by defended, and again after every export while this line holds. sha256 of the rest: "

FILES = ("models.config", "batching.config", "monitoring.config", "prometheus.yml", "compose.yaml")


class ServedModel(NamedTuple):
    """A model of the directory, and its versions."""

    name: str
    versions: tuple[int, ...]
    """Ascending; TensorFlow Serving serves the largest."""

    @property
    def resource(self) -> str:
        """The name as Kubernetes takes it: a DNS label."""
        label = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:50].strip("-")
        if label == self.name:
            return label
        # Two names must not become one.
        return f"m-{label}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}".replace("--", "-")


def served_models(directory: str | os.PathLike[str]) -> tuple[ServedModel, ...]:
    """Return the models of a directory that have an exported version, sorted by name."""
    found = []
    for parent in sorted(Path(directory).iterdir()):
        if NAME.fullmatch(parent.name) is None or parent.is_symlink() or not parent.is_dir():
            continue
        versions = sorted(number for number, path in versions_below(parent).items() if (path / MANIFEST).is_file())
        if versions:
            found.append(ServedModel(parent.name, tuple(versions)))
    return tuple(found)


def write_serving_files(directory: str | os.PathLike[str]) -> dict[str, Path]:
    """Write the files for TensorFlow Serving from what the directory holds.

    These are `models.config` (all models), `batching.config`, `monitoring.config`, `prometheus.yml`, `compose.yaml`,
    and for each model `kserve/NAME.yaml`. Each appears whole or not at all; where several processes write at once, the
    last one sees everything.

    Args:
        directory: the folder of all models.

    Returns:
        The files by their names, `NAME.new` where `NAME` was edited.

    Warns:
        EditedFileWarning: a file was edited by hand and stays as it is.

    Raises:
        OSError: the directory cannot be written; existing files stay whole.
    """
    folder = Path(directory)
    # One process at a time: a later one sees the artefacts of those before it.
    with os.fdopen(lock_file(folder / _LOCK, wait=True), "rb"):
        models = served_models(folder)
        written = {name: _write(folder / name, _render(name, models)) for name in FILES}
        for model in models:
            name = f"kserve/{model.name}.yaml"
            written[name] = _write(folder / name, _render("kserve.yaml", (model,)))
    return written


def is_generated(text: str) -> bool:
    """Return whether a file is still as it was written here."""
    head, _, rest = text.partition("\n")
    return head == _HEAD + hashlib.sha256(rest.encode()).hexdigest()


def _write(path: Path, rest: str) -> Path:
    text = f"{_HEAD}{hashlib.sha256(rest.encode()).hexdigest()}\n{rest}"
    try:
        found = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        # A link to nowhere was made on purpose: it is neither followed nor replaced.
        return path if os.path.lexists(path) else atomic_write_text(path, text)
    except (UnicodeDecodeError, IsADirectoryError):
        found = ""
    beside = path.with_name(f"{path.name}.new")
    if found == text:
        return path
    if is_generated(found):
        return atomic_write_text(path, text)
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        if beside.read_text(encoding="utf-8") == text:
            return beside
    warnings.warn(
        f"{path} was edited, so it stays as it is. What belongs there now is in {beside.name}: merge it, or remove "
        f"{path.name} to have it written again.",
        EditedFileWarning,
        stacklevel=3,
    )
    return atomic_write_text(beside, text)


def _render(name: str, models: tuple[ServedModel, ...]) -> str:
    batching = {"sizes": BATCH_SIZES, "timeout_micros": 1000, "waiting": 100}
    return render(f"{name}.j2", models=models, batching=batching)
