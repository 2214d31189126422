"""Measures what an artefact, a served model or a request log shows, and how far an attacker can force rejections."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from defended.arguments import whole_number
from defended.serving.artefacts.artefact import Artefact, load
from defended.serving.auditing import strata
from defended.serving.auditing.baseline import compare_with
from defended.serving.auditing.black_box import BlackBox, attack_endpoint
from defended.serving.auditing.clean import clean_figures, fingerprint, on_its_side
from defended.serving.auditing.conditions import Condition, decide, parse_conditions
from defended.serving.auditing.log import is_request_log, read_log
from defended.serving.auditing.record import AuditRecord, read_record
from defended.serving.auditing.replay import Attacked, attack_model, read_attacked, replay
from defended.serving.auditing.report import AuditReport
from defended.serving.auditing.targets import (
    WHOLE,
    Answers,
    Endpoint,
    EndpointError,
    Subject,
    Target,
    artefact_target,
    described,
    endpoint_target,
    infer_epsilon,
)
from defended.serving.clients.client import Client
from defended.serving.exporting.agreement import AgreementError, require_agreement

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.manifest import Manifest

    Perturb = Callable[..., np.ndarray]

_UNKNOWN_OF_LOGS = (
    "Whether anybody attacked: a log shows who was rejected, not why. A monitor weighs what speaks for it.",
)

_SCHEMES = ("http://", "https://", "grpc://", "grpcs://")


def audit(
    target: Artefact | Endpoint | str | os.PathLike[str],
    x: np.ndarray | None = None,
    y: np.ndarray | None = None,
    *,
    model: DefendedModel | None = None,
    attack: Perturb | None = None,
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
) -> AuditReport:
    """Measure what guarantees hold on given data, and what an attacker can do to availability.

    Radii, where they are told, give the false positive rate's upper bound: an answer whose certified radius is at most
    2 epsilon *may* be forced into a rejection. Attacks give the lower bound: attacked inputs that were made on a local
    Keras copy are replayed, and `black_box` asks the endpoint alone. The true rate lies between.

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
        attacked: attacked inputs that were made elsewhere, or the path of a `.npz` of them, in place of `attack`.
        black_box: what an attack that only uses the endpoint may spend; None for none.
        conditions: limits on figures, by name; see `read_conditions`.
        baseline: an earlier audit, or the path of its JSON, to compare with.
        manifest: of the artefact that an endpoint should serve, which tells epsilon, norm and certificate.
        epsilon: the radius defended, where nothing else tells it.
        norm: `"l2"` or `"linf"`, where nothing else tells it.
        name: of the model: in a log of several, or where an address does not say it.
        confidence: of the Clopper–Pearson intervals, two-sided.
        batch_size: inputs a run or a request.
        data_name: what the report calls the data.
        pairs: at most so many degraded inputs are kept for the pictures.

    Raises:
        AgreementError: `model` and the target differ in epsilon, norm, scores or verdicts on `x`.
        ArtefactError: the path holds no intact artefact.
        EndpointError: an endpoint answers what no rejecting classifier says, or changed its version meanwhile.
        ConditionsError, RecordError: `conditions` or `baseline` cannot be used.
        TypeError, ValueError: `x`, `y` or another argument does not fit.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1. Received: {confidence!r}.")
    whole_number("batch_size", batch_size, 1)
    limits = parse_conditions(conditions or {})
    earlier = baseline if baseline is None or isinstance(baseline, AuditRecord) else read_record(baseline)
    if isinstance(target, str | os.PathLike) and is_request_log(target):
        if any(value is not None for value in (x, y, model, attack, attacked, black_box)):
            raise ValueError("A request log holds its own inputs: give neither data nor a model nor an attack.")
        subject, answers, more = read_log(target, name, confidence)
        report = clean_figures(subject, answers, None, None, confidence, {"name": data_name, "sha256": None})
        report = dataclasses.replace(
            report, strata={**report.strata, **more}, unknown=(*report.unknown, *_UNKNOWN_OF_LOGS), queries=0
        )
        return _decided(report, limits, earlier)
    if attack is not None and model is None:
        raise ValueError("`attack` runs on the Keras model: give `model` too, the one that was exported.")
    if attacked is not None and attack is not None:
        raise ValueError("Give `attack` or `attacked`, not both.")
    if x is None:
        raise ValueError("`x` must be given: an artefact or an endpoint is audited on data.")
    if model is not None:
        model.ensure_proven()
    known = {"name": name, "manifest": manifest, "model": model, "epsilon": epsilon, "norm": norm}
    with _opened(target, batch_size, **known) as opened:
        y = _check_data(opened, x, y)
        return _decided(
            _measure(opened, x, y, batch_size, model, attack, attacked, black_box, confidence, data_name, pairs),
            limits,
            earlier,
        )


