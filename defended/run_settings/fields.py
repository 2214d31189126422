"""Types of settings, with their limits, and what a class of settings says about each of its fields."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt
from pydantic import FiniteFloat

Count = Annotated[int, Ge(1)]
NaturalNumber = Annotated[int, Ge(0)]
Positive = Annotated[FiniteFloat, Gt(0)]
NotNegative = Annotated[FiniteFloat, Ge(0)]


@dataclass(frozen=True)
class Placeholder:
    """What a help page shows in place of a setting's value, such as `FILE.keras`."""

    text: str


class Setting(NamedTuple):
    """One field of a class of settings."""

    name: str
    type: Any
    """Without the limits."""
    default: Any
    lowest: float | None
    """The smallest value that is allowed; None where there is none, as above an open limit."""
    above: float | None
    """The value that must be exceeded; None where there is none."""
    placeholder: str | None
    text: str
    """What the class says below the field, in one line."""

    def check(self, value: Any) -> None:
        """Raise a ValueError where a value is not within the limits, which pydantic's models do by themselves."""
        if self.above is not None and not value > self.above:
            raise ValueError(f"`{self.name}` must be above {self.above}. Received: {value!r}.")
        if self.lowest is not None and not value >= self.lowest:
            raise ValueError(f"`{self.name}` must be at least {self.lowest}. Received: {value!r}.")


@functools.cache
def settings_of(cls: type) -> tuple[Setting, ...]:
    """Return the fields of a dataclass or pydantic model, in order."""
    fields = getattr(cls, "model_fields", None) or cls.__dataclass_fields__  # type: ignore[attr-defined]
    hints, texts = get_type_hints(cls, include_extras=True), _texts(cls)
    found = []
    for name, field in fields.items():
        kind, *notes = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        lowest: Any = next((note.ge for note in notes if isinstance(note, Ge)), None)
        above: Any = next((note.gt for note in notes if isinstance(note, Gt)), None)
        placeholder = next((note.text for note in notes if isinstance(note, Placeholder)), None)
        found.append(Setting(name, kind, field.default, lowest, above, placeholder, texts.get(name, "")))
    return tuple(found)


def _texts(cls: type) -> dict[str, str]:
    """Return the strings that stand below a class's fields in its source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(definition.body)  # type: ignore[attr-defined]
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
