"""What a request log holds: answered requests as PredictionLog records in TFRecord files, written and read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defended.exceptions import RequestLogError

SUFFIX = ".tfrecord"

# The inputs of a request, or its outputs, by name.
Arrays = Mapping[str, np.ndarray]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedAnswer:
    """One answered request with one row per input: `inputs` `[batch, ...]`, None if not kept, and `outputs` by name."""

    model: str
    version: int
    signature: str
    inputs: np.ndarray | None
    outputs: dict[str, np.ndarray]


def read_request_log(path: str | os.PathLike[str]) -> Iterator[LoggedAnswer]:
    """Read a request log, oldest answers first, one at a time in memory.

    A torn record at the end of a file, which a killed server left or a running one is still writing, ends that file.
    A file that its server removes meanwhile, being the oldest, is skipped with a warning in Python's log. Nothing
    else is left out.

    Args:
        path: a file of records, or a folder of `RequestLog`, whose files are read in the order of their names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        RequestLogError: a record is damaged or is not of a predict call; the message names the file and the record.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not a request log: give a file, or the folder that a server logs into.")
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
    return sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())


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
            raise RequestLogError(
                f"{path}: record {number} is not a logged answer of a predict call: {error}"
            ) from error
        yield answer
        number += 1


def record_of(model: str, version: int, signature: str, inputs: Arrays, outputs: Arrays) -> bytes:
    """Return an answered request as a serialized `PredictionLog`."""
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog()
    request, response = log.predict_log.request, log.predict_log.response
    for spec in (request.model_spec, response.model_spec):
        spec.name, spec.signature_name = model, signature
        spec.version.value = version
    for target, arrays in ((request.inputs, inputs), (response.outputs, outputs)):
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
