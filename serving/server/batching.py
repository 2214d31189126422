"""Dynamic batching: requests that arrive while a model is busy run together when it is free."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from defended.exceptions import Code, ServingError
from defended.serving.clients.logged_answers import Arrays


@dataclass(eq=False)
class _Waiting:
    inputs: Arrays
    rows: int
    future: asyncio.Future[dict[str, np.ndarray]]
    since: float


class Batcher:
    """Merges the requests of one signature into batches; used from one event loop.

    A request that finds nothing running starts at once. One that comes while a batch runs waits for it to end, for a
    full batch, or for `max_latency` seconds, whichever is first, and then runs with the others that wait. Rows of a
    batch are independent, so no answer depends on its company; where a merged run fails, each of its requests is
    run again by itself, and only the faulty one gets the error.

    Args:
        run: runs one batch, in a thread of `executor`.
        executor: where batches run, those of several signatures in turn.
        parallel: batches of this signature at a time.
        max_batch: rows that requests are merged up to; a larger request runs by itself.
        max_latency: seconds.
        max_queued_rows: rows that may wait.
        observe: called with the number of rows of every batch that runs.
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
        self._running = 0
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
        """Start what may start now, and set a timer for the rest."""
        while self._queue:
            oldest = self._queue[0]
            if oldest.future.done():  # cancelled
                self._take_first()
                continue
            if self._running >= self._parallel:
                return  # until one of them ends
            due = oldest.since + self._max_latency
            loop = asyncio.get_running_loop()
            if self._running and self.queued_rows < self._max_batch and loop.time() < due:
                if self._timer is None:
                    self._timer = loop.call_at(due, self._wake)
                return
            self._launch(self._take_batch())

    def _wake(self) -> None:
        self._timer = None
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

    def _launch(self, batch: list[_Waiting]) -> None:
        self._running += 1
        self._observe(sum(waiting.rows for waiting in batch))
        # One hand-over to the thread and one back: tasks and futures on top would cost as much as a small model.
        self._executor.submit(self._work, asyncio.get_running_loop(), batch)

    def _work(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        """Run one batch; in a thread."""
        result: dict[str, np.ndarray] | Exception
        try:
            result = self._run_merged(batch)
        except Exception as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for the answer
            loop.call_soon_threadsafe(self._finish, batch, result)

    def _run_merged(self, batch: list[_Waiting]) -> dict[str, np.ndarray]:
        inputs = batch[0].inputs
        if len(batch) > 1:
            inputs = {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in inputs}
        outputs = self._run(inputs)
        rows = sum(waiting.rows for waiting in batch)
        wrong = [name for name, value in outputs.items() if value.shape[:1] != (rows,)]
        if wrong:  # rows could not be assigned to requests
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                f"input tensors: {', '.join(wrong)}",
            )
        return outputs

    def _finish(self, batch: list[_Waiting], result: dict[str, np.ndarray] | Exception) -> None:
        self._running -= 1
        if not isinstance(result, Exception):
            start = 0
            for waiting in batch:
                end = start + waiting.rows
                if not waiting.future.done():
                    waiting.future.set_result({name: value[start:end] for name, value in result.items()})
                start = end
        elif len(batch) > 1:
            for waiting in batch:
                self._launch([waiting])
        elif not batch[0].future.done():
            batch[0].future.set_exception(result)
        self._start()
