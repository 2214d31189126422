"""What a guard decides, as pure functions of the certified radius and of distances to valid inputs.

With r the model's certified radius, `own` and `other` the distances to the nearest valid input of the predicted class
and of another one (see `Nearest`), and reach = separation - epsilon:

- *by the check*: `min(r, other) > epsilon`, radius `min(r, other)`. With the model's own labels, other >= r anyway.
- *by neighbours*: `own < reach` and `other > reach` and `r > 0`. With `room = min(reach - own, other - reach, r)`,
  each of the three falls by at most t when the input moves by t, and the label holds for t < r: so for t < room the
  input is still answered. The certified radius is still r, which is what the check alone proves about the class.
- *adversarial*: `other <= epsilon`; two classes are in reach.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from defended.membership.oracle import Nearest
from defended.numerics.float32 import FLOAT_MAX

# Outweighs the roundings of two subtractions, a sum, and of the bounds themselves where the input has moved.
_DOWN = 1.0 - 2.0**-18


class Reach(NamedTuple):
    """The radii of a decision."""

    epsilon: Any
    neighbours: Any
    """`separation - epsilon`, within which a stored point may answer."""
    accepting: bool
    """Whether neighbours may answer at all."""
    blur: Any = 0.0
    """`MembershipOracle.blur` as far as answers can depend on it."""


class Decision(NamedTuple):
    """The decisions on each input; tensors `[batch]`."""

    radius: Any
    """float32, finite, above epsilon exactly where the check answers the input."""
    neighbour_radius: Any
    """float32, above epsilon, where neighbours answer; 0 elsewhere. What it exceeds epsilon by is the distance within
    which they still do, or 2^-20 of epsilon."""
    by_check: Any
    by_neighbours: Any
    """True where only neighbours answer."""
    adversarial: Any


def decide(radius: Any, positive: Any, near: Nearest, reach: Reach) -> Decision:
    """Decide on each input by its certified radius `[batch]`, how far that stays positive, and the distances."""
    checked = ops.minimum(radius, near.other)
    by_check = checked > reach.epsilon
    neighbourly = answered_by_neighbours(radius, near, reach)
    # A room that rounds to nothing answers nothing.
    by_neighbours = ~by_check & (neighbourly > reach.epsilon)
    radius = ops.minimum(ops.maximum(checked, 0.0), FLOAT_MAX)
    beyond = ops.maximum(_room(positive, near, reach), reach.epsilon * 2.0**-20)
    neighbour_radius = ops.where(neighbourly > reach.epsilon, ops.minimum(reach.epsilon + beyond, FLOAT_MAX), 0.0)
    return Decision(radius, neighbour_radius, by_check, by_neighbours, near.other <= reach.epsilon)


def answered_by_neighbours(radius: Any, near: Nearest, reach: Reach) -> Any:
    """Return the radius of an answer by neighbours: above epsilon where there is one; 0 where there is none."""
    if not reach.accepting:
        return ops.zeros_like(radius)
    room = ops.minimum(reach.neighbours - near.own, near.other - reach.neighbours)
    room = ops.minimum(room, radius) * _DOWN - reach.neighbours * 2.0**-18
    return ops.where(room > 0, reach.epsilon + room, ops.zeros_like(room))


def still_answered(above_epsilon: Any, positive: Any, near: Nearest, reach: Reach) -> Any:
    """Return the distance within which an input stays answered, by the check or by neighbours, `[batch]`, at least 0.

    Args:
        above_epsilon: `[batch]`, the distance within which the model's radius, as float32 computes it, stays above
            epsilon.
        positive: `[batch]`, the distance within which it stays positive.
        near: distances to valid inputs, each of which falls by at most t when the input moves by t.
        reach: the radii of the decision.
    """
    least = _blurred(reach.epsilon, reach.blur)
    by_check = ops.minimum(above_epsilon, (near.other - least) * _DOWN - reach.epsilon * 2.0**-18)
    return ops.minimum(ops.maximum(ops.maximum(by_check, _room(positive, near, reach)), 0.0), FLOAT_MAX)


def _room(positive: Any, near: Nearest, reach: Reach) -> Any:
    """Return the distance within which neighbours still answer, `[batch]`; what is not positive promises nothing.

    At a point so far away, `own` is at most the reach, `other` at least, the radius positive, and the room that
    `answered_by_neighbours` finds there is still above what it subtracts and what epsilon rounds away.
    """
    if not reach.accepting:
        return ops.zeros_like(positive)
    room = ops.minimum(
        _blurred(reach.neighbours, reach.blur, -1.0) - near.own, near.other - _blurred(reach.neighbours, reach.blur)
    )
    return ops.minimum(room, positive) * _DOWN - (2 * reach.neighbours + reach.epsilon) * 2.0**-18


def _blurred(level: Any, blur: Any, sign: float = 1.0) -> Any:
    """Return `sqrt(level^2 + sign * blur^2)`, 0 where that is negative, without overflow."""
    share = blur / level
    return level * ops.sqrt(ops.maximum(1.0 + sign * share * share, 0.0))


def guarded_radii(radii: Any, near: Nearest, reach: Reach) -> Any:
    """Return what `decide` gives for each competitor: radii `[batch, m]`, the smallest the input's; differentiable.

    The guard's radius is the larger of two minima over the competitors; all entries belong to the larger one.
    """
    other = near.other[:, None]
    checked = ops.minimum(radii, other)
    if not reach.accepting:
        return checked
    room = ops.minimum((reach.neighbours - near.own)[:, None], other - reach.neighbours)
    room = ops.minimum(room, radii) * _DOWN - reach.neighbours * 2.0**-18
    neighbourly = reach.epsilon + ops.minimum(room, FLOAT_MAX / 4)
    # Without room, an attack sees by how much it is missing.
    larger = ops.min(neighbourly, axis=-1, keepdims=True) > ops.maximum(
        ops.min(checked, axis=-1, keepdims=True), reach.epsilon
    )
    return ops.where(larger, neighbourly, checked)
