"""Random affine changes of training images."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops


class RandomAffine:
    """Images turned, sheared, scaled and moved a little, each differently: one bilinear interpolation for all of it.

    Unlike a chain of Keras's random layers, which blur an image once each. Pixels from outside are 0.

    Args:
        turn: the largest angle, in radians.
        shear: the largest shear, pixels per pixel.
        zoom: scales lie within `1 - zoom` and `1 + zoom`, width and height apart.
        shift: the largest movement, in pixels.
        share: of the images, those that are changed at all.
        seed: of the random numbers.

    Call arguments:
        images: `[batch, height, width, channels]` float32.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: a negative or infinite limit, a zoom of 1 or more, or a share above 1.
    """

    def __init__(
        self,
        turn: float = 0.08,
        shear: float = 0.08,
        zoom: float = 0.05,
        shift: float = 0.6,
        share: float = 0.8,
        seed: int | None = None,
    ):
        limits = {"turn": turn, "shear": shear, "zoom": zoom, "shift": shift, "share": share}
        for name, value in limits.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` is a largest change, so at least 0, as 0.05. Received: {value}")
        if zoom >= 1 or share > 1:
            raise ValueError(f"`zoom` must be below 1, and `share` at most 1. Received: zoom={zoom}, share={share}")
        self.turn, self.shear, self.zoom, self.shift, self.share = limits.values()
        self._seeds = keras.random.SeedGenerator(seed)

    def __call__(self, images: Any) -> Any:
        batch, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
        changed = ops.cast(keras.random.uniform([batch], seed=self._seeds) < self.share, "float32")

        def within(limit: float) -> Any:
            return keras.random.uniform([batch], -limit, limit, seed=self._seeds) * changed

        angle, shear = within(self.turn), within(self.shear)
        wide, high = 1.0 + within(self.zoom), 1.0 + within(self.zoom)
        cos, sin = ops.cos(angle), ops.sin(angle)
        # From a pixel of the result to one of the image, with the image's centre as the origin.
        a, b, c, d = wide * cos, shear - high * sin, wide * sin, high * cos
        x0, y0 = (width - 1) / 2, (height - 1) / 2
        right, down = x0 - a * x0 - b * y0 + within(self.shift), y0 - c * x0 - d * y0 + within(self.shift)
        nothing = ops.zeros_like(angle)
        transform = ops.stack([a, b, right, c, d, down, nothing, nothing], axis=1)
        return ops.image.affine_transform(images, transform, interpolation="bilinear", fill_mode="constant")
