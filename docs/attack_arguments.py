"""An extension of griffe: shows the arguments of attacks, which are dataclass fields, as `help` does."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import Any

import griffe

KINDS = {"POSITIONAL_OR_KEYWORD": griffe.ParameterKind.positional_or_keyword}


class AttackArguments(griffe.Extension):
    """Replaces docstrings and signatures of attacks by those of the imported classes."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the attacks of the package, if it is `defended`."""
        if pkg.path != "defended":
            return
        from defended import attacks

        for name in attacks.__all__:
            attack = getattr(attacks, name)
            if is_dataclass(attack) and issubclass(attack, attacks.Attack):
                shown = pkg[f"{attack.__module__}.{name}".removeprefix("defended.")]
                shown.docstring.value = inspect.getdoc(attack)
                shown.set_member("__init__", constructor(attack, shown))


def constructor(attack: type, parent: griffe.Class) -> griffe.Function:
    """Return the class's `__init__`, with the defaults that callers see."""
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for each in inspect.signature(attack).parameters.values():
        default = None if each.default is each.empty else repr(each.default)
        kind = KINDS.get(each.kind.name, griffe.ParameterKind.keyword_only)
        parameters.append(griffe.Parameter(each.name, annotation=each.annotation, kind=kind, default=default))
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=parent)
