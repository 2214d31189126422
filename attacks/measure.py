"""`susceptibility`: judge, attack what is contested, judge again."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from keras import ops

import defended
from defended.attacks import checks
from defended.attacks.attack import Attack, describe, model_radius
from defended.attacks.certificate_descent import CertificateDescent
from defended.attacks.checks import Array, CertificateViolation
from defended.attacks.chunk_store import ChunkStore
from defended.attacks.figures import DegradedInputs, Records, Susceptibility
from defended.attacks.projections import distances


def susceptibility(
    model: Any,
    x: Any,
    y: Any,
    attack: Any = None,
    *,
    confidence: float = 0.95,
    batch_size: int = 512,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Susceptibility:
    """Measure how far a defended model can be degraded: from below by an attack, from above by proof.

    Only *contested* inputs are attacked: answered ones with `r <= 2 eps`. A certified radius is 1-Lipschitz while the
    prediction holds, and within eps of an answered input it does hold; so an input with `r > 2 eps` keeps `r > eps`
    in its whole eps-ball and is answered there. (At exactly `r = 2 eps` a slack of 0 is possible, which is a
    rejection.)

    Attacked points count as degraded when `model.verdicts` rejects them, whatever the attack believes; inputs that were
    rejected from the start do not count. The result does not depend on how the work is cut, nor on interruptions.

    Args:
        model: a `DefendedModel`, final or not.
        x: `[n, *input shape]`, finite.
        y: `[n]` true class numbers, or one-hot rows.
        attack: an `Attack`, or a callable `(model, x, y)` that returns inputs within `model.epsilon`; it is given the
            answered label as `y` (targeted attacks: None). None for `CertificateDescent()`.
        confidence: of the Clopper-Pearson intervals.
        batch_size: inputs judged, attacked and saved at a time.
        progress: show a progress bar on stderr; None shows it on terminals.
        resume: directory that keeps what is done, one file for each batch. Killed at any point and called again with
            the same arguments, the measurement goes on where it was.

    Raises:
        CertificateViolation: when a point within eps of an answered one is answered with another label.
        ValueError: for empty or wrongly shaped data, NaN, labels out of range, an attack that returns NaN or leaves the
            ball, or a `resume` directory of another measurement.
    """
    if not isinstance(model, defended.DefendedModel):
        raise TypeError(f"`model` must be a DefendedModel, such as GloroNet. Received: {type(model).__name__}")
    attack = CertificateDescent() if attack is None else attack
    if not callable(attack):
        raise TypeError(f"`attack` must be an attack, such as CertificateDescent(). Received: {attack!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie strictly between 0 and 1, as 0.95. Received: {confidence}")
    batch_size = checks.whole_number("batch_size", batch_size, 1)
    x = checks.points(model, x, getattr(attack, "clip", None))
    label = checks.class_numbers(y, len(x), model.num_classes)
    epsilon = _radius(model, attack)
    store = ChunkStore(resume, _fingerprint(model, x, label, attack, batch_size) if resume is not None else {})

    clean = store.get("clean") or store.put("clean", **_judge(model, x, batch_size))
    # Doubling is exact in float32, so this is the comparison that the deployed check would make at 2 eps.
    contested = ~clean["rejected"] & (clean["radius"] <= np.float32(2) * np.float32(epsilon))
    rows = np.flatnonzero(contested)
    degraded, distance, seconds = np.zeros(len(x), bool), np.zeros(len(x)), 0.0
    found_index, found_inputs = [np.zeros(0, np.int64)], [np.zeros((0, *x.shape[1:]), np.float32)]

    with _progress_bar(len(rows), progress) as advance:
        for first in range(0, len(rows), batch_size):
            name = f"attacked_{first:09d}"
            chunk = rows[first : first + batch_size]
            done = store.get(name)
            if done is None:
                start = time.perf_counter()
                done = _attack_chunk(model, x, clean["predicted"], attack, epsilon, chunk)
                done = store.put(name, **done, seconds=np.float64(time.perf_counter() - start))
            degraded[chunk], distance[chunk] = done["degraded"], done["distance"]
            found_index.append(chunk[done["degraded"]])
            found_inputs.append(done["inputs"])
            seconds += float(done["seconds"])
            advance(len(chunk))

    return Susceptibility(
        epsilon=epsilon,
        norm=model.norm,
        final=model.is_final,
        attack=describe(attack),
        confidence=float(confidence),
        seconds_per_point=seconds / max(len(rows), 1),
        records=Records(label, clean["predicted"], clean["radius"], clean["rejected"], contested, degraded, distance),
        adversarial=DegradedInputs(np.concatenate(found_index), np.concatenate(found_inputs)),
    )


def _judge(model: Any, x: Array, batch_size: int) -> dict[str, Array]:
    """Verdicts on clean inputs, and the network's predictions: verdicts name no class where they reject."""
    verdicts = model.verdicts(x, batch_size=batch_size)
    # Where a class is accepted, it is the network's prediction.
    predicted = verdicts.label.copy()
    rest = np.flatnonzero(verdicts.rejected)
    for first in range(0, len(rest), batch_size):
        rows = rest[first : first + batch_size]
        predicted[rows] = ops.convert_to_numpy(ops.argmax(model.network(x[rows], training=False), axis=-1))
    return {"predicted": predicted, "rejected": verdicts.rejected, "radius": verdicts.radius}


