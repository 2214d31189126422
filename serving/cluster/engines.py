"""Engines, which compute the pieces of a run: one process, or actors on a Ray cluster."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from defended.arguments import one_of, whole_number
from defended.attacks.core.checks import Array
from defended.attacks.measurement.engine import Job, Settings
from defended.exceptions import WorkerLostError
from defended.serving.cluster.shards import ParquetStore
from defended.serving.cluster.source import Source
from defended.serving.cluster.worker import Worker, threads_in_use, use_threads

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.artefact import Artefact

RESTARTS = 3


class _Engine:
    """What all engines know: the model, TensorFlow's threads, and what results depend on besides model and work."""

    store = ParquetStore

    def __init__(self, source: Source | None, threads: int) -> None:
        self.source, self.threads = source, threads
        self.fingerprint: dict[str, Any] = {"threads": threads}


class ClusterEngine(_Engine):
    """Computes pieces with actors that load the model once each.

    Args:
        make: makes a worker, with a method `run(job, settings)`; called in the actor's process.
        workers: the number of actors.
        cpus: processors that Ray reserves for an actor.
        gpus: GPUs that Ray reserves for an actor.
        restarts: times that an actor is started again after its process died, and a piece tried again.
        environment: variables of the actors' processes.

    Attributes:
        source: the model, where the engine was opened with one.
        threads: TensorFlow's threads within an operation.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        workers: int,
        cpus: float = 1,
        gpus: float = 0,
        restarts: int = RESTARTS,
        environment: dict[str, str] | None = None,
        source: Source | None = None,
        threads: int = 0,
    ) -> None:
        super().__init__(source, threads)
        self._ray = ray = _ray()
        self._restarts = restarts
        actor = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=restarts,
            max_task_retries=restarts,
            runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}},
        )(_Actor)
        # With each piece, and not when an actor is made: Ray cannot start one again from what lies in its store.
        self._make = make
        self._actors = [actor.remote() for _ in range(workers)]

    def run(self, jobs: Iterable[Job], model: Any, settings: Settings) -> Iterator[tuple[Job, dict[str, Array]]]:
        """Yield each job with what came of it, as they are done; as many are under way as there are actors.

        Raises:
            WorkerLostError: a piece's worker died more often than it is restarted.
            Exception: what the piece itself raised.
        """
        ray = self._ray
        shared, queue = ray.put(settings), iter(jobs)
        idle, pending = deque(self._actors), {}
        while True:
            while idle and (job := next(queue, None)) is not None:
                actor = idle.popleft()
                pending[actor.run.remote(self._make, job, shared)] = (actor, job)
            if not pending:
                return
            (done,), _ = ray.wait(list(pending), num_returns=1)
            actor, job = pending.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayActorError as error:
                raise WorkerLostError(
                    f"The worker of the piece {job.name} died {self._restarts + 1} times, probably for lack of memory. "
                    "What is done is kept: give it smaller pieces or batches, or fewer workers per machine, and call "
                    "again."
                ) from error
            idle.append(actor)
            yield job, found

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []


class LocalEngine(_Engine):
    """Computes pieces one after the other in this process."""

    def __init__(self, source: Source, threads: int) -> None:
        super().__init__(source, threads)
        self._worker = Worker(source, threads)

    def run(self, jobs: Iterable[Job], model: Any, settings: Settings) -> Iterator[tuple[Job, dict[str, Array]]]:
        """Yield each job with what came of it."""
        for job in jobs:
            yield job, self._worker.run(job, settings)

    def close(self) -> None:
        """Free what the worker holds."""
        close = getattr(self._worker.model, "close", None)
        if close is not None:
            close()


@contextmanager
def open_engine(
    name: Literal["local", "ray"],
    what: DefendedModel | Artefact | str | os.PathLike[str],
    *,
    workers: int | None = None,
    threads: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> Iterator[LocalEngine | ClusterEngine]:
    """Open an engine for a model or an artefact; it is closed at the end of the block.

    Args:
        name: `"local"` for this process, `"ray"` for a Ray cluster (extra `ray`).
        what: a `DefendedModel`, an `Artefact`, or the path of either. Workers get a copy.
        workers: the number of actors; None for as many as the cluster has processors for.
        threads: TensorFlow's threads within an operation, in every worker; None for what this process uses. Results of
            runs with other numbers may differ in the last digits.
        cpus: processors that an actor reserves.
        gpus: GPUs that an actor reserves.
        address: address of the cluster, as `ray.init` takes it; None for the variable `RAY_ADDRESS`, and without it a
            cluster of this machine that ends with the block. A Ray that already runs in this process is used and left
            running.

    Raises:
        ImportError: the extra is not installed: `pip install 'keras-defended[ray]'`.
        ValueError, ArtefactError: there is no such engine, or `what` cannot be used.
        ConnectionError: there is no cluster at the address.
    """
    one_of("engine", name, ("local", "ray"))
    if workers is not None:
        whole_number("workers", workers, 1)
    count = threads_in_use() if threads is None else whole_number("threads", threads, 1)
    if name == "local":
        use_threads(count)  # before a model is loaded, which starts TensorFlow
        with closing(LocalEngine(Source.of(what), count)) as local:
            yield local
        return
    source = Source.of(what)
    with connected(address) as ray:
        # Once into the object store, whatever the number of actors.
        reference = ray.put(source)
        number = workers or max(1, int(ray.cluster_resources().get("CPU", 1) // max(cpus, 1e-9)))
        engine = ClusterEngine(
            functools.partial(_load_worker, reference, count),
            workers=number,
            cpus=cpus,
            gpus=gpus,
            source=source,
            threads=count,
            environment={"KERAS_BACKEND": "tensorflow"},
        )
        with closing(engine):
            yield engine


@contextmanager
def connected(address: str | None = None, **options: Any) -> Iterator[Any]:
    """Yield Ray, started or joined for the block, without its log on this terminal and without reporting its usage."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    chosen = address or os.environ.get("RAY_ADDRESS") or "local"
    if chosen == "local":
        options = {"include_dashboard": False, **options}
    ray.init(address=chosen, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield ray
    finally:
        ray.shutdown()


def _load_worker(reference: Any, threads: int) -> Worker:
    """Return a worker with a model from the object store."""
    return Worker(_ray().get(reference), threads)


class _Actor:
    """A worker's process, which makes its worker at the first piece."""

    def __init__(self) -> None:
        self._worker: Any = None

    def run(self, make: Callable[[], Any], job: Job, settings: Settings) -> dict[str, Array]:
        if self._worker is None:
            self._worker = make()
        found: dict[str, Array] = self._worker.run(job, settings)
        return found


def _ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its dependencies' future, and of accelerators that it looks for
            import ray
    except ImportError as error:
        raise ImportError("The engine `ray` needs Ray. Install it with `pip install 'keras-defended[ray]'`.") from error
    return ray
