"""`defended audit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defended_cli.app import EXIT_ALARM
from defended_cli.common import (
    TOKEN,
    Data,
    Limit,
    Scale,
    argument,
    flag,
    load_points,
    open_model,
    option,
    print_rate,
    standardisation_of,
    stated_standardisation,
)
from defended_cli.config import Config
from defended_cli.engine import Address, EngineName, Threads, Workers, audited, start

if TYPE_CHECKING:
    from defended.serving.auditing.conditions import Condition
    from defended.serving.auditing.report import AuditReport


def share(text: str) -> Any:
    """Return an option for a limit in [0, 1]."""
    return option(f"{text} Between 0 and 1.", "SHARE", min=0.0, max=1.0)


def audit(
    target: Annotated[
        str,
        argument(
            "A served model (http://HOST:8501/v1/models/NAME, grpc://HOST:8500/NAME), a directory NAME/VERSION "
            "that `defended export` made, or a request log.",
            "URL|ARTEFACT|LOG",
        ),
    ],
    data: Data = "digits",
    scale: Scale = "auto",
    model: Annotated[
        Path | None, option("The exported Keras model: with it, attacked inputs are made and replayed.", "MODEL.keras")
    ] = None,
    attacked: Annotated[
        Path | None, option("Attacked inputs made elsewhere, to replay: `inputs`, and `index`.", "FILE.npz")
    ] = None,
    black_box: Annotated[
        int, option("Attack by asking only, at most this many inputs; 0 for none.", "QUERIES", min=0)
    ] = 0,
    clip: Annotated[bool, flag("--clip", "Keep the queries of --black-box in 0...1.")] = False,
    artefact: Annotated[
        Path | None, option("The artefact that the URL serves: it states epsilon and certificate.", "DIR")
    ] = None,
    epsilon: Annotated[
        float | None, option("The radius defended, where neither model nor artefact states it.", min=0.0)
    ] = None,
    norm: Annotated[str | None, option("Its norm, where nothing else states it.", "l2|linf")] = None,
    name: Annotated[
        str | None, option("The model's name, for a log of several, or where the URL does not say it.")
    ] = None,
    ca: Annotated[Path | None, option("The authority that signed a server's certificate.", "FILE.pem")] = None,
    engine: EngineName = None,
    workers: Workers = None,
    threads: Threads = None,
    ray_address: Address = None,
    limit: Limit = 0,
    out: Annotated[Path, option("The report's folder.", "DIR")] = Path("audit"),
    conditions: Annotated[
        Path | None, option("Limits: a table [conditions], see the documentation.", "FILE.toml")
    ] = None,
    baseline: Annotated[Path | None, option("An earlier audit to compare with.", "audit.json")] = None,
    max_rejection_rate: Annotated[float | None, share("Alarm when more clean inputs are rejected.")] = None,
    min_vra: Annotated[float | None, share("Alarm when fewer inputs are answered rightly, certified.")] = None,
    max_fpr_upper: Annotated[float | None, share("Alarm when more answers are not proven to hold out.")] = None,
    confidence: Annotated[float, option("Confidence level of the intervals.", min=0.5, max=0.999999)] = 0.95,
    batch_size: Annotated[int, option("Inputs per request.", min=1)] = 256,
    config: Config = None,
) -> None:
    """Measure a served or exported model: what it guarantees, and how far an attacker can make it reject.

    An artefact's files are compared with its manifest first. DIR gets `report.html` (one self-contained page),
    `audit.json`, `junit.xml` and the plots. The exit code is 1 when a condition fails or an attack broke a certificate;
    a warning leaves it 0. A server's token is taken from the variable DEFENDED_TOKEN.

    ```
    defended audit models/digits/1 --data digits --model runs/digits/model.keras
    defended audit http://localhost:8501/v1/models/digits --data digits --artefact models/digits/1 --black-box 20000
    defended audit models/mine/3 --data mine.npz --conditions limits.toml --baseline audits/2/audit.json
    defended audit models/digits/1 --data digits --model runs/digits/model.keras --engine ray
    defended audit logs --name digits
    ```
    """
    start(engine, threads)
    from defended import serving
    from defended.serving.auditing.conditions import Condition, read_conditions
    from defended.serving.auditing.log import is_request_log

    limits: dict[str, Condition] = {} if conditions is None else read_conditions(conditions)
    shortcuts = {
        "rejection_rate": ("--max-rejection-rate", "max", max_rejection_rate),
        "fpr_upper": ("--max-fpr-upper", "max", max_fpr_upper),
        "vra": ("--min-vra", "min", min_vra),
    }
    options = {}
    for metric, (switch, side, value) in shortcuts.items():
        if value is not None:
            if metric in limits:
                raise ValueError(f"{switch} and {conditions} both limit {metric}: keep one of them.")
            limits[metric] = Condition.model_validate({side: float(value), "sense": "measured"})
            options[metric] = switch
    known: dict[str, Any] = {"conditions": limits, "baseline": baseline, "confidence": confidence, "name": name}
    of_log = is_request_log(target)
    if not of_log:
        opened = None if model is None else open_model(model)
        manifest = None if artefact is None else serving.verify(artefact)
        if opened is not None:
            scaled = opened.standardisation
        elif manifest is not None:
            scaled = stated_standardisation(manifest)
        else:
            scaled = standardisation_of(target) if Path(target).exists() else None
        x, y = load_points(data, limit, scale, scaled)
        known |= {
            "x": x,
            "y": y,
            "model": opened,
            "attacked": attacked,
            "manifest": manifest,
            "epsilon": epsilon,
            "norm": norm,
            "batch_size": batch_size,
            "black_box": serving.BlackBox(black_box, clip=(0.0, 1.0) if clip else None) if black_box else None,
        }
    place: Any = target
    if engine is not None and (of_log or "://" in target):
        raise ValueError("--engine runs an artefact; a server and a log answer for themselves.")
    if target.startswith(("http://", "https://", "grpc://", "grpcs://")):
        place = serving.Client(target, model=name, token=os.environ.get(TOKEN), ca=ca, batch_size=batch_size)
    cluster = {"workers": workers, "threads": threads, "address": ray_address}
    with audited(engine, target, known.get("model"), out / "pieces", **cluster) as pieces:
        known = {"target": place, "data_name": "" if of_log else data} | known | pieces
        report = serving.audit(**known)
    files = report.write(out)
    show(report, options)
    typer.echo(f"Report: {files['report.html']}")
    if report.verdict == "FAIL":
        raise typer.Exit(EXIT_ALARM)


def show(report: AuditReport, options: dict[str, str]) -> None:
    """Print the rates, and on stderr what warns and fails."""
    for name, rate in report.rates().items():
        if rate is not None:
            print_rate(name, rate, rate.interval, rate.confidence)
    if report.black_box is not None:
        typer.echo(f"{'queries of black box':22} {report.black_box.queries:,} of {report.black_box.budget:,}")
    for alarm in report.alarms:
        typer.echo(f"ALARM: {alarm}", err=True)
    for warning in report.warnings:
        typer.echo(f"WARNING: {warning}", err=True)
    for decision in report.decisions:
        if decision.metric in options and decision.status == "FAIL" and decision.value is not None:
            limit = float(decision.limit.split()[1]) / 100
            found = f"{options[decision.metric]} is {limit:.2%}, and the audit found {decision.value:.2%}."
            typer.echo(f"ALARM: {found}", err=True)
        elif decision.status != "PASS":
            typer.echo(f"{decision.status}: {decision.metric}: {decision.message}", err=True)
    typer.echo(f"Verdict: {report.verdict}")
    if report.verdict == "NOT JUDGED":
        typer.echo(f"No conditions were set. To begin with, in a file for --conditions:\n{report.suggestion}")
