"""`defended audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from defended_cli.app import EXIT_ALARM
from defended_cli.common import Data, Limit, open_model, test_points
from defended_cli.config import Config


def share(text: str) -> Any:
    """Return an option for a limit in [0, 1]."""
    return typer.Option(min=0.0, max=1.0, metavar="SHARE", help=f"{text} Between 0 and 1.")


def audit(
    artefact: Annotated[
        Path, typer.Argument(metavar="ARTEFACT", help="The directory NAME/VERSION that `defended export` made.")
    ],
    data: Data = "digits",
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.keras",
            help="The exported Keras model: with it, attacked inputs are replayed on the artefact.",
        ),
    ] = None,
    limit: Limit = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The report's folder.")] = Path("audit"),
    max_rejection_rate: Annotated[float | None, share("Alarm when more clean inputs are rejected.")] = None,
    min_vra: Annotated[float | None, share("Alarm when fewer inputs are answered rightly, certified.")] = None,
    max_fpr_upper: Annotated[float | None, share("Alarm when more answers are not proven to hold out.")] = None,
    config: Config = None,
) -> None:
    """Measure an exported artefact: what it guarantees, and how far an attacker can make it reject.

    Every file is compared with the manifest first. DIR gets `report.html` (one self-contained page), `audit.json` and
    the plots. The exit code is 1 when a limit is broken (`--max-...`, `--min-...`) or an attack broke a certificate.

    ```
    defended audit models/digits/1 --data digits --model runs/digits/model.keras
    defended audit models/mine/3 --data mine.npz --max-rejection-rate 0.05 --min-vra 0.9
    ```
    """
    x, y = test_points(data, limit)
    keras_model = open_model(model) if model else None

    from defended import serving

    report = serving.audit(artefact, x, y, model=keras_model, data_name=data)
    files = report.write(out)
    for name, rate in report.rates().items():
        if rate is not None:
            low, high = rate.interval
            typer.echo(
                f"{name.replace('_', ' '):22} {rate:7.2%}   {rate.confidence:.0%} interval [{low:.2%}, {high:.2%}]"
            )
    typer.echo(f"Report: {files['report.html']}")
    limits = [
        ("--max-rejection-rate", report.rejection_rate, max_rejection_rate, 1),
        ("--max-fpr-upper", report.fpr_upper, max_fpr_upper, 1),
        ("--min-vra", report.vra, min_vra, -1),
    ]
    broken = [
        f"{option} is {limit:.2%}, and the audit found {rate:.2%}."
        for option, rate, limit, sign in limits
        if limit is not None and sign * (rate - limit) > 0
    ]
    for alarm in (*report.alarms, *broken):
        typer.echo(f"ALARM: {alarm}", err=True)
    if report.alarms or broken:
        raise typer.Exit(EXIT_ALARM)
