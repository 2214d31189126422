"""GloRo Nets on Keras 3."""

from __future__ import annotations

import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.defended_model import DefendedModel, Judgement
from defended.gloro.certificate import NO_BUDGET, CertificateReport, rounding_budget
from defended.gloro.graph import LipschitzGraph
from defended.gloro.rounding import BLOCK
from defended.margins import (
    Budget,
    Leader,
    certified_slack,
    competitor_radii,
    leader,
    predicted_class,
    radius_slack,
    spent_radius,
    take_rows,
)

_REFINING_STEPS = 20

Array = np.ndarray[Any, np.dtype[Any]]


@keras.saving.register_keras_serializable(package="defended")
class GloroNet(DefendedModel):
    """A classifier with an l2 certificate from its global Lipschitz constant (Leino, Wang, Fredrikson 2021).

    With K_ij a Lipschitz constant of `y_j - y_i`, the point x is certified at eps when
    `y_j(x) - y_i(x) > eps * K_ij` for the predicted class j and every other class i; the score of ⊥ is
    `max over i != j of y_i + eps * K_ij`, differentiable, so `fit` trains the certificate together with the classifier.
    K_ij is the product of the hidden layers' constants times `|w_j - w_i|`.

    While training, norms are *estimates*: one power-iteration step per batch on a persistent vector. `finalize()`,
    which the end of `fit` calls, replaces them by proven float64 upper bounds, rounded upwards and frozen. From then on
    the certificate also pays for rounding: a point is answered when
    `y_j(x) - y_i(x) > eps * K_ij + E`, with E a proven bound on the error of both logits' float32 evaluation at x and
    anywhere in the ball.

    Args:
        network: a built Sequential or functional model with logits out; or, together with `outputs`, the input tensor
            of the functional API.
        outputs: the output tensor, where `network` is the input tensor.
        epsilon: the l2 radius defended at run time, in input units; positive.
        rounding: whether the certificate pays for rounding. False certifies real arithmetic only, and says so among its
            assumptions: for deep and wide networks, whose worst case may exceed the radius itself.

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
    certificate_assumptions: tuple[str, ...] = (
        "Distances are Euclidean (l2) on the model's input, in the units of that input.",
        "Norms are proven in float64 and rounded upwards. The network is evaluated in IEEE float32: inner products in "
        "any order, with or without fused multiply-add, subnormal numbers kept or flushed; no TF32, bfloat16 or half "
        "precision, and no convolution by Winograd's or Fourier's method. Where exp, tanh and their kin occur, they "
        "are within 16 units of roundoff relative to 1 + L |z|, with L their Lipschitz constant.",
    )

    def __init__(
        self,
        network: Any,
        outputs: Any = None,
        *,
        epsilon: float,
        rounding: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(network, outputs, epsilon=epsilon, norm="l2", name=name, **kwargs)
        self._graph = LipschitzGraph(self.network)
        self.rounding = bool(rounding)
        if not self.rounding:
            self.certificate_assumptions = (
                *self.certificate_assumptions,
                "The network is evaluated in real arithmetic: the rounding of float32 is not counted.",
            )
        m = self.num_classes
        self._margin_lipschitz = self.add_weight(
            name="margin_lipschitz", shape=(m, m), initializer="zeros", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        # (t0, t1, growth, limit): rounding costs t0 + t1 * |x| of the radius, and no input may be longer than limit.
        self._budget = self.add_weight(
            name="rounding_budget", shape=(4,), initializer="zeros", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self._budget.assign(NO_BUDGET)
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

        An entry below the others by a factor of 1000 and more may be enlarged, so that the rounding budget, which is
        one for all pairs, covers that pair too.

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
            return take_rows(ops.convert_to_tensor(self._margin_lipschitz), classes)

        if frozen:
            return proven()
        return ops.cond(self._has_bounds(), proven, lambda: self._graph.estimate_rows(classes, training=False))

    def _logits(self, inputs: Any, training: bool) -> Any:
        evaluate = self._graph.evaluate
        if not evaluate.is_rearranged or (training and not evaluate.trains_faster):
            return super()._logits(inputs, training)
        return evaluate(inputs, training)

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        if training:
            return certified_slack(logits, self.lipschitz_rows(predicted_class(logits), training=True), epsilon)
        first, rows, budget = self._certificate(inputs, logits, frozen)
        return radius_slack(logits, rows, epsilon, budget, first)

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        first, rows, budget = self._certificate(inputs, logits, frozen)
        return competitor_radii(logits, rows, budget, first)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        # As in every defence, but what slack and radius share is written into the graph once.
        logits = self._logits(inputs, training=False)
        first, rows, budget = self._certificate(inputs, logits, frozen)
        slack = radius_slack(logits, rows, ops.convert_to_tensor(self._epsilon), budget, first)
        radii = competitor_radii(logits, rows, budget, first)
        return Judgement(self.head(logits, slack), self._finite_radius(inputs, logits, radii))

    def _certificate(self, inputs: Any, logits: Any, frozen: bool) -> tuple[Leader, Any, Budget]:
        """The predicted class, its row of K and what rounding costs."""
        first = leader(logits)
        if self.evaluation_drift and not self.rounding:
            first = first._replace(top=first.top - self.evaluation_drift)
        return first, self.lipschitz_rows(first.predicted, frozen=frozen), self._rounding_of(inputs)

    def covered_drift(self, x: Any) -> Array | None:
        """`[n, m]`: `K_ij * (t0 + t1 * |x|)`, twice what one float32 evaluation of `y_j - y_i` at x may err by.

        None where the certificate does not pay for rounding.
        """
        if not self.rounding:
            return None
        inputs = ops.convert_to_tensor(x)
        predicted = predicted_class(self._logits(inputs, training=False))
        allowed = self.lipschitz_rows(predicted) * self._rounding_of(inputs).paid
        return np.asarray(ops.convert_to_numpy(allowed), dtype=np.float64)

    def _valid(self, inputs: Any, training: bool) -> Any:
        # At inference, an input whose norm is not finite has no radius.
        return super()._valid(inputs, training) if training else None

    def _rounding_of(self, inputs: Any) -> Budget:
        t0, t1, growth, limit = ops.unstack(ops.convert_to_tensor(self._budget))
        x = ops.reshape(ops.stop_gradient(ops.convert_to_tensor(inputs)), (-1, self._graph.input_size))
        norm = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
        return Budget(t0 + t1 * norm, growth, limit - norm)

    def radius_from_scores(self, scores: Any) -> Any:
        """Certified radius `[batch]` from scores `[batch, m + 1]`: what rounding costs is read off the score of ⊥."""
        logits = scores[:, : self.num_classes]
        rows = self.lipschitz_rows(predicted_class(logits))
        _, t1, growth, _ = ops.unstack(ops.convert_to_tensor(self._budget))
        slack = ops.max(logits, axis=-1) - scores[:, self.num_classes]
        paid = spent_radius(logits, rows, slack * growth) - growth * ops.convert_to_tensor(self._epsilon)
        # Estimates pay nothing, and while training the scores hold another radius than epsilon.
        paid = ops.where(t1 > 0, ops.maximum(paid, 0.0), ops.zeros_like(paid))
        return ops.maximum((ops.min(competitor_radii(logits, rows), axis=-1) - paid) / growth, 0.0)

    def _prove(self) -> None:
        proof = self._graph.prove()
        constants, budget = rounding_budget(proof, self._graph.input_size, self.rounding)
        self._margin_lipschitz.assign(constants)
        self._budget.assign(budget)

    def _thaw(self) -> None:
        super()._thaw()
        self._budget.assign(NO_BUDGET)

    def certificate_report(self, at_norm: float | None = None) -> CertificateReport:
        """What the certificate is made of: bound, method, slack and rounding error of each layer, and the budget.

        Args:
            at_norm: l2 norm of an input for which errors are stated; by default that of an input of all ones.

        Returns:
            A `CertificateReport`; `print` shows it as a table, `to_dict()` gives it as plain data.

        Raises:
            RuntimeError: before `finalize()`.
        """
        self._require_final("certificate_report")
        norm = float(self._graph.input_size**0.5 if at_norm is None else at_norm)
        return CertificateReport.of(self._graph, norm, ops.convert_to_numpy(self._budget))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rounding": self.rounding}

    def _refine_estimates(self) -> None:
        # One step per batch lags behind quickly changing weights, and fresh iterates point anywhere.
        step = self._compiled("refine", lambda: self._graph.estimate(training=True))
        for _ in range(_REFINING_STEPS):
            step()

    def _digest(self) -> int:
        # The budget is proven for an evaluation in such blocks: what another version proved is not final here.
        checksum = BLOCK
        for variable in self.network.variables:
            checksum = zlib.crc32(np.ascontiguousarray(ops.convert_to_numpy(variable)).tobytes(), checksum)
        return checksum & 0x7FFFFFFF | 1

    @classmethod
    def from_gloro(cls, live_model: Any, epsilon: float | None = None) -> GloroNet:
        """Take over a live model of the `gloro` library (1.1.1 or later): a final model with the same network.

        `gloro` needs legacy Keras, which lives beside Keras 3 as `tf_keras` (`docs/how-to/import-gloro.md`). The live
        model is read by duck typing and left as it is; neither `gloro` nor `tf_keras` is imported here. As with
        `load_gloronet`, the architecture is rebuilt from an allowlist of layers and bounds are proven anew.

        Args:
            live_model: a `gloro.GloroNet`.
            epsilon: the l2 radius to defend, in input units; by default the live model's.

        Raises:
            TypeError: for anything that is not a live gloro model.
            ValueError: for a relaxed (top-k or affinity) model, a layer that is not known or is a user's own class, or
                weights that are not finite, naming the layer.
        """
        from defended.gloro.legacy.gloronet import from_live

        return from_live(live_model, epsilon, cls)
