"""Something that is known of a network, whatever defends it, and kept beside the weights of a saved model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary


class _Kept(Protocol):
    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self: ...


T = TypeVar("T", bound=_Kept)


class NetworkRecord(Generic[T]):
    """What is noted by network, so that all its defences share it; None is noted, too, and means: not known.

    Args:
        kind: the class of what is noted.
        file: its name in the folder that Keras saves beside the weights.
    """

    def __init__(self, kind: type[T], file: str):
        self._kind, self._file = kind, file
        self._noted: WeakKeyDictionary[Any, T | None] = WeakKeyDictionary()

    def of(self, network: Any, default: T | None = None) -> T | None:
        """Return what is noted of a network; the default where nothing is, not even None."""
        return self._noted.get(network, default)

    def note(self, network: Any, value: T | None) -> None:
        """Record a value, in place of an earlier one."""
        self._noted[network] = value

    def write(self, folder: str, network: Any) -> None:
        """Write what is noted of a network to the folder of a model that is being saved."""
        if network in self._noted:
            found = self._noted[network]
            text = json.dumps(None if found is None else found.to_json())
            Path(folder, self._file).write_text(text, encoding="utf-8")

    def read(self, folder: str | None, network: Any) -> None:
        """Read it back; files of earlier versions have none."""
        path = None if folder is None else Path(folder, self._file)
        if path is not None and path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            self._noted[network] = None if record is None else self._kind.from_json(record)
