"""Checks of a smoothed model's settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def positive(name: str, value: Any) -> float:
    """`value` as a positive finite float; otherwise `ValueError`."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`{name}` must be a positive finite number, in input units. Received: {name}={number!r}")
    return number


def whole(name: str, value: Any, least: int, most: int) -> int:
    """`value` as an int within limits; otherwise `ValueError`."""
    number = int(value)
    if isinstance(value, bool) or number != value or not least <= number <= most:
        raise ValueError(f"`{name}` must be a whole number from {least} to {most}. Received: {name}={value!r}")
    return number


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """`value`, where it is one of those known; otherwise `ValueError`."""
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {value!r}")
    return value
