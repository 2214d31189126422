"""Rules that say what a layer does to distances, and their registry, keyed by exact class.

A rule turns a layer into a `LipschitzRule`: how the constants of its inputs combine into the constant of its output. A
subclass that overrides `call` must not inherit its parent's bound, so a class that is not registered itself is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.gloro.operators import LinearOperator
from defended.networks.tracing import Shape, Step


class LipschitzRule:
    """What one layer does to distances, and how exactly float32 computes it.

    `output constant = factor * (norm of the operator) * combine(input constants)`.

    Args:
        factor: a constant bound, such as an activation's; or a function without arguments that returns it, for the
            weights as they are (a float, or a tensor that training may differentiate).
        operator: the layer's trainable linear map, if any.
        merge: how several inputs combine: `"sum"` (added), `"mean"` (averaged) or `"hypot"` (concatenated: the root of
            the sum of squares). One input passes unchanged.
        offset: l2 norm of the layer's value at zero (for an operator: its bias), a float or a function that returns it.
            None: it is computed from the layer.
        at_zero: magnitude of a single entry at zero, for functions of single entries.
        roundings: float32 operations on the way to an output entry, those of the operator included; 0 for layers that
            only move, compare or drop entries. The default suits a few operations on single entries. An entry z counts
            as computed within `gamma(roundings) * (factor * |z| + at_zero + absolute)`; see `defended.gloro.rounding`.
        absolute: see `roundings`.
        of_terms: the error is relative to the sums that the input was added up from, which a compiler may merge with
            this layer (normalisation).
        then: what follows within the same layer, such as the rule of its `activation=`.
        alone: the rule of a linear layer without the factors that were merged into `operator` from the normalisation
            behind it: float32 computes its values first.
        scale: the largest of those factors, see `rounding.linear`.
    """

    def __init__(
        self,
        factor: float | Callable[[], Any] = 1.0,
        operator: LinearOperator | None = None,
        merge: str = "sum",
        *,
        offset: float | Callable[[], float] | None = None,
        at_zero: float = 0.0,
        roundings: int = 8,
        absolute: float = 0.0,
        of_terms: bool = False,
        then: LipschitzRule | None = None,
        alone: LipschitzRule | None = None,
        scale: Callable[[], float] = lambda: 1.0,
    ):
        if merge not in ("sum", "mean", "hypot"):
            raise ValueError(f"`merge` must be 'sum', 'mean' or 'hypot'. Received: {merge!r}")
        self._factor = factor
        self._offset = offset
        self.operator = operator
        self.merge = merge
        self.at_zero = at_zero
        self.roundings, self.absolute, self.of_terms = roundings, absolute, of_terms
        self.then = then
        self.alone, self._scale = alone, scale

    @property
    def factor(self) -> float:
        """The constant factor for the weights as they are, at least 0.

        Raises:
            ValueError: when it is negative or not a number.
        """
        value = float(self._factor()) if callable(self._factor) else self._factor
        if not value >= 0:
            raise ValueError(f"its Lipschitz constant is {value}, which is not a constant that bounds anything.")
        return value

    @property
    def offset(self) -> float:
        """Norm of the value at zero, for the weights as they are."""
        return float(self._offset()) if callable(self._offset) else float(self._offset or 0.0)

    def settle(self, layer: keras.layers.Layer, input_shapes: Sequence[Shape]) -> LipschitzRule:
        """Return the rule itself; from now on an offset that was left open is computed from the layer."""
        if self._offset is None:
            zeros = [np.zeros((1, *shape), "float32") for shape in input_shapes]

            def offset() -> float:
                value = ops.convert_to_numpy(layer(zeros if len(zeros) > 1 else zeros[0])).astype(np.float64)
                return float(np.linalg.norm(value)) * 1.01  # by far more than 8 roundings, which it may take, err

            self._offset = offset
        if self.then is not None:
            output = tuple(layer.compute_output_shape((1, *input_shapes[0])))[1:]
            self.then.settle(getattr(layer, "activation", layer), [output])
        return self

    def estimate(self, inputs: Sequence[Any], norm: Any = None) -> Any:
        """Return the constant of the output as a tensor; `norm` is the operator's, where there is one."""
        result = self._merged(inputs, ops.sqrt)
        if callable(self._factor):
            result = ops.cast(ops.convert_to_tensor(self._factor()), "float32") * result
        elif self._factor != 1.0:
            result = self._factor * result
        result = result if norm is None else norm * result
        return result if self.then is None else self.then.estimate([result])

    def bound(self, inputs: Sequence[float], norm: float | None = None) -> float:
        """Return the proven constant of the output, rounded upwards; `norm` is a bound on the operator's."""
        result = self._merged(inputs, math.sqrt) * self.factor * (1.0 if norm is None else norm)
        result *= 1 + 2.0**-52 * (len(inputs) + 4)  # n roundings to merge, two products and this one, 2^-53 each
        return result if self.then is None else self.then.bound([result])

    def evaluated(
        self,
        inputs: Sequence[rounding.Evaluated],
        sizes: tuple[int, int],
        norms: tuple[float, float] | None = None,
    ) -> rounding.Evaluated:
        """Return bounds on the output's magnitude and on the error of its float32 evaluation.

        Args:
            inputs: the same of each input.
            sizes: entries of the (first) input and of the output.
            norms: bounds on the norms of the operator and of that of the weights' magnitudes.
        """
        value = rounding.merged(inputs, self.merge, sizes[1])
        if self.operator is not None and norms is not None:
            products = self.operator.fan_in
            value = rounding.linear(value, *norms, self.offset, self.roundings, products, sizes, self._scale())
        elif (factor := self.factor) != 1.0 or self.offset or self.at_zero or self.roundings:
            root = sizes[1] ** 0.5
            offset, absolute = self.offset + self.at_zero * root, self.absolute * root
            value = rounding.function(value, factor, offset, self.roundings, sizes[1], absolute, self.of_terms)
        return value if self.then is None else self.then.evaluated([value], (sizes[1], sizes[1]))

    def _merged(self, inputs: Sequence[Any], root: Callable[[Any], Any]) -> Any:
        if len(inputs) == 1:
            return inputs[0]
        if self.merge == "hypot":
            return root(sum(value * value for value in inputs))
        return sum(inputs) / len(inputs) if self.merge == "mean" else sum(inputs)


