"""Status and metadata of models, as TensorFlow Serving's messages and in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from defended.exceptions import Code
from defended.serving.server.json_answers import write_json
from defended.serving.server.models import ModelVersion
from defended.serving.server.store import VersionState


def status_message(states: Mapping[int, VersionState]) -> get_model_status_pb2.GetModelStatusResponse:
    """Return a `GetModelStatusResponse`; a version that was refused has ended, with the reason as its error."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state in states.items():
        entry = response.model_version_status.add(version=version, state=state.state)
        if state.error:
            entry.status.error_code = Code.FAILED_PRECONDITION.number
            entry.status.error_message = state.error
        else:
            entry.status.SetInParent()
    return response


def status_json(states: Mapping[int, VersionState]) -> bytes:
    """Return the JSON of `status_message`, fields at their defaults included."""
    return write_json(json_format.MessageToDict(status_message(states), always_print_fields_with_no_presence=True))


def metadata_message(served: ModelVersion) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Return a `GetModelMetadataResponse` with the signatures that are offered."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = served.name
    response.model_spec.version.value = served.version
    response.metadata["signature_def"].Pack(_signatures(served))
    return response


def metadata_json(served: ModelVersion) -> bytes:
    """Return the JSON of `metadata_message`, laid out as TensorFlow Serving does."""

    def as_dict(message: Any) -> dict[str, Any]:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    spec, signatures = as_dict(metadata_message(served).model_spec), as_dict(_signatures(served))
    return write_json({"model_spec": spec, "metadata": {"signature_def": signatures}})


def _signatures(served: ModelVersion) -> Any:
    return get_model_metadata_pb2.SignatureDefMap(signature_def=served.definitions)
