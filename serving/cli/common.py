"""What several commands share: options, and opening what they name."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from defended_cli.options import option_for
from defended_settings.training import TrainingSettings

if TYPE_CHECKING:
    import numpy as np

    from defended.datasets import Dataset
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.manifest import Manifest
    from defended.standardisation import Standardisation

TOKEN = "DEFENDED_TOKEN"  # noqa: S105  (the name of the variable that holds a server's token)


def option(text: str, placeholder: str | None = None, **limits: Any) -> Any:
    """Return an option with its help, what help pages show in place of its value, and its limits `min` and `max`."""
    return typer.Option(help=text, metavar=placeholder, **limits)


def argument(text: str, placeholder: str) -> Any:
    """Return an argument with its help, and what help pages show in its place."""
    return typer.Argument(help=text, metavar=placeholder)


def flag(names: str, text: str) -> Any:
    """Return a switch under the names given, such as `--clip` or `--onnx/--no-onnx`, with its help."""
    return typer.Option(names, help=text)


Data: TypeAlias = option_for(TrainingSettings, "data")  # type: ignore[valid-type]
Scale: TypeAlias = option_for(TrainingSettings, "scale")  # type: ignore[valid-type]
Limit = Annotated[int, option("Use only this many test points, the first ones; 0 means all.", min=0)]
ModelFile = Annotated[Path, argument("A defended model, as `defended train` writes it.", "MODEL.keras")]


def open_model(path: Path) -> DefendedModel:
    """Load a defended model, or say why the file does not hold one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. `defended train --out DIR` writes DIR/model.keras.")
    load_tensorflow()
    import keras

    from defended.defended_model import DefendedModel

    model = keras.models.load_model(path)
    if not isinstance(model, DefendedModel):
        raise ValueError(
            f"{path} holds an undefended {type(model).__name__}. Defend it first: "
            f"defended train --network {path} --epsilon ..."
        )
    return model


def standardisation_of(place: Path | str) -> Standardisation | None:
    """Return how inputs are standardised before the model in a file or the artefact in a folder takes them."""
    load_tensorflow()
    if not Path(place).is_dir():
        return open_model(Path(place)).standardisation
    from defended import serving

    return stated_standardisation(serving.verify(place))


def stated_standardisation(manifest: Manifest) -> Standardisation | None:
    """Return how inputs are standardised before the artefact of a manifest takes them."""
    record = manifest.standardisation
    return None if record is None else record.standardisation()


def load_points(
    data: str, limit: int, scale: str, standardisation: Standardisation | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `limit` test inputs and labels of a data set, all of them for 0."""
    dataset = load_test_data(data, limit, scale, standardisation)
    return dataset.x_test, dataset.y_test


def load_test_data(data: str, limit: int, scale: str, standardisation: Standardisation | None = None) -> Dataset:
    """Return a data set with the first `limit` of its test inputs, all of them for 0, and say how it was scaled.

    Features are standardised where a model asks for it.
    """
    load_tensorflow()
    from defended import datasets

    dataset = datasets.load(data, scale)
    say_scaling(dataset)
    end = limit or None
    if standardisation is not None:
        typer.echo(f"Data of {dataset.name}: features are standardised as in the model's training.")
        dataset = dataset._replace(x_test=standardisation(dataset.x_test))
    return dataset._replace(x_test=dataset.x_test[:end], y_test=dataset.y_test[:end])


def say_scaling(dataset: Dataset) -> None:
    """Say what a data set's numbers were divided by; on stdout, since an error is the only line on stderr."""
    if dataset.scaling is not None:
        typer.echo(f"Data of {dataset.name}: {dataset.scaling}.")


def warn_of_units(model: DefendedModel, x: np.ndarray) -> None:
    """Say on stderr where inputs are in other units than those that the model was trained on."""
    known = model.training_range
    said = None if known is None else known.complaint(x, float(model.epsilon), model.norm)
    if said is not None:
        typer.echo(f"WARNING: {said}", err=True)


def print_rate(name: str, rate: float, interval: Sequence[float], confidence: float) -> None:
    """Print a rate and its interval in a line of their own."""
    low, high = interval
    typer.echo(f"{name.replace('_', ' '):22} {rate:7.2%}   {confidence:.0%} interval [{low:.2%}, {high:.2%}]")


@contextlib.contextmanager
def shown_warnings(others: bool) -> Iterator[None]:
    """Print the block's warnings of `defended` as single lines on stderr; `others` are shown as ever, or not at all."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.startswith("defended"):
                typer.echo(f"note: {message}", err=True)
            elif others:
                as_ever(message, category, *place, **more)

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def load_tensorflow() -> None:
    """Import TensorFlow without what it writes about its build and a missing GPU, unless that is asked for.

    Neither Python's streams nor TF_CPP_MIN_LOG_LEVEL reach those lines: C++ writes them before its log is set up. That
    variable set to 0 shows them; an import that fails shows them too.
    """
    if "tensorflow" in sys.modules:
        return
    wanted = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.nullcontext() if wanted else stderr_held_back():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hold back everything that the process writes to file descriptor 2; hand it over if the block fails."""
    sys.stderr.flush()
    descriptor = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(descriptor, held.read())
            raise
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)
