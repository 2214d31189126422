"""MahalanobisScore: distance to the nearest class, in the metric of the features' spread (Lee et al. 2018)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.defended_model import DefendedModel
from defended.membership.oracle import Array, class_numbers
from defended.membership.scores import ScoreOracle


@keras.saving.register_keras_serializable(package="defended")
class MahalanobisScore(ScoreOracle):
    """`min over c of (f - mu_c)ᵀ S^-1 (f - mu_c)` for features f: class-conditional Gaussians with one covariance S.

    S is estimated from the features less their class means, shrunk towards a multiple of the identity by Ledoit and
    Wolf's (2004) intensity, so that it can be inverted however few inputs there are.

    Args:
        x: `[n, *input shape]`, valid inputs, at least two.
        y: `[n]`, their classes.
        calibration: `[k, *input shape]`, valid inputs not seen before.
        **options: as for `ScoreOracle`: `false_alarm_rate`, `layer`, `threshold`.
    """

    def __init__(self, x: ArrayLike, y: ArrayLike, calibration: ArrayLike, **options: Any):
        super().__init__(x, calibration, **options)
        self._aside.classes = class_numbers("y", y, self.shape[0])
        if self.shape[0] < 2:
            raise ValueError("`x` must hold at least two points: one has no spread.")

    def bind(self, model: DefendedModel) -> None:
        classes = getattr(self._aside, "classes", None)
        if classes is not None and classes.max() >= model.num_classes:
            raise ValueError(
                f"`y` must hold classes of the model, 0 to {model.num_classes - 1}. Received: up to {classes.max()}"
            )
        super().bind(model)

    def _allocate(self, features: int, classes: int) -> None:
        shapes = {"whitening": (features, features), "centres": (classes, features), "missing": (classes,)}
        self._constants = {name: self._fixed_weight(name, shape) for name, shape in shapes.items()}

    def _learn(self, features: Array, model: Any) -> None:
        from sklearn.covariance import ledoit_wolf

        classes, wide = self._aside.classes, features.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("The network's features of `x` are not all finite.")
        found = np.unique(classes)
        means = np.zeros((model.num_classes, wide.shape[1]))
        for c in found:
            means[c] = wide[classes == c].mean(axis=0)
        covariance, _ = ledoit_wolf(wide - means[classes], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        if not values[-1] > 0:
            raise ValueError("The features of `x` do not vary within their classes: there is no spread to measure by.")
        whitening = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-10))
        self._constants["whitening"].assign(whitening)
        self._constants["centres"].assign(means @ whitening)
        # No input of such a class was given, so none is near it.
        self._constants["missing"].assign(np.where(np.isin(np.arange(model.num_classes), found), 0.0, 1e30))

    def score_gradient(self, features: Any) -> tuple[Any, Any]:
        whitening, centres, missing = (ops.convert_to_tensor(value) for value in self._constants.values())
        # By differences: the matrix form cancels where it matters, at small distances.
        apart = ops.matmul(features, whitening)[:, None] - centres[None]
        squares = ops.sum(ops.square(apart), axis=-1) + missing[None]
        score = ops.min(squares, axis=-1)
        # Where classes tie, the sum of both is followed.
        nearest = ops.cast(squares <= score[:, None], "float32")
        return score, 2 * ops.matmul(ops.sum(apart * nearest[:, :, None], axis=1), ops.transpose(whitening))
