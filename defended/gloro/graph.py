"""The Lipschitz constant of a network, composed over its functional graph.

Constants multiply along a path and add where branches are added, so a product over `model.layers` would be wrong for
anything but a chain. The last Dense layer is kept apart: its columns give each pair of classes a constant of its own.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro import convolution_rules as convolution_rules  # registers rules, as the next does
from defended.gloro import pooling_rules as pooling_rules
from defended.gloro import rounding
from defended.gloro.evaluation import Evaluation
from defended.gloro.normalisation import fold_normalisation
from defended.gloro.operators import LinearOperator
from defended.gloro.proof import LayerBound, Proof, differences_of_entries, differences_of_logits
from defended.gloro.rules import LipschitzRule, RuledStep, rule_for
from defended.networks.checks import check_plain_weights
from defended.networks.tracing import Shape, trace

Array = np.ndarray[Any, np.dtype[Any]]


class LipschitzGraph:
    """The rules of a network's layers in the order in which they run.

    Args:
        network: a built functional or sequential Keras model with one input and one output `[batch, m]`.

    Raises:
        ValueError: for a layer without a rule, or a network that is not a graph of layers.
    """

    def __init__(self, network: keras.Model):
        self._input_shape = tuple(network.inputs[0].shape[1:])
        self.input_size = math.prod(self._input_shape)
        steps, self.output_slot = trace(network)
        rules: dict[tuple[int, Shape], LipschitzRule] = {}  # a layer that is shared has one operator
        self.all_steps: list[RuledStep] = []
        """Every use of a layer in the order in which they run, the last one included."""
        for step in steps:
            key = id(step.layer), step.input_shapes[0]
            if key not in rules:
                rules[key] = rule_for(step.layer, step.input_shapes[0]).settle(step.layer, step.input_shapes)
            self.all_steps.append(RuledStep(**vars(step), rule=rules[key]))
        self.num_classes = int(network.outputs[0].shape[-1])
        self._steps, self._output = list(self.all_steps), self.output_slot
        self.head: layers.Dense | None = None
        last = steps[-1] if steps else None
        if last is not None and type(last.layer) is layers.Dense and self._steps[-1].rule.then is None:
            self.head = last.layer
            self._steps.pop()
            self._output = last.inputs[0]
        self._fold_normalisations()
        self.evaluate = Evaluation(self.all_steps)

    @property
    def operators(self) -> list[LinearOperator]:
        """The trainable linear maps of the hidden layers, each once."""
        found = {id(step.rule.operator): step.rule.operator for step in self._steps if step.rule.operator is not None}
        return list(found.values())

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The hidden layers in the order in which they run; a shared layer appears at each use."""
        return [step.layer for step in self._steps]

    def chain(self, wanted_by: str) -> list[keras.layers.Layer]:
        """Return all layers in order, the last one included, if each feeds the next and is used once.

        Raises:
            ValueError: where the network branches or shares a layer; it names the layer, and `wanted_by`.
        """
        found: list[keras.layers.Layer] = []
        slot = 0
        for step in self.all_steps:
            if tuple(step.inputs) != (slot,) or any(step.layer is other for other in found):
                raise ValueError(
                    f"`{wanted_by}` needs a chain of layers, each used once; {step.layer.name!r} is not in one."
                )
            slot = step.output
            found.append(step.layer)
        return found

    def estimate(self, training: bool) -> Any:
        """Estimate the hidden layers' constant from below, a differentiable scalar (`LinearOperator.estimate`)."""
        # A shared layer must move its iterate once, and both uses see the same value.
        norms: dict[int, Any] = {}
        values: dict[int, Any] = {0: ops.ones((), dtype="float32")}
        for step in self._steps:
            rule = step.rule
            inputs = [values[slot] for slot in step.inputs]
            if rule.operator is not None and id(rule.operator) not in norms:
                norms[id(rule.operator)] = rule.operator.estimate(training)
            values[step.output] = rule.estimate(inputs, norms.get(id(rule.operator)))
        return values[self._output]

    def bound(self) -> float:
        """Return a proven upper bound on the constant of the hidden layers for the weights as they are now."""
        return self.prove().constant

    def prove(
        self, report: list[LayerBound] | None = None, at_norm: float = 0.0, claimed: Array | None = None
    ) -> Proof:
        """Bound the network for its weights as they are now.

        Args:
            report: filled with a line for each layer.
            at_norm: the input's norm for which the report states errors.
            claimed: `[k]` float64, bounds that somebody claims for `operators`: each is verified and, where it does not
                hold, found anew.

        Raises:
            ValueError: for a layer whose weights are not finite, naming it.
        """
        operators = self.operators
        offered = np.zeros(0) if claimed is None else np.asarray(claimed, np.float64)
        known = offered.shape == (len(operators),) and bool(np.all(np.isfinite(offered)))
        claims = (
            {id(operator): float(value) for operator, value in zip(operators, offered, strict=True)} if known else {}
        )
        norms: dict[int, tuple[float, float]] = {}
        constants = {0: 1.0}
        values = {0: rounding.of_input(self.input_size)}
        sums = []
        for step in self.all_steps:
            check_plain_weights(step.layer)
        at_zero = self.evaluate.norms(np.zeros((1, *self._input_shape), "float32"))
        for step in self._steps:
            operator, alone = step.rule.operator, step.rule.alone
            sources = [values[slot] for slot in step.inputs]
            try:
                if operator is not None and id(operator) not in norms:
                    bound = operator.bound(claims.get(id(operator)))
                    norms[id(operator)] = bound, operator.bound_of_magnitudes()
                pair = norms.get(id(operator))
                norm = pair[0] if pair else None
                constants[step.output] = step.rule.bound([constants[slot] for slot in step.inputs], norm)
                values[step.output] = step.rule.evaluated(sources, step.sizes, pair)
                if alone is not None and alone.operator is not None:
                    magnitudes = alone.operator.bound_of_magnitudes()
                    sums.append(alone.evaluated(sources, step.sizes, (magnitudes, magnitudes)).terms)
            except ValueError as error:
                raise ValueError(f"Layer {step.layer.name!r} cannot be bounded: {error}") from None
            if alone is None:  # a folded layer's value is another one here than on the way
                values[step.output] = values[step.output].anchored(at_zero[step.output], constants[step.output])
            if report is not None:
                report.append(LayerBound.of(step, norm, values[step.output], at_norm))
        constant, value = constants[self._output], values[self._output]
        if self.head is None:
            found = differences_of_entries(self.num_classes, constant, value)
        else:
            roundings = self.all_steps[-1].rule.roundings
            found = differences_of_logits(self.head, roundings, constant, value)
            if report is not None:
                worst = max(float(np.max(found.errors[0] + found.errors[1] * at_norm)), 0.0)
                distance = float(np.max(found.margins)) / constant if constant else 0.0
                method = "distances of columns"
                report.append(LayerBound(self.head.name, "Dense", method, distance, 0.0, roundings, worst))
        limit = rounding.largest_norm([value.terms for value in values.values()] + sums + found.terms)
        proven = np.array([norms[id(operator)][0] for operator in operators])
        folded = {step.output for step in self._steps if step.rule.alone is not None}
        slot_errors = {slot: value.error for slot, value in values.items() if slot not in folded}
        return Proof(constant, found.margins, found.errors, limit, proven, slot_errors)

    def estimate_rows(self, predicted: Any, training: bool) -> Any:
        """Return the rows K_j for predicted classes `[batch]`, estimates that are differentiable: `[batch, m]`.

        Only the rows that a batch needs are formed, by one product the size of the head's own: 1000 classes cost no
        `[batch, features, classes]` tensor and no m x m matrix while training.
        """
        constant = self.estimate(training)
        if self.head is None:
            rows = 2.0**0.5 * (1.0 - ops.one_hot(predicted, self.num_classes))
            return constant * rows
        kernel = ops.convert_to_tensor(self.head.kernel)
        chosen = ops.take(ops.transpose(kernel), predicted, axis=0)
        squares = ops.sum(ops.square(kernel), axis=0)
        scale = ops.take(squares, predicted)[:, None] + squares[None, :]
        distances = scale - 2.0 * ops.matmul(chosen, kernel)
        # The floor keeps the root's gradient finite; at equal columns it is far below any margin that matters.
        return constant * ops.sqrt(ops.maximum(distances, 1e-12 * ops.stop_gradient(scale) + 1e-36))

    def _fold_normalisations(self) -> None:
        """Merge each normalisation into the linear layer whose only consumer it is."""
        consumers: dict[int, int] = {self._output: 1}
        for step in self._steps:
            for slot in step.inputs:
                consumers[slot] = consumers.get(slot, 0) + 1
        makers = {step.output: step for step in self._steps}
        for step in self._steps:
            maker = makers.get(step.inputs[0])
            if type(step.layer) is not layers.BatchNormalization or maker is None or consumers[maker.output] > 1:
                continue
            folded = fold_normalisation(maker.rule, step.layer, step.shape)
            if folded is not None:
                maker.rule, step.rule = folded