_RULES: dict[type, Callable[[Any, Shape], LipschitzRule]] = {}


def exact_rule(factor: float | Callable[[], Any] = 1.0, **options: Any) -> LipschitzRule:
    """Make a rule without rounding and with value 0 at 0, unless the options say otherwise."""
    return LipschitzRule(factor, **{"offset": 0.0, "roundings": 0, **options})


@dataclass
class RuledStep(Step):
    """One use of a layer, with what the layer does to distances."""

    rule: LipschitzRule

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of the (first) input and of the output."""
        return math.prod(self.input_shapes[0]), math.prod(self.shape)


def lipschitz_rule(
    layer_class: type,
) -> Callable[[Callable[[Any, Shape], LipschitzRule]], Callable[..., LipschitzRule]]:
    """Register the rule for one exact layer class.

    The decorated function receives the layer and its input shape (a tuple without the batch axis; for layers with
    several inputs, that of the first) and returns a `LipschitzRule` that holds in the l2 norm at inference.

    Raises:
        ValueError: when the class already has a rule.
    """

    def register(rule: Callable[[Any, Shape], LipschitzRule]) -> Callable[[Any, Shape], LipschitzRule]:
        if layer_class in _RULES:
            raise ValueError(f"{layer_class.__name__} already has a Lipschitz rule; a second one would be ambiguous.")
        _RULES[layer_class] = rule
        return rule

    return register


def known_layers() -> list[str]:
    """Return the names of the layer classes that have a rule."""
    return sorted(cls.__name__ for cls in _RULES)


def has_rule(layer: keras.layers.Layer) -> bool:
    """Return whether the layer's very class has a rule or a `lipschitz_bound()` of its own."""
    return type(layer) in _RULES or "lipschitz_bound" in vars(type(layer))


def rule_for(layer: keras.layers.Layer, input_shape: Shape) -> LipschitzRule:
    """Return the rule of a built layer: the registered one, or the layer's own `lipschitz_bound()`.

    Raises:
        ValueError: for a layer without a rule, naming it and the remedy; for one with both.
    """
    rule = _RULES.get(type(layer))
    # Only a method of the very class counts: a subclass that overrides `call` must not inherit its parent's bound.
    own = vars(type(layer)).get("lipschitz_bound")
    if rule is not None and own is not None:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has a registered rule and a `lipschitz_bound()` of its "
            f"own. Remove one: two would be ambiguous."
        )
    if own is not None:
        return LipschitzRule(layer.lipschitz_bound)
    if rule is None:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no known Lipschitz constant, so nothing behind it can "
            f"be certified. {_remedy(layer)} Known layers: {', '.join(known_layers())}."
        )
    return rule(layer, input_shape)


def _remedy(layer: Any) -> str:
    if not isinstance(layer, keras.layers.Layer):
        return "Write the operation as a layer, such as `keras.layers.Add()` in place of `x + y`."
    if isinstance(layer, layers.RNN):
        return "Layers with a state have no constant over a single input."
    if isinstance(layer, layers.LayerNormalization | layers.GroupNormalization | layers.UnitNormalization):
        return "It divides by a statistic of the input, which may be 0: use `BatchNormalization` or none."
    return "Replace it, register a rule with `@defended.gloro.lipschitz_rule`, or give the class a `lipschitz_bound()`."
