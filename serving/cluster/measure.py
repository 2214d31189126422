"""`defended.attacks.susceptibility` with an engine, and its results in a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defended.attacks.core.checks import Array
from defended.attacks.measurement.susceptibility import susceptibility
from defended.serving.cluster.shards import write_manifest
from defended.serving.cluster.source import model_digest

if TYPE_CHECKING:
    from defended.attacks.core.attack import Attack
    from defended.attacks.measurement.result import Susceptibility
    from defended.defended_model import DefendedModel


def measure(
    engine: Any,
    model: DefendedModel,
    x: Array,
    y: Array,
    attack: Attack | Callable[..., Any] | None = None,
    *,
    out: str | os.PathLike[str],
    batch_size: int = 512,
    **options: Any,
) -> Susceptibility:
    """Measure how far a model can be degraded, with an engine.

    Random numbers depend on the attack's seed and an input's number in the data, so the result depends neither on the
    engine nor on interruptions.

    Args:
        engine: an engine of `open_engine`, with the same model.
        model: the model, here too.
        x: float32 `[n, *input_shape]`, finite.
        y: `[n]` true class numbers.
        attack: as for `susceptibility`; it must have a configuration and be picklable, since it is sent to workers.
        out: directory; gets `shards/….parquet`, `records.parquet` and, when all are there, `manifest.json`. The same
            call goes on where a killed one stopped.
        batch_size: inputs per piece.
        **options: further arguments of `susceptibility`.

    Raises:
        ValueError: the engine was opened with another model, or `out` holds another run, naming what differs.
        CertificateViolation, WorkerLostError: as for `susceptibility`; a worker died again and again.
    """
    model.ensure_proven()
    if engine.source.digest != model_digest(model):
        raise ValueError(
            "`engine` was opened with another model, or `model` was changed since: open it with the model as it is now."
        )
    folder = Path(out)
    result = susceptibility(
        model, x, y, attack, batch_size=batch_size, resume=folder / "shards", engine=engine, **options
    )
    summary = result.summary()
    del summary["seconds_per_point"]  # it differs from run to run
    result.records.to_parquet(folder / "records.parquet", summary)
    if int(result.records.attacked.sum()) == int(result.records.contested.sum()):
        plan = json.loads((folder / "shards" / "plan.json").read_text(encoding="utf-8"))
        write_manifest(folder, "attack", {"task": "attack", **plan}, summary)
    return result
