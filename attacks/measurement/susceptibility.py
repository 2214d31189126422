"""`susceptibility`: judge, attack what is contested, judge again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended._version import __version__
from defended.arguments import positive_number, whole_number
from defended.attacks.core import checks
from defended.attacks.core.attack import Attack, describe, model_radius
from defended.attacks.core.checks import Array
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.measurement.chunk_store import ChunkStore, kept_plan
from defended.attacks.measurement.engine import Engine, InProcess, Job, Settings
from defended.attacks.measurement.records import DegradedInputs, Records
from defended.attacks.measurement.result import Susceptibility
from defended.defended_model import DefendedModel
from defended.exceptions import CertificateViolation
from defended.progress import shown
from defended.provenance import data_digest
from defended.statistics.rates import exceeds

# With a smaller probability, answers with another label are no longer chance.
_UNEXPLAINED = 1e-6
_CLEAN = ("predicted", "rejected", "radius", "availability")


def susceptibility(
    model: DefendedModel,
    x: ArrayLike,
    y: ArrayLike,
    attack: Attack | Callable[..., Any] | None = None,
    *,
    confidence: float = 0.95,
    batch_size: int = 512,
    time_budget: float | None = None,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
    engine: Engine | None = None,
) -> Susceptibility:
    """Measure how far a defended model can be degraded: from below by an attack, from above by proof.

    Only *contested* inputs are attacked: answered ones whose availability radius is at most eps. A certified radius is
    1-Lipschitz while the prediction holds, and within eps of an answered input it does hold; so an input with
    `r > 2 eps` keeps `r > eps` in its whole eps-ball and is answered there. (At exactly `r = 2 eps` a slack of 0 is
    possible, which is a rejection.) Where the certificate pays for rounding, somewhat more than 2 eps is needed, since
    what is computed at the attacked point counts.

    Attacked points count as degraded when `model.verdicts` rejects them, whatever the attack believes; inputs that were
    rejected from the start do not count. The result does not depend on how the work is divided, nor on interruptions.

    A smoothed model judges each input with separate noise here, so that its random verdicts are independent, and once
    more without the attack, to show what chance does (`Susceptibility.spontaneous`). Measure it in mode `"fixed"`: a
    sequential test stops before it knows a radius of 2 eps.

    Args:
        model: a `DefendedModel`, final or not.
        x: `[n, *input shape]`, finite. A `numpy.memmap` is read in batches, and never as a whole.
        y: `[n]` true class numbers, or one-hot rows.
        attack: an `Attack`, or a callable `(model, x, y)` that returns inputs within `model.epsilon`; it is given the
            answered label as `y` (targeted attacks: None). None for `CertificateDescent(early_stop=True)`.
        confidence: the confidence level of the Clopper-Pearson intervals.
        batch_size: number of inputs judged, attacked and saved at a time.
        time_budget: seconds of attacking after which no further batch is attacked. What is left then counts as not
            degraded, so that the lower bound remains a lower bound.
        progress: show a progress bar on stderr; None shows it on a terminal, once the work takes more than a few
            seconds.
        resume: directory that keeps what is done, one file for each batch, including the degraded inputs, which are
            then read from there instead of held in memory. A measurement that was killed at any point, or ran out of
            its time budget, goes on where it was when it is called again with the same arguments.
        engine: computes the pieces; None computes one after the other, in this process. `defended.serving.cluster` has
            engines for many processes and machines.

    Raises:
        CertificateViolation: when a point within eps of an answered one is answered with another label; for a
            smoothed model, when there are more of them than chance explains (at a probability of 1e-6).
        ValueError: for empty or wrongly shaped data, NaN, labels out of range, an attack that returns NaN or leaves the
            ball, or a `resume` directory of another measurement.
    """
    if not isinstance(model, DefendedModel):
        raise TypeError(f"`model` must be a DefendedModel, such as GloroNet. Received: {type(model).__name__}")
    attack = CertificateDescent(early_stop=True) if attack is None else attack
    if not callable(attack):
        raise TypeError(f"`attack` must be an attack, such as CertificateDescent(). Received: {attack!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1, as 0.95. Received: {confidence}")
    batch_size = whole_number("batch_size", batch_size, 1)
    budget = np.inf if time_budget is None else positive_number("time_budget", time_budget)
    x = checks.points(model, x, getattr(attack, "clip", None))
    label = checks.class_numbers(y, len(x), model.num_classes)
    epsilon = _radius(model, attack)
    computing: Engine = engine or InProcess()
    plan = {} if resume is None else _fingerprint(model, x, label, attack, batch_size, resume) | computing.fingerprint
    store = computing.store(resume, plan)
    settings = Settings(attack, epsilon, batch_size)

    cuts = [np.arange(first, min(first + batch_size, len(x))) for first in range(0, len(x), batch_size)]
    jobs = (Job(f"clean_{rows[0]:09d}", "clean", {"index": rows, "x": x[rows[0] : rows[-1] + 1]}) for rows in cuts)
    with shown("judging", len(x), progress if len(x) else False) as advance:
        judged = {}
        for name, piece, done in _pieces(store, computing, model, settings, jobs):
            judged[name] = done
            advance(len(piece))
    clean = {key: np.concatenate([judged[name][key] for name in sorted(judged)]) for key in _CLEAN}
    contested = ~clean["rejected"] & ~exceeds(clean["availability"], epsilon)
    rows = np.flatnonzero(contested)
    attacked, degraded, distance = np.zeros(len(x), bool), np.zeros(len(x), bool), np.zeros(len(x))
    found: dict[str, tuple[Array, Any]] = {}
    seconds, redrawn, changed = 0.0, 0, [np.zeros(0, np.int64)]

    deadline = time.monotonic() + budget
    cuts = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    jobs = (
        Job(
            f"attacked_{number * batch_size:09d}",
            "attack",
            {"index": chunk, "x": x[chunk], "answered": clean["predicted"][chunk]},
        )
        for number, chunk in enumerate(cuts)
    )
    with shown("attacking", len(rows), progress if len(rows) else False) as advance:
        for name, chunk, done in _pieces(store, computing, model, settings, jobs, deadline):
            attacked[chunk], degraded[chunk], distance[chunk] = True, done["degraded"], done["distance"]
            found[name] = (chunk[done["degraded"]], name if store.keeps else done["inputs"])
            seconds += float(done["seconds"])
            redrawn += int(done["redrawn"])
            changed.append(chunk[done["changed"]])
            advance(len(chunk))
    found_index = [np.zeros(0, np.int64), *(found[name][0] for name in sorted(found))]
    inputs = [found[name][1] for name in sorted(found)]

    if model.sampling:
        _check_chance(model, np.sort(np.concatenate(changed)), int(attacked.sum()))
    return Susceptibility(
        epsilon=epsilon,
        norm=model.norm,
        final=model.is_final,
        attack=describe(attack),
        confidence=float(confidence),
        seconds_per_point=seconds / max(int(attacked.sum()), 1),
        records=Records(
            label, clean["predicted"], clean["radius"], clean["rejected"], contested, attacked, degraded, distance
        ),
        adversarial=DegradedInputs(np.concatenate(found_index), _inputs(store, inputs, x.shape[1:])),
        sampling=dict(model.sampling) if model.sampling else None,
        radius_ceiling=getattr(model, "radius_ceiling", None),
        redrawn=redrawn,
        changed=len(np.concatenate(changed)),
    )


def _pieces(
    store: ChunkStore, engine: Engine, model: Any, settings: Settings, jobs: Iterable[Job], deadline: float = np.inf
) -> Iterator[tuple[str, Array, dict[str, Array]]]:
    """Yield names, input numbers and arrays of pieces: those kept, and those that are begun before a deadline."""
    kept: list[tuple[str, Array, dict[str, Array]]] = []

    def missing() -> Iterator[Job]:
        for job in jobs:
            done = store.get(job.name)
            if done is not None:
                kept.append((job.name, job.arrays["index"], _without_inputs(done)))
            elif time.monotonic() < deadline:
                yield job
            del job, done  # or their inputs would be held until the next ones are there

    for job, done in engine.run(missing(), model, settings):
        yield from kept
        kept.clear()
        store.put(job.name, **done)
        piece = job.name, job.arrays["index"], _without_inputs(done) if store.keeps else done
        del job, done
        yield piece
    yield from kept


def _without_inputs(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in arrays.items() if name != "inputs"}


def _check_chance(model: Any, changed: Array, attacked: int) -> None:
    """Raise where more answers have another label than wrong certificates, before or after the attack, explain."""
    from scipy.stats import binom

    alpha = float(model.sampling["alpha"])
    if len(changed) and binom.sf(len(changed) - 1, attacked, min(2 * alpha, 1.0)) < _UNEXPLAINED:
        raise CertificateViolation(
            f"{len(changed)} of {attacked} attacked inputs are answered with another label than before, where each "
            f"answer is wrong with a probability of at most {alpha:g}. The certificate is broken: do not deploy this "
            f"model, and report the inputs kept in this error.",
            changed,
            np.zeros((0, *model.input_shape[1:]), np.float32),
        )


def _inputs(store: ChunkStore, found: list[Any], shape: tuple[int, ...]) -> Any:
    """Return the degraded inputs, or a function that reads them from the store."""
    empty = np.zeros((0, *shape), np.float32)
    if not store.keeps:
        return np.concatenate([empty, *found])
    return lambda: np.concatenate([empty, *((store.get(name) or {})["inputs"] for name in found)])


def _radius(model: Any, attack: Any) -> float:
    """Return the model's radius, and raise where the attack is set to another one: it would answer another question."""
    epsilon = model_radius(model)
    own = getattr(attack, "epsilon", None)
    if own is not None and np.float32(own) != np.float32(epsilon):
        raise ValueError(
            f"`attack` is set to epsilon={own}, the model defends {epsilon:g}. Leave the attack's epsilon None to "
            f"attack within what the model defends, or assign model.epsilon."
        )
    norm = getattr(attack, "norm", None)
    if norm is not None and norm != model.norm:
        raise ValueError(
            f"`attack` keeps to an {norm} ball, the model defends {model.norm}. Leave the attack's norm None."
        )
    return epsilon


def _fingerprint(
    model: Any, x: Array, y: Array, attack: Any, batch_size: int, resume: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return what must be the same for a measurement to go on."""
    if not hasattr(attack, "config"):
        raise ValueError(f"`resume` needs an attack that reports its configuration by `config()`. Received: {attack!r}")
    weights = hashlib.sha256(f"{type(model).__name__} {model.values_digest()}".encode())
    data = data_digest(x, y)
    if (earlier := kept_plan(resume).get("data")) not in (None, data) and earlier == _earlier_digest(x, y):
        data = earlier
    return {
        "weights": weights.hexdigest(),
        "epsilon": model_radius(model),
        "data": data,
        "attack": describe(attack),
        "batch_size": batch_size,
        "version": __version__,
    }


def _earlier_digest(x: Array, y: Array) -> str:
    """Return the name that earlier versions gave a data set in the directory that keeps a measurement."""
    data = hashlib.sha256(f"{x.shape}".encode())
    for first in range(0, len(x), 1024):
        data.update(np.ascontiguousarray(x[first : first + 1024]).data)
    data.update(y.tobytes())
    return data.hexdigest()
