"""`defended monitor`."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defended_cli.app import EXIT_ALARM
from defended_cli.common import TOKEN, argument, load_tensorflow, option
from defended_cli.config import Config

if TYPE_CHECKING:
    from defended.serving.monitoring.rejection_monitor import RejectionMonitor


def monitor(
    source: Annotated[
        str, argument("A server (http://HOST:8501), its page of counters, or a request log's folder.", "URL|LOG")
    ],
    baseline: Annotated[Path, option("The audit that says what is usual.", "audit.json")],
    false_alarm: Annotated[
        float, option("Bound on the probability of ever raising a false alarm.", min=1e-9, max=0.5)
    ] = 0.01,
    name: Annotated[str | None, option("The model's name, where the source has several.")] = None,
    version: Annotated[int | None, option("Count only this version of the model.", min=0)] = None,
    state: Annotated[Path | None, option("Keep what is known there; the same command goes on from it.", "FILE")] = None,
    interval: Annotated[float, option("Time between two looks.", "SECONDS", min=0.05)] = 10.0,
    looks: Annotated[int, option("Leave after this many looks; 0 means only at an alarm.", min=0)] = 0,
    raised: Annotated[
        list[float] | None, option("Do not watch: simulate how soon such a rejection rate is noticed.", "RATE")
    ] = None,
    config: Config = None,
) -> None:
    """Watch a served model's verdicts, and leave with 1 when it rejects more than its audit said.

    Each look prints one line of JSON. The test may be looked at as often as one likes, for as long as one likes:
    without a raised rate it alarms with at most the probability given. A request log also gives evidence for a drift of
    the inputs and for an attack; counters do not. A server's token is taken from the variable DEFENDED_TOKEN.

    ```
    defended monitor http://localhost:8501 --baseline audit/audit.json --state monitor.json
    defended monitor logs --baseline audit/audit.json --looks 1
    defended monitor logs --baseline audit/audit.json --raised 0.05 --raised 0.1
    ```
    """
    load_tensorflow()
    from defended.serving.monitoring.rejection_monitor import RejectionMonitor

    watching = RejectionMonitor(baseline, false_alarm=false_alarm)
    if raised:
        _plan(watching, raised)
        return
    position = watching.restore(state) if state is not None and state.exists() else {}
    look = _look_at_counters if source.startswith(("http://", "https://")) else _look_at_log
    for number in itertools.count(1):
        position = look(watching, source, position, name, version)
        if state is not None:
            watching.save(state, position)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        typer.echo(json.dumps({"time": stamp, "source": source} | watching.status(), ensure_ascii=False))
        if watching.alarm is not None:
            typer.echo(f"ALARM: more than {watching.limit:.2%} are rejected, the limit of the audit.", err=True)
            raise typer.Exit(EXIT_ALARM)
        if number == looks:
            return
        time.sleep(interval)


def _look_at_log(
    watching: RejectionMonitor, source: str, position: dict[str, Any], name: str | None, version: int | None
) -> dict[str, Any]:
    from defended.serving.auditing.log import verdicts_of
    from defended.serving.monitoring.sources import new_answers

    records = {str(file): int(count) for file, count in position.get("records", {}).items()}
    for answer in new_answers(Path(source), records, name):
        if version is None or answer.version == version:
            watching.watch(verdicts_of(answer), answer.inputs)
    return {"records": records}


def _look_at_counters(
    watching: RejectionMonitor, source: str, position: dict[str, Any], name: str | None, version: int | None
) -> dict[str, Any]:
    from defended.serving.monitoring.sources import CounterPosition, new_counts, scrape

    where = CounterPosition(position.get("answered"), position.get("rejected"))
    watching.count(*new_counts(scrape(source, os.environ.get(TOKEN)), where, name, version))
    return vars(where)


def _plan(watching: RejectionMonitor, raised: list[float]) -> None:
    from defended.serving.monitoring.delay import detection_delay

    typer.echo(
        f"Audited: {watching.rate:.2%}. Tested: at most {watching.limit:.2%}, with false alarms in at most "
        f"{watching.false_alarm:.2%} of all monitors. Inputs until an alarm, after 1,000 usual ones:"
    )
    for rate in raised:
        delay = detection_delay(watching.limit, watching.threshold, float(watching.rate), rate)
        middle, most = (
            "more than 100,000" if value is None else f"{value:,.0f}" for value in (delay.median, delay.upper)
        )
        typer.echo(f"  {rate:7.2%}   half of the monitors within {middle}, nine of ten within {most}")