@contextlib.contextmanager
def _opened(target: Any, batch_size: int, **known: Any) -> Iterator[Target]:
    """The target, opened here or elsewhere; what was opened here is closed."""
    if isinstance(target, Artefact):
        yield artefact_target(target, batch_size)
    elif isinstance(target, str) and target.startswith(_SCHEMES):
        with Client(target, model=known["name"], batch_size=batch_size) as client:
            yield endpoint_target(client, WHOLE, location=target, **_named(target, known))
    elif isinstance(target, str | os.PathLike):
        with load(target) as artefact:
            yield artefact_target(artefact, batch_size)
    elif isinstance(target, Client):
        yield endpoint_target(target, WHOLE, location=target.url, **_named(target.url, known))
    elif callable(getattr(target, "predict", None)):
        yield endpoint_target(target, batch_size, **known)
    else:
        raise TypeError(
            "`target` must be an artefact or its path, an address such as http://localhost:8501/v1/models/digits, a "
            f"request log's path, or an object with `predict(x, signature)`. Received: {type(target).__name__}."
        )


def _named(url: str, known: dict[str, Any]) -> dict[str, Any]:
    """What is known, and the model's name, which an address may hold."""
    found = re.search(r"://[^/]+(?:/v1/models)?/([^/:]+)", url)
    return known | {"name": known["name"] or (unquote(found[1]) if found else None)}


def _measure(
    target: Target,
    x: np.ndarray,
    y: np.ndarray | None,
    batch_size: int,
    model: DefendedModel | None,
    attack: Perturb | None,
    attacked: Attacked | str | os.PathLike[str] | None,
    black_box: BlackBox | None,
    confidence: float,
    data_name: str,
    pairs: int,
) -> AuditReport:
    answers = target.ask(x)
    assumptions: list[str] = []
    radius = answers.radius
    if model is not None:
        _require_same(target.subject, model)
        if (deployed := target.subject.manifest) is not None and deployed.check.drift is not None:
            model.evaluation_drift = max(model.evaluation_drift, deployed.check.drift.folded)
        _agree(model, x, answers, batch_size)
        if radius is None and model.sampling is None:
            radius = model.verdicts(x, batch_size=batch_size).radius.astype(np.float64)
            assumptions.append(
                f"The radii are the Keras model's, since the endpoint tells none; on these {len(x):,} inputs its "
                "labels are equal to the endpoint's, and its scores up to rounding."
            )
    if target.subject.epsilon is None and (inferred := infer_epsilon(answers)) is not None:
        target.subject = dataclasses.replace(target.subject, epsilon=inferred, epsilon_from="radii")
        assumptions.append(f"Epsilon, {inferred:.6g}, was read off the endpoint's two radii; nothing else told it.")
    if answers.scores is not None and target.subject.num_classes is None:
        target.subject = dataclasses.replace(target.subject, num_classes=answers.scores.shape[1])
    if target.subject.kind == "endpoint":
        assumptions.append("The endpoint answers everybody as it answered this audit.")
    answers = answers._replace(radius=radius)
    report = clean_figures(target.subject, answers, y, x, confidence, {"name": data_name, "sha256": fingerprint(x, y)})

    findings = None
    if attacked is not None or model is not None:
        _require_radius(target.subject, "replaying attacked inputs")
        if attacked is None:
            assert model is not None  # noqa: S101  (one of the two)
            made = attack_model(model, attack, x, answers.label)
        else:
            made = attacked if isinstance(attacked, Attacked) else read_attacked(attacked)
        findings = replay(target, made, x, y, answers, on_its_side(answers, target.subject), confidence, pairs)
    asked = None
    if black_box is not None:
        _require_radius(target.subject, "an attack on the endpoint")
        asked = attack_endpoint(target, black_box, x, answers, confidence, pairs)
    if target.subject.kind == "endpoint":
        _require_same_version(target)
    unknown = list(report.unknown)
    if findings is None and asked is None:
        unknown.append("How many answers can really be forced into rejections: nothing was attacked.")
    return dataclasses.replace(
        report,
        attack=findings,
        black_box=asked,
        unknown=tuple(unknown),
        assumptions=(*assumptions, *report.assumptions),
        queries=target.points,
    )


