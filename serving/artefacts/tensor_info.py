"""What a model's signatures take and give: tensors by name, each with its dtype and its shape.

The table of dtypes holds those that a signature may carry here, once for the loader, the server and the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class TensorType(NamedTuple):
    """A dtype in the words of NumPy and of TensorFlow."""

    number: int
    """The number in TensorFlow's `DataType`, and in `TF_DataType` of its C API."""
    word: str
    """TensorFlow's name in messages; in upper case after `DT_`, its name in protobuf."""
    dtype: np.dtype[Any]
    field: str
    """The field of `TensorProto` that holds values of this type."""

    @property
    def name(self) -> str:
        """The name in manifests: NumPy's, or `string`, whose values are `bytes` in an array of objects."""
        return self.word if self.dtype == object else self.dtype.name


TYPES = (
    TensorType(1, "float", np.dtype(np.float32), "float_val"),
    TensorType(2, "double", np.dtype(np.float64), "double_val"),
    TensorType(3, "int32", np.dtype(np.int32), "int_val"),
    TensorType(4, "uint8", np.dtype(np.uint8), "int_val"),
    TensorType(9, "int64", np.dtype(np.int64), "int64_val"),
    TensorType(7, "string", np.dtype(object), "string_val"),
    TensorType(10, "bool", np.dtype(np.bool_), "bool_val"),
)
BY_NUMBER = {kind.number: kind for kind in TYPES}
BY_DTYPE = {kind.dtype: kind for kind in TYPES}
BY_NAME = {kind.name: kind for kind in TYPES}


def word_of(name: str) -> str:
    """Return TensorFlow's word for a dtype's name, or the name itself where the dtype is not in the table."""
    return BY_NAME[name].word if name in BY_NAME else name


@dataclass(frozen=True)
class TensorInfo:
    """A signature's tensor: its NumPy dtype name, or `string`, and its shape with `None` for an axis of any length."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of its arrays."""
        return np.dtype(object if self.dtype == "string" else self.dtype)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape can be fed."""
        return len(shape) == len(self.shape) and all(
            wanted in (None, got) for wanted, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class SignatureInfo:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
