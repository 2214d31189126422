"""Attacked inputs, made on a local copy or brought along, sent to what is audited."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from defended.attacks.core.balls import distances, place_inside
from defended.serving.auditing.answers import Answers
from defended.serving.auditing.contradictions import settled_availability
from defended.serving.auditing.sampling_cost import Draws, draws
from defended.serving.auditing.subject import ROUNDING, require_radius
from defended.serving.auditing.targets import Target
from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

    Perturb = Callable[..., np.ndarray]

RATES = ("fpr_lower", "fpr_lower_correct", "vra_under_attack", "utility_reduction")


@dataclass(frozen=True)
class DegradedPair:
    """An input that is answered, and one within epsilon of it that is rejected; `size` is the difference's norm."""

    index: int
    label: int
    original: np.ndarray
    perturbed: np.ndarray
    size: float


@dataclass(frozen=True)
class AttackFindings:
    """What replayed attacked inputs did.

    Attributes:
        name: the attack and its settings, or where the inputs are from.
        attacked: answered inputs that the attack perturbed.
        fpr_lower: degraded inputs among the answered ones.
        fpr_lower_correct: degraded inputs among the rightly answered ones; None without labels.
        vra_under_attack: inputs answered rightly that stayed so under the attack, among all; None without labels.
        utility_reduction: right answers that the attack forced into rejections, among all inputs; None without labels.
        discarded: perturbations that were not finite or not in the ball, and so were not used.
        broken_answers: inputs that got another answer inside their certified radius: a broken certificate unless 0,
            or, for a model whose verdicts are drawn at random, unless chance explains that many.
        broken_availability: inputs rejected inside their availability radius: a broken certificate unless 0. Not
            counted (0) without radii, and where verdicts are drawn at random: there the radius holds for the smoothed
            classifier, and the deployed check may miss it.
        pairs: some of the degraded inputs, the smallest perturbations first.
        draws: the noise draws that an attacked input took; None for a model that draws none.
    """

    name: str
    attacked: int
    fpr_lower: Rate
    fpr_lower_correct: Rate | None
    vra_under_attack: Rate | None
    utility_reduction: Rate | None
    discarded: int
    broken_answers: int
    broken_availability: int
    pairs: tuple[DegradedPair, ...] = field(repr=False)
    draws: Draws | None = None


@dataclass(frozen=True)
class Attacked:
    """Attacked inputs that were made elsewhere: `inputs` `[k, *input_shape]` float32 for the points `index` `[k]`."""

    index: np.ndarray
    inputs: np.ndarray
    name: str = "attacked inputs given"


