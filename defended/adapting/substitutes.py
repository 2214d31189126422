"""What stands in a layer's place where a certificate would suffer from it: one function for each kind of change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers

from defended.adapting.ordering import kept_in_order
from defended.adapting.plan import Node, Plan, has_activation
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import GLOBAL_MAXIMA, INERT, WINDOW_MAXIMA

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_BEFORE = (layers.Dense, *_CONVOLUTIONS, *_DEPTHWISE, layers.SeparableConv1D, layers.SeparableConv2D)
"""Layers whose last weights are a kernel, the output's channels last (two axes of a depthwise one), and a bias."""
_NORMALISING = (
    layers.LayerNormalization, layers.GroupNormalization, layers.UnitNormalization, layers.RMSNormalization,
)  # fmt: skip
_ACTIVATING = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU)
_BENDING = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "softplus", "softsign",
    "hard_silu", "hard_swish", "hard_tanh", "hard_sigmoid", "tanh", "sigmoid", "exponential", "squareplus",
)  # fmt: skip
_AVERAGES = {
    layers.MaxPooling1D: layers.AveragePooling1D, layers.MaxPooling2D: layers.AveragePooling2D,
    layers.MaxPooling3D: layers.AveragePooling3D, layers.GlobalMaxPooling1D: layers.GlobalAveragePooling1D,
    layers.GlobalMaxPooling2D: layers.GlobalAveragePooling2D, layers.GlobalMaxPooling3D: layers.GlobalAveragePooling3D,
}  # fmt: skip


def split_activations(plan: Plan) -> None:
    """Make a layer of its own of each `activation=`."""
    for node in list(plan.nodes):
        activation = getattr(node.layer, "activation", None)
        if isinstance(node.layer, layers.Activation) or not has_activation(node.layer):
            continue
        if not isinstance(node.layer, _BEFORE):
            continue
        uses = [other for other in plan.nodes if other.layer is node.layer]
        plan.reconfigured(node, activation=None)
        made = activation if isinstance(activation, layers.Layer) else layers.Activation(activation)
        count = len(getattr(activation, "weights", ()))  # they come last in the layer's own
        for use in uses:
            config = {**made.get_config(), "name": f"{use.layer.name}_activation", "dtype": "float32"}
            split = plan.appended(use, type(made).from_config(config))
            split.weights = use.weights[len(use.weights) - count :]
            use.weights = use.weights[: len(use.weights) - count]


def fold_normalisations(plan: Plan) -> None:
    """Fold each batch normalisation into the linear layer before it or, where there is none, behind it."""
    for node in list(plan.nodes):
        if type(node.layer) in _NORMALISING:
            plan.record(
                "normalisation",
                node.name,
                node.kind,
                "removed",
                "it divides by a statistic of the input, which may be 0",
            )
            plan.removed(node)
        elif type(node.layer) is layers.BatchNormalization:
            _fold(plan, node)


