"""What each layer does to distances: a registry of rules, keyed by exact class.

A rule turns a layer into a `LipschitzRule`: how the constants of its inputs combine into the constant of its output. A
subclass that overrides `call` must not inherit its parent's bound, so a class that is not registered itself is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from defended.gloro.bounds import average_pooling_norm, max_pooling_overlap
from defended.gloro.operators import Conv2DOperator, DenseOperator, LinearOperator
from defended.layers import InvertibleDownsampling, LiResNetBlock, MinMax

Shape = tuple[int, ...]


class LipschitzRule:
    """`output constant = factor * (norm of the operator) * combine(input constants)`.

    Args:
        factor: a constant bound, such as an activation's.
        operator: the layer's trainable linear map, if any.
        merge: how several inputs combine: `"sum"` (added), `"mean"` (averaged) or `"hypot"` (concatenated: the root of
            the sum of squares). One input passes unchanged.
    """

    def __init__(self, factor: float = 1.0, operator: LinearOperator | None = None, merge: str = "sum"):
        self.factor = factor
        self.operator = operator
        self.merge = merge

    def estimate(self, inputs: Sequence[Any], norm: Any = None) -> Any:
        """The constant of the output as a tensor; `norm` is the operator's, where there is one."""
        result = self._merged(inputs, ops.sqrt)
        result = result if self.factor == 1.0 else self.factor * result
        return result if norm is None else norm * result

    def bound(self, inputs: Sequence[float], norm: float | None = None) -> float:
        """The proven constant of the output, rounded upwards; `norm` is a bound on the operator's."""
        result = self._merged(inputs, math.sqrt) * self.factor * (1.0 if norm is None else norm)
        return result * (1 + 2.0**-52 * (len(inputs) + 4))

    def _merged(self, inputs: Sequence[Any], root: Callable[[Any], Any]) -> Any:
        if len(inputs) == 1:
            return inputs[0]
        if self.merge == "hypot":
            return root(sum(value * value for value in inputs))
        return sum(inputs) / len(inputs) if self.merge == "mean" else sum(inputs)


_RULES: dict[type, Callable[[Any, Shape], LipschitzRule]] = {}

_ACTIVATIONS: dict[str, float] = {
    "linear": 1.0, "relu": 1.0, "relu6": 1.0, "leaky_relu": 1.0, "elu": 1.0, "softplus": 1.0, "tanh": 1.0,
    "softsign": 1.0, "sigmoid": 0.25, "hard_tanh": 1.0, "hard_sigmoid": 1.0 / 6.0 * (1 + 2.0**-50), "soft_shrink": 1.0,
}  # fmt: skip


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
    """Names of the layer classes that have a rule."""
    return sorted(cls.__name__ for cls in _RULES)


def rule_for(layer: Any, input_shape: Shape) -> LipschitzRule:
    """The rule of a layer that was built.

    Raises:
        ValueError: for a layer without a rule, naming it and the remedy.
    """
    rule = _RULES.get(type(layer))
    if rule is None:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no known Lipschitz constant, so nothing behind it can "
            f"be certified. {_remedy(layer)} Known layers: {', '.join(known_layers())}."
        )
    return rule(layer, input_shape)


def activation_factor(layer: Any) -> float:
    """Lipschitz constant of a layer's `activation=`.

    Raises:
        ValueError: for an activation without a known constant.
    """
    activation = layer.activation
    if activation is None:
        return 1.0
    name = getattr(activation, "__name__", type(activation).__name__)
    # A user's own function may bear a known name: the object must be Keras's.
    if isinstance(activation, keras.layers.Layer):
        rule = rule_for(activation, ())
        if rule.operator is None:
            return rule.factor
    elif name in _ACTIVATIONS and activation is keras.activations.get(name):
        return _ACTIVATIONS[name]
    raise ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has the activation {name!r}, whose Lipschitz constant is not "
        f"known. Use one of {', '.join(sorted(_ACTIVATIONS))}, or `MinMax` as a layer of its own."
    )


