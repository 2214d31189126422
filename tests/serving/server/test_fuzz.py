"""Fuzzed bodies: whatever arrives, the answer is an answer or an error of TensorFlow Serving's shape, never a crash."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from defended.serving.artefacts.tensor_info import TensorInfo
from defended.serving.server.classification import examples_from_json
from defended.serving.server.errors import ServingError
from defended.serving.server.json_tensors import parse_json, read_tensors, signature_name
from defended.serving.server.tensors import read_tensor

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WANTED = {"image": TensorInfo("float32", (None, 2, 2))}

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
documents = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name", "examples", "context", "x"]), values, max_size=4
)


def require_refusal(error):
    assert error.http_status == 400
    assert error.message


def read(body):
    """What the server does with a body, up to the model: tensors, or a refusal."""
    try:
        document = parse_json(body)
        signature_name(document, "serving_default")
        return read_tensors(document, WANTED)[1]
    except ServingError as error:
        require_refusal(error)
        return None


@given(st.binary(max_size=300))
@QUICK
def test_bytes(body):
    read(body)


@given(documents)
@QUICK
def test_documents(document):
    tensors = read(json.dumps(document).encode("utf-8", "surrogatepass"))
    if tensors is not None:
        assert {name: array.dtype for name, array in tensors.items()} == {"image": np.float32}


@given(st.lists(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=2, max_size=2), min_size=1))
@QUICK
def test_what_is_right_is_read_to_the_last_bit(rows):
    x = np.array(rows, "float32")
    for key in ("instances", "inputs"):
        found = read(json.dumps({key: x.tolist()}).encode())["image"]
        np.testing.assert_array_equal(found, x)


@given(documents)
@QUICK
def test_examples(document):
    try:
        records = examples_from_json(document, "classify")
    except ServingError as error:
        require_refusal(error)
    else:
        assert all(isinstance(record, bytes) for record in records)


@given(
    dtype=st.integers(0, 30),
    sizes=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
    content=st.binary(max_size=40),
    numbers=st.lists(st.floats(width=32), max_size=8),
    unknown=st.booleans(),
)
@QUICK
def test_tensors(dtype, sizes, content, numbers, unknown):
    tensor = predict_pb2.PredictRequest().inputs["image"]
    tensor.dtype, tensor.tensor_content = dtype, content
    tensor.tensor_shape.unknown_rank = unknown
    tensor.float_val.extend(numbers)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    try:
        found = read_tensor("image", tensor, WANTED["image"], 16)
    except ServingError as error:
        require_refusal(error)
    else:
        assert found.dtype == np.float32
        assert found.shape[1:] == (2, 2)
        assert len(found) <= 16
