"""Bounds on all values of a network over one ball, as they are found one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keras import ops

from defended.polytope.relaxation import Lines


@dataclass
class Chain:
    """Bounds on the values of a network over one ball, by one kind of line; tensors `[batch, *shape]` by node."""

    slope: str
    centred: bool = False
    """Whether deviations are measured from the centre of parallel lines, and not from the values at x."""
    lower: dict[int, Any] = field(default_factory=dict)
    upper: dict[int, Any] = field(default_factory=dict)
    size: dict[int, Any] = field(default_factory=dict)
    """Bounds on magnitudes."""
    pending: dict[int, Any] = field(default_factory=dict)
    """What rounding may cost since the last ReLU, for each entry; absent where it costs nothing."""
    reference: dict[int, Any] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)
    reach: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """How far the lines of a ReLU lie below and above the reference point."""
    largest: Any = None
    """`[batch]`, what no sum exceeds in magnitude."""

    def bound(self, index: int, lower: Any, upper: Any) -> None:
        """Set the bounds of a value."""
        self.lower[index], self.upper[index] = lower, upper
        self.size[index] = ops.maximum(ops.abs(lower), ops.abs(upper))

    def through_relu(
        self, index: int, rows: Any, side: str, weighted: Callable[[Any, Any], Any], spread: Callable[[Any], Any]
    ) -> tuple[Any, Any]:
        """Carry rows of coefficients on a ReLU to its argument; return them and what the lines take.

        Args:
            index: the ReLU.
            rows: coefficients.
            side: `"lower"` bounds a value from below, `"upper"` from above.
            weighted: sums rows, weighted by values `[batch, *shape]`.
            spread: brings values `[batch, *shape]` to the axes of the rows.
        """
        below, above = self.reach[index] if side == "lower" else self.reach[index][::-1]
        made = self.lines[index]
        if self.centred:
            return rows * spread(made.slope), weighted(ops.abs(rows), below)
        positive = ops.relu(rows)
        negative = positive - rows
        first, second = (made.low_slope, made.slope) if side == "lower" else (made.slope, made.low_slope)
        left = positive * spread(first) - negative * spread(second)
        return left, weighted(positive, below) + weighted(negative, above)