def _decided(report: AuditReport, limits: Mapping[str, Condition], baseline: AuditRecord | None) -> AuditReport:
    figures: dict[str, float | None] = {
        **report.rates(),
        "worst_class_rejection_rate": strata.worst_rejection(report.strata.get("class", ()), report.confidence),
        "worst_confidence_rejection_rate": strata.worst_rejection(
            report.strata.get("confidence", ()), report.confidence
        ),
        "epsilon": report.subject.epsilon,
        "draws_ratio": report.draws_ratio,
        "draws_mean": None if report.draws is None else report.draws.mean,
    }
    return dataclasses.replace(
        report,
        decisions=decide(limits, figures),
        comparison=None if baseline is None else compare_with(baseline, report.rates(), report.confidence),
    )


def _check_data(target: Target, x: np.ndarray, y: np.ndarray | None) -> np.ndarray | None:
    labels = None if y is None else np.asarray(y)
    fits = labels is None or (labels.shape == np.shape(x)[:1] and labels.dtype.kind in "iu")
    if not isinstance(x, np.ndarray) or not fits or len(x) == 0:
        received = x.shape if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(
            "`x` and `y` must be arrays of the same positive length, `y` integers [n]. "
            f"Received: x {received}, y {'None' if labels is None else f'{labels.dtype} {labels.shape}'}."
        )
    classes = target.subject.num_classes
    if labels is not None and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        raise ValueError(
            f"`y` must hold classes 0 to {'m - 1' if classes is None else classes - 1}. "
            f"Received: {labels.min()} to {labels.max()}."
        )
    if x.dtype != np.float32:
        raise TypeError(
            f"`x` must be float32, scaled as in training. Received: {x.dtype}. Convert it yourself: a silent "
            "conversion would answer for pixels in 0…255 as if they were in 0…1."
        )
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`x` must be finite: {int((~finite).sum())} inputs hold NaN or infinity, first at {np.argmin(finite)}. "
            "The artefact rejects them; leave them out, or the rates describe the broken inputs."
        )
    return labels


def _require_same(subject: Subject, model: DefendedModel) -> None:
    epsilon = float(model.epsilon)
    # An endpoint's radius may have been typed, or read off its answers; an artefact's is exact.
    tolerance = 0.0 if subject.kind == "artefact" else 1e-5 * epsilon
    other = subject.epsilon is not None and abs(epsilon - subject.epsilon) > tolerance
    if other or (subject.norm is not None and model.norm != subject.norm):
        raise AgreementError(
            f"`model` must be the one that was exported. It defends {model.norm} {epsilon:.6g}, the "
            f"{subject.kind} {subject.norm} {subject.epsilon:.6g}. Set `model.epsilon`, or give the right model."
        )


def _agree(model: DefendedModel, x: np.ndarray, answers: Answers, batch_size: int) -> None:
    needed = {"scores"} if model.sampling is None else {"scores", "logits", "samples_used", "certified_radius"}
    if needed <= set(answers.raw):
        require_agreement(model, x, answers.raw, batch_size)
    elif model.sampling is None:
        differing = model.disagreements(x, answers.raw, batch_size)
        if differing.size:
            raise AgreementError(
                f"The endpoint's verdicts differ from the Keras model's on {differing.size} of {len(x)} inputs, first "
                f"on {differing[0]}. Is it the same model, and do both defend the same radius?"
            )


def _require_radius(subject: Subject, what: str) -> None:
    missing = [name for name in ("epsilon", "norm") if getattr(subject, name) is None]
    if missing:
        raise ValueError(
            f"`{'` and `'.join(missing)}` must be given for {what}: the endpoint does not tell. Give the Keras model, "
            "the artefact's manifest, or the values."
        )


def _require_same_version(target: Target) -> None:
    version, _ = described(target.endpoint)
    if version != target.subject.version:
        raise EndpointError(
            f"The endpoint changed from version {target.subject.version} to {version} during the audit, so the figures "
            "are of neither. Audit again, at an address that names the version."
        )
