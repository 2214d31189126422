"""The Lipschitz constant of a network, composed over its functional graph.

Constants multiply along a path and add where branches are added, so a product over `model.layers` would be wrong for
anything but a chain. The last Dense layer is kept apart: its columns give each pair of classes a constant of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro.bounds import round_up_to_float32
from defended.gloro.operators import LinearOperator
from defended.gloro.rules import LipschitzRule, rule_for


@dataclass
class _Step:
    layer: Any
    rule: LipschitzRule
    inputs: tuple[int, ...]
    output: int


class LipschitzGraph:
    """The rules of a network's layers in the order in which they run.

    Args:
        network: a built functional or sequential Keras model with one input and one output `[batch, m]`.

    Raises:
        ValueError: for a layer without a rule, or a network that is not a graph of layers.
    """

    def __init__(self, network: keras.Model):
        _check_is_graph(network)
        self._steps: list[_Step] = []
        self._shared: dict[tuple[int, tuple[int, ...]], LipschitzRule] = {}
        self._values = 1  # slot 0 is the input
        self._output = self._trace(network, 0)
        self.num_classes = int(network.outputs[0].shape[-1])
        last = self._steps[-1] if self._steps else None
        self.head: layers.Dense | None = None
        if (
            last is not None
            and type(last.layer) is layers.Dense
            and last.rule.factor == 1.0
            and last.output == self._output
        ):
            self.head = last.layer
            self._steps.pop()
            self._output = last.inputs[0]

    @property
    def operators(self) -> list[LinearOperator]:
        """The trainable linear maps of the hidden layers, each once."""
        found = {id(step.rule.operator): step.rule.operator for step in self._steps if step.rule.operator is not None}
        return list(found.values())

    @property
    def layers(self) -> list[Any]:
        """The hidden layers in the order in which they run; a shared layer appears at each use."""
        return [step.layer for step in self._steps]

    def estimate(self, training: bool) -> Any:
        """Constant of the hidden layers, a differentiable scalar; a lower estimate (see `LinearOperator.estimate`)."""
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
        """Proven upper bound on the constant of the hidden layers, for the weights as they are now."""
        norms: dict[int, float] = {}
        values = {0: 1.0}
        for step in self._steps:
            operator = step.rule.operator
            if operator is not None and id(operator) not in norms:
                try:
                    norms[id(operator)] = operator.bound()
                except ValueError as error:
                    raise ValueError(f"Layer {step.layer.name!r} cannot be bounded: {error}") from None
            values[step.output] = step.rule.bound([values[slot] for slot in step.inputs], norms.get(id(operator)))
        return values[self._output]

    def estimate_rows(self, predicted: Any, training: bool) -> Any:
        """Rows K_j of the class-by-class matrix for predicted classes `[batch]`: `[batch, m]`, differentiable.

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

    def bound_matrix(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The matrix K, `[m, m]` float32: proven float64 bounds, rounded upwards; 0 on the diagonal."""
        constant = self.bound()
        m = self.num_classes
        if self.head is None:
            distances = np.sqrt(2.0) * (1 - np.eye(m)) * (1 + 2.0**-51)
        else:
            from scipy.spatial.distance import cdist

            columns = keras.ops.convert_to_numpy(self.head.kernel).astype(np.float64).T
            largest = float(np.max(np.abs(columns), initial=0.0))
            if not np.isfinite(largest):
                raise ValueError(
                    f"Layer {self.head.name!r} cannot be bounded: the weights are not all finite. "
                    f"Restore them from a checkpoint before certifying."
                )
            exponent = int(np.frexp(largest)[1]) if largest else 0
            scaled = np.ldexp(columns, -exponent)
            # Differences of float32 numbers are exact or rounded once in float64, then d squares are added.
            distances = np.ldexp(cdist(scaled, scaled) * (1 + (columns.shape[1] + 8) * 2.0**-53), exponent)
        return round_up_to_float32(distances * constant * (1 + 2.0**-51))

    def _trace(self, network: Any, source: int) -> int:
        """Append the steps that compute `network`'s output from the value in slot `source`; the slot of the output."""
        known = {id(network.inputs[0]): source}

        def visit(tensor: Any) -> int:
            if id(tensor) in known:
                return known[id(tensor)]
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            sources = node.input_tensors
            if not sources:
                raise ValueError(
                    f"Layer {operation.name!r} brings an input of its own; a defended network has exactly one input."
                )
            inputs = tuple(visit(source) for source in sources)
            if isinstance(operation, keras.Model):
                _check_is_graph(operation)
                result = self._trace(operation, inputs[0])
            else:
                shape = tuple(sources[0].shape[1:])
                key = (id(operation), shape)
                if key not in self._shared:
                    self._shared[key] = rule_for(operation, shape)
                result = self._values
                self._values += 1
                self._steps.append(_Step(operation, self._shared[key], inputs, result))
            known[id(tensor)] = result
            return result

        return visit(network.outputs[0])


def _check_is_graph(network: Any) -> None:
    """Refuse a model whose `call` may do something else than its graph of layers says."""
    tensor = keras.Input((1,))
    functional = type(keras.Model(tensor, layers.Identity()(tensor)))
    if type(network).call not in (functional.call, keras.Sequential.call):
        raise ValueError(
            f"Model {network.name!r} ({type(network).__name__}) overrides `call`, so it may do more than its layers "
            f"show. Build it with `keras.Sequential` or the functional API."
        )
