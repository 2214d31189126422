"""The certificate of a guard: another certificate, and what an oracle of valid inputs adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from defended.certificate import Array, Certificate, Claims, Finding, Judge, finite_radius, lasting_radius
from defended.defended_model import DefendedModel
from defended.margins import finite_rows, leader
from defended.membership.decision import Reach, decide, guarded_radii, still_answered
from defended.membership.oracle import MembershipOracle, Nearest
from defended.settings import ProvenConstants

# The separation of classes exceeds 2 epsilon by this share: a point on the ball's surface is found in any arithmetic.
ROOM = 2.0**-10


class GuardCertificate(Certificate):
    """The certificate of the model inside, with a radius that depends on the distances to valid inputs too.

    Args:
        base: the model inside; the oracle labels its points by it.
        proof: the guard's constants, to which `checked_separation` is added.
        oracle: where valid inputs are looked for.
        budget: steps of a search.
        accepting: whether neighbours may answer.
        separation: the one assumed of valid inputs of different classes; None for slightly more than 2 epsilon.
    """

    def __init__(
        self,
        base: DefendedModel,
        proof: ProvenConstants,
        oracle: MembershipOracle,
        budget: int,
        accepting: bool,
        separation: float | None,
    ):
        super().__init__(base.network)
        self._base, self._oracle, self._budget = base, oracle, budget
        self._accepting, self._separation, self._constants = accepting, separation, proof.named
        # The separation of classes that was found to hold among the stored points; 0 before.
        proof.add("checked_separation")

    @property
    def inner(self) -> Certificate:
        """The certificate of the model inside."""
        return self._base._certificate

    @property
    def drift(self) -> float:
        """The drift of the model inside."""
        return self.inner.drift

    @drift.setter
    def drift(self, value: float) -> None:
        self._base.evaluation_drift = value

    @property
    def rows_at_once(self) -> int | None:  # type: ignore[override]
        """As many as the certificate inside takes."""
        return self.inner.rows_at_once

    # The distances that answers by neighbours rest on.

    def reach(self, epsilon: Any) -> Any:
        """Return how far away a stored point may be and still answer."""
        return epsilon * (1 + 2 * ROOM) if self._separation is None else self._separation - epsilon

    def assumed(self) -> float:
        """Return the separation that answers by neighbours rest on, rounded up."""
        epsilon = ops.convert_to_tensor(self._base.epsilon)
        return (_number(self.reach(epsilon)) + _number(epsilon)) * (1 + 2.0**-18)

    def _nearest(self, inputs: Any, predicted: Any, epsilon: Any) -> tuple[Nearest, Reach]:
        neighbours = self.reach(epsilon)
        far = 2 * (neighbours + epsilon)  # up to where the radius says something
        reach = Reach(epsilon, neighbours, self._accepting, self._oracle.blur(self._base, inputs, far))
        return self._oracle.nearest(self._base, inputs, predicted, epsilon, far, self._budget), reach

    # Judging.

    def judge(self, inputs: Any, epsilon: Any, deployed: bool = False) -> Finding:
        found = self.inner.judge(inputs, epsilon, deployed)
        first = leader(found.logits)
        near, reach = self._nearest(inputs, first.predicted, epsilon)
        radius = finite_radius(found)
        positive = lasting_radius(found, radius, 0.0)
        if not self._oracle.is_complete:
            # Nothing within epsilon of an answer has another class: what a descent finds there rounding has labelled.
            near = near._replace(other=ops.where(radius > epsilon, float("inf"), near.other))
        guarded = decide(radius, positive, near, reach)
        # In units of the logits where the check decides; elsewhere only the sign matters.
        neighbourly = guarded.neighbour_radius - epsilon
        enough = ops.maximum(neighbourly, ops.abs(first.top[:, 0]) * 2.0**-20)
        slack = ops.where(guarded.by_neighbours, enough, -ops.abs(found.slack))
        slack = ops.where(guarded.by_check, found.slack, slack)
        finite = finite_rows(inputs) & finite_rows(found.logits)
        if found.valid is not None:
            finite = finite & found.valid
        why = ops.where(finite, ops.where(guarded.adversarial, 3, 1), 2)
        reason = ops.where(finite & (slack > 0), 0, why)
        details = {**found.details, "reason": ops.cast(reason, "int32")}
        if self._accepting:
            details["neighbour_radius"] = ops.where(finite, guarded.neighbour_radius, 0.0)
        available = still_answered(lasting_radius(found, radius, epsilon), positive, near, reach)
        return Finding(
            found.logits,
            slack,
            lambda: guarded.radius,
            finite,
            details,
            availability=ops.where(finite & (slack > 0), available, 0.0),
        )

    def competitor_radii(self, inputs: Any, epsilon: Any) -> Any:
        return self._guarded_radii(self.inner.competitor_radii(inputs, epsilon), inputs, epsilon, accepting=False)

    def answering_radii(self, inputs: Any, epsilon: Any) -> Any:
        """Return radii `[batch, m]` like `competitor_radii`, answers by neighbours included."""
        radii = self.inner.answering_radii(inputs, epsilon)
        return self._guarded_radii(radii, inputs, epsilon, accepting=self._accepting)

    def _guarded_radii(self, radii: Any, inputs: Any, epsilon: Any, accepting: bool) -> Any:
        if not self._oracle.is_complete:
            # What a descent finds lies beyond the model's own radius: the search would cost, and change nothing.
            return radii
        # The predicted class is the one that nothing competes with.
        near, reach = self._nearest(inputs, leader(radii).predicted, epsilon)
        return guarded_radii(radii, near, reach._replace(accepting=accepting))

    def logits(self, inputs: Any, training: bool) -> Any:
        return self.inner.logits(inputs, training)

    def covered_drift(self, inputs: Any) -> Array | None:
        """Return the model's: neighbours answer only where its radius is positive, so its label stands too."""
        return self.inner.covered_drift(inputs)

    # Training is the model's: the guard enters at run time.

    def estimate(self, inputs: Any, epsilon: Any, training: bool) -> tuple[Any, Any]:
        return self.inner.estimate(inputs, epsilon, training)

    def refine(self) -> None:
        self.inner.refine()

    # Proving, once the model inside is proven.

    def prove(self, claims: Claims) -> None:
        self._oracle.prove(self._base)
        if not self._accepting:
            return
        assumed = self.assumed()
        found = self._oracle.separation(assumed, self._base.norm)
        if found.pairs:
            raise ValueError(_too_close(found.pairs, found.smallest, assumed, self._separation))
        self._constants.checked_separation.assign(np.nextafter(np.float32(assumed), np.float32(np.inf)))

    def check(self, name: str, judge: Callable[[], Judge], thorough: bool = True) -> None:
        """Check the model inside."""
        self._base._check(thorough)

    def holds(self) -> bool:
        """Return whether the stored points were found to keep the separation that epsilon needs now."""
        return not self._accepting or self.assumed() <= _number(self._constants.checked_separation)

    @property
    def variables(self) -> Sequence[Any]:
        """The oracle's variables."""
        return self._oracle.variables

    def identity(self) -> list[Any]:
        about = f"{self._budget} {'separated' if self._accepting else 'strict'} {self._separation}"
        inside = self._base._proof.values().values()
        return [about, *self.inner.identity(), *inside, *self._oracle.variables]


def _number(value: Any) -> float:
    return float(ops.convert_to_numpy(value))


def _too_close(pairs: int, smallest: float, assumed: float, separation: float | None) -> str:
    largest = smallest / 2 * (1 - 4 * ROOM)
    remedy = (
        f"set epsilon to at most {largest:.6g}, the largest that holds"
        if separation is None
        else f"assume a separation below {smallest:.6g} (so epsilon at most {largest:.6g})"
    )
    return (
        f'`accept="separated"` assumes that valid inputs of different classes lie more than {assumed:.6g} apart, and '
        f"{pairs} pairs of stored points do not: the closest two are {smallest:.6g} apart. Either {remedy}, or leave "
        f"out points that are labelled wrongly, or use accept='strict'."
    )
