"""`defended export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from defended_cli.common import ModelFile, open_model, shown_warnings, test_points
from defended_cli.config import Config


def export(
    model: ModelFile,
    name: Annotated[str, typer.Option(help="The model's name in the server's routes.")],
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of all models; the artefact is DIR/NAME/VERSION.")
    ] = Path("models"),
    version: Annotated[int, typer.Option(min=0, help="A positive number; 0 means the next free one.")] = 0,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.npz", help="Compare the graphs on test points of these data, not on noise."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Compare on only this many of them, the first ones.")] = 256,
    onnx: Annotated[
        bool | None,
        typer.Option(
            "--onnx/--no-onnx", help="Fail without model.onnx, or leave it out; by default it is made if it can be."
        ),
    ] = None,
    warm_up: Annotated[
        bool | None, typer.Option("--warm-up/--no-warm-up", help="The same for the records that warm up a server.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Names that the signature classify answers with.")
    ] = None,
    susceptibility: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Figures of `defended attack`, to keep in the manifest.")
    ] = None,
    training_data: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Digest of the training data, where `fit` did not record it.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the manifest with this key of `defended keygen`.")
    ] = None,
    serving_files: Annotated[
        bool,
        typer.Option(
            "--serving-files/--no-serving-files", help="Bring DIR/models.config and files like it up to date."
        ),
    ] = True,
    config: Config = None,
) -> None:
    """Write a model as an artefact that TensorFlow Serving loads as it is.

    The artefact is a SavedModel and an ONNX file with `manifest.json`: the hash of every file, epsilon and norm, what
    is guaranteed and under which assumptions, and a model card. Keras, TensorFlow's C++ loader and onnxruntime must
    answer alike. It appears whole or not at all, and is never overwritten. DIR gets what TensorFlow Serving reads:
    `models.config`, batching and monitoring files, `compose.yaml`, `kserve/NAME.yaml`; a file that you edited stays.

    ```
    defended export runs/digits/model.keras --to models --name digits --data digits
    defended export runs/digits/model.keras --to models --name digits --version 7 --sign release.key
    ```
    """
    figures = None if susceptibility is None else json.loads(susceptibility.read_text(encoding="utf-8"))
    sample = None if data is None else test_points(data, limit)[0]
    defended_model = open_model(model)

    from defended import serving

    version = version or serving.next_version(to, name)
    with shown_warnings(others=False):
        path = serving.export(
            defended_model,
            to,
            name=name,
            version=version,
            sample=sample,
            onnx=_mode(onnx),
            warm_up=_mode(warm_up),
            class_names=None if class_names is None else [part.strip() for part in class_names.split(",")],
            susceptibility=figures,
            training_data=training_data,
            signing_key=sign,
            serving_files=serving_files,
        )
    manifest = serving.verify(path)
    typer.echo(f"Exported {defended_model!r}")
    typer.echo(f"to {path}")
    for part in (manifest.onnx, manifest.warm_up):
        if part is not None and part.omitted is not None:
            typer.echo(f"Left out: {part.omitted}")
    typer.echo(f"Next: defended audit {path} --model {model} --data ...")


def _mode(wanted: bool | None) -> bool | Literal["require"]:
    """Return what the library takes: by default what can be made, otherwise what was asked for."""
    if wanted is None:
        return True
    return "require" if wanted else False
