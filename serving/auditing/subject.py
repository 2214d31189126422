"""What was audited, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defended.input_range import InputRange

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.artefacts.manifest import Manifest

# Relative: an epsilon that is read off radii, or was printed with six digits, is known no better.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Subject:
    """What was audited, as far as it is known; None where it is not.

    Attributes:
        kind: `"artefact"`, `"endpoint"` or `"log"`.
        location: the path or address.
        name: the model's name.
        version: the model's version.
        norm: the norm in which epsilon is measured.
        epsilon: the radius defended.
        epsilon_from: where epsilon is known from: `"manifest"`, `"model"`, `"given"`, `"answers"`, which state it, or
            `"radii"`, for an artefact of an earlier version.
        num_classes: the number of classes, m.
        signatures: those offered.
        manifest: the artefact's manifest, where it was read.
        sampling: how verdicts are drawn at random, where they are known to be.
        training_range: range of the inputs that the model was trained on.
    """

    kind: str
    location: str
    name: str = ""
    version: int | None = None
    norm: str | None = None
    epsilon: float | None = None
    epsilon_from: str | None = None
    num_classes: int | None = None
    signatures: tuple[str, ...] = ()
    manifest: Manifest | None = None
    sampling: Mapping[str, Any] | None = None
    training_range: InputRange | None = None

    @property
    def alpha(self) -> float:
        """The probability that a certificate is wrong: 0 for proofs, and where nothing says that verdicts are drawn."""
        return 0.0 if self.sampling is None else float(self.sampling["alpha"])

    @property
    def cap(self) -> int | None:
        """The largest number of draws made for an input, where the sampling is known."""
        sampling = self.sampling
        return None if sampling is None else int(sampling["samples"]) + int(sampling["selection_samples"])

    @property
    def stops_early(self) -> bool:
        """Whether sampling stops once epsilon is decided, so that radii say little beyond it."""
        return self.sampling is not None and self.sampling.get("mode") == "sequential"

    @property
    def shares_noise(self) -> bool:
        """Whether inputs asked together are judged under the same noise, as by artefacts of earlier versions."""
        return self.sampling is not None and self.manifest is not None and not self.manifest.noise_per_input


def agreed(
    manifest: Manifest | None, model: DefendedModel | None, epsilon: float | None, norm: str | None
) -> dict[str, Any]:
    """Return what the sources say: manifest, sampling, epsilon, where it is from, and the norm; raise if they differ.

    How verdicts are drawn at random, and the range of training inputs, says the manifest, and the model where there is
    none, or where that does not say the range.
    """
    sources = {"manifest": manifest, "model": model}
    known = [(name, float(of.epsilon), of.norm) for name, of in sources.items() if of is not None]
    told: list[tuple[str, float | None, str | None]] = [*known, ("given", epsilon, norm)]
    first, radius = next(((source, value) for source, value, _ in told if value is not None), (None, None))
    who, kind = next(((source, value) for source, _, value in told if value is not None), (None, None))
    for source, value, other in told:
        if value is not None and radius is not None and abs(value - radius) > ROUNDING * abs(radius):
            raise ValueError(f"`epsilon` must be one: the {first} says {radius:.6g}, the {source} {value:.6g}.")
        if other is not None and other != kind:
            raise ValueError(f"`norm` must be one: the {who} says {kind}, the {source} {other}.")
    sampling = None if model is None else model.sampling
    if manifest is not None:
        sampling = None if manifest.sampling is None else manifest.sampling.model_dump()
    seen = None if model is None else model.training_range
    if manifest is not None and manifest.training_range is not None:
        seen = manifest.training_range.range()
    stated = {"manifest": manifest, "sampling": sampling, "training_range": seen}
    return {**stated, "epsilon": radius, "epsilon_from": first, "norm": kind}


def require_radius(subject: Subject, what: str) -> tuple[float, str]:
    """Return epsilon and the norm; raise where they are not known, with `what` naming what needs them."""
    if subject.epsilon is not None and subject.norm is not None:
        return subject.epsilon, subject.norm
    missing = [name for name in ("epsilon", "norm") if getattr(subject, name) is None]
    raise ValueError(
        f"`{'` and `'.join(missing)}` must be given for {what}: the endpoint does not say. Give the Keras model, "
        "the artefact's manifest, or the values."
    )
