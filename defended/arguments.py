"""Checks of arguments, with one wording: an error says what is wrong, what would be right, and what was received.

Each function takes the argument's name and its value, and returns the value in the type that is meant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any


def whole_number(
    name: str, value: Any, least: int | None = None, most: int | None = None, *, floats: bool = False
) -> int:
    """Return `value` as an int from `least` to `most`; `floats` also accepts floats that are whole, such as 2.0.

    Raises:
        TypeError: when it is not of an integer type; with `floats`, when it is not a number.
        ValueError: when it is too small, too large, a bool, or a float that is not whole.
    """
    limits = "" if least is None else f", at least {least}" if most is None else f" from {least} to {most}"
    message = f"`{name}` must be a whole number{limits}. Received: {name}={value!r}"
    try:
        number = int(value) if floats else operator.index(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from None
    too_small, too_large = least is not None and number < least, most is not None and number > most
    if isinstance(value, bool) or number != value or too_small or too_large:
        raise ValueError(message)
    return number


def positive_number(name: str, value: Any, unit: str = "") -> float:
    """Return `value` as a finite float above 0; the error states `unit`, such as "in input units"."""
    number = _number(name, value)
    if not 0 < number < math.inf:
        said = f", {unit}" if unit else ""
        raise ValueError(f"`{name}` must be a positive finite number{said}. Received: {name}={value!r}")
    return number


def number_not_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0."""
    number = _number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"`{name}` must be finite and not negative. Received: {name}={value!r}")
    return number


def number_in(name: str, value: Any, interval: str) -> float:
    """Return `value` as a float in the interval, which is written as in mathematics: `"[0, 1)"` contains 0, not 1."""
    number = _number(name, value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not (low < number < high or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")):
        raise ValueError(f"`{name}` must lie in {interval}. Received: {name}={value!r}")
    return number


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Return `value`, if it is among the known names."""
    names = tuple(known)
    if value not in names:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, names))}. Received: {name}={value!r}")
    return str(value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`{name}` must be a number. Received: {name}={value!r}") from None
