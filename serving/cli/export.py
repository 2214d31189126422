"""`defended export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from defended_cli.common import ModelFile, open_model
from defended_cli.config import Config


def export(
    model: ModelFile,
    name: Annotated[str, typer.Option(help="The model's name in the server's routes.")],
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of all models; the artefact is DIR/NAME/VERSION.")
    ] = Path("models"),
    version: Annotated[int, typer.Option(min=0, help="A positive number; 0 means the next free one.")] = 0,
    susceptibility: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Figures of `defended attack`, to keep in the manifest.")
    ] = None,
    config: Config = None,
) -> None:
    """Write a model as an artefact that TensorFlow Serving loads as it is.

    The artefact is a SavedModel with `manifest.json`: the hash of every file, epsilon and norm, what is guaranteed and
    under which assumptions. It is checked in TensorFlow's C++ loader, appears whole or not at all, and is never
    overwritten.

    ```
    defended export runs/digits/model.keras --to models --name digits
    defended export runs/digits/model.keras --to models --name digits --version 7
    ```
    """
    figures = None if susceptibility is None else json.loads(susceptibility.read_text(encoding="utf-8"))
    defended_model = open_model(model)

    from defended import serving

    version = version or serving.next_version(to, name)
    path = serving.export(defended_model, to, name=name, version=version, susceptibility=figures)
    typer.echo(f"Exported {defended_model!r}")
    typer.echo(f"to {path}")
    typer.echo(f"Next: defended audit {path} --model {model} --data ...")
