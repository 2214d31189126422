"""`defended attack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from defended_cli.common import Data, Limit, ModelFile, open_model, test_points
from defended_cli.config import Config

if TYPE_CHECKING:
    from defended.attacks import Attack


def attack(
    model: ModelFile,
    data: Data = "digits",
    attack: Annotated[
        Literal["certificate-descent", "degradation", "epsilon-pgd"],
        typer.Option(help="certificate-descent finds most; the others are the paper's: Algorithm 3.1 and Appendix B."),
    ] = "certificate-descent",
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of each start.")] = 50,
    restarts: Annotated[int, typer.Option(min=1, help="Starts.")] = 1,
    clip: Annotated[bool, typer.Option("--clip", help="Keep perturbed inputs in 0...1.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Limit = 0,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep finished parts there: the same command again continues.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Default: susceptibility.json beside the model.")
    ] = None,
    config: Config = None,
) -> None:
    """Measure how far a model can be degraded: what the attack finds, and what the certificate leaves open.

    The lower bound of the false positive rate (FPR) is the share of answers that the attack forced into ⊥, each one
    checked; the upper bound the share that the certificate at 2 eps does not protect. The truth lies between.

    ```
    defended attack runs/digits/model.keras --data digits
    defended attack runs/mnist/model.keras --data mnist --limit 2000 --steps 100
    ```
    """
    defended_model = open_model(model)
    x, y = test_points(data, limit)

    from defended._io import atomic_write_text
    from defended.attacks import susceptibility
    from defended.serving.canonical import canonical_json

    chosen = make_attack(attack, steps=steps, restarts=restarts, clip=(0.0, 1.0) if clip else None, seed=seed)
    result = susceptibility(defended_model, x, y, chosen, resume=resume)
    path = out or model.with_name("susceptibility.json")
    typer.echo(result.to_table())
    atomic_write_text(path, canonical_json(result.summary()))
    typer.echo(f"Figures: {path}")


def make_attack(name: str, **options: Any) -> Attack:
    """Return the attack of a name, with the options of gradient descent."""
    from defended.attacks import PGD, CertificateDescent, DegradationAttack, EpsilonPGD

    if name == "degradation":
        return DegradationAttack(PGD(**options))
    return (CertificateDescent if name == "certificate-descent" else EpsilonPGD)(**options)
