"""Files that are either whole or absent, written beside their place and renamed into it; JSON in one spelling."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`, so that a reader or a crash sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a result is as readable as any other file of its owner.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` in UTF-8, as `atomic_write_bytes` does."""
    return atomic_write_bytes(path, text.encode())


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lock_file(path: str | os.PathLike[str], *, create: bool = True, wait: bool = False, mode: int = 0o666) -> int:
    """Lock a file and return its descriptor; the system drops the lock when that is closed, or with the process.

    Args:
        path: the file, created where it is missing; a link is not followed.
        create: False does not create a missing file.
        wait: whether to wait for another process's lock.
        mode: the mode of a new file.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened for writing, which network file systems require.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def canonical_json(value: Any) -> str:
    """Return a value as JSON, one spelling for each content, so that its digest and its diffs mean something.

    Keys are sorted, indents are two spaces, characters beyond ASCII are not escaped, and a newline ends it.

    Raises:
        ValueError: a NaN or an infinity, which JSON cannot express; write `None` where a figure is undefined.
        TypeError: something that is not JSON, such as a NumPy scalar.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
