"""Find the weights, among those that compute the same function, whose product of norms is smallest."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

from defended.arguments import whole_number
from defended.gloro.gloro_net import GloroNet
from defended.gloro.operators import Conv2DOperator, in_float64
from defended.gloro.reparametrise.chain import HOMOGENEOUS, chain_of, is_homogeneous, maps_channels
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import AVERAGING, INERT, LINEAR
from defended.numerics.convolution_norms import torus_blocks
from defended.numerics.sliding_windows import axes_of

_ACTS_WITHIN_CHANNELS = (layers.Flatten, *INERT, *AVERAGING)
_TEMPERATURES = (0.01, 0.004, 0.0015, 0.0006, 0.0003, 0.0001)
_MEMORY = 30
_SMALLEST = 1e-9

Array = np.ndarray[Any, np.dtype[Any]]


def sharpen_bounds(model: GloroNet, *, steps: int = 25) -> float:
    """Rewrite a chain's weights so that the same function has smaller constants K_ij.

    K_ij multiplies the norms of the layers, as if one could pass on what the next enlarges most. But some changes of
    the features between two layers pass the activation, so that one layer can make them and the next undo them:

    - `MinMax` maps a pair with the sum s and the difference d to one with the sum s and the difference -|d|. So the
      sums of all pairs may be mixed by any invertible matrix, and each difference may have a positive factor.
    - ReLU and leaky ReLU pass a positive factor for each channel.

    The product of norms depends on these matrices, and the smallest is still a product of norms of layers: `finalize`
    proves it as usual, and nothing is paid at run time. They are the multipliers of LipSDP (Fazlyab et al. 2019), for
    `MinMax` extended by mixing the sums (Pauli et al. 2024 have factors for sums and differences), kept alike at
    all places of a convolution. What is minimised is the sum of the logarithms of the layers' norms, on a torus where
    they are convolutions, and of the mean over pairs of classes of `log |w_j - w_i|`. Each largest singular
    value is replaced with a soft maximum whose temperature falls, and L-BFGS descends.

    The weights, which are rounded once to float32, are changed in place, and only where the proven K_ij fall. Moments
    of an optimizer that was training them no longer fit: sharpen after training, or between two runs. A final model
    is finalized again.

    Args:
        model: a chain of layers. Two neighbours among its Dense layers and convolutions (of one group) take part where
            only one of the activations above, pooling by averages, `Flatten` and dropout lie between. Others stay as
            they are.
        steps: iterations of L-BFGS at each of six temperatures.

    Returns:
        The geometric mean over pairs of classes of K_ij now over K_ij before; 1.0 where nothing was gained.

    Raises:
        TypeError: the model is not a `GloroNet`.
        ValueError: the network is not a chain, its weights are not finite, or `steps` is below 1.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    whole_number("steps", steps, 1, floats=True)
    chain, was_final = _Chain(model), model.is_final
    if not chain.junctions:
        return 1.0
    constants, weights = _constants(model), model.network.get_weights()
    parameters, options = chain.start(), {"maxiter": steps, "maxcor": _MEMORY}
    # Many small matrices: a second BLAS thread waits more than it works, and where cores are shared, far more.
    with threadpool_limits(1, user_api="blas"):
        for temperature in _TEMPERATURES:
            parameters = minimize(chain.objective, parameters, (temperature,), "L-BFGS-B", jac=True, options=options).x
    chain.write(parameters)
    if was_final:
        model.finalize()
    changed = _constants(model)
    apart = (constants > 0) & (changed > 0)
    ratio = float(np.exp(np.mean(np.log(changed[apart] / constants[apart])))) if apart.any() else 1.0
    if ratio < 1:
        return ratio
    model.network.set_weights(weights)
    if was_final:
        model.finalize()
    return 1.0


def _constants(model: GloroNet) -> Array:
    """Return the proven K_ij of the pairs `i < j`; 0 where two classes always have one logit."""
    margins = model.margin_lipschitz if model.is_final else model._graph.prove().margins
    return margins[np.triu_indices(len(margins), 1)].astype(np.float64)


