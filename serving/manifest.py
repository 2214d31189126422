"""The manifest of an artefact: what was exported, what it guarantees, and the hash of every file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator

from defended.serving.canonical import canonical_json
from defended.serving.cpp_loader import SignatureInfo

MANIFEST = "manifest.json"

# TensorFlow Serving puts the name into the paths of its routes and the version into an int64.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
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


class CheckRecord(_Record):
    """What the export compared, in TensorFlow's C++ loader, with the Keras model.

    `score_drift` is the largest difference of a score, relative to the largest score (or to 1 where that is smaller);
    an export above `score_drift_bound` is refused. The labels of all samples were equal; where verdicts are drawn
    at random, the network's logits are compared in place of scores, and the votes agreed up to chance.
    """

    samples: int = Field(ge=1)
    score_drift: NonNegative
    score_drift_bound: Positive


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

    `digest` is the SHA-256 of the manifest without it, so an edit by hand is noticed. It is no signature: who can write
    the artefact can write a new digest. Keep the digest elsewhere, and give it to `load`, where that matters.
    """

    format_version: Literal[1] = 1
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
    signatures: dict[str, SignatureInfo]
    ops: tuple[str, ...]
    packages: dict[str, str]
    check: CheckRecord
    susceptibility: dict[str, JsonValue] | None = None
    metadata: dict[str, JsonValue] = {}
    files: dict[str, FileRecord]
    digest: Sha256 | Literal[""] = ""

    @field_validator("files")
    @classmethod
    def _inside_the_artefact(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == MANIFEST:
                raise ValueError(f"{name!r} is not the plain relative path of a file beside the manifest")
        return files

    def sealed(self) -> Manifest:
        """Return this manifest with its digest."""
        return self.model_copy(update={"digest": self.content_digest()})

    def content_digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of everything but `digest`."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of `manifest.json`.

        Raises:
            ValueError: `susceptibility` or `metadata` hold a NaN or an infinity.
        """
        return canonical_json(self.model_dump(mode="json"))


def files_below(directory: Path) -> dict[str, Path]:
    """Return every file, link and special file below a directory by its relative POSIX path, the manifest left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            found[path.relative_to(directory).as_posix()] = path
    found.pop(MANIFEST, None)
    return found
