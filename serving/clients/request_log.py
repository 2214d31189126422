"""A server's request log: PredictionLog records in TFRecord files, as TensorFlow's own tools read them."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from defended.arguments import whole_number

_LOG = logging.getLogger(__name__)
_SUFFIX = ".tfrecord"
_LOCK = ".lock"

# What waits to be written while the disk is slow; beyond it answers go unlogged, and are counted.
_MAX_PENDING_BYTES = 64 * 2**20


class RequestLogError(ValueError):
    """A request log is damaged, or holds something that is no answer of a predict call."""


@dataclass(frozen=True)
class LoggedAnswer:
    """One answered request, a row an input: `inputs` `[batch, ...]`, None if they were not kept, `outputs` by name."""

    model: str
    version: int
    signature: str
    inputs: np.ndarray | None
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Pending:
    model: str
    version: int
    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    size: int


class RequestLog:
    """Writes answers into files of a folder, in a thread of its own; a context manager.

    A record is a `PredictionLog` whose `predict_log` holds the `PredictRequest` and the `PredictResponse`. Each is
    handed to the system as soon as it is written, so a killed process leaves files whose whole records are readable,
    with at most one torn record at a file's end. A full or slow disk stops nobody: what cannot be written is dropped
    and counted in `lost`, and what a failed write left is cut off.

    Args:
        directory: the folder, made where it is missing; one log at a time writes into it.
        max_bytes: a file that has reached this size is followed by another one.
        max_files: files kept; the oldest goes when there are more.
        sample: share of the answers that are logged, each drawn by itself, in [0, 1].
        keep_inputs: whether records hold the inputs; without them a log tells of verdicts only.

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

    def add(
        self,
        model: str,
        version: int,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Log one answer, soon and without waiting; the arrays must not be changed afterwards."""
        if self.sample < 1 and random.random() >= self.sample:
            return
        kept = inputs if self.keep_inputs else {}
        size = sum(array.nbytes for array in (*kept.values(), *outputs.values()))
        with self._changed:
            if self._closed or (self._pending and self._pending_bytes + size > _MAX_PENDING_BYTES):
                self.lost["queue"] += 1
                return
            self._pending.append(_Pending(model, version, signature, kept, outputs, size))
            self._pending_bytes += size
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything added so far is written or lost; returns whether that came within `timeout` seconds."""
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

    def __enter__(self) -> RequestLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        self.path = directory / f"requests-{stamp}{_SUFFIX}"
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))  # inputs may be private
        self.size = 0
        self._count = 0
        self._writer = tf.io.TFRecordWriter(os.fspath(self.path))

    def write(self, burst: list[_Pending], max_bytes: int) -> int:
        """Append records until the file is full; return how many of the burst."""
        for number, pending in enumerate(burst, 1):
            self._writer.write(_record(pending))
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


def read_request_log(path: str | os.PathLike[str]) -> Iterator[LoggedAnswer]:
    """Read a request log, oldest answers first, one at a time in memory.

    A torn record at the end of a file, which a killed server leaves or a running one is just writing, ends that file.
    A file that its server removes meanwhile, being the oldest, is passed over with a warning in Python's log. Nothing
    else is left out.

    Args:
        path: a file of records, or a folder of `RequestLog`, whose files are read in the order of their names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        RequestLogError: a record is damaged or is not of a predict call; the message names the file and the record.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is no request log: give a file, or the folder that a server logs into.")
    if not path.is_dir():
        yield from _read_file(path)
        return
    for file in log_files(path):
        try:
            yield from _read_file(file)
        except FileNotFoundError:
            _LOG.warning("%s was removed by its server before it was read.", file)


def log_files(directory: Path) -> list[Path]:
    """Return the files of a log's folder, the oldest first."""
    return sorted(path for path in directory.glob(f"*{_SUFFIX}") if path.is_file())


def _read_file(path: Path) -> Iterator[LoggedAnswer]:
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    number = 0
    records = iter(tf.data.TFRecordDataset(os.fspath(path)))
    while True:
        try:
            record = next(records).numpy()
        except StopIteration:
            return
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(f"{path} was removed.") from error
        except tf.errors.DataLossError as error:
            # A length that is whole has its own checksum, so only the end of the file cuts a record short.
            if "truncated record" in error.message:
                return
            raise RequestLogError(
                f"{path} is damaged after {number} records: {error.message}. Restore it, or read the other files."
            ) from error
        try:
            answer = _answer(PredictionLog.FromString(record))
        except (DecodeError, ValueError, TypeError) as error:
            raise RequestLogError(f"{path}: record {number} is no logged answer of a predict call: {error}") from error
        yield answer
        number += 1


def _record(pending: _Pending) -> bytes:
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog()
    request, response = log.predict_log.request, log.predict_log.response
    for spec in (request.model_spec, response.model_spec):
        spec.name, spec.signature_name = pending.model, pending.signature
        spec.version.value = pending.version
    for target, arrays in ((request.inputs, pending.inputs), (response.outputs, pending.outputs)):
        for name, array in arrays.items():
            target[name].CopyFrom(tf.make_tensor_proto(array))
    return log.SerializeToString()


def _answer(log: Any) -> LoggedAnswer:
    import tensorflow as tf

    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise ValueError(f"it holds {kind or 'nothing'}")
    request, response = log.predict_log.request, log.predict_log.response
    inputs = [tf.make_ndarray(tensor) for tensor in request.inputs.values()]
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    spec = response.model_spec if response.HasField("model_spec") else request.model_spec
    signature = spec.signature_name or request.model_spec.signature_name or "serving_default"
    return LoggedAnswer(spec.name, spec.version.value, signature, inputs[0] if len(inputs) == 1 else None, outputs)


def _claim(directory: Path) -> int:
    """Make the folder and lock it; the system drops the lock with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise BlockingIOError(
                error.errno, "another server logs into this folder; give each its own", str(directory)
            ) from None
        raise
    return descriptor