@dataclass
class _Junction:
    """Features `[channels]` between two layers, in a basis in which the activation acts on the coordinates."""

    basis: Array
    """`[channels, channels]`, orthogonal; for `MinMax` the sums of all pairs, then the differences."""
    mixed: int
    """The number of leading coordinates that pass the activation unchanged."""

    @property
    def size(self) -> int:
        return self.mixed**2 + len(self.basis) - self.mixed

    def matrix(self, parameters: Array) -> Array:
        """Return what the next layer applies to its inputs, and the layer before undoes, in the basis."""
        matrix = np.zeros_like(self.basis)
        matrix[: self.mixed, : self.mixed] = parameters[: self.mixed**2].reshape(self.mixed, self.mixed)
        rest = range(self.mixed, len(matrix))
        matrix[rest, rest] = np.exp(parameters[self.mixed**2 :])
        return matrix

    def start(self) -> Array:
        return np.concatenate([np.eye(self.mixed).ravel(), np.zeros(len(self.basis) - self.mixed)])

    def gradient(self, matrix: Array, relative: Array) -> Array:
        """Return the derivative by the parameters, from that by X in `(I + X) @ matrix`."""
        mixing = relative[: self.mixed, : self.mixed] @ np.linalg.inv(matrix[: self.mixed, : self.mixed]).T
        return np.concatenate([mixing.ravel(), np.diag(relative)[self.mixed :]])


class _Chain:
    """The layers of a chain that have a kernel, and the junctions between them."""

    def __init__(self, model: GloroNet):
        steps, graph = chain_of(model, "sharpen_bounds"), model._graph
        self.layers = [layer for layer in steps if maps_channels(layer)]
        self.junctions = _junctions(steps)
        """By the index of the layer before; the other layer is the next one."""
        operators = {id(step.layer): step.rule.operator for step in graph._steps}
        self._blocks: dict[int, Array] = {}
        for index, layer in enumerate(self.layers):
            before, after = self.junctions.get(index - 1), self.junctions.get(index)
            if before is None and after is None:
                continue
            kernel = in_float64(layer.kernel)
            if not np.all(np.isfinite(kernel)):
                raise ValueError(f"Layer {layer.name!r} has weights that are not finite: restore a checkpoint.")
            if layer is graph.head:
                first, second = np.triu_indices(kernel.shape[1], 1)
                kernel = kernel[:, second] - kernel[:, first]
            if before is not None:
                kernel = _on_inputs(before.basis, kernel)
            if after is not None:
                kernel = kernel @ after.basis.T
            operator = operators.get(id(layer))
            if isinstance(operator, Conv2DOperator):
                kernel = operator.dense_kernel(kernel, np)
                axes = axes_of(kernel.shape, operator.input_shape[:2], operator.strides, operator.padding)
                self._blocks[index] = torus_blocks(kernel, axes)[0]
            else:
                self._blocks[index] = kernel[None]
        self._head = next((index for index, layer in enumerate(self.layers) if layer is graph.head), -1)

    def start(self) -> Array:
        return np.concatenate([junction.start() for junction in self.junctions.values()])

    def matrices(self, parameters: Array) -> dict[int, Array]:
        parts = np.split(parameters, np.cumsum([junction.size for junction in self.junctions.values()])[:-1])
        return {index: self.junctions[index].matrix(part) for index, part in zip(self.junctions, parts, strict=True)}

    def objective(self, parameters: Array, temperature: float) -> tuple[float, Array]:
        """Return the sum of the soft maxima of logarithms, and its gradient."""
        matrices = self.matrices(parameters)
        relative = {index: np.zeros_like(matrix) for index, matrix in matrices.items()}
        total = 0.0
        for index, blocks in self._blocks.items():
            before, after = matrices.get(index - 1), matrices.get(index)
            if before is not None:
                blocks = _on_inputs(before, blocks)
            if after is not None:
                blocks = blocks @ np.linalg.inv(after)
            value, left, right = _mean_length(blocks) if index == self._head else _soft_norm(blocks, temperature)
            total += value
            if before is not None:
                relative[index - 1] += _density(left, len(before))
            if after is not None:
                relative[index] -= _density(right, len(after))
        gradients = [junction.gradient(matrices[index], relative[index]) for index, junction in self.junctions.items()]
        return total, np.concatenate(gradients)

    def write(self, parameters: Array) -> None:
        """Write the changed weights into the layers."""
        kernels = [in_float64(layer.kernel) for layer in self.layers]
        biases = [in_float64(layer.bias) if layer.use_bias else None for layer in self.layers]
        for index, matrix in self.matrices(parameters).items():
            basis, bias = self.junctions[index].basis, biases[index]
            change = basis.T @ matrix @ basis
            undone = np.linalg.inv(change)
            kernels[index] = kernels[index] @ undone
            biases[index] = None if bias is None else bias @ undone
            kernels[index + 1] = _on_inputs(change, kernels[index + 1])
        for layer, kernel, bias in zip(self.layers, kernels, biases, strict=True):
            layer.kernel.assign(kernel.astype("float32"))
            if bias is not None:
                layer.bias.assign(bias.astype("float32"))


