"""One training run in one folder: its settings, its history, its model; started again, it continues."""

from __future__ import annotations

import json
import math
import os
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field

from defended import datasets, zoo
from defended._io import atomic_write_text
from defended.defended_model import DefendedModel
from defended.gloro.gloro_net import GloroNet
from defended.gloro.reparametrise.sharpen import sharpen_bounds
from defended.training import callbacks
from defended.training.augmentation import RandomAffine, RandomElastic, RandomExposure
from defended.training.optimizers import BiasRateAdam

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = "model.keras"
HISTORY = "history.csv"
SETTINGS = "settings.toml"
_UNFINISHED = "unfinished"
_STEPS_PER_EXECUTION = 16

NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "2c2f": zoo.cnn_2c2f, "4c3f": zoo.cnn_4c3f, "6c2f": zoo.cnn_6c2f, "dense": zoo.dense_small,
    "liresnet": zoo.liresnet,
}  # fmt: skip
Net = Literal["2c2f", "4c3f", "6c2f", "dense", "liresnet"]
Augmentation = Literal["none", "affine", "elastic", "photo", "shift", "flip-shift"]


class TrainingSettings(BaseModel):
    """What decides a run's result.

    `epsilon` is the l2 radius defended after training, in input units; with `doubling` the run trains at twice that,
    and otherwise at `train_radius` times that. The training radius starts at `start` times epsilon, and has arrived
    after the share `ramp` of the epochs. `network`, the path of a plain `.keras` classifier with logits out, takes the
    place of `net`.

    `augment` turns, shears, scales and moves training images a little (`"affine"`, see `RandomAffine`), also bends them
    (`"elastic"`), changes them as cameras do (`"photo"`: turned and moved further, brighter or darker, of more or less
    contrast, blurred), moves them by up to an eighth of their size (`"shift"`), or also mirrors them (`"flip-shift"`).

    The learning rate falls over the run, linearly to a thousandth or, with `decay="exponential"`, by the same share at
    each step to a hundredth; biases train at `bias_rate` times it. `balance` keeps kernels in these proportions
    (`BalanceLayers`), `sharpen` ends the run with `sharpen_bounds`, and `sharpen_every` does so after every so many
    epochs (`SharpenBounds`). `bfloat16` trains in that precision where the processor and oneDNN can; bounds are proven,
    and the model answers, in the usual one.

    `validation_split` of the training data are held out (`Dataset.split`: the last ones, or whole tracks), and choose
    the best epoch of radius doubling; the test data are left for measuring.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = "digits"
    net: Net = "2c2f"
    network: str | None = None
    epsilon: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    doubling: bool = True
    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    loss: str = "trades_kl.1.5"
    decay: Literal["linear", "exponential"] = "linear"
    bias_rate: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    balance: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    sharpen: bool = False
    sharpen_every: int = Field(default=0, ge=0)
    bfloat16: bool = False
    schedule: Literal["fixed", "linear", "log"] = "linear"
    train_radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    ramp: float = Field(default=0.5, gt=0, le=1)
    augment: Augmentation = "none"
    validation_split: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    def to_toml(self) -> str:
        """Return the settings as TOML; `defended train --config` reads it back."""
        # JSON's strings, numbers and booleans are TOML's.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.model_dump(exclude_none=True).items())


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
) -> TrainingRun:
    """Train a GloRo Net as `settings` say, in `directory`; an interrupted run continues, a finished one is loaded.

    The folder gets `settings.toml`, `history.csv` (a row an epoch) and, at the end, `model.keras`. An interrupted run
    continues after its last whole epoch.

    Raises:
        ValueError: the folder holds a run with other settings, or the settings fit no network or data.
        FileNotFoundError: the data or the network are not there.
    """
    directory = Path(directory)
    require_same_settings(directory, settings)
    dataset = datasets.load(settings.data)
    if (directory / MODEL).exists():
        return TrainingRun(keras.models.load_model(directory / MODEL), dataset, directory, was_finished=True)
    keras.utils.set_random_seed(settings.seed)
    model = GloroNet(build_network(settings, dataset), epsilon=settings.epsilon)
    trained_on, held_out = dataset.split(settings.validation_split)
    steps = settings.epochs * math.ceil(len(trained_on) / settings.batch_size)
    rates = keras.optimizers.schedules
    if settings.decay == "exponential":
        rate = rates.ExponentialDecay(settings.learning_rate, steps, 0.01)
    else:
        rate = rates.PolynomialDecay(settings.learning_rate, steps, settings.learning_rate / 1000)
    model.compile(
        optimizer=BiasRateAdam(rate, settings.bias_rate),
        loss=settings.loss,
        metrics=["clean_accuracy", "vra", "rejection_rate"],
        # On CPUs oneDNN's convolutions are faster than XLA's, and half of a small net's step is Python's.
        jit_compile=False if _one_dnn() and not tf.config.list_logical_devices("GPU") else "auto",
        steps_per_execution=_STEPS_PER_EXECUTION,
    )
    unfinished = directory / _UNFINISHED
    ramp: dict[str, Any] = {"schedule": settings.schedule, "start": settings.start, "ramp": settings.ramp}
    radius: keras.callbacks.Callback
    if settings.doubling:
        radius = callbacks.RadiusDoubling(**ramp, checkpoint=unfinished / "best.weights.h5")
    else:
        radius = callbacks.EpsilonSchedule(**ramp, end=settings.train_radius)
    steering = [radius]
    if settings.balance:
        steering.append(callbacks.BalanceLayers(settings.balance))
    if settings.bfloat16:
        steering.append(_BFloat16())
    if settings.sharpen_every:
        steering.append(callbacks.SharpenBounds(settings.sharpen_every))
    if settings.sharpen or settings.sharpen_every:
        model._graph.chain("sharpen")
    # Everything that can be wrong with the settings has been seen by now, so no folder is claimed for a mistake.
    atomic_write_text(directory / SETTINGS, settings.to_toml())
    history = keras.callbacks.CSVLogger(directory / HISTORY, append=True)
    try:
        model.fit(
            **training_data(settings, dataset, trained_on, held_out),
            epochs=settings.epochs,
            # The backup comes last: a run killed among these repeats an epoch, and does not lose the best one.
            callbacks=[*steering, history, keras.callbacks.BackupAndRestore(unfinished / "backup"), *extra_callbacks],
            verbose=verbose,
        )
    finally:
        if settings.bfloat16:
            _BFloat16()._set(False)
        if history.csv_file is not None:  # Keras closes it only after a whole training
            history.csv_file.close()
    if settings.sharpen:
        sharpen_bounds(model)
    save(model, directory / MODEL)
    shutil.rmtree(unfinished, ignore_errors=True)
    return TrainingRun(model, dataset, directory, was_finished=False)


class _BFloat16(keras.callbacks.Callback):
    """Convolutions and matrix products of training in bfloat16, by oneDNN's rewriting of graphs; off before proofs.

    TensorFlow does nothing of the kind where the processor lacks the instructions.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self._set(True)

    def on_train_end(self, logs: Any = None) -> None:
        self._set(False)

    def _set(self, value: bool) -> None:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": value})


