"""Measures what an artefact guarantees on given data, and how far an attacker can force it to reject."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from defended.attacks.intervals import Rate
from defended.serving.agreement import AgreementError, require_agreement
from defended.serving.artefact import Artefact, load
from defended.serving.report import AttackFindings, AuditReport, Curves, DegradedPair

if TYPE_CHECKING:
    from defended import DefendedModel

    Perturb = Callable[..., np.ndarray]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

# Grid of the curves: multiples of epsilon / 40, so that epsilon and 2 epsilon are on it exactly.
_STEPS_PER_EPSILON = 40

# Relative: radii and float32 projections are known no better. A point that far outside is moved inside, not dropped.
_ROUNDING = 1e-5


def audit(
    artefact: Artefact | str | os.PathLike[str],
    x: np.ndarray,
    y: np.ndarray,
    *,
    model: DefendedModel | None = None,
    attack: Perturb | None = None,
    confidence: float = 0.95,
    batch_size: int = 256,
    data_name: str = "",
    pairs: int = 6,
) -> AuditReport:
    """Measure an artefact: what it guarantees, and what an attacker can do to its availability.

    The artefact alone gives the false positive rate's upper bound: an answer whose certified radius is at most
    2 epsilon *may* be forced into a rejection. With the Keras model an attack gives the lower bound: it perturbs the
    answered inputs on the model, and the artefact judges the results. The true rate lies between.

    Args:
        artefact: an open artefact, or the path of one, which is then verified and loaded.
        x: float32 `[n, *input_shape]`, finite.
        y: integers `[n]`, the right classes.
        model: the Keras model that the artefact was exported from; finalized if it is not final.
        attack: an attack of `defended.attacks`, or a callable `(model, x, label) -> perturbed x` within epsilon, to
            which the answers are given as labels; by default `CertificateDescent(steps=50)`.
        confidence: of the Clopper–Pearson intervals, two-sided.
        batch_size: inputs a run.
        data_name: what the report calls the data.
        pairs: at most so many degraded inputs are kept for the pictures.

    Raises:
        AgreementError: `model` and the artefact differ in epsilon, norm, scores or verdicts on `x`.
        ArtefactError: the path holds no intact artefact.
        TypeError, ValueError: `x`, `y` or another argument does not fit.
    """
    if not isinstance(artefact, Artefact):
        with load(artefact) as opened:
            return audit(
                opened, x, y, model=model, attack=attack, confidence=confidence, batch_size=batch_size,
                data_name=data_name, pairs=pairs,
            )  # fmt: skip
    y = _check_data(artefact, x, y)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1. Received: {confidence!r}.")
    if attack is not None and model is None:
        raise ValueError("`attack` runs on the Keras model: give `model` too, the one that was exported.")

    epsilon = artefact.epsilon
    outputs = artefact.audit(x, batch_size)
    predicted = outputs["scores"].argmax(axis=-1)
    correct = predicted == y
    answered = ~outputs["rejected"]
    # The verdict decides at epsilon: a radius within a rounding of epsilon is moved to the verdict's side of it.
    radius = outputs["certified_radius"].astype(np.float64)
    radius = np.where(answered, np.maximum(radius, np.nextafter(epsilon, np.inf)), np.minimum(radius, epsilon))
    twice = radius > 2 * epsilon

    def rate(chosen: np.ndarray, among: np.ndarray | None = None) -> Rate:
        return Rate(int(chosen.sum()), len(x) if among is None else int(among.sum()), confidence)

    findings = None
    if model is not None:
        _require_same(artefact, model)
        require_agreement(model, x, outputs, batch_size)
        findings = _attack(artefact, model, attack, x, y, outputs["label"], radius, rate, batch_size, pairs)
    return AuditReport(
        manifest=artefact.manifest,
        data={"name": data_name, "points": len(x), "sha256": _fingerprint(x, y)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        confidence=confidence,
        clean_accuracy=rate(correct),
        rejection_rate=rate(~answered),
        accuracy_on_answered=rate(correct & answered, answered),
        vra=rate(correct & answered),
        vra_2eps=rate(correct & twice),
        always_answered=rate(twice),
        fpr_upper=rate(answered & ~twice, answered),
        fpr_upper_correct=rate(correct & answered & ~twice, correct & answered),
        availability={
            probability: float(np.quantile(np.maximum(radius - epsilon, 0), probability, method="inverted_cdf"))
            for probability in QUANTILES
        },
        curves=_curves(radius, correct, epsilon),
        attack=findings,
        draws=_draws(outputs),
    )


def _attack(
    artefact: Artefact,
    model: DefendedModel,
    attack: Perturb | None,
    x: np.ndarray,
    y: np.ndarray,
    label: np.ndarray,
    radius: np.ndarray,
    rate: Callable[..., Rate],
    batch_size: int,
    pairs: int,
) -> AttackFindings:
    """Perturb the answered inputs on the Keras model, and let the artefact judge the results."""
    from defended import Verdicts
    from defended.attacks import Attack, CertificateDescent
    from defended.attacks.projections import distances, place_inside

    attack = attack or CertificateDescent(steps=50)
    epsilon, norm = artefact.epsilon, artefact.manifest.norm
    sampled = artefact.manifest.sampling is not None
    answered = label >= 0
    rows = np.flatnonzero(answered)
    attacked = x.copy()
    if rows.size:
        labels = None if getattr(attack, "targeted", False) else label[rows]
        # Ours seed by an input's index, so that the choice of inputs changes no result.
        run = functools.partial(attack, index=rows) if isinstance(attack, Attack) else attack
        found = np.asarray(run(model, x[rows], labels), dtype=np.float32)
        if found.shape != x[rows].shape:
            raise ValueError(f"`attack` must return the shape of its `x`, {x[rows].shape}. Received: {found.shape}.")
        attacked[rows] = found
    inside = distances(x, attacked, norm) <= epsilon * (1 + _ROUNDING)  # False for NaN
    attacked[~inside] = x[~inside]
    attacked = place_inside(x, attacked, epsilon, norm)
    size = distances(x, attacked, norm)

    judged = artefact.audit(attacked, batch_size)
    verdicts = Verdicts(judged["label"], judged["rejected"], judged["certified_radius"])
    correct = answered & (label == y)
    degraded = answered & verdicts.rejected
    changed = answered & ~verdicts.rejected & (verdicts.label != label)
    smallest_first = np.argsort(size, kind="stable")
    shown = smallest_first[degraded[smallest_first]][:pairs]
    return AttackFindings(
        name=getattr(attack, "__name__", None) or repr(attack),
        fpr_lower=rate(degraded, answered),
        fpr_lower_correct=rate(correct & degraded, correct),
        vra_under_attack=rate(verdicts.label == y),
        utility_reduction=rate(correct & degraded),
        discarded=int((~inside).sum()),
        broken_answers=int((changed & (size * (1 + _ROUNDING) < radius)).sum()),
        broken_availability=0 if sampled else int((degraded & ((size + epsilon) * (1 + _ROUNDING) < radius)).sum()),
        pairs=tuple(DegradedPair(int(i), int(label[i]), x[i], attacked[i], float(size[i])) for i in shown),
        draws=_draws({name: value[answered] for name, value in judged.items()}),
    )


def _draws(outputs: Mapping[str, np.ndarray]) -> dict[float, int] | None:
    """Quantiles of the draws that inputs took, where the graph tells them."""
    used = outputs.get("samples_used")
    if used is None:
        return None
    return {p: int(np.quantile(used, p, method="inverted_cdf")) if used.size else 0 for p in QUANTILES}


def _check_data(artefact: Artefact, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = np.asarray(y)
    if not isinstance(x, np.ndarray) or y.shape != x.shape[:1] or len(y) == 0 or y.dtype.kind not in "iu":
        received = x.shape if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            "`x` and `y` must be arrays of the same positive length, `y` integers [n]. "
            f"Received: x {received}, y {y.dtype} {y.shape}."
        )
    if y.min() < 0 or y.max() >= artefact.manifest.num_classes:
        raise ValueError(
            f"`y` must hold classes 0 to {artefact.manifest.num_classes - 1}. Received: {y.min()} to {y.max()}."
        )
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`x` must be finite: {int((~finite).sum())} inputs hold NaN or infinity, first at {np.argmin(finite)}. "
            "The artefact rejects them; leave them out, or the rates describe the broken inputs."
        )
    return y


def _require_same(artefact: Artefact, model: DefendedModel) -> None:
    if not model.is_final:
        model.finalize()
    if float(model.epsilon) != artefact.epsilon or model.norm != artefact.manifest.norm:
        raise AgreementError(
            f"`model` must be the one that was exported. It defends {model.norm} {float(model.epsilon):.6g}, the "
            f"artefact {artefact.manifest.norm} {artefact.epsilon:.6g}. Set `model.epsilon`, or give the right model."
        )


def _curves(radius: np.ndarray, correct: np.ndarray, epsilon: float) -> Curves:
    # To where the bound's curve has told its story: 3 epsilon, or as far as one in fifty is still certified, at most 8.
    reach = min(max(3.0, float(np.quantile(radius, 0.98, method="inverted_cdf")) / epsilon), 8.0)
    grid = epsilon * (np.arange(math.ceil(reach * _STEPS_PER_EPSILON) + 1) / _STEPS_PER_EPSILON)
    ordered, ordered_correct = np.sort(radius), np.sort(radius[correct])
    above = len(ordered) - np.searchsorted(ordered, grid, side="right")
    above_twice = len(ordered) - np.searchsorted(ordered, 2 * grid, side="right")
    right = len(ordered_correct) - np.searchsorted(ordered_correct, grid, side="right")
    return Curves(
        radius=tuple(grid.tolist()),
        vra=tuple((right / len(radius)).tolist()),
        fpr_upper=tuple(float((one - two) / one) if one else None for one, two in zip(above, above_twice, strict=True)),
    )


def _fingerprint(x: np.ndarray, y: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes())
    digest.update(np.ascontiguousarray(y, dtype="<i8").tobytes())
    return digest.hexdigest()
