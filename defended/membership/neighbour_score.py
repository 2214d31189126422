"""NearestNeighbourScore: distance to the k-th nearest valid input, in the network's features (Sun et al. 2022)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.margins import take_rows
from defended.membership.oracle import Array
from defended.membership.scores import ScoreOracle


@keras.saving.register_keras_serializable(package="defended")
class NearestNeighbourScore(ScoreOracle):
    """Squared Euclidean distance of the features to those of the k-th nearest valid input.

    Unlike in the paper, features are not divided by their length, which also tells a network's inputs from others.
    The graph holds the features of all valid inputs: some thousand are enough for a score.

    Args:
        x: `[n, *input shape]`, valid inputs, at least k.
        calibration: `[m, *input shape]`, valid inputs not seen before.
        k: which neighbour counts, at least 1.
        **options: as for `ScoreOracle`: `false_alarm_rate`, `layer`, `threshold`.
    """

    def __init__(self, x: ArrayLike, calibration: ArrayLike, k: int = 5, **options: Any):
        super().__init__(x, calibration, **options)
        if isinstance(k, bool) or int(k) != k or not 1 <= k <= self.shape[0]:
            raise ValueError(
                f"`k` must be a whole number from 1 to the number of points, {self.shape[0]}. Received: {k!r}"
            )
        self.k = int(k)

    def _allocate(self, features: int, classes: int) -> None:
        self._bank = self._fixed_weight("features", (self.shape[0], features))
        self._centre = self._fixed_weight("centre", (features,))

    def _learn(self, features: Array, model: Any) -> None:
        if not np.isfinite(features).all():
            raise ValueError("The network's features of `x` are not all finite.")
        centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._centre.assign(centre)
        self._bank.assign(features - centre)

    def score_gradient(self, features: Any) -> tuple[Any, Any]:
        bank = ops.convert_to_tensor(self._bank)
        own = features - ops.convert_to_tensor(self._centre)
        square = ops.sum(ops.square(own), axis=1, keepdims=True) + ops.sum(ops.square(bank), axis=1)[None]
        apart = square - 2 * ops.matmul(own, ops.transpose(bank))
        nearest, indices = ops.top_k(-apart, self.k)
        return -nearest[:, -1], 2 * (own - take_rows(bank, indices[:, -1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k": self.k}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NearestNeighbourScore:
        """Return an oracle whose score comes with the weights."""
        oracle: NearestNeighbourScore = super().from_config(config)
        oracle.k = config["k"]
        return oracle
