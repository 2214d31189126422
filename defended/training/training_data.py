"""The data of a training run: which images are trained on, which are held out, and how they are changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from defended.datasets import Array, Dataset
from defended.training.augmentation import RandomAffine, RandomElastic, RandomExposure, RandomMirror
from defended_settings.training import TrainingSettings

MIRRORED_SIGNS = {sign: sign for sign in (11, 12, 13, 15, 17, 18, 22, 26, 30, 35)} | {
    19: 20, 20: 19, 33: 34, 34: 33, 36: 37, 37: 36, 38: 39, 39: 38
}  # fmt: skip
"""Of the German road signs' 43 classes, what each shows in the mirror: themselves, or the other of a pair."""


def training_data(settings: TrainingSettings, dataset: Dataset, trained_on: Array, held_out: Array) -> dict[str, Any]:
    """Return the arguments of `fit` that hold the data: images to train on and images held out, by their indices."""
    x, y = dataset.x_train[trained_on], dataset.y_train[trained_on]
    validation = (dataset.x_train[held_out], dataset.y_train[held_out]) if len(held_out) else None
    if settings.augment == "none":
        return {"x": x, "y": y, "batch_size": settings.batch_size, "validation_data": validation}
    changed = augmentation(settings.augment, settings.seed)
    mirrored = _mirror(settings, dataset)

    def prepared(images: Any, labels: Any) -> tuple[Any, Any]:
        images, labels = mirrored(images, labels)
        return changed(images), labels

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=settings.seed)
    batches = batches.batch(settings.batch_size).map(prepared)
    options = tf.data.Options()
    options.autotune.enabled = False  # or each epoch ends with a wait for the tuning thread, up to a minute
    return {"x": batches.prefetch(2).with_options(options), "shuffle": False, "validation_data": validation}


def _mirror(settings: TrainingSettings, dataset: Dataset) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return what shows images, and their labels, in the mirror: of road signs those that stay signs, others not."""
    if settings.augment != "signs":
        return lambda images, labels: (images, labels)
    if dataset.num_classes != 43:
        raise ValueError(
            f'`augment = "signs"` mirrors the German road signs, 43 classes (`data = "gtsrb"`), and these data have '
            f'{dataset.num_classes}. Take "photo", which changes images in the same way otherwise.'
        )
    return RandomMirror(dataset.num_classes, MIRRORED_SIGNS, seed=settings.seed + 2)


def augmentation(name: str, seed: int) -> Callable[[Any], Any]:
    """Return what changes a batch of training images, by the name that the setting `augment` has for it.

    `"affine"` turns, shears, scales and moves them a little (`RandomAffine`); `"elastic"` also bends them; `"photo"`
    changes them as cameras do: turned and moved further, brighter or darker, of more or less contrast, blurred;
    `"signs"` does that with road signs, further still, of which `training_data` mirrors those that stay signs;
    `"shift"` moves them by up to an eighth of their size, and `"flip-shift"` also mirrors them.
    """
    if name == "affine":
        return RandomAffine(seed=seed)
    if name == "elastic":
        return RandomElastic(seed=seed)
    if name in ("photo", "signs"):
        turn, shear, zoom, shift = (0.25, 0.15, 0.25, 4.0) if name == "signs" else (0.15, 0.1, 0.15, 3.0)
        warp = RandomAffine(turn, shear, zoom, shift, share=0.9, seed=seed)
        exposure = RandomExposure(seed=seed + 1)
        return lambda images: exposure(warp(images))
    moved = keras.layers.RandomTranslation(0.125, 0.125, fill_mode="constant", seed=seed)
    mirror = keras.layers.RandomFlip("horizontal", seed=seed)
    if name == "shift":
        return lambda images: moved(images, training=True)
    return lambda images: mirror(moved(images, training=True), training=True)
