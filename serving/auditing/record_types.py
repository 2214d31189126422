"""What the parts of an audit's JSON are made of: numbers within limits, and rates with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from defended.statistics.intervals import Rate

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _by_name(quantiles: Any) -> Any:
    """Return quantiles with their probabilities as text, the only keys that JSON has."""
    if not isinstance(quantiles, Mapping):
        return quantiles
    return {key if isinstance(key, str) else f"{key:g}": value for key, value in quantiles.items()}


ByName = BeforeValidator(_by_name)


STRICT = ConfigDict(frozen=True, extra="forbid")


class RateRecord(BaseModel):
    """A share, its count and total, and the Clopper-Pearson interval."""

    model_config = STRICT

    value: Share
    count: Count
    total: Count
    interval: tuple[Share, Share]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    doubt: Share = 0.0
    """The probability that a certificate behind it is wrong, which the interval counts."""

    @model_validator(mode="before")
    @classmethod
    def _of_rate(cls, value: Any) -> Any:
        return value.to_dict() if isinstance(value, Rate) else value

    def rate(self) -> Rate:
        """Return the record as a `Rate`."""
        return Rate(self.count, self.total, self.confidence, self.doubt)
