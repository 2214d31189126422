"""A coverage-guided campaign against the server's readers: whatever bytes arrive, a tensor or a refusal, never a crash.

    pip install atheris
    python benchmarks/fuzz.py [--seconds 300] [--corpus FOLDER]

The first byte chooses the reader: JSON of a prediction, JSON of tf.Examples, a PredictRequest's tensor. What is read
must have the type that the model takes, and a refusal the shape of TensorFlow Serving's errors. A crash is written
by libFuzzer to a file beside the corpus, and the command's exit code is not 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["defended.serving.server"]):
    from defended.serving.server import classification, json_tensors, tensors
    from defended.serving.server.errors import ServingError

from tensorflow_serving.apis import predict_pb2

from defended.serving.artefacts.tensor_info import TensorInfo

WANTED = {"image": TensorInfo("float32", (None, 2, 2))}
MAX_ROWS = 8
SEEDS = (
    b'\x00{"instances": [[[0.5, 1], [2, 3e0]]]}',
    b'\x00{"inputs": {"image": [[[1, 2], [3, NaN]]]}, "signature_name": "audit"}',
    b'\x00{"instances": [{"image": {"b64": "AAAA"}}]}',
    b'\x01{"examples": [{"image": [1.0, 2.0]}], "context": {"x": "y"}}',
)


def one_input(data: bytes) -> None:
    """Read one body as the server does, up to the model."""
    kind, body = data[:1], data[1:]
    try:
        if kind < b"\x55":
            document = json_tensors.parse_json(body)
            json_tensors.signature_name(document, "serving_default")
            array = json_tensors.read_tensors(document, WANTED)[1]["image"]
        elif kind < b"\xaa":
            records = classification.examples_from_json(json_tensors.parse_json(body), "classify")
            assert all(isinstance(record, bytes) for record in records)
            return
        else:
            request = predict_pb2.PredictRequest()
            request.ParseFromString(body)
            array = tensors.read_tensor("image", request.inputs["image"], WANTED["image"], MAX_ROWS)
    except DecodeError:
        return  # gRPC itself refuses what is no message
    except ServingError as error:
        if error.http_status != 400 or not error.message:
            raise RuntimeError(f"not a refusal of TensorFlow Serving's shape: {error!r}") from error
        return
    # The shape is compared with the model's where requests are merged, for both protocols alike.
    assert array.dtype == "float32", array.dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, help="keeps what reached new code, for the next campaign")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = arguments.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        tensor = predict_pb2.PredictRequest()
        tensor.inputs["image"].dtype = 1
        tensor.inputs["image"].float_val.extend([0.5] * 4)
        for size in (1, 2, 2):
            tensor.inputs["image"].tensor_shape.dim.add(size=size)
        for number, seed in enumerate((*SEEDS, b"\xff" + tensor.SerializeToString())):
            (corpus / f"seed{number}").write_bytes(seed)
        options = [f"-max_total_time={arguments.seconds}", "-max_len=4096", f"-artifact_prefix={corpus.parent}/crash-"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
