"""A network's logits in float64, from float32 weights, by operations that every runtime has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro.rounding import BLOCK
from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import FRAMING, INERT, MOVING, is_plain_convolution
from defended.networks.tracing import Step
from defended.numerics.float32 import SMALLEST_NORMAL

LONGEST = 2**12 * BLOCK
"""The longest inner product that is added up whole; see `defended.gloro.second_look`."""

_AS_THEY_ARE = (
    MinMax, layers.GlobalAveragePooling2D, layers.Add, layers.Subtract, layers.Average,
    layers.Concatenate, *MOVING, *FRAMING,
)  # fmt: skip
"""Layers without weights, whose own code computes in the type of what it is given."""


class Float64Evaluation:
    """A network's logits in float64, from the float32 weights as they are now.

    Made of gathering, products of matrices and element-wise operations, which TensorFlow, its C++ loader and ONNX
    Runtime all have in float64; ONNX Runtime has no convolutions.

    Args:
        steps: the network's layers in the order in which they run.

    Raises:
        ValueError: a layer is not one that can be evaluated so; the message names it.
    """

    def __init__(self, steps: Sequence[Step]):
        self._steps = steps
        for step in steps:
            _check(step.layer)

    def __call__(self, inputs: Any) -> Any:
        """Return the logits `[k, m]` float64 of inputs `[k, ...]` float32."""
        values: dict[int, Any] = {0: ops.cast(inputs, "float64")}
        for step in self._steps:
            values[step.output] = _evaluated(step.layer, [values[slot] for slot in step.inputs])
        return values[self._steps[-1].output]

    def check_weights(self) -> None:
        """Raise where a weight may be flushed to zero.

        Raises:
            ValueError: naming the layer.
        """
        for step in self._steps:
            for weight in getattr(step.layer, "weights", ()):
                value = np.abs(ops.convert_to_numpy(weight))
                if value.dtype == np.float32 and ((value > 0) & (value < SMALLEST_NORMAL)).any():
                    raise ValueError(
                        f"Layer {step.layer.name!r} has weights between 0 and 2^-126, which a processor may take for 0 "
                        f"before a second look in float64. Set them to 0, or leave `second_look` out."
                    )


def _check(layer: layers.Layer) -> None:
    activation = getattr(layer, "activation", None)
    fits = type(layer) in (*_AS_THEY_ARE, *_BY_FUNCTIONS, *INERT)
    fits = (fits or is_plain_convolution(layer)) and (activation is None or activation in _ACTIVATIONS)
    if not fits:
        raise ValueError(
            f"A second look in float64 does not know layer {layer.name!r} ({type(layer).__name__}) or its activation. "
            f"Leave `second_look` out, or use Dense, Conv2D, BatchNormalization, MinMax, ReLU and layers that move, "
            f"frame, add or concatenate."
        )
    kernel = getattr(layer, "kernel", None)
    if kernel is not None and int(np.prod(kernel.shape[:-1])) > LONGEST:
        raise ValueError(
            f"A second look in float64 adds up at most {LONGEST} products, and layer {layer.name!r} has "
            f"{int(np.prod(kernel.shape[:-1]))} in one output. Leave `second_look` out."
        )


def _rectified(value: Any, slope: float = 0.0, largest: float | None = None) -> Any:
    """ReLU and its kin. TensorFlow's own take a slope as a float32 number, in float64 too."""
    value = ops.maximum(value, 0.0) + slope * ops.minimum(value, 0.0)
    return value if largest is None else ops.minimum(value, float(largest))


_ACTIVATIONS = {
    keras.activations.linear: lambda value: value,
    keras.activations.relu: _rectified,
    keras.activations.leaky_relu: lambda value: _rectified(value, 0.2),
}
_BY_FUNCTIONS = (layers.Dense, layers.BatchNormalization, LiResNetBlock, layers.ReLU, layers.LeakyReLU)


def _evaluated(layer: Any, inputs: list[Any]) -> Any:
    if isinstance(layer, INERT):
        return inputs[0]
    if isinstance(layer, layers.Dense):
        return _finished(layer, ops.matmul(inputs[0], _exactly(layer.kernel)))
    if isinstance(layer, layers.Conv2D):
        framed = layer.strides, layer.padding, layer.dilation_rate
        return _finished(layer, _convolved(inputs[0], _exactly(layer.kernel), *framed))
    if isinstance(layer, LiResNetBlock):
        kernel = layer.residual_scale * _exactly(layer.branch_kernel)
        kernel = kernel if layer.affine is None else kernel * _exactly(layer.affine)
        whole = kernel + layer.identity.astype("float64")
        return _finished(layer, _convolved(inputs[0], whole, (1, 1), "same", (1, 1)))
    if isinstance(layer, layers.BatchNormalization):
        return _normalised(layer, inputs[0])
    if isinstance(layer, layers.LeakyReLU):
        return _rectified(inputs[0], float(layer.negative_slope))
    if isinstance(layer, layers.ReLU):
        return _rectified(inputs[0], float(layer.negative_slope or 0.0), layer.max_value)
    return layer.call(inputs[0] if len(inputs) == 1 else inputs)


def _exactly(weights: Any) -> Any:
    return ops.cast(ops.convert_to_tensor(weights), "float64")


def _finished(layer: Any, value: Any) -> Any:
    """A value with the layer's bias and activation."""
    value = value if layer.bias is None else value + _exactly(layer.bias)
    activation = getattr(layer, "activation", None)
    return value if activation is None else _ACTIVATIONS[activation](value)


def _normalised(layer: Any, value: Any) -> Any:
    scale = 1.0 / ops.sqrt(_exactly(layer.moving_variance) + float(layer.epsilon))
    scale = scale * _exactly(layer.gamma) if layer.scale else scale
    value = (value - _exactly(layer.moving_mean)) * scale
    return value + _exactly(layer.beta) if layer.center else value


def _convolved(value: Any, kernel: Any, strides: Any, padding: str, dilation: Any) -> Any:
    """A convolution of `[k, height, width, channels]` as one product of matrices: windows times the kernel."""
    sides, channels = value.shape[1:3], value.shape[3]
    frames, starts, taps = [(0, 0)], [], []
    for side, reach, step, apart in zip(sides, kernel.shape[:2], strides, dilation, strict=True):
        window = (reach - 1) * apart + 1
        places = -(-side // step) if padding == "same" else (side - window) // step + 1
        missing = max((places - 1) * step + window - side, 0) if padding == "same" else 0
        frames.append((missing // 2, missing - missing // 2))
        starts.append(np.arange(places) * step)
        taps.append(np.arange(reach) * apart)
    framed = ops.pad(value, [*frames, (0, 0)]) if padding == "same" else value
    rows, columns = (starts[axis][:, None] + taps[axis] for axis in (0, 1))  # [places, taps]
    width = framed.shape[2]
    # [rows, columns, taps of rows, taps of columns]
    index = rows[:, None, :, None] * width + columns[None, :, None, :]
    flat = ops.reshape(framed, (-1, framed.shape[1] * width, channels))
    entries = index[0, 0].size * channels
    windows = ops.reshape(ops.take(flat, index.reshape(-1), axis=1), (-1, len(rows) * len(columns), entries))
    product = ops.matmul(windows, ops.reshape(kernel, (-1, kernel.shape[3])))
    return ops.reshape(product, (-1, len(rows), len(columns), kernel.shape[3]))
