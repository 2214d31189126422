"""Tensors in protobuf: `TensorProto` messages read with distrust, and written in the fields that clients read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from defended.serving.artefacts.cpp_loader import TensorInfo
from defended.serving.server.errors import invalid

# `DataType` numbers, the message's field for values of that type, and the NumPy dtype.
_FIELDS: dict[int, tuple[str, Any]] = {
    1: ("float_val", np.float32),
    2: ("double_val", np.float64),
    3: ("int_val", np.int32),
    4: ("int_val", np.uint8),
    7: ("string_val", object),
    9: ("int64_val", np.int64),
    10: ("bool_val", np.bool_),
}
_NUMBERS = {np.dtype(dtype): number for number, (_, dtype) in _FIELDS.items()}
_NAMES = {number: "string" if number == 7 else np.dtype(dtype).name for number, (_, dtype) in _FIELDS.items()}


def read_tensor(name: str, tensor: Any, info: TensorInfo, max_rows: int) -> np.ndarray:
    """Return a message's array, after its type and shape were compared with what the signature takes.

    A message may state a shape of any size and hold one value that fills it, so nothing is allocated before the shape
    is known to be allowed.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if _NAMES.get(tensor.dtype) != info.dtype:
        raise invalid(f"Expects arg[0] to be {_shown(info.dtype)} but {_type_name(tensor.dtype)} is provided")
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise invalid("Invalid tensor proto: its shape is not fully defined")
    if not info.accepts(shape):
        wanted = ",".join("?" if axis is None else str(axis) for axis in info.shape)
        raise invalid(f"Input tensor {name!r} must have the shape [{wanted}], but has [{','.join(map(str, shape))}]")
    if shape and shape[0] > max_rows:
        raise invalid(f"Task size {shape[0]} is larger than maximum input batch size {max_rows}")
    field, dtype = _FIELDS[tensor.dtype]
    size = math.prod(shape)
    if tensor.tensor_content and dtype is not object:
        expected = size * np.dtype(dtype).itemsize
        if len(tensor.tensor_content) != expected:
            raise invalid(
                f"Invalid tensor proto: {len(tensor.tensor_content)} bytes of content, but the shape takes {expected}"
            )
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = getattr(tensor, field)
    if len(values) > size or (size and not len(values)):
        raise invalid(f"Invalid tensor proto: {len(values)} values, but the shape takes {size}")
    found = np.empty(size, dtype)
    if size:
        found[: len(values)] = values
        found[len(values) :] = values[-1]  # as TensorFlow fills up
    return found.reshape(shape)


def write_tensor(array: np.ndarray, tensor: Any) -> None:
    """Fill a message as TensorFlow Serving does by default, in the field of the type and not as raw bytes."""
    number = _NUMBERS[array.dtype]
    tensor.dtype = number
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    getattr(tensor, _FIELDS[number][0]).extend(array.reshape(-1).tolist())


def _type_name(number: int) -> str:
    from tensorflow.core.framework import types_pb2

    if number in types_pb2.DataType.values():
        return types_pb2.DataType.Name(number).removeprefix("DT_").lower()
    return f"type {number}"


def _shown(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)
