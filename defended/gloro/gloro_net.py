"""GloRo Nets on Keras 3."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from defended.defended_model import DefendedModel, Judgement, is_at_hand
from defended.gate import Claims, ProvingProperty
from defended.gloro.certificate import CertificateReport, rounding_budget
from defended.gloro.graph import LipschitzGraph
from defended.gloro.rounding import BLOCK
from defended.gloro.self_check import check_evaluation
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
from defended.networks.inputs import float32_tensor

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
    anywhere in the ball. `finalize()` also compares what evaluates with what was proven (`gloro.self_check`).

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
        self._proof.add("margin_lipschitz", (m, m))
        # (t0, t1, growth, limit): rounding costs t0 + t1 * |x| of the radius, and no input may be longer than limit.
        self._proof.add("rounding_budget", (4,))
        self._iterates = []
        for index, operator in enumerate(self._graph.operators):
            start = np.random.default_rng(index).standard_normal((1, *operator.input_shape))
            variable = self.add_weight(
                name=f"iterate_{index}", shape=start.shape, initializer="zeros", trainable=False, autocast=False,
                aggregation="only_first_replica",
            )  # fmt: skip
            variable.assign((start / np.linalg.norm(start)).astype("float32"))
            operator.iterate = variable
            self._iterates.append(variable)

    @ProvingProperty
    def margin_lipschitz(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The matrix K, `[m, m]` float32: proven bounds on the Lipschitz constants of `y_j - y_i`.

        An entry below the others by a factor of 1000 and more may be enlarged, so that the rounding budget, which is
        one for all pairs, covers that pair too.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        return ops.convert_to_numpy(self._proof.named.margin_lipschitz)

    def lipschitz_rows(self, classes: Any, training: bool = False) -> Any:
        """Rows of K for classes `[batch]`: `[batch, m]`, what losses train by.

        Proven ones where the bounds are proven and nobody trains; otherwise training-time estimates, which may be low.
        `training=True` moves the power iteration.
        """
        if training or self._is_estimating():
            return self._graph.estimate_rows(classes, training=training)
        return ops.cond(
            self._proof.sealed,
            lambda: self._proven_rows(classes),
            lambda: self._graph.estimate_rows(classes, training=False),
        )

    def _proven_rows(self, classes: Any) -> Any:
        return take_rows(ops.convert_to_tensor(self._proof.named.margin_lipschitz), classes)

    def _logits(self, inputs: Any, training: bool) -> Any:
        evaluate = self._graph.evaluate
        if not evaluate.is_rearranged or (training and not evaluate.trains_faster):
            return super()._logits(inputs, training)
        return evaluate(inputs, training)

    def _estimated_slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool) -> Any:
        return certified_slack(logits, self._graph.estimate_rows(predicted_class(logits), training), epsilon)

    def _slack(self, inputs: Any, logits: Any, epsilon: Any, training: bool, frozen: bool = False) -> Any:
        first, rows, budget = self._certificate(inputs, logits)
        return radius_slack(logits, rows, epsilon, budget, first)

    def _radii(self, inputs: Any, logits: Any, frozen: bool = False) -> Any:
        first, rows, budget = self._certificate(inputs, logits)
        return competitor_radii(logits, rows, budget, first)

    def _judgement(self, inputs: Any, frozen: bool) -> Judgement:
        # As in every defence, but what slack and radius share is written into the graph once.
        logits = self._logits(inputs, training=False)
        first, rows, budget = self._certificate(inputs, logits)
        slack = radius_slack(logits, rows, ops.convert_to_tensor(self.epsilon), budget, first)
        radii = competitor_radii(logits, rows, budget, first)
        scores = self.head(logits, self._if_proven(slack, -1.0, frozen))
        return Judgement(scores, self._if_proven(self._finite_radius(inputs, logits, radii), 0.0, frozen))

    def _certificate(self, inputs: Any, logits: Any) -> tuple[Leader, Any, Budget]:
        """The predicted class, its row of K and what rounding costs."""
        first = leader(logits)
        if self.evaluation_drift and not self.rounding:
            first = first._replace(top=first.top - self.evaluation_drift)
        return first, self._proven_rows(first.predicted), self._rounding_of(inputs)

    def covered_drift(self, x: Any) -> Array | None:
        """`[n, m]`: `K_ij * (t0 + t1 * |x|)`, twice what one float32 evaluation of `y_j - y_i` at x may err by.

        None where the certificate does not pay for rounding.
        """
        if not self.rounding:
            return None
        inputs = self._pass_gate(float32_tensor(x))
        predicted = predicted_class(self._logits(inputs, training=False))
        allowed = self._proven_rows(predicted) * self._rounding_of(inputs).paid
        return np.asarray(ops.convert_to_numpy(allowed), dtype=np.float64)

    def _valid(self, inputs: Any) -> Any:
        # An input whose norm is not finite has no radius.
        return None

    def _rounding_of(self, inputs: Any) -> Budget:
        t0, t1, growth, limit = ops.unstack(ops.convert_to_tensor(self._proof.named.rounding_budget))
        x = ops.reshape(ops.stop_gradient(inputs), (-1, self._graph.input_size))
        norm = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
        return Budget(t0 + t1 * norm, growth, limit - norm)

    def radius_from_scores(self, scores: Any) -> Any:
        """Certified radius `[batch]` from scores `[batch, m + 1]`: what rounding costs is read off the score of ⊥.

        While training, and of scores that training made, an estimate.
        """
        logits = scores[:, : self.num_classes]
        if self._is_estimating() or self._aside.trained:
            return ops.maximum(
                ops.min(competitor_radii(logits, self.lipschitz_rows(predicted_class(logits))), axis=-1), 0.0
            )
        if is_at_hand(scores):
            self.ensure_proven()
        rows = self._proven_rows(predicted_class(logits))
        _, _, growth, _ = ops.unstack(ops.convert_to_tensor(self._proof.named.rounding_budget))
        slack = ops.max(logits, axis=-1) - scores[:, self.num_classes]
        paid = ops.maximum(
            spent_radius(logits, rows, slack * growth) - growth * ops.convert_to_tensor(self.epsilon), 0.0
        )
        radius = (ops.min(competitor_radii(logits, rows), axis=-1) - paid) / growth
        return self._if_proven(ops.maximum(radius, 0.0), 0.0, frozen=is_at_hand(scores))

    def _retrace(self) -> None:
        graph = LipschitzGraph(self.network)
        shapes = [(1, *operator.input_shape) for operator in graph.operators]
        if shapes != [tuple(variable.shape) for variable in self._iterates] or graph.num_classes != self.num_classes:
            raise ValueError(
                f"The layers of {self.network.name!r} are others than those that were defended: trainable maps came, "
                f"went or changed their shapes. Defend the network as it is now: GloroNet(network, epsilon=...)."
            )
        for operator, variable in zip(graph.operators, self._iterates, strict=True):
            operator.iterate = variable
        self._graph = graph

    def _prove(self) -> None:
        norms = (self._aside.offered or {}).get("norms")
        proof = self._graph.prove(claimed=norms)
        constants, budget = rounding_budget(proof, self._graph.input_size, self.rounding)
        self._proof.named.margin_lipschitz.assign(constants)
        self._proof.named.rounding_budget.assign(budget)
        self._aside.norms, self._aside.proof = proof.norms, proof

    def _check_evaluation(self, thorough: bool = True) -> None:
        if self._aside.proof is None:  # of a file that was trusted
            self._aside.proof = self._graph.prove(claimed=self._aside.norms)
        check_evaluation(self, self._graph, self._aside.proof, thorough)

    def _claims(self) -> Claims:
        return {"norms": self._aside.norms}

    def _believe(self, claims: Claims) -> None:
        self._aside.norms, self._aside.proof = claims["norms"], None

    def _further_identity(self) -> list[Any]:
        # The budget is proven for an evaluation in such blocks.
        return [f"GloroNet rounding={self.rounding} block={BLOCK}"]

    def certificate_report(self, at_norm: float | None = None) -> CertificateReport:
        """What the certificate is made of: bound, method, slack and rounding error of each layer, and the budget.

        Args:
            at_norm: l2 norm of an input for which errors are stated; by default that of an input of all ones.

        Returns:
            A `CertificateReport`; `print` shows it as a table, `to_dict()` gives it as plain data.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        norm = float(self._graph.input_size**0.5 if at_norm is None else at_norm)
        return CertificateReport.of(self._graph, norm, ops.convert_to_numpy(self._proof.named.rounding_budget))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rounding": self.rounding}

    def _refine_estimates(self) -> None:
        # One step per batch lags behind quickly changing weights, and fresh iterates point anywhere.
        step = self._compiled("refine", lambda: self._graph.estimate(training=True))
        for _ in range(_REFINING_STEPS):
            step()

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
