"""Objects that hold something until they are closed, and are closed at the end of a `with` block."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that enters as itself, and calls `close` at the end."""

    def close(self) -> None:
        """Free what is held; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
