"""What a monitor keeps: its recent verdicts, and what it needs to go on after a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from defended.serving.auditing.profile import NOT_FINITE
from defended.serving.auditing.strata import margins

# JSON has no infinity: the logarithm of 0 is null there.
Logarithm = Annotated[
    float,
    BeforeValidator(lambda value: -math.inf if value is None else value),
    PlainSerializer(lambda value: None if math.isinf(value) else value),
]


class RecentVerdicts(BaseModel):
    """The last verdicts: position, verdict, bins and class of each."""

    model_config = ConfigDict(extra="forbid")
    position: list[int] = []
    rejected: list[bool] = []
    not_finite: list[bool] = []
    margin: list[int] = []
    predicted: list[int] = []

    def add(
        self,
        seen: int,
        rejected: np.ndarray,
        scores: np.ndarray,
        reason: np.ndarray | None,
        edges: Sequence[float],
        window: int,
    ) -> None:
        """Take in verdicts that come after `seen` others; at most the last `window` are kept.

        Args:
            seen: the number of verdicts before.
            rejected: `[n]` bool.
            scores: `[n, m]`.
            reason: `[n]`, where reasons are reported.
            edges: edges of the margins' bins.
            window: how many to keep.
        """
        broken = ~np.isfinite(scores).all(axis=1)
        if reason is not None:
            broken |= np.asarray(reason) == NOT_FINITE
        self.position += range(seen + 1, seen + 1 + len(rejected))
        self.rejected += rejected.tolist()
        self.not_finite += broken.tolist()
        self.margin += np.searchsorted(edges, margins(scores), side="right").tolist()
        self.predicted += np.where(broken, 0, np.nan_to_num(scores).argmax(axis=1)).tolist()
        for name in type(self).model_fields:
            setattr(self, name, getattr(self, name)[-window:])

    def since(self, position: int) -> dict[str, np.ndarray] | None:
        """Return what `weigh` needs of the verdicts from a position on; None where none are kept."""
        if not self.position:
            return None
        chosen = np.array(self.position) >= position
        names = {"rejected": "rejected", "not_finite": "not_finite", "margin": "margin", "class": "predicted"}
        return {name: np.array(getattr(self, field))[chosen] for name, field in names.items()}


class MonitorState(BaseModel):
    """What a monitor needs to go on after a restart."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["defended-monitor"] = "defended-monitor"
    format_version: Literal[1] = 1
    settings: str
    observed: Annotated[int, Field(ge=0)]
    rejected: Annotated[int, Field(ge=0)]
    rounds: Annotated[int, Field(ge=0)]
    log_stakes: list[Logarithm]
    log_starts: list[Logarithm]
    starts: list[tuple[int, int]]
    alarm: tuple[int, int, int, float] | None
    recent: RecentVerdicts
    source: dict[str, Any] = {}
