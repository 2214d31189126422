"""An optimizer for certified training, and when optimizers make their variables."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras

from defended.arguments import number_not_negative


@keras.saving.register_keras_serializable(package="defended")
class BiasRateAdam(keras.optimizers.Adam):
    """Adam with a learning rate of its own for biases and other vectors: `bias_rate` times that of kernels.

    A bias is added at every position of a feature map, and what the certificate pays for rounding grows with it.

    Args:
        learning_rate: that of kernels; a number or a schedule.
        bias_rate: not negative; 1 is Adam.
        **kwargs: as for `keras.optimizers.Adam`.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        bias_rate: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        self.bias_rate = number_not_negative("bias_rate", bias_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        slower = self.bias_rate if len(variable.shape) < 2 else 1.0
        super().update_step(gradient, variable, learning_rate * slower)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bias_rate": self.bias_rate}


def make_variables(model: keras.Model) -> None:
    """Make the variables of a compiled model's optimizer, as its first step would.

    TensorFlow traces a step twice if its first trace makes variables, and tracing is what a short training takes.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or optimizer.built or not model.trainable_variables:
        return
    strategy = getattr(model, "distribute_strategy", None)
    with nullcontext() if strategy is None else strategy.scope():
        optimizer.build(model.trainable_variables)
