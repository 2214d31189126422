"""Finished pieces of a long run, on disk: whole or absent, and only ever of one run."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from defended._io import atomic_write_bytes, atomic_write_text
from defended.attacks.core.checks import Array

_PLAN = "plan.json"


class ChunkStore:
    """Named groups of arrays in a directory, each written beside its place and renamed into it.

    The directory belongs to the run whose fingerprint it was opened with first. A killed process leaves finished
    pieces and nothing else that counts.

    Args:
        directory: where to keep them, created if needed; None keeps nothing.
        fingerprint: what identifies the run, ready for JSON.

    Raises:
        ValueError: when the directory holds another run (the message names what differs) or other files.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, fingerprint: dict[str, Any]):
        self.directory = None if directory is None else Path(directory)
        if self.directory is None:
            return
        plan = self.directory / _PLAN
        if plan.exists():
            _compare(self.directory, json.loads(plan.read_text(encoding="utf-8")), json.loads(json.dumps(fingerprint)))
            return
        if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.glob("[!.]*"))):
            raise ValueError(
                f"`resume`={str(self.directory)!r} must be a directory of an earlier run, an empty one, or a new one. "
                f"It holds something else (no {_PLAN})."
            )
        atomic_write_text(plan, json.dumps(fingerprint, indent=2, sort_keys=True) + "\n")

    @property
    def keeps(self) -> bool:
        """Whether pieces are kept at all."""
        return self.directory is not None

    def get(self, name: str) -> dict[str, Array] | None:
        """Return the arrays kept under a name, or None."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Remove that file to have its part computed again."
            ) from error

    def put(self, name: str, **arrays: Any) -> dict[str, Array]:
        """Keep arrays under a name, and return them."""
        path = self._path(name)
        if path is not None:
            content = io.BytesIO()
            np.savez(content, **arrays)
            atomic_write_bytes(path, content.getvalue())
        return arrays

    def _path(self, name: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{name}.npz"


def kept_plan(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what identifies the run that a directory holds; empty where it does not hold any."""
    plan = Path(directory) / _PLAN
    found: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8")) if plan.exists() else {}
    return found


def _compare(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if different:
        details = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in different)
        raise ValueError(
            f"`resume`={str(directory)!r} holds another measurement ({details}). Call with the same model, data and "
            f"settings to continue it, or name a new directory."
        )
