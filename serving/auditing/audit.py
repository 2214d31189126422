"""Measures what an artefact, a served model or a request log shows, and how far an attacker can force rejections."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from defended.arguments import number_in, whole_number
from defended.progress import shown
from defended.serving.artefacts.artefact import Artefact
from defended.serving.artefacts.inputs import require_float32
from defended.serving.auditing.answers import Answers, infer_epsilon
from defended.serving.auditing.black_box import BlackBox, attack_endpoint
from defended.serving.auditing.clean import clean_figures, facts_of
from defended.serving.auditing.conditions import Condition, parse_conditions
from defended.serving.auditing.contradictions import contradictions
from defended.serving.auditing.local_copy import compare_with_copy
from defended.serving.auditing.log import is_request_log, read_log
from defended.serving.auditing.record import AuditRecord, read_record
from defended.serving.auditing.replay import Attacked, attack_model, read_attacked, replay
from defended.serving.auditing.report import AuditReport
from defended.serving.auditing.sampling_cost import expected
from defended.serving.auditing.subject import ROUNDING
from defended.serving.auditing.targets import Endpoint, Target, open_target

if TYPE_CHECKING:
    from defended.attacks.core.attack import Attack
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.manifest import Manifest
    from defended.serving.auditing.subject import Subject

_UNKNOWN_OF_LOGS = (
    "Whether anybody attacked: a log shows who was rejected, not why. A monitor weighs the evidence for it.",
)


def audit(
    target: Artefact | Endpoint | str | os.PathLike[str],
    x: np.ndarray | None = None,
    y: np.ndarray | None = None,
    *,
    model: DefendedModel | None = None,
    attack: Attack | Callable[..., np.ndarray] | None = None,
    attacked: Attacked | str | os.PathLike[str] | None = None,
    black_box: BlackBox | None = None,
    conditions: Mapping[str, Condition | Mapping[str, Any]] | None = None,
    baseline: AuditRecord | str | os.PathLike[str] | None = None,
    manifest: Manifest | None = None,
    epsilon: float | None = None,
    norm: str | None = None,
    name: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 256,
    data_name: str = "",
    pairs: int = 6,
    progress: bool | None = None,
) -> AuditReport:
    """Measure what guarantees hold on given data, and what an attacker can do to availability.

    Radii, where they are reported, give the false positive rate's upper bound: an answer whose availability radius is
    at most epsilon *may* be forced into a rejection. Attacks give the lower bound: attacked inputs that were made on
    a local Keras copy are replayed, and `black_box` asks the endpoint alone. The true rate lies between the two.

    Args:
        target: an open artefact; the path of one, which is then verified and loaded; the address of a served model
            (`http(s)://...`, `grpc(s)://...`) or an object with `predict(x, signature)`, such as a `Client`; or the
            path of a request log, which takes neither data nor attacks.
        x: float32 `[n, *input_shape]`, finite.
        y: integers `[n]`, the right classes; None where they are not known.
        model: the Keras model that is deployed; finalized if it is not final. It is compared with the target on `x`,
            and takes over the `evaluation_drift` that the artefact pays for, which a Keras file does not hold.
        attack: an attack of `defended.attacks`, or a callable `(model, x, label) -> perturbed x` within epsilon, to
            which the answers are given as labels; by default `CertificateDescent(steps=50)`.
        attacked: attacked inputs that were made elsewhere, or the path of a `.npz` file of them, in place of `attack`.
        black_box: what an attack that only uses the endpoint may spend; None for no such attack.
        conditions: limits on figures, by name; see `read_conditions`.
        baseline: an earlier audit, or the path of its JSON, to compare with.
        manifest: manifest of the artefact that an endpoint should serve, which states epsilon, norm and certificate.
        epsilon: the radius defended, where nothing else states it.
        norm: `"l2"` or `"linf"`, where nothing else states it.
        name: name of the model, for a log of several, or where an address does not say it.
        confidence: confidence level of the Clopper–Pearson intervals, two-sided.
        batch_size: inputs per run or request.
        data_name: what the report calls the data.
        pairs: at most this many degraded inputs are kept for the pictures.
        progress: show a bar on stderr, after a line that says how long it is likely to take where answers are drawn at
            random, unless only an endpoint is there to measure; None shows it on a terminal, once the audit takes more
            than a few seconds.

    Raises:
        AgreementError: `model` and the target differ in epsilon, norm, scores or verdicts on `x`.
        ArtefactError: the path holds no intact artefact.
        EndpointError: an endpoint's answers leave nothing to count, or its version changed meanwhile. Answers that
            contradict each other are counted, and are an alarm.
        ConditionsError, RecordError: `conditions` or `baseline` cannot be used.
        TypeError, ValueError: `x`, `y` or another argument does not fit.
    """
    number_in("confidence", confidence, "(0, 1)")
    whole_number("batch_size", batch_size, 1)
    limits = parse_conditions(conditions or {})
    earlier = baseline if baseline is None or isinstance(baseline, AuditRecord) else read_record(baseline)
    if isinstance(target, str | os.PathLike) and is_request_log(target):
        if any(value is not None for value in (x, y, model, attack, attacked, black_box)):
            raise ValueError("A request log holds its own inputs: give neither data nor a model nor an attack.")
        subject, answers, more = read_log(target, name, confidence)
        clean = clean_figures(subject, answers, facts_of(subject, answers, None), None, None, confidence, data_name)
        clean = replace(clean, strata={**clean.strata, **more}, unknown=(*clean.unknown, *_UNKNOWN_OF_LOGS))
        seen = contradictions(answers, subject)
        return AuditReport(**vars(clean), conditions=limits, baseline=earlier, contradictions=seen)
    if attack is not None and model is None:
        raise ValueError("`attack` runs on the Keras model: give `model` too, the one that was exported.")
    if attacked is not None and attack is not None:
        raise ValueError("Give `attack` or `attacked`, not both.")
    if x is None:
        raise ValueError("`x` must be given: an artefact or an endpoint is audited on data.")
    known = {"name": name, "manifest": manifest, "model": model, "epsilon": epsilon, "norm": norm}
    with open_target(target, batch_size, **known) as opened:
        y = check_data(opened.subject, x, y)
        with shown("auditing", wanted=progress, forecast=lambda: expected(opened, model, x)):
            if model is not None:
                model.ensure_proven()
            answers, assumptions = _ask(opened, x, model, batch_size)
            subject, facts = opened.subject, facts_of(opened.subject, answers, y)
            clean = clean_figures(subject, answers, facts, x, y, confidence, data_name)
            findings = asked = None
            if attacked is None and model is not None:
                with shown("attacking the Keras model"):
                    attacked = attack_model(model, attack, x, answers.label)
            if attacked is not None:
                made = attacked if isinstance(attacked, Attacked) else read_attacked(attacked)
                findings = replay(opened, made, x, answers, facts, confidence, pairs)
            if black_box is not None:
                with shown("attacking by asking"):
                    asked = attack_endpoint(opened, black_box, x, answers, confidence, pairs)
        if subject.kind == "endpoint":
            opened.require_same_version()
        nothing = ("How many answers can really be forced into rejections: nothing was attacked.",)
        unknown = (*clean.unknown, *(nothing if findings is None and asked is None else ()))
        return AuditReport(
            **vars(clean) | {"unknown": unknown, "assumptions": (*assumptions, *clean.assumptions)},
            attack=findings,
            black_box=asked,
            conditions=limits,
            baseline=earlier,
            contradictions=opened.contradictions,
            queries=opened.points,
        )


def _ask(target: Target, x: np.ndarray, model: DefendedModel | None, batch_size: int) -> tuple[Answers, list[str]]:
    """Return the answers to clean inputs and what is assumed; take in what they or the model say of the target."""
    told = target.ask(x)
    answers = told if model is None else compare_with_copy(model, target.subject, x, told, batch_size)
    assumptions: list[str] = []
    known: dict[str, Any] = {}
    if model is not None and target.subject.training_range is None:  # as in an artefact of an earlier version
        known["training_range"] = model.training_range
    if answers.radius is not told.radius:
        assumptions.append(
            f"The radii are the Keras model's, since the endpoint reports none; on these {len(x):,} inputs its "
            "labels are equal to the endpoint's, and its scores up to rounding."
        )
    subject = target.subject
    if (named := answers.epsilon) is not None:
        if subject.epsilon is not None and abs(named - subject.epsilon) > ROUNDING * subject.epsilon:
            raise ValueError(
                f"`epsilon` must be one: the {subject.epsilon_from} says {subject.epsilon:.6g}, the endpoint "
                f"{named:.6g}."
            )
        if subject.epsilon_from in (None, "given"):
            known |= {"epsilon": named, "epsilon_from": "answers"}
    elif subject.epsilon is None and (inferred := infer_epsilon(answers)) is not None:
        known |= {"epsilon": inferred, "epsilon_from": "radii"}
        assumptions.append(f"Epsilon, {inferred:.6g}, was read off the endpoint's two radii; nothing else stated it.")
    if answers.scores is not None and target.subject.num_classes is None:
        known["num_classes"] = answers.scores.shape[1]
    if target.subject.kind == "endpoint":
        assumptions.append("The endpoint answers everybody as it answered this audit.")
    target.learn(answers, **known)
    return answers, assumptions


def check_data(subject: Subject, x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray | None:
    """Return the labels as an array; raise where inputs or labels do not fit the subject."""
    labels = None if y is None else np.asarray(y)
    fits = labels is None or labels.dtype.kind in "iu"
    if not isinstance(x, np.ndarray) or not fits or len(x) == 0 or (labels is not None and labels.shape != x.shape[:1]):
        received = x.shape if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            "`x` and `y` must be arrays of the same positive length, `y` integers [n]. "
            f"Received: x {received}, y {'None' if labels is None else f'{labels.dtype} {labels.shape}'}."
        )
    classes = subject.num_classes
    if labels is not None and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        raise ValueError(
            f"`y` must hold classes 0 to {'m - 1' if classes is None else classes - 1}. "
            f"Received: {labels.min()} to {labels.max()}."
        )
    require_float32(x)
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`x` must be finite: {int((~finite).sum())} inputs hold NaN or infinity, first at {np.argmin(finite)}. "
            "The artefact rejects them; leave them out, or the rates describe the broken inputs."
        )
    return labels
