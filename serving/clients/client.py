"""A client of `defended serve` and of TensorFlow Serving: arrays in, arrays out, over REST or gRPC."""

from __future__ import annotations

import collections
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from defended.exceptions import ClientError
from defended.serving.artefacts.closing import Closing
from defended.serving.artefacts.inputs import require_array_signature, require_float32
from defended.serving.artefacts.tensor_info import SignatureInfo
from defended.serving.clients.transports import GrpcTransport, RestTransport, Transport
from defended_settings.addresses import is_loopback

if TYPE_CHECKING:
    from defended.answering import Verdicts

T = TypeVar("T")

# A request stays below servers' limits: at some twelve characters a number, 8 MiB of JSON.
_MOST_NUMBERS = 700_000
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0

_REST_PATH = re.compile(r"(?:/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?(?::predict)?)?/?")
_GRPC_PATH = re.compile(r"(?:/([^/]+)(?:/([0-9]+))?)?/?")


class Client(Closing):
    """Asks a served model; may be used by several threads at once, and is a context manager.

    Requests whose connection is refused or reset, or whose answer says that a server is busy (429, 503, UNAVAILABLE,
    RESOURCE_EXHAUSTED), are tried again after a wait that doubles, with jitter; whatever happens, a call that is one
    request ends within `timeout`.

    Args:
        url: `http(s)://host:8501[/v1/models/NAME[/versions/N|/labels/L]]` for REST, or `grpc(s)://host:8500[/NAME[/N]]`.
        model: the model's name, where the URL does not name it.
        version: a version of the model; by default the server's largest.
        label: in place of a version, a label that the server gave to one.
        token: the bearer token of a server that asks for one; never sent unencrypted to another machine.
        ca: PEM file of the authority that signed the server's certificate, where the system does not know it.
        timeout: seconds for one request, all its attempts together.
        retries: further attempts for one request.
        batch_size: inputs in one request; fewer where they are large.
        concurrency: requests under way at a time, when the inputs take several.

    Raises:
        ValueError: the URL is of neither form, no model is named, one thing is named twice, or the token would be sent
            unencrypted.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        batch_size: int = 128,
        concurrency: int = 4,
    ) -> None:
        for name, value in (("timeout", timeout), ("batch_size", batch_size), ("concurrency", concurrency)):
            if not value > 0:
                raise ValueError(f"`{name}` must be positive. Received: {value!r}.")
        if retries < 0:
            raise ValueError(f"`retries` must be 0 or more. Received: {retries!r}.")
        self.url = url
        self.timeout, self.retries, self.batch_size, self.concurrency = timeout, retries, batch_size, concurrency
        authority = None if ca is None else Path(ca)
        self._transport = _connect(url, model, version, label, token, authority, concurrency)
        self._count = 0
        self._lock = threading.Lock()
        self._signatures: dict[str, SignatureInfo] | None = None
        self._pool = ThreadPoolExecutor(concurrency, "defended client")

    @property
    def requests_sent(self) -> int:
        """Requests for answers that went out so far, repeated ones included; status and metadata are not counted."""
        return self._count

    def predict(self, x: np.ndarray, signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Run a signature on any number of inputs.

        Args:
            x: float32 `[n, ...]`, in the units that the model was trained on.
            signature: one that the server offers, with one input.

        Returns:
            The outputs by name, `[n, ...]` each, in the order of the inputs and in the dtypes that the server states.

        Raises:
            TypeError: `x` is not float32.
            ValueError: `x` has no batch axis, or the server offers no such signature with one input.
            ClientError: the server refused, or did not answer in time.
        """
        require_float32(x)
        if x.ndim == 0:
            raise ValueError("`x` must have a batch axis, [n, ...]. Received: a single number.")
        info = self._signature(signature)
        per_request = max(1, min(self.batch_size, _MOST_NUMBERS // max(1, int(np.prod(x.shape[1:])))))
        if not len(x):  # nothing to ask, and an empty list in JSON would not even show the shape
            return {
                name: np.empty((0, *(axis or 0 for axis in output.shape[1:])), output.numpy_dtype)
                for name, output in info.outputs.items()
            }
        starts = range(0, len(x), per_request)
        parts = self._in_order([x[start : start + per_request] for start in starts], signature, info)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def verdicts(self, x: np.ndarray) -> Verdicts:
        """Return `Verdicts(label, rejected, radius)` as the model's own `verdicts` does; errors as for `predict`.

        A server that offers the signature `audit` gives the certified radii. For one that does not, `radius` is 0
        throughout: nothing is known to be certified beyond the answer itself.
        """
        from defended.answering import Verdicts

        has_radii = "audit" in self.metadata()
        outputs = self.predict(x, "audit" if has_radii else "serving_default")
        missing = {"label", "rejected"} - set(outputs)
        if missing:
            raise ValueError(f"The model at {self.url} gives no verdicts: its answer has no {sorted(missing)}.")
        radius = outputs["certified_radius"] if has_radii else np.zeros(len(x), np.float32)
        return Verdicts(outputs["label"], outputs["rejected"], radius)

    def status(self) -> dict[int, str]:
        """Return the state of each version that the URL covers, such as `{1: "AVAILABLE"}`."""
        return self._retried(self._transport.status)

    def metadata(self) -> dict[str, SignatureInfo]:
        """Return the signatures offered, each with `.inputs` and `.outputs` by name; the server is asked once."""
        if self._signatures is None:
            self._signatures = self._retried(self._transport.metadata)
        return self._signatures

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._pool.shutdown(cancel_futures=True)
        self._transport.close()

    def _signature(self, name: str) -> SignatureInfo:
        return require_array_signature(name, self.metadata(), self.url)

    def _in_order(self, parts: list[np.ndarray], signature: str, info: SignatureInfo) -> list[dict[str, np.ndarray]]:
        def ask(part: np.ndarray) -> dict[str, np.ndarray]:
            def once(seconds: float) -> dict[str, np.ndarray]:
                with self._lock:
                    self._count += 1
                outputs = self._transport.predict(part, signature, info, seconds)
                wrong = [name for name, value in outputs.items() if value.shape[:1] != (len(part),)]
                if wrong or not outputs:
                    raise ClientError(
                        "INTERNAL", f"The answer does not have one row per input: {wrong or 'it is empty'}."
                    )
                return outputs

            return self._retried(once)

        if len(parts) == 1:
            return [ask(parts[0])]
        answers: list[dict[str, np.ndarray]] = []
        waiting: collections.deque[Future[dict[str, np.ndarray]]] = collections.deque()
        try:
            for part in parts:
                if len(waiting) == self.concurrency:
                    answers.append(waiting.popleft().result())
                waiting.append(self._pool.submit(ask, part))
            while waiting:
                answers.append(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
        return answers

    def _retried(self, attempt: Callable[[float], T]) -> T:
        end = time.monotonic() + self.timeout
        for number in itertools.count():
            try:
                return attempt(max(end - time.monotonic(), 0.001))
            except ClientError as error:
                wait = min(_FIRST_WAIT * 2**number, _LONGEST_WAIT) * random.uniform(0.5, 1.5)
                wait = max(wait, error.wait)
                if not error.is_retryable or number >= self.retries or time.monotonic() + wait >= end:
                    raise
            time.sleep(wait)
        raise AssertionError("the loop above ends by itself")


def _connect(
    url: str,
    model: str | None,
    version: int | None,
    label: str | None,
    token: str | None,
    ca: Path | None,
    connections: int,
) -> Transport:
    parts = urlsplit(url)
    pattern = {"http": _REST_PATH, "https": _REST_PATH, "grpc": _GRPC_PATH, "grpcs": _GRPC_PATH}.get(parts.scheme)
    found = pattern.fullmatch(parts.path) if pattern else None
    if found is None or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(
            "`url` must be http(s)://host:8501[/v1/models/NAME[/versions/N|/labels/L]] or "
            f"grpc(s)://host:8500[/NAME[/N]]. Received: {url!r}."
        )
    model = _one_of("model", model, found[1] and unquote(found[1]))
    version = _one_of("version", version, found[2] and int(found[2]))
    label = _one_of("label", label, unquote(found[3]) if pattern is _REST_PATH and found[3] else None)
    if model is None:
        raise ValueError(f"Which model? Name it: Client({url!r}, model='digits').")
    if version is not None and label is not None:
        raise ValueError("`version` and `label` both say which version is meant: give one of them.")
    secure = parts.scheme in ("https", "grpcs")
    if token is not None and not secure and not is_loopback(parts.hostname):
        raise ValueError(f"`token` would be sent unencrypted to {parts.hostname}: use https:// or grpcs://.")
    if pattern is _REST_PATH:
        return RestTransport(f"{parts.scheme}://{parts.netloc}", model, version, label, token, ca, connections)
    return GrpcTransport(parts.netloc, secure, model, version, label, token, ca)


def _one_of(name: str, argument: T | None, in_url: T | None) -> T | None:
    if argument is not None and in_url is not None and argument != in_url:
        raise ValueError(f"`{name}` is {argument!r}, but the URL says {in_url!r}: say it once.")
    return argument if argument is not None else in_url
