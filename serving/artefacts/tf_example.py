"""Inputs as `tf.Example` records, which the signature `classify` takes."""

from __future__ import annotations

from typing import Any

import numpy as np

FEATURE = "image"
"""The feature that holds an input's values, flattened in C order, as floats."""


def serialized_examples(x: np.ndarray) -> np.ndarray:
    """Return inputs `[n, ...]` float32 as `[n]` serialized records, `bytes` in an array of objects."""
    return np.array([record.SerializeToString() for record in example_protos(x)], object)


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
