"""Warm-up records: requests that TensorFlow Serving runs on a model before it answers clients.

The first run of a graph allocates and plans; without these, the first client waits for it. The server reads them from
`assets.extra/tf_serving_warmup_requests`, PredictionLog messages in a TFRecord file, at most 1000.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from defended.exceptions import MissingExtraError
from defended.serving.artefacts.allowed_ops import CLASSIFY
from defended.serving.artefacts.tf_example import example_protos

EXTRA = "assets.extra"
"""The folder of a SavedModel from which a server loads nothing but the warm-up records."""

WARM_UP = f"{EXTRA}/tf_serving_warmup_requests"
BATCH_SIZES = (1, 8, 32)


def write_warm_up(directory: Path, name: str, sample: np.ndarray, sizes: tuple[int, ...] = BATCH_SIZES) -> int:
    """Write warm-up records for `serving_default` and `classify`.

    Args:
        directory: the artefact's directory.
        name: the model's name in the server's routes.
        sample: float32 `[n, *input_shape]`, the inputs to send; repeated where a batch needs more.
        sizes: the batch sizes to send, once for each signature.

    Returns:
        The number of records.

    Raises:
        MissingExtraError: tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise MissingExtraError(
            "Warm-up records need tensorflow-serving-api: pip install 'keras-defended[serving]'."
        ) from error
    import tensorflow as tf

    logs = []
    for size in sizes:
        x = np.resize(sample, (size, *sample.shape[1:]))
        predict = predict_pb2.PredictRequest()
        predict.model_spec.name, predict.model_spec.signature_name = name, "serving_default"
        predict.inputs["image"].CopyFrom(tf.make_tensor_proto(x))
        logs.append(prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=predict)))
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name, classify.model_spec.signature_name = name, CLASSIFY
        classify.input.example_list.examples.extend(example_protos(x))
        logs.append(prediction_log_pb2.PredictionLog(classify_log=prediction_log_pb2.ClassifyLog(request=classify)))
    path = directory / WARM_UP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return len(logs)