def _attack_chunk(model: Any, x: Array, answered: Array, attack: Any, epsilon: float, chunk: Array) -> dict[str, Array]:
    """Attack the inputs numbered `chunk`, all of them answered, and let the deployed check judge."""
    labels = None if getattr(attack, "targeted", False) else answered[chunk]
    extra = {"index": chunk} if isinstance(attack, Attack) else {}
    attacked = attack(model, x[chunk], labels, **extra)
    clip = getattr(attack, "clip", None)
    attacked = checks.perturbed(x[chunk], attacked, epsilon, model.norm, f"the attack {attack!r}", clip)
    verdicts = model.verdicts(attacked)
    changed = ~verdicts.rejected & (verdicts.label != answered[chunk])
    if changed.any():
        _report_violation(
            model, epsilon, chunk[changed], answered[chunk][changed], verdicts.label[changed], attacked[changed]
        )
    return {
        "degraded": verdicts.rejected,
        "distance": distances(x[chunk], attacked, model.norm),
        "inputs": attacked[verdicts.rejected],
    }


def _report_violation(model: Any, epsilon: float, index: Array, before: Array, after: Array, inputs: Array) -> None:
    first = f"input {index[0]} is answered {before[0]}, and a point within {epsilon:g} ({model.norm}) of it {after[0]}"
    if model.is_final:
        advice = "The certificate is broken: do not deploy this model, and report the points kept in this error."
    else:
        advice = "The model is not final, its bounds are estimates: call `model.finalize()` and measure again."
    raise CertificateViolation(
        f"{len(index)} accepted inputs have an accepted neighbour with another label: {first}. {advice}", index, inputs
    )


def _radius(model: Any, attack: Any) -> float:
    """The model's radius; an attack set to another one would answer another question."""
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


def _fingerprint(model: Any, x: Array, y: Array, attack: Any, batch_size: int) -> dict[str, Any]:
    """What must be the same for a measurement to go on."""
    if not hasattr(attack, "config"):
        raise ValueError(f"`resume` needs an attack that tells its configuration by `config()`. Received: {attack!r}")
    weights = hashlib.sha256(type(model).__name__.encode())
    for variable in model.variables:
        value = np.ascontiguousarray(ops.convert_to_numpy(variable))
        weights.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    data = hashlib.sha256(f"{x.shape}".encode() + x.tobytes() + y.tobytes())
    return {
        "weights": weights.hexdigest(),
        "epsilon": model_radius(model),
        "data": data.hexdigest(),
        "attack": describe(attack),
        "batch_size": batch_size,
        "version": defended.__version__,
    }


@contextmanager
def _progress_bar(total: int, wanted: bool | None) -> Iterator[Any]:
    """A function that advances a bar, if one is wanted."""
    if not total or not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("attacking", total=total)
        yield lambda count: bar.advance(task, count)
