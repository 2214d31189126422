"""`defended export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from defended_cli.common import ModelFile, Scale, flag, load_points, open_model, option, shown_warnings
from defended_cli.config import Config

# What the library takes: by default what can be made, otherwise what was asked for.
_MODES: dict[bool | None, bool | Literal["require"]] = {None: True, True: "require", False: False}


def export(
    model: ModelFile,
    name: Annotated[str | None, option("The model's name in the server's routes; by default its own.")] = None,
    to: Annotated[Path, option("The folder of all models; the artefact is DIR/NAME/VERSION.", "DIR")] = Path("models"),
    version: Annotated[int, option("A positive number; 0 means the next free one.", min=0)] = 0,
    data: Annotated[
        str | None, option("Compare the graphs on test points of these data, not on noise.", "NAME|FILE.npz")
    ] = None,
    scale: Scale = "auto",
    limit: Annotated[int, option("Compare on only this many of them, the first ones.", min=1)] = 256,
    onnx: Annotated[
        bool | None,
        flag("--onnx/--no-onnx", "Fail without model.onnx, or leave it out; by default it is made if it can be."),
    ] = None,
    warm_up: Annotated[
        bool | None, flag("--warm-up/--no-warm-up", "The same for the records that warm up a server.")
    ] = None,
    class_names: Annotated[str | None, option("Names that the signature classify answers with.", "A,B,...")] = None,
    susceptibility: Annotated[
        Path | None, option("Figures of `defended attack`, to keep in the manifest.", "FILE.json")
    ] = None,
    training_data: Annotated[
        str | None, option("Digest of the training data, where `fit` did not record it.", "SHA256")
    ] = None,
    sign: Annotated[Path | None, option("Sign the manifest with this key of `defended keygen`.", "KEY")] = None,
    serving_files: Annotated[
        bool, flag("--serving-files/--no-serving-files", "Bring DIR/models.config and files like it up to date.")
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
    defended_model = open_model(model)
    sample = None if data is None else load_points(data, limit, scale, defended_model.standardisation)[0]

    from defended import serving
    from defended.serving.exporting.arguments import own_name

    name = name or own_name(defended_model)
    version = version or serving.next_version(to, name)
    with shown_warnings(others=False):
        path = serving.export(
            defended_model,
            to,
            name=name,
            version=version,
            sample=sample,
            onnx=_MODES[onnx],
            warm_up=_MODES[warm_up],
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
