"""The manifest of an artefact: what was exported, what it guarantees, and the hash of every file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from defended._io import canonical_json
from defended.input_range import InputRange
from defended.serving.artefacts.tensor_info import SignatureInfo
from defended.standardisation import Standardisation

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
_APART = (MANIFEST, SIGNATURE)  # what cannot list its own hash

# TensorFlow Serving puts the name into the paths of its routes and the version into an int64.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9]{1,19}")
MAX_VERSION = 2**63 - 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileRecord(_Record):
    """The SHA-256 and the size in bytes of one file."""

    sha256: Sha256
    size: int = Field(ge=0)


class DriftRecord(_Record):
    """How far evaluations of the same network differed on the samples, in units of the logits.

    `largest` is the largest difference of a margin `y_j - y_i`, j the predicted class, between two of the `evaluators`.
    Where the certificate pays for rounding, `share_of_covered` is that difference's largest share of what is paid for,
    at most 1. Where it does not, it is None, and `folded` was taken off every margin of the exported graphs.
    """

    evaluators: tuple[str, ...]
    largest: NonNegative
    share_of_covered: NonNegative | None
    folded: NonNegative


class CheckRecord(_Record):
    """What the export compared, in TensorFlow's C++ loader, with the Keras model.

    `score_drift` is the largest difference of a score, relative to the largest score (or to 1 where that is smaller);
    an export above `score_drift_bound` is refused. The labels of all samples were equal; where verdicts are drawn
    at random, the network's logits are compared in place of scores, and the votes agreed up to chance.
    """

    samples: int = Field(ge=1)
    score_drift: NonNegative
    score_drift_bound: Positive
    given: bool = False
    """Whether the samples were given, as real inputs, or drawn at random."""
    drift: DriftRecord | None = None
    """None where verdicts are drawn at random: each evaluation then proves its own verdicts."""


class OnnxRecord(_Record):
    """The ONNX file of the artefact, or why there is none. Its noise is an input where verdicts are drawn."""

    file: str | None
    opset: int | None
    omitted: str | None


class WarmUpRecord(_Record):
    """The requests that TensorFlow Serving runs before it answers, or why there are none."""

    file: str | None
    requests: int = Field(ge=0)
    omitted: str | None


class DataRecord(_Record):
    """A data set that the model was trained on, by the digest that `defended.provenance.data_digest` gives."""

    sha256: Sha256
    points: int | None = None
    name: str | None = None


class RangeRecord(_Record):
    """The least and the largest number of all training inputs; `features` has both for each feature, where few."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    features: tuple[tuple[float, float], ...] | None = None

    def range(self) -> InputRange:
        """Return the record as an `InputRange`."""
        return InputRange(self.low, self.high, self.features)

    @model_validator(mode="after")
    def _a_range(self) -> RangeRecord:
        self.range()  # which refuses what is none
        return self


class StandardisationRecord(_Record):
    """How raw features become the inputs that the model takes: `(x - means) / deviations`, feature by feature."""

    means: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    deviations: tuple[Positive, ...]

    def standardisation(self) -> Standardisation:
        """Return the record as a `Standardisation`."""
        return Standardisation(self.means, self.deviations)


class SamplingRecord(_Record):
    """How verdicts are drawn at random, where they are.

    Each answer is wrong with probability at most `alpha`; the same input may be judged differently the next time. At
    most `samples` draws after `selection_samples` are made for an input, of normal noise with standard deviation
    `sigma`.
    """

    sigma: Positive
    alpha: Annotated[float, Field(gt=0, lt=1)]
    mode: str
    samples: int = Field(ge=1)
    selection_samples: int = Field(ge=1)
    precision: str


class Manifest(_Record):
    """Everything an artefact states about itself.

    `digest` is the SHA-256 of the manifest without it, so an edit by hand is noticed. It is not a signature: whoever
    can write the artefact can write a new digest. Where that matters, keep the digest elsewhere and give it to `load`,
    or sign the manifest.

    Format 2 added the fields that have a default here, and format 3 `training_range` and `standardisation`; an earlier
    manifest lacks them, and is read without them.
    """

    format_version: Literal[1, 2, 3] = 3
    name: str = Field(pattern=rf"^{NAME.pattern}$")
    version: int = Field(ge=1, le=MAX_VERSION)
    created: AwareDatetime
    defence: str
    norm: str = Field(pattern="^(l2|linf)$")
    epsilon: Positive
    num_classes: int = Field(ge=2)
    certificate_method: str
    certificate_assumptions: tuple[str, ...]
    sampling: SamplingRecord | None = None
    noise_per_input: bool = False
    """Whether the inputs of a batch are judged under independent noise, where verdicts are drawn; in earlier artefacts
    a batch shares its noise, and its verdicts are not independent draws."""
    signatures: dict[str, SignatureInfo]
    ops: tuple[str, ...]
    packages: dict[str, str]
    check: CheckRecord
    susceptibility: dict[str, JsonValue] | None = None
    susceptibility_assumptions: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    training_data: tuple[DataRecord, ...] = ()
    training_range: RangeRecord | None = None
    """The range of the inputs that the model was trained on; None where it was not recorded."""
    standardisation: StandardisationRecord | None = None
    """How raw features are standardised before they are sent; None where inputs are taken as they are."""
    onnx: OnnxRecord | None = None
    warm_up: WarmUpRecord | None = None
    metadata: dict[str, JsonValue] = {}
    files: dict[str, FileRecord]
    digest: Sha256 | Literal[""] = ""

    @field_validator("files")
    @classmethod
    def _inside_the_artefact(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or path.as_posix() != name or name in _APART:
                raise ValueError(f"{name!r} is not the plain relative path of a file beside the manifest")
        return files

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers where they have no names."""
        return self.class_names or tuple(str(number) for number in range(self.num_classes))

    def sealed(self) -> Manifest:
        """Return this manifest with its digest, as it will be read."""
        # Written whole and read again: the digest covers the fields that a file states, and no defaults.
        whole = type(self).model_validate_json(canonical_json(self.model_dump(mode="json")))
        return whole.model_copy(update={"digest": whole.content_digest()})

    def content_digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of everything but `digest`."""
        content = self.model_dump(mode="json", exclude={"digest"}, exclude_unset=True)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of `manifest.json`.

        Raises:
            ValueError: `susceptibility` or `metadata` hold a NaN or an infinity.
        """
        return canonical_json(self.model_dump(mode="json", exclude_unset=True))


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with a file's content, as `field: what`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def files_below(directory: Path) -> dict[str, Path]:
    """Return every file, link and special file below a directory by its relative POSIX path.

    The manifest and its signature are left out.
    """
    files = (path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir())
    found = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: path for name, path in found.items() if name not in _APART}


def versions_below(directory: Path) -> dict[int, Path]:
    """Return the children of a model's directory that are named as versions, positive int64, by number.

    A directory that is missing, or is a file, has none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        children = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    numbered = {int(path.name): path for path in children if _VERSION.fullmatch(path.name)}
    return {version: path for version, path in numbered.items() if 1 <= version <= MAX_VERSION}
