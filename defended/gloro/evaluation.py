"""A network's evaluation at inference: the function its layers compute, arranged for small errors and few copies.

Two things differ from calling one layer after the other, neither in exact arithmetic. Long inner products are added up
in blocks of input channels (`rounding.BLOCK`). And where `MinMax` lies between two convolutions, channels run in
another order there: the first members of all pairs, then the second ones. Sorting pairs then takes halves of the
channels, not every second number, which is slow; the kernels, which are small, are permuted to match.

Training takes the second from here, and adds up as Keras does.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from defended.gloro import rounding
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import LINEAR, is_plain_convolution
from defended.networks.tracing import Step

Array = np.ndarray[Any, np.dtype[Any]]


class Evaluation:
    """Calls the layers of `steps`, in their order, on the value in slot 0; the last one's output is the network's.

    Attributes:
        is_rearranged: whether anything differs from the network's own forward pass.
        trains_faster: whether this is the faster one in training, too.
    """

    def __init__(self, steps: Sequence[Step]):
        self._steps = steps
        self._in_halves = _in_halves(steps)
        self.is_rearranged = bool(self._in_halves) or any(_parts(step.layer) > 1 for step in steps)
        # XLA makes one kernel of the sorting, wherever the numbers lie.
        self.trains_faster = bool(self._in_halves) and keras.backend.backend() == "tensorflow"

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        return self.values(inputs, training)[self._steps[-1].output if self._steps else 0]

    def norms(self, inputs: Any) -> dict[int, float]:
        """Return the l2 norm of what each slot holds at an input, computed in float32 on the CPU, which has no TF32."""
        norms = {}
        with keras.device("cpu:0"):
            values = self.values(ops.convert_to_tensor(inputs))
        for slot, value in values.items():
            pieces = value if isinstance(value, list) else [value]
            squares = (np.square(ops.convert_to_numpy(piece).astype(np.float64)).sum() for piece in pieces)
            norms[slot] = float(np.sqrt(sum(squares)))
        return norms

    def in_order(self, slot: int, value: Any) -> Array:
        """Return what a slot holds as an array, its channels in the order in which Keras has them."""
        pieces = value if isinstance(value, list) else [value]
        array = np.concatenate([ops.convert_to_numpy(piece) for piece in pieces], axis=-1) if len(pieces) > 1 else None
        array = np.asarray(ops.convert_to_numpy(pieces[0])) if array is None else array
        if slot not in self._in_halves:
            return array
        half = array.shape[-1] // 2
        return np.stack([array[..., :half], array[..., half:]], axis=-1).reshape(array.shape)

    def call_layer(self, layer: layers.Layer, inputs: Sequence[Any]) -> Any:
        """Return a layer's output as Keras computes it, at inference."""
        return _called(layer, inputs[0] if len(inputs) == 1 else list(inputs), False)

    def values(self, inputs: Any, training: bool = False) -> dict[int, Any]:
        """Return what each slot holds; channels that run in halves as they run, perhaps in two pieces."""
        values: dict[int, Any] = {0: inputs}
        for step in self._steps:
            sources = [values[slot] for slot in step.inputs]
            before, after = step.inputs[0] in self._in_halves, step.output in self._in_halves
            parts = 1 if training else _parts(step.layer)
            if (before or after) and type(step.layer) is MinMax:
                result = [_sorted_halves()(sources[0])] if training else _sort_halves(sources[0])
            elif before or after or (parts > 1 and type(step.layer) is layers.Conv2D):
                result = _convolved(step.layer, sources[0], before, after, parts)
            elif parts > 1:
                result = _multiplied(step.layer, sources[0], parts)
            else:
                result = _called(step.layer, sources[0] if len(sources) == 1 else sources, training)
            values[step.output] = result
        return values


def _in_halves(steps: Sequence[Step]) -> frozenset[int]:
    """Return the slots before and after each MinMax that alone stands between two convolutions."""
    uses = Counter(slot for step in steps for slot in step.inputs)
    makers: dict[int, Any] = {step.output: step.layer for step in steps}
    takers: dict[int, Any] = {slot: step.layer for step in steps for slot in step.inputs}
    found = set()
    for step in steps:
        before, after = step.inputs[0], step.output
        if (
            type(step.layer) is MinMax
            and uses[before] == uses[after] == 1
            and is_plain_convolution(makers.get(before))
            and is_plain_convolution(takers.get(after))
            and makers[before].activation in LINEAR
        ):
            found |= {before, after}
    return frozenset(found)


