"""What REST and gRPC share: a request is let in, answered in time, counted and logged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from defended.exceptions import Code, ServingError
from defended.serving.clients.logged_answers import Arrays
from defended.serving.clients.request_log import RequestLog
from defended.serving.server.metrics import Metrics
from defended.serving.server.models import ModelVersion
from defended.serving.server.store import ModelStore
from defended_settings.server import ServerSettings

_LOG = logging.getLogger(__name__)


@dataclass
class Call:
    """One request, as the metrics count it."""

    protocol: str
    method: str = ""
    model: str = ""
    version: int | None = None
    code: Code = Code.OK


class Inference:
    """Answers requests of either protocol; used from one event loop."""

    def __init__(
        self, settings: ServerSettings, store: ModelStore, metrics: Metrics, log: RequestLog | None = None
    ) -> None:
        self.settings, self.store, self.metrics, self._log = settings, store, metrics, log
        self.is_draining = False
        self.in_work = 0  # requests that were let in and are not answered yet
        self._body_bytes = 0

    @contextlib.contextmanager
    def admitted(self, call: Call) -> Iterator[None]:
        """Let a request in for the block, count it when it leaves, and turn what goes wrong into a `ServingError`.

        Raises:
            ServingError: UNAVAILABLE, the server is shutting down; RESOURCE_EXHAUSTED, too many requests are in work;
                INTERNAL in place of any other exception, whose traceback is logged.
        """
        start = time.perf_counter()
        entered = False
        try:
            if self.is_draining:
                raise ServingError(Code.UNAVAILABLE, "The server is shutting down.")
            if self.in_work >= self.settings.max_requests:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED, f"{self.in_work} requests are in work, the limit. Try again later."
                )
            self.in_work += 1
            entered = True
            yield
        except ServingError as error:
            call.code = error.code
            raise
        except asyncio.CancelledError:
            call.code = Code.CANCELLED
            raise
        except Exception as error:
            call.code = Code.INTERNAL
            _LOG.exception("A request failed unexpectedly.")
            raise ServingError(Code.INTERNAL, "The server failed to answer; its log says why.") from error
        finally:
            self.in_work -= entered
            model = call.model if self.store.serves(call.model) else ""
            self.metrics.observe_request(
                call.protocol, call.method, model, call.version, call.code.name, time.perf_counter() - start
            )

    @contextlib.contextmanager
    def body_held(self, size: int) -> Iterator[None]:
        """Account for a request's body while the block runs.

        Raises:
            ServingError: RESOURCE_EXHAUSTED: too many bytes of requests are held.
        """
        if self._body_bytes and self._body_bytes + size > self.settings.max_body_total:
            raise ServingError(Code.RESOURCE_EXHAUSTED, "Too many bytes of requests are in work. Try again later.")
        self._body_bytes += size
        try:
            yield
        finally:
            self._body_bytes -= size

    def resolved(self, call: Call, name: str, version: int | None, label: str | None) -> ModelVersion:
        """Return the version that a request names, and note it in its call; errors as for `ModelStore.resolve`."""
        call.model = name
        served = self.store.resolve(name, version, label)
        call.version = served.version
        return served

    async def answer(
        self, version: ModelVersion, signature: str, inputs: Arrays, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Run a signature on the inputs of one request, count its verdicts and log it.

        Args:
            version: from the store.
            signature: one of its signatures.
            inputs: arrays by name, as the client sent them.
            timeout: seconds, where the client gave a deadline; the server's own holds too.

        Raises:
            ServingError: INVALID_ARGUMENT, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED.
        """
        seconds = self.settings.timeout if timeout is None else min(timeout, self.settings.timeout)
        with version.held():
            version.check_inputs(signature, inputs)
            try:
                async with asyncio.timeout(seconds):
                    outputs = await version.run(signature, inputs)
            except TimeoutError:
                raise ServingError(Code.DEADLINE_EXCEEDED, f"No answer within {seconds:g} seconds.") from None
            self.metrics.observe_verdicts(version.name, version.version, inputs, outputs)
            if self._log is not None:
                self._log.add(version.name, version.version, signature, inputs, outputs)
            return outputs
