"""A measurement in independent pieces: judge some inputs, or attack some of them.

A piece is a pure function of the model, the attack and its own inputs, so it may be computed anywhere, in any order,
and again after a worker died. Random numbers depend on the inputs' numbers in the data set.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from defended.attacks.core import checks
from defended.attacks.core.attack import Attack
from defended.attacks.core.balls import distances
from defended.attacks.core.checks import Array
from defended.attacks.measurement.chunk_store import ChunkStore
from defended.defended_model import DefendedModel
from defended.exceptions import CertificateViolation


class Job(NamedTuple):
    """A piece of work, small enough to send."""

    name: str
    """The name under which the piece is kept."""
    kind: str
    """`"clean"` or `"attack"`; an engine may know others."""
    arrays: dict[str, Array]
    """`index` `[k]` int64, numbers of the inputs; `x` `[k, *input shape]`; for an attack, `answered` `[k]` int64."""


class Settings(NamedTuple):
    """What all pieces of a measurement share, besides the model."""

    attack: Any
    epsilon: float
    batch_size: int


class Engine(Protocol):
    """Computes the pieces of a measurement, here or elsewhere."""

    store: type[ChunkStore]
    """How pieces are kept."""

    fingerprint: dict[str, Any]
    """What else the results depend on, ready for JSON."""

    def run(
        self, jobs: Iterable[Job], model: DefendedModel, settings: Settings
    ) -> Iterator[tuple[Job, dict[str, Array]]]:
        """Yield each job with its result, in any order; jobs are taken from the iterable as they can be begun."""


class InProcess:
    """The engine that computes one piece after the other, in this process."""

    store: type[ChunkStore] = ChunkStore

    def __init__(self) -> None:
        self.fingerprint: dict[str, Any] = {}

    def run(
        self, jobs: Iterable[Job], model: DefendedModel, settings: Settings
    ) -> Iterator[tuple[Job, dict[str, Array]]]:
        for job in jobs:
            yield job, compute(model, settings, job)
            del job


def compute(model: DefendedModel, settings: Settings, job: Job) -> dict[str, Array]:
    """Return the result of a job.

    Raises:
        CertificateViolation: an attacked point is answered with another label.
        ValueError: the attack returned NaN, or left the ball.
    """
    if job.kind == "clean":
        return judge(model, job.arrays["x"], settings.batch_size)
    if job.kind != "attack":
        raise ValueError(
            f"A job's kind must be 'clean' or 'attack', where the engine knows no other. Received: {job!r}"
        )
    return attack_inputs(model, settings.attack, settings.epsilon, **job.arrays)


def judge(model: DefendedModel, x: Array, batch_size: int) -> dict[str, Array]:
    """Return verdicts on clean inputs with both radii, and the classes of the largest scores, even where rejected."""
    found = model.audit(x, batch_size=_company(model, batch_size))
    radius = found["certified_radius"]
    if "neighbour_radius" in found:
        # Neighbours answer inputs that the certificate does not: what counts is how far an input stays answered.
        radius = np.maximum(radius, found["neighbour_radius"])
    return {
        "predicted": found["scores"].argmax(axis=1),
        "rejected": found["rejected"],
        "radius": radius,
        "availability": found["availability_radius"],
    }


def _company(model: DefendedModel, batch_size: int) -> int:
    """Return how many inputs to judge together."""
    # The noise of a seeded model is a function of the batch: alone, an input's does not depend on how work is divided.
    return 1 if model.sampling else batch_size


def redrawn(model: DefendedModel, x: Array) -> Array:
    """Return which inputs another draw rejects, `[n]` bool."""
    # The noise of a seeded model depends on the batch: beside an input that is not finite, which takes no draw, an
    # input meets different noise than alone.
    pairs = np.stack([x, np.full_like(x, np.nan)], axis=1).reshape(-1, *x.shape[1:])
    return np.asarray(model.verdicts(pairs, batch_size=2).rejected[::2])


def attack_inputs(
    model: DefendedModel, attack: Any, epsilon: float, *, x: Array, answered: Array, index: Array
) -> dict[str, Array]:
    """Attack inputs, all of them answered, and let the deployed check judge."""
    start = time.perf_counter()
    labels = None if getattr(attack, "targeted", False) else answered
    extra = {"index": index} if isinstance(attack, Attack) else {}
    attacked = attack(model, x, labels, **extra)
    clip = getattr(attack, "clip", None)
    attacked = checks.perturbed(x, attacked, epsilon, model.norm, f"the attack {attack!r}", clip)
    found = model.verdicts(attacked, batch_size=_company(model, 256))
    changed = ~found.rejected & (found.label != answered)
    if changed.any() and not model.sampling:
        first = np.argmax(changed)
        raise CertificateViolation(
            f"{changed.sum()} accepted inputs have an accepted neighbour with another label: input {index[first]} is "
            f"answered {answered[first]}, and a point within {epsilon:g} ({model.norm}) of it {found.label[first]}. "
            f"The certificate is broken: do not deploy this model, and report the points kept in this error.",
            index[changed],
            attacked[changed],
        )
    return {
        "degraded": found.rejected,
        "distance": distances(x, attacked, model.norm),
        "inputs": attacked[found.rejected],
        "changed": changed,
        "redrawn": np.int64(redrawn(model, x).sum() if model.sampling else 0),
        "seconds": np.float64(time.perf_counter() - start),
    }
