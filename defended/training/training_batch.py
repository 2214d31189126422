"""What a loss or a metric may know about the batch that it is computed on."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from keras import ops

from defended.networks.inputs import float32_tensor


class _Batch(NamedTuple):
    inputs: Any = None
    training: bool = False
    radius_scale: Any = None
    """Of the model that is trained: the one that is bounded, or a guard around it."""


class TrainingBatch:
    """Mixed into a defended model, before it: remembers a batch while Keras computes its loss and metrics.

    Keras gives losses and metrics labels and scores only, and dual bounds for the *true* class need the inputs.
    Replicas compute in threads of their own, so batches are kept by thread.
    """

    _aside: Any
    epsilon: Any
    radius_scale: Any

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the loss of a batch, as Keras asks for it."""
        batches, key = self._batches(), threading.get_ident()
        batches[key] = _Batch(x, bool(training), self.radius_scale)
        try:
            return super().compute_loss(  # type: ignore[misc]
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        finally:
            # No tensor of a graph outlives its use; that it was a training step is for `compute_metrics`.
            batches[key] = _Batch(None, bool(training), self.radius_scale)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Return the metrics of a batch, as Keras asks for them."""
        batches, key = self._batches(), threading.get_ident()
        batches[key] = _Batch(x, self._batch().training, self.radius_scale)
        try:
            return super().compute_metrics(x, y, y_pred, sample_weight)  # type: ignore[misc]
        finally:
            batches.pop(key, None)

    def _batches(self) -> dict[int, _Batch]:
        if not hasattr(self._aside, "batches"):
            self._aside.batches = {}
        return self._aside.batches

    def _batch(self) -> _Batch:
        """Return what this thread knows about its batch."""
        return self._batches().get(threading.get_ident(), _Batch())

    def _batch_inputs(self) -> Any:
        inputs = self._batch().inputs
        if inputs is None:
            raise RuntimeError(
                "Bounds for the true class need the inputs, which are known while `fit` or `evaluate` computes a loss. "
                "Use the loss there, or `model.margin_lower_bounds(x)` elsewhere."
            )
        return float32_tensor(inputs)

    def _batch_radius(self) -> Any:
        """Return the radius for which the batch is bounded: in training steps, the training radius."""
        epsilon, batch = ops.convert_to_tensor(self.epsilon), self._batch()
        return epsilon * ops.convert_to_tensor(batch.radius_scale) if batch.training else epsilon
