"""GloRo Nets on Keras 3."""

from __future__ import annotations

import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.defended_model import DefendedModel
from defended.gloro.graph import LipschitzGraph
from defended.margins import certified_slack, competitor_radii, predicted_class

_REFINING_STEPS = 20


@keras.saving.register_keras_serializable(package="defended")
class GloroNet(DefendedModel):
    """A classifier with an l2 certificate from its global Lipschitz constant (Leino, Wang, Fredrikson 2021).

    With K_ij a Lipschitz constant of `y_j - y_i`, the point x is certified at eps when
    `y_j(x) - y_i(x) > eps * K_ij` for the predicted class j and every other class i; the score of ⊥ is
    `max over i != j of y_i + eps * K_ij`, differentiable, so `fit` trains the certificate together with the classifier.
    K_ij is the product of the hidden layers' constants times `|w_j - w_i|`.

    While training, norms are *estimates*: one power-iteration step per batch on a persistent vector. `finalize()`,
    which the end of `fit` calls, replaces them by proven float64 upper bounds, rounded upwards and frozen.

    Args:
        network: a built Sequential or functional model with logits out; or, together with `outputs`, the input tensor
            of the functional API.
        outputs: the output tensor, where `network` is the input tensor.
        epsilon: the l2 radius defended at run time, in input units; positive.

    Raises:
        ValueError: when the network ends in softmax, has several inputs or outputs, a single class, a layer without a
            known Lipschitz constant, or was not built.

    Example:
        >>> model = GloroNet(network, epsilon=0.3)
        >>> model.compile("adam", loss="trades_kl.1.5", metrics=["clean_accuracy", "vra"])
        >>> model.fit(x_train, y_train, validation_data=(x_test, y_test), epochs=20)
        >>> model.verdicts(x_test).rejected.mean()
    """

    certificate_method = "GloRo: margin over a global Lipschitz bound (Leino et al. 2021)"
    certificate_assumptions = (
        "Distances are Euclidean (l2) on the model's input, in the units of that input.",
        "The bound holds for the network's weights in real arithmetic; norms are proven in float64 and rounded "
        "upwards, rounding errors of the network's own float32 evaluation are not included.",
    )

    def __init__(self, network: Any, outputs: Any = None, *, epsilon: float, name: str | None = None, **kwargs: Any):
        super().__init__(network, outputs, epsilon=epsilon, norm="l2", name=name, **kwargs)
        self._graph = LipschitzGraph(self.network)
        m = self.num_classes
        self._margin_lipschitz = self.add_weight(
            name="margin_lipschitz", shape=(m, m), initializer="zeros", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self._iterates = []
        for index, operator in enumerate(self._graph.operators):
            shape = (1, *operator.input_shape)
            start = np.random.default_rng(index).standard_normal(shape)
            variable = self.add_weight(
                name=f"iterate_{index}", shape=shape, initializer="zeros", trainable=False, autocast=False,
                aggregation="only_first_replica",
            )  # fmt: skip
            variable.assign((start / np.linalg.norm(start)).astype("float32"))
            operator.iterate = variable
            self._iterates.append(variable)

    @property
    def margin_lipschitz(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The matrix K, `[m, m]` float32: proven bounds on the Lipschitz constants of `y_j - y_i`.

        Raises:
            RuntimeError: before `finalize()`.
        """
        self._require_final("margin_lipschitz")
        return ops.convert_to_numpy(self._margin_lipschitz)

    def lipschitz_rows(self, classes: Any, training: bool = False, frozen: bool = False) -> Any:
        """Rows of K for classes `[batch]`: `[batch, m]`.

        `training=True` moves the power iteration and estimates; `frozen=True` reads the proven matrix; otherwise the
        model's state decides.
        """
        if training:
            return self._graph.estimate_rows(classes, training=True)

        def proven() -> Any:
            return ops.take(ops.convert_to_tensor(self._margin_lipschitz), classes, axis=0)

        if frozen:
            return proven()
        return ops.cond(self._has_bounds(), proven, lambda: self._graph.estimate_rows(classes, training=False))

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        rows = self.lipschitz_rows(predicted_class(logits), training=training, frozen=frozen)
        return certified_slack(logits, rows, epsilon)

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        return competitor_radii(logits, self.lipschitz_rows(predicted_class(logits), frozen=frozen))

    def radius_from_scores(self, scores: Any) -> Any:
        logits = scores[:, : self.num_classes]
        return ops.maximum(ops.min(self._radii(None, logits), axis=-1), 0.0)

    def _prove(self) -> None:
        self._margin_lipschitz.assign(self._graph.bound_matrix())

    def _refine_estimates(self) -> None:
        # One step per batch lags behind quickly changing weights, and fresh iterates point anywhere.
        step = self._compiled("refine", lambda: self._graph.estimate(training=True))
        for _ in range(_REFINING_STEPS):
            step()

    def _digest(self) -> int:
        checksum = 1
        for variable in self.network.variables:
            checksum = zlib.crc32(np.ascontiguousarray(ops.convert_to_numpy(variable)).tobytes(), checksum)
        return checksum & 0x7FFFFFFF | 1
