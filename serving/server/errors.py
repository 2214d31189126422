"""The errors of TensorFlow Serving's APIs: a canonical code, as gRPC and HTTP both have one, and a message."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Canonical codes, each with its number in gRPC and TensorFlow's status for REST."""

    OK = (0, 200)
    CANCELLED = (1, 499)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        """The code's number in gRPC and in TensorFlow's `StatusProto`."""
        return self.value[0]

    @property
    def http_status(self) -> int:
        """The HTTP status that TensorFlow Serving answers with."""
        return self.value[1]


class ServingError(Exception):
    """A request that is answered with an error; `message` goes to the client, so it names no file of the server.

    Args:
        code: the canonical code.
        message: what is wrong, in TensorFlow Serving's words where it has any.
        http_status: the status for REST where it is not the code's, such as 413.
    """

    def __init__(self, code: Code, message: str, http_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = code.http_status if http_status is None else http_status


def invalid(message: str) -> ServingError:
    """An INVALID_ARGUMENT error."""
    return ServingError(Code.INVALID_ARGUMENT, message)