def _fold(plan: Plan, node: Node) -> None:
    channels_last = node.layer.axis in (-1, len(plan.shapes[node.output]))
    scale, shift = _affine(node)
    before = plan.maker(node.inputs[0])
    target, why = "removed", "its scale multiplies the certificate's constant"
    if channels_last and before is not None and type(before.layer) in _BEFORE and plan.is_free(before):
        kernel, bias = _last_weights(before)
        _set_last_weights(plan, before, kernel * _of_outputs(scale, kernel), bias * scale + shift)
        target = "folded into the layer before"
    elif channels_last and (behind := _linear_behind(plan, node)) is not None:
        kernel, bias = _last_weights(behind)
        per_input = np.tile(scale, kernel.shape[-2] // len(scale)), np.tile(shift, kernel.shape[-2] // len(scale))
        constant = (kernel * per_input[1][:, None]).reshape(-1, kernel.shape[-1]).sum(axis=0)
        _set_last_weights(plan, behind, kernel * per_input[0][:, None], bias + constant)
        target = "folded into the layer behind"
        if getattr(behind.layer, "padding", "valid") != "valid" and np.any(shift):
            target += ", except for its zero padding"
    else:
        why += ", and no layer beside it can take it: the function is another one"
    plan.record("batch normalisation", node.name, "BatchNormalization", target, why)
    plan.removed(node)


def _affine(node: Node) -> tuple[Any, Any]:
    """Return scale and shift of a batch normalisation at inference, in float64."""
    weights = [np.asarray(value, np.float64) for value in node.weights]
    variance, mean = weights.pop(), weights.pop()
    gamma = weights.pop(0) if node.layer.scale else 1.0
    beta = weights.pop(0) if node.layer.center else 0.0
    scale = gamma / np.sqrt(variance + node.layer.epsilon)
    return scale, beta - mean * scale


def _linear_behind(plan: Plan, node: Node) -> Node | None:
    """Return the Dense layer or convolution that alone takes a node's values, whole channels scaled on the way."""
    while len(users := plan.users(node.output)) == 1 and node.output != plan.output:
        node = users[0]
        if type(node.layer) in (layers.Dense, *_CONVOLUTIONS) and node.name not in plan.shared:
            plain = getattr(node.layer, "data_format", "channels_last") == "channels_last"
            return node if plain and getattr(node.layer, "groups", 1) == 1 else None
        # A shift of the channels passes these; of a convolution's zero padding it is not true at the border only.
        # Maxima are passed because they become averages, or strides, which a negative scale passes too.
        if getattr(node.layer, "data_format", "channels_last") != "channels_last":
            return None
        if type(node.layer) not in (layers.Flatten, *INERT, *_AVERAGES, *_AVERAGES.values()):
            return None
    return None


def _last_weights(node: Node) -> tuple[Any, Any]:
    kernel = node.weights[-2 if node.layer.use_bias else -1].astype(np.float64)
    outputs = kernel.shape[-1] * (kernel.shape[-2] if type(node.layer) in _DEPTHWISE else 1)
    return kernel, node.weights[-1].astype(np.float64) if node.layer.use_bias else np.zeros(outputs)


def _of_outputs(values: Any, kernel: Any) -> Any:
    """Return a value for each output as it broadcasts over a kernel, whose last axes are the outputs."""
    return values if len(values) == kernel.shape[-1] else values.reshape(kernel.shape[-2:])


def _set_last_weights(plan: Plan, node: Node, kernel: Any, bias: Any) -> None:
    first = node.weights[: -2 if node.layer.use_bias else -1]
    if not node.layer.use_bias:
        plan.reconfigured(node, use_bias=True)
    node.weights = [*first, kernel.astype(np.float32), bias.astype(np.float32)]


def replace_pooling(plan: Plan) -> None:
    """Put strides of the convolution before it, or averages, in the place of each maximum over places."""
    for node in plan.nodes:
        if type(node.layer) in WINDOW_MAXIMA and _stride_instead(plan, node):
            plan.record("max pooling", node.name, node.kind, "strides before it", _MAXIMUM)
        elif type(node.layer) in (*WINDOW_MAXIMA, *GLOBAL_MAXIMA):
            averaging = _AVERAGES[type(node.layer)]
            plan.replaced(node, averaging.from_config(node.layer.get_config()))
            plan.record("max pooling", node.name, node.kind, averaging.__name__, _MAXIMUM)
    for node in [node for node in plan.nodes if node.layer is None]:
        plan.removed(node)


_MAXIMUM = "a maximum may pass on the whole change and little of the margin"


def _stride_instead(plan: Plan, pool: Node) -> bool:
    """Move the stride of a pooling layer into the convolution before it, where shapes stay as they are."""
    strides = tuple(pool.layer.strides)
    between = []
    node = plan.maker(pool.inputs[0])
    while node is not None and plan.is_free(node) and type(node.layer) in (*_ACTIVATING, MinMax, *INERT):
        if type(node.layer) is layers.PReLU and plan.shapes[node.output][-1] % 2:
            return False  # it stays, with a weight for each place
        between.append(node)
        node = plan.maker(node.inputs[0])
    if node is None or not plan.is_free(node) or type(node.layer) not in _CONVOLUTIONS:
        return False
    layer = node.layer
    if math.prod((*layer.strides, *layer.dilation_rate)) != 1 or tuple(pool.layer.pool_size) != strides:
        return False
    if any(size < stride for size, stride in zip(layer.kernel_size, strides, strict=True)):
        return False
    strided = type(layer).from_config({**layer.get_config(), "strides": strides})
    shape = tuple(strided.compute_output_shape((None, *plan.shapes[node.inputs[0]])))[1:]
    if shape != plan.shapes[pool.output]:
        return False
    plan.reconfigured(node, strides=strides)
    for changed in (node, *between):
        plan.shapes[changed.output] = shape
    pool.layer = None
    return True


def replace_activations(plan: Plan) -> None:
    """Put `MinMax` in the place of each activation, where the number of features is even."""
    last = kept_in_order(plan)
    for node in plan.nodes:
        if type(node.layer) not in _ACTIVATING or (name := _name_of(node.layer)) not in _BENDING:
            continue
        if plan.shapes[node.output][-1] % 2:
            plan.record(
                "activation", node.name, name, f"{name} (kept)", "MinMax sorts pairs: make the number of features even"
            )
            continue
        if node.output in last:
            plan.record("activation", node.name, name, f"{name} (kept)", _ORDER)
            continue
        plan.replaced(node, MinMax())
        plan.record("activation", node.name, name, "MinMax", "it passes on all of the margin, where others lose some")


_ORDER = "MinMax would put the classes themselves in order: put a Dense layer behind it"


def _name_of(layer: Any) -> str:
    if type(layer) is layers.Activation:
        return getattr(layer.activation, "__name__", type(layer.activation).__name__)
    return {"LeakyReLU": "leaky_relu", "PReLU": "relu"}.get(type(layer).__name__, type(layer).__name__.lower())
