"""TensorFlow Serving's gRPC services: PredictionService, ModelService, and gRPC's own health check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext as Context
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from defended.exceptions import Code, ServingError
from defended.serving.server import classification
from defended.serving.server.descriptions import metadata_message, status_message
from defended.serving.server.errors import invalid
from defended.serving.server.inference import Call, Inference
from defended.serving.server.models import DEFAULT_SIGNATURE, ModelVersion
from defended.serving.server.security import bearer_is, grpc_credentials
from defended.serving.server.tensors import read_tensor, write_tensor

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
"""TensorFlow's names of the methods that take examples."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_SECONDS_OF_A_CONNECTION = 600
_STREAMS_OF_A_CONNECTION = 64

Method = Callable[[Any, Any, Call], Awaitable[Any]]


class GrpcApi:
    """The methods of the two services; each takes the request's message, its context and its `Call`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._settings = inference.settings
        self.health = health.aio.HealthServicer()

    def server(self) -> grpc.aio.Server:
        """Return a server with all services, not bound to a port yet."""
        server = grpc.aio.server(
            maximum_concurrent_rpcs=2 * self._settings.max_requests,
            options=(
                ("grpc.max_receive_message_length", self._settings.max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _STREAMS_OF_A_CONNECTION),
                ("grpc.max_connection_age_ms", 1000 * _SECONDS_OF_A_CONNECTION),
                ("grpc.max_connection_age_grace_ms", int(1000 * self._settings.timeout)),
                ("grpc.server_handshake_timeout_ms", int(1000 * self._settings.read_timeout)),
                ("grpc.so_reuseport", 0),
            ),
        )
        prediction = {
            "Predict": (self.predict, PredictRequest),
            "GetModelMetadata": (self.metadata, GetModelMetadataRequest),
            "Classify": (self.classify, ClassificationRequest),
            "Regress": (self.regress, RegressionRequest),
            "MultiInference": (self.multi_inference, MultiInferenceRequest),
        }
        management = {
            "GetModelStatus": (self.status, GetModelStatusRequest),
            "HandleReloadConfigRequest": (self.reload, ReloadConfigRequest),
        }
        for service, methods in ((PREDICTION_SERVICE, prediction), (MODEL_SERVICE, management)):
            handlers = {name: self._handler(name, *method) for name, method in methods.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        return server

    def bind(self, server: grpc.aio.Server, host: str, port: int) -> int:
        """Listen, with TLS where the settings say so; return the port.

        Raises:
            OSError: the port is taken, or gRPC cannot listen for another reason.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = grpc_credentials(self._settings.certificate, self._settings.key)
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: is the port taken? ({error})") from error

    async def set_serving(self, serving: bool) -> None:
        """Set what health checks answer."""
        states = health_pb2.HealthCheckResponse
        for service in ("", PREDICTION_SERVICE, MODEL_SERVICE):
            await self.health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def predict(self, request: PredictRequest, context: Context, call: Call) -> PredictResponse:
        """Answer `Predict`."""
        served = self._inference.resolved(call, *_spec(request))
        signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature not in served.signatures:
            raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        info = served.signatures[signature]
        wanted = _filtered(request.output_filter, info.outputs)
        inputs = {
            name: read_tensor(name, tensor, info.inputs[name], self._settings.max_rows)
            if name in info.inputs
            else np.empty(0)  # refused below, with the names that the signature has
            for name, tensor in request.inputs.items()
        }
        outputs = await self._inference.answer(served, signature, inputs, context.time_remaining())
        response = PredictResponse()
        _fill_spec(response.model_spec, served, signature)
        for name in wanted:
            write_tensor(outputs[name], response.outputs[name])
        return response

    async def classify(self, request: ClassificationRequest, context: Context, call: Call) -> ClassificationResponse:
        """Answer `Classify`."""
        response = ClassificationResponse()
        await self._answer_examples(CLASSIFY, request, request.input, context, call, response, response.result)
        return response

    async def regress(self, request: RegressionRequest, context: Context, call: Call) -> RegressionResponse:
        """Answer `Regress`, where a model has such a signature."""
        response = RegressionResponse()
        await self._answer_examples(REGRESS, request, request.input, context, call, response, response.result)
        return response

    async def multi_inference(
        self, request: MultiInferenceRequest, context: Context, call: Call
    ) -> MultiInferenceResponse:
        """Answer `MultiInference`: several signatures of one model on the same examples."""
        if not request.tasks:
            raise invalid("Inference request must have at least one task.")
        names = [task.model_spec.name for task in request.tasks]
        if len(set(names)) > 1:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        signatures = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in request.tasks]
        for number, signature in enumerate(signatures):
            if signature in signatures[:number]:
                raise invalid(f"Duplicate evaluation of signature: {signature}")
        for task in request.tasks:
            if task.method_name not in (CLASSIFY, REGRESS):
                raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        response = MultiInferenceResponse()
        for task in request.tasks:
            result = response.results.add()
            kind = result.classification_result if task.method_name == CLASSIFY else result.regression_result
            await self._answer_examples(task.method_name, task, request.input, context, call, result, kind)
        return response

    async def metadata(
        self, request: GetModelMetadataRequest, context: Context, call: Call
    ) -> GetModelMetadataResponse:
        """Answer `GetModelMetadata`."""
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        return metadata_message(self._inference.resolved(call, *_spec(request)))

    async def status(self, request: GetModelStatusRequest, context: Context, call: Call) -> GetModelStatusResponse:
        """Answer `GetModelStatus`."""
        name, version, label = _spec(request)
        call.model = name
        return status_message(self._inference.store.status(name, version, label))

    async def reload(self, request: ReloadConfigRequest, context: Context, call: Call) -> ReloadConfigResponse:
        """Answer `HandleReloadConfigRequest`: set labels of served models. The folder decides what is served."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        configs = request.config.model_config_list.config
        if any(config.base_path for config in configs):
            raise ServingError(
                Code.PERMISSION_DENIED,
                "`base_path` cannot be set from outside: models are added in the server's folder.",
            )
        self._inference.store.assign_labels({config.name: dict(config.version_labels) for config in configs})
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response

    async def _answer_examples(
        self, method: str, asked: Any, given: Any, context: Any, call: Call, response: Any, result: Any
    ) -> None:
        """Run the signature that `asked` names on the examples `given`; fill `response.model_spec` and `result`."""
        served = self._inference.resolved(call, *_spec(asked))
        signature = asked.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature not in served.signatures:
            raise invalid(f"No signature was found with the name: {signature}")
        require, fill = {
            CLASSIFY: (classification.require_classification, _fill_classifications),
            REGRESS: (classification.require_regression, _fill_regressions),
        }[method]
        require(signature, served.signatures[signature])
        inputs = {classification.INPUTS: classification.examples_from_proto(given)}
        outputs = await self._inference.answer(served, signature, inputs, context.time_remaining())
        _fill_spec(response.model_spec, served, signature)
        fill(result, outputs)

    def _handler(self, name: str, method: Method, message: Any) -> grpc.RpcMethodHandler:
        async def handle(body: bytes, context: Any) -> bytes:
            call = Call("gRPC", name)
            try:
                with self._inference.admitted(call):
                    metadata = dict(context.invocation_metadata())
                    if not bearer_is(self._settings.token, metadata.get("authorization")):
                        raise ServingError(
                            Code.UNAUTHENTICATED, "A bearer token is needed in the metadata authorization."
                        )
                    try:
                        request = message.FromString(body)
                    except DecodeError:
                        raise invalid(f"The request cannot be parsed as {message.DESCRIPTOR.name}.") from None
                    return (await method(request, context, call)).SerializeToString()
            except ServingError as error:
                failure = error
            return await context.abort(_STATUS[failure.code.number], failure.message)

        return grpc.unary_unary_rpc_method_handler(handle)


def _spec(request: Any) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


def _fill_spec(spec: Any, served: ModelVersion, signature: str) -> None:
    spec.name, spec.signature_name = served.name, signature
    spec.version.value = served.version


def _fill_classifications(result: Any, outputs: Mapping[str, np.ndarray]) -> None:
    for row in classification.classifications(outputs):
        listed = result.classifications.add()
        for label, score in row:
            listed.classes.add(label=label.decode("utf-8", "replace"), score=score)


def _fill_regressions(result: Any, outputs: Mapping[str, np.ndarray]) -> None:
    for value in outputs["outputs"].reshape(-1).tolist():
        result.regressions.add(value=value)


def _filtered(wanted: Any, offered: Any) -> list[str]:
    for number, name in enumerate(wanted):
        if name not in offered:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{','.join(sorted(offered))}}}."
            )
        if name in wanted[:number]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return list(wanted) or list(offered)
