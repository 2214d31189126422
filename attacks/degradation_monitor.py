"""Susceptibility while training."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from defended import DefendedModel
from defended.attacks import checks
from defended.attacks.certificate_descent import CertificateDescent
from defended.attacks.checks import CertificateViolation
from defended.attacks.measure import susceptibility


class DegradationMonitor(keras.callbacks.Callback):
    """Bracket the false positive rate at `model.epsilon` on a sample, at the end of epochs.

    Adds `degradation_fpr_lower`, `degradation_fpr_upper` and `degradation_vra_under_attack` to the epoch's logs,
    where `History` and the callbacks after it (TensorBoard, CSVLogger) find them; epochs that are not measured have
    no such keys. Training is not disturbed: weights, radius and the state of the certificate stay as they are. While
    training the certificate rests on estimates, and so do these figures. Cost: one `susceptibility` of the sample
    each time.

    Args:
        x: `[n, *input shape]`, a validation sample.
        y: `[n]` class numbers, or one-hot rows.
        attack: see `susceptibility`; None for `CertificateDescent()`.
        every: measure every that many epochs.
        batch_size: see `susceptibility`.

    Attributes:
        results: by epoch (from 0), the figures of each measurement, see `Susceptibility.summary`.

    Raises:
        TypeError: when `attack` is not callable, or `fit` is that of another model than a `DefendedModel`.
        ValueError: when `every` is not a positive whole number, or at the start of `fit` for data that do not fit the
            model.
    """

    def __init__(self, x: Any, y: Any, attack: Any = None, *, every: int = 1, batch_size: int = 512):
        super().__init__()
        self.attack = CertificateDescent() if attack is None else attack
        if not callable(self.attack):
            raise TypeError(f"`attack` must be an attack, such as CertificateDescent(). Received: {attack!r}")
        self.every = checks.whole_number("every", every, 1)
        self.batch_size = checks.whole_number("batch_size", batch_size, 1)
        self.x, self.y = x, y
        self.results: dict[int, dict[str, Any]] = {}

    def set_model(self, model: Any) -> None:
        if not isinstance(model, DefendedModel):
            raise TypeError(f"DegradationMonitor measures a `DefendedModel`. Received: {type(model).__name__}")
        # Wrong data should fail before the first epoch is spent.
        points = checks.points(model, self.x, getattr(self.attack, "clip", None))
        checks.class_numbers(self.y, len(points), model.num_classes)
        super().set_model(model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self.every:
            return
        try:
            result = susceptibility(self.model, self.x, self.y, self.attack, batch_size=self.batch_size, progress=False)
        except CertificateViolation as violation:
            # Estimated bounds can be too low, above all early on; training goes on to better ones.
            if self.model.is_final:
                raise
            warnings.warn(f"Epoch {epoch + 1}, degradation not measured: {violation}", stacklevel=2)
            return
        self.results[epoch] = result.summary()
        if logs is not None:
            logs["degradation_fpr_lower"] = float(result.fpr_lower)
            logs["degradation_fpr_upper"] = float(result.fpr_upper)
            logs["degradation_vra_under_attack"] = float(result.vra_under_attack)
