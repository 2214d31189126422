"""Callbacks that rewrite the weights so that more is proven of the same function, during training and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from defended.arguments import whole_number
from defended.defended_model import DefendedModel
from defended.gloro.gloro_net import GloroNet
from defended.gloro.reparametrise.chain import is_chain
from defended.gloro.reparametrise.sharpen import sharpen_bounds


class SharpenBounds(keras.callbacks.Callback):
    """Sharpen the bounds during training: `sharpen_bounds` before every `every`-th epoch except the first.

    The radius that training sees is then closer to what the function could be certified for, so that training goes on
    where weights that are merely unsuitable would have held it back. A sharpened net is the same function in
    other coordinates, in which the optimizer's mean gradients mean nothing: they are set to 0.

    Args:
        every: epochs in between; at least 1.
        steps: those of `sharpen_bounds`. Fewer suffice than at the end of training.
    """

    def __init__(self, every: int = 5, steps: int = 8):
        super().__init__()
        self.every, self.steps = whole_number("every", every, 1), whole_number("steps", steps, 1)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        # At an epoch's beginning, so that a run that resumes there does what the one that was killed would have done.
        if epoch == 0 or epoch % self.every or sharpen_bounds(self.model, steps=self.steps) == 1.0:
            return
        for moments in getattr(self.model.optimizer, "_momentums", []):
            moments.assign(np.zeros(moments.shape))
        self.model._certificate.refine()


class SharpenAtEnd(keras.callbacks.Callback):
    """Sharpens the bounds once, when training ends: the same function, of which more is proven.

    A model that is no `GloroNet`, and a network that is not a chain of layers, are left as they are.
    """

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, DefendedModel):
            raise TypeError(f"SharpenAtEnd works on a `DefendedModel`. Received: {type(model).__name__}")
        super().set_model(model)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if isinstance(self.model, GloroNet) and is_chain(self.model):
            sharpen_bounds(self.model)
