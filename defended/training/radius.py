"""Callbacks that move the training radius: schedules for it and for TRADES, and radius doubling."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from defended._io import atomic_write_text
from defended.arguments import number_in, number_not_negative, one_of
from defended.defended_model import DefendedModel
from defended.training import metrics
from defended.training.schedules import SCHEDULES, interpolate


class _Scheduled(keras.callbacks.Callback):
    """Sets a scale of the model by the numbers of the epoch and the batch alone, so that `fit` can resume."""

    scale: str
    """The model's variable; 1 after training."""

    def __init__(
        self, schedule: str = "linear", start: float = 0.0, end: float = 1.0, ramp: float = 0.5, by_batch: bool = False
    ):
        super().__init__()
        self.schedule = one_of("schedule", schedule, SCHEDULES)
        self.start, self.end = number_not_negative("start", start), number_not_negative("end", end)
        self.ramp = number_in("ramp", ramp, "(0, 1]")
        self.by_batch = bool(by_batch)
        self._epoch = 0

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, DefendedModel):
            raise TypeError(f"{type(self).__name__} works on a `DefendedModel`. Received: {type(model).__name__}")
        super().set_model(model)

    def value(self, epoch: int, epochs: int, done: float = 1.0) -> float:
        """Return the value for an epoch, counted from 0, of which the share `done` has passed."""
        moving = max(self.ramp * epochs, 1.0)
        return interpolate(self.schedule, self.start, self.end, (epoch + done) / moving)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._assign(self.value(epoch, self.params.get("epochs") or 1))

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps = self.params.get("steps")
        if self.by_batch and steps:
            self._assign(self.value(self._epoch, self.params.get("epochs") or 1, batch / steps))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._assign(1.0)

    def _assign(self, value: float) -> None:
        getattr(self.model, self.scale).assign(value)


class EpsilonSchedule(_Scheduled):
    """Move the training radius from a small one to the full one; `model.epsilon` itself stays what is defended.

    Args:
        schedule: `"fixed"`, `"linear"` or `"log"` (see `schedules.interpolate`).
        start: training radius at the beginning, as a multiple of `model.epsilon`.
        end: training radius from the end of the ramp on, as a multiple of `model.epsilon`.
        ramp: share of the epochs spent moving.
        by_batch: move with every batch instead of every epoch: interval bounds, loose at first, need small steps.
    """

    scale = "radius_scale"


class TradesSchedule(_Scheduled):
    """Move the weight of the robust term of `losses.Trades`, as a multiple of the loss's own weight.

    Args: as for `EpsilonSchedule`.
    """

    scale = "robust_weight_scale"


class RadiusDoubling(EpsilonSchedule):
    """Train at 2 eps, defend at eps (section 4.1 of Leino et al. 2022).

    A point certified at 2 eps cannot be degraded within eps. So the training radius goes to 2 eps, while every epoch's
    validation measures, in the epoch's logs:

    - `val_vra`, `val_vra_2eps`: verified-robust accuracy at eps and at 2 eps;
    - `val_rejection_rate`: at eps;
    - `val_fpr_upper`: upper bound on the false positive rate at eps.

    The weights of the epoch with the best `val_vra_2eps`, of equals the last, are put back at the end (without
    validation data: the last ones). The model defends at eps throughout, and `fit` then proves its bounds.

    Args:
        epsilon: the radius to defend at run time; None keeps `model.epsilon`.
        schedule: how the training radius reaches 2 eps: `"fixed"`, `"linear"` or `"log"`.
        start: training radius at the beginning, as a multiple of eps.
        ramp: share of the epochs spent moving.
        by_batch: see `EpsilonSchedule`.
        checkpoint: path of a `.weights.h5` file that holds the best weights so far (beside it, a `.json` file with
            their value), so that a run that died goes on with its best. None keeps them in memory only.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        schedule: str = "linear",
        *,
        start: float = 0.0,
        ramp: float = 0.5,
        by_batch: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
    ):
        super().__init__(schedule, start=start, end=2.0, ramp=ramp, by_batch=by_batch)
        if checkpoint is not None and not str(checkpoint).endswith(".weights.h5"):
            raise ValueError(f"`checkpoint` must end in '.weights.h5'. Received: {checkpoint}")
        self.epsilon = epsilon
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.best: float = -1.0
        self.best_epoch: int | None = None
        self._weights: list[np.ndarray[Any, Any]] | None = None

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        with model._strategy_scope():
            monitors = ["vra", metrics.VRA(2.0), "rejection_rate", "fpr_upper"]
            model.monitor(metrics.resolve_metrics(monitors, model))

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.epsilon is not None:
            self.model.epsilon = self.epsilon
        self.best, self.best_epoch, self._weights = -1.0, None, None
        if self.checkpoint is not None and _record(self.checkpoint).exists():
            record = json.loads(_record(self.checkpoint).read_text())
            self.best, self.best_epoch = float(record["val_vra_2eps"]), int(record["epoch"])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        value = (logs or {}).get("val_vra_2eps")
        if value is None or not value >= self.best:  # of equals the last: few validation points tie often
            return
        self.best, self.best_epoch = float(value), epoch
        if self.checkpoint is None:
            self._weights = self.model.get_weights()
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_name("." + self.checkpoint.name)
        self.model.save_weights(beside, overwrite=True)
        os.replace(beside, self.checkpoint)
        atomic_write_text(_record(self.checkpoint), json.dumps({"epoch": epoch, "val_vra_2eps": self.best}) + "\n")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.best_epoch is None:
            warnings.warn(
                "RadiusDoubling had no validation data to choose the best epoch by; the last weights are kept. "
                "Pass `validation_data` or `validation_split` to `fit`.",
                stacklevel=2,
            )
        elif self.checkpoint is not None:
            self.model.load_weights(self.checkpoint)
        elif self._weights is not None:
            self.model.set_weights(self._weights)
        if self.epsilon is not None:
            self.model.epsilon = self.epsilon
        self.model.monitor([])
        super().on_train_end(logs)


def _record(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")
