"""Tensors in protobuf: `TensorProto` messages, read with distrust and written in the fields that clients read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from defended.serving.artefacts.tensor_info import BY_DTYPE, BY_NUMBER, TensorInfo
from defended.serving.server.errors import invalid, wrong_shape, wrong_type

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto


def read_tensor(name: str, tensor: TensorProto, info: TensorInfo, max_rows: int) -> np.ndarray:
    """Return a message's array, after comparing its type and shape with what the signature takes.

    A message may state a shape of any size and hold one value that fills it, so nothing is allocated before the shape
    is known to be allowed.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    kind = BY_NUMBER.get(tensor.dtype)
    if kind is None or kind.name != info.dtype:
        raise wrong_type(info, _type_name(tensor.dtype))
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise invalid("Invalid tensor proto: its shape is not fully defined")
    if not info.accepts(shape):
        raise wrong_shape(name, info, shape)
    if shape and shape[0] > max_rows:
        raise invalid(f"Task size {shape[0]} is larger than maximum input batch size {max_rows}")
    size = math.prod(shape)
    if tensor.tensor_content and not kind.dtype.hasobject:
        expected = size * kind.dtype.itemsize
        if len(tensor.tensor_content) != expected:
            raise invalid(
                f"Invalid tensor proto: {len(tensor.tensor_content)} bytes of content, but the shape takes {expected}"
            )
        return np.frombuffer(tensor.tensor_content, kind.dtype).reshape(shape)
    values = getattr(tensor, kind.field)
    if len(values) > size or (size and not len(values)):
        raise invalid(f"Invalid tensor proto: {len(values)} values, but the shape takes {size}")
    found = np.empty(size, kind.dtype)
    if size:
        found[: len(values)] = values
        found[len(values) :] = values[-1]  # as TensorFlow fills up
    return found.reshape(shape)


def write_tensor(array: np.ndarray, tensor: TensorProto) -> None:
    """Fill a message as TensorFlow Serving does by default, in the field of the type and not as raw bytes."""
    kind = BY_DTYPE[array.dtype]
    tensor.dtype = kind.number
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    getattr(tensor, kind.field).extend(array.reshape(-1).tolist())


def _type_name(number: int) -> str:
    from tensorflow.core.framework import types_pb2

    if number in types_pb2.DataType.values():
        return types_pb2.DataType.Name(number).removeprefix("DT_").lower()
    return f"type {number}"
