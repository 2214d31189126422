"""An exported artefact, verified file by file and then run as a server runs it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from defended._io import sha256_file
from defended.arguments import whole_number
from defended.exceptions import ArtefactError
from defended.serving.artefacts.allowed_ops import CLASSIFY, check_ops, check_parsing, list_ops
from defended.serving.artefacts.closing import Closing
from defended.serving.artefacts.cpp_loader import CppSession
from defended.serving.artefacts.inputs import require_array_signature, require_float32
from defended.serving.artefacts.manifest import MANIFEST, FileRecord, Manifest, files_below, first_fault
from defended.serving.artefacts.signing import verify_signature

if TYPE_CHECKING:
    from defended.answering import Verdicts


def load(
    path: str | os.PathLike[str], *, digest: str | None = None, public_key: str | os.PathLike[str] | None = None
) -> Artefact:
    """Verify an artefact and open it.

    The SHA-256 of every file is compared with the manifest's before TensorFlow reads any of them; then the graph's
    operations and signatures are compared.

    Args:
        path: the artefact's directory, as `export` returned it.
        digest: the `manifest.digest` that the artefact must have, kept from the export. Hashes inside the artefact
            reveal accidents; only a digest kept elsewhere reveals that somebody rewrote the artefact and its manifest.
        public_key: PEM file of the Ed25519 key that must have signed the manifest, kept elsewhere; it reveals that too.

    Returns:
        The open artefact; close it, or use it in a `with` statement. Nobody else should write the directory meanwhile.

    Raises:
        ArtefactError: each missing, changed or extra file by name; a manifest that is absent, malformed or edited;
            another digest than the one asked for; a graph that is not the one described.
        SignatureError: with `public_key`, a manifest that is not signed, or by another key, or that was changed since.
    """
    directory = Path(path)
    manifest = verify(directory, digest=digest, public_key=public_key)
    try:
        ops = list_ops(directory)
        check_ops(ops, sampled=manifest.sampling is not None, parsing=CLASSIFY in manifest.signatures)
        check_parsing(directory)
        session = CppSession(directory)
    except ValueError as error:
        raise ArtefactError(f"{directory}: {error}") from error
    if ops != manifest.ops or session.signatures != manifest.signatures:
        session.close()
        raise ArtefactError(
            f"The graph in {directory} has other operations or signatures than its manifest lists. "
            "Export the model again."
        )
    return Artefact(directory, manifest, session)


def verify(
    path: str | os.PathLike[str], *, digest: str | None = None, public_key: str | os.PathLike[str] | None = None
) -> Manifest:
    """Compare every file of an artefact with its manifest, without opening any as a model.

    Args:
        path: the artefact's directory.
        digest: the `manifest.digest` that it must have.
        public_key: PEM file of the Ed25519 key that must have signed the manifest.

    Returns:
        The manifest.

    Raises:
        ArtefactError, SignatureError: as for `load`.
    """
    directory = Path(path)
    manifest, content = _read_manifest(directory)
    if public_key is not None:
        verify_signature(directory, content, public_key)
    if digest is not None and digest != manifest.digest:
        raise ArtefactError(
            f"{directory} has the digest {manifest.digest}, but `digest` asks for {digest}: "
            "this is another artefact, or somebody rewrote it. Fetch it again from where the digest comes from."
        )
    _verify_files(directory, manifest)
    return manifest


class Artefact(Closing):
    """A verified artefact in TensorFlow's C++ loader; made by `load`, to be closed.

    Inputs are float32 `[batch, *input_shape]` in the units the model was trained on; the batch may be empty. An input
    with a NaN or an infinity is rejected; the others of its batch are not affected.
    """

    def __init__(self, path: Path, manifest: Manifest, session: CppSession) -> None:
        self.path = path
        self.manifest = manifest
        self._session = session

    @property
    def epsilon(self) -> float:
        """The radius defended, in input units and the norm `manifest.norm`."""
        return self.manifest.epsilon

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of one input."""
        return self.manifest.signatures["serving_default"].inputs["image"].shape[1:]

    def predict(
        self, x: np.ndarray, signature: str = "serving_default", batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """Run a signature on any number of inputs, `batch_size` at a time, as `Client` and `OnnxModel` do.

        Args:
            x: float32 `[n, *input_shape]`, in the units that the model was trained on.
            signature: `"serving_default"`, or `"audit"`, which adds radii.
            batch_size: inputs in one run.

        Returns:
            The signature's outputs by name, `[n, ...]` each; `manifest.signatures` lists them.

        Raises:
            TypeError: `x` is not float32.
            ValueError: `x` has another shape, there is no such signature of arrays, or `batch_size` is not positive.
        """
        require_array_signature(signature, self.manifest.signatures, f"{self.path}")
        whole_number("batch_size", batch_size, 1)
        return self._session.run_batches(signature, self._checked(x), batch_size)

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Run `serving_default` on one batch.

        Returns:
            `label` `[batch]` int64, -1 where rejected; `rejected` `[batch]` bool; `scores` `[batch, m]` float32;
            `reason` `[batch]` int32 where the defence says why it rejects.

        Raises:
            TypeError: `x` is not float32.
            ValueError: `x` has another shape.
        """
        return self._session.run("serving_default", {"image": self._checked(x)})

    def audit(self, x: np.ndarray, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Run the signature `audit` on any number of inputs, `batch_size` at a time.

        Returns:
            What `serving_default` returns, and `certified_radius`, `availability_radius` and `epsilon`, `[batch]` each
            and in input units, and `scores_with_bottom` `[batch, m + 1]`; for a smoothed model, also `samples_used`
            `[batch]`, the draws that each input took, and the network's `logits` `[batch, m]` without noise. Artefacts
            of earlier versions do not report `epsilon` here.

        Raises:
            TypeError, ValueError: as for `serving_default`, or `batch_size` is not positive.
        """
        return self.predict(x, "audit", batch_size)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run any of `manifest.signatures` on one batch, its inputs by name; threads may run at the same time.

        Raises:
            CppLoaderError: there is no such signature, or the inputs do not fit it.
        """
        return self._session.run(signature, inputs)

    def verdicts(self, x: np.ndarray, batch_size: int = 256) -> Verdicts:
        """Return `Verdicts(label, rejected, radius)` as the model's own `verdicts` does, errors as for `audit`."""
        from defended.answering import Verdicts

        outputs = self.audit(x, batch_size)
        return Verdicts(outputs["label"], outputs["rejected"], outputs["certified_radius"])

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session.close()

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Artefact {m.name}/{m.version} {m.defence}, epsilon={m.epsilon:g} ({m.norm})>"

    def _checked(self, x: np.ndarray) -> np.ndarray:
        require_float32(x)
        if not self.manifest.signatures["serving_default"].inputs["image"].accepts(x.shape):
            hint = " Add the batch axis: x[None]." if x.shape == self.input_shape else ""
            wanted = ", ".join(str(axis) for axis in self.input_shape)
            raise ValueError(f"`x` must have the shape [batch, {wanted}]. Received: {list(x.shape)}.{hint}")
        return x


def _read_manifest(directory: Path) -> tuple[Manifest, bytes]:
    """Return the manifest, and the bytes that it was read from."""
    path = directory / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtefactError(f"{path} is not a regular file. Fetch the artefact again.")
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise ArtefactError(
            f"{directory} is not an artefact: {MANIFEST} cannot be read ({error.strerror}). "
            "Give the directory that `export` returned, name/version at its end."
        ) from error
    except ValidationError as error:
        fault, remedy = first_fault(error), "Export the model again, or fetch the artefact again."
        if fault.startswith("format_version: "):
            fault = "format_version: this version of defended reads formats 1 to 3"
            remedy = (
                "Install the version that wrote the artefact or a later one, or export the model again with this one."
            )
        raise ArtefactError(f"{path} is not a valid manifest: {fault}. {remedy}") from error
    if manifest.digest != manifest.content_digest():
        raise ArtefactError(f"{path} was edited: it does not have the digest it states. Fetch the artefact again.")
    return manifest, content


def _verify_files(directory: Path, manifest: Manifest) -> None:
    found, listed = files_below(directory), manifest.files
    kinds = {
        "missing": listed.keys() - found.keys(),
        "changed": {name for name in listed.keys() & found.keys() if not _is_intact(found[name], listed[name])},
        "extra": found.keys() - listed.keys(),
    }
    problems = [f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names]
    if problems:
        raise ArtefactError(
            f"{directory} is not what its manifest lists ({'; '.join(problems)}). "
            "Do not serve it: export the model again, or fetch the artefact again."
        )


def _is_intact(path: Path, record: FileRecord) -> bool:
    status = path.lstat()
    # A link could change its target after the check.
    return stat.S_ISREG(status.st_mode) and status.st_size == record.size and sha256_file(path) == record.sha256
