"""A defended model, exported as a directory that TensorFlow Serving loads as it is."""

from __future__ import annotations

import operator
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defended._io import atomic_write_text, sha256_file
from defended._version import __version__
from defended.serving.agreement import SCORE_DRIFT_BOUND, require_agreement, require_rejection
from defended.serving.canonical import canonical_json
from defended.serving.cpp_loader import CppSession
from defended.serving.graph_ops import check_ops, list_ops
from defended.serving.manifest import (
    MANIFEST,
    MAX_VERSION,
    NAME,
    CheckRecord,
    FileRecord,
    Manifest,
    SamplingRecord,
    files_below,
)
from defended.serving.staging import staged

if TYPE_CHECKING:
    from defended import DefendedModel
    from defended.attacks import Susceptibility

SIGNATURES = {
    "serving_default": ("label", "rejected", "scores"),
    "audit": ("label", "rejected", "scores", "certified_radius", "availability_radius", "scores_with_bottom"),
}

# Fewer where each takes thousands of evaluations.
_SAMPLES, _SAMPLES_WHERE_SAMPLED, _BATCH = 64, 4, 256


def export(
    model: DefendedModel,
    directory: str | os.PathLike[str],
    name: str = "digits",
    version: int = 1,
    *,
    sample: np.ndarray | None = None,
    susceptibility: Susceptibility | Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a SavedModel with a manifest, check it as a server loads it, and rename it into place.

    The artefact is `directory/name/version`. `serving_default` takes `image` (float32 `[batch, *input_shape]`), gives
    `label` (int64, -1 where rejected), `rejected` (bool) and `scores` (`[batch, m]`); `audit` adds `certified_radius`,
    `availability_radius` and `scores_with_bottom`, which help attackers and so are not in the default answer, and
    what else the defence tells of a verdict (`model.details`): a smoothed model's `samples_used`, for one.
    A smoothed model draws its noise in the graph, from the system's entropy at every run, whatever its `seed`.
    An artefact appears whole or not at all, and an existing one is never replaced.

    Args:
        model: a defended model; it is finalized if it is not final yet, so its bounds are proven ones.
        directory: the folder of all models; made where it is missing.
        name: the model's name in the server's routes: letters, digits, `.`, `_`, `-`, beginning with one of the former.
        version: a positive integer; TensorFlow Serving serves the largest.
        sample: float32 `[n, *input_shape]`, inputs on which the artefact is compared with the model; by default 64
            random ones in [0, 1], of a smoothed model 4. Give real ones where there are any.
        susceptibility: figures to keep in the manifest, a mapping or the result of `defended.attacks.susceptibility`.
        metadata: anything else to keep there that JSON can hold.

    Returns:
        The artefact's path.

    Raises:
        FileExistsError: the artefact exists, or appeared meanwhile; the message names the next free version.
        NotADirectoryError, PermissionError: `directory` cannot be written.
        TypeError, ValueError: an argument does not fit, before anything is written.
        ForbiddenOpError: the network holds an operation that an artefact may not hold.
        AgreementError, CppLoaderError: the exported graph does not answer as the model does, or does not load.
    """
    version = _check_arguments(model, name, version)
    sample = check_sample(model, sample)
    figures = None if susceptibility is None else _check_json("susceptibility", _as_mapping(susceptibility))
    notes = _check_json("metadata", dict(metadata or {}))
    target = Path(directory) / name / str(version)
    try:
        with staged(target) as partial:
            if not model.is_final:
                model.finalize()
            _save(model, partial)
            ops = list_ops(partial)
            check_ops(ops, sampled=model.sampling is not None)
            with CppSession(partial) as session:
                drift = require_agreement(model, sample, session.run_batches("audit", sample, _BATCH))
                require_rejection(session, sample[:1], model.sampling is not None)
                signatures = dict(session.signatures)
            manifest = Manifest(
                name=name,
                version=version,
                created=datetime.now(UTC).replace(microsecond=0),
                defence=type(model).__name__,
                norm=model.norm,
                epsilon=float(model.epsilon),
                num_classes=int(model.num_classes),
                certificate_method=model.certificate_method,
                certificate_assumptions=tuple(model.certificate_assumptions),
                sampling=None if model.sampling is None else SamplingRecord(**model.sampling),
                signatures=signatures,
                ops=ops,
                packages=_packages(),
                check=CheckRecord(samples=len(sample), score_drift=drift, score_drift_bound=SCORE_DRIFT_BOUND),
                susceptibility=figures,
                metadata=notes,
                files={
                    relative: FileRecord(sha256=sha256_file(path), size=path.stat().st_size)
                    for relative, path in files_below(partial).items()
                },
            )
            atomic_write_text(partial / MANIFEST, manifest.sealed().to_json())
    except FileExistsError as error:
        if error.filename != str(target):
            raise _unusable(directory, error) from error
        raise FileExistsError(
            error.errno, f"{error.strerror}: export version {next_version(directory, name)} instead", str(target)
        ) from None
    except (NotADirectoryError, PermissionError) as error:
        raise _unusable(directory, error) from error
    return target


def next_version(directory: str | os.PathLike[str], name: str) -> int:
    """Return one more than the largest version of a model below `directory`, 1 where there is none."""
    parent = Path(directory) / name
    found = [int(path.name) for path in parent.glob("*") if path.name.isascii() and path.name.isdecimal()]
    return 1 + max(found, default=0)


def _check_arguments(model: DefendedModel, name: str, version: int) -> int:
    from defended import DefendedModel

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


def check_sample(model: DefendedModel, sample: np.ndarray | None) -> np.ndarray:
    """Inputs to compare a deployed graph with the model on: those given, checked, or random ones in [0, 1]."""
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


def _as_mapping(figures: Any) -> dict[str, Any]:
    from defended.attacks import Susceptibility

    if isinstance(figures, Susceptibility):
        return figures.summary()
    if isinstance(figures, Mapping):
        return dict(figures)
    raise TypeError(
        "`susceptibility` must be a mapping or the result of `defended.attacks.susceptibility`. "
        f"Received: {type(figures).__name__}."
    )


def _check_json(argument: str, content: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(content)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must hold what JSON can: text, finite numbers, booleans, None, lists, dicts ({error})."
        ) from error
    return content


def _save(model: DefendedModel, directory: Path) -> None:
    """Save the deployed graph and the variables that it reads, the model itself kept out.

    A module that holds a Keras model loads in Python and not in the C++ loader, which looks for variables under the
    names that Keras gave them; this one holds the bare variables only, and of these the ones that answering takes.
    """
    import tensorflow as tf

    image = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")

    def signature(names: tuple[str, ...]) -> Any:
        def answer(image: Any) -> dict[str, Any]:
            outputs = model.deployed(image)
            return {name: outputs[name] for name in names}

        return tf.function(answer, input_signature=[image], autograph=False).get_concrete_function()

    names = SIGNATURES | {"audit": (*SIGNATURES["audit"], *model.details)}
    functions = {name: signature(outputs) for name, outputs in names.items()}
    module = tf.Module()
    read = {id(variable): variable for function in functions.values() for variable in function.variables}
    module.weights = list(read.values())
    tf.saved_model.save(module, os.fspath(directory), signatures=functions)


def _packages() -> dict[str, str]:
    names = ("tensorflow", "keras", "numpy")
    return {"python": platform.python_version(), "defended": __version__, **{n: package_version(n) for n in names}}


def _unusable(directory: str | os.PathLike[str], error: OSError) -> OSError:
    kind = PermissionError if isinstance(error, PermissionError) else NotADirectoryError
    return kind(
        error.errno,
        f"`directory` must be a folder that can be written ({error.strerror}). Received: {os.fspath(directory)!r}",
        error.filename,
    )
