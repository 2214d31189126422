"""What the server's modules raise: the errors of TensorFlow Serving's APIs, with a canonical code and a message."""

from __future__ import annotations

from defended.exceptions import Code, ServingError


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error."""
    return ServingError(Code.INVALID_ARGUMENT, message)
