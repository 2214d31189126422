"""The layer that appends ⊥ to a classifier's logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from defended.margins import bottom_score, finite_rows


@keras.saving.register_keras_serializable(package="defended")
class RejectionHead(keras.layers.Layer):
    """Append the score of ⊥ to logits (Algorithm 2.1 of Leino et al. 2022).

    Call arguments:
        logits: `[batch, m]`.
        slack: `[batch]`, certified slack of each input in units of the logits; positive means certified.
        valid: `[batch]` bool, optional; False forces ⊥ (used for inputs that are not finite).

    Returns:
        `[batch, m + 1]`: the logits and, last, `max(logits) - slack`. `argmax` is m exactly where the input is
        rejected: where the slack is 0, negative or NaN, where a logit is not finite, and where `valid` is False.
        Rejected rows whose logits are not finite are replaced by zeros with a score of 1 for ⊥, so no NaN leaves the
        layer.
    """

    def __init__(self, **kwargs: Any):
        # Rounded to half precision, logits that differ would tie, and ⊥ would be one of them.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})

    def call(self, logits: Any, slack: Any, valid: Any = None) -> Any:
        finite = finite_rows(logits)
        if valid is not None:
            finite = ops.logical_and(finite, valid)
        logits = ops.where(finite[:, None], logits, 0.0)
        slack = ops.where(finite, slack, -1.0)
        bottom = bottom_score(ops.max(logits, axis=-1), slack)
        return ops.concatenate([logits, bottom[:, None]], axis=-1)

    def build(self, input_shape: Any) -> None:
        """Note the shape of the logits, `[batch, m]`, for `summary`; there are no weights."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], input_shape[-1] + 1)
