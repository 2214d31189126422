"""`defended attack`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from defended_cli.common import Data, Limit, ModelFile, Scale, flag, load_test_data, open_model, option, warn_of_units
from defended_cli.config import Config
from defended_cli.engine import Address, EngineName, Threads, Workers, opened, start

if TYPE_CHECKING:
    from defended.attacks.core.attack import Attack


def attack(
    model: ModelFile,
    data: Data = "digits",
    scale: Scale = "auto",
    attack: Annotated[
        Literal[
            "certificate-descent",
            "ensemble",
            "degradation",
            "epsilon-pgd",
            "smoothed-pgd",
            "carlini-wagner",
            "square",
            "decision",
        ],
        option(
            "certificate-descent is quick and finds most; ensemble goes on where it failed. The paper's: "
            "degradation, Algorithm 3.1 with PGD (carlini-wagner, smoothed-pgd: with those), and epsilon-pgd. What "
            "outsiders can do: square sees scores, decision only labels and rejections."
        ),
    ] = "certificate-descent",
    steps: Annotated[int, option("Gradient steps of each start.", min=1)] = 50,
    restarts: Annotated[int, option("Starts.", min=1)] = 1,
    queries: Annotated[int, option("Queries for each input, at most: square and decision.", min=1)] = 2000,
    clip: Annotated[bool, flag("--clip", "Keep perturbed inputs in 0...1.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Limit = 0,
    resume: Annotated[
        Path | None, option("Keep finished parts there; the same command continues from them.", "DIR")
    ] = None,
    time_budget: Annotated[
        float | None, option("Time for attacking; the rest counts as not degraded.", "SECONDS", min=0.001)
    ] = None,
    records: Annotated[
        Path | None, option("One row per input: radius, verdict, degraded, distance.", "FILE.parquet")
    ] = None,
    by_class: Annotated[
        Path | None, option("Print the figures of each class, the most degradable first, and write them.", "FILE.csv")
    ] = None,
    engine: EngineName = None,
    workers: Workers = None,
    threads: Threads = None,
    ray_address: Address = None,
    out: Annotated[Path | None, option("Default: susceptibility.json beside the model.", "FILE.json")] = None,
    config: Config = None,
) -> None:
    """Measure how far a model can be degraded: what the attack finds, and what the certificate leaves open.

    The lower bound of the false positive rate (FPR) is the share of answers that the attack forced into ⊥, each one
    checked; the upper bound is the share that is not proven to stay answered within eps. The truth lies between.

    ```
    defended attack runs/digits/model.keras --data digits
    defended attack runs/mnist/model.keras --data mnist --limit 2000 --steps 100
    defended attack runs/signs/model.keras --data gtsrb --by-class classes.csv
    defended attack runs/mnist/model.keras --data mnist --resume runs/attack --engine ray --workers 8
    ```
    """
    start(engine, threads)
    defended_model = open_model(model)
    dataset = load_test_data(data, limit, scale, defended_model.standardisation)
    x, y = dataset.x_test, dataset.y_test
    warn_of_units(defended_model, x)

    from defended._io import atomic_write_text, canonical_json
    from defended.attacks.measurement.susceptibility import susceptibility

    gradient = {"steps": steps, "restarts": restarts, "clip": (0.0, 1.0) if clip else None, "seed": seed}
    chosen = make_attack(attack, gradient, min(3, defended_model.num_classes - 1), queries)
    if engine is not None and resume is None:
        raise ValueError("--engine keeps its pieces in a directory: name one with --resume DIR.")
    with opened(engine, defended_model, workers=workers, threads=threads, address=ray_address) as opened_engine:
        if opened_engine is None or resume is None:
            result = susceptibility(defended_model, x, y, chosen, resume=resume, time_budget=time_budget)
        else:
            from defended.serving.cluster.measure import measure

            result = measure(opened_engine, defended_model, x, y, chosen, out=resume, time_budget=time_budget)
    path = out or model.with_name("susceptibility.json")
    typer.echo(result.to_table())
    if by_class is not None:
        classes = result.by_class(dataset.class_names)
        typer.echo(f"\n{classes.sorted()}\n")
        atomic_write_text(by_class, classes.to_csv())
    atomic_write_text(path, canonical_json(result.summary()))
    typer.echo(f"Figures: {path}")
    if records is not None:
        typer.echo(f"Records: {result.records.to_parquet(records, result.summary())}")


def make_attack(name: str, gradient: dict[str, Any], targets: int, queries: int) -> Attack:
    """Return the attack of a name; `gradient` holds the options of those that follow a gradient."""
    from defended import attacks

    steps, restarts, clip, seed = (gradient[key] for key in ("steps", "restarts", "clip", "seed"))
    longer = gradient | {"steps": 2 * steps, "restarts": restarts + 2, "targets": targets}
    black_box: dict[str, Any] = {"queries": queries, "clip": clip, "seed": seed}
    descent = functools.partial(attacks.CertificateDescent, early_stop=True)
    makers: dict[str, Callable[[], Attack]] = {
        "certificate-descent": lambda: descent(**gradient),
        "ensemble": lambda: attacks.Ensemble([descent(**gradient), descent(**longer)]),
        "smoothed-pgd": lambda: attacks.DegradationAttack(attacks.SmoothedPGD(**gradient)),
        "degradation": lambda: attacks.DegradationAttack(attacks.PGD(**gradient)),
        "epsilon-pgd": lambda: attacks.EpsilonPGD(**gradient),
        "carlini-wagner": lambda: attacks.DegradationAttack(attacks.CarliniWagner(steps=steps, clip=clip)),
        "square": lambda: attacks.SquareAttack(objective="certificate", **black_box),
        "decision": lambda: attacks.DecisionAttack(**black_box),
    }
    return makers[name]()
