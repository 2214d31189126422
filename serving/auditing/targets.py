"""What can be audited: anything that answers arrays by signature, an artefact or a served model alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from defended.exceptions import EndpointError

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.artefact import Artefact
    from defended.serving.artefacts.manifest import Manifest

DEFAULT, AUDIT = "serving_default", "audit"

# Inputs of one call, where what answers cuts them itself.
WHOLE = 2**31

# Relative: an epsilon that is read off radii, or was printed with six digits, is known no better.
_ROUNDING = 1e-5


@runtime_checkable
class Endpoint(Protocol):
    """What an audit needs of a served model; `defended.serving.Client` is one, and a test's stand-in may be."""

    def predict(self, x: np.ndarray, signature: str = DEFAULT) -> Mapping[str, np.ndarray]:
        """Answer `x` float32 `[n, *input_shape]`: arrays `[n, ...]` by the names of the signature's outputs."""


class Answers(NamedTuple):
    """What an endpoint said of each input; None for what it does not tell."""

    label: np.ndarray
    """`[n]` int64, -1 where rejected."""
    rejected: np.ndarray
    """`[n]` bool."""
    scores: np.ndarray | None
    """`[n, m]` float32."""
    radius: np.ndarray | None = None
    """`[n]` float64, certified radius."""
    availability: np.ndarray | None = None
    """`[n]` float64, what is left of it above epsilon."""
    samples: np.ndarray | None = None
    """`[n]` int64, draws used."""
    reason: np.ndarray | None = None
    """`[n]` int32: 0 answered, 1 not certified, 2 not finite, 3 adversarial."""
    raw: Mapping[str, np.ndarray] = {}

    @property
    def predicted(self) -> np.ndarray | None:
        """`[n]` int64, the class of the largest score; -1 where one is not finite; None without scores."""
        if self.scores is None:
            return None
        return np.where(np.isfinite(self.scores).all(axis=1), self.scores.argmax(axis=1), -1)


@dataclass(frozen=True)
class Subject:
    """What was audited, as far as it is known; None where it is not.

    Attributes:
        kind: `"artefact"`, `"endpoint"` or `"log"`.
        location: the path or address.
        name: the model's.
        version: the model's.
        norm: in which epsilon is measured.
        epsilon: the radius defended.
        epsilon_from: where epsilon is known from: `"manifest"`, `"model"`, `"given"` or `"radii"`.
        num_classes: m.
        signatures: those offered.
        manifest: the artefact's, where it was read.
        sampling: how verdicts are drawn at random, where they are known to be.
    """

    kind: str
    location: str
    name: str = ""
    version: int | None = None
    norm: str | None = None
    epsilon: float | None = None
    epsilon_from: str | None = None
    num_classes: int | None = None
    signatures: tuple[str, ...] = ()
    manifest: Manifest | None = None
    sampling: Mapping[str, Any] | None = None


@dataclass
class Target:
    """An endpoint with what is known of it, counting what it is asked.

    Attributes:
        endpoint: answers arrays by signature.
        subject: what is known.
        points: inputs sent so far.
    """

    endpoint: Endpoint
    subject: Subject
    batch_size: int = 256
    points: int = field(default=0, init=False)

    @property
    def richest(self) -> str:
        """The signature that tells most."""
        return AUDIT if AUDIT in self.subject.signatures else DEFAULT

    def ask(self, x: np.ndarray, signature: str | None = None) -> Answers:
        """Answers to `x` float32 `[n, *input_shape]`, sent `batch_size` at a time, by the richest signature.

        Raises:
            EndpointError: an answer is missing, of another shape, or contradicts itself.
        """
        signature = signature or self.richest
        starts = range(0, max(len(x), 1), self.batch_size)

        parts = []
        for start in starts:
            batch = x[start : start + self.batch_size]
            parts.append(checked(self.endpoint.predict(batch, signature), len(batch), signature))
        self.points += len(x)
        raw = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Answers(
            label=raw["label"].astype(np.int64),
            rejected=raw["rejected"].astype(bool),
            scores=raw.get("scores"),
            radius=_float64(raw.get("certified_radius")),
            availability=_float64(raw.get("availability_radius")),
            samples=raw.get("samples_used"),
            reason=raw.get("reason"),
            raw=raw,
        )


def checked(answer: Mapping[str, Any], n: int, signature: str) -> dict[str, np.ndarray]:
    """The arrays of an answer, refused where no rejecting classifier would give them."""
    arrays = {name: np.asarray(value) for name, value in answer.items()}
    if "label" not in arrays:
        raise EndpointError(
            f"The signature {signature!r} must give `label` (-1 where rejected). It gives: {', '.join(sorted(arrays))}."
            " Is this a model that `defended export` made?"
        )
    label = arrays["label"]
    if label.shape != (n,) or label.dtype.kind not in "iu":
        raise EndpointError(
            f"`label` must hold {n} whole numbers. Received: {label.dtype} of shape {list(label.shape)}."
        )
    rejected = arrays.setdefault("rejected", label < 0)
    if rejected.shape != (n,) or (rejected.astype(bool) != (label < 0)).any():
        raise EndpointError("`rejected` must be true exactly where `label` is -1: the endpoint contradicts itself.")
    scores = arrays.get("scores")
    if scores is not None and (scores.ndim != 2 or len(scores) != n or scores.shape[1] < 2):
        raise EndpointError(f"`scores` must have the shape [{n}, m], m >= 2. Received: {list(scores.shape)}.")
    if scores is not None and n and int(label.max()) >= scores.shape[1]:
        raise EndpointError(f"`label` names class {int(label.max())}, and there are {scores.shape[1]} scores.")
    for name in ("certified_radius", "availability_radius", "samples_used", "reason"):
        value = arrays.get(name)
        if value is not None and (value.shape != (n,) or not np.isfinite(value).all() or (n and value.min() < 0)):
            raise EndpointError(f"`{name}` must hold {n} finite numbers of at least 0. Received: {value!r}.")
    return arrays


