"""What a measurement found out about each input, and the files that keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defended.attacks.core.checks import Array


class Records(NamedTuple):
    """What was found out about each input, in arrays of shape `[n]`."""

    label: Array
    """int64, the true class."""
    predicted: Array
    """int64, the class of the largest logit, rejected or not."""
    radius: Array
    """float32, certified radius; for a guard, the radius within which neighbours answer where that is larger."""
    rejected: Array
    """bool, rejected without any attack."""
    contested: Array
    """bool, answered with an availability radius of at most eps: not provably safe from degradation."""
    attacked: Array
    """bool, contested and attacked: all of them, unless a time budget ran out."""
    degraded: Array
    """bool, answered, and the attack found a point within eps that is rejected."""
    distance: Array
    """float64, how far the attacked point lies from the input; 0 where none was attacked."""

    def to_parquet(self, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> Path:
        """Write one row per input, with its number in the column `index`; the file appears whole or not at all.

        Args:
            path: the path of the file.
            metadata: kept in the file as JSON, under the key `defended`.

        Raises:
            ImportError: when pyarrow is missing.
        """
        pyarrow, parquet = _pyarrow()
        table = pyarrow.table({"index": np.arange(len(self.label))} | self._asdict())
        if metadata is not None:
            table = table.replace_schema_metadata({"defended": json.dumps(metadata)})
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{path.name}")
        parquet.write_table(table, partial)
        partial.replace(path)
        return path

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Records:
        """Read what `to_parquet` wrote.

        Raises:
            ImportError: when pyarrow is missing.
            ValueError: when the file has other columns.
        """
        _, parquet = _pyarrow()
        table = parquet.read_table(path)
        if table.column_names != ["index", *cls._fields]:
            raise ValueError(
                f"{os.fspath(path)} does not hold records of a measurement: its columns are "
                f"{table.column_names}, expected {['index', *cls._fields]}."
            )
        return cls(*(table[name].to_numpy() for name in cls._fields))


class DegradedInputs:
    """The perturbed inputs that are rejected though their originals were answered.

    Args:
        index: `[k]` int64, the inputs' numbers in the data set.
        inputs: `[k, *input shape]` float32, or a function that reads them from where they are kept.
    """

    def __init__(self, index: Array, inputs: Array | Callable[[], Array]):
        self.index = index
        self._inputs = inputs

    @property
    def inputs(self) -> Array:
        """`[k, *input shape]` float32; for a resumable measurement, read from its directory at each call."""
        return self._inputs() if callable(self._inputs) else self._inputs

    def __len__(self) -> int:
        return len(self.index)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'Parquet files need pyarrow. Install it with `pip install "keras-defended[attacks]"`.'
        ) from error
    return pyarrow, parquet
