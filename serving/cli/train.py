"""`defended train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from defended_cli.app import EXIT_INTERRUPTED
from defended_cli.common import Data, load_tensorflow
from defended_cli.config import Config


def train(
    data: Data = "digits",
    net: Annotated[
        Literal["2c2f", "4c3f", "6c2f", "dense", "liresnet"],
        typer.Option(help="The network: 2c2f (two convolutions), 4c3f, dense; 6c2f or liresnet for colour images."),
    ] = "2c2f",
    network: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.keras",
            help="Your own Keras classifier, logits out, in place of --net; its weights are the start.",
        ),
    ] = None,
    epsilon: Annotated[
        float, typer.Option(help="The l2 radius to defend, in input units (pixels are in 0...1).")
    ] = 0.3,
    doubling: Annotated[
        bool,
        typer.Option(
            "--doubling/--no-doubling", help="Train at twice the radius: costs clean accuracy, resists degradation."
        ),
    ] = True,
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's at the start; it falls over the run, see --decay.")
    ] = 1e-3,
    decay: Annotated[
        Literal["linear", "exponential"],
        typer.Option(help="How the learning rate falls: linearly to a thousandth, or exponentially to a hundredth."),
    ] = "linear",
    bias_rate: Annotated[float, typer.Option(min=0.0, help="The learning rate of biases, as a multiple.")] = 1.0,
    balance: Annotated[
        list[float] | None,
        typer.Option(
            metavar="NORM",
            help="Keep kernels in proportion: the relative norm of each, the option once for every layer.",
        ),
    ] = None,
    sharpen: Annotated[
        bool,
        typer.Option(
            "--sharpen/--no-sharpen", help="At the end rewrite the weights so that more is proven of the same function."
        ),
    ] = False,
    sharpen_every: Annotated[
        int, typer.Option(min=0, metavar="EPOCHS", help="Sharpen during training too, after every so many epochs.")
    ] = 0,
    bfloat16: Annotated[
        bool,
        typer.Option("--bfloat16/--no-bfloat16", help="Train in bfloat16 where oneDNN can; prove as ever."),
    ] = False,
    loss: Annotated[
        str, typer.Option(help="trades_kl.W, trades_ce.W (W the robust weight), crossentropy, or emma.")
    ] = "trades_kl.1.5",
    schedule: Annotated[
        Literal["fixed", "linear", "log"],
        typer.Option(help="How the training radius reaches its value over the ramp."),
    ] = "linear",
    train_radius: Annotated[
        float, typer.Option(help="Without doubling: the radius to train at, as a multiple of epsilon.")
    ] = 1.0,
    start: Annotated[float, typer.Option(help="Training radius of the first epoch, as a multiple of epsilon.")] = 0.0,
    ramp: Annotated[float, typer.Option(help="Share of the epochs until the training radius has arrived.")] = 0.5,
    augment: Annotated[
        Literal["none", "affine", "elastic", "photo", "shift", "flip-shift"],
        typer.Option(
            help="Turn, scale and move training images a little, and bend them; change them as cameras do (photo); or "
            "move and mirror them."
        ),
    ] = "none",
    validation_split: Annotated[
        float, typer.Option(min=0.0, help="Share of the training data that chooses the best epoch of radius doubling.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder. The same command again continues an interrupted run.")
    ] = Path("runs/train"),
    config: Config = None,
) -> None:
    """Train a classifier that rejects what it cannot prove.

    DIR gets `model.keras` (final: its bounds are proven), `history.csv` (a row an epoch) and `settings.toml`, which
    repeats the run: `defended train --config DIR/settings.toml --out OTHER`.

    ```
    defended train --data digits --epsilon 0.25 --out runs/digits
    defended train --data mnist --net 2c2f --epsilon 0.3 --epochs 100 --out runs/mnist
    defended train --data mine.npz --network mine.keras --epsilon 0.25 --out runs/mine
    ```
    """
    load_tensorflow()

    from defended.training.training_run import TrainingSettings
    from defended.training.training_run import train as run_training

    settings = TrainingSettings(
        data=data,
        net=net,
        network=None if network is None else str(network),
        epsilon=epsilon,
        doubling=doubling,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decay=decay,
        bias_rate=bias_rate,
        balance=tuple(balance or ()),
        sharpen=sharpen,
        sharpen_every=sharpen_every,
        bfloat16=bfloat16,
        loss=loss,
        schedule=schedule,
        train_radius=train_radius,
        start=start,
        ramp=ramp,
        augment=augment,
        validation_split=validation_split,
        seed=seed,
    )
    try:
        run = run_training(settings, out)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. The same command continues the run in {out}.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    what = "was finished already" if run.was_finished else "is finished"
    typer.echo(f"The run in {out} {what}: {run.model!r}")
    typer.echo(f"Next: defended attack {out / 'model.keras'} --data {data}")
