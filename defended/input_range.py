"""The range of the inputs that a network was trained on: what shows later that inputs come in other units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defended.network_record import NetworkRecord
from defended.networks.inputs import Array

MOST_FEATURES = 256
"""Inputs `[n, d]` of at most so many features have a range for each."""

_ROUNDING = 1e-6  # relative: a perturbation of size epsilon leaves the range by no more, up to rounding
_FEW = 10  # inputs, of which nothing is said that only many can show
_NARROW, _NARROW_FEATURE = 0.1, 0.01  # shares of the range; one feature may have long tails
_SCALES = ((128.0, 256.0, 255), (32768.0, 65536.0, 65535))


@dataclass(frozen=True)
class InputRange:
    """The least and the largest number of all training inputs and, of few features, of each.

    Attributes:
        low: the least number, in the units of the inputs.
        high: the largest one.
        features: `(low, high)` of each feature, for inputs `[n, d]` with d of at most `MOST_FEATURES`; else None.
    """

    low: float
    high: float
    features: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        pairs = ((self.low, self.high), *(self.features or ()))
        if not all(np.isfinite(low) and np.isfinite(high) and low <= high for low, high in pairs):
            raise ValueError(f"A range must be two finite numbers, the smaller one first. Received: {self}.")

    @classmethod
    def of(cls, x: Array) -> InputRange | None:
        """Return the range of inputs `[n, ...]`, numbers that are not finite left out; None where there are none."""
        if not x.size:
            return None
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            known = x[np.isfinite(x)]
            if not known.size:
                return None
            low, high = float(known.min()), float(known.max())
        features = None
        if x.ndim == 2 and x.shape[1] <= MOST_FEATURES:
            lowest = np.where(np.isfinite(x), x, np.inf).min(axis=0)
            highest = np.where(np.isfinite(x), x, -np.inf).max(axis=0)
            pairs = zip(lowest.tolist(), highest.tolist(), strict=True)
            features = tuple(pair if pair[0] <= pair[1] else (low, high) for pair in pairs)
        return cls(low, high, features)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> InputRange:
        """Return the range that `to_json` gave."""
        features = record.get("features")
        pairs = None if features is None else tuple((float(low), float(high)) for low, high in features)
        return cls(float(record["low"]), float(record["high"]), pairs)

    def to_json(self) -> dict[str, Any]:
        """Return the range as JSON holds it."""
        features = None if self.features is None else [list(pair) for pair in self.features]
        return {"low": self.low, "high": self.high, "features": features}

    def __or__(self, other: InputRange) -> InputRange:
        """Return the smallest range that holds both."""
        features = None
        if self.features and other.features and len(self.features) == len(other.features):
            pairs = zip(self.features, other.features, strict=True)
            features = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in pairs)
        return InputRange(min(self.low, other.low), max(self.high, other.high), features)

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"

    def outside(self, x: Array, epsilon: float, norm: str | None) -> Array:
        """Return which inputs lie further than epsilon outside of the range, `[n]` bool.

        No perturbation of size epsilon takes an input that lies within the range to such a place, since projecting on
        a box enlarges no distance: an attacked input is not one of these, however it was attacked. Of features, whose
        extremes in a sample are no bounds, each range is half as wide again on both sides. An input that is not finite
        is not counted: it is rejected as such.

        Args:
            x: `[n, *input_shape]`.
            epsilon: the radius defended, in input units.
            norm: `"l2"` or `"linf"`; None, where it is not known, counts as `"linf"`, by which fewest lie outside.
        """
        flat = x.reshape(len(x), -1)
        low, high = self._box(flat.shape[1])
        suspects = np.flatnonzero(((flat < low) | (flat > high)).any(axis=1))
        rows = flat[suspects].astype(np.float64)
        beyond = np.maximum(np.maximum(low - rows, rows - high), 0)
        size = np.sqrt((beyond**2).sum(axis=1)) if norm == "l2" else beyond.max(axis=1, initial=0.0)
        found = np.zeros(len(x), bool)
        found[suspects] = np.isfinite(rows).all(axis=1) & (size > epsilon * (1 + _ROUNDING))
        return found

    def complaint(self, x: Array, epsilon: float, norm: str | None) -> str | None:
        """Return in a sentence that inputs `[n, ...]` are in other units than the training's; None where they are not.

        They are if one lies `outside`, or if ten or more fill less than a tenth of the range; of features, less than a
        hundredth of their own, by the median.
        """
        found, given = self.outside(x, epsilon, norm), InputRange.of(x)
        if given is None:
            return None
        trained = f"the model was trained on {self}"
        if found.any():
            count = f"{int(found.sum()):,} of {len(x):,} inputs lie" if len(x) > 1 else "The input lies"
            return (
                f"{count} outside of the range of training by more than epsilon: inputs reach "
                f"{self._farthest(x[found])}, {trained}. {self._remedy(given)}"
            )
        if len(x) >= _FEW and self._filled(given) <= (_NARROW_FEATURE if self.features else _NARROW):
            return f"The inputs fill little of the range of training: they reach {given}, {trained}. " + self._remedy(
                given
            )
        return None

    def _box(self, size: int) -> tuple[Any, Any]:
        if self.features is None or len(self.features) != size:
            return self.low, self.high
        low, high = np.array(self.features).T
        room = np.where(high > low, high - low, self.high - self.low) / 2
        return low - room, high + room

    def _farthest(self, x: Array) -> str:
        flat = x.reshape(len(x), -1)
        if self.features is None or len(self.features) != flat.shape[1]:
            low, high = float(flat.min()), float(flat.max())
            return f"{high:.4g}" if low >= self.low else f"{low:.4g} to {high:.4g}"
        low, high = self._box(flat.shape[1])
        beyond = np.maximum(low - flat, flat - high) / np.maximum(high - low, 1e-30)
        row, feature = np.unravel_index(np.argmax(beyond), beyond.shape)
        least, largest = self.features[feature]
        return f"{flat[row, feature]:.4g} in feature {feature} (in training {least:.4g} to {largest:.4g})"

    def _filled(self, given: InputRange) -> float:
        """Return which share of the range is filled; of features, the median share."""
        wide = [high - low for low, high in self.features or ((self.low, self.high),)]
        filled = [high - low for low, high in given.features or ((given.low, given.high),)]
        if len(filled) != len(wide):
            wide, filled = [self.high - self.low], [given.high - given.low]
        shares = [part / whole for part, whole in zip(filled, wide, strict=True) if whole > 0]
        return float(np.median(shares)) if shares else 1.0

    def _remedy(self, given: InputRange) -> str:
        """Return what would bring the inputs into the range."""
        if min(self.low, given.low) >= 0 and min(self.high, given.high) > 0:
            ratio = given.high / self.high
            for word, factor in (("Divide them by", ratio), ("Multiply them by", 1 / ratio)):
                for above, most, scale in _SCALES:
                    if above < factor <= most:
                        return f"{word} {scale}."
        return "Scale them as in training."


RECORD = NetworkRecord(InputRange, "training_range.json")
"""By network; None for one that was fitted on what was not looked through."""


def note(network: Any, range_: InputRange | Sequence[float] | None) -> None:
    """Record the range of the inputs that a network was trained on, in place of an earlier one; None: not known."""
    if range_ is not None and not isinstance(range_, InputRange):
        low, high = range_
        range_ = InputRange(float(low), float(high))
    RECORD.note(network, range_)


def note_training(network: Any, x: Any) -> None:
    """Add what `fit` is given to the record: arrays are looked through.

    After training on anything else, such as `tf.data` or a generator, the range is not known.
    """
    seen = InputRange.of(x) if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" else None
    before = RECORD.of(network, seen)
    RECORD.note(network, None if seen is None or before is None else before | seen)
