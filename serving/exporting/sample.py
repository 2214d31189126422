"""The inputs on which an exported graph is compared with its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

# Fewer where each takes thousands of evaluations.
_SAMPLES, _SAMPLES_WHERE_SAMPLED = 64, 4


def check_sample(model: DefendedModel, sample: np.ndarray | None) -> np.ndarray:
    """Inputs to compare a deployed graph with the model on: those given, checked, or random ones in [0, 1]."""
    shape = tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(f"`model` must have a fixed input shape to be certified. Received: {shape}.")
    if sample is None:
        number = _SAMPLES if model.sampling is None else _SAMPLES_WHERE_SAMPLED
        return np.random.default_rng(0).uniform(size=(number, *shape)).astype(np.float32)
    sample = np.asarray(sample)
    if sample.dtype != np.float32 or sample.shape[1:] != shape or sample.size == 0:
        raise ValueError(
            f"`sample` must be at least one float32 input of shape {list(shape)}, the batch axis first. "
            f"Received: {sample.dtype} of shape {list(sample.shape)}."
        )
    if not np.isfinite(sample).all():
        raise ValueError("`sample` must be finite. Received values that are not; leave those inputs out.")
    return sample
