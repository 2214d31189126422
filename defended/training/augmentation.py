"""Random affine, elastic and photographic changes of training images, and signs in the mirror."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from defended.arguments import number_in, number_not_negative, whole_number


class RandomAffine:
    """Images turned, sheared, scaled and moved a little, each differently: one bilinear interpolation for all of it.

    A chain of Keras's random layers would blur an image once for each of them. Pixels from outside are 0.

    Args:
        turn: the largest angle, in radians.
        shear: the largest shear, pixels per pixel.
        zoom: scales lie between `1 - zoom` and `1 + zoom`, separately for width and height.
        shift: the largest movement, in pixels.
        share: that of the images that are changed at all.
        seed: of the random numbers.

    Call arguments:
        images: `[batch, height, width, channels]` float32.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: for a negative or infinite limit, a zoom of 1 or more, or a share above 1.
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
        limits = {"turn": turn, "shear": shear, "shift": shift}
        self.turn, self.shear, self.shift = (number_not_negative(name, value) for name, value in limits.items())
        self.zoom, self.share = number_in("zoom", zoom, "[0, 1)"), number_in("share", share, "[0, 1]")
        self._seeds = keras.random.SeedGenerator(seed)

    def __call__(self, images: Any) -> Any:
        (a, b, c, d), (right, down), _ = self._motion(images)
        x0, y0 = _centre(images)
        right, down = right + x0 - a * x0 - b * y0, down + y0 - c * x0 - d * y0
        nothing = ops.zeros_like(a)
        transform = ops.stack([a, b, right, c, d, down, nothing, nothing], axis=1)
        return ops.image.affine_transform(images, transform, interpolation="bilinear", fill_mode="constant")

    def _motion(self, images: Any) -> tuple[tuple[Any, Any, Any, Any], tuple[Any, Any], Any]:
        """Draw what leads from a pixel of the result to one of the image, seen from its centre: a matrix's entries by
        rows and a movement, each `[batch]`; then 1 where an image is changed at all, else 0.
        """
        batch = ops.shape(images)[0]
        changed = ops.cast(keras.random.uniform([batch], seed=self._seeds) < self.share, "float32")

        def within(limit: float) -> Any:
            return keras.random.uniform([batch], -limit, limit, seed=self._seeds) * changed

        angle, shear = within(self.turn), within(self.shear)
        wide, high = 1.0 + within(self.zoom), 1.0 + within(self.zoom)
        cos, sin = ops.cos(angle), ops.sin(angle)
        matrix = wide * cos, shear - high * sin, wide * sin, high * cos
        return matrix, (within(self.shift), within(self.shift)), changed


class RandomElastic(RandomAffine):
    """`RandomAffine` and, in the same interpolation, a smooth bend: elastic distortions (Simard et al. 2003).

    Every node of a grid over the image moves by a normal amount in each direction; pixels between follow by bicubic
    interpolation.

    Args:
        bend: the nodes' standard deviation, in pixels.
        nodes: those of the grid along a side.
        **affine: as for `RandomAffine`.

    Raises:
        ValueError: for a negative or infinite bend, fewer than 2 nodes, or what `RandomAffine` refuses.
    """

    def __init__(self, bend: float = 0.6, nodes: int = 5, **affine: Any):
        super().__init__(**affine)
        self.bend, self.nodes = number_not_negative("bend", bend), whole_number("nodes", nodes, 2)

    def __call__(self, images: Any) -> Any:
        matrix, movement, changed = self._motion(images)
        a, b, c, d, right, down = (value[:, None, None] for value in (*matrix, *movement))
        height, width = images.shape[1:3]
        x0, y0 = _centre(images)
        x = ops.arange(width, dtype="float32")[None, None] - x0
        y = ops.arange(height, dtype="float32")[None, :, None] - y0
        grid = [ops.shape(images)[0], self.nodes, self.nodes, 2]
        bends = keras.random.normal(grid, stddev=self.bend, seed=self._seeds) * changed[:, None, None, None]
        bends = ops.image.resize(bends, (height, width), interpolation="bicubic")
        return _bilinear(images, a * x + b * y + right + x0 + bends[..., 0], c * x + d * y + down + y0 + bends[..., 1])


