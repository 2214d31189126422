"""The JSON of an audit as pydantic models: what is written, what its published schema says, and what is read back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError

from defended.exceptions import RecordError
from defended.serving.artefacts.manifest import RangeRecord, first_fault
from defended.serving.auditing.record_types import STRICT, ByName, Count, Number, RateRecord, Share

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FILE = "audit.schema.json"

Model = TypeVar("Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = STRICT


class SubjectRecord(_Record):
    """What was audited; null for what is not known."""

    kind: Literal["artefact", "endpoint", "log"]
    location: str
    name: str
    version: int | None
    digest: str | None
    defence: str | None
    norm: Literal["l2", "linf"] | None
    epsilon: Annotated[float, Field(gt=0)] | None
    epsilon_from: Literal["manifest", "model", "given", "answers", "radii"] | None
    num_classes: int | None
    signatures: list[str]
    certificate_method: str | None
    certificate_assumptions: list[str]
    sampling: dict[str, JsonValue] | None
    training_range: RangeRecord | None = None
    """Least and largest number of the inputs that the model was trained on."""


class AuditedData(_Record):
    """The inputs: a name, how many, and their SHA-256 with the labels as `data_digest` gives it; null of a log.

    `training_data` says whether the manifest lists them as what the model was trained on; null where it lists nothing.
    """

    name: str
    points: Count
    sha256: str | None
    training_data: bool | None = None
    range: tuple[Number, Number] | None = None
    """The least and the largest number among the inputs; null of a log."""


class DecisionRecord(_Record):
    """A condition and its outcome."""

    metric: str
    limit: str
    """As written, such as `max 0.05`."""
    sense: Literal["proven", "measured", "refuted"]
    value: Number | None
    """None where the audit could not measure it."""
    compared: Number | None
    """The end of the interval that was compared."""
    status: Literal["PASS", "WARN", "FAIL"]
    message: str


class StratumRecord(_Record):
    """Rejection in a part of the inputs, and VRA where there are labels."""

    name: str
    rejection_rate: RateRecord
    vra: RateRecord | None


class CurvesRecord(_Record):
    """VRA and the FPR's upper bound at every radius; null where nothing is answered."""

    radius: list[Number]
    vra: list[Share]
    fpr_upper: list[Share | None]


class DeploymentRecord(_Record):
    """What the same network would do at some epsilon."""

    name: str
    epsilon: Number
    rejection_rate: RateRecord
    vra: RateRecord | None
    vra_2eps: RateRecord | None
    fpr_upper: RateRecord


class AffordableRecord(_Record):
    """The largest epsilon at which at most a share of clean inputs is rejected."""

    max_rejection_rate: Share
    epsilon: Number | None
    epsilon_in_general: Number | None


class AdviceRecord(_Record):
    """Deployments at other radii."""

    deployments: list[DeploymentRecord]
    affordable: list[AffordableRecord]
    confidence: Share


class DrawsRecord(_Record):
    """Noise draws that inputs took."""

    quantiles: Annotated[dict[str, int], ByName]
    mean: Number
    at_the_cap: Share | None


class CostRecord(_Record):
    """Draws of clean and of attacked inputs, and the ratio of their means."""

    clean: DrawsRecord | None
    attacked: DrawsRecord | None
    ratio: Number | None


class ReplayRecord(_Record):
    """An attack that was made elsewhere and replayed."""

    name: str
    attacked: Count
    discarded: Count
    broken_answers: Count
    broken_availability: Count


class BlackBoxRecord(_Record):
    """An attack that only used the endpoint."""

    name: str
    attacked: Count
    degraded: Count
    queries: Count
    budget: Count
    spontaneous: Count | None
    fpr_lower: RateRecord


class ComparedRecord(_Record):
    """A rate beside the baseline's; `p_value` is Fisher's, two-sided, adjusted by Holm."""

    metric: str
    baseline: RateRecord
    now: RateRecord
    p_value: Share
    changed: bool


class ComparisonRecord(_Record):
    """An audit beside an earlier one."""

    name: str
    version: int | None
    created: str
    level: Share
    rates: list[ComparedRecord]


class ProfileRecord(_Record):
    """Counts of clean traffic that a monitor compares later traffic with."""

    margin_edges: list[Number]
    """Ascending; bins are below the first, between neighbours, and from the last on."""
    answered_margins: list[Count]
    """Answered inputs by margin, the difference of the two largest scores."""
    rejected_margins: list[Count]
    answered_classes: list[Count]
    """Answered inputs by predicted class."""
    rejected_classes: list[Count]
    answered_confidence: list[Count]
    """Answered inputs by confidence, between the `CONFIDENCE_EDGES`."""
    rejected_confidence: list[Count]
    not_finite: Count
    """Rejected inputs that were not finite; they are in no other count."""
    rejected_near_answered: tuple[Count, Count] | None
    """How many of the rejected inputs lie within epsilon of an answered one, and how many were looked at; None where
    inputs, epsilon or the norm are not known."""


class AuditRecord(_Record):
    """The JSON of an audit: `audit.json`; `contradictions` counts answers that contradict themselves, by name.

    Format 2 added the verdict `NOT JUDGED`, of an audit without conditions, and `warnings`.
    """

    format: Literal["defended-audit"] = "defended-audit"
    format_version: Literal[1, 2] = 2
    verdict: Literal["PASS", "WARN", "FAIL", "NOT JUDGED"]
    subject: SubjectRecord
    data: AuditedData
    created: str
    confidence: Annotated[float, Field(gt=0, lt=1)]
    rates: dict[str, RateRecord | None]
    conditions: list[DecisionRecord]
    alarms: list[str]
    warnings: list[str] = []
    contradictions: dict[str, Count] = {}
    unknown: list[str]
    assumptions: list[str]
    strata: dict[str, list[StratumRecord]]
    availability_radius: Annotated[dict[str, Number] | None, ByName]
    curves: CurvesRecord | None
    advice: AdviceRecord | None
    cost: CostRecord | None
    attack: ReplayRecord | None
    black_box: BlackBoxRecord | None
    comparison: ComparisonRecord | None
    profile: ProfileRecord | None
    queries: Count


_LATER: dict[str, JsonValue] = {
    "doubt": 0.0, "contradictions": {}, "training_data": None, "training_range": None, "range": None, "warnings": [],
}  # fmt: skip


def identity(record: AuditRecord) -> JsonValue:
    """Return the content of an audit for digests, ready for JSON, without fields added later where they say nothing."""

    def pruned(value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [pruned(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {k: pruned(v) for k, v in value.items() if k not in _LATER or v != _LATER[k]}

    return pruned(record.model_dump(mode="json"))


def read_record(path: str | os.PathLike[str]) -> AuditRecord:
    """Read an `audit.json`.

    Raises:
        RecordError: the file cannot be read, or is not an audit's JSON.
    """
    remedy = "Make it with `defended audit`, which writes audit.json."
    return read_model(AuditRecord, path, RecordError, "an audit of this version", remedy)


def read_model(
    model: type[Model], path: str | os.PathLike[str], refusal: type[ValueError], what: str, remedy: str
) -> Model:
    """Return a JSON file's content as a pydantic model; raise a `refusal` where it cannot be read, or is not `what`."""
    try:
        return model.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    except ValidationError as error:
        raise refusal(f"{path} is not {what}: {first_fault(error)}. {remedy}") from error


def schema() -> str:
    """Return the JSON schema of `audit.json`, as the package ships it and `docs/schemas/` publishes it."""
    content = {"$schema": SCHEMA_ID, **AuditRecord.model_json_schema(mode="serialization")}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