def artefact_target(artefact: Artefact, batch_size: int) -> Target:
    """An open artefact as a target."""
    m = artefact.manifest
    subject = Subject(
        kind="artefact",
        location=os.fspath(artefact.path),
        name=m.name,
        version=m.version,
        norm=m.norm,
        epsilon=m.epsilon,
        epsilon_from="manifest",
        num_classes=m.num_classes,
        signatures=tuple(sorted(m.signatures)),
        manifest=m,
        sampling=None if m.sampling is None else m.sampling.model_dump(),
    )
    return Target(_OfArtefact(artefact, batch_size), subject, WHOLE)


class _OfArtefact:
    """Cuts inputs itself: an artefact that an engine runs takes all of them at once."""

    def __init__(self, artefact: Artefact, batch_size: int) -> None:
        self._artefact, self._batch_size = artefact, batch_size

    def predict(self, x: np.ndarray, signature: str = DEFAULT) -> Mapping[str, np.ndarray]:
        if signature == AUDIT:
            return self._artefact.audit(x, self._batch_size)
        parts = [
            self._artefact(x[start : start + self._batch_size]) for start in range(0, max(len(x), 1), self._batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def endpoint_target(
    endpoint: Endpoint,
    batch_size: int,
    *,
    location: str = "",
    name: str | None = None,
    manifest: Manifest | None = None,
    model: DefendedModel | None = None,
    epsilon: float | None = None,
    norm: str | None = None,
) -> Target:
    """An endpoint as a target: its signatures as its metadata tell them, epsilon and norm from whoever knows them.

    Raises:
        ValueError: two sources disagree about epsilon or norm.
    """
    version, signatures = described(endpoint)
    subject = Subject(
        kind="endpoint",
        location=location or type(endpoint).__name__,
        name=name or (manifest.name if manifest else ""),
        version=version,
        signatures=signatures,
        manifest=manifest,
        num_classes=None if model is None else int(model.num_classes),
        sampling=sampling_of(manifest, model),
        **agreed(manifest, model, epsilon, norm),
    )
    return Target(endpoint, subject, batch_size)


def sampling_of(manifest: Manifest | None, model: DefendedModel | None) -> Mapping[str, Any] | None:
    """How verdicts are drawn at random, from the manifest or the model; None where they are not, or nobody says."""
    if manifest is not None:
        return None if manifest.sampling is None else manifest.sampling.model_dump()
    return None if model is None else model.sampling


def agreed(
    manifest: Manifest | None, model: DefendedModel | None, epsilon: float | None, norm: str | None
) -> dict[str, Any]:
    """Epsilon, where it is from, and norm; an error where the sources differ."""
    told: list[tuple[str, float | None, str | None]] = []
    if manifest is not None:
        told.append(("manifest", manifest.epsilon, manifest.norm))
    if model is not None:
        told.append(("model", float(model.epsilon), model.norm))
    told.append(("given", epsilon, norm))
    radii = [(source, value) for source, value, _ in told if value is not None]
    norms = [(source, value) for source, _, value in told if value is not None]
    for source, value in radii[1:]:
        if abs(value - radii[0][1]) > _ROUNDING * radii[0][1]:
            raise ValueError(
                f"`epsilon` must be one: the {radii[0][0]} says {radii[0][1]:.6g}, the {source} {value:.6g}."
            )
    for source, other in norms[1:]:
        if other != norms[0][1]:
            raise ValueError(f"`norm` must be one: the {norms[0][0]} says {norms[0][1]}, the {source} {other}.")
    return {
        "epsilon": radii[0][1] if radii else None,
        "epsilon_from": radii[0][0] if radii else None,
        "norm": norms[0][1] if norms else None,
    }


def described(endpoint: Endpoint) -> tuple[int | None, tuple[str, ...]]:
    """Version and signatures, as far as an endpoint has `status()` and `metadata()`, as a `Client` does.

    The version is the largest that is available; where the address names one, that one.
    """
    status, metadata = (getattr(endpoint, name, None) for name in ("status", "metadata"))
    available = [version for version, state in status().items() if state == "AVAILABLE"] if callable(status) else []
    return max(available, default=None), tuple(sorted(metadata())) if callable(metadata) else (DEFAULT,)


def infer_epsilon(answers: Answers) -> float | None:
    """The epsilon behind an endpoint's two radii, `r - max(r - epsilon, 0)`, up to rounding; None where none is."""
    if answers.radius is None or answers.availability is None:
        return None
    above = answers.availability > 0
    if not above.any():
        return None
    # Of the smallest availability, where the difference has lost fewest digits.
    found = float(np.median((answers.radius - answers.availability)[above]))
    spread = np.abs((answers.radius - answers.availability)[above] - found).max()
    return found if found > 0 and spread <= 1e-4 * max(found, float(answers.radius.max()) * 1e-2) else None


def _float64(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.astype(np.float64)
