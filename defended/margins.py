"""Margins, radii and the score of ⊥, as pure functions of logits and Lipschitz constants.

Throughout, `j = argmax(logits)` is the predicted class, found once and masked by *index*, so that a tie between two
classes leaves a competitor with margin 0, and the point is rejected.

Rounding. The functions work in the logits' floating-point type with unit roundoff u = 2^-24 (float32). A margin is one
subtraction (relative error u), `epsilon * K` one product (u), epsilon itself was rounded once when it was stored (u)
and the shrinking factor below adds one product (u). `_DOWN = 1 - 8u` outweighs the four, so a positive slack proves
`y_j - y_i > epsilon * K_ij` for the logits as computed.
"""

from __future__ import annotations

from typing import Any

from keras import ops

FLOAT_MAX = 3.4028234663852886e38
"""Stands for "no finite radius": the largest finite float32."""

_DOWN = 1.0 - 2.0**-21
_TINY = 2.0**-126  # the smallest normal float32; smaller ones may be flushed to zero


def predicted_class(logits: Any) -> Any:
    """Index of the largest logit, `[batch]` int32; the first one in a tie."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def competitor_margins(logits: Any, predicted: Any) -> Any:
    """`y_j - y_i` for every class i, `[batch, m]`, never above the exact difference; the entry of j itself is 0."""
    top = ops.take_along_axis(logits, predicted[:, None], axis=-1)
    return (top - logits) * _DOWN


def competitor_radii(logits: Any, lipschitz: Any) -> Any:
    """Radius up to which class i provably cannot reach the predicted class j (Leino et al. 2021, section 3).

    Args:
        logits: `[batch, m]`.
        lipschitz: `[batch, m]`, row j of K for each input: Lipschitz constants of `y_j - y_i`.

    Returns:
        `[batch, m]`: `(y_j - y_i) / K_ij`, rounded down; `FLOAT_MAX` for i = j and for competitors that keep a positive
        distance everywhere (K_ij = 0); 0 for ties.
    """
    predicted = predicted_class(logits)
    margins = competitor_margins(logits, predicted)
    moves = lipschitz > 0
    radii = margins / ops.where(moves, lipschitz, ops.ones_like(lipschitz))
    radii = ops.where(moves, ops.minimum(radii, FLOAT_MAX), ops.where(margins > 0, FLOAT_MAX, 0.0))
    return ops.where(_is_predicted(logits, predicted), FLOAT_MAX, radii)


def certified_slack(logits: Any, lipschitz: Any, epsilon: Any) -> Any:
    """`min over i != j of (y_j - y_i) - epsilon * K_ij`, `[batch]`: positive exactly where the ball is certified."""
    predicted = predicted_class(logits)
    slack = competitor_margins(logits, predicted) - epsilon * lipschitz
    return ops.min(ops.where(_is_predicted(logits, predicted), FLOAT_MAX, slack), axis=-1)


def bottom_score(top: Any, slack: Any) -> Any:
    """The score of ⊥: `top - slack`, and strictly above `top` wherever the slack is not positive (or NaN).

    A slack of exactly 0 means that the closed ball touches the decision boundary. `argmax` breaks ties in favour of the
    lower index, which would answer; so the score is lifted above `top` by two units in the last place.
    """
    bottom = top - slack
    lifted = top + ops.maximum(ops.abs(top) * 2.0**-22, _TINY)
    return ops.where(bottom < top, bottom, ops.where(bottom > lifted, bottom, lifted))


def finite_rows(values: Any) -> Any:
    """`[batch]` bool: True where every entry of the row is finite."""
    finite = ops.isfinite(values)
    return ops.all(ops.reshape(finite, (ops.shape(finite)[0], -1)), axis=-1)


def _is_predicted(logits: Any, predicted: Any) -> Any:
    return ops.arange(logits.shape[-1], dtype="int32")[None, :] == predicted[:, None]