def read_attacked(path: str | os.PathLike[str]) -> Attacked:
    """Read a `.npz` with `inputs` `[k, *input_shape]`, and `index` `[k]` unless they belong to the first k points.

    Raises:
        ValueError: the file is not such an archive.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "inputs" not in archive:
                raise ValueError(f"it holds {', '.join(archive.files) or 'nothing'}")
            inputs = archive["inputs"]
            index = archive["index"] if "index" in archive else np.arange(len(inputs))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must be a .npz with `inputs` [k, *input shape], and `index` [k] of the points they "
            f"belong to: {error}."
        ) from error
    return Attacked(index, inputs, f"attacked inputs of {path.name}")


def attack_model(model: DefendedModel, attack: Perturb | None, x: np.ndarray, label: np.ndarray) -> Attacked:
    """Perturb the answered inputs on the Keras model.

    Args:
        model: the copy.
        attack: an attack of `defended.attacks`, or a callable `(model, x, label) -> perturbed x`; None for
            `CertificateDescent(steps=50)`.
        x: all inputs.
        label: `[n]`, the answers, -1 where rejected.
    """
    from defended.attacks.core.attack import Attack
    from defended.attacks.gradient.certificate_descent import CertificateDescent

    attack = attack or CertificateDescent(steps=50)
    name = getattr(attack, "__name__", None) or repr(attack)
    rows = np.flatnonzero(label >= 0)
    if not rows.size:
        return Attacked(rows, x[:0], name)
    labels = None if getattr(attack, "targeted", False) else label[rows]
    # The project's own attacks seed by an input's index, so that the choice of inputs changes no result.
    run = functools.partial(attack, index=rows) if isinstance(attack, Attack) else attack
    found = np.asarray(run(model, x[rows], labels), dtype=np.float32)
    if found.shape != x[rows].shape:
        raise ValueError(f"`attack` must return the shape of its `x`, {x[rows].shape}. Received: {found.shape}.")
    return Attacked(rows, found, name)


def replay(
    target: Target,
    attacked: Attacked,
    x: np.ndarray,
    clean: Answers,
    facts: InputFacts,
    confidence: float,
    pairs: int,
) -> AttackFindings:
    """Send attacked inputs to the target, and count what they did.

    Inputs that were rejected from the start are not sent again, and do not count as degraded.

    Args:
        target: what is audited.
        attacked: the inputs.
        x: the inputs that they were made from.
        clean: the target's answers to `x`.
        facts: what is known of each clean input.
        confidence: confidence level of the intervals.
        pairs: keep at most this many for pictures.

    Raises:
        ValueError: the target's epsilon or norm is not known, or the attacked inputs do not fit `x`.
    """
    subject = target.subject
    epsilon, norm = require_radius(subject, "replaying attacked inputs")
    rows, inputs = _check(attacked, x)
    answered = ~clean.rejected
    full = x.copy()
    full[rows] = inputs
    # Radii and float32 projections are known up to a rounding: a point that far outside is moved inside, not dropped.
    inside = distances(x, full, norm) <= epsilon * (1 + ROUNDING)  # False for NaN
    full[~inside] = x[~inside]
    full[answered] = place_inside(x[answered], full[answered], epsilon, norm)
    size = distances(x, full, norm)

    # What is rejected already, or was not changed, need not be asked again.
    chosen = np.flatnonzero(answered & (np.isin(np.arange(len(x)), rows)))
    judged = target.ask(full[chosen]) if chosen.size else None
    label, rejected = clean.label.copy(), clean.rejected.copy()
    if judged is not None:
        label[chosen], rejected[chosen] = judged.label, judged.rejected
    degraded = answered & rejected
    changed = answered & ~rejected & (label != clean.label)
    # An answer vouches for epsilon itself, the closed ball; one by neighbours for what the certificate proves alone.
    by_check = answered if clean.neighbours is None else answered & (clean.neighbours <= epsilon)
    vouched = np.where(by_check, epsilon * (1 + 3 * ROUNDING), 0.0)
    if clean.radius is not None:
        vouched = np.maximum(vouched, clean.radius)
    available = None if subject.sampling is not None else settled_availability(clean, subject)
    safe = False if available is None else size + epsilon * ROUNDING < available * (1 - ROUNDING)
    rates = replace(facts, degraded=degraded, changed=changed).rates(RATES, confidence, subject.alpha)
    return AttackFindings(
        name=attacked.name,
        attacked=len(chosen),
        **rates,  # type: ignore[arg-type]  # what is degraded is known
        discarded=int((~inside).sum()),
        broken_answers=int((changed & (size * (1 + ROUNDING) < vouched)).sum()),
        broken_availability=int((degraded & safe).sum()),
        pairs=tuple(
            DegradedPair(int(i), int(clean.label[i]), x[i], full[i], float(size[i]))
            for i in smallest(degraded, size, pairs)
        ),
        draws=None if judged is None else draws(judged.samples, subject.cap),
    )


def smallest(degraded: np.ndarray, size: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers of at most `most` degraded inputs (`[n]` bool), the smallest perturbations (`[n]`) first."""
    rows = np.flatnonzero(degraded)
    return rows[np.argsort(size[rows], kind="stable")][:most]


def _check(attacked: Attacked, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index, inputs = np.asarray(attacked.index), np.asarray(attacked.inputs)
    if inputs.dtype != np.float32 or inputs.shape[1:] != x.shape[1:] or index.shape != inputs.shape[:1]:
        raise ValueError(
            f"attacked inputs must be float32 [k, {', '.join(map(str, x.shape[1:]))}], with an index for each. "
            f"Received: {inputs.dtype} of shape {list(inputs.shape)}, index of shape {list(index.shape)}."
        )
    if index.size and (
        index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(x) or len(np.unique(index)) < len(index)
    ):
        raise ValueError(f"the index of attacked inputs must name each of {len(x)} points at most once, from 0.")
    return index.astype(np.int64), inputs
