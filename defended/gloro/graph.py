"""The Lipschitz constant of a network, composed over its functional graph.

Constants multiply along a path and add where branches are added, so a product over `model.layers` would be wrong for
anything but a chain. The last Dense layer is kept apart: its columns give each pair of classes a constant of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.gloro.evaluation import Evaluation
from defended.gloro.normalisation import fold_normalisation
from defended.gloro.operators import LinearOperator, in_float64
from defended.gloro.rules import LipschitzRule, rule_for
from defended.numerics.float32 import SMALLEST_NORMAL, gamma

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class _Step:
    layer: Any
    rule: LipschitzRule
    inputs: tuple[int, ...]
    output: int
    sizes: tuple[int, int]
    """Entries of the (first) input and of the output."""
    shape: tuple[int, ...]
    """Of the output, without the batch axis."""


class LayerBound(NamedTuple):
    """One line of the certificate: what was proven of a layer."""

    layer: str
    kind: str
    """Class of the layer."""
    method: str
    bound: float
    """Upper bound on its Lipschitz constant; of the last layer, on the largest distance between two columns."""
    slack: float
    """`bound / lower - 1`, with a lower estimate of the norm by float32 power iteration; 0 for known constants."""
    roundings: int
    error: float
    """Bound on the l2 error of its output at an input of norm `at_norm`, all earlier layers included."""


class Proof(NamedTuple):
    """What holds of a network for its weights as they are, in float64."""

    constant: float
    """Lipschitz constant of the hidden layers."""
    margins: Array
    """`[m, m]`, Lipschitz constants of `y_j - y_i` in real arithmetic; 0 on the diagonal."""
    errors: tuple[Array, Array]
    """`[m, m]` c0 and c1: `y_j - y_i` is computed within `c0 + c1 * rho` on inputs of norm at most rho."""
    limit: float
    """Largest norm of an input on which nothing can overflow; negative where there is none."""
    norms: Array = np.zeros(0)
    """`[k]`, bounds on the norms of the hidden layers' linear maps, in the order of `LipschitzGraph.operators`."""
    slot_errors: Mapping[int, Array] = MappingProxyType({})
    """For each value that is evaluated as it was bounded, c0 and c1: it is computed within `c0 + c1 * rho`, in l2."""


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
        self._input_shape = tuple(network.inputs[0].shape[1:])
        self.input_size = math.prod(self._input_shape)
        self._values = 1  # slot 0 is the input
        self._output = self._trace(network, 0)
        self.num_classes = int(network.outputs[0].shape[-1])
        last = self._steps[-1] if self._steps else None
        self.all_steps = list(self._steps)
        """Every layer in the order in which they run, the last one included."""
        self.output_slot = self._output
        self.head: layers.Dense | None = None
        if last is not None and type(last.layer) is layers.Dense and last.rule.then is None:
            self.head = last.layer
            self._head_operator = last.rule.operator
            self._head_roundings = last.rule.roundings
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
    def layers(self) -> list[Any]:
        """The hidden layers in the order in which they run; a shared layer appears at each use."""
        return [step.layer for step in self._steps]

    def chain(self, wanted_by: str) -> list[Any]:
        """All layers in order, the last one included, where each feeds the next and is used once.

        Raises:
            ValueError: where the network branches or shares a layer; it names the layer, and `wanted_by`.
        """
        found: list[Any] = []
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
        return self.prove().constant

    def prove(
        self, report: list[LayerBound] | None = None, at_norm: float = 0.0, claimed: Array | None = None
    ) -> Proof:
        """Bound the network for its weights as they are now.

        Args:
            report: filled with a line for each layer.
            at_norm: the input's norm for which the report states errors.
            claimed: `[k]` float64, bounds that somebody says hold of `operators`: each is verified, and where it does
                not hold, found anew.

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
            _check_is_plain(step.layer)
        at_zero = self.evaluate.norms(np.zeros((1, *self._input_shape), "float32"))
        for step in self._steps:
            operator, alone = step.rule.operator, step.rule.alone
            sources = [values[slot] for slot in step.inputs]
            try:
                if operator is not None and id(operator) not in norms:
                    claim = claims.get(id(operator))
                    bound = operator.bound() if claim is None else operator.bound(claim)
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
                report.append(_line(step, norm, values[step.output], at_norm))
        constant, value = constants[self._output], values[self._output]
        head = self.head
        if head is None:
            m = self.num_classes
            margins = np.sqrt(2.0) * (1 - np.eye(m)) * (1 + 2.0**-51) * constant
            errors = tuple(np.sqrt(2.0) * (1 + 2.0**-51) * part * np.ones((m, m)) for part in value.error)
            terms: list[Array] = []
        else:
            margins, errors, terms = self._prove_head(head, constant, value)
            if report is not None:
                worst = max(float(np.max(errors[0] + errors[1] * at_norm)), 0.0)
                distance = float(np.max(margins)) / constant if constant else 0.0
                method = "distances of columns"
                report.append(LayerBound(head.name, "Dense", method, distance, 0.0, self._head_roundings, worst))
        limit = rounding.largest_norm([value.terms for value in values.values()] + sums + terms)
        found = np.array([norms[id(operator)][0] for operator in operators])
        folded = {step.output for step in self._steps if step.rule.alone is not None}
        slot_errors = {slot: value.error for slot, value in values.items() if slot not in folded}
        return Proof(constant, margins, (errors[0], errors[1]), limit, found, slot_errors)

    def _prove_head(
        self, head: Any, constant: float, value: rounding.Evaluated
    ) -> tuple[Array, tuple[Array, Array], list[Array]]:
        from scipy.spatial.distance import cdist

        kernel = in_float64(head.kernel).T
        bias = np.abs(in_float64(head.bias)) if head.use_bias else np.zeros(len(kernel))
        largest = float(np.max(np.abs(kernel), initial=0.0))
        if not np.isfinite(largest + bias.max()):
            raise ValueError(
                f"Layer {head.name!r} cannot be bounded: the weights are not all finite. "
                f"Restore them from a checkpoint before certifying."
            )
        exponent = int(np.frexp(largest)[1]) if largest else 0
        scaled = np.ldexp(kernel, -exponent)
        size = kernel.shape[1]
        # Differences of float32 numbers are exact or rounded once in float64, then squares are added.
        up = 1 + (size + 8) * 2.0**-53
        distances = np.ldexp(cdist(scaled, scaled) * up, exponent)
        sums = np.ldexp(cdist(np.abs(scaled), -np.abs(scaled)) * up, exponent)
        relative = gamma(self._head_roundings)
        computed = value.magnitude + value.error
        biases = bias[:, None] + bias[None, :]
        errors = []
        for part, (error, norm) in enumerate(zip(value.error, computed, strict=True)):
            flushed = SMALLEST_NORMAL * (2 * size**0.5 * norm + (1 - part) * (6 * (size + 1) + size**0.5 * sums))
            terms = sums * norm + (1 - part) * biases
            errors.append((distances * error + relative * terms + flushed) * (1 + 2.0**-48))
        # A single logit's terms are at most those of its pair with itself.
        diagonal = np.diag(sums).max()
        sums_of_logits = diagonal * computed + rounding.affine(2 * bias.max())
        return distances * constant * (1 + 2.0**-51), (errors[0], errors[1]), [sums_of_logits]

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
                if len(operation.outputs) != 1:
                    raise ValueError(
                        f"Model {operation.name!r} inside the network has {len(operation.outputs)} outputs; only "
                        f"nested models with a single one are supported. Use its layers instead."
                    )
                result = self._trace(operation, inputs[0])
            else:
                shapes = [tuple(source.shape[1:]) for source in sources]
                _check_does_not_broadcast(operation, shapes)
                shape = shapes[0]
                key = (id(operation), shape)
                if key not in self._shared:
                    rule = rule_for(operation, shape)
                    self._shared[key] = rule.settle(operation, shapes)
                result = self._values
                self._values += 1
                sizes = math.prod(shape), math.prod(tensor.shape[1:])
                self._steps.append(_Step(operation, self._shared[key], inputs, result, sizes, tuple(tensor.shape[1:])))
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


def _check_does_not_broadcast(layer: Any, shapes: list[tuple[int, ...]]) -> None:
    """Refuse sums of different shapes: an entry that is added to many others moves all of them."""
    if isinstance(layer, layers.Add | layers.Subtract | layers.Average) and len(set(shapes)) > 1:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) broadcasts its inputs, of shapes {shapes}, which enlarges "
            f"distances by an unknown factor. Bring them to one shape first."
        )


def _check_is_plain(layer: Any) -> None:
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise ValueError(
            f"Layer {layer.name!r} has low-rank or quantised weights; certificates are made for plain float32 kernels. "
            f"Merge the low-rank weights, as saving and loading does, or defend the network that was not quantised."
        )


def _line(step: _Step, norm: float | None, value: rounding.Evaluated, at_norm: float) -> LayerBound:
    rule, operator = step.rule, step.rule.operator
    bound = rule.bound([1.0], norm) if len(step.inputs) == 1 else rule.factor
    method, slack = "closed form", 0.0
    if operator is not None:
        method = operator.method
        lower = operator.lower_estimate()
        slack = max((norm or 0.0) / lower - 1, 0.0) if lower else 0.0
    elif type(step.layer) is layers.BatchNormalization:
        method = "folded into the layer before"
    elif len(step.inputs) > 1:
        method = {"sum": "branches add", "mean": "branches average", "hypot": "root of the sum of squares"}[rule.merge]
    error = float(value.error[0] + value.error[1] * at_norm)
    return LayerBound(step.layer.name, type(step.layer).__name__, method, bound, slack, rule.roundings, error)