class RandomExposure:
    """Images brighter or darker, with more or less contrast, and blurred, each differently; clipped to [0, 1].

    Args:
        brightness: the largest number that is added to all pixels.
        contrast: distances from an image's mean are scaled by `exp(c)`, with c within plus and minus this.
        blur: the largest weight of each neighbour, relative to the pixel itself, in a 3x3 mean.
        share: that of the images that are changed at all.
        seed: of the random numbers.

    Call arguments:
        images: `[batch, height, width, channels]` float32 in [0, 1].

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: for a limit that is negative or infinite, or a share above 1.
    """

    def __init__(
        self,
        brightness: float = 0.15,
        contrast: float = 0.5,
        blur: float = 0.5,
        share: float = 0.8,
        seed: int | None = None,
    ):
        limits = {"brightness": brightness, "contrast": contrast, "blur": blur}
        self.brightness, self.contrast, self.blur = (number_not_negative(name, value) for name, value in limits.items())
        self.share = number_in("share", share, "[0, 1]")
        self._seeds = keras.random.SeedGenerator(seed)

    def __call__(self, images: Any) -> Any:
        shape = [ops.shape(images)[0], 1, 1, 1]
        changed = ops.cast(keras.random.uniform(shape, seed=self._seeds) < self.share, "float32")

        def within(low: float, high: float) -> Any:
            return keras.random.uniform(shape, low, high, seed=self._seeds) * changed

        weight = within(0.0, self.blur)
        neighbours = 9.0 * ops.average_pool(images, 3, strides=1, padding="same") - images
        images = (images + weight * neighbours) / (1.0 + 8.0 * weight)
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        scale = ops.exp(within(-self.contrast, self.contrast))
        return ops.clip(mean + scale * (images - mean) + within(-self.brightness, self.brightness), 0.0, 1.0)


class RandomMirror:
    """Images of some classes mirrored, left and right, with the labels of what is then seen.

    Args:
        classes: the number of classes.
        mirrored: from a class to the class that its images show in the mirror, itself if it is symmetric. Images of
            other classes stay as they are.
        share: of the images of these classes that are mirrored.
        seed: of the random numbers.

    Call arguments:
        images: `[batch, height, width, channels]`.
        labels: `[batch]`, class numbers.

    Returns:
        Images and labels of the same shapes and dtypes.

    Raises:
        ValueError: for a class out of range, a pair that does not lead back, or a share outside of [0, 1].
    """

    def __init__(self, classes: int, mirrored: dict[int, int], share: float = 0.5, seed: int | None = None):
        for one, other in mirrored.items():
            if not (0 <= one < classes and mirrored.get(other) == one):
                raise ValueError(
                    f"`mirrored` must lead from classes below {classes} to each other and back. Received: {one} leads "
                    f"to {other}, and {other} to {mirrored.get(other)}."
                )
        self.share = number_in("share", share, "[0, 1]")
        self._seen = np.arange(classes, dtype="int32")
        self._seen[list(mirrored)] = list(mirrored.values())
        self._has = np.isin(np.arange(classes), list(mirrored))
        self._seeds = keras.random.SeedGenerator(seed)

    def __call__(self, images: Any, labels: Any) -> tuple[Any, Any]:
        number = ops.cast(labels, "int32")
        chosen = keras.random.uniform(ops.shape(number), seed=self._seeds) < self.share
        chosen = ops.logical_and(chosen, ops.take(self._has, number))
        images = ops.where(chosen[:, None, None, None], ops.flip(images, axis=2), images)
        return images, ops.cast(ops.where(chosen, ops.take(self._seen, number), number), labels.dtype)


def _centre(images: Any) -> tuple[float, float]:
    """Return the column and the row, perhaps between two, that a turn leaves in place."""
    return (images.shape[2] - 1) / 2, (images.shape[1] - 1) / 2


def _bilinear(images: Any, columns: Any, rows: Any) -> Any:
    """Return images at places `[batch, height, width]`, 0 outside of the image: `[batch, height, width, channels]`."""
    batch, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
    pixels = ops.reshape(ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), (batch, -1, channels))
    left, top = ops.floor(columns), ops.floor(rows)
    right_share, lower_share = (columns - left)[..., None], (rows - top)[..., None]

    def at(column: Any, row: Any) -> Any:
        place = ops.clip(row + 1, 0, height + 1) * (width + 2) + ops.clip(column + 1, 0, width + 1)
        found = ops.take_along_axis(pixels, ops.reshape(ops.cast(place, "int32"), (batch, -1, 1)), axis=1)
        return ops.reshape(found, (batch, height, width, channels))

    upper = (1 - right_share) * at(left, top) + right_share * at(left + 1, top)
    lower = (1 - right_share) * at(left, top + 1) + right_share * at(left + 1, top + 1)
    return (1 - lower_share) * upper + lower_share * lower
