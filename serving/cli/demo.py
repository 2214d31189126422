"""`defended demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from defended_cli.common import load_tensorflow, option
from defended_cli.config import Config


def demo(
    out: Annotated[Path, option("Where everything goes.", "DIR")] = Path("defended-demo"),
    seed: Annotated[int, option("Seed of the initial weights, the batches and the attack.", min=0)] = 0,
    epochs: Annotated[int, option("Epochs of each of the two trainings.", min=1)] = 60,
    config: Config = None,
) -> None:
    """Show the whole path on small digits, offline: train, attack, compare, export, audit.

    One net is trained at eps and one with radius doubling. The table sets what they guarantee beside what an attacker
    can do to them; the better one by VRA at 2 eps is exported, and the artefact audited. It takes under three minutes
    on two cores, and downloads nothing. A second run finds the trained nets and exports the next version.

    ```
    defended demo
    defended demo --out seed-1 --seed 1
    ```
    """
    load_tensorflow()

    from defended.serving.demo import demonstrate

    demonstrate(out, seed=seed, epochs=epochs)
