"""Answers in JSON: outputs in the row and column formats of TensorFlow Serving's `:predict`, and whole documents."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from defended.serving.server.json_tensors import ROWS


def write_predictions(outputs: Mapping[str, np.ndarray], layout: str) -> bytes:
    """Return the body that answers a `:predict` request in the layout that it had.

    Rows are objects where the signature has several outputs, plain values where it has one. float32 numbers are written
    with the digits that give them back exactly; NaN and infinities as `NaN`, `Infinity` and `-Infinity`.
    """
    if layout == ROWS:
        listed = {name: _to_lists(name, value) for name, value in outputs.items()}
        if len(listed) == 1:
            return write_json({"predictions": next(iter(listed.values()))})
        names = list(listed)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*listed.values(), strict=True)]
        return write_json({"predictions": rows})
    columns: dict[str, Any] = {name: _writable(name, value) for name, value in outputs.items()}
    return write_json({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})


def write_json(document: Any) -> bytes:
    """Return a document as JSON, with NumPy arrays as lists."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _to_lists(name: str, array: np.ndarray) -> list[Any]:
    """Return an array as a list of its rows, each of which orjson can write."""
    value = _writable(name, array)
    if isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype != np.float32:
        return value.tolist()
    return list(value)


def _writable(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        return _text_lists(array, name.endswith("_bytes"))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _with_tokens(array)
    return np.ascontiguousarray(array)


def _with_tokens(array: np.ndarray) -> Any:
    """Return nested lists whose numbers Python has written: it has tokens for what is not finite."""
    if array.ndim == 0:
        return orjson.Fragment(json.dumps(float(array)))
    return [_with_tokens(row) for row in array]


def _text_lists(array: np.ndarray, as_bytes: bool) -> Any:
    if array.ndim:
        return [_text_lists(row, as_bytes) if isinstance(row, np.ndarray) else _text(row, as_bytes) for row in array]
    return _text(array.item(), as_bytes)


def _text(value: bytes, as_bytes: bool) -> Any:
    return {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode("utf-8", "replace")
