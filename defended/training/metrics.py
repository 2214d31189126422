"""Metrics over m + 1 scores, ⊥ last, for `compile` and for callbacks.

A metric with a `radius_scale` other than 1 asks what would hold at `radius_scale * model.epsilon`; it reads radii from
the model that `compile` attaches it to.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from defended.arguments import positive_number
from defended.statistics.rates import DEFINITIONS, InputFacts
from defended.training.labels import sparse_labels
from defended.training.logit_metric import over_logits
from defended.training.over_probabilities import refuse_probability_metric

_PACKAGE = "defended"


class _Rate(keras.metrics.Mean):
    """The running mean of a rate: of a 0/1 value for each example that the rate is taken over."""

    rate: str
    """Which one, of `defended.statistics.rates`."""
    default_name: str
    _direction = "up"
    """Which way is better, for `EarlyStopping` and `ModelCheckpoint` (Keras's own attribute)."""

    def __init__(self, radius_scale: float = 1.0, name: str | None = None, **kwargs: Any):
        scale = positive_number("radius_scale", radius_scale)
        super().__init__(name=name or _scaled_name(self.default_name, scale), **kwargs)
        self.radius_scale = scale
        self._model: Any = lambda: None

    def attach(self, model: keras.Model) -> None:
        """Read radii and epsilon from this model; `compile` calls it."""
        self._model = weakref.ref(model)  # Keras saves what an attribute holds

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        y_pred = ops.convert_to_tensor(y_pred)
        facts = self._facts(ops.convert_to_tensor(y_true), y_pred)
        _, counted, among, _ = DEFINITIONS[self.rate]
        if among:
            given = 1.0 if sample_weight is None else ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
            sample_weight = given * ops.cast(facts.all(among), self.dtype)
        super().update_state(ops.cast(facts.all(counted), self.dtype), sample_weight)

    def _facts(self, y_true: Any, y_pred: Any) -> InputFacts:
        """Return tensors of what is known about each input at `radius_scale * epsilon`."""
        labels, valid = sparse_labels(y_true, y_pred.shape[-1] - 1)
        predicted = ops.cast(ops.argmax(y_pred[:, :-1], axis=-1), "int32")
        correct, answered = ops.logical_and(ops.equal(predicted, labels), valid), self.certified(y_pred)
        return InputFacts(~answered, correct, correct & answered, answered)

    def certified(self, y_pred: Any, radius_scale: float | None = None) -> Any:
        """Return whether each input is answered at `radius_scale * epsilon`, `[batch]` bool."""
        scale = self.radius_scale if radius_scale is None else radius_scale
        model = self._model()
        if model is None:
            if scale != 1.0:
                raise ValueError(
                    f"Metric {self.name!r} with radius_scale={scale} needs the model's radii. Pass it to "
                    f"`model.compile(metrics=[...])`, or call `metric.attach(model)`."
                )
            return ops.argmax(y_pred, axis=-1) != y_pred.shape[-1] - 1
        # While training, the scores hold ⊥ for the training radius: the radius tells what holds at run time.
        return model.radius_for_metrics(y_pred) > scale * ops.convert_to_tensor(model.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "radius_scale": self.radius_scale}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class CleanAccuracy(_Rate):
    """Share of inputs whose largest logit, leaving ⊥ aside, is the label's."""

    rate = default_name = "clean_accuracy"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class VRA(_Rate):
    """Verified-robust accuracy: share of inputs answered correctly *and* certified at `radius_scale * epsilon`."""

    rate = default_name = "vra"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class RejectionRate(_Rate):
    """Share of inputs that are not certified at `radius_scale * epsilon`."""

    rate = default_name = "rejection_rate"
    _direction = "down"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class FalsePositiveBound(_Rate):
    """Upper bound on the false positive rate: `1 - |r > 2 s| / |r > s|` at `s = radius_scale * epsilon`.

    Of the inputs that are answered, the share that some perturbation within s *might* push into ⊥: where r > 2 s none
    can (Leino et al. 2022, section 3.2), in real arithmetic; a measurement of the final model also counts rounding.
    It is 1 where no input is answered, since nothing is proven then.
    """

    rate, default_name = "fpr_upper", "false_positive_bound"
    _direction = "down"

    def _facts(self, y_true: Any, y_pred: Any) -> InputFacts:
        return replace(super()._facts(y_true, y_pred), safe=self.certified(y_pred, 2 * self.radius_scale))

    def result(self) -> Any:
        return ops.where(ops.convert_to_tensor(self.count) > 0, super().result(), 1.0)


_BY_NAME: dict[str, Any] = {
    "clean_accuracy": CleanAccuracy,
    "clean_acc": CleanAccuracy,
    "vra": VRA,
    "rejection_rate": RejectionRate,
    "false_positive_bound": FalsePositiveBound,
    "fpr_upper": lambda: FalsePositiveBound(name="fpr_upper"),
    # Keras would count answers over m + 1 scores here, which is VRA under another name.
    "accuracy": lambda: CleanAccuracy(name="accuracy"),
    "acc": lambda: CleanAccuracy(name="acc"),
}


def resolve_metrics(metrics: Any, model: keras.Model) -> Any:
    """Return metrics from their names, attached to the model; other names, functions and objects get logits.

    What has a method `attach(model)` is given it, and all m + 1 scores.

    Raises:
        ValueError: for metrics over probabilities, and names that Keras does not know.
    """
    if metrics is None:
        return None
    if isinstance(metrics, dict):
        return {key: resolve_metrics(value, model) for key, value in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [resolve_metrics(value, model) for value in metrics]
    metric = _BY_NAME[metrics]() if isinstance(metrics, str) and metrics in _BY_NAME else metrics
    if metric is None:
        return None
    if isinstance(metric, type) or not hasattr(metric, "attach"):
        refuse_probability_metric(metric)
        return over_logits(metric)
    metric.attach(model)
    return metric


def _scaled_name(name: str, scale: float) -> str:
    return name if scale == 1.0 else f"{name}_{scale:g}eps"
