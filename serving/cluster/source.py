"""What a worker loads: a model's file or an artefact, as bytes, so that no shared disk is needed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defended.attacks.core.attack import model_radius

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.artefact import Artefact
    from defended.serving.artefacts.manifest import Manifest


@dataclass(frozen=True)
class Source:
    """A model to be opened elsewhere.

    Attributes:
        kind: `"model"` or `"artefact"`.
        files: contents by relative path.
        digest: tells one from another: SHA-256 of the weights and settings, or the manifest's digest.
        facts: `epsilon`, `norm`, `num_classes`, `input_shape`, and `alpha`, the probability of a wrong certificate.
        drift: the model's `evaluation_drift`, which its file does not hold.
    """

    kind: str
    files: dict[str, bytes]
    digest: str
    facts: dict[str, Any]
    drift: float = 0.0

    @classmethod
    def of_model(cls, model: DefendedModel) -> Source:
        """Return the source of a Keras model, finalized if it is not final."""
        model.ensure_proven()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            content = path.read_bytes()
        alpha = float(model.sampling["alpha"]) if model.sampling else 0.0
        facts = _facts(model, model_radius(model), model.input_shape[1:], alpha)
        return cls("model", {"model.keras": content}, model_digest(model), facts, model.evaluation_drift)

    @classmethod
    def of_artefact(cls, path: str | os.PathLike[str]) -> Source:
        """Return the source of an artefact, compared with its manifest.

        Raises:
            ArtefactError: it is not what its manifest says.
        """
        from defended.serving.artefacts.artefact import verify
        from defended.serving.artefacts.manifest import MANIFEST

        directory = Path(path)
        manifest = verify(directory)
        files = {name: (directory / name).read_bytes() for name in (*manifest.files, MANIFEST)}
        shape = manifest.signatures["serving_default"].inputs["image"].shape[1:]
        alpha = manifest.sampling.alpha if manifest.sampling is not None else 0.0
        facts = _facts(manifest, manifest.epsilon, shape, alpha)
        return cls("artefact", files, manifest.digest, facts)

    @classmethod
    def of(cls, what: DefendedModel | Artefact | str | os.PathLike[str]) -> Source:
        """Return the source of a model, an open artefact, or the path of a `.keras` file or of an artefact.

        Raises:
            ValueError: the file holds an undefended model.
        """
        from defended.defended_model import DefendedModel
        from defended.loading import load_model
        from defended.serving.artefacts.artefact import Artefact

        if isinstance(what, DefendedModel):
            return cls.of_model(what)
        if isinstance(what, Artefact):
            return cls.of_artefact(what.path)
        if Path(what).is_dir():
            return cls.of_artefact(what)
        return cls.of_model(load_model(what))

    def open(self) -> Any:
        """Return the model, or the open artefact."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if self.kind == "artefact":
                from defended.serving.artefacts.artefact import load

                return load(folder, digest=self.digest)
            from defended.loading import load_model

            model = load_model(Path(folder) / "model.keras", trusted=True)  # it comes from the process that proved it
            model.evaluation_drift = self.drift
            return model


def _facts(
    what: DefendedModel | Manifest, epsilon: float, shape: tuple[int | None, ...], alpha: float
) -> dict[str, Any]:
    """Return the facts of a `Source`."""
    sizes = {"num_classes": what.num_classes, "input_shape": list(shape)}
    return {"epsilon": epsilon, "norm": what.norm, "alpha": alpha} | sizes


def model_digest(model: DefendedModel) -> str:
    """Return the SHA-256 of a model's kind, settings and weights, whatever its layers are called."""
    import json

    settings = {
        "kind": type(model).__name__,
        "epsilon": model_radius(model),
        "norm": model.norm,
        "sampling": dict(model.sampling) if model.sampling else None,
        "seed": getattr(model, "seed", None),
        "drift": model.evaluation_drift,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(model.values_digest().encode())
    return digest.hexdigest()
