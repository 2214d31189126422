"""Keep the layers of a chain in proportion while Adam trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from defended.arguments import positive_number
from defended.gloro.reparametrise.chain import HOMOGENEOUS, chain_of, is_homogeneous
from defended.layers.minmax import MinMax
from defended.networks.layer_kinds import AVERAGING, LINEAR, MAXIMA, MOVING
from defended.training.optimizers import BiasRateAdam

_WEIGHTED = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
# Noise of a given size, as `GaussianNoiseAugmentation` adds it while training, is not scaled along.
_HOMOGENEOUS = (MinMax, layers.Identity, layers.Dropout, *MAXIMA, *MOVING, *AVERAGING)
_OPTIMIZERS = (keras.optimizers.Adam, keras.optimizers.AdamW, BiasRateAdam)


class BalanceLayers(keras.callbacks.Callback):
    """Scales the layers of a chain into proportion after each epoch; the function they compute stays the same.

    A GloRo Net's certificate depends on the product of its layers' norms. Adam moves every entry by about the learning
    rate: a small kernel by much of its norm, a large one by little. Over many epochs some layers shrink and others
    grow, until biases are huge compared with the values that they are added to. Training becomes unsteady, and the
    proof, which pays for rounding in proportion to what is added up, loses radius that estimates still show.

    Between layers that are positively homogeneous (`MinMax`, ReLU, pooling), one layer may be multiplied by a factor
    and a later one divided by it, biases on the way included. The factors are powers of two, so nothing is rounded,
    and Adam's moments are scaled accordingly.

    Args:
        proportions: for each layer with a kernel, in order, the spectral norm of that kernel, as a matrix of `fan_in`
            rows, relative to the others; None makes all alike. The product of the norms is left as it is.

    Raises:
        TypeError: the model is not a `GloroNet`, or its optimizer is neither Adam nor AdamW when training begins.
        ValueError: the network is not such a chain, or has another number of kernels.
    """

    def __init__(self, proportions: Sequence[float] | None = None):
        super().__init__()
        self.proportions = (
            None if proportions is None else tuple(positive_number("proportions", value) for value in proportions)
        )
        self._layers: list[Any] = []

    def set_model(self, model: keras.Model) -> None:
        self._layers = _weighted_layers(model)
        super().set_model(model)
        if self.proportions is not None and len(self.proportions) != len(self._layers):
            raise ValueError(
                f"`proportions` needs a value for each layer with a kernel, which are "
                f"{', '.join(layer.name for layer in self._layers)}. Received: {self.proportions}"
            )

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if type(self.model.optimizer) not in _OPTIMIZERS:
            raise TypeError(
                f"`BalanceLayers` scales the moments of Adam and AdamW along with the weights; compile the model with "
                f"one of these. Received: {type(self.model.optimizer).__name__}"
            )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in self._layers]
        norms = np.array([np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2) for kernel in kernels])
        if not (np.isfinite(norms).all() and norms.min() > 0):
            return
        change = np.log2(self.proportions or np.ones(len(norms))) - np.log2(norms)
        # What is before the k-th activation grows by 2^running[k], and the logits by 2^0.
        running = np.round(np.cumsum(change - change.mean())).astype(int)
        running[-1] = 0
        for layer, before, after in zip(self._layers, [0, *running[:-1]], running, strict=True):
            self._scale(layer.kernel, after - before)
            if layer.use_bias:
                self._scale(layer.bias, after)

    def _scale(self, variable: Any, exponent: int) -> None:
        """Multiply a weight by `2**exponent`; its gradient shrinks by as much."""
        if exponent == 0:
            return
        factor = 2.0 ** float(exponent)
        variable.assign(variable * factor)
        optimizer = self.model.optimizer
        index = next((i for i, known in enumerate(optimizer._trainable_variables) if known is variable), None)
        if index is None:  # frozen
            return
        scaled = [(optimizer._momentums, 1 / factor), (optimizer._velocities, factor**-2)]
        if optimizer.amsgrad:
            scaled.append((optimizer._velocity_hats, factor**-2))
        if optimizer.use_ema:
            scaled.append((optimizer._model_variables_moving_average, factor))
        for variables, by in scaled:
            variables[index].assign(variables[index] * by)


def _weighted_layers(model: Any) -> list[Any]:
    """Return the layers with a kernel of a network in which factors can move from one to the next."""
    found: list[Any] = []
    for layer in chain_of(model, "BalanceLayers"):
        if type(layer) in _WEIGHTED and layer.activation in (*LINEAR, *HOMOGENEOUS):
            found.append(layer)
        elif not (type(layer) in _HOMOGENEOUS or is_homogeneous(layer)):
            raise ValueError(
                f"`BalanceLayers` cannot move a factor through {layer.name!r} ({type(layer).__name__}): it needs Conv "
                f"and Dense layers, and MinMax, ReLU or pooling between them."
            )
    return found
