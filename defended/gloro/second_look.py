"""A second look, in float64, at inputs that nothing but the rounding of float32 rejects.

An input is answered where its radius, less what rounding may cost, exceeds epsilon. Where it would exceed epsilon
without that cost, the network is evaluated once more, in float64 and for these inputs alone, and the class that float32
found is answered if the float64 margins are large enough.

What float64 may err by is taken from what was proven of float32. Every term of a bound in `gloro.rounding` has one of
three as a factor: an earlier error, `gamma_n`, or the smallest normal number. In float64 the unit roundoff is 2^-29 of
float32's and the smallest normal number 2^-896 of it, and here an inner product is added up whole, of at most
`float64.LONGEST = 2^19` terms: at most 2^12 times as many as the roundings that were counted for it in blocks (it is
361 times at most, by going through all numbers of channels and taps). So each factor, and with it each error, is at
most 2^12 * 2^-29 = 2^-17 of what it is for float32. `SHARE` is twice that. Exponentials, too, are taken to keep in
float64 as many units of roundoff as in float32.

Radii that are asked for, as in audits, are looked at where they decide about 2 epsilon, too: a deployment at twice the
radius would look there, and availability rests on it.

Float32 numbers below 2^-126 may be flushed to zero before they are converted. Weights that small are refused. The
entries of an input move by less than 2^-126 each, and the radius by less than `FLUSHED`, which is subtracted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from defended.certificate import Finding
from defended.gloro.certificate import lasting
from defended.gloro.float64 import Float64Evaluation
from defended.margins import Budget, Leader
from defended.networks.tracing import Step
from defended.numerics.float32 import FLOAT_MAX, SMALLEST_NORMAL

SHARE = 2.0**-16
"""Of the budget for float32, what an evaluation in float64 may err by."""

FLUSHED = 2.0**-110
"""More than 2^-126 times the root of the size of any input, at most 2^24."""


class Terms(NamedTuple):
    """What the radii of a batch are made of."""

    first: Leader
    rows: Any
    """`[batch, m]`, the predicted class' rows of K."""
    budget: Budget
    spent: Any
    """`[3]`: t0, t1 and the limit, see `rounding_budget`."""
    norm: Any
    """`[batch, 1]`, |x|."""
    input_size: int


