"""Export of a defended model, verified loading of what was exported, and its audit.

path = export(model, "models", name="digits", version=1)
with load(path) as artefact:
    artefact.verdicts(x)
audit(path, x, y, model=model).write("report")
"""

if __name__ != "defended.serving":
    raise ImportError(
        f"`{__name__}` is a part of `defended`: write `from defended import serving` or `import defended.serving`. "
        "In a clone, install first: pip install -e ."
    )

# TensorFlow, matplotlib and jinja2 are imported where they are used, so this import stays light.
from typing import Any

from defended._moved import moved_attribute
from defended.exceptions import (
    AgreementError,
    ArtefactError,
    ClientError,
    ConditionsError,
    CppLoaderError,
    EditedFileWarning,
    EndpointError,
    ForbiddenOpError,
    RecordError,
    RequestLogError,
    SignatureError,
    StateError,
)
from defended.serving.artefacts.artefact import Artefact, load, verify
from defended.serving.artefacts.onnx_model import OnnxModel, load_onnx
from defended.serving.artefacts.signing import generate_key, sign
from defended.serving.auditing.audit import audit
from defended.serving.auditing.black_box import BlackBox
from defended.serving.auditing.conditions import Condition, read_conditions
from defended.serving.auditing.record import AuditRecord, read_record
from defended.serving.auditing.replay import Attacked
from defended.serving.auditing.report import AuditReport
from defended.serving.auditing.targets import Endpoint
from defended.serving.clients.client import Client
from defended.serving.clients.logged_answers import LoggedAnswer, read_request_log
from defended.serving.clients.request_log import RequestLog
from defended.serving.exporting.deployment_files import write_serving_files
from defended.serving.exporting.export import export, next_version
from defended.serving.exporting.onnx_export import export_onnx
from defended.serving.monitoring.rejection_monitor import Alarm, RejectionMonitor

__all__ = [
    "export",
    "next_version",
    "load",
    "Artefact",
    "verify",
    "write_serving_files",
    "generate_key",
    "sign",
    "export_onnx",
    "load_onnx",
    "OnnxModel",
    "audit",
    "AuditReport",
    "Client",
    "RequestLog",
    "read_request_log",
    "LoggedAnswer",
    "Attacked",
    "BlackBox",
    "Endpoint",
    "Condition",
    "read_conditions",
    "AuditRecord",
    "read_record",
    "RejectionMonitor",
    "Alarm",
    "AgreementError",
    "ArtefactError",
    "ConditionsError",
    "CppLoaderError",
    "EndpointError",
    "ForbiddenOpError",
    "RequestLogError",
    "SignatureError",
    "EditedFileWarning",
    "ClientError",
    "RecordError",
    "StateError",
]


def __getattr__(name: str) -> Any:
    """Give modules by the names that they had."""
    return moved_attribute("defended.serving", name)
