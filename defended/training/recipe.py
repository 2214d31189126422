"""What `defended train` does besides stepping, as a list of callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from defended.arguments import one_of, positive_number
from defended.gloro.reparametrise.balance import BalanceLayers
from defended.training.radius import EpsilonSchedule, RadiusDoubling
from defended.training.sharp_bounds import SharpenAtEnd, SharpenBounds
from defended_settings.presets import KINDS, PRESETS, Kind
from defended_settings.training import TrainingSettings


def recipe(
    kind: Kind = "small-images", *, doubling: bool = True, learning_rate: float | None = None
) -> list[keras.callbacks.Callback]:
    """Return callbacks for `fit` that train as `defended train` does: rate, radius and bounds, for one kind of data.

    The learning rate falls linearly to a thousandth, batch by batch; the training radius rises to twice epsilon, and
    the epoch with the best VRA at 2 eps on the validation data is kept (`RadiusDoubling`), or without doubling to
    epsilon (`EpsilonSchedule`); and at the end, and on the way where the kind asks for it, the weights are rewritten so
    that more is proven of the same function (`sharpen_bounds`; a network that is not a chain is left as it is). Give
    `fit` validation data, and `compile` an optimizer whose learning rate is a number. The epochs and the loss of
    the recipe are 60 and `"trades_kl.1.5"` for small images, 100 and `"emma"` for colour images (augmented), and 100
    and `"trades_kl.1.5"` for tabular data; fewer epochs train less.

    Args:
        kind: `"small-images"` (digits, MNIST), `"colour-images"` (32x32, CIFAR-10), or `"tabular"` (standardised rows).
        doubling: train at twice the radius, which costs little and resists degradation.
        learning_rate: at the start, where it is not the kind's own.

    Raises:
        ValueError: for a kind of another name.

    Example:
        >>> model.compile("adam", loss="trades_kl.1.5", metrics=["clean_accuracy", "vra"])
        >>> model.fit(x, y, validation_split=0.1, epochs=60, callbacks=callbacks.recipe())
    """
    one_of("kind", kind, KINDS)
    settings = TrainingSettings(**{**PRESETS[kind], "doubling": doubling})
    rate = settings.learning_rate if learning_rate is None else learning_rate
    # Sharpening behind the radius, which puts the best epoch's weights back when training ends.
    return [FallingRate(rate), *steering(settings), *([SharpenAtEnd()] if settings.sharpen else [])]


def steering(settings: TrainingSettings, checkpoint: Path | None = None) -> list[keras.callbacks.Callback]:
    """Return what moves the training radius and the weights as the settings say, in order.

    Args:
        settings: of a run, or of a preset.
        checkpoint: where `RadiusDoubling` keeps the best weights.
    """
    ramp: dict[str, Any] = {"schedule": settings.schedule, "start": settings.start, "ramp": settings.ramp}
    found: list[keras.callbacks.Callback] = [
        RadiusDoubling(**ramp, checkpoint=checkpoint)
        if settings.doubling
        else EpsilonSchedule(**ramp, end=settings.train_radius)
    ]
    if settings.balance:
        found.append(BalanceLayers(settings.balance))
    if settings.sharpen_every:
        found.append(SharpenBounds(settings.sharpen_every))
    return found


class FallingRate(keras.callbacks.Callback):
    """Lets the learning rate fall linearly, batch by batch, to a thousandth of its first value.

    Args:
        first: the learning rate of the first batch; positive.

    Raises:
        ValueError: when training begins with an optimizer whose learning rate is a schedule.
    """

    def __init__(self, first: float):
        super().__init__()
        self.first = positive_number("first", first)
        self._epoch = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if isinstance(self.model.optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(
                "The optimizer has a schedule of its own, and this recipe lets the learning rate fall: compile with "
                "a number, such as `keras.optimizers.Adam(3e-3)` or 'adam'."
            )

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._assign(0.0)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps = self.params.get("steps")
        if steps:
            self._assign(batch / steps)

    def _assign(self, done: float) -> None:
        passed = (self._epoch + done) / max(self.params.get("epochs") or 1, 1)
        self.model.optimizer.learning_rate = self.first * (1 - 0.999 * min(passed, 1.0))
