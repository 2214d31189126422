"""A defended model, exported as a directory that TensorFlow Serving loads as it is."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from defended._io import atomic_write_text, canonical_json, sha256_file
from defended._version import __version__
from defended.class_names import ClassNames, in_order
from defended.exceptions import MissingExtraError
from defended.progress import Forecast, shown
from defended.serving.artefacts.manifest import (
    MANIFEST,
    SIGNATURE,
    CheckRecord,
    DriftRecord,
    FileRecord,
    Manifest,
    RangeRecord,
    SamplingRecord,
    StandardisationRecord,
    WarmUpRecord,
    files_below,
    versions_below,
)
from defended.serving.artefacts.signing import read_signing_key, signature_of
from defended.serving.exporting.agreement import SCORE_DRIFT_BOUND
from defended.serving.exporting.arguments import (
    check_backend,
    check_data,
    check_json,
    check_mode,
    check_name,
    check_sample,
    check_version,
    figures_of,
)
from defended.serving.exporting.deployment_files import write_serving_files
from defended.serving.exporting.graphs import build_graphs, reason
from defended.serving.exporting.model_card import MODEL_CARD, model_card, susceptibility_assumptions
from defended.serving.exporting.staging import staged
from defended.serving.exporting.warm_up import BATCH_SIZES, EXTRA, WARM_UP, write_warm_up
from defended.standardisation import FILE as STANDARDISATION

if TYPE_CHECKING:
    from defended.attacks.measurement.result import Susceptibility
    from defended.defended_model import DefendedModel

# Of a smoothed model's sample: the audit signature, three others, and Keras's votes.
_RUNS = 4


def export(
    model: DefendedModel,
    directory: str | os.PathLike[str],
    name: str | None = None,
    version: int = 1,
    *,
    sample: np.ndarray | None = None,
    onnx: bool | Literal["require"] = True,
    warm_up: bool | Literal["require"] = True,
    class_names: ClassNames | None = None,
    susceptibility: Susceptibility | Mapping[str, Any] | None = None,
    training_data: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    signing_key: str | os.PathLike[str] | None = None,
    serving_files: bool = True,
    progress: bool | None = None,
) -> Path:
    """Write a model as a SavedModel and ONNX with a manifest, compare them with the model, and rename them into place.

    The artefact is `directory/name/version`. `serving_default` takes `image` (float32 `[batch, *input_shape]`), gives
    `label` (int64, -1 where rejected), `rejected` (bool), `scores` (`[batch, m]`) and, where the defence says why it
    rejects, `reason`; `audit` adds `certified_radius`, `availability_radius`, `epsilon` and `scores_with_bottom`, which
    help attackers and so are not in the default answer, and the defence's other details of a verdict (`model.details`),
    such as a smoothed model's `samples_used`. `classify` takes `inputs`, serialized `tf.Example` records with the
    feature `image`, and gives `classes` `[batch, 1]`, the answer's name or ⊥, and `scores` `[batch, 1]`, the largest
    score. A smoothed model draws its noise in the graph, from the system's entropy at every run, whatever its `seed`.

    The manifest holds what is guaranteed and on which assumptions, the operations, the packages, the training data's
    digest and range (`model.training_range`) and the hash of every file; `README.md` is a model card made from it.
    Beside the artefacts, in `directory`, the files that TensorFlow Serving reads are brought up to date
    (`write_serving_files`).

    Keras, TensorFlow's C++ loader and onnxruntime judge the sample: their labels must be equal, and their logits must
    not drift further apart than the certificate pays for; where it pays for nothing, four times the largest drift is
    taken off every margin, in the graphs and in `model` itself (`model.evaluation_drift`).
    An artefact appears whole or not at all, and an existing one is never replaced.

    Args:
        model: a defended model; its bounds are proven where they are not, and what evaluates is compared with them.
        directory: the folder of all models; made where it is missing.
        name: the model's name in the server's routes: letters, digits, `.`, `_`, `-`, beginning with a letter or digit;
            by default `model.name`, with `-` for what is none of these.
        version: a positive integer; TensorFlow Serving serves the largest.
        sample: float32 `[n, *input_shape]`, inputs on which the artefact is compared with the model; by default 64
            random ones in [0, 1], for a smoothed model 4. Give real ones where there are any.
        onnx: whether the artefact holds `assets.extra/model.onnx`: with True, where the extra `onnx` is installed and
            the network can be written so (otherwise the manifest says why not); with `"require"`, it fails instead.
        warm_up: whether it holds warm-up records, of random inputs, for TensorFlow Serving: the same, with the extra
            `serving`.
        class_names: m different texts in the order of the classes' numbers, or a mapping between names and numbers,
            such as Keras's `class_indices`; the numbers by default.
        susceptibility: figures to keep in the manifest, a mapping or the result of `defended.attacks.susceptibility`.
        training_data: SHA-256 of the data that the model was trained on, a mapping (`sha256`, `points`, `name`), or
            several; by default what `fit` recorded.
        metadata: anything else to keep in the manifest that JSON can hold.
        signing_key: PEM file of an Ed25519 private key (`defended keygen`) that signs the manifest. `defended sign` can
            sign it later.
        serving_files: whether to write the files for TensorFlow Serving beside the artefacts.
        progress: show a bar on stderr, after a line that says how long it is likely to take where answers are drawn at
            random; None shows it on a terminal, once the export takes more than a few seconds.

    Returns:
        The artefact's path.

    Raises:
        FileExistsError: the artefact exists, or appeared meanwhile; the message names the next free version.
        NotADirectoryError, PermissionError, OSError: `directory` cannot be written, or its disk is full.
        TypeError, ValueError: an argument does not fit, before anything is written.
        ImportError: what is required is not installed.
        ForbiddenOpError: the network holds an operation that an artefact may not hold.
        AgreementError, CppLoaderError: an exported graph does not answer as the model does, or does not load.
    """
    check_backend()
    name, version = check_name(model, name), check_version(version)
    given = sample is not None
    sample = check_sample(model, sample)
    onnx_mode, warm_up_mode = check_mode("onnx", onnx), check_mode("warm_up", warm_up)
    names = in_order(class_names, model.num_classes)
    figures, notes = figures_of(susceptibility), check_json("metadata", dict(metadata or {}))
    data, seen = check_data(model, training_data), model.training_range
    key = None if signing_key is None else read_signing_key(signing_key)
    labels = names or tuple(map(str, range(model.num_classes)))
    target = Path(directory) / name / str(version)

    def forecast() -> Forecast | None:
        return model.forecast(sample, _RUNS * len(sample))

    try:
        with shown(f"exporting {name}", wanted=progress, forecast=forecast), staged(target) as partial:
            model.verify()
            built = build_graphs(model, partial, labels, sample, onnx_mode)
            manifest = Manifest(
                name=name,
                version=version,
                created=datetime.now(UTC).replace(microsecond=0),
                defence=type(model).__name__,
                norm=model.norm,
                epsilon=float(model.epsilon),
                num_classes=int(model.num_classes),
                certificate_method=model.certificate_method,
                certificate_assumptions=(*model.certificate_assumptions, *_assumption(built.drift, len(sample))),
                sampling=None if model.sampling is None else SamplingRecord(**model.sampling),
                noise_per_input=model.sampling is not None,
                signatures=built.signatures,
                ops=built.ops,
                packages=_packages(),
                check=CheckRecord(
                    samples=len(sample),
                    score_drift=built.score_drift,
                    score_drift_bound=SCORE_DRIFT_BOUND,
                    given=given,
                    drift=built.drift,
                ),
                susceptibility=figures,
                susceptibility_assumptions=() if figures is None else susceptibility_assumptions(figures),
                class_names=names,
                training_data=data,
                training_range=None if seen is None else RangeRecord.model_validate(vars(seen)),
                standardisation=_standardisation(model, partial),
                onnx=built.onnx,
                warm_up=_warm_up(model, partial, name, warm_up_mode),
                metadata=notes,
                files={},
            )
            atomic_write_text(partial / MODEL_CARD, model_card(manifest))
            files = {
                relative: FileRecord(sha256=sha256_file(path), size=path.stat().st_size)
                for relative, path in files_below(partial).items()
            }
            text = manifest.model_copy(update={"files": files}).sealed().to_json()
            atomic_write_text(partial / MANIFEST, text)
            if key is not None:
                atomic_write_text(partial / SIGNATURE, signature_of(text.encode(), key))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if isinstance(error, FileExistsError) and error.filename == str(target):
            raise FileExistsError(
                error.errno, f"{error.strerror}: export version {next_version(directory, name)} instead", str(target)
            ) from None
        kind = PermissionError if isinstance(error, PermissionError) else NotADirectoryError
        message = (
            f"`directory` must be a folder that can be written ({error.strerror}). Received: {os.fspath(directory)!r}"
        )
        raise kind(error.errno, message, error.filename) from error
    if serving_files:
        _write_serving_files(directory, target)
    return target


def next_version(directory: str | os.PathLike[str], name: str) -> int:
    """Return one more than the largest version of a model below `directory`, or 1 where there is none."""
    return 1 + max(versions_below(Path(directory) / name), default=0)


def _standardisation(model: DefendedModel, directory: Path) -> StandardisationRecord | None:
    """Write how raw features become inputs, for clients in any language, and return the record of it."""
    found = model.standardisation
    if found is None:
        return None
    path = directory / EXTRA / STANDARDISATION
    path.parent.mkdir(exist_ok=True)
    atomic_write_text(path, canonical_json(found.to_json()))
    return StandardisationRecord(means=found.means, deviations=found.deviations)


def _warm_up(model: DefendedModel, directory: Path, name: str, mode: bool | str) -> WarmUpRecord | None:
    if not mode:
        return None
    # Random inputs: nobody's data goes into an artefact. A run of a smoothed model takes thousands of evaluations.
    x = np.random.default_rng(0).uniform(size=(max(BATCH_SIZES), *model.input_shape[1:])).astype(np.float32)
    try:
        count = write_warm_up(directory, name, x, BATCH_SIZES if model.sampling is None else BATCH_SIZES[:1])
    except MissingExtraError as error:
        if mode == "require":
            raise
        return WarmUpRecord(file=None, requests=0, omitted=reason(error))
    return WarmUpRecord(file=WARM_UP, requests=count, omitted=None)


def _assumption(drift: DriftRecord | None, samples: int) -> tuple[str, ...]:
    if drift is None or not drift.folded:
        return ()
    return (
        f"Two evaluations of the network differ by at most {drift.folded / 2:.3g} in a difference of logits. "
        f"The largest that was measured, on {samples} inputs, is {drift.largest:.3g}; nothing is proven for others.",
    )


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version(), "defended": __version__}
    for name in ("tensorflow", "keras", "numpy", "onnx", "tf2onnx", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = package_version(name)
    return found


def _write_serving_files(directory: str | os.PathLike[str], target: Path) -> None:
    try:
        write_serving_files(directory)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{target} is whole, but the files for TensorFlow Serving beside it could not be written "
            f"({error.strerror}). Make room, then call `defended.serving.write_serving_files` on that folder",
            error.filename,
        ) from error
