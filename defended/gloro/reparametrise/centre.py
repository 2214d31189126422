"""Bring a chain's numbers close to zero, where float32 is most exact, without changing what the network computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops
from numpy.typing import ArrayLike

from defended.arguments import number_in
from defended.gloro.gloro_net import GloroNet
from defended.gloro.reparametrise.chain import chain_of, maps_channels
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import INERT, LINEAR

_PASSES_CHANNELS = (layers.Flatten, *INERT)
_BATCH = 256

Array = np.ndarray[Any, np.dtype[Any]]


def centre_biases(
    model: GloroNet, images: ArrayLike | None = None, *, padded: bool = False, exceptions: float = 0.0
) -> None:
    """Move what biases hold in common to later layers: the same margins, with less rounding to pay for.

    After long training, biases may be large compared with the values that they are added to, and a GloRo Net's
    certificate pays for rounding in proportion to both. Three things move without changing what is computed:

    - A constant added to both members of a pair passes `MinMax` and can be added to the next layer's bias. It is chosen
      so that the pair's mean at the input 0 becomes zero.
    - A pair that has one order on all `images` passes its difference, too, up to the smallest one found there.
    - What all columns of the last layer share cancels in every margin.

    The weights, which are rounded once to float32, are changed in place. A final model is finalized again.

    Args:
        model: a chain of layers. A convolution or Dense layer is centred when `MinMax` follows it, then at most
            `Flatten` and dropout, and then another such layer; both need a bias. Others stay as they are.
        images: `[n, ...]`, some thousands of training inputs; None leaves differences alone. Elsewhere a pair may have
            the other order, so off these images the function may change. Its bounds are proven anew.
        padded: also move constants into zero-padded convolutions. Outputs whose window reaches into the padding change:
            measure the model afterwards, and train it on briefly if it lost.
        exceptions: a pair also counts as one of a single order where this share, or less, of what `images` show has
            the other one; in [0, 0.5).

    Raises:
        TypeError: the model is not a `GloroNet`.
        ValueError: the network is not a chain, `images` differ in shape from its inputs, or `exceptions` are too many.
    """
    steps = chain_of(model, "centre_biases")
    exceptions = number_in("exceptions", exceptions, "[0, 0.5)")
    was_final = model.is_final
    shape = tuple(model.network.inputs[0].shape[1:])
    values = [np.zeros((1, *shape), "float32")]
    if images is not None:
        images = np.asarray(images, "float32")
        if images.shape[1:] != shape or not len(images):
            raise ValueError(f"`images` must be of shape (n, {', '.join(map(str, shape))}). Received: {images.shape}")
        values += np.split(images, range(_BATCH, len(images), _BATCH))
    for index, layer in enumerate(steps):
        values = [ops.convert_to_numpy(layer(value)) for value in values]
        receiver = _receiver(steps[index:], padded)
        if receiver is not None:
            shift = _shift(values[0], values[1:], exceptions)
            layer.bias.assign(ops.convert_to_numpy(layer.bias) - shift)
            sorted_shift = np.sort(shift.astype(np.float64).reshape(-1, 2), axis=1).reshape(-1)
            kernel = ops.convert_to_numpy(receiver.kernel).astype(np.float64)
            columns = kernel.reshape(-1, len(shift), kernel.shape[-1]).sum(axis=0)
            receiver.bias.assign(ops.convert_to_numpy(receiver.bias) + sorted_shift @ columns)
            values = [value - shift for value in values]
    head = model._graph.head
    if head is not None:
        for weight in [head.kernel, *([head.bias] if head.use_bias else [])]:
            value = ops.convert_to_numpy(weight).astype(np.float64)
            weight.assign(value - value.mean(axis=-1, keepdims=True))
    if was_final:
        model.finalize()


def _shift(at_zero: Array, values: list[Array], exceptions: float) -> Array:
    """Return what to subtract from each channel, `[channels]` float32, given a layer's outputs at 0 and at images."""
    pairs = at_zero.shape[-1] // 2
    gap = np.zeros(pairs)
    if values:
        differences = np.concatenate([np.diff(value.reshape(-1, pairs, 2), axis=2)[..., 0] for value in values])
        lowest, highest = np.quantile(differences, [exceptions, 1 - exceptions], axis=0)
        gap = np.maximum(lowest, 0.0) + np.minimum(highest, 0.0)
    means = at_zero.reshape(-1, pairs, 2).mean(axis=(0, 2), dtype=np.float64)
    return np.stack([means - gap / 2, means + gap / 2], axis=1).reshape(-1).astype("float32")


def _receiver(following: list[Any], padded: bool) -> Any:
    """Return the layer to whose bias the first layer's constants can move; None where there is none."""
    first, *others = following
    if not (_holds_constants(first) and others and type(others[0]) is MinMax):
        return None
    last: Any = next((layer for layer in others[1:] if type(layer) not in _PASSES_CHANNELS), None)
    if not (_holds_constants(last) or (type(last) is layers.Dense and last.use_bias)):
        return None
    reaches_padding = type(last) is layers.Conv2D and last.padding == "same" and max(last.kernel_size) > 1
    return last if padded or not reaches_padding else None


def _holds_constants(layer: Any) -> bool:
    """Return whether a constant can be added to each of a layer's outputs through its bias."""
    return maps_channels(layer) and layer.use_bias and layer.activation in LINEAR
