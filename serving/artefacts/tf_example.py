"""Inputs as `tf.Example` records, which the signature `classify` takes."""

from __future__ import annotations

from typing import Any

import numpy as np

FEATURE = "image"
"""The feature that holds an input's values, flattened in C order, as floats."""


def serialized_examples(x: np.ndarray) -> np.ndarray:
    """Return inputs `[n, ...]` float32 as `[n]` serialized records, `bytes` in an array of objects."""
    return np.array([record.SerializeToString() for record in example_protos(x)], object)


def inputs_of(records: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return the inputs that serialized records `[n]` hold, `[k, *shape]` float32, those of another size left out."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    size, rows = int(np.prod([axis or 0 for axis in shape])), []
    for record in records.reshape(-1):
        try:
            values = example_pb2.Example.FromString(record).features.feature[FEATURE].float_list.value
        except DecodeError:
            continue
        if len(values) == size:
            rows.append(np.fromiter(values, np.float32, size))
    return np.array(rows, np.float32).reshape(-1, *(axis or 0 for axis in shape))


def example_protos(x: np.ndarray) -> list[Any]:
    """Return inputs `[n, ...]` float32 as `tf.train.Example` messages."""
    from tensorflow.core.example import example_pb2, feature_pb2

    return [
        example_pb2.Example(
            features=feature_pb2.Features(
                feature={FEATURE: feature_pb2.Feature(float_list=feature_pb2.FloatList(value=row.reshape(-1)))}
            )
        )
        for row in x
    ]
