"""The exceptions of this project, under one root: `except defended.exceptions.DefendedError` catches them all.

    DefendedError (Exception)
    ├── CertificateViolation (RuntimeError)
    ├── NotHereError
    ├── ArtefactError (ValueError)
    ├── SignatureError (ValueError)
    ├── ForbiddenOpError (ValueError)
    ├── CppLoaderError (RuntimeError)
    ├── AgreementError (ValueError)
    ├── MissingExtraError (ImportError)
    ├── ClientError (RuntimeError)
    ├── RequestLogError (ValueError)
    ├── ServingError
    ├── EndpointError (ValueError)
    ├── ConditionsError (ValueError)
    ├── RecordError (ValueError)
    ├── SourceError (RuntimeError)
    ├── StateError (ValueError)
    └── WorkerLostError (RuntimeError)

    BFloat16Warning (UserWarning)

    EditedFileWarning (UserWarning)

The builtin exception that each one also is stands in brackets. An argument that does not fit raises a plain ValueError
or TypeError, and a file that cannot be opened raises an OSError.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class DefendedError(Exception):
    """Any error that this project defines; each one's message says what to do about it."""


class CertificateViolation(DefendedError, RuntimeError):  # noqa: N818  (it is the finding, not only an error)
    """A point within eps of an accepted one was accepted with another label: the certificate is broken.

    Do not deploy the model. Keep `inputs`, and check that the model is evaluated in float32, as it was when its bounds
    were proven.

    Attributes:
        index: `[k]` int64, the examples concerned.
        inputs: `[k, ...]` float32, the points that got another label.
    """

    def __init__(self, message: str, index: np.ndarray, inputs: np.ndarray):
        super().__init__(message)
        self.index = index
        self.inputs = inputs

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what unpickles the error: errors of other processes arrive pickled."""
        return type(self), (str(self), self.index, self.inputs)


class NotHereError(DefendedError):
    """A net or a data set that an experiment of the paper uses is missing; the message says how to get it."""


class ArtefactError(DefendedError, ValueError):
    """An artefact is not what its manifest says: a file is missing, changed or extra, or the manifest is wrong.

    Do not serve it: fetch it again from where it was exported, or export the model again.
    """


class SignatureError(DefendedError, ValueError):
    """A manifest has no signature, one of another key, or was changed after it was signed.

    Have the artefact signed by whoever exported it (`defended sign`), or fetch it again.
    """


class ForbiddenOpError(DefendedError, ValueError):
    """A graph holds an operation that an artefact may not hold.

    Build the network from layers that do arithmetic only; refuse such an artefact where it comes from elsewhere.
    """


class CppLoaderError(DefendedError, RuntimeError):
    """TensorFlow's C++ loader is missing, or it refused a model or a run; the message is the loader's own.

    Install TensorFlow's wheel where the loader is missing; compare the inputs with the manifest's signatures where a
    run was refused.
    """


class AgreementError(DefendedError, ValueError):
    """A deployed graph and a Keras model answer differently.

    Check that both are the same model with the same radius, and that both are evaluated in float32.
    """


class MissingExtraError(DefendedError, ImportError):
    """A part of an artefact needs a package that is not installed; the message holds the command that installs it."""


class ClientError(DefendedError, RuntimeError):
    """A server answered with an error, or did not answer.

    Where `is_retryable`, try again after `wait` seconds: `Client` has done so as often as its `retries` allow.

    Attributes:
        code: the canonical code's name, as both protocols have it: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE (also where
            no connection could be made), DEADLINE_EXCEEDED, ...
        is_retryable: whether the same request may succeed later.
        wait: seconds that the server asks to wait.
    """

    def __init__(self, code: str, message: str, is_retryable: bool = False, wait: float = 0.0) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.is_retryable = is_retryable
        self.wait = wait


class RequestLogError(DefendedError, ValueError):
    """A request log is damaged, or holds something other than answers of predict calls.

    Restore the file that the message names, or read the other files.
    """


class Code(Enum):
    """Canonical codes, each with its number in gRPC and TensorFlow Serving's status for REST."""

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


class ServingError(DefendedError):
    """A request that the embedded server answers with an error.

    Args:
        code: the canonical code.
        message: what is wrong, in TensorFlow Serving's words where it has any; it goes to the client, so it names no
            file of the server.
        http_status: the status for REST where it is not the code's, such as 413.
    """

    def __init__(self, code: Code, message: str, http_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = code.http_status if http_status is None else http_status


class EndpointError(DefendedError, ValueError):
    """An endpoint answered something that a rejecting classifier does not answer.

    Audit the endpoint that serves the model, with the signature, radius and number of classes that the message names.
    """


class ConditionsError(DefendedError, ValueError):
    """A file of conditions cannot be used; the message names each fault, and where in the file to fix it."""


class RecordError(DefendedError, ValueError):
    """A file is not the JSON of an audit; the message names the first thing that is wrong.

    Give the `audit.json` of a report, or run the audit again.
    """


class SourceError(DefendedError, RuntimeError):
    """A monitor's source cannot be read, or does not hold what it should; the message says which and why."""


class StateError(DefendedError, ValueError):
    """A monitor's state cannot be read, or belongs to another monitor.

    Start the monitor with the settings that the state was written with, or with a new state.
    """


class WorkerLostError(DefendedError, RuntimeError):
    """The worker that computed a piece died again and again, mostly for lack of memory.

    Use fewer workers or smaller batches, and run the same command again: finished pieces are kept.
    """


class BFloat16Warning(UserWarning):
    """Training in bfloat16 was asked for, but the processor does not support it: training goes on in float32."""


class EditedFileWarning(UserWarning):
    """A serving file was edited by hand, so the new one was written beside it: merge it, or remove the edited one."""
