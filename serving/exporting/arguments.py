"""The arguments of an export, checked before anything is written."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from defended._io import canonical_json
from defended.serving.artefacts.manifest import MAX_VERSION, NAME, DataRecord

if TYPE_CHECKING:
    from defended.attacks.measurement.result import Susceptibility
    from defended.defended_model import DefendedModel


# The number of random inputs; fewer where each takes thousands of evaluations.
_SAMPLES, _SAMPLES_WHERE_SAMPLED = 64, 4


def check_name(model: DefendedModel, name: str | None) -> str:
    """Return the name to export a model by: the one given, or its own, cleaned.

    Raises:
        TypeError, ValueError: the model is not defended, or the name does not fit.
    """
    from defended.defended_model import DefendedModel

    if not isinstance(model, DefendedModel):
        raise TypeError(
            "`model` must be a defended model, such as `GloroNet(network, epsilon=0.3)`. "
            f"Received: {type(model).__name__}."
        )
    if name is None:
        return own_name(model)
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise ValueError(
            "`name` must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit, as it becomes "
            f"a folder and a part of the server's routes. Received: {name!r}."
        )
    return name


def own_name(model: DefendedModel) -> str:
    """Return the model's own name as a folder and a route may have it: runs of other characters become one `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(model.name)).strip("-._")[:128] or "model"


def check_version(version: int) -> int:
    """Return the version as an int.

    Raises:
        ValueError: it is not a whole number from 1 to 2^63 - 1.
    """
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
