"""Consistency regularisation: the base classifier should say the same whatever the noise."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from defended.arguments import number_not_negative


@keras.saving.register_keras_serializable(package="defended")
class Consistency(keras.losses.Loss):
    """How far predictions under m noise draws disagree, and how unsure they are together (Jeong & Shin 2020).

    With p_i the softmax under draw i and q their mean:

        weight * (1/m) Σ_i KL(q || p_i)  +  entropy_weight * H(q)

    A loss for `NoisyTrainer(consistency=...)`, on top of the cross-entropy.

    Args:
        weight: lambda, the factor of the divergence; not negative. The paper's experiments use 10, and 20 on CIFAR-10
            at sigma = 0.25.
        entropy_weight: eta, the factor of the entropy; not negative.

    In a call, `y_pred` are logits `[batch, m, classes]`; `y_true` is not used. The result is `[batch]` before
    reduction.

    Reference: Jeong & Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", 2020.
    """

    def __init__(self, weight: float = 10.0, entropy_weight: float = 0.5, name: str = "consistency", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.weight = number_not_negative("weight", weight)
        self.entropy_weight = number_not_negative("entropy_weight", entropy_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_p = ops.log_softmax(y_pred, axis=-1)
        # The logarithm of the mean from logarithms: no class's probability underflows to 0 before its logarithm.
        log_q = ops.logsumexp(log_p, axis=1) - math.log(y_pred.shape[1])
        q = ops.exp(log_q)
        entropy = -ops.sum(q * log_q, axis=-1)
        # (1/m) Σ KL(q || p_i) = Σ q log q - Σ q mean_i(log p_i)
        divergence = -entropy - ops.sum(q * ops.mean(log_p, axis=1), axis=-1)
        return self.weight * divergence + self.entropy_weight * entropy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight, "entropy_weight": self.entropy_weight}
