"""The graphs of an artefact: written, and compared with the model that they were made from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from defended._io import atomic_write_bytes
from defended.exceptions import AgreementError
from defended.serving.artefacts.allowed_ops import check_ops, check_parsing, list_ops
from defended.serving.artefacts.cpp_loader import CppSession
from defended.serving.artefacts.manifest import DriftRecord, OnnxRecord
from defended.serving.artefacts.tensor_info import SignatureInfo
from defended.serving.exporting.agreement import require_agreement, require_classification, require_rejection
from defended.serving.exporting.drift import fold, keras_outputs, measure_drift
from defended.serving.exporting.onnx_conversion import OPSET
from defended.serving.exporting.onnx_export import Converted, convert
from defended.serving.exporting.saved_model import save_graph
from defended.serving.exporting.warm_up import EXTRA

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

ONNX_FILE = f"{EXTRA}/model.onnx"

_BATCH = 256
_CLASSIFIED = 16


class Graphs(NamedTuple):
    """What was found out about the graphs that were written."""

    ops: tuple[str, ...]
    signatures: dict[str, SignatureInfo]
    score_drift: float
    drift: DriftRecord | None
    onnx: OnnxRecord | None


def build_graphs(
    model: DefendedModel, directory: Path, labels: Sequence[str], sample: np.ndarray, onnx: bool | str
) -> Graphs:
    """Write the graphs into a directory, compare them with the model, and let it pay for their drift.

    Args:
        model: a final model.
        directory: whatever it holds is removed.
        labels: the names of the classes.
        sample: float32 `[n, *input_shape]`, finite, to compare on.
        onnx: whether an ONNX file is written: True writes it where it can be made, "require" fails where it cannot.

    Raises:
        ImportError: what is required is not installed.
        ForbiddenOpError: the network holds an operation that an artefact may not hold.
        AgreementError, CppLoaderError: a graph does not answer as the model does, or does not load.
        OSError: the directory cannot be written.
    """
    before = model.evaluation_drift
    graphs = _write(model, directory, labels, sample, onnx)
    if graphs.drift is not None and fold(model, sample, graphs.drift):
        graphs = _write(model, directory, labels, sample, onnx)
        if graphs.drift is not None and fold(model, sample, graphs.drift):
            model.evaluation_drift = before
            raise AgreementError(
                f"The evaluations' drift grows with what is taken off for it: {graphs.drift.largest:.3g} now. "
                "Is one of them random, or in reduced precision?"
            )
    return graphs


def _write(
    model: DefendedModel, directory: Path, labels: Sequence[str], sample: np.ndarray, onnx: bool | str
) -> Graphs:
    """Write the graphs into an empty directory, or over those of an earlier attempt, and compare them."""
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    save_graph(model, directory, labels)
    ops, sampled = list_ops(directory), model.sampling is not None
    check_ops(ops, sampled=sampled, parsing=True)
    check_parsing(directory)
    converted, record = _onnx(model, directory, sample, onnx)
    with CppSession(directory) as session:
        served = session.run_batches("audit", sample, _BATCH)
        score_drift = require_agreement(model, sample, served)
        require_rejection(session, sample[:1], sampled)
        require_classification(session, sample[:_CLASSIFIED], labels, sampled)
        signatures = dict(session.signatures)
    drift = None
    if not sampled:
        evaluations: dict[str, Mapping[str, np.ndarray]] = {"keras": keras_outputs(model, sample), "tensorflow": served}
        if converted is not None:
            evaluations["onnxruntime"] = converted.outputs
        drift = measure_drift(model, sample, evaluations)
    return Graphs(ops, signatures, score_drift, drift, record)


def _onnx(
    model: DefendedModel, directory: Path, sample: np.ndarray, mode: bool | str
) -> tuple[Converted | None, OnnxRecord | None]:
    if not mode:
        return None, None
    try:
        converted = convert(model, sample)
    except (ImportError, ValueError) as error:
        if mode == "require" or isinstance(error, AgreementError):
            raise
        return None, OnnxRecord(file=None, opset=None, omitted=reason(error))
    atomic_write_bytes(directory / ONNX_FILE, converted.content)
    return converted, OnnxRecord(file=ONNX_FILE, opset=OPSET, omitted=None)


def reason(error: BaseException) -> str:
    """Return an error's message on one line, at most 500 characters of it, for the manifest."""
    return " ".join(str(error).split())[:500]
