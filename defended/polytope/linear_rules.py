"""The affine maps that linear layers are made of. Layers over one axis work on maps with a second axis of length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from defended.networks.checks import (
    check_channels_last,
    check_is_adapted,
    check_keeps_shape,
    check_normalises_channels,
)
from defended.networks.exact import exact_layer
from defended.numerics.sliding_windows import axes_of
from defended.polytope.affine_maps import AffineMap, GlobalPoolMap, PoolMap, ReshapeMap
from defended.polytope.element_maps import Arithmetic, ScaleMap, Scaling, SelectMap
from defended.polytope.kernel_maps import ConvMap, Windows
from defended.polytope.reductions import Shape, as_map


def moved(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the map of a layer whose outputs are entries of its input, or 0: as its exact values say."""
    check_channels_last(layer)
    if getattr(layer, "interpolation", "nearest") != "nearest":
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has interpolation={layer.interpolation!r}; polytope bounds "
            f"know 'nearest' only. Build it with that."
        )
    numbers = 1.0 + np.arange(np.prod(shape)).reshape(1, *shape)
    found = exact_layer(layer, [numbers])
    if found is None or found.value.shape[1:] != output_shape:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) makes {output_shape} out of maps of {shape}, which is more "
            f"than moving entries. Resize the images before the network."
        )
    return [SelectMap(shape, output_shape, found.value.astype(int) - 1)]


def averaged(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the maps of a layer that averages over windows."""
    check_channels_last(layer)
    return _on_maps(shape, output_shape, lambda shape, made: [PoolMap(layer, shape, made)])


def averaged_everywhere(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the maps of a layer that averages each channel."""
    check_channels_last(layer)
    return _on_maps(shape, output_shape, lambda shape, _: [GlobalPoolMap(layer, shape, output_shape)])


def convolved(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the maps of Conv1D or Conv2D."""
    return _windows(layer, shape, output_shape, [Windows(_read(layer, "kernel"), _bias_of(layer), *_steps(layer))])


def convolved_by_channel(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the maps of DepthwiseConv1D or DepthwiseConv2D."""
    kernel = _apart(_read(layer, "kernel"))
    return _windows(layer, shape, output_shape, [Windows(kernel, _bias_of(layer), *_steps(layer), groups=shape[-1])])


def convolved_in_two_steps(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the maps of SeparableConv1D or SeparableConv2D: each channel by itself, then a mixing of channels."""
    alone = Windows(_apart(_read(layer, "depthwise_kernel")), lambda: None, *_steps(layer), groups=shape[-1])
    mixing = Windows(_read(layer, "pointwise_kernel"), _bias_of(layer), (1, 1), "valid")
    return _windows(layer, shape, output_shape, [alone, mixing])


def normalised_by_statistics(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the map of BatchNormalization at inference."""
    check_normalises_channels(layer, shape)

    def scaling(numbers: Arithmetic) -> Scaling:
        variance, mean = numbers.read(layer.moving_variance), numbers.read(layer.moving_mean)
        inverse = 1.0 / numbers.root(variance + layer.epsilon)
        factor = inverse * numbers.read(layer.gamma) if layer.scale else inverse
        centre = (numbers.read(layer.beta),) if layer.center else ()
        return Scaling(factor, (-mean * factor, *centre), (numbers.root(variance), inverse))

    return [ScaleMap(shape, scaling)]


def standardised(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the map of Normalization."""

    def scaling(numbers: Arithmetic) -> Scaling:
        mean = numbers.read(layer.mean)
        deviation = numbers.larger(numbers.root(numbers.read(layer.variance)), keras.backend.epsilon())
        if layer.invert:
            return Scaling(deviation, (mean,))
        factor = 1.0 / deviation
        return Scaling(factor, (-mean * factor,))

    return [ScaleMap(shape, scaling, lambda: check_is_adapted(layer))]


def rescaled(layer: Any, shape: Shape, output_shape: Shape) -> list[AffineMap]:
    """Return the map of Rescaling."""
    check_keeps_shape(layer, shape)
    return [ScaleMap(shape, lambda numbers: Scaling(numbers.read(layer.scale), (numbers.read(layer.offset),)))]


def _on_maps(shape: Shape, output_shape: Shape, maps: Callable[[Shape, Shape], Sequence[AffineMap]]) -> list[AffineMap]:
    """Return maps between maps of two axes, with changes of shape around them where a layer has one axis."""
    inside, outside = as_map(shape), as_map(output_shape)
    made = list(maps(inside, outside))
    before: list[AffineMap] = [ReshapeMap(shape, inside)] if inside != shape else []
    after: list[AffineMap] = [ReshapeMap(made[-1].output_shape, output_shape)]
    return [*before, *made, *(after if made[-1].output_shape != output_shape else [])]


def _windows(layer: Any, shape: Shape, output_shape: Shape, steps: Sequence[Windows]) -> list[AffineMap]:
    """Return the maps of convolutions behind one another."""
    check_channels_last(layer)
    if getattr(layer, "groups", 1) != 1 or set(layer.dilation_rate) != {1}:
        groups = f"groups={layer.groups} and " if hasattr(layer, "groups") else ""
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has {groups}dilation_rate={tuple(layer.dilation_rate)}; "
            f"polytope bounds know plain convolutions only. Build it with groups=1 and dilation_rate=1."
        )
    framed: list[AffineMap] = []
    if layer.padding == "causal":
        length, channels = shape
        before = int(layer.kernel.shape[0]) - 1
        entries = np.arange(-before * channels, length * channels).reshape(1, before + length, channels)
        framed, shape = [SelectMap(shape, entries.shape[1:], np.maximum(entries, -1))], entries.shape[1:]

    def maps(shape: Shape, _: Shape) -> list[AffineMap]:
        made: list[AffineMap] = []
        for windows in steps:
            height, width, _channels, filters = (int(size) for size in windows.kernel().shape)
            rows, columns = axes_of((height, width), shape[:2], windows.strides, windows.padding)
            made.append(ConvMap(windows, shape, (rows.outputs, columns.outputs, filters)))
            shape = made[-1].output_shape
        return made

    return [*framed, *_on_maps(shape, output_shape, maps)]


def _steps(layer: Any) -> tuple[tuple[int, int], str]:
    """Return strides over two axes, and the padding."""
    rows, columns = (*layer.strides, 1)[:2]
    return (rows, columns), "valid" if layer.padding == "causal" else layer.padding


def _read(layer: Any, name: str) -> Callable[[], Any]:
    """Return a function that reads a kernel, as it is now, over two axes."""

    def read() -> Any:
        kernel = ops.convert_to_tensor(getattr(layer, name))
        return ops.expand_dims(kernel, 1) if len(kernel.shape) == 3 else kernel

    return read


def _bias_of(layer: Any) -> Callable[[], Any]:
    return lambda: ops.convert_to_tensor(layer.bias) if layer.use_bias else None


def _apart(read: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that reads kernels of single channels, `[height, width, channels, multiple]`, as one kernel."""

    def apart() -> Any:
        kernel = read()
        height, width, channels, multiple = kernel.shape
        spread = kernel[:, :, :, None] * np.eye(channels, dtype="float32")[:, :, None]
        return ops.reshape(spread, (height, width, channels, channels * multiple))

    return apart
