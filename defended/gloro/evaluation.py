"""A network's evaluation at inference: the function its layers compute, arranged for small errors and few copies.

Two things differ from calling one layer after the other, neither in exact arithmetic. Long inner products of Dense
layers are added up in blocks (`rounding.BLOCK`). And where `MinMax` lies between two convolutions, channels run in
another order there: the first members of all pairs, then the second ones. Sorting pairs then takes halves of the
channels, not every second number, which is slow; the kernels, which are small, are permuted to match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import layers, ops

from defended.gloro import rounding
from defended.layers import MinMax

if TYPE_CHECKING:
    from defended.gloro.graph import _Step


class Evaluation:
    """Calls the layers of `steps`, in their order, on the value in slot 0; the last one's output is the network's.

    Attributes:
        is_rearranged: whether anything differs from the network's own forward pass.
    """

    def __init__(self, steps: Sequence[_Step]):
        self._steps = steps
        self._in_halves = _in_halves(steps)
        self.is_rearranged = bool(self._in_halves) or any(_parts(step.layer) > 1 for step in steps)

    def __call__(self, inputs: Any) -> Any:
        values: dict[int, Any] = {0: inputs}
        for step in self._steps:
            sources = [values[slot] for slot in step.inputs]
            before, after = step.inputs[0] in self._in_halves, step.output in self._in_halves
            if not (before or after):
                result = _called(step.layer, sources[0] if len(sources) == 1 else sources)
            elif type(step.layer) is MinMax:
                first, second = ops.split(sources[0], 2, axis=-1)
                result = ops.concatenate([ops.minimum(first, second), ops.maximum(first, second)], axis=-1)
            else:
                result = _convolved(step.layer, sources[0], before, after)
            values[step.output] = result
        return values[self._steps[-1].output if self._steps else 0]


def _in_halves(steps: Sequence[_Step]) -> frozenset[int]:
    """Slots before and after each MinMax that alone stands between two convolutions."""
    uses = Counter(slot for step in steps for slot in step.inputs)
    makers: dict[int, Any] = {step.output: step.layer for step in steps}
    takers: dict[int, Any] = {slot: step.layer for step in steps for slot in step.inputs}
    found = set()
    for step in steps:
        before, after = step.inputs[0], step.output
        if (
            type(step.layer) is MinMax
            and uses[before] == uses[after] == 1
            and _is_plain_convolution(makers.get(before))
            and _is_plain_convolution(takers.get(after))
            and makers[before].activation in (None, keras.activations.linear)
        ):
            found |= {before, after}
    return frozenset(found)


def _is_plain_convolution(layer: Any) -> bool:
    return type(layer) is layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last"


def _parts(layer: Any) -> int:
    """Blocks in which a layer's inner products are evaluated."""
    return rounding.blocks(int(layer.kernel.shape[0])) if type(layer) is layers.Dense else 1


def _called(layer: Any, inputs: Any) -> Any:
    parts = _parts(layer)
    if parts == 1:
        return layer(inputs, training=False) if layer._call_has_training_arg else layer(inputs)
    kernel = ops.convert_to_tensor(layer.kernel)
    terms = kernel.shape[0]
    size = -(-terms // parts)
    cuts = parts if terms % parts == 0 else list(range(size, terms, size))
    first, *others = zip(ops.split(inputs, cuts, axis=-1), ops.split(kernel, cuts), strict=True)
    total = ops.matmul(*first)
    if layer.use_bias:
        total = ops.add(total, layer.bias)
    for part in others:
        total = total + ops.matmul(*part)
    return total if layer.activation is None else layer.activation(total)


def _convolved(layer: Any, inputs: Any, before: bool, after: bool) -> Any:
    """A convolution whose channels are in halves: those it takes (`before`), those it gives (`after`), or both."""
    kernel = ops.convert_to_tensor(layer.kernel)
    if before:
        kernel = _halves(kernel, 2)
    if after:
        kernel = _halves(kernel, 3)
    outputs = layer.convolution_op(ops.cast(inputs, layer.compute_dtype), kernel)
    if layer.use_bias:
        bias = ops.convert_to_tensor(layer.bias)
        outputs = ops.add(outputs, _halves(bias, 0) if after else bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def _halves(weights: Any, axis: int) -> Any:
    """The even places along an axis, then the odd ones."""
    *outer, size = weights.shape[: axis + 1]
    pairs = ops.reshape(weights, (*outer, size // 2, 2, *weights.shape[axis + 1 :]))
    return ops.concatenate(ops.unstack(pairs, axis=axis + 1), axis=axis)
