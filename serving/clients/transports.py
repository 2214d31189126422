"""How a client speaks to a server: REST over urllib3, or gRPC; one request each, without retries."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from defended.exceptions import ClientError, Code
from defended.serving.artefacts.tensor_info import TYPES, SignatureInfo, TensorInfo

_LARGEST_ANSWER = 2**28

# What the statuses of REST mean: of two codes that share one, the first; 413 is a proxy's or this project's server's.
_CODES = {code.http_status: code.name for code in reversed(Code)} | {413: "INVALID_ARGUMENT", 500: "INTERNAL"}


class RestTransport:
    """REST: JSON bodies in the column format, the shorter one, over connections that stay open.

    Every method of a transport raises `ClientError`.
    """

    def __init__(
        self, base: str, model: str, version: int | None, label: str | None, token: str | None, ca: Path | None,
        connections: int,
    ) -> None:  # fmt: skip
        import urllib3

        self._url = f"{base}/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._url += f"/versions/{version}"
        elif label is not None:
            self._url += f"/labels/{quote(label, safe='')}"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        tls: dict[str, Any] = {"ca_certs": str(ca)} if ca else {}
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False, **tls)

    def predict(self, x: np.ndarray, signature: str, info: SignatureInfo, seconds: float) -> dict[str, np.ndarray]:
        """Send one request, and return the outputs by name."""
        answer = self._ask("POST", f"{self._url}:predict", seconds, _body(x, signature))
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if not isinstance(outputs, dict):  # a single output comes without its name
            outputs = {next(iter(info.outputs)): outputs}
        try:
            return {name: _array(name, value, info.outputs) for name, value in outputs.items()}
        except (TypeError, ValueError) as error:
            raise ClientError("INTERNAL", f"The answer does not hold arrays: {error}") from error

    def status(self, seconds: float) -> dict[int, str]:
        """Return the state of each version."""
        answer = self._ask("GET", self._url, seconds)
        return {int(entry["version"]): entry["state"] for entry in answer["model_version_status"]}

    def metadata(self, seconds: float) -> dict[str, SignatureInfo]:
        """Return the signatures."""
        answer = self._ask("GET", f"{self._url}/metadata", seconds)
        return _signatures(answer["metadata"]["signature_def"]["signature_def"])

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _ask(self, method: str, url: str, seconds: float, body: bytes | None = None) -> Any:
        import urllib3

        end = time.monotonic() + seconds
        try:
            response = self._pool.request(
                method, url, body=body, headers=self._headers, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(total=seconds),
            )  # fmt: skip
            content = self._read(response, end)
        except urllib3.exceptions.TimeoutError as error:
            if isinstance(error, urllib3.exceptions.NewConnectionError):
                raise ClientError("UNAVAILABLE", f"No connection to {url}: {error}", is_retryable=True) from error
            raise ClientError("DEADLINE_EXCEEDED", f"{url} did not answer within {seconds:.3g} seconds.") from error
        except urllib3.exceptions.SSLError as error:
            raise ClientError(
                "UNAVAILABLE", f"No TLS connection to {url}: {error}. Does `ca` name the server's authority?"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise ClientError("UNAVAILABLE", f"No answer from {url}: {error}", is_retryable=True) from error
        if response.status != 200:
            code = _CODES.get(response.status, "INTERNAL")
            raise ClientError(
                code,
                _error_message(content, response.status),
                is_retryable=response.status in (429, 503),
                wait=_retry_after(response.headers.get("Retry-After")),
            )
        return _parsed(content)

    def _read(self, response: Any, end: float) -> bytes:
        parts, size = [], 0
        try:
            for part in response.stream(2**18):
                parts.append(part)
                size += len(part)
                if size > _LARGEST_ANSWER:
                    raise ClientError("INTERNAL", f"The answer is larger than {_LARGEST_ANSWER} bytes.")
                if time.monotonic() > end:
                    raise ClientError("DEADLINE_EXCEEDED", "The answer did not arrive in time.")
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return b"".join(parts)


class GrpcTransport:
    """gRPC: TensorFlow Serving's PredictionService and ModelService."""

    def __init__(
        self, address: str, secure: bool, model: str, version: int | None, label: str | None, token: str | None,
        ca: Path | None,
    ) -> None:  # fmt: skip
        import grpc
        from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc

        options = (
            ("grpc.max_receive_message_length", _LARGEST_ANSWER),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        )
        if secure:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes() if ca else None)
            self._channel = grpc.secure_channel(address, credentials, options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        choice: dict[str, Any] = {"version_label": label} if version is None else {"version": {"value": version}}
        self._spec = model_pb2.ModelSpec(name=model, **choice)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def predict(self, x: np.ndarray, signature: str, info: SignatureInfo, seconds: float) -> dict[str, np.ndarray]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        request.inputs[next(iter(info.inputs))].CopyFrom(tf.make_tensor_proto(x))
        response = self._call(self._predictions.Predict, request, seconds)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def status(self, seconds: float) -> dict[int, str]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        response = self._call(self._models.GetModelStatus, request, seconds)
        state = get_model_status_pb2.ModelVersionStatus.State
        return {entry.version: state.Name(entry.state) for entry in response.model_version_status}

    def metadata(self, seconds: float) -> dict[str, SignatureInfo]:
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        response = self._call(self._predictions.GetModelMetadata, request, seconds)
        found = get_model_metadata_pb2.SignatureDefMap()
        if not response.metadata["signature_def"].Unpack(found):
            raise ClientError("INTERNAL", "The server's metadata does not contain signatures.")
        return _signatures(json_format.MessageToDict(found, preserving_proto_field_name=True).get("signature_def", {}))

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any, seconds: float) -> Any:
        import grpc

        try:
            return method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            code = error.code()
            busy = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
            raise ClientError(code.name, error.details() or "no details", is_retryable=code in busy) from error


Transport = RestTransport | GrpcTransport


def _body(x: np.ndarray, signature: str) -> bytes:
    import orjson

    request = {"signature_name": signature, "inputs": x}
    if np.isfinite(x).all():
        return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps({**request, "inputs": x.tolist()}).encode()  # Python writes NaN and infinities


def _parsed(content: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClientError("INTERNAL", f"The answer is not JSON: {error}") from error


def _error_message(content: bytes, status: int) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"HTTP status {status}"


def _retry_after(header: str | None) -> float:
    return float(header) if header and header.isdecimal() and len(header) < 4 else 0.0


def _array(name: str, value: Any, infos: Mapping[str, TensorInfo]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(value, infos[name].numpy_dtype if name in infos else None)


def _signatures(definitions: Mapping[str, Any]) -> dict[str, SignatureInfo]:
    """Return signatures from their definitions in protobuf's JSON."""
    return {
        name: SignatureInfo(*(_infos(definition.get(side, {})) for side in ("inputs", "outputs")))
        for name, definition in definitions.items()
        if not name.startswith("__saved_model_")
    }


def _infos(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
    names = {f"DT_{kind.word.upper()}": kind.name for kind in TYPES}
    found = {}
    for name, tensor in sorted(tensors.items()):
        sizes = [int(axis.get("size", 0)) for axis in tensor.get("tensor_shape", {}).get("dim", [])]
        dtype = tensor.get("dtype", "DT_INVALID")
        found[name] = TensorInfo(names.get(dtype, dtype), tuple(None if size < 0 else size for size in sizes))
    return found
