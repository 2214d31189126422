"""Checks of what attacks receive and of what they return."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended.attacks.core.balls import Array, distances, place_inside
from defended.defended_model import DefendedModel
from defended.exceptions import CertificateViolation  # noqa: F401  (its place in earlier versions)

# A perturbation may overshoot its radius by this share before it counts as wrong: rounding explains less.
TOLERANCE = 1e-3


def box(name: str, value: Any) -> tuple[float, float]:
    """Return `value` as finite bounds `(low, high)` with low < high."""
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a pair (low, high), or None. Received: {name}={value!r}") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"`{name}` must be finite bounds (low, high) with low < high. Received: {name}={value!r}")
    return low, high


def in_float32(x: ArrayLike) -> Array:
    """Return `x` as float32 inputs `[n, ...]`, checked: at least one, all of them finite."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if not (len(x) and np.isfinite(x).all()):
        raise ValueError(f"`x` must hold at least one input, all of them finite. Received: shape {x.shape}")
    return x


def row_numbers(index: ArrayLike | None, n: int) -> Array:
    """Return `index` as whole numbers of at least 0, `[n]` int64; None stands for 0, 1, ..."""
    numbers = np.arange(n) if index is None else np.asarray(index)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(
            f"`index` must hold {n} whole numbers, at least 0. Received: shape {numbers.shape}, {numbers.dtype}"
        )
    return numbers.astype(np.int64)


def points(model: DefendedModel, x: Any, clip: tuple[float, float] | None = None) -> Array:
    """Return `x` as a finite float32 array `[n, *input shape]` with n >= 1, inside the box if there is one.

    Other real types are converted: the ball is then the one around the float32 point.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "fiu":
        raise TypeError(f"`x` must hold real numbers. Received: dtype {x.dtype}")
    expected = tuple(model.input_shape[1:])
    if not x.ndim or x.shape[1:] != expected:
        raise ValueError(f"`x` must have shape [n, {', '.join(map(str, expected))}]. Received: shape {x.shape}")
    if not len(x):
        raise ValueError("`x` is empty: there is nothing to attack. Pass at least one input.")
    x = np.ascontiguousarray(x, dtype=np.float32)
    # In pieces: of a file that is mapped into memory, only a piece is ever there.
    pieces = [x[first : first + 1024] for first in range(0, len(x), 1024)]
    finite = np.concatenate([np.isfinite(piece).reshape(len(piece), -1).all(axis=1) for piece in pieces])
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"`x` must be finite; other inputs are rejected as they are, there is nothing to attack. Received: NaN "
            f"or infinity in {len(bad)} of {len(x)} inputs, the first at index {bad[0]}"
        )
    if clip is not None:
        low, high = min(piece.min() for piece in pieces), max(piece.max() for piece in pieces)
        if not (low >= np.float32(clip[0]) and high <= np.float32(clip[1])):
            raise ValueError(
                f"`x` must lie in the box, or no perturbation may. Received: values from {low} to {high}, clip={clip}"
            )
    return x


def class_numbers(y: Any, n: int, num_classes: int) -> Array:
    """Return `y` as class numbers `[n]` int64, given as such (`[n]` or `[n, 1]`) or as one-hot rows `[n, m]`."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == num_classes and num_classes > 1:
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(
                f"`y` of shape {y.shape} must hold one-hot rows: one 1 and otherwise 0. Give class numbers [n]."
            )
        y = y.argmax(axis=1)
    if y.shape not in ((n,), (n, 1)):
        raise ValueError(f"`y` must hold {n} class numbers, one for each input of `x`. Received: shape {y.shape}")
    y = y.reshape(-1)
    whole = y.dtype.kind in "iu" or (y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.floor(y)).all())
    if not whole or y.min() < 0 or y.max() >= num_classes:
        found = f"values from {y.min()} to {y.max()}" if y.dtype.kind in "iuf" else f"dtype {y.dtype}"
        raise ValueError(f"`y` must hold whole class numbers in [0, {num_classes}). Received: {found}")
    return y.astype(np.int64)


def perturbed(
    x: Array, attacked: Any, radius: float, norm: str, source: str, clip: tuple[float, float] | None = None
) -> Array:
    """Return an attack's result, checked: float32, the shape of `x`, finite, exactly inside the ball and in the box.

    An overshoot that rounding explains (below the share `TOLERANCE`) is pulled back; a larger one is an error.

    Raises:
        ValueError: for another shape, NaN or infinity, or points outside the ball, naming the attack.
    """
    attacked = np.asarray(attacked)
    if attacked.shape != x.shape or attacked.dtype.kind not in "fiu":
        raise ValueError(
            f"{source} must return perturbed inputs of the shape of `x`, {x.shape}. "
            f"Received: shape {attacked.shape}, dtype {attacked.dtype}"
        )
    finite = np.isfinite(attacked.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{source} returned NaN or infinity for {np.sum(~finite)} of {len(x)} inputs, the first at index "
            f"{np.flatnonzero(~finite)[0]}. Check its step size and loss, and that the logits are finite there."
        )
    size = distances(x, attacked, norm)
    # A radius near the resolution of float32 cannot be met exactly by float32 points.
    resolution = np.spacing(np.abs(x).reshape(len(x), -1).max(axis=1)) * (np.sqrt(x[0].size) if norm == "l2" else 1)
    outside = size > radius * (1 + TOLERANCE) + resolution
    if outside.any():
        raise ValueError(
            f"{source} left the {norm} ball of radius {radius:g} for {outside.sum()} of {len(x)} inputs; the farthest "
            f"lies {size.max():g} away. Its results must stay within the radius, in the units of the input."
        )
    return place_inside(x, attacked, radius, norm, clip)