class SecondLook:
    """Answers what float64 proves, of the inputs that nothing but the rounding of float32 rejects.

    Args:
        steps: the network's layers in the order in which they run.

    Raises:
        ValueError: Keras does not run on TensorFlow, or as `Float64Evaluation`.
    """

    def __init__(self, steps: Sequence[Step]):
        if keras.backend.backend() != "tensorflow":
            raise ValueError("`second_look` needs Keras on TensorFlow: it takes a number of inputs that varies.")
        self.evaluate = Float64Evaluation(steps)

    def look(self, found: Finding, inputs: Any, terms: Terms, epsilon: Any) -> Finding:
        """Return a finding of float32, completed by what float64 finds.

        Args:
            found: what float32 proves.
            inputs: `[batch, ...]`.
            terms: what its radii were made of.
            epsilon: the radius asked for.
        """
        import tensorflow as tf

        radius = found.radius()
        undecided = _undecided(radius, terms, epsilon)

        def looked() -> tuple[Any, Any]:
            index = tf.where(undecided)
            rows, rivals = tf.gather_nd(terms.rows, index), tf.gather_nd(terms.first.rivals, index)
            radii = self._radii(inputs, terms, index)
            smallest = tf.reduce_min(radii, axis=1)
            distances = (radii - epsilon) * tf.maximum(rows, SMALLEST_NORMAL)
            slack = tf.reduce_min(tf.where(rivals, distances, FLOAT_MAX), axis=1)
            better = smallest > epsilon
            slack = tf.where(better, tf.maximum(slack, SMALLEST_NORMAL), tf.gather_nd(found.slack, index))
            smallest = tf.where(better, smallest, tf.gather_nd(radius, index))
            return (
                tf.tensor_scatter_nd_update(radius, index, smallest),
                tf.tensor_scatter_nd_update(found.slack, index, slack),
            )

        at_epsilon, slack = tf.cond(tf.reduce_any(undecided), looked, lambda: (radius, found.slack))

        @functools.cache
        def at_twice() -> Any:
            """The radii, looked at where they decide about 2 epsilon, too; nobody computes it for a mere answer."""
            near = _undecided(at_epsilon, terms, 2 * epsilon)
            return tf.cond(
                tf.reduce_any(near), lambda: self._enlarged(at_epsilon, inputs, terms, near), lambda: at_epsilon
            )

        def lasting_above(level: Any) -> Any:
            spent, norm, size, radius = terms.spent, terms.norm[:, 0], terms.input_size, at_twice()
            in_float32 = lasting(radius, level, spent, norm, size)
            if level is not epsilon:  # nobody looks twice elsewhere
                return in_float32
            t0, t1, _ = tf.unstack(spent)
            above = level + 4 * FLUSHED
            # Float32 must find the right class there, which it does where it errs by less than epsilon.
            left = epsilon * (1 - 2.0**-18) - (t0 + t1 * norm) * (1 + 2.0**-8)
            found_right = left / tf.maximum(t1 * (1 + 2.0**-8), SMALLEST_NORMAL)
            return tf.maximum(in_float32, tf.minimum(lasting(radius, above, spent, norm, size, SHARE), found_right))

        return found._replace(slack=slack, radius=at_twice, lasting=lasting_above)

    def everywhere(self, found: Finding, inputs: Any, terms: Terms) -> Any:
        """Return the radii `[batch]` that deployments at any epsilon would answer by, all looked at twice."""
        import tensorflow as tf

        radius = found.radius()
        return self._enlarged(radius, inputs, terms, tf.math.is_finite(radius))

    def _enlarged(self, radius: Any, inputs: Any, terms: Terms, chosen: Any) -> Any:
        """Return radii `[batch]`, at the inputs chosen no smaller than float64 finds them."""
        import tensorflow as tf

        index = tf.where(chosen)
        found = tf.reduce_min(self._radii(inputs, terms, index), axis=1)
        # `tensor_scatter_nd_max` is not among the operations that artefacts may hold.
        return tf.tensor_scatter_nd_update(radius, index, tf.maximum(found, tf.gather_nd(radius, index)))

    def _radii(self, inputs: Any, terms: Terms, index: Any) -> Any:
        """Radii of the predicted class by float64 margins, rounded down, `[k, m]` float32, at inputs numbered `[k, 1]`.

        They are within the limit, `FLOAT_MAX` for the class itself.
        """
        import tensorflow as tf

        inputs, predicted = tf.gather_nd(inputs, index), tf.gather_nd(terms.first.predicted, index)
        rows, rivals = tf.gather_nd(terms.rows, index), tf.gather_nd(terms.first.rivals, index)
        paid = tf.gather_nd(terms.budget.paid, index)
        logits = self.evaluate(inputs)
        margins = tf.gather(logits, predicted, batch_dims=1)[:, None] - logits
        constants = tf.cast(tf.maximum(rows, SMALLEST_NORMAL), tf.float64)
        radii = margins / constants * (1 - 2.0**-40) - SHARE * tf.cast(paid, tf.float64) - FLUSHED
        # A conversion rounds to the nearest float32, by 2^-24 at most.
        radii = tf.cast(tf.minimum(radii * (1 - 2.0**-22), FLOAT_MAX), tf.float32)
        return tf.minimum(tf.where(rivals, radii, FLOAT_MAX), tf.gather_nd(terms.budget.limit, index))


def _undecided(radius: Any, terms: Terms, epsilon: Any) -> Any:
    """Return at which inputs `[batch]` nothing but rounding keeps a radius from exceeding epsilon.

    Whatever has a true radius above epsilon is among them: computed, it may be low by `paid`, and pays it again. A
    rounding more or less is covered by 2^-18.
    """
    paid, limit = terms.budget.paid[:, 0], terms.budget.limit[:, 0]
    without = radius + 2 * (1 + 2.0**-18) * paid + epsilon * 2.0**-18
    return (radius <= epsilon) & (without > epsilon) & (limit > epsilon)
