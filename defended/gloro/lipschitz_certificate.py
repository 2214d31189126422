"""The certificate of a GloRo Net: margins over proven Lipschitz constants, and what rounding costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.certificate import Array, Certificate, Claims, Finding, Judge
from defended.gloro.certificate import lasting, rounding_budget
from defended.gloro.graph import LipschitzGraph
from defended.gloro.proof import Proof
from defended.gloro.rounding import BLOCK
from defended.gloro.second_look import SHARE, SecondLook, Terms
from defended.gloro.self_check import Subject, check_evaluation
from defended.margins import (
    Budget,
    certified_slack,
    competitor_radii,
    leader,
    predicted_class,
    radius_slack,
    spent_radius,
    take_rows,
)
from defended.settings import ProvenConstants
from defended.tracing import CompiledFunctions

_REFINING_STEPS = 20


class LipschitzCertificate(Certificate):
    """With K_ij a Lipschitz constant of `y_j - y_i`, j wins within `(y_j - y_i) / K_ij`, less what rounding costs.

    Args:
        network: the undefended classifier.
        proof: the model's constants; K and the budget for rounding are added to them.
        compiled: compiles functions of the model.
        rounding: whether the certificate pays for rounding.
        second_look: whether float64 decides where nothing but rounding rejects.
        add_iterate: makes, from a name and a start, the variable on which the estimate of a layer's norm iterates.
    """

    def __init__(
        self,
        network: keras.Model,
        proof: ProvenConstants,
        compiled: CompiledFunctions,
        rounding: bool,
        second_look: bool,
        add_iterate: Callable[[str, Array], Any],
    ):
        super().__init__(network)
        self.graph = LipschitzGraph(network)
        self._second = SecondLook(self.graph.all_steps) if second_look else None
        self._compiled, self._rounding, self._constants = compiled, rounding, proof.named
        m = self.graph.num_classes
        proof.add("margin_lipschitz", (m, m))
        # (t0, t1, limit): rounding costs t0 + t1 * |x| of the radius, and no input may be longer than limit.
        proof.add("rounding_budget", (3,))
        self._norms: Array = np.zeros(0)
        self._proof: Proof | None = None
        self.iterates = []
        for index, operator in enumerate(self.graph.operators):
            start = np.random.default_rng(index).standard_normal((1, *operator.input_shape))
            operator.iterate = add_iterate(f"iterate_{index}", (start / np.linalg.norm(start)).astype("float32"))
            self.iterates.append(operator.iterate)

    # Judging.

    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        return self.find(inputs, self.logits(inputs, training=False), epsilon)

    def find(self, inputs: Any, logits: Any, epsilon: Any) -> Finding:
        """Judge inputs whose logits are known, as `judge` does."""
        terms = self._terms(inputs, logits)
        found = self._found(logits, terms, epsilon)
        return found if self._second is None else self._second.look(found, inputs, terms, epsilon)

    def deployment_radius(self, inputs: Any, epsilon: Any) -> Any:
        """Return the radius `[batch]` below which a deployment at any epsilon answers an input."""
        logits = self.logits(inputs, training=False)
        terms = self._terms(inputs, logits)
        found = self._found(logits, terms, epsilon)
        return found.radius() if self._second is None else self._second.everywhere(found, inputs, terms)

    def _found(self, logits: Any, terms: Terms, epsilon: Any) -> Finding:
        """Return what float32 finds."""
        first, rows, budget, spent, norm, size = terms

        @functools.cache
        def radius() -> Any:
            return ops.min(competitor_radii(logits, rows, budget, first), axis=-1)

        return Finding(
            logits,
            radius_slack(logits, rows, epsilon, budget, first),
            radius,
            lasting=lambda level: lasting(radius(), level, spent, norm[:, 0], size),
        )

    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        return self._competitor_radii(inputs, 1.0)

    def answering_radii(self, inputs: Any, epsilon: Any) -> Any:
        return self._competitor_radii(inputs, 1.0 if self._second is None else SHARE)

    def _competitor_radii(self, inputs: Any, share: float) -> Any:
        logits = self.logits(inputs, training=False)
        first, rows, budget, *_ = self._terms(inputs, logits)
        return competitor_radii(logits, rows, budget._replace(paid=share * budget.paid), first)

    def logits(self, inputs: Any, training: bool) -> Any:
        evaluate = self.graph.evaluate
        if not evaluate.is_rearranged or (training and not evaluate.trains_faster):
            return super().logits(inputs, training)
        return evaluate(inputs, training)

    def _terms(self, inputs: Any, logits: Any) -> Terms:
        """Return the predicted class, its row of K and what rounding costs."""
        first = leader(logits)
        if self.drift and not self._rounding:
            first = first._replace(top=first.top - self.drift)
        spent, norm = ops.convert_to_tensor(self._constants.rounding_budget), self.norm(inputs)
        return Terms(first, self.rows(first.predicted), self.budget(norm), spent, norm, self.graph.input_size)

    def budget(self, norm: Any) -> Budget:
        """Return what rounding costs at inputs of these norms, `[batch, 1]`."""
        t0, t1, limit = ops.unstack(ops.convert_to_tensor(self._constants.rounding_budget))
        return Budget(t0 + t1 * norm, limit - norm)

    def norm(self, inputs: Any) -> Any:
        """Return |x|, `[batch, 1]`."""
        x = ops.reshape(ops.stop_gradient(inputs), (-1, self.graph.input_size))
        return ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))

    def rows(self, classes: Any) -> Any:
        """Return the rows of K, `[batch, m]`, for classes `[batch]`."""
        return take_rows(ops.convert_to_tensor(self._constants.margin_lipschitz), classes)

    def covered_drift(self, inputs: Any) -> Array | None:
        """Return `2 K_ij * (t0 + t1 * |x|)`, `[n, m]`: how much two float32 evaluations of `y_j - y_i` at x may differ.

        It is None where the certificate does not pay for rounding.
        """
        if not self._rounding:
            return None
        terms = self._terms(inputs, self.logits(inputs, training=False))
        return 2 * np.asarray(ops.convert_to_numpy(terms.rows * terms.budget.paid), dtype=np.float64)

    def radius_from_scores(self, scores: Any, epsilon: Any) -> Any:
        """Return radii `[batch]`, at least 0, from scores `[batch, m + 1]`; ⊥'s score shows what rounding costs."""
        logits = scores[:, :-1]
        rows = self.rows(predicted_class(logits))
        slack = ops.max(logits, axis=-1) - scores[:, -1]
        paid = ops.maximum(spent_radius(logits, rows, slack) - epsilon, 0.0)
        radius = ops.maximum(ops.min(competitor_radii(logits, rows), axis=-1) - paid, 0.0)
        if self._second is None:
            return radius
        # The slack may be that of float64 margins: every radius exceeds epsilon by at least its share of the largest K,
        # less what the score of ⊥ lost in rounding.
        sure = ops.maximum(slack - ops.max(ops.abs(logits), axis=-1) * 2.0**-21, 0.0)
        least = (epsilon + sure / ops.max(rows, axis=-1)) * (1 - 2.0**-20)
        return ops.where(slack > 0, ops.maximum(least, epsilon * (1 + 2.0**-22)), radius)

    # Training.

    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        logits = self.logits(inputs, training)
        return logits, certified_slack(logits, self.graph.estimate_rows(predicted_class(logits), training), epsilon)

    def refine(self) -> None:
        # One step per batch lags behind quickly changing weights, and fresh iterates point anywhere.
        step = self._compiled("refine", lambda: self.graph.estimate(training=True))
        for _ in range(_REFINING_STEPS):
            step()

    # Proving.

    def retrace(self, network: keras.Model) -> None:
        graph = LipschitzGraph(network)
        shapes = [(1, *operator.input_shape) for operator in graph.operators]
        iterates = [tuple(variable.shape) for variable in self.iterates]
        if shapes != iterates or graph.num_classes != self.graph.num_classes:
            raise ValueError(
                f"The layers of {network.name!r} are not those that were defended: trainable maps were "
                f"added, removed or changed in shape. Defend the network as it is now: GloroNet(network, epsilon=...)."
            )
        for operator, variable in zip(graph.operators, self.iterates, strict=True):
            operator.iterate = variable
        super().retrace(network)
        self.graph = graph
        self._second = None if self._second is None else SecondLook(graph.all_steps)

    def prove(self, claims: Claims) -> None:
        if self._second is not None:
            self._second.evaluate.check_weights()
        proof = self.graph.prove(claimed=claims.get("norms"))
        constants, budget = rounding_budget(proof, self.graph.input_size, self._rounding)
        self._constants.margin_lipschitz.assign(constants)
        self._constants.rounding_budget.assign(budget)
        self._norms, self._proof = proof.norms, proof

    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        if self._proof is None:  # of a file that was trusted
            self._proof = self.graph.prove(claimed=self._norms)
        constants = ops.convert_to_numpy(self._constants.margin_lipschitz)
        subject = Subject(
            name, self.network, self.graph, self._proof, constants, self._rounding, self._compiled, judge(),
            None if self._second is None else self._second.evaluate,
        )  # fmt: skip
        check_evaluation(subject, thorough)

    def identity(self) -> list[Any]:
        # The budget is proven for an evaluation in such blocks.
        return [f"GloroNet rounding={self._rounding} block={BLOCK} second_look={self._second is not None}"]

    def claims(self) -> Claims:
        return {"norms": self._norms}

    def believe(self, claims: Claims) -> None:
        self._norms, self._proof = claims["norms"], None