def _remedy(layer: Any) -> str:
    if isinstance(layer, layers.BatchNormalization):
        return "Leave normalisation out: it rescales by batch statistics while training."
    if not isinstance(layer, keras.layers.Layer):
        return "Write the operation as a layer, such as `keras.layers.Add()` in place of `x + y`."
    if isinstance(layer, layers.RNN):
        return "Layers with a state have no constant over a single input."
    return "Replace it, or register a rule with `@defended.gloro.lipschitz_rule`."


def _channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) uses data_format={layer.data_format!r}. "
            f"Only 'channels_last' is supported: rebuild the network with it."
        )


def _does_not_expand(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule()


for _cls in (
    layers.Identity, layers.Flatten, layers.Reshape, layers.Permute, layers.Dropout, layers.ZeroPadding2D,
    layers.Cropping2D, MinMax, InvertibleDownsampling,
):  # fmt: skip
    lipschitz_rule(_cls)(_does_not_expand)


@lipschitz_rule(layers.ReLU)
def _relu(layer: Any, shape: Shape) -> LipschitzRule:
    # A threshold above 0 makes the function jump.
    if float(layer.threshold) != 0.0:
        raise ValueError(
            f"Layer {layer.name!r} (ReLU) has threshold={layer.threshold}; only 0 is continuous. Set it to 0."
        )
    return LipschitzRule(factor=max(1.0, abs(float(layer.negative_slope))))


@lipschitz_rule(layers.LeakyReLU)
def _leaky_relu(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(factor=max(1.0, abs(float(layer.negative_slope))))


@lipschitz_rule(layers.Activation)
def _activation(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(factor=activation_factor(layer))


@lipschitz_rule(layers.Dense)
def _dense(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(activation_factor(layer), DenseOperator(lambda: ops.convert_to_tensor(layer.kernel)))


@lipschitz_rule(layers.Conv2D)
def _conv2d(layer: Any, shape: Shape) -> LipschitzRule:
    _channels_last(layer)
    operator = Conv2DOperator(
        lambda: ops.convert_to_tensor(layer.kernel),
        shape, layer.strides, layer.padding, layer.dilation_rate, layer.groups,
    )  # fmt: skip
    return LipschitzRule(activation_factor(layer), operator)


@lipschitz_rule(LiResNetBlock)
def _liresnet_block(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(operator=Conv2DOperator(lambda: layer.kernel, shape, padding="same"))


@lipschitz_rule(layers.AveragePooling2D)
def _average_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    _channels_last(layer)
    sides = zip(shape[:2], layer.pool_size, layer.strides, strict=True)
    return LipschitzRule(math.prod(average_pooling_norm(*side, layer.padding) for side in sides) * (1 + 2.0**-51))


@lipschitz_rule(layers.GlobalAveragePooling2D)
def _global_average_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    _channels_last(layer)
    return LipschitzRule((shape[0] * shape[1]) ** -0.5 * (1 + 2.0**-51))


@lipschitz_rule(layers.MaxPooling2D)
def _max_pooling(layer: Any, shape: Shape) -> LipschitzRule:
    _channels_last(layer)
    sides = zip(shape[:2], layer.pool_size, layer.strides, strict=True)
    overlap = math.prod(max_pooling_overlap(*side, layer.padding) for side in sides)
    return LipschitzRule(math.sqrt(overlap) * (1 + 2.0**-51))


@lipschitz_rule(layers.Add)
def _add(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(merge="sum")


@lipschitz_rule(layers.Subtract)
def _subtract(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(merge="sum")


@lipschitz_rule(layers.Average)
def _average(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(merge="mean")


@lipschitz_rule(layers.Concatenate)
def _concatenate(layer: Any, shape: Shape) -> LipschitzRule:
    return LipschitzRule(merge="hypot")
