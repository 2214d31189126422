"""Susceptibility while training."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import keras
from numpy.typing import ArrayLike

from defended.arguments import positive_number, whole_number
from defended.attacks.core import checks
from defended.attacks.core.attack import Attack
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.measurement.result import Susceptibility
from defended.attacks.measurement.susceptibility import susceptibility
from defended.defended_model import DefendedModel


class DegradationMonitor(keras.callbacks.Callback):
    """Brackets the false positive rate at `model.epsilon` on a sample, at the end of epochs.

    Adds `degradation_fpr_lower`, `degradation_fpr_upper` and `degradation_vra_under_attack` to the epoch's logs,
    where `History` and the callbacks after it (TensorBoard, CSVLogger) find them; epochs that are not measured have
    no such keys. The bounds are proven for the epoch's weights first, so the figures are those that would be measured
    if training ended there. Training is not disturbed: weights, estimates and radius stay as they are.
    Cost: a proof and one `susceptibility` of the sample each time.

    Args:
        x: `[n, *input shape]`, a validation sample.
        y: `[n]` class numbers, or one-hot rows.
        attack: see `susceptibility`; None for `CertificateDescent(early_stop=True)`.
        every: measure every that many epochs.
        time_budget: seconds of attacking in each measurement; what is left then counts as not degraded, so the lower
            bound remains a lower bound. None for no limit.
        log_dir: a TensorBoard directory for the three figures and for pictures of degraded pairs; None writes none.
        pairs: largest number of pairs in a picture.
        batch_size: see `susceptibility`; the time budget is checked between batches.

    Attributes:
        results: by epoch (from 0), the figures of each measurement, see `Susceptibility.summary`.

    Raises:
        TypeError: when `attack` is not callable, or `fit` is called on a model that is not a `DefendedModel`.
        ValueError: when `every` is not a positive whole number, or at the start of `fit` for data that do not fit the
            model.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        attack: Attack | Callable[..., Any] | None = None,
        *,
        every: int = 1,
        time_budget: float | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        pairs: int = 6,
        batch_size: int = 512,
    ):
        super().__init__()
        self.attack = CertificateDescent(early_stop=True) if attack is None else attack
        if not callable(self.attack):
            raise TypeError(f"`attack` must be an attack, such as CertificateDescent(). Received: {attack!r}")
        self.every = whole_number("every", every, 1)
        self.time_budget = None if time_budget is None else positive_number("time_budget", time_budget)
        self.log_dir = log_dir
        self.pairs = whole_number("pairs", pairs, 1)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.x, self.y = x, y
        self.results: dict[int, dict[str, Any]] = {}
        self._writer: Any = None

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, DefendedModel):
            raise TypeError(f"DegradationMonitor measures a `DefendedModel`. Received: {type(model).__name__}")
        # Wrong data should fail before the first epoch is spent.
        points = checks.points(model, self.x, getattr(self.attack, "clip", None))
        checks.class_numbers(self.y, len(points), model.num_classes)
        super().set_model(model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        result = susceptibility(
            self.model, self.x, self.y, self.attack,
            batch_size=self.batch_size, time_budget=self.time_budget, progress=False,
        )  # fmt: skip
        self.results[epoch] = result.summary()
        rates = ("fpr_lower", "fpr_upper", "vra_under_attack")
        figures = {f"degradation_{name}": float(getattr(result, name)) for name in rates}
        if logs is not None:
            logs.update(figures)
        if self.log_dir is not None:
            self._write(os.fspath(self.log_dir), epoch, figures, result)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, log_dir: str, epoch: int, figures: dict[str, float], result: Susceptibility) -> None:
        import tensorflow as tf

        from defended.attacks.measurement.plots import plot_pairs

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(log_dir)
        with self._writer.as_default(step=epoch):
            for name, value in figures.items():
                tf.summary.scalar(name, value)
            if len(result.adversarial):
                picture = io.BytesIO()
                plot_pairs(self.x, result, self.pairs).savefig(picture, format="png", dpi=100, facecolor="white")
                image = tf.io.decode_png(picture.getvalue(), channels=3)
                tf.summary.image("degraded pairs", image[None])
        self._writer.flush()
