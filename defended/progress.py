"""What long work shows on a terminal: one bar on stderr, and beforehand how long it is likely to take."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 3.0
"""Seconds after which work is called long."""


class Forecast(NamedTuple):
    """How long work is likely to take."""

    seconds: float
    words: str
    """One line that says so."""


Advance = Callable[[int], None]

# The bar that is shown around what runs now, to which work inside adds a line; False where none is wanted.
_AROUND: ContextVar[Progress | bool] = ContextVar("around", default=True)


@contextmanager
def shown(
    what: str,
    total: int | None = None,
    wanted: bool | None = None,
    forecast: Callable[[], Forecast | None] | None = None,
) -> Iterator[Advance]:
    """Yield a function that advances a bar on stderr by so many parts; the bar appears once the work is long.

    Work inside of other work that shows a bar adds a line to it, for as long as it takes; inside of work whose bar is
    not wanted it shows none.

    Args:
        what: what is done, in a few words.
        total: how many parts it has; None where that is not known.
        wanted: True shows the bar at once, False never, None on a terminal after `PATIENCE` seconds.
        forecast: says how long it will take; asked where a bar is wanted, and printed where that is long.
    """
    around = _AROUND.get()
    if wanted is False or (wanted is None and (around is False or not sys.stderr.isatty())):
        token = _AROUND.set(False)
        try:
            yield lambda count: None
        finally:
            _AROUND.reset(token)
        return
    if not isinstance(around, bool):
        task = around.add_task(what, total=total)
        try:
            yield lambda count: around.advance(task, count)
        finally:
            around.remove_task(task)
        return

    bar, turn = _bar(), threading.Lock()
    task, began, ended = bar.add_task(what, total=total), False, False

    def appear() -> None:
        nonlocal began
        with turn:
            if not ended:
                bar.start()
                began = True

    clock = threading.Timer(PATIENCE, appear)
    clock.daemon = True
    token = _AROUND.set(bar)
    try:
        appear() if wanted else clock.start()
        expected = None if forecast is None else forecast()
        if expected is not None and expected.seconds >= PATIENCE:
            bar.console.print(expected.words, highlight=False)  # above the bar, should that be there already
        yield lambda count: bar.advance(task, count)
    finally:
        _AROUND.reset(token)
        clock.cancel()
        with turn:
            ended = True
            if began:  # or a terminal without cursor would get an empty line
                bar.stop()


def _bar() -> Progress:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    return progress.Progress(*columns, console=Console(file=sys.stderr))
