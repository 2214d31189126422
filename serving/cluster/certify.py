"""Verdicts and radii of many inputs, in pieces."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defended.arguments import whole_number
from defended.attacks.core import checks
from defended.attacks.core.checks import Array
from defended.attacks.measurement.engine import Settings
from defended.provenance import data_digest
from defended.serving.cluster.remote import pieces, run_plan
from defended.serving.cluster.shards import read_shards, write_manifest
from defended.statistics.rates import InputFacts, exceeds


@dataclass(frozen=True)
class Certificates:
    """What a model says of each input, in the order of the inputs.

    Attributes:
        columns: arrays `[n]` by name: `label` (-1 = rejected), `rejected`, `radius`, `availability_radius`, `target`
            where labels were given, and what else an artefact reports.
        epsilon: the radius defended, in the norm `norm`.
        directory: where the pieces are.
        alpha: the probability that a radius is wrong: 0 for proofs.
    """

    columns: dict[str, Array]
    epsilon: float
    norm: str
    directory: Path
    alpha: float = 0.0

    def summary(self, confidence: float = 0.95) -> dict[str, Any]:
        """Return rates with Clopper–Pearson intervals, ready for JSON."""
        answered, radius = ~self.columns["rejected"], self.columns["radius"]
        # What neighbours answer holds out as far as their radius says.
        twice = answered & exceeds(np.maximum(radius, self.columns.get("neighbour_radius", 0)), 2 * self.epsilon)
        safe = answered & exceeds(self.columns["availability_radius"], self.epsilon)
        target = self.columns.get("target")
        right = None if target is None else answered & (self.columns["label"] == target)
        facts = InputFacts(~answered, right=right, certified=answered, safe=safe, certified_twice=twice)
        rates = facts.rates(("rejection_rate", "fpr_upper", "vra", "vra_2eps"), confidence, self.alpha)
        known = {name: rate.to_dict() for name, rate in rates.items() if rate is not None}
        return {"epsilon": self.epsilon, "norm": self.norm, "inputs": len(radius), **known}


def certify(
    engine: Any,
    x: Array,
    y: Array | None = None,
    *,
    out: str | os.PathLike[str],
    batch_size: int = 256,
    shard_size: int = 2048,
) -> Certificates:
    """Judge inputs with an engine, and keep label, rejection and radii of each in Parquet files.

    Args:
        engine: an engine of `open_engine`, with the model or the artefact.
        x: float32 `[n, *input_shape]`; a `numpy.memmap` is read in pieces. What is not finite is rejected.
        y: `[n]` true class numbers, kept in the column `target`.
        out: directory; gets `shards/certified_….parquet` and, when all are there, `manifest.json`. The same call goes
            on where a killed one stopped.
        batch_size: inputs per run of the model. Runs of another size may differ in the last digits.
        shard_size: inputs per file, a multiple of `batch_size`, so that no batch is cut.

    Raises:
        ValueError: an argument does not fit, or `out` holds another run, naming what differs.
        WorkerLostError: a worker died again and again.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    shard_size = whole_number("shard_size", shard_size, 1)
    if shard_size % batch_size:
        raise ValueError(
            f"`shard_size` must be a multiple of `batch_size`, so that batches do not depend on files. Received: "
            f"{shard_size} and {batch_size}."
        )
    source = engine.source
    shape = tuple(source.facts["input_shape"])
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape[1:] != shape or not len(x):
        received = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            f"`x` must be a float32 array of shape [n, {', '.join(map(str, shape))}], n at least 1. "
            f"Received: {received}."
        )
    target = None if y is None else checks.class_numbers(y, len(x), source.facts["num_classes"])
    sizes = {"batch_size": batch_size, "shard_size": shard_size}
    plan = run_plan(engine, "certify", data_digest(x, target), sizes)
    folder = Path(out)
    store = engine.store(folder / "shards", plan)
    jobs = pieces("certify", x, shard_size, {"index": np.arange(len(x))}, "certified")
    missing = (job for job in jobs if store.get(job.name) is None)
    settings = Settings(None, float(source.facts["epsilon"]), batch_size)
    for job, found in engine.run(missing, None, settings):
        index = job.arrays["index"]
        extra = {} if target is None else {"target": target[index]}
        store.put(job.name, index=index, **extra, **found)
    columns = read_shards(folder)
    facts = source.facts
    certificates = Certificates(columns, float(facts["epsilon"]), facts["norm"], folder, float(facts.get("alpha", 0)))
    write_manifest(folder, "certify", plan, certificates.summary())
    return certificates
