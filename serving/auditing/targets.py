"""What can be audited: anything that answers arrays by signature, an artefact or a served model alike."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

import numpy as np

from defended.exceptions import EndpointError
from defended.serving.artefacts.artefact import Artefact, load
from defended.serving.artefacts.inputs import run_in_batches
from defended.serving.auditing.answers import AUDIT, DEFAULT, Answers, checked
from defended.serving.auditing.contradictions import contradictions
from defended.serving.auditing.subject import Subject, agreed
from defended.serving.clients.client import Client

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.manifest import Manifest

# Inputs of one call, where what answers cuts them itself.
WHOLE = 2**31

_SCHEMES = ("http://", "https://", "grpc://", "grpcs://")


@runtime_checkable
class Endpoint(Protocol):
    """What an audit needs of a served model; `defended.serving.Client` is one, and a test's stand-in may be one."""

    def predict(self, x: np.ndarray, signature: str = DEFAULT) -> Mapping[str, np.ndarray]:
        """Answer `x`, float32 `[n, *input_shape]`, with arrays `[n, ...]` by the names of the signature's outputs."""


@dataclass
class Target:
    """An endpoint with what is known of it, counting what it is asked.

    Attributes:
        endpoint: answers arrays by signature.
        subject: what is known.
        points: inputs sent so far.
        contradictions: answers that contradict themselves so far, by the names of `contradictions.NAMES`.
    """

    endpoint: Endpoint
    subject: Subject
    batch_size: int = 256
    points: int = field(default=0, init=False)
    contradictions: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def richest(self) -> str:
        """The signature that reports the most."""
        return AUDIT if AUDIT in self.subject.signatures else DEFAULT

    def ask(self, x: np.ndarray, signature: str | None = None) -> Answers:
        """Return the answers to `x` float32 `[n, *input_shape]`, sent `batch_size` at a time, by the richest signature.

        Raises:
            EndpointError: an answer is missing, has another shape, or holds nothing that can be counted.
        """
        asked = signature or self.richest

        def judge(batch: np.ndarray) -> dict[str, np.ndarray]:
            return checked(self.endpoint.predict(batch, asked), len(batch), asked)

        answers = Answers.of(run_in_batches(judge, x, self.batch_size))
        self.points += len(x)
        self.contradictions += contradictions(answers, self.subject)
        return answers

    def learn(self, answers: Answers, **known: Any) -> None:
        """Take in what the first answers said of the subject, and check them again in its light."""
        self.subject = replace(self.subject, **known)
        self.contradictions = contradictions(answers, self.subject)

    def require_same_version(self) -> None:
        """Raise where the endpoint changed its version since the audit began.

        Raises:
            EndpointError: naming both versions.
        """
        version, _ = described(self.endpoint)
        if version != self.subject.version:
            raise EndpointError(
                f"The endpoint changed from version {self.subject.version} to {version} during the audit, so the "
                "figures describe neither. Audit again, at an address that names the version."
            )


@contextlib.contextmanager
def open_target(
    target: Artefact | Endpoint | str | os.PathLike[str], batch_size: int, **known: Any
) -> Iterator[Target]:
    """Yield the target, opened here or elsewhere; what was opened here is closed after the block.

    Args:
        target: as for `audit`, except a log.
        batch_size: inputs per run or request.
        **known: arguments of `endpoint_target`.

    Raises:
        TypeError: it is not something that answers.
    """
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
    """Return what is known, and the model's name, which an address may hold."""
    found = re.search(r"://[^/]+(?:/v1/models)?/([^/:]+)", url)
    return known | {"name": known["name"] or (unquote(found[1]) if found else None)}


def artefact_target(artefact: Artefact, batch_size: int) -> Target:
    """Return an open artefact as a target."""
    m = artefact.manifest
    subject = Subject(
        kind="artefact",
        location=os.fspath(artefact.path),
        name=m.name,
        version=m.version,
        num_classes=m.num_classes,
        signatures=tuple(sorted(m.signatures)),
        **agreed(m, None, None, None),
    )
    return Target(_OfArtefact(artefact, 1 if subject.shares_noise else batch_size), subject, WHOLE)


class _OfArtefact:
    """Cuts inputs itself: an artefact that an engine runs takes all of them at once."""

    def __init__(self, artefact: Artefact, batch_size: int) -> None:
        self._artefact, self._batch_size = artefact, batch_size

    def predict(self, x: np.ndarray, signature: str = DEFAULT) -> Mapping[str, np.ndarray]:
        if signature == AUDIT:
            return self._artefact.audit(x, self._batch_size)
        return self._artefact.predict(x, signature, self._batch_size)


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
    """Return an endpoint as a target: its signatures from its metadata, epsilon and norm from whatever states them.

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
        num_classes=None if model is None else int(model.num_classes),
        **agreed(manifest, model, epsilon, norm),
    )
    return Target(endpoint, subject, 1 if subject.shares_noise else batch_size)


def described(endpoint: Endpoint) -> tuple[int | None, tuple[str, ...]]:
    """Return version and signatures, as far as an endpoint has `status()` and `metadata()`, as a `Client` does.

    The version is the largest that is available; where the address names one, that one.
    """
    status, metadata = (getattr(endpoint, name, None) for name in ("status", "metadata"))
    available = [version for version, state in status().items() if state == "AVAILABLE"] if callable(status) else []
    return max(available, default=None), tuple(sorted(metadata())) if callable(metadata) else (DEFAULT,)
