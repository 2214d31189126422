"""TensorFlow Serving's REST API over aiohttp, and `/metrics`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar
from urllib.parse import unquote

from aiohttp import web

from defended.exceptions import Code, ServingError
from defended.serving.server import classification, json_answers, json_tensors
from defended.serving.server.descriptions import metadata_json, status_json
from defended.serving.server.errors import invalid
from defended.serving.server.inference import Call, Inference
from defended.serving.server.metrics import CONTENT_TYPE
from defended.serving.server.models import DEFAULT_SIGNATURE, ModelVersion
from defended.serving.server.security import bearer_is

T = TypeVar("T")

_POST = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?:(classify|regress|predict)", re.IGNORECASE
)
_GET = re.compile(r"/v1/models(?:/([^/:]+))?(?:/versions/([0-9]+)|/labels/([^/:]+))?(?:/(metadata))?", re.IGNORECASE)

# Smaller bodies are decoded in the time that handing them to a thread takes.
_DECODED_AT_ONCE = 64 * 2**10


class RestApi:
    """The handler of every path.

    Args:
        inference: answers.
        decoder: one thread in which large bodies are decoded, one after the other: decoded, numbers take twenty times
            the memory of their text.
    """

    def __init__(self, inference: Inference, decoder: Executor) -> None:
        self._inference, self._decoder = inference, decoder
        self._settings = inference.settings

    def application(self) -> web.Application:
        """Return the application that aiohttp serves."""
        application = web.Application(client_max_size=self._settings.max_body)
        application.router.add_route("*", "/{path:.*}", self.handle)
        return application

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, errors as `{"error": ...}` with TensorFlow Serving's statuses."""
        call = Call("REST")
        headers = {}
        try:
            with self._inference.admitted(call):
                body, kind = await self._answer(request, call)
            status = 200
        except ServingError as error:
            body, kind = json_answers.write_json({"error": error.message}), "application/json"
            status = error.http_status
            if error.code is Code.UNAUTHENTICATED:
                headers["WWW-Authenticate"] = "Bearer"
            if error.code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE):
                headers["Retry-After"] = "1"
        response = web.Response(body=body, status=status, headers={"Content-Type": kind, **headers})
        if status in (408, 413):
            response.force_close()  # the rest of the body is not waited for
        try:
            async with asyncio.timeout(self._settings.read_timeout):
                await response.prepare(request)
                await response.write_eof()
        except (TimeoutError, ConnectionError):  # the client does not read, or has left
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _answer(self, request: web.Request, call: Call) -> tuple[bytes, str]:
        if not bearer_is(self._settings.token, request.headers.get("Authorization")):
            call.method = "unauthenticated"
            raise ServingError(Code.UNAUTHENTICATED, "A bearer token is needed in the header Authorization.")
        path = request.rel_url.raw_path
        if path == "/metrics" and request.method == "GET":
            call.method = "metrics"
            return self._inference.metrics.page(), CONTENT_TYPE
        if not path.lower().startswith("/v1/"):
            raise ServingError(Code.NOT_FOUND, f"Not found: {request.method} {path}")
        pattern = {"GET": _GET, "POST": _POST}.get(request.method)
        found = pattern.fullmatch(path) if pattern else None
        if found is None:
            raise invalid(f"Malformed request: {request.method} {path}")
        name, version, label = unquote(found[1] or ""), _version(found[2]), found[3] and unquote(found[3])
        call.model = name
        if request.method == "GET":
            call.method = "metadata" if found[4] else "status"
            return self._describe(name, version, label, call), "application/json"
        call.method = found[4].lower()
        served = self._inference.resolved(call, name, version, label)
        work = self._predict if call.method == "predict" else self._classify
        with served.held():
            return await work(request, served, call.method), "application/json"

    def _describe(self, name: str, version: int | None, label: str | None, call: Call) -> bytes:
        if not name:
            raise invalid("Missing model name in request.")
        if call.method == "metadata":
            return metadata_json(self._inference.resolved(call, name, version, label))
        return status_json(self._inference.store.status(name, version, label))

    async def _predict(self, request: web.Request, served: ModelVersion, method: str) -> bytes:
        def decode(body: bytes) -> tuple[str, str, dict[str, Any]]:
            document = json_tensors.parse_json(body)
            signature = json_tensors.signature_name(document, DEFAULT_SIGNATURE)
            if signature not in served.signatures:
                raise invalid(f'Serving signature name: "{signature}" not found in signature def')
            return (signature, *json_tensors.read_tensors(document, served.signatures[signature].inputs))

        signature, layout, inputs = await self._decoded(request, decode)
        outputs = await self._inference.answer(served, signature, inputs)
        return json_answers.write_predictions(outputs, layout)

    async def _classify(self, request: web.Request, served: ModelVersion, method: str) -> bytes:
        require = classification.require_classification if method == "classify" else classification.require_regression

        def decode(body: bytes) -> tuple[str, Any]:
            document = json_tensors.parse_json(body)
            signature = json_tensors.signature_name(document, DEFAULT_SIGNATURE)
            if signature not in served.signatures:
                raise invalid(f"No signature was found with the name: {signature}")
            require(signature, served.signatures[signature])
            return signature, classification.examples_from_json(document, method)

        signature, records = await self._decoded(request, decode)
        outputs = await self._inference.answer(served, signature, {classification.INPUTS: records})
        write = classification.write_classifications if method == "classify" else classification.write_regressions
        return write(outputs)

    async def _decoded(self, request: web.Request, decode: Callable[[bytes], T]) -> T:
        """Read a request's body within its limits and decode it."""
        limit = self._settings.max_body
        size = limit if request.content_length is None else request.content_length
        if size > limit:
            raise _too_large(limit)
        with self._inference.body_held(size):
            try:
                async with asyncio.timeout(self._settings.read_timeout):
                    body = await request.read()
            except TimeoutError:
                raise ServingError(
                    Code.DEADLINE_EXCEEDED,
                    f"The request's body did not arrive within {self._settings.read_timeout:g} seconds.",
                    http_status=408,
                ) from None
            except web.HTTPRequestEntityTooLarge:
                raise _too_large(limit) from None
            except (web.RequestPayloadError, ConnectionError) as error:
                raise invalid(f"The request's body is not whole: {error}") from None
            if len(body) <= _DECODED_AT_ONCE:
                return decode(body)
            return await asyncio.get_running_loop().run_in_executor(self._decoder, decode, body)


def _too_large(limit: int) -> ServingError:
    return ServingError(
        Code.RESOURCE_EXHAUSTED, f"The request's body is larger than {limit} bytes, the limit.", http_status=413
    )


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    version = int(text) if len(text) <= 19 else 2**63
    if version >= 2**63:
        raise invalid(f"Failed to convert version: {text[:64]} to numeric.")
    return version
