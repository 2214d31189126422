"""One training run in one folder: its settings, its history, its model; started again, it continues."""

from __future__ import annotations

import math
import os
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from defended import datasets, zoo
from defended._io import atomic_write_text
from defended.defended_model import DefendedModel
from defended.gloro.gloro_net import GloroNet
from defended.gloro.reparametrise.chain import chain_of, is_chain
from defended.gloro.reparametrise.sharpen import sharpen_bounds
from defended.input_range import InputRange
from defended.standardisation import Standardisation
from defended.training.bfloat16 import BFloat16Training, bfloat16_or_warning
from defended.training.optimizers import BiasRateAdam
from defended.training.recipe import steering
from defended.training.training_data import training_data
from defended_settings.training import TrainingSettings

MODEL = "model.keras"
HISTORY = "history.csv"
SETTINGS = "settings.toml"
_UNFINISHED = "unfinished"
_STEPS_PER_EXECUTION = 16

NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "2c2f": zoo.cnn_2c2f, "4c3f": zoo.cnn_4c3f, "6c2f": zoo.cnn_6c2f, "dense": zoo.dense_small,
    "liresnet": zoo.liresnet,
}  # fmt: skip


class TrainingRun(NamedTuple):
    """A finished run: the final model, the data it saw, and the folder that holds them."""

    model: DefendedModel
    dataset: datasets.Dataset
    directory: Path
    was_finished: bool


def train(
    settings: TrainingSettings,
    directory: str | os.PathLike[str],
    *,
    extra_callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
    started: Callable[[datasets.Dataset], object] = lambda dataset: None,
) -> TrainingRun:
    """Train a GloRo Net as `settings` say, in `directory`; an interrupted run continues, a finished one is loaded.

    The folder gets `settings.toml`, `history.csv` (a row for each epoch) and, at the end, `model.keras`. An interrupted
    run continues after its last whole epoch. `started` is called with the data when the training begins.

    Raises:
        ValueError: when the folder holds a run with other settings, or the settings do not fit the network or the data.
        FileNotFoundError: when the data or the network are not there.
    """
    directory = Path(directory)
    said = settings.model_fields_set
    settings = resumed(settings, directory)
    dataset = datasets.load(settings.data, settings.scale)
    settings = settings.settled(dataset.x_train.shape[1:])
    require_same_settings(directory, settings)
    if (directory / MODEL).exists():
        finished = keras.models.load_model(directory / MODEL)
        return TrainingRun(finished, standardised(dataset, finished), directory, was_finished=True)
    keras.utils.set_random_seed(settings.seed)
    network = build_network(settings, dataset)
    model = GloroNet(network, epsilon=settings.epsilon, second_look=settings.second_look)
    settings = _fitting(settings, model, said)
    trained_on, held_out = dataset.split(settings.validation_split)
    if settings.standardise:
        model.standardisation = Standardisation.of(dataset.x_train[trained_on])
        dataset = standardised(dataset, model)
    batches = math.ceil(len(trained_on) / settings.batch_size)
    model.compile(
        optimizer=BiasRateAdam(_learning_rate(settings, settings.epochs * batches), settings.bias_rate),
        loss=settings.loss,
        metrics=["clean_accuracy", "vra", "rejection_rate"],
        # On CPUs oneDNN's convolutions are faster than XLA's, and half of a small net's step is Python's.
        jit_compile=False if _one_dnn() and not tf.config.list_logical_devices("GPU") else "auto",
        steps_per_execution=min(_STEPS_PER_EXECUTION, batches),  # the progress bar counts whole executions
    )
    unfinished = directory / _UNFINISHED
    bfloat16 = settings.bfloat16 and bfloat16_or_warning()
    moving = [*steering(settings, unfinished / "best.weights.h5"), *([BFloat16Training()] if bfloat16 else [])]
    # Everything that can be wrong with the settings has been seen by now, so no folder is claimed for a mistake.
    atomic_write_text(directory / SETTINGS, settings.to_toml())
    started(dataset)
    history = keras.callbacks.CSVLogger(directory / HISTORY, append=True)
    try:
        model.fit(
            **training_data(settings, dataset, trained_on, held_out),
            epochs=settings.epochs,
            # The backup comes last: a run killed among these repeats an epoch, and does not lose the best one.
            callbacks=[*moving, history, keras.callbacks.BackupAndRestore(unfinished / "backup"), *extra_callbacks],
            verbose=verbose,
        )
    finally:
        if bfloat16:
            BFloat16Training().on_train_end()
        if history.csv_file is not None:  # Keras closes it only after a whole training
            history.csv_file.close()
    model.training_range = InputRange.of(dataset.x_train)  # augmented images reach `fit` as a stream
    if settings.sharpen:
        sharpen_bounds(model)
    save(model, directory / MODEL)
    shutil.rmtree(unfinished, ignore_errors=True)
    return TrainingRun(model, dataset, directory, was_finished=False)