def _parts(layer: Any) -> int:
    """Return the number of blocks in which a layer's inner products are evaluated."""
    if type(layer) is layers.Dense:
        return rounding.blocks(int(layer.kernel.shape[0]))
    if type(layer) is layers.Conv2D and layer.groups == 1:
        height, width, channels, _ = layer.kernel.shape
        return rounding.blocks(channels, height * width)
    return 1


def _called(layer: Any, inputs: Any, training: bool) -> Any:
    return layer(inputs, training=training) if layer._call_has_training_arg else layer(inputs)


def _multiplied(layer: Any, inputs: Any, parts: int) -> Any:
    """Return the output of a Dense layer, its inner products in blocks."""
    return _added(layer, ops.matmul, _split([inputs], parts), ops.convert_to_tensor(layer.kernel), 0, layer.bias)


def _convolved(layer: Any, inputs: Any, before: bool, after: bool, parts: int) -> Any:
    """Return a convolution's output, in blocks of channels; those it takes (`before`) or gives (`after`) in halves."""
    kernel, bias = ops.convert_to_tensor(layer.kernel), layer.bias
    if before:
        kernel = _halves(kernel, 2)
    if after:
        kernel = _halves(kernel, 3)
        bias = None if bias is None else _halves(ops.convert_to_tensor(bias), 0)
    pieces = [ops.cast(piece, layer.compute_dtype) for piece in (inputs if before else [inputs])]
    return _added(layer, layer.convolution_op, _split(pieces, parts), kernel, 2, bias)


def _split(pieces: list[Any], parts: int) -> list[Any]:
    """Return channels that lie in equal `pieces` as `parts` blocks."""
    if len(pieces) > 1 and parts % len(pieces):
        pieces = [ops.concatenate(pieces, axis=-1)]
    each = parts // len(pieces)
    if each == 1:
        return pieces
    size = pieces[0].shape[-1]
    block = -(-size // each)
    cuts = each if size % each == 0 else list(range(block, size, block))
    return [part for piece in pieces for part in ops.split(piece, cuts, axis=-1)]


def _added(layer: Any, product: Callable[[Any, Any], Any], blocks: list[Any], kernel: Any, axis: int, bias: Any) -> Any:
    """Return the activation of the sum of the blocks' products with their shares of the kernel, added one by one."""
    ends = list(itertools.accumulate(block.shape[-1] for block in blocks))
    kernels = ops.split(kernel, ends[:-1], axis=axis) if len(blocks) > 1 else [kernel]
    total = product(blocks[0], kernels[0])
    if bias is not None:
        total = ops.add(total, bias)
    for block, share in zip(blocks[1:], kernels[1:], strict=True):
        total = total + product(block, share)
    return total if layer.activation is None else layer.activation(total)


def _sort_halves(inputs: Any) -> list[Any]:
    """Return the smaller and the larger members of pairs whose members lie in two halves."""
    first, second = ops.split(inputs, 2, axis=-1)
    return [ops.minimum(first, second), ops.maximum(first, second)]


@functools.cache
def _sorted_halves() -> Callable[[Any], Any]:
    """Return `_sort_halves` in one tensor, with its gradient written out: TensorFlow's takes three times as long."""
    import tensorflow as tf

    @tf.custom_gradient
    def sort_halves(inputs: Any) -> Any:
        first, second = tf.split(inputs, 2, axis=-1)
        rising = first <= second

        def exchanged(gradient: Any) -> Any:
            lower, upper = tf.split(gradient, 2, axis=-1)
            return tf.concat([tf.where(rising, lower, upper), tf.where(rising, upper, lower)], axis=-1)

        return tf.concat([tf.minimum(first, second), tf.maximum(first, second)], axis=-1), exchanged

    return sort_halves


def _halves(weights: Any, axis: int) -> Any:
    """Return the even places along an axis, then the odd ones."""
    *outer, size = weights.shape[: axis + 1]
    pairs = ops.reshape(weights, (*outer, size // 2, 2, *weights.shape[axis + 1 :]))
    return ops.concatenate(ops.unstack(pairs, axis=axis + 1), axis=axis)
