"""`:classify` and `:regress`: features in JSON or protobuf as the serialized `tf.Example` that a signature takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from defended.serving.artefacts.tensor_info import SignatureInfo
from defended.serving.server.errors import invalid
from defended.serving.server.json_answers import write_json
from defended.serving.server.json_tensors import decode_base64, is_base64, shown

if TYPE_CHECKING:
    from tensorflow_serving.apis import input_pb2

INPUTS, CLASSES, SCORES = "inputs", "classes", "scores"

_KIND_NAMES = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_JSON_NAMES = {type(None): "Null", bool: "True", list: "Array", dict: "Object"}


def require_classification(name: str, signature: SignatureInfo) -> None:
    """Refuse a signature that is not a classification: serialized examples in, classes or scores or both out.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs or signature.inputs[INPUTS].dtype != "string":
        raise invalid(f"No classification inputs found in SignatureDef: {name}")
    if not {CLASSES, SCORES} & set(signature.outputs):
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}". '
            f"Signature was: {name}"
        )


def require_regression(name: str, signature: SignatureInfo) -> None:
    """Refuse a signature that is not a regression: serialized examples in, one number each out.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if INPUTS not in signature.inputs or signature.inputs[INPUTS].dtype != "string":
        raise invalid(f"No regression inputs found in SignatureDef: {name}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {name}")


def examples_from_json(document: Mapping[str, Any], method: str) -> np.ndarray:
    """Return the serialized examples of a `:classify` or `:regress` request, objects `[n]`.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    from tensorflow.core.example.example_pb2 import Example

    context = Example()
    if "context" in document:
        _fill(document["context"], context)
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {shown(document)} When method is {method}, key 'examples' is expected and was not found"
        )
    listed = document["examples"]
    if not isinstance(listed, list):
        raise invalid(f"JSON Value: {shown(document)} Expecting 'examples' value to be an list/array")
    if not listed:
        raise invalid(f"JSON Value: {shown(document)} 'examples' value is an empty array")
    prefix = context.SerializeToString()
    found = np.empty(len(listed), object)
    for number, record in enumerate(listed):
        example = Example()
        _fill(record, example)
        found[number] = prefix + example.SerializeToString()  # as in protobuf, the concatenation is the merge
    return found


def examples_from_proto(given: input_pb2.Input) -> np.ndarray:
    """Return the serialized examples of an `Input` message, objects `[n]`.

    Raises:
        ServingError: INVALID_ARGUMENT: there are none.
    """
    with_context = given.example_list_with_context  # of the two lists, the one that was not sent reads as empty
    prefix = with_context.context.SerializeToString()
    examples = with_context.examples or given.example_list.examples
    if not examples:
        raise invalid("Input is empty.")
    found = np.empty(len(examples), object)
    found[:] = [prefix + example.SerializeToString() for example in examples]
    return found


def classifications(outputs: Mapping[str, np.ndarray]) -> list[list[tuple[bytes, float]]]:
    """Return the classes of each example with their scores; "" or 0 for what the signature does not give.

    Raises:
        ServingError: INVALID_ARGUMENT: the outputs are not a classification.
    """
    for name in (CLASSES, SCORES):
        if name in outputs and outputs[name].ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(outputs[name].shape)}")
    shape = next(outputs[name].shape for name in (CLASSES, SCORES) if name in outputs)
    classes = outputs.get(CLASSES, np.full(shape, b"", object))
    scores = outputs.get(SCORES, np.zeros(shape, np.float32))
    if classes.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return [list(zip(labels, numbers, strict=True)) for labels, numbers in zip(classes, scores.tolist(), strict=True)]


def write_classifications(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Return the body that answers a `:classify` request."""
    results = [
        [[label.decode("utf-8", "replace"), np.float32(score)] for label, score in row]
        for row in classifications(outputs)
    ]
    return write_json({"results": results})


def write_regressions(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Return the body that answers a `:regress` request."""
    return write_json({"results": list(outputs["outputs"].reshape(-1))})


def _fill(record: Any, example: Any) -> None:
    if not isinstance(record, dict):
        kind = _JSON_NAMES.get(type(record), "String" if isinstance(record, str) else "Number")
        raise invalid(f"Example must be JSON object but got JSON {kind}")
    for name, content in record.items():
        feature = example.features.feature[name.encode("utf-8", "replace").decode()]
        for value in content if isinstance(content, list) else (content,):
            _append(name, value, feature)


def _append(name: str, value: Any, feature: Any) -> None:
    if isinstance(value, bool | int):
        if not -(2**63) <= int(value) < 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        _of_kind(name, feature, "int64_list").append(int(value))
    elif isinstance(value, float):
        with np.errstate(over="ignore"):
            _of_kind(name, feature, "float_list").append(float(np.float32(value)))
    elif isinstance(value, str):
        _of_kind(name, feature, "bytes_list").append(value.encode("utf-8", "replace"))
    elif is_base64(value):
        _of_kind(name, feature, "bytes_list").append(decode_base64(value))
    else:
        kind = _JSON_NAMES.get(type(value), "Object")
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind}")


def _of_kind(name: str, feature: Any, kind: str) -> Any:
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {_KIND_NAMES[present]}")
    return getattr(feature, kind).value