def _one_dnn() -> bool:
    """Whether oneDNN was asked for, as `defended train` does; otherwise XLA is the faster one."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1"


def training_data(
    settings: TrainingSettings, dataset: datasets.Dataset, trained_on: Array, held_out: Array
) -> dict[str, Any]:
    """The arguments of `fit` that hold the data: images to train on and images held out, by their indices."""
    x, y = dataset.x_train[trained_on], dataset.y_train[trained_on]
    validation = (dataset.x_train[held_out], dataset.y_train[held_out]) if len(held_out) else None
    if settings.augment == "none":
        return {"x": x, "y": y, "batch_size": settings.batch_size, "validation_data": validation}
    augmented = _augmentation(settings.augment, settings.seed)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=settings.seed)
    batches = batches.batch(settings.batch_size).map(lambda images, labels: (augmented(images), labels))
    return {"x": batches.prefetch(tf.data.AUTOTUNE), "shuffle": False, "validation_data": validation}


def _augmentation(name: Augmentation, seed: int) -> Callable[[Any], Any]:
    """What changes a batch of training images."""
    if name == "affine":
        return RandomAffine(seed=seed)
    if name == "elastic":
        return RandomElastic(seed=seed)
    if name == "photo":
        warp = RandomAffine(turn=0.15, shear=0.1, zoom=0.15, shift=3.0, share=0.9, seed=seed)
        exposure = RandomExposure(seed=seed + 1)
        return lambda images: exposure(warp(images))
    shift = keras.layers.RandomTranslation(0.125, 0.125, fill_mode="constant", seed=seed)
    mirror = keras.layers.RandomFlip("horizontal", seed=seed)
    if name == "shift":
        return lambda images: shift(images, training=True)
    return lambda images: mirror(shift(images, training=True), training=True)


def require_same_settings(directory: Path, settings: TrainingSettings) -> None:
    """Raise a ValueError where the folder holds a run with other settings, or a model of another making."""
    path = directory / SETTINGS
    if path.exists():
        # A run of an earlier version knew fewer settings.
        there = TrainingSettings().model_dump(mode="json") | tomllib.loads(path.read_text(encoding="utf-8"))
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
        raise FileNotFoundError(f"{path} is no file: `network` is the path of a .keras model")
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