def standardised(dataset: datasets.Dataset, model: DefendedModel) -> datasets.Dataset:
    """Return the data as the model takes them."""
    scaled = model.standardisation
    if scaled is None:
        return dataset
    return dataset._replace(x_train=scaled(dataset.x_train), x_test=scaled(dataset.x_test))


def resumed(settings: TrainingSettings, directory: Path) -> TrainingSettings:
    """Return the settings with what was left unsaid as a run that is in the folder has it."""
    path = directory / SETTINGS
    if not path.exists():
        return settings
    there = tomllib.loads(path.read_text(encoding="utf-8")) | {"preset": "none"}
    unsaid = {name: value for name, value in there.items() if name not in settings.model_fields_set}
    return TrainingSettings(**{**settings.model_dump(exclude_unset=True), **unsaid, "preset": "none"})


def _fitting(settings: TrainingSettings, model: GloroNet, said: set[str]) -> TrainingSettings:
    """Return the settings without what nobody asked for and the network cannot have.

    Raises:
        ValueError: where sharpening was asked for, and the network is not a chain of layers.
    """
    if (settings.sharpen or settings.sharpen_every) and not is_chain(model):
        if said & {"sharpen", "sharpen_every"}:
            chain_of(model, "sharpen")
        return settings.model_copy(update={"sharpen": False, "sharpen_every": 0})
    return settings


def _learning_rate(settings: TrainingSettings, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    schedules, first = keras.optimizers.schedules, settings.learning_rate
    if settings.decay == "exponential":
        return schedules.ExponentialDecay(first, steps, 0.01)
    return schedules.PolynomialDecay(first, steps, first / 1000)


def _one_dnn() -> bool:
    """Return whether oneDNN was asked for, as `defended train` does; otherwise XLA is faster."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1"


def require_same_settings(directory: Path, settings: TrainingSettings) -> None:
    """Raise a ValueError where the folder holds a run with other settings, or a model that no run made."""
    path = directory / SETTINGS
    if path.exists():
        # A run of an earlier version knew fewer settings.
        there = TrainingSettings().model_dump(mode="json") | tomllib.loads(path.read_text(encoding="utf-8"))
        there["preset"] = settings.preset  # all that it decides is written down
        changed = [key for key, value in settings.model_dump(mode="json").items() if there.get(key) != value]
        if changed:
            what = ", ".join(f"{key} = {there.get(key)!r}" for key in changed)
            raise ValueError(
                f"{directory} holds a run with other settings: {what}. Choose another folder for this one."
            )
    elif (directory / MODEL).exists():
        raise ValueError(f"{directory / MODEL} was not made by a training run: choose another folder for this one.")


def build_network(settings: TrainingSettings, dataset: datasets.Dataset) -> keras.Model:
    """Return the untrained network of the settings, for the shape and the classes of the data."""
    if settings.network is None:
        return NETWORKS[settings.net](input_shape=dataset.x_train.shape[1:], num_classes=dataset.num_classes)
    path = Path(settings.network)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: `network` is the path of a .keras model")
    network = keras.models.load_model(path, compile=False)
    if isinstance(network, DefendedModel):
        raise ValueError(
            f"{path} is a {type(network).__name__} already; `network` wants the plain classifier, logits out"
        )
    return network


def save(model: keras.Model, path: Path) -> None:
    """Save a model so that the path never names half a file."""
    partial = path.with_name(f".partial-{path.name}")
    model.save(partial)
    partial.replace(path)
