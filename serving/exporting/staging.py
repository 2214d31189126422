"""A directory that appears whole or not at all: filled beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from defended._io import lock_file

# TensorFlow Serving loads the children of a model's directory whose names are numbers, and passes over these.
_PREFIX = ".partial-"
_LOCK, _CONTENT = "lock", "content"


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty directory, hidden beside `target`, and rename it to `target` when the block ends without an error.

    After an error the directory is removed; after a kill it stays behind, and the next `staged` in the same parent
    removes it. A lock, which the system drops with the process, shows whether its owner lives.

    Raises:
        FileExistsError: `target` exists already, or something took its place while the block ran; it is left as it is.
        NotADirectoryError, PermissionError, OSError: the parent cannot be made or written.
    """
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "exists and is never overwritten", str(target))
    made = list(itertools.takewhile(lambda folder: not os.path.lexists(folder), target.parents))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _remove_leftovers(target.parent)
        workplace, lock = _claim_workplace(target.parent)
        try:
            content = workplace / _CONTENT
            content.mkdir()
            yield content
            for path in (*content.rglob("*"), content):
                _flush(path)
            _rename(content, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
            os.close(lock)
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _claim_workplace(parent: Path) -> tuple[Path, int]:
    """Make a hidden directory that no other process takes for a leftover while the returned lock is held."""
    while True:
        workplace = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        workplace.mkdir()
        # Another process may remove it as a leftover until the lock is held; then take another.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = lock_file(workplace / _LOCK)
            if (workplace / _LOCK).exists():
                return workplace, lock
            os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    for workplace in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            try:
                lock = lock_file(workplace / _LOCK, create=False)
            except FileNotFoundError:
                workplace.rmdir()  # its owner has just made it, and will notice, or died at once
            else:
                shutil.rmtree(workplace, ignore_errors=True)
                os.close(lock)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(directory: Path, target: Path) -> None:
    appeared = FileExistsError(errno.EEXIST, "appeared during the export and is left as it is", str(target))
    if os.path.lexists(target):
        raise appeared
    try:
        # In the instant since the look, `rename` still fails on a file and on a filled directory.
        os.rename(directory, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise appeared from None
        raise
