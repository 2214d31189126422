"""Losses and metrics of Keras that read scores as probabilities, which logits are not: refused, with what to pass."""

from __future__ import annotations

from typing import Any

import keras

_FUNCTIONS = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.kl_divergence,
)
_CUT_BY_PROBABILITY = (
    keras.metrics.PrecisionAtRecall,
    keras.metrics.RecallAtPrecision,
    keras.metrics.SensitivityAtSpecificity,
    keras.metrics.SpecificityAtSensitivity,
)


def refuse_probability_loss(loss: Any) -> None:
    """Refuse a loss that reads scores as probabilities: a name, a function, a class or an object.

    Raises:
        ValueError: naming what to pass instead.
    """
    if (isinstance(loss, str) and loss.lower() == "ce") or _reads_probabilities(_object_of(loss, keras.losses)):
        raise ValueError(
            f"`loss` {_name_of(loss)} reads scores as probabilities, and these are logits: training would go astray "
            f'without a word. Pass `loss="crossentropy"`, or the same loss with `from_logits=True` if it has that.'
        )


def refuse_probability_metric(metric: Any) -> None:
    """Refuse a metric that reads scores as probabilities, or cuts them at one: a name, a function, a class, an object.

    Raises:
        ValueError: naming what to pass instead.
    """
    found = _object_of(metric, keras.metrics)
    if _reads_probabilities(found) or isinstance(found, _CUT_BY_PROBABILITY):
        raise ValueError(
            f"Metric {_name_of(metric)} reads scores as probabilities, and it is given logits. Pass it with "
            f"`from_logits=True` if it has that, as `keras.metrics.AUC(from_logits=True)`, or a metric of ranks, such "
            f"as `clean_accuracy`, `keras.metrics.F1Score()` or `keras.metrics.Precision(top_k=1)`."
        )
    if getattr(found, "init_thresholds", 0) is None and getattr(found, "top_k", None) is None:
        raise ValueError(
            f"Metric {_name_of(metric)} cuts probabilities at 0.5, and it is given logits. Pass `top_k=1`, which "
            f"counts the predicted class (`keras.metrics.Precision(top_k=1)`), or `thresholds=0.0`, a logit's sign."
        )


def _object_of(given: Any, known: Any) -> Any:
    """Return the function or object that Keras makes of a name, a class or an object; what Keras refuses as it is."""
    try:
        return known.get(given) if isinstance(given, str) else given() if isinstance(given, type) else given
    except (TypeError, ValueError):
        return given


def _reads_probabilities(found: Any) -> bool:
    # Keras's classes state it; wrapped and partial functions have it among their keywords.
    keywords = {**getattr(found, "_fn_kwargs", {}), **getattr(found, "keywords", {})}
    stated = getattr(found, "from_logits", getattr(found, "_from_logits", keywords.get("from_logits")))
    function = getattr(found, "fn", getattr(found, "_fn", getattr(found, "func", found)))
    return not stated if stated is not None else any(function is known for known in _FUNCTIONS)


def _name_of(given: Any) -> str:
    return repr(given if isinstance(given, str) else getattr(given, "name", getattr(given, "__name__", given)))
