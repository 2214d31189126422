"""Tensors in JSON: the row and column formats of TensorFlow Serving's `:predict`, read strictly."""

from __future__ import annotations

import base64
import binascii
import gc
import itertools
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from defended.exceptions import ServingError
from defended.serving.artefacts.tensor_info import TensorInfo, word_of
from defended.serving.server.errors import invalid

ROWS, COLUMNS = "instances", "inputs"


class _CollectorPaused:
    """Keeps Python's garbage collector from running while a document's lists are made.

    A body of a batch is a hundred thousand lists. Every seven hundred of them would make the collector look for cycles,
    now and then among everything that TensorFlow keeps in memory: a second, for lists that cannot hold a cycle.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            gc.enable()
        self._lock.release()


_COLLECTOR_PAUSED = _CollectorPaused()

_SHOWN = 256
_KINDS = {
    type(None): "Null", bool: "Boolean", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"
}  # fmt: skip


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds; NaN, Infinity and -Infinity are numbers, as TensorFlow Serving reads.

    Raises:
        ServingError: INVALID_ARGUMENT: the body is not JSON, is nested too deeply, or is not an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        with _COLLECTOR_PAUSED:
            document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _parse_slowly(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} Is not object")
    return document


def _parse_slowly(body: bytes) -> Any:
    """Return what orjson does not read: a document with tokens of NaN and infinities; or raise what is wrong."""
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply") from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from None


def signature_name(document: Mapping[str, Any], default: str) -> str:
    """Return the signature that a request names.

    Raises:
        ServingError: INVALID_ARGUMENT: the name is not a string.
    """
    name = document.get("signature_name", default)
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or default


def read_tensors(document: Mapping[str, Any], wanted: Mapping[str, TensorInfo]) -> tuple[str, dict[str, np.ndarray]]:
    """Return the format of a `:predict` request, `ROWS` or `COLUMNS`, and its tensors by name.

    Numbers become the dtype that the signature states; strings, booleans and null are not numbers, and all
    lists must have the nesting and length of the first one.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words.
    """
    if ROWS in document and COLUMNS in document:
        raise invalid(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of '{COLUMNS}' or '{ROWS}' "
            "keys to exist "
        )
    if ROWS in document:
        rows = document[ROWS]
        if not isinstance(rows, list):
            raise invalid(f"JSON Value: {shown(document)} Expecting '{ROWS}' to be an list/array")
        if not rows:
            raise invalid(f"JSON Value: {shown(document)} No values in '{ROWS}' array")
        return ROWS, _read_rows(rows, wanted)
    if COLUMNS in document:
        return COLUMNS, _read_columns(document[COLUMNS], wanted)
    raise invalid(f"Missing '{COLUMNS}' or '{ROWS}' key")


def _read_rows(rows: list[Any], wanted: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    if not _is_named(rows[0]):
        name, info = _only(wanted, f"{ROWS} is a plain list, but expecting list of objects")
        named = next((number for number, row in enumerate(rows) if _is_named(row)), None)
        if named is not None:
            raise invalid(f"Expecting value/list but got object at item {named} of input list")
        return {name: _read_row_tensor(rows, info, "")}
    for number, row in enumerate(rows):
        if not _is_named(row):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        unknown = next((name for name in row if name not in wanted), None)
        if unknown is not None:
            raise _in_row(number, unknown, f"JSON object: does not have named input: {unknown}")
        if set(row) != set(wanted):
            raise invalid(
                f"Failed to process element: {number} of '{ROWS}' list. JSON object: {shown(row)} keys must be "
                f"equal to: {','.join(sorted(wanted))}"
            )
    return {name: _read_row_tensor([row[name] for row in rows], info, name) for name, info in wanted.items()}


def _read_row_tensor(rows: list[Any], info: TensorInfo, name: str) -> np.ndarray:
    try:
        return _to_array(rows, info)
    except ServingError:
        # Which row is it, and what is wrong with it by itself or beside the first?
        shape = _first_shape(rows[0])
        for number, row in enumerate(rows):
            try:
                array = _to_array(row, info)
            except ServingError as error:
                raise _in_row(number, name, error.message) from None
            if list(array.shape) != shape:
                expected = f"Expecting shape {_brackets(shape)} but got: {_brackets(array.shape)}"
                raise _in_row(number, name, expected) from None
        raise


def _in_row(number: int, name: str, message: str) -> ServingError:
    key = f" key: {name}" if name else ""
    return invalid(f"Failed to process element: {number}{key} of '{ROWS}' list. Error: INVALID_ARGUMENT: {message}")


def _read_columns(value: Any, wanted: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        name, info = _only(wanted, f"{COLUMNS} is a plain value/list, but expecting an object")
        return {name: _to_array(value, info)}
    missing = next((name for name in wanted if name not in value), None)
    if missing is not None:
        raise invalid(f"Missing named input: {missing} in '{COLUMNS}' object.")
    return {name: _to_array(value[name], info) for name, info in wanted.items()}


def _only(wanted: Mapping[str, TensorInfo], problem: str) -> tuple[str, TensorInfo]:
    """Return the one tensor that may come without its name; raise the problem where the signature takes several."""
    if len(wanted) > 1:
        raise invalid(f"{problem} as multiple input tensors required as per tensorinfo_map")
    return next(iter(wanted.items()))


def _is_named(value: Any) -> bool:
    """Return whether a value is an object that names tensors, not one that encodes bytes."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Return whether a value is an object that encodes bytes, `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Mapping[str, str]) -> bytes:
    """Return the bytes that such an object encodes.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _to_array(value: Any, info: TensorInfo) -> np.ndarray:
    """Return nested lists as an array of the signature's dtype; they are read level by level, never by recursion."""
    shape: list[int] = []
    level: list[Any] = [value]
    while level and type(level[0]) is list:
        if len(shape) >= max(len(info.shape), 1):
            raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(info.shape)}")
        if set(map(type, level)) != {list} or len(set(map(len, level))) > 1:
            raise _ragged(level, len(shape))
        shape.append(len(level[0]))
        # An image's single channel is a list around every number.
        level = [item[0] for item in level] if shape[-1] == 1 else list(itertools.chain.from_iterable(level))
    return _leaves(level, info.dtype, len(shape)).reshape(shape)


