"""`defended reproduce`."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from defended_cli.common import flag, load_tensorflow, option
from defended_cli.config import Config


def reproduce(
    what: Annotated[
        Literal["table1", "table2", "table3", "table4", "table5", "figure2", "figure3", "figure4", "all"],
        typer.Argument(help="A table or a figure of Leino et al. 2022, or all of them."),
    ],
    quick: Annotated[bool, flag("--quick", "A tenth of the points, to see that everything works.")] = False,
    net: Annotated[
        list[str] | None, option("Your net for a case, such as cifar10-0.141=net.keras; repeatable.", "CASE=FILE")
    ] = None,
    data: Annotated[
        list[str] | None, option("Where a data set lies, such as cifar10=cifar10.npz; repeatable.", "NAME=FILE.npz")
    ] = None,
    reference: Annotated[
        Path | None, option("What the papers' authors published; default: the folder in DEFENDED_REFERENCE.", "DIR")
    ] = None,
    out: Annotated[Path, option("For the CSV files and the figures.", "DIR")] = Path("reproduction"),
    config: Config = None,
) -> None:
    """Reproduce the paper's tables and figures: its value, ours with a 95 % interval, the difference.

    Nets that ship with the package are measured beside the authors' own, where those are at hand. What is not run for
    lack of a net or of data is named at the end. The same command goes on where a killed one stopped: attacks are kept
    in DIR/unfinished until all tables are written.

    ```
    defended reproduce table1 --quick
    defended reproduce table1 --net cifar10-0.141=net.keras --data cifar10=cifar10.npz
    defended reproduce all --out reproduction
    ```
    """
    nets, sets = _pairs("--net", net), _pairs("--data", data)
    load_tensorflow()

    from defended.attacks.paper import EXPERIMENTS
    from defended.attacks.paper import reproduce as run
    from defended.attacks.paper.settings import Settings

    unfinished = out / "unfinished" / what
    settings = Settings(quick=quick, nets=nets, data=sets, reference=reference, resume=unfinished)
    found = False
    for name in EXPERIMENTS if what == "all" else [what]:
        result = run(name, settings)
        found = found or bool(result.findings)
        typer.echo(f"{result}\n")
        typer.echo(f"Written: {', '.join(map(str, result.write(out)))}\n")
    shutil.rmtree(unfinished, ignore_errors=True)
    with contextlib.suppress(OSError):  # another command's work is there
        unfinished.parent.rmdir()
    if not found:
        raise FileNotFoundError("Nothing could be run: the lines above say which nets and data are needed.")


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in given or [])
    for name, file in pairs.items():
        if not name or not file:
            raise typer.BadParameter(f"{option} takes NAME=FILE. Received: {name!r} without a file.")
    return pairs
