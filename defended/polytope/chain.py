"""Bounds on all values of a network over one ball, as they are found one after the other."""

from __future__ import annotations

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
    """What rounding may cost since the last ReLU, for each entry; absent where nothing."""
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
