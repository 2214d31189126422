"""Gaussian noise on the input while training: what randomized smoothing's base classifier must be used to."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from defended.arguments import positive_number


def checked_sigma(sigma: Any) -> float:
    """Return `sigma` as a positive finite number, or raise `ValueError`."""
    return positive_number("sigma", sigma, "in input units")


@keras.saving.register_keras_serializable(package="defended")
class GaussianNoiseAugmentation(keras.layers.Layer):
    """Add noise from N(0, sigma² I) while training; the identity at inference.

    Input and output: `[batch, ...]`, of a floating-point type. Every call with `training=True` draws fresh noise,
    independent for each entry, in float32 whatever the input's type. Unlike `keras.layers.GaussianNoise`, sigma may
    exceed 1: inputs need not lie in [0, 1].

    Args:
        sigma: standard deviation, in input units; positive.
        seed: int, or None for a seed from Keras's global random state (`keras.utils.set_random_seed`).

    Raises:
        ValueError: when sigma is not a positive finite number, or when inputs are integers.

    Reference: Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, section 3.3.
    """

    def __init__(self, sigma: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.sigma = checked_sigma(sigma)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def noise_like(self, inputs: Any) -> Any:
        """Return fresh noise of the shape and type of `inputs`."""
        self.check_units(inputs.dtype)
        noise = keras.random.normal(ops.shape(inputs), stddev=self.sigma, dtype="float32", seed=self.seed_generator)
        return ops.cast(noise, inputs.dtype)

    def check_units(self, dtype: Any) -> None:
        """Raise a ValueError where inputs are of an integer type: bytes are in other units than sigma."""
        name = keras.backend.standardize_dtype(dtype)
        if not keras.backend.is_float_dtype(name):
            raise ValueError(
                f"`{type(self).__name__}` needs floating-point inputs, in the units of sigma={self.sigma:g}. "
                f"Received: dtype {name}. Scale the images first: x / 255."
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return inputs + self.noise_like(inputs) if training else inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sigma": self.sigma, "seed": self.seed}
