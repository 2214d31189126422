"""Features brought to one scale, outside of the certified network: what a single radius over tabular data needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from defended.network_record import NetworkRecord
from defended.networks.inputs import Array

FILE = "standardisation.json"


@dataclass(frozen=True)
class Standardisation:
    """`(x - means) / deviations`, feature by feature, for inputs `[n, d]`.

    A radius is in units of the standardised features: 0.1 in a feature is a tenth of its standard deviation.

    Attributes:
        means: d numbers, in the units of the raw features.
        deviations: d positive numbers.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array([self.means, self.deviations], dtype=np.float64)
        if not (np.isfinite(values).all() and (values[1] > 0).all()):
            raise ValueError("`means` must be finite and `deviations` positive, one of each for every feature.")

    @classmethod
    def of(cls, x: Array) -> Standardisation:
        """Return what brings inputs `[n, d]` to mean 0 and deviation 1; features that do not vary keep their scale."""
        rows = np.asarray(x, np.float64)
        if rows.ndim != 2:
            raise ValueError(f"Only rows of features [n, d] are standardised. Received: shape {rows.shape}")
        deviations = rows.std(axis=0)
        return cls(tuple(rows.mean(axis=0).tolist()), tuple(np.where(deviations > 0, deviations, 1.0).tolist()))

    def __call__(self, x: Array) -> Array:
        """Return raw features `[n, d]`, standardised, in float32.

        Raises:
            ValueError: for another number of features.
        """
        rows = np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != len(self.means):
            raise ValueError(f"Inputs must have shape [n, {len(self.means)}]. Received: shape {rows.shape}")
        return ((rows.astype(np.float64) - self.means) / self.deviations).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON holds them."""
        return {"means": list(self.means), "deviations": list(self.deviations)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Standardisation:
        """Return the standardisation that `to_json` gave."""
        return cls(tuple(map(float, record["means"])), tuple(map(float, record["deviations"])))


RECORD = NetworkRecord(Standardisation, FILE)
