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
from defended.progress import Forecast

Array = np.ndarray[Any, np.dtype[Any]]
Claims = Mapping[str, Array]
"""What a file says about a proof, by name; none of it is believed until it is verified, or its file is trusted."""

Judge = Callable[[Any], tuple[Any, Any, Any]]
"""Turns inputs into labels, rejections and radii, `[batch]` each, as verdicts give them."""


class Finding(NamedTuple):
    """What a certificate finds about a batch, taking for granted that its constants are proven; tensors."""

    logits: Any
    """`[batch, m]`, the scores of the classes."""
    slack: Any
    """`[batch]`, in units of the scores; positive where the predicted class is certified at the radius asked for."""
    radius: Callable[[], Any]
    """Returns the certified radius, `[batch]`; a function, since scores do not need it. What is not positive counts as
    0."""
    valid: Any = None
    """`[batch]` bool, False where the input is rejected anyway; None where slack and radius decide."""
    details: Mapping[str, Any] = MappingProxyType({})
    """Further outputs of the deployed model, `[batch, ...]` each, by their names in `DefendedModel.details`."""
    lasting: Callable[[Any], Any] | None = None
    """Turns a level into `[batch]`, the distance from the input within which the certified radius stays above that
    level, as it is computed there; not positive where it does not. None stands for the radius less the level: an exact
    certificate's radius falls no faster than a point moves."""
    availability: Any = None
    """`[batch]`, the distance within which the input is still answered; None where the certified radius decides."""


class Certificate(ABC):
    """The mathematics of a defence, for one network; a `DefendedModel` holds one, and needs nothing else of a kind.

    What it proves in advance is kept in the model's `ProvenConstants`. The model ensures that constants which are not
    proven for the network as it is answer nothing: functions here take it for granted that they are.

    Attributes:
        network: the undefended classifier.
        drift: what is subtracted from every margin `y_j - y_i` at inference, see `DefendedModel.evaluation_drift`.
        rows_at_once: the most inputs that are evaluated together, where a certificate limits its memory.
        at_run_time: whether an answer is proven as it is given, for the weights as they are then, without constants.
    """

    drift = 0.0
    rows_at_once: int | None = None
    at_run_time = False

    def __init__(self, network: keras.Model):
        self.network = network

    # Judging.

    @abstractmethod
    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        """Return what is found about inputs `[batch, ...]` in one evaluation, so that answers and radii agree.

        `deployed`: for a graph that leaves this process, whose noise must be fresh in every copy.
        """

    @abstractmethod
    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        """Return `[batch, m]`, see `DefendedModel.competitor_radii`."""

    def answering_radii(self, inputs: Any, epsilon: Any) -> Any:
        """`[batch, m]`: as `competitor_radii`, of the verdict: see `DefendedModel.answering_radii`."""
        return self.competitor_radii(inputs, epsilon)

    def logits(self, inputs: Any, training: bool) -> Any:
        """Return the network's logits `[batch, m]`, as the certificate evaluates them."""
        return self.network(inputs, training=training)

    def covered_drift(self, inputs: Any) -> Array | None:
        """Return `[n, m]` or None, see `DefendedModel.covered_drift`."""
        return None

    def forecast(self, inputs: Array, answers: int) -> Forecast | None:
        """Return how long it is likely to take to answer so often, measured on a few of the inputs `[n, ...]`.

        None where an answer is cheap.
        """
        return None

    # Training.

    @abstractmethod
    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        """Return logits and slack `[batch]` by training-time estimates, differentiable; `training` moves them on."""

    def refine(self) -> None:
        """Bring training-time estimates close to the constants that `prove` would find; cheap."""
        return

    # Proving.

    @abstractmethod
    def prove(self, claims: Claims) -> None:
        """Set the proven constants for the weights as they are; verify claims where that shortens the proof."""

    def retrace(self, network: keras.Model) -> None:
        """Read the network's layers and their settings as they are now."""
        self.network = network

    @abstractmethod
    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        """Compare what is evaluated with what was proven; raise `ValueError` where they differ.

        Args:
            name: the model's name, for messages.
            judge: returns the model's compiled verdicts.
            thorough: False for a cheaper check, before an export.
        """

    def holds(self) -> bool:
        """Return whether what was proven covers verdicts at the radius that is set now."""
        return True

    @property
    def variables(self) -> Sequence[Any]:
        """Variables that the proof is about, besides the network's and the proven constants."""
        return ()

    def identity(self) -> list[Any]:
        """Return texts and arrays that the proof depends on besides the network and the constants."""
        return []

    def claims(self) -> Claims:
        """Return what a file stores of the proof besides the constants, so that it can be verified faster."""
        return {}

    def believe(self, claims: Claims) -> None:
        """Adopt what a trusted file says besides the constants."""
        return


def finite_radius(found: Finding) -> Any:
    """Return the certified radius `[batch]` of a finding: finite, 0 where nothing is certified."""
    from_bounds = found.radius()
    proven = finite_rows(found.logits)
    if found.valid is not None:
        proven = ops.logical_and(proven, found.valid)
    # NaN > 0 is false, so a NaN radius becomes 0.
    held = ops.logical_and(proven, from_bounds > 0)
    return ops.where(held, ops.minimum(from_bounds, FLOAT_MAX), ops.zeros_like(from_bounds))


def lasting_radius(found: Finding, radius: Any, level: Any) -> Any:
    """Return the distance within which the certified radius, `finite_radius(found)`, stays above `level`, `[batch]`.

    Finite; 0 where the radius is not above the level.
    """
    distance = radius - level if found.lasting is None else found.lasting(level)
    return ops.where(radius > level, ops.minimum(ops.maximum(distance, 0.0), FLOAT_MAX), ops.zeros_like(radius))


def available_radius(found: Finding, radius: Any, epsilon: Any) -> Any:
    """Return the distance within which the input is still answered, `[batch]`, finite: 0 where it is not.

    `radius` is `finite_radius(found)`.
    """
    return lasting_radius(found, radius, epsilon) if found.availability is None else found.availability


def of_certificate(name: str) -> Any:
    """Return a property of a model that reads and writes a setting of its certificate."""
    return property(
        lambda model: getattr(model._certificate, name), lambda model, value: setattr(model._certificate, name, value)
    )
