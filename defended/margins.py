"""Margins, radii and the score of ⊥, as pure functions of logits and Lipschitz constants.

Throughout, `j = argmax(logits)` is the predicted class, found once and masked by *index*, so that a tie between two
classes leaves a competitor with margin 0, and the point is rejected.

Rounding. The functions work in the logits' floating-point type with unit roundoff u = 2^-24 (float32). A margin is one
subtraction, the division by K another rounding, the budget's product, sum and rounding to float32 four; epsilon was
rounded once when it was stored. `_DOWN = 1 - 16u` outweighs them all, so what is certified for the logits and the
constants as given is certified in real arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from defended.numerics.float32 import FLOAT_MAX, MACHINE_EPSILON, SMALLEST_NORMAL, UNIT_ROUNDOFF

_DOWN = 1.0 - 16 * UNIT_ROUNDOFF


class Leader(NamedTuple):
    """The predicted class of each input, found once."""

    predicted: Any
    """`[batch]` int32, the index of the largest logit; the first one in a tie."""
    top: Any
    """`[batch, 1]`, the largest logit."""
    rivals: Any
    """`[batch, m]` bool, True for every other class."""


def leader(logits: Any) -> Leader:
    """Find the predicted class of logits `[batch, m]`."""
    top, indices = ops.top_k(logits, 1)
    indices = ops.cast(indices, "int32")
    return Leader(indices[:, 0], top, ops.not_equal(ops.arange(logits.shape[-1], dtype="int32"), indices))


def predicted_class(logits: Any) -> Any:
    """Return the index of the largest logit, `[batch]` int32; the first one in a tie."""
    return leader(logits).predicted


def competitor_margins(logits: Any, top: Any) -> Any:
    """Return `y_j - y_i` for every class i, `[batch, m]`, never above the exact one; `top` is y_j, `[batch, 1]`."""
    # A difference that overflowed would promise more than it is.
    return ops.minimum(top - logits, FLOAT_MAX) * _DOWN


class Budget(NamedTuple):
    """What float32 evaluation may cost, in units of the radius: tensors `[batch, 1]`, or numbers.

    The error of a difference of logits at the input is at most `K_ij * paid`.
    """

    paid: Any = 0.0
    limit: Any = FLOAT_MAX
    """The largest radius within which nothing overflows, the logits included; negative where nothing is safe."""


def competitor_radii(logits: Any, lipschitz: Any, budget: Budget | None = None, first: Leader | None = None) -> Any:
    """Return the radius up to which class i provably cannot reach the predicted class j (Leino et al. 2021, section 3).

    Args:
        logits: `[batch, m]`.
        lipschitz: `[batch, m]`, row j of K for each input: Lipschitz constants of `y_j - y_i`.
        budget: by how much evaluation may err; None counts the logits as exact.
        first: `leader(logits)`, where it is known.

    Returns:
        `[batch, m]`: `(y_j - y_i) / K_ij - paid`, rounded down; `FLOAT_MAX` for i = j and, without a budget, for
        competitors that keep a positive distance everywhere (K_ij = 0); 0 or less for ties.
    """
    first = first or leader(logits)
    radii = _radii(logits, _constants(lipschitz), budget, first)
    if budget is not None:
        radii = ops.where(budget.limit >= 0, radii, -1.0)
    return ops.where(first.rivals, radii, FLOAT_MAX)


def radius_slack(
    logits: Any, lipschitz: Any, epsilon: Any, budget: Budget | None = None, first: Leader | None = None
) -> Any:
    """Return `min over i != j of (r_i - epsilon) * K_ij`, `[batch]`, in units of the logits.

    Positive where every radius exceeds epsilon, as compared in float32, and nowhere else: so the answer and the radius
    agree to the last bit. A constant of 0 counts as the smallest normal number. Arguments are as in `competitor_radii`,
    with the radius epsilon; r_i is the radius that it returns.
    """
    first = first or leader(logits)
    constants = _constants(lipschitz)
    radii = _radii(logits, constants, budget, first)
    smallest = ops.min(ops.where(first.rivals, radii, FLOAT_MAX), axis=-1)
    slack = ops.min(ops.where(first.rivals, (radii - epsilon) * constants, FLOAT_MAX), axis=-1)
    # A small difference times a small constant may vanish, and then no longer says on which side it was.
    slack = ops.where(smallest > epsilon, ops.maximum(slack, SMALLEST_NORMAL), ops.minimum(slack, 0.0))
    return slack if budget is None else ops.where(budget.limit[:, 0] >= 0, slack, -1.0)


def _constants(lipschitz: Any) -> Any:
    # A constant of 0 becomes the smallest normal number: a tie has radius 0, any distance an enormous one.
    return ops.maximum(lipschitz, SMALLEST_NORMAL)


def _radii(logits: Any, constants: Any, budget: Budget | None, first: Leader) -> Any:
    """Return radii that hold for competitors only and, with a budget, where its limit is not negative: elsewhere the
    input's norm, and with it all that is computed here, may be infinite or not a number.
    """
    if budget is None:
        return ops.minimum(competitor_margins(logits, first.top) / constants, FLOAT_MAX)
    return ops.minimum(competitor_margins(logits, first.top) / constants - budget.paid, budget.limit)


def take_rows(matrix: Any, classes: Any) -> Any:
    """Return the rows `[batch, m]` of a matrix for classes `[batch]`, whole numbers in range.

    On TensorFlow it is a single operation: `ops.take` allows for negative numbers, which costs four more.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.take(matrix, classes, axis=0)
    import tensorflow as tf

    return tf.gather(matrix, classes)


def spent_radius(logits: Any, lipschitz: Any, slack: Any) -> Any:
    """Return the c, `[batch]`, for which `slack` is `min over i != j of (y_j - y_i) - c * K_ij`."""
    first = leader(logits)
    left = competitor_margins(logits, first.top) - slack[:, None]
    return ops.min(ops.where(first.rivals, left / ops.maximum(lipschitz, SMALLEST_NORMAL), FLOAT_MAX), axis=-1)


def certified_slack(logits: Any, lipschitz: Any, epsilon: Any) -> Any:
    """Return `min over i != j of (y_j - y_i) - epsilon * K_ij`, `[batch]`: positive where the ball is certified.

    This is the form that training differentiates, with estimates for K.
    """
    first = leader(logits)
    slack = competitor_margins(logits, first.top) - epsilon * lipschitz
    return ops.min(ops.where(first.rivals, slack, FLOAT_MAX), axis=-1)


def bottom_score(top: Any, slack: Any) -> Any:
    """Return the score of ⊥: `top - slack`, strictly below `top` where the slack is positive, otherwise above.

    A slack of exactly 0 means that the closed ball touches the decision boundary. `argmax` breaks ties in favour of the
    lower index, which would answer; so the score is lifted above `top` by two units in the last place. It lies as
    far below `top` where a positive slack is too small to change `top`.
    """
    bottom, step = top - slack, ops.maximum(ops.abs(top) * (2 * MACHINE_EPSILON), SMALLEST_NORMAL)
    above = top + step
    return ops.where(slack > 0, ops.minimum(bottom, top - step), ops.where(bottom > above, bottom, above))


def finite_rows(values: Any) -> Any:
    """Return whether every entry of a row is finite, `[batch]` bool."""
    return ops.all(ops.isfinite(values), axis=tuple(range(1, len(values.shape))))
