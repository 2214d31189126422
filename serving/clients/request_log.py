"""A server's request log, written in a thread of its own, as TensorFlow's own tools read it."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import threading
from datetime import UTC, datetime
from pathlib import Path

from defended._io import lock_file
from defended.arguments import whole_number
from defended.exceptions import RequestLogError
from defended.serving.artefacts.closing import Closing
from defended.serving.clients.logged_answers import SUFFIX, Arrays, LoggedAnswer, log_files, read_request_log, record_of

__all__ = ["LoggedAnswer", "RequestLog", "RequestLogError", "log_files", "read_request_log"]

_LOG = logging.getLogger(__name__)
_LOCK = ".lock"

# What waits to be written while the disk is slow; beyond it answers go unlogged, and are counted.
_MAX_PENDING_BYTES = 64 * 2**20

# What `record_of` makes a record of: model, version, signature, inputs and outputs.
_Pending = tuple[str, int, str, Arrays, Arrays]


class RequestLog(Closing):
    """Writes answers into files of a folder, in a thread of its own; a context manager.

    A record is a `PredictionLog` whose `predict_log` holds the `PredictRequest` and the `PredictResponse`. Each is
    handed to the system as soon as it is written, so a killed process leaves files whose whole records are readable,
    with at most one torn record at a file's end. A full or slow disk delays no answer: what cannot be written is
    dropped and counted in `lost`, and what a failed write left is cut off.

    Args:
        directory: the folder, made where it is missing; one log at a time writes into it.
        max_bytes: a file that has reached this size is followed by another one.
        max_files: number of files kept; the oldest is removed when there are more.
        sample: share of the answers that are logged, each drawn independently, in [0, 1].
        keep_inputs: whether records hold the inputs; without them they hold the verdicts only.

    Raises:
        BlockingIOError: another process writes into the folder.
        OSError: the folder cannot be made or written.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        max_bytes: int = 64 * 2**20,
        max_files: int = 16,
        sample: float = 1.0,
        *,
        keep_inputs: bool = True,
    ) -> None:
        for name, value in (("max_bytes", max_bytes), ("max_files", max_files)):
            whole_number(name, value, 1, floats=True)
        if not 0 <= sample <= 1:
            raise ValueError(f"`sample` must be a share of the answers, in [0, 1]. Received: {sample!r}.")
        self.directory = Path(directory)
        self.max_bytes, self.max_files, self.sample, self.keep_inputs = max_bytes, max_files, sample, keep_inputs
        self.written = 0
        self.lost = {"disk": 0, "queue": 0}
        self._pending: collections.deque[_Pending] = collections.deque()
        self._pending_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._idle = True
        self._file: _LogFile | None = None
        self._failing = False
        self._lock = _claim(self.directory)
        self._thread = threading.Thread(target=self._write_all, name="request log", daemon=True)
        self._thread.start()

    def add(self, model: str, version: int, signature: str, inputs: Arrays, outputs: Arrays) -> None:
        """Queue one answer to be logged, without waiting; the arrays must not be changed afterwards."""
        if self.sample < 1 and random.random() >= self.sample:
            return
        kept = inputs if self.keep_inputs else {}
        size = sum(array.nbytes for array in (*kept.values(), *outputs.values()))
        with self._changed:
            if self._closed or (self._pending and self._pending_bytes + size > _MAX_PENDING_BYTES):
                self.lost["queue"] += 1
                return
            self._pending.append((model, version, signature, kept, outputs))
            self._pending_bytes += size
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything added so far is written or lost; return whether that took at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle and not self._pending, timeout)

    def close(self) -> None:
        """Write what is waiting and close the file; a second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        os.close(self._lock)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._idle = not self._pending
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pending or self._closed)
                self._idle = False
                burst, size = list(self._pending), self._pending_bytes
                self._pending.clear()
                if not burst:
                    break
            self._write(burst)
            with self._changed:
                self._pending_bytes -= size
        if self._file is not None:
            self._file.close()
        with self._changed:
            self._idle = True
            self._changed.notify_all()

    def _write(self, burst: list[_Pending]) -> None:
        done = 0
        try:
            while done < len(burst):
                if self._file is None:
                    self._file = _LogFile(self.directory)
                    self._remove_oldest()
                done += self._file.write(burst[done:], self.max_bytes)
                self.written = self.written + self._file.take_count()
                if self._file.size >= self.max_bytes:
                    self._file.close()
                    self._file = None
            if self._failing:
                self._failing = False
                _LOG.warning("Requests are logged again into %s.", self.directory)
        except Exception as error:  # of any kind: a log must not end the thread that its server relies on
            if self._file is not None:
                with contextlib.suppress(Exception):
                    self._file.cut_off()
                kept = self._file.take_count()
                self.written, done = self.written + kept, done + kept
                self._file = None
            self.lost["disk"] += len(burst) - done
            if not self._failing:
                self._failing = True
                _LOG.warning("Requests cannot be logged into %s and are counted as lost: %s", self.directory, error)

    def _remove_oldest(self) -> None:
        for path in log_files(self.directory)[: -self.max_files]:
            path.unlink(missing_ok=True)


class _LogFile:
    """One file: records are appended, and a failed append is undone."""

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf

        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = directory / f"requests-{stamp}{SUFFIX}"
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))  # inputs may be private
        self.size = 0
        self._count = 0
        self._writer = tf.io.TFRecordWriter(os.fspath(self.path))

    def write(self, burst: list[_Pending], max_bytes: int) -> int:
        """Append records until the file is full; return how many of the burst were appended."""
        for number, pending in enumerate(burst, 1):
            self._writer.write(record_of(*pending))
            self._writer.flush()  # into the system's cache, which outlives a killed process
            self.size = self.path.stat().st_size
            self._count += 1
            if self.size >= max_bytes:
                return number
        return len(burst)

    def take_count(self) -> int:
        """Return how many records were written since the last call."""
        count, self._count = self._count, 0
        return count

    def cut_off(self) -> None:
        """Close the file and remove what a failed write left at its end."""
        with contextlib.suppress(Exception):
            self._writer.close()
        if self.size:
            os.truncate(self.path, self.size)
        else:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._writer.close()


def _claim(directory: Path) -> int:
    """Make the folder and lock it; the system drops the lock with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return lock_file(directory / _LOCK, mode=0o640)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "another server logs into this folder; give each its own", str(directory)
        ) from None
