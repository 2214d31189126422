"""`defended train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from defended_cli.app import EXIT_INTERRUPTED
from defended_cli.common import load_tensorflow, option, say_scaling, shown_warnings
from defended_cli.config import Config
from defended_cli.options import options_from, said
from defended_settings.training import TrainingSettings


@options_from(TrainingSettings)
def train(
    settings: dict[str, Any],
    context: typer.Context = None,  # type: ignore[assignment]
    out: Annotated[
        Path, option("The run's folder. The same command again continues an interrupted run.", "DIR")
    ] = Path("runs/train"),
    config: Config = None,
) -> None:
    """Train a classifier that rejects what it cannot prove.

    DIR gets `model.keras` (final: its bounds are proven), `history.csv` (a row per epoch) and `settings.toml`, which
    repeats the run: `defended train --config DIR/settings.toml --out OTHER`.

    ```
    defended train --data digits --epsilon 0.25 --out runs/digits
    defended train --data mnist --net 2c2f --epsilon 0.3 --epochs 100 --out runs/mnist
    defended train --data mine.npz --network mine.keras --epsilon 0.25 --out runs/mine
    ```
    """
    chosen = TrainingSettings(**said(settings, context))
    load_tensorflow()

    from defended.training.training_run import train as run_training

    try:
        with shown_warnings(others=True):
            run = run_training(chosen, out, started=say_scaling)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. The same command continues the run in {out}.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    what = "was finished already" if run.was_finished else "is finished"
    typer.echo(f"The run in {out} {what}: {run.model!r}")
    typer.echo(f"Next: defended attack {out / 'model.keras'} --data {chosen.data}")
