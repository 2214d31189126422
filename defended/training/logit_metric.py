"""Metrics that know nothing of ⊥, over the logits of the m classes."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="defended")
class LogitMetric(keras.metrics.Metric):
    """A metric of Keras, or a user's own, that is given the m logits and not the score of ⊥ behind them.

    `compile` makes it of metrics without a method `attach(model)`: those that have one are given all m + 1 scores.
    What it measures is the undefended classifier, rejections left aside.

    Args:
        metric: the metric.
    """

    def __init__(self, metric: keras.metrics.Metric, **kwargs: Any):
        super().__init__(name=kwargs.pop("name", metric.name), **kwargs)
        self.metric = metric
        if hasattr(metric, "_direction"):
            self._direction = metric._direction  # which way is better, for callbacks

    def attach(self, model: keras.Model) -> None:
        """Do nothing: it knows its logits without the model."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.metric.update_state(y_true, y_pred[:, :-1], sample_weight=sample_weight)

    def result(self) -> Any:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the metric inside."""
        if name.startswith("_") or "metric" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.metric, name)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogitMetric:
        return cls(keras.saving.deserialize_keras_object(config["metric"]), name=config["name"])


def over_logits(metric: Any) -> Any:
    """Return a Keras metric, function or name as a metric over logits; what Keras does not know as it is.

    As in Keras, the name of a function or of a metric given by name is that name.
    """
    found = keras.metrics.get(metric)
    if not isinstance(found, keras.metrics.Metric):
        name = metric if isinstance(metric, str) else getattr(found, "__name__", type(found).__name__)
        found = keras.metrics.MeanMetricWrapper(found, name=name)
    return LogitMetric(found, name=metric) if isinstance(metric, str) else LogitMetric(found)
