"""What classes are called, in the order of their numbers: as users give it, and of the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from numbers import Integral
from typing import Any, TypeAlias

BOTTOM = "⊥"
"""What a rejection is called; no class may be."""

ClassNames: TypeAlias = Sequence[str] | Mapping[str, int] | Mapping[int, str]
"""Names in the order of the classes' numbers; or a mapping, of names to numbers (Keras's `class_indices`) or back."""


def in_order(
    class_names: ClassNames | None, num_classes: int | None = None, argument: str = "class_names"
) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of their numbers, None where none are given.

    Args:
        class_names: texts in that order, or a mapping between names and numbers, in either direction.
        num_classes: m, the number of names that there must be; None for any.
        argument: what messages call the names.

    Raises:
        ValueError: a set, which has no order; a mapping whose numbers leave a gap, occur twice or are not those of
            the classes; another number of names; names that are no text, empty, alike, or "⊥".
    """
    if class_names is None:
        return None
    names = _by_number(class_names, num_classes, argument) if isinstance(class_names, Mapping) else class_names
    if isinstance(names, Set):
        raise ValueError(
            f"`{argument}` must say which class has which number, and a {type(names).__name__} has no order. Give a "
            f"list in the order of the numbers, or a mapping such as Keras's `class_indices`. Received: {names!r}."
        )
    texts = () if isinstance(names, str | bytes) else tuple(names)
    named = all(isinstance(name, str) and name.strip() for name in texts) and BOTTOM not in texts
    if not texts or not named or len(set(texts)) != len(texts) or len(texts) != (num_classes or len(texts)):
        wanted = "" if num_classes is None else f"{num_classes} "
        raise ValueError(
            f"`{argument}` must be {wanted}different texts, none of them empty or {BOTTOM!r}, which stands for a "
            f"rejection. Received: {class_names!r}."
        )
    return tuple(map(str, texts))


def _by_number(given: Mapping[Any, Any], num_classes: int | None, argument: str) -> list[Any]:
    pairs = list(given.items())
    if pairs and all(isinstance(name, str) and _is_number(number) for name, number in pairs):
        numbered = [(int(number), name) for name, number in pairs]
    elif pairs and all(_is_number(number) and isinstance(name, str) for number, name in pairs):
        numbered = [(int(number), name) for number, name in pairs]
    else:
        raise ValueError(
            f"`{argument}` must map every name to a whole number, or every number to a name. Received: {given!r}."
        )
    last = (num_classes or len(pairs)) - 1
    if sorted(number for number, _ in numbered) != list(range(last + 1)):
        raise ValueError(
            f"`{argument}` must give each number from 0 to {last} to one class, without gaps. Received: {given!r}."
        )
    return [name for _, name in sorted(numbered)]


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


_DIGITS = tuple(map(str, range(10)))
_SPEEDS = tuple(f"speed limit {speed}" for speed in (20, 30, 50, 60, 70, 80))

CLASS_NAMES = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion_mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "gtsrb": (
        *_SPEEDS, "end of speed limit 80", "speed limit 100", "speed limit 120",
        "no passing", "no passing for lorries", "right of way at the next crossing", "priority road", "yield", "stop",
        "no vehicles", "no lorries", "no entry",
        "danger", "bend to the left", "bend to the right", "double bend", "uneven road", "slippery road",
        "road narrows on the right", "road works", "traffic lights", "pedestrians", "children", "cyclists",
        "snow or ice", "wild animals",
        "end of all limits",
        "turn right ahead", "turn left ahead", "ahead only", "ahead or right", "ahead or left", "keep right",
        "keep left", "roundabout",
        "end of no passing", "end of no passing for lorries",
    ),
}  # fmt: skip
