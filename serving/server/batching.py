"""Dynamic batching: requests that come while a model is busy run together when it is free."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from defended.serving.server.errors import Code, ServingError

Arrays = Mapping[str, np.ndarray]


@dataclass(eq=False)
class _Waiting:
    inputs: Arrays
    rows: int
    future: asyncio.Future[dict[str, np.ndarray]]
    since: float


class Batcher:
    """Merges the requests of one signature into batches; used from one event loop.

    A request that finds nothing running starts at once. One that comes while a batch runs waits for it to end, for a
    full batch, or for `max_latency` seconds, whichever is first, and then runs with those that wait too. Rows of a
    batch are independent, so nobody's answer depends on its company; where a merged run fails, each of its requests is
    run again by itself, and only the faulty one gets the error.

    Args:
        run: runs one batch, in a thread of `executor`.
        executor: where batches run, several signatures' in turn.
        parallel: batches of this signature at a time.
        max_batch: rows that requests are merged up to; a larger request runs by itself.
        max_latency: seconds.
        max_queued_rows: rows that may wait.
        observe: called with the rows of every batch that runs.
    """

    def __init__(
        self,
        run: Callable[[Arrays], dict[str, np.ndarray]],
        executor: Executor,
        *,
        parallel: int,
        max_batch: int,
        max_latency: float,
        max_queued_rows: int,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self._run, self._executor, self._parallel, self._observe = run, executor, parallel, observe
        self._max_batch, self._max_latency, self._max_queued_rows = max_batch, max_latency, max_queued_rows
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.queued_rows = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self._running

    async def submit(self, inputs: Arrays, rows: int) -> dict[str, np.ndarray]:
        """Answer one request: `rows` inputs, the first axis of every array.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, too much is waiting; else what `run` raised. A cancelled request leaves
                the queue; one that runs already runs to its end, unheard.
        """
        if self._queue and self.queued_rows + rows > self._max_queued_rows:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"The batch scheduling queue to which this task was submitted is full; task size = {rows}, "
                f"queued = {self.queued_rows}, limit = {self._max_queued_rows}. Try again later.",
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting(inputs, rows, loop.create_future(), loop.time())
        self._queue.append(waiting)
        self.queued_rows += rows
        self._start()
        return await waiting.future

    def _start(self) -> None:
        """Start what may start now, and see to it that the rest starts in time."""
        while self._queue:
            oldest = self._queue[0]
            if oldest.future.done():  # cancelled
                self._take_first()
                continue
            if len(self._running) >= self._parallel:
                return  # until one of them ends
            due = oldest.since + self._max_latency
            loop = asyncio.get_running_loop()
            if self._running and self.queued_rows < self._max_batch and loop.time() < due:
                if self._timer is None:
                    self._timer = loop.call_at(due, self._wake)
                return
            task = loop.create_task(self._execute(self._take_batch()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _wake(self) -> None:
        self._timer = None
        self._start()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _take_first(self) -> _Waiting:
        waiting = self._queue.popleft()
        self.queued_rows -= waiting.rows
        return waiting

    def _take_batch(self) -> list[_Waiting]:
        batch = [self._take_first()]
        rows = batch[0].rows
        while self._queue and rows + self._queue[0].rows <= self._max_batch:
            waiting = self._take_first()
            if not waiting.future.done():
                rows += waiting.rows
                batch.append(waiting)
        return batch

    async def _execute(self, batch: list[_Waiting]) -> None:
        try:
            outputs = await self._in_thread(batch)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
                return
            for waiting in batch:
                await self._execute([waiting])
            return
        start = 0
        for waiting in batch:
            end = start + waiting.rows
            _settle(waiting, {name: value[start:end] for name, value in outputs.items()})
            start = end

    async def _in_thread(self, batch: list[_Waiting]) -> dict[str, np.ndarray]:
        rows = sum(waiting.rows for waiting in batch)
        self._observe(rows)

        def run() -> dict[str, np.ndarray]:
            inputs = batch[0].inputs
            if len(batch) > 1:
                inputs = {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in inputs}
            outputs = self._run(inputs)
            wrong = [name for name, value in outputs.items() if value.shape[:1] != (rows,)]
            if wrong:  # an answer could not be told from its neighbour's
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    f"input tensors: {', '.join(wrong)}",
                )
            return outputs

        return await asyncio.get_running_loop().run_in_executor(self._executor, run)


def _settle(waiting: _Waiting, result: dict[str, np.ndarray] | Exception) -> None:
    if waiting.future.done():  # cancelled meanwhile
        return
    if isinstance(result, Exception):
        waiting.future.set_exception(result)
    else:
        waiting.future.set_result(result)
