"""The arguments of an export, checked before anything is written."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from defended._io import canonical_json
from defended.serving.artefacts.manifest import MAX_VERSION, NAME, DataRecord
from defended.serving.exporting.agreement import BOTTOM

if TYPE_CHECKING:
    from defended.attacks.measurement.result import Susceptibility
    from defended.defended_model import DefendedModel


# The number of random inputs; fewer where each takes thousands of evaluations.
_SAMPLES, _SAMPLES_WHERE_SAMPLED = 64, 4


def check_version(model: DefendedModel, name: str, version: int) -> int:
    """Return the version as an int, after checking the model's type and its name.

    Raises:
        TypeError, ValueError: the model, the name or the version does not fit.
    """
    from defended.defended_model import DefendedModel

    if not isinstance(model, DefendedModel):
        raise TypeError(
            "`model` must be a defended model, such as `GloroNet(network, epsilon=0.3)`. "
            f"Received: {type(model).__name__}."
        )
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise ValueError(
            "`name` must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit, as it becomes "
            f"a folder and a part of the server's routes. Received: {name!r}."
        )
    try:
        number = operator.index(version)
    except TypeError:
        number = 0
    if isinstance(version, (bool, np.bool_)) or not 1 <= number <= MAX_VERSION:
        raise ValueError(f"`version` must be a positive integer, such as 1. Received: {version!r}.")
    return number


def check_backend() -> None:
    """Refuse to export under a Keras backend other than TensorFlow.

    Raises:
        RuntimeError: saying how to export a model that was trained elsewhere.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"An export is made of TensorFlow's graphs, and Keras runs on {keras.backend.backend()!r}. Save the model "
            f"here, `model.save('model.keras')`, and export it in a process with KERAS_BACKEND=tensorflow: "
            f"`defended.load_model('model.keras')`, or `defended export`."
        )


def check_sample(model: DefendedModel, sample: np.ndarray | None) -> np.ndarray:
    """Return the inputs on which a graph is compared with the model: those given, checked, or random ones in [0, 1]."""
    shape = tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(f"`model` must have a fixed input shape to be certified. Received: {shape}.")
    if sample is None:
        number = _SAMPLES if model.sampling is None else _SAMPLES_WHERE_SAMPLED
        return np.random.default_rng(0).uniform(size=(number, *shape)).astype(np.float32)
    sample = np.asarray(sample)
    if sample.dtype != np.float32 or sample.shape[1:] != shape or sample.size == 0:
        raise ValueError(
            f"`sample` must be at least one float32 input of shape {list(shape)}, the batch axis first. "
            f"Received: {sample.dtype} of shape {list(sample.shape)}."
        )
    if not np.isfinite(sample).all():
        raise ValueError("`sample` must be finite. Received values that are not; leave those inputs out.")
    return sample


def check_labels(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes, one for each and all different, or None where none are given."""
    if class_names is None:
        return None
    names = tuple(class_names)
    fits = not isinstance(class_names, str) and all(isinstance(name, str) and name.strip() for name in names)
    if not fits or len(names) != num_classes or len(set(names)) != num_classes or BOTTOM in names:
        raise ValueError(
            f"`class_names` must be {num_classes} different texts, none of them empty or {BOTTOM!r}, which stands for "
            f"a rejection. Received: {class_names!r}."
        )
    return names


def check_data(model: DefendedModel, given: Any) -> tuple[DataRecord, ...]:
    """Return the records of the data that the model was trained on: as given, or as its `fit` recorded them."""
    if given is None:
        return tuple(DataRecord(**record) for record in model.training_data)
    try:
        items = [given] if isinstance(given, str | Mapping) else list(given)
        records = ({"sha256": item} if isinstance(item, str) else dict(item) for item in items)
        return tuple(DataRecord.model_validate(record) for record in records)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`training_data` must be the SHA-256 of the data (64 hexadecimal digits, such as those of "
            "`defended.provenance.data_digest(x, y)`), a mapping with `sha256` and perhaps `points` and `name`, or "
            f"several of them. Received: {given!r}."
        ) from error


def check_mode(argument: str, value: Any) -> bool | str:
    """Return the mode: True, False, or "require"."""
    if value is True or value is False or value == "require":
        return value
    raise ValueError(f"`{argument}` must be True (where it can be made), False or 'require'. Received: {value!r}.")


def figures_of(susceptibility: Susceptibility | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the figures of a measurement, ready for JSON, or None where none is given."""
    from defended.attacks.measurement.result import Susceptibility

    if susceptibility is None:
        return None
    figures = susceptibility.summary() if isinstance(susceptibility, Susceptibility) else susceptibility
    if not isinstance(figures, Mapping):
        raise TypeError(
            "`susceptibility` must be a mapping or the result of `defended.attacks.susceptibility`. "
            f"Received: {type(susceptibility).__name__}."
        )
    return check_json("susceptibility", dict(figures))


def check_json(argument: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return `content`, or raise where JSON cannot hold it."""
    try:
        canonical_json(content)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must hold what JSON can: text, finite numbers, booleans, None, lists, dicts ({error})."
        ) from error
    return content