def _leaves(values: list[Any], dtype: str, rank: int) -> np.ndarray:
    kinds = set(map(type, values))
    if list in kinds:
        raise invalid(f"Encountered list at unexpected level: {rank} expected < {rank}")
    if dtype == "string":
        found = np.empty(len(values), object)
        found[:] = [_to_bytes(value) for value in values]
        return found
    by_kind: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    allowed = by_kind.get(np.dtype(dtype).kind, {int})
    if not kinds <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise _wrong_type(wrong, dtype)
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and rejected for that
            return np.array(values, dtype)
    except OverflowError:
        return _leaves_of_huge_numbers(values, dtype)


def _leaves_of_huge_numbers(values: list[Any], dtype: str) -> np.ndarray:
    for value in values:
        try:
            np.array(value, dtype)
        except OverflowError:
            raise _wrong_type(value, dtype) from None
    raise invalid("JSON Value has a number that is out of range")


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        if not is_base64(value):
            raise invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
        return decode_base64(value)
    raise _wrong_type(value, "string")


def _wrong_type(value: Any, dtype: str) -> ServingError:
    return invalid(f"JSON Value: {shown(value)} Type: {_KINDS[type(value)]} is not of expected type: {word_of(dtype)}")


def _ragged(level: list[Any], depth: int) -> ServingError:
    size = len(level[0])
    for item in level:
        if type(item) is not list:
            expected = depth + len(_first_shape(level[0]))
            return invalid(
                f"JSON Value: {shown(item)} found at incorrect level: {depth + 1} in the JSON DOM. Expected at level: "
                f"{expected}"
            )
        if len(item) != size:
            break
    return invalid(f"Encountered list at unexpected size: {len(item)} at level: {depth} expected size: {size}")


def _first_shape(value: Any) -> list[int]:
    """Return the shape that a value has along its first elements."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _brackets(shape: Any) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def shown(value: Any) -> str:
    """Return a value for a message, cut short; a deep one is only hinted at, as writing it would recurse."""
    if len(_first_shape(value)) > 16:
        return "[...]"
    try:
        return json.dumps(value, separators=(",", ": "))[:_SHOWN]
    except (RecursionError, ValueError, TypeError):
        return f"({_KINDS.get(type(value), 'value')})"
