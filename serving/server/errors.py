"""What the server's modules raise: the errors of TensorFlow Serving's APIs, with a canonical code and a message."""

from __future__ import annotations

from defended.exceptions import Code, ServingError
from defended.serving.artefacts.tensor_info import TensorInfo, word_of


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error."""
    return ServingError(Code.INVALID_ARGUMENT, message)


def wrong_type(info: TensorInfo, provided: str) -> ServingError:
    """Return the error for a tensor whose type, in TensorFlow's word, is not the signature's."""
    return invalid(f"Expects arg[0] to be {word_of(info.dtype)} but {provided} is provided")


def wrong_shape(name: str, info: TensorInfo, shape: tuple[int, ...]) -> ServingError:
    """Return the error for a tensor whose shape the signature does not take."""
    wanted = ",".join("?" if axis is None else str(axis) for axis in info.shape)
    return invalid(f"Input tensor {name!r} must have the shape [{wanted}], but has [{','.join(map(str, shape))}]")
