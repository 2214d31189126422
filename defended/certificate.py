"""What a defence is: how it judges a batch, what it proves in advance, and what that proof is about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from defended.margins import finite_rows
from defended.numerics.float32 import FLOAT_MAX

Array = np.ndarray[Any, np.dtype[Any]]
Claims = Mapping[str, Array]
"""What a file says of a proof, by name; nothing of it is believed until it was verified, or its file is trusted."""

Judge = Callable[[Any], tuple[Any, Any, Any]]
"""From inputs labels, rejections and radii, `[batch]` each, as verdicts give them."""


class Finding(NamedTuple):
    """What a certificate finds about a batch, taking for granted that its constants are proven; tensors."""

    logits: Any
    """`[batch, m]`, the scores of the classes."""
    slack: Any
    """`[batch]`, in units of the scores; positive where the predicted class is certified at the radius asked for."""
    radius: Callable[[], Any]
    """Makes `[batch]`, the certified radius; a function, since scores do without it. What is not positive counts as
    0."""
    valid: Any = None
    """`[batch]` bool, False where the input is rejected anyway; None where slack and radius see to it."""
    details: Mapping[str, Any] = MappingProxyType({})
    """Further outputs of the deployed model, `[batch, ...]` each, by their names in `DefendedModel.details`."""
    lasting: Callable[[Any], Any] | None = None
    """From a level makes `[batch]`, within which distance of the input the certified radius stays above that level, as
    it is computed there; not positive where it does not. None for the radius less the level: an exact certificate's
    radius falls no faster than a point moves."""
    availability: Any = None
    """`[batch]`, within which distance of the input it is still answered; None where the certified radius decides."""


class Certificate(ABC):
    """The mathematics of a defence, for one network; a `DefendedModel` holds one, and asks nothing else of a kind.

    What it proves in advance lies in the model's `ProvenConstants`. The model sees to it that constants which are not
    proven of the network as it is answer nothing: functions here take it for granted that they are.

    Attributes:
        network: the undefended classifier.
        drift: what is taken off every margin `y_j - y_i` at inference, see `DefendedModel.evaluation_drift`.
        rows_at_once: inputs that are evaluated together at most, where a certificate minds its memory.
        at_run_time: whether an answer is proven as it is given, of the weights as they are then, with no constants.
    """

    drift = 0.0
    rows_at_once: int | None = None
    at_run_time = False

    def __init__(self, network: keras.Model):
        self.network = network

    # Judging.

    @abstractmethod
    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        """What is found about inputs `[batch, ...]` in one evaluation, so that answers and radii agree.

        `deployed`: for a graph that leaves this process, whose noise must be fresh in every copy.
        """

    @abstractmethod
    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        """`[batch, m]`, see `DefendedModel.competitor_radii`."""

    def logits(self, inputs: Any, training: bool) -> Any:
        """The network's logits `[batch, m]`, as the certificate has them evaluated."""
        return self.network(inputs, training=training)

    def covered_drift(self, inputs: Any) -> Array | None:
        """`[n, m]` or None, see `DefendedModel.covered_drift`."""
        return None

    # Training.

    @abstractmethod
    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        """Logits and slack `[batch]` by training-time estimates, differentiable; `training` moves them on."""

    def refine(self) -> None:
        """Bring training-time estimates close to the constants that `prove` would find; cheap."""
        return

    # Proving.

    @abstractmethod
    def prove(self, claims: Claims) -> None:
        """Set the proven constants, for the weights as they are; claims are to be verified where they shorten that."""

    def retrace(self, network: keras.Model) -> None:
        """Read the network's layers and their settings as they are now."""
        self.network = network

    @abstractmethod
    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        """Compare what evaluates with what was proven; `ValueError` where they differ.

        Args:
            name: of the model, for messages.
            judge: makes the model's compiled verdicts.
            thorough: False for a cheaper look, before an export.
        """

    def holds(self) -> bool:
        """Whether what was proven covers verdicts at the radius that is set now."""
        return True

    @property
    def variables(self) -> Sequence[Any]:
        """Variables that the proof is about, besides the network's and the proven constants."""
        return ()

    def identity(self) -> list[Any]:
        """Texts and arrays that the proof depends on besides the network and the constants."""
        return []

    def claims(self) -> Claims:
        """What a file is to hold of the proof, besides the constants, so that it can be verified faster."""
        return {}

    def believe(self, claims: Claims) -> None:
        """Take over what a trusted file says besides the constants."""
        return


def finite_radius(found: Finding) -> Any:
    """The certified radius `[batch]` of a finding: finite, 0 where nothing is certified."""
    from_bounds = found.radius()
    proven = finite_rows(found.logits)
    if found.valid is not None:
        proven = ops.logical_and(proven, found.valid)
    # NaN > 0 is false, so a NaN radius becomes 0.
    held = ops.logical_and(proven, from_bounds > 0)
    return ops.where(held, ops.minimum(from_bounds, FLOAT_MAX), ops.zeros_like(from_bounds))


def lasting_radius(found: Finding, level: Any) -> Any:
    """Within which distance the certified radius stays above `level`, `[batch]`, finite: 0 where it is not above it."""
    radius = finite_radius(found)
    distance = radius - level if found.lasting is None else found.lasting(level)
    return ops.where(radius > level, ops.minimum(ops.maximum(distance, 0.0), FLOAT_MAX), ops.zeros_like(radius))


def available_radius(found: Finding, epsilon: Any) -> Any:
    """Within which distance the input is still answered, `[batch]`, finite: 0 where it is not."""
    return lasting_radius(found, epsilon) if found.availability is None else found.availability


def of_certificate(name: str) -> Any:
    """A setting of a model's certificate, as a property of the model."""
    return property(
        lambda model: getattr(model._certificate, name), lambda model, value: setattr(model._certificate, name, value)
    )
