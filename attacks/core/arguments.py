"""How attacks declare their arguments: each once, as a dataclass field that carries its meaning and its check.

Constructor, checks, representation, recorded configuration and documentation follow from the fields.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import Field, field, fields
from functools import partial
from typing import Any

from defended.arguments import one_of, positive_number, whole_number
from defended.attacks.core.balls import BALLS
from defended.attacks.core.checks import box


def meant(meaning: str, check: Callable[..., Any] | None = None, **limits: Any) -> dict[str, Any]:
    """Return the metadata of an argument's field.

    Args:
        meaning: what follows the argument's name in the documentation.
        check: maps `(name, value, **limits)` to the value in its type, or raises an error. None leaves values as they
            are; the value None is also left as it is where it is the default.
        limits: keywords of the check.
    """
    return {"meaning": meaning, "check": partial(check, **limits) if check else lambda name, value: value}


def argument(default: Any, meaning: str, check: Callable[..., Any] | None = None, **limits: Any) -> Any:
    """Return the field of an argument with its default, its meaning and its check, as for `meant`."""
    return field(default=default, metadata=meant(meaning, check, **limits))


def yes_or_no(name: str, value: Any) -> bool:
    """Return the truth of `value`."""
    return bool(value)


def shared(default: Any, meaning: str, check: Callable[..., Any] | None = None, **limits: Any) -> Callable[..., Any]:
    """Return a function that makes such fields for several attacks; it takes another default and another meaning."""
    return lambda default=default, meaning=meaning: argument(default, meaning, check, **limits)


norm = shared(None, '`"l2"` or `"linf"`; None for the model\'s.', one_of, known=BALLS)
steps = shared(50, "number of gradient steps in each run.", whole_number, least=1)
restarts = shared(1, "number of starts.", whole_number, least=1)
targets = shared(1, "number of classes to descend towards, each in a run of its own.", whole_number, least=1)
targeted = shared(False, "move towards the given labels instead of away from them.", yes_or_no)
queries = shared(2000, "largest number of points judged for each input.", whole_number, least=1)
clip = shared(None, "box `(low, high)` that all points stay in, or None.", box)
epsilon = shared(None, "radius in input units; None for `model.epsilon`.", positive_number)
seed = shared(0, "seed of all random numbers.", whole_number, least=0)
batch_size = shared(128, "number of inputs attacked at a time.", whole_number, least=1)
jit_compile = shared(None, "whether to compile steps with XLA; None decides by the device.")


def check_arguments(attack: Any) -> None:
    """Replace each argument that a dataclass declares by what its check returns."""
    for declared in fields(attack):
        value = getattr(attack, declared.name)
        if "check" in declared.metadata and not (value is None and declared.default is None):
            object.__setattr__(attack, declared.name, declared.metadata["check"](declared.name, value))


def document_arguments(attack: type) -> None:
    """Add the section `Args:` to the docstring of a class that declares arguments, or whose parents do."""
    declared: dict[str, Any] = {}
    for kind in attack.__mro__:
        # The decorator `dataclass` turns what the class itself declares into `__dataclass_fields__` only afterwards.
        own = vars(kind) if kind is attack else vars(kind).get("__dataclass_fields__", {})
        for name in vars(kind).get("__annotations__", ()):
            if isinstance(own.get(name), Field):
                declared.setdefault(name, own[name])
    wrapper = textwrap.TextWrapper(112, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
    entries = [wrapper.fill(f"{name}: {each.metadata['meaning']}") for name, each in declared.items() if each.metadata]
    if entries and attack.__doc__:
        attack.__doc__ = "\n".join([f"{inspect.cleandoc(attack.__doc__)}\n\nArgs:", *entries, ""])
