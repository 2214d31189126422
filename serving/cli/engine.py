"""Options of commands that cut their work into pieces, and the engine that they name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from defended_cli.common import load_tensorflow, option

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.artefact import Artefact
    from defended.serving.cluster.engines import ClusterEngine, LocalEngine

EngineName = Annotated[
    Literal["local", "ray"] | None,
    option("What computes the pieces: this process, or actors of a Ray cluster (extra ray)."),
]
Workers = Annotated[int | None, option("Actors of --engine ray; by default as many as there are processors.", min=1)]
Threads = Annotated[
    int | None, option("TensorFlow's threads per worker. Another number may change the last digits.", min=1)
]
Address = Annotated[
    str | None,
    option("Address of the Ray cluster; by default RAY_ADDRESS, or a cluster made on this machine.", "ADDRESS"),
]


def start(name: str | None, threads: int | None) -> None:
    """Load TensorFlow, with the threads that the local engine is to have: they cannot be changed later."""
    load_tensorflow()
    if name == "local" and threads is not None:
        from defended.serving.cluster.worker import use_threads

        use_threads(threads)


@contextlib.contextmanager
def opened(
    name: str | None, what: DefendedModel | Artefact | str | os.PathLike[str], **options: Any
) -> Iterator[LocalEngine | ClusterEngine | None]:
    """Open the engine of that name for a model or an artefact; yield None for no name, which allows no options."""
    if name is None:
        if any(value is not None for value in options.values()):
            raise ValueError("--workers, --threads and --ray-address belong to an engine: name one with --engine.")
        yield None
        return
    from defended.serving.cluster.engines import open_engine

    with open_engine(name, what, **options) as engine:  # type: ignore[arg-type]
        yield engine


@contextlib.contextmanager
def audited(
    name: str | None, artefact: Path | str, model: DefendedModel | None, keep: Path, **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `defended.serving.audit` that have an engine do its work; none without an engine.

    Pieces are kept in `keep`: the same command again goes on where a killed one stopped.
    """
    with contextlib.ExitStack() as stack:
        if name == "ray":
            from defended.serving.cluster.engines import connected

            stack.enter_context(connected(options["address"]))
        first = stack.enter_context(opened(name, artefact, **options))
        if first is None:
            yield {}
            return
        from defended.attacks.gradient.certificate_descent import CertificateDescent
        from defended.serving.cluster.remote import DistributedArtefact, RemoteAttack

        arguments: dict[str, Any] = {"target": DistributedArtefact(first, artefact, keep)}
        if model is not None:
            second = stack.enter_context(opened(name, model, **options))
            arguments["attack"] = RemoteAttack(second, CertificateDescent(steps=50), keep=keep)
        yield arguments
