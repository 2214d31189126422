"""Windows, patterns and starts of the square attack, as NumPy arrays."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from defended.attacks.core.checks import Array

# Tiles of the start in l2 are a fifth of the image wide.
_TILES = 5


class Window(NamedTuple):
    """A size of windows, and the change that is proposed in them."""

    pattern: Array
    """`[2, h, w]` float32: the l2 pattern in its upper left corner, and the same turned; each of norm 1."""
    height: int
    width: int


@functools.lru_cache(maxsize=64)
def window_of(share: float, image: tuple[int, int, int]) -> Window:
    """Return the window of about this share of the pixels: a square, wider where the image is too low for it.

    Args:
        share: in (0, 1].
        image: height, width and channels.
    """
    height, width, _ = image
    area = share * height * width
    tall = min(height, max(1, round(area**0.5)))
    wide = min(width, max(1, round(area / tall))) if tall == height else min(width, tall)
    pattern = np.zeros((2, height, width), np.float32)
    for turned in (0, 1):
        pattern[turned, :tall, :wide] = two_pyramids(tall, wide, bool(turned))
    return Window(pattern, tall, wide)


def pyramid(height: int, width: int) -> Array:
    """Return a pattern of norm 1, `[height, width]`, that falls with the distance from the centre.

    At distance k (in the maximum norm) it is proportional to `Σ_{j > k} 1 / j²` (Andriushchenko et al. 2020, equation
    2); the sum ends where the farther edge lies.
    """
    down, across = np.arange(height) - height // 2, np.arange(width) - width // 2
    distance = np.maximum(np.abs(down)[:, None], np.abs(across))
    terms = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2
    tails = np.cumsum(terms[::-1])[::-1]
    values = tails[distance]
    return values / np.linalg.norm(values)


def two_pyramids(height: int, width: int, turned: bool) -> Array:
    """Return a pyramid above its negative, or (turned) beside it, `[height, width]`, of norm 1; one pixel is 1."""
    if height == width == 1:
        return np.ones((1, 1))
    if (turned and width > 1) or height == 1:
        half = width // 2
        values = np.concatenate([pyramid(height, half), -pyramid(height, width - half)], axis=1)
    else:
        half = height // 2
        values = np.concatenate([pyramid(half, width), -pyramid(height - half, width)], axis=0)
    return values / np.sqrt(2)


def start_linf(stream: np.random.Generator, image: tuple[int, int, int]) -> Array:
    """Return vertical stripes of ±1, one pixel wide, `[h, w, c]`."""
    return np.broadcast_to(stream.choice([-1.0, 1.0], (1, *image[1:])), image)


def start_l2(stream: np.random.Generator, image: tuple[int, int, int]) -> Array:
    """Return patterns in tiles, with random signs for each tile and channel, `[h, w, c]` of norm 1."""
    height, width, channels = image
    tall, wide = max(1, height // _TILES), max(1, width // _TILES)
    down, across = height // tall, width // wide
    start = np.zeros(image)
    top, left = (height - down * tall) // 2, (width - across * wide) // 2
    for i in range(top, top + down * tall, tall):
        for j in range(left, left + across * wide, wide):
            tile = two_pyramids(tall, wide, bool(stream.integers(2)))
            start[i : i + tall, j : j + wide] = tile[..., None] * stream.choice([-1.0, 1.0], channels)
    return start / np.linalg.norm(start)