def _on_inputs(matrix: Array, kernel: Array) -> Array:
    """Return a kernel `[..., places * channels, outputs]` with `matrix` applied to the channels that it reads."""
    places = kernel.reshape(-1, len(matrix), kernel.shape[-1])
    return (matrix @ places).reshape(kernel.shape)


def _soft_norm(blocks: Array, temperature: float) -> tuple[float, Array, Array]:
    """Return `t log sum exp(log s / t)` over the singular values s of blocks `[n, rows, columns]`.

    Returns:
        It, and its derivative by `log s` in the form of singular vectors, left and right, scaled by its root.
    """
    wide = blocks.shape[1] < blocks.shape[2]
    inner = np.conj(np.swapaxes(blocks, 1, 2)) if wide else blocks
    squares, right = np.linalg.eigh(np.conj(np.swapaxes(inner, 1, 2)) @ inner)
    squares = np.maximum(squares, 1e-30 * squares.max())
    logarithms = np.log(squares) / 2
    largest = float(logarithms.max())
    weights = np.exp((logarithms - largest) / temperature)
    total = float(weights.sum())
    kept = weights.max(axis=0) > _SMALLEST * total
    root = np.sqrt(weights[:, None, kept] / total)
    right = right[:, :, kept]
    left = inner @ right * (root / np.sqrt(squares[:, None, kept]))
    right = right * root
    return largest + temperature * math.log(total), *((right, left) if wide else (left, right))


def _mean_length(blocks: Array) -> tuple[float, Array, Array]:
    """Return the mean logarithm of the lengths of columns `[1, rows, columns]`, in the form of `_soft_norm`."""
    lengths = np.linalg.norm(blocks, axis=1, keepdims=True)
    columns, lengths = blocks[:, :, lengths[0, 0] > 0], lengths[:, :, lengths[0, 0] > 0]
    left = columns / (lengths * max(lengths.size, 1) ** 0.5)
    return float(np.log(lengths).sum()) / max(lengths.size, 1), left, left[:, :0]


def _density(vectors: Array, channels: int) -> Array:
    """Return the sum over blocks and places of `v v^H`, real part, for vectors `[n, places * channels, count]`."""
    flat = np.swapaxes(vectors.reshape(-1, channels, vectors.shape[-1]), 0, 1).reshape(channels, -1)
    return (flat @ flat.conj().T).real


def _junctions(steps: list[Any]) -> dict[int, _Junction]:
    """Return the junctions: pairs of neighbours among the layers that map channels, with only what a change passes."""
    found = {}
    places = [index for index, layer in enumerate(steps) if maps_channels(layer)]
    for number, (first, last) in enumerate(itertools.pairwise(places)):
        own = steps[first].activation
        between = [layer for layer in steps[first + 1 : last] if type(layer) not in _ACTS_WITHIN_CHANNELS]
        channels = int(steps[first].kernel.shape[-1])
        if own in LINEAR and [type(layer) for layer in between] == [MinMax]:
            found[number] = _Junction(_sums_and_differences(channels), channels // 2)
        elif (own in HOMOGENEOUS and not between) or (
            own in LINEAR and len(between) == 1 and is_homogeneous(between[0])
        ):
            found[number] = _Junction(np.eye(channels), 0)
    return found


def _sums_and_differences(channels: int) -> Array:
    pairs = np.eye(channels).reshape(channels // 2, 2, channels)
    return np.concatenate([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]]) / np.sqrt(2.0)
