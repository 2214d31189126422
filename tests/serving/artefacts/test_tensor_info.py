"""What the loader, the server and the clients share: the table of dtypes, checks of inputs, names of versions."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from defended.serving.artefacts.inputs import require_float32, run_in_batches
from defended.serving.artefacts.manifest import versions_below
from defended.serving.artefacts.tensor_info import BY_DTYPE, BY_NAME, BY_NUMBER, TYPES, TensorInfo, word_of


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.word)
def test_the_table_of_dtypes_is_tensorflows(kind):
    assert types_pb2.DataType.Name(kind.number) == f"DT_{kind.word.upper()}"
    assert np.dtype(tf.as_dtype(kind.number).as_numpy_dtype) == kind.dtype
    message = tensor_pb2.TensorProto(dtype=kind.number)
    getattr(message, kind.field).append(b"1" if kind.name == "string" else 1)
    array = tf.make_ndarray(message)
    assert (array.dtype, array.tolist()) == (kind.dtype, b"1" if kind.name == "string" else 1)
    assert BY_NUMBER[kind.number] is BY_DTYPE[array.dtype] is BY_NAME[kind.name] is kind
    assert TensorInfo(kind.name, ()).numpy_dtype == kind.dtype


def test_a_dtype_outside_the_table_keeps_its_name():
    assert (word_of("float32"), word_of("string"), word_of("complex64")) == ("float", "string", "complex64")


def test_many_inputs_run_in_batches_and_no_inputs_once():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return {"twice": 2 * batch}

    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(run_in_batches(run, x, 3)["twice"], 2 * x)
    assert run_in_batches(run, x[:0], 3)["twice"].shape == (0, 2)
    assert sizes == [3, 3, 1, 0]


@pytest.mark.parametrize(("x", "received"), [(np.zeros(2), "float64 array"), ([0.0], "list")])
def test_only_arrays_of_float32_are_inputs(x, received):
    require_float32(np.zeros((0, 3), np.float32))
    with pytest.raises(TypeError, match=f"Received: {received}"):
        require_float32(x)


def test_versions_are_named_by_positive_int64(tmp_path):
    for name in ("1", "20", "0", "-3", "v4", "5.0", "٦", str(2**63 - 1), str(2**63), "9" * 30):
        (tmp_path / name).mkdir()
    assert versions_below(tmp_path) == {number: tmp_path / str(number) for number in (1, 20, 2**63 - 1)}
    (tmp_path / "file").write_text("")
    assert versions_below(tmp_path / "missing") == versions_below(tmp_path / "file") == {}
