"""`defended diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defended_cli.common import Scale, argument, load_points, load_tensorflow, option
from defended_cli.config import Config


def diagnose(
    network: Annotated[Path, argument("Any Keras classifier, softmax or not.", "NETWORK.keras")],
    data: Annotated[
        str | None, option("What it classifies, for shares and units: digits, mnist, ..., or a file.", "NAME|FILE.npz")
    ] = None,
    scale: Scale = "auto",
    epsilon: Annotated[float, option("The l2 radius to defend, in input units.", min=0)] = 0.3,
    limit: Annotated[int, option("Use only this many test points, the first ones; 0 means all.", min=0)] = 500,
    adapted: Annotated[
        Path | None, option("Write the network made certifiable there, for `train --network`.", "FILE.keras")
    ] = None,
    config: Config = None,
) -> None:
    """Say what a certificate will make of your network, before any training, and what to change.

    ```
    defended diagnose mine.keras --data mine.npz --epsilon 0.3 --adapted adapted.keras
    defended train --network adapted.keras --data mine.npz --epsilon 0.3 --out runs/mine
    ```
    """
    if not network.is_file():
        raise FileNotFoundError(f"{network} is not a file: give the path of a .keras model")
    load_tensorflow()
    import keras

    from defended import adapting
    from defended.defended_model import DefendedModel
    from defended.training.training_run import save

    model = keras.models.load_model(network, compile=False)
    if isinstance(model, DefendedModel):
        raise ValueError(f"{network} is a {type(model).__name__} already: diagnose the network that it defends")
    x, y = (None, None) if data is None else load_points(data, limit, scale)
    typer.echo(adapting.diagnose(model, x, y, epsilon=epsilon))
    if adapted is not None:
        found = adapting.adaptation(model, x, y)
        save(found.network, adapted)
        typer.echo(f"\nAdapted:\n{found}\nNext: defended train --network {adapted} --epsilon {epsilon:g}")
