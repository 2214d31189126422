"""An artefact, and an attack, as the audit uses them, computed by an engine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from defended._version import __version__
from defended.arguments import whole_number
from defended.attacks.core.attack import Attack
from defended.attacks.core.checks import Array
from defended.attacks.measurement.chunk_store import ChunkStore
from defended.attacks.measurement.engine import Job, Settings
from defended.provenance import data_digest
from defended.serving.artefacts.artefact import Artefact
from defended.serving.artefacts.inputs import require_array_signature
from defended.serving.artefacts.manifest import MANIFEST, Manifest
from defended.serving.cluster.shards import ParquetStore

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

_BATCHES = 8


class DistributedArtefact(Artefact):
    """An artefact that an engine runs; what takes an `Artefact` takes it too.

    Args:
        engine: an engine of `open_engine`, with the artefact; whoever opened it closes it.
        path: what reports state as the artefact's location.
        keep: directory that keeps finished pieces, so that the same calls go on where they were killed; None for none.
    """

    def __init__(self, engine: Any, path: Any, keep: str | os.PathLike[str] | None = None) -> None:
        if engine.source.kind != "artefact":
            raise ValueError("`engine` must have been opened with an artefact; it holds a Keras model.")
        manifest = Manifest.model_validate_json(engine.source.files[MANIFEST])
        super().__init__(path, manifest, cast(Any, None))  # no session: workers have them
        self._engine, self._keep = engine, keep

    def __call__(self, x: Array) -> dict[str, Array]:
        """Return the outputs of `serving_default`, as `Artefact` does."""
        return self.predict(x)

    def predict(self, x: Array, signature: str = "serving_default", batch_size: int = 256) -> dict[str, Array]:
        """Return a signature's outputs for any number of inputs, as `Artefact` does; the last batch is filled up."""
        asked = require_array_signature(signature, self.manifest.signatures, os.fspath(self.path))
        whole_number("batch_size", batch_size, 1)
        settings, size = Settings(None, self.epsilon, batch_size), batch_size * _BATCHES
        # Random verdicts are drawn anew; what was drawn before is not an answer to this call.
        keep = self._keep if self.manifest.sampling is None else None
        store = open_store(self._engine, keep, "audit", self._checked(x), {"batch_size": batch_size})
        found = in_order(self._engine, pieces("audit", x, size), settings, store)
        return {name: value for name, value in found.items() if signature == "audit" or name in asked.outputs}

    def close(self) -> None:
        """Do nothing: whoever opened the engine closes it."""


class RemoteAttack(Attack):
    """An attack that an engine's workers run; what takes an `Attack` takes it too.

    Args:
        engine: an engine of `open_engine`, with the Keras model that is attacked.
        attack: the attack; it must be picklable, since it is sent to workers.
        piece: inputs per piece of work.
        keep: directory that keeps finished pieces, so that the same calls go on where they were killed; None for none.
    """

    def __init__(
        self, engine: Any, attack: Attack, piece: int = 512, keep: str | os.PathLike[str] | None = None
    ) -> None:
        if engine.source.kind != "model":
            raise ValueError("`engine` must have been opened with a Keras model: attacks need its gradients.")
        self._engine, self._attack, self._piece, self._keep = engine, attack, piece, keep
        self.epsilon, self.norm, self.clip = attack.epsilon, attack.norm, attack.clip
        self.targeted = getattr(attack, "targeted", False)

    def __call__(
        self, model: DefendedModel, x: Any, y: Any = None, *, epsilon: float | None = None, index: Any = None
    ) -> Any:
        """Return what the attack gives; the model is the workers' copy, and `epsilon` the attack's or the model's."""
        if epsilon is not None:
            raise ValueError("`epsilon` is set when the attack is made: workers have it from there.")
        x = np.asarray(x, dtype=np.float32)
        numbers = np.arange(len(x)) if index is None else np.asarray(index)
        arrays = {"index": numbers} if y is None else {"index": numbers, "labels": np.asarray(y)}
        jobs = pieces("perturb", x, self._piece, arrays)
        settings = Settings(self._attack, float(self._engine.source.facts["epsilon"]), self._piece)
        labels = None if y is None else data_digest(np.asarray(y, dtype=np.int64))
        plan = {"attack": self.config(), "piece": self._piece, "index": data_digest(numbers), "labels": labels}
        store = open_store(self._engine, self._keep, "perturb", x, plan)
        return in_order(self._engine, jobs, settings, store)["perturbed"]

    def _perturb(self, task: Any) -> Array:
        raise NotImplementedError("Workers perturb: see `__call__`.")

    def config(self) -> dict[str, Any]:
        """Return the attack's own configuration."""
        return self._attack.config()

    def __repr__(self) -> str:
        return repr(self._attack)


def pieces(kind: str, x: Array, size: int, arrays: Mapping[str, Array] | None = None, name: str = "") -> Iterator[Job]:
    """Cut inputs, and what belongs to each, into jobs, which are named after `name` or their kind."""
    for first in range(0, max(len(x), 1), size):
        cut = {key: value[first : first + size] for key, value in (arrays or {}).items()}
        yield Job(f"{name or kind}_{first:012d}", kind, {"x": np.asarray(x[first : first + size]), **cut})


def in_order(engine: Any, jobs: Iterator[Job], settings: Settings, store: ChunkStore) -> dict[str, Array]:
    """Return what the jobs give, one after the other; what the store has is not computed again."""
    found: dict[str, dict[str, Array]] = {}

    def missing() -> Iterator[Job]:
        for job in jobs:
            kept = store.get(job.name)
            if kept is None:
                yield job
            else:
                found[job.name] = kept

    for job, outputs in engine.run(missing(), None, settings):
        found[job.name] = store.put(job.name, **outputs)
    parts = [found[name] for name in sorted(found)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}


def run_plan(engine: Any, task: str, data: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the result of a run depends on: its settings, the model, the digest of the data, and the engine."""
    known = {"task": task, "model": engine.source.digest, "data": data, "version": __version__}
    return known | engine.fingerprint | settings


def open_store(
    engine: Any, keep: str | os.PathLike[str] | None, kind: str, x: Array, plan: dict[str, Any]
) -> ChunkStore:
    """Return the store of one call's pieces: a folder of its own for every piece of work, named after it."""
    if keep is None:
        return ParquetStore(None, {})
    whole = run_plan(engine, kind, data_digest(x), plan)
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return ParquetStore(Path(keep) / f"{kind}-{name}", whole)
