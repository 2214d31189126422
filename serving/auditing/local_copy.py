"""The Keras model that is deployed: whether what answers is that model, and what more it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from defended.exceptions import AgreementError
from defended.serving.auditing.answers import RADII, Answers
from defended.serving.auditing.subject import ROUNDING, Subject
from defended.serving.exporting.agreement import require_agreement

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel


def compare_with_copy(
    model: DefendedModel, subject: Subject, x: np.ndarray, answers: Answers, batch_size: int
) -> Answers:
    """Return the answers, with the model's radii where none are reported; raise where the model answers differently.

    Args:
        model: the copy; it takes over the `evaluation_drift` that the artefact pays for.
        subject: the target.
        x: the inputs.
        answers: the target's answers.
        batch_size: inputs that the model judges at a time.

    Raises:
        AgreementError: the two differ in epsilon, norm, scores or verdicts.
    """
    _require_same(subject, model)
    if subject.manifest is not None and subject.manifest.check.drift is not None:
        model.evaluation_drift = max(model.evaluation_drift, subject.manifest.check.drift.folded)
    _agree(model, x, answers, batch_size)
    if answers.radius is not None or model.sampling is not None:
        return answers
    found = model.audit(x, batch_size=batch_size)
    radius, neighbours, availability = (found[name].astype(np.float64) if name in found else None for name in RADII)
    return answers._replace(radius=radius, neighbours=neighbours, availability=availability)


def _require_same(subject: Subject, model: DefendedModel) -> None:
    epsilon = float(model.epsilon)
    # An endpoint's radius may have been typed, or read off its answers; an artefact's is exact.
    tolerance = 0.0 if subject.kind == "artefact" else ROUNDING * epsilon
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
