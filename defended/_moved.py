"""Module names of earlier versions: each resolves to the module that holds its content now, on first use."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

MOVED: dict[str, str] = json.loads(Path(__file__).with_name("moved_modules.json").read_text(encoding="utf-8"))
"""Today's modules by their earlier names."""


class MovedModule(ModuleType):
    """A module under its earlier name; its public and private names are those of the module that took its place."""

    def __getattr__(self, name: str) -> Any:
        # Tools that look through all modules ask for such names, which would import everything.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(importlib.import_module(MOVED[self.__name__]), name)


def register() -> None:
    """Make the earlier names importable; nothing is imported yet."""
    for name in MOVED:
        sys.modules.setdefault(name, MovedModule(name, "An earlier name of this module."))


def earlier_modules(package: str) -> Callable[[str], ModuleType]:
    """Return the `__getattr__` of a package that had more modules: `package.name` gives the one that took its place."""

    def get(name: str) -> ModuleType:
        if f"{package}.{name}" in MOVED:
            return sys.modules[f"{package}.{name}"]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
