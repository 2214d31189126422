"""The served models: found in a folder, verified before they are loaded, replaced while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from defended.exceptions import Code, ServingError
from defended.serving.artefacts.artefact import load
from defended.serving.artefacts.manifest import NAME, versions_below
from defended.serving.server.errors import invalid
from defended.serving.server.metrics import Metrics
from defended.serving.server.models import ModelVersion
from defended_settings.addresses import is_loopback
from defended_settings.server import ServerSettings

_LOG = logging.getLogger(__name__)

# The states of TensorFlow Serving that a version goes through here, by their names in `ModelVersionStatus`.
LOADING, AVAILABLE, END = "LOADING", "AVAILABLE", "END"

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass
class VersionState:
    """The state of a version; `error` says why it ended, without naming a file."""

    state: str
    error: str = ""
    fingerprint: Fingerprint = ()


@dataclass
class _Model:
    path: Path
    served: dict[int, ModelVersion] = field(default_factory=dict)
    states: dict[int, VersionState] = field(default_factory=dict)


class ModelStore:
    """Loads, offers and frees versions; used from one event loop, loading in a thread.

    For each model, the largest versions that load are served, `settings.versions` of them, so a version that is half
    written or was tampered with is refused with a reason in the log, and the one before it stays. It is tried again
    when its files change. A version that is served keeps serving while its successor loads.
    """

    def __init__(self, settings: ServerSettings, runs: Executor, loads: Executor, metrics: Metrics) -> None:
        self._settings, self._runs, self._loads, self._metrics = settings, runs, loads, metrics
        self._models: dict[str, _Model] = {}
        self._labels = {name: dict(labels) for name, labels in settings.labels.items()}
        hidden = settings.audit_signature is False
        self._hide_radii = hidden or (settings.audit_signature is None and not is_loopback(settings.host))
        metrics.queued_rows = self._queued_rows

    @property
    def names(self) -> list[str]:
        """The names of the models that have a version to serve."""
        return sorted(name for name, model in self._models.items() if model.served)

    def serves(self, name: str) -> bool:
        """Return whether a model of this name has a version to serve."""
        return name in self._models and bool(self._models[name].served)

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> ModelVersion:
        """Return the version that a request names, the largest where it names none.

        Raises:
            ServingError: NOT_FOUND, or INVALID_ARGUMENT for a label that was never assigned.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        if label is not None:
            version = self._labelled(name, label)
        served = self._models[name].served if name in self._models else {}
        if version is None:
            if served:
                return served[max(served)]
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
        if version not in served:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Specific({name}, {version})")
        return served[version]

    def status(self, name: str, version: int | None = None, label: str | None = None) -> dict[int, VersionState]:
        """Return the state of one version of a model, or of all.

        Raises:
            ServingError: NOT_FOUND, INVALID_ARGUMENT.
        """
        if label is not None:
            version = self._labelled(name, label)
        states = self._models[name].states if name in self._models else {}
        if version is None:
            if not states:
                raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            return dict(sorted(states.items()))
        if version not in states:
            raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
        return {version: states[version]}

    def assign_labels(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the labels of the models named.

        Raises:
            ServingError: NOT_FOUND, no such model; FAILED_PRECONDITION, a label names a version that is not served.
        """
        for name, named in labels.items():
            if not self.serves(name):
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
            for version in named.values():
                if version not in self._models[name].served:
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {name}, which is not currently "
                        "available for inference",
                    )
        self._labels.update({name: dict(named) for name, named in labels.items()})

    async def poll(self) -> None:
        """Read the folder once, and load and free what changed."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._loads, find_models, self._settings.directory)
        for name in sorted(set(found) | set(self._models)):
            model = self._models.setdefault(name, _Model(found.get(name, self._settings.directory)))
            await self._update(name, model, found.get(name))

    async def _update(self, name: str, model: _Model, path: Path | None) -> None:
        loop = asyncio.get_running_loop()
        versions = {} if path is None else await loop.run_in_executor(self._loads, find_versions, path)
        wanted: list[int] = []
        for version in sorted(versions, reverse=True):
            if len(wanted) == self._settings.versions:
                break
            if version in model.served or await self._load(name, model, version, versions[version]):
                wanted.append(version)
        for version in sorted(set(model.served) - set(wanted)):
            _LOG.info("%s: version %d is no longer served.", name, version)
            model.served.pop(version).retire()
            model.states[version] = VersionState(END)
        for version in set(model.states) - set(versions) - set(model.served):
            del model.states[version]
        if not model.states:
            del self._models[name]

    async def _load(self, name: str, model: _Model, version: int, path: Path) -> bool:
        loop = asyncio.get_running_loop()
        before = await loop.run_in_executor(self._loads, fingerprint, path)
        known = model.states.get(version)
        if known is not None and known.error and known.fingerprint == before:
            return False
        model.states[version] = VersionState(LOADING)
        try:
            artefact = await loop.run_in_executor(self._loads, load, path)
            try:
                model.served[version] = ModelVersion(
                    name, version, artefact, self._settings, self._runs, self._metrics, self._hide_radii
                )
            except BaseException:
                artefact.close()
                raise
        except Exception as error:  # of any kind: what lies in the folder must not end the server
            model.states[version] = VersionState(
                END, "The version was refused when it was loaded; the server's log says why.", before
            )
            _LOG.error("%s: version %d is refused: %s", name, version, error)
            return False
        model.states[version] = VersionState(AVAILABLE)
        _LOG.info("%s: version %d is served: %r.", name, version, artefact)
        return True

    def close(self) -> None:
        """Free every version; none may be running."""
        for model in self._models.values():
            for version in model.served.values():
                version.artefact.close()
        self._models.clear()

    def _labelled(self, name: str, label: str) -> int:
        if label not in self._labels.get(name, {}):
            raise invalid(f"Unrecognized servable version label: {label}")
        return self._labels[name][label]

    def _queued_rows(self) -> dict[tuple[str, int], int]:
        return {
            (name, number): version.queued_rows
            for name, model in list(self._models.items())
            for number, version in list(model.served.items())
        }


def find_models(directory: Path) -> dict[str, Path]:
    """Return the folders of models in a folder of models, or the folder itself where its children are versions.

    Raises:
        OSError: it cannot be read.
    """
    if find_versions(directory):
        return {directory.resolve().name: directory}
    children = (path for path in directory.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
    return {path.name: path for path in children if find_versions(path)}


def find_versions(directory: Path) -> dict[int, Path]:
    """Return a model's version folders by number; whatever else lies there is passed over.

    Raises:
        OSError: it cannot be read.
    """
    return {version: path for version, path in versions_below(directory).items() if path.is_dir()}


def fingerprint(directory: Path) -> Fingerprint:
    """Return the names, sizes, times and inodes of a folder's files, which change when a file does."""
    found = []
    for path in sorted(directory.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue
        found.append((path.relative_to(directory).as_posix(), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)
