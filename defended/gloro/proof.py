"""What is proven of a network for its weights as they are, and the proof's last step: differences of logits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from keras import layers

from defended.gloro.operators import in_float64
from defended.gloro.rounding import Evaluated, affine
from defended.gloro.rules import RuledStep
from defended.numerics import float64
from defended.numerics.float32 import SMALLEST_NORMAL, gamma

Array = np.ndarray[Any, np.dtype[Any]]


class LayerBound(NamedTuple):
    """One line of the certificate: what was proven of a layer."""

    layer: str
    kind: str
    """Class of the layer."""
    method: str
    bound: float
    """Upper bound on its Lipschitz constant; for the last layer, on the largest distance between two columns."""
    slack: float
    """`bound / lower - 1`, with a lower estimate of the norm by float32 power iteration; 0 for known constants."""
    roundings: int
    error: float
    """Bound on the l2 error of its output at an input of norm `at_norm`, all earlier layers included."""

    @staticmethod
    def of(step: RuledStep, norm: float | None, value: Evaluated, at_norm: float) -> LayerBound:
        """Make the line for a hidden layer.

        Args:
            step: the layer's use.
            norm: the proven bound on its operator's norm, if it has one.
            value: bounds on its output.
            at_norm: the input's norm for which the error is stated.
        """
        rule, operator = step.rule, step.rule.operator
        bound = rule.bound([1.0], norm) if len(step.inputs) == 1 else rule.factor
        method, slack = "closed form", 0.0
        if operator is not None:
            method = operator.method
            lower = operator.lower_estimate()
            slack = max((norm or 0.0) / lower - 1, 0.0) if lower else 0.0
        elif type(step.layer) is layers.BatchNormalization:
            method = "folded into the layer before"
        elif len(step.inputs) > 1:
            merges = {"sum": "branches add", "mean": "branches average", "hypot": "root of the sum of squares"}
            method = merges[rule.merge]
        error = float(value.error[0] + value.error[1] * at_norm)
        return LayerBound(step.layer.name, type(step.layer).__name__, method, bound, slack, rule.roundings, error)


class Proof(NamedTuple):
    """What holds of a network for its weights as they are, in float64."""

    constant: float
    """Lipschitz constant of the hidden layers."""
    margins: Array
    """`[m, m]`, Lipschitz constants of `y_j - y_i` in real arithmetic; 0 on the diagonal."""
    errors: tuple[Array, Array]
    """`[m, m]` c0 and c1: `y_j - y_i` is computed within `c0 + c1 * rho` on inputs of norm at most rho."""
    limit: float
    """Largest norm of an input on which nothing can overflow; negative where there is none."""
    norms: Array = np.zeros(0)
    """`[k]`, bounds on the norms of the hidden layers' linear maps, in the order of `LipschitzGraph.operators`."""
    slot_errors: Mapping[int, Array] = MappingProxyType({})
    """For each value that is evaluated as it was bounded, c0 and c1: it is computed within `c0 + c1 * rho`, in l2."""


class Differences(NamedTuple):
    """What is proven of the differences of a network's logits, from bounds on the value before the last layer."""

    margins: Array
    """As in `Proof`."""
    errors: tuple[Array, Array]
    """As in `Proof`."""
    terms: list[Array]
    """Bounds on the sums of magnitudes from which a logit is added up; empty where it is the value itself."""


def differences_of_entries(classes: int, constant: float, value: Evaluated) -> Differences:
    """Bound the differences of the entries of a value `[m]`, where no Dense layer is the last one.

    `|(a_j - b_j) - (a_i - b_i)| <= sqrt(2) |a - b|`, for values at two points as for a value and its computed one. The
    root and two products are rounded: at most `3 * 2^-53 < 2^-51`.
    """
    root = np.sqrt(2.0) * (1 + 4 * float64.UNIT_ROUNDOFF)
    c0, c1 = (root * part * np.ones((classes, classes)) for part in value.error)
    return Differences(root * constant * (1 - np.eye(classes)), (c0, c1), [])


def differences_of_logits(head: layers.Dense, roundings: int, constant: float, value: Evaluated) -> Differences:
    """Bound the differences of the logits `y_j = w_j x + b_j`, by `|w_j - w_i|` for each pair of classes.

    With x the exact and z the computed value before the layer, and the norms of `|w_j| + |w_i|` (magnitudes, entry by
    entry) as `sums`, the computed difference of two logits is off by at most

    - `|w_j - w_i| |z - x|`, what z errs by;
    - `gamma(roundings) * (sums |z| + |b_j| + |b_i|)`, the rounding of two inner products;
    - `1 + gamma(roundings)` times the numbers that are flushed to zero, each a change by less than t = 2^-126: entries
      of z, `t sqrt(n) sums`; weights, `2 t sqrt(n) |z|`, since `|z|_1 <= sqrt(n) |z|`; and of each logit n products,
      at most n partial sums, the result among them, and the bias: `2 (2 n + 1) t <= 6 (n + 1) t`.

    Raises:
        ValueError: when the weights are not all finite.
    """
    from scipy.spatial.distance import cdist

    kernel = in_float64(head.kernel).T
    bias = np.abs(in_float64(head.bias)) if head.use_bias else np.zeros(len(kernel))
    largest = float(np.max(np.abs(kernel), initial=0.0))
    if not np.isfinite(largest + bias.max()):
        raise ValueError(
            f"Layer {head.name!r} cannot be bounded: the weights are not all finite. "
            f"Restore them from a checkpoint before certifying."
        )
    exponent = int(np.frexp(largest)[1]) if largest else 0
    scaled = np.ldexp(kernel, -exponent)
    size = kernel.shape[1]
    # A distance is the root of a sum of n squares. A difference is rounded at most once, and counts twice in its
    # square; with the square, n - 1 sums, the root, which halves all these, and this factor, there are
    # (3 + n - 1) / 2 + 2 <= n + 6 roundings. No square vanishes: scaled numbers are multiples of 2^-277.
    up = 1 + (size + 8) * float64.UNIT_ROUNDOFF
    distances = np.ldexp(cdist(scaled, scaled) * up, exponent)
    sums = np.ldexp(cdist(np.abs(scaled), -np.abs(scaled)) * up, exponent)
    relative = gamma(roundings)
    computed = value.magnitude + value.error
    biases = bias[:, None] + bias[None, :]
    errors = []
    for part, (error, norm) in enumerate(zip(value.error, computed, strict=True)):
        constant_part = float(part == 0)  # what does not grow with the input's norm
        flushed = SMALLEST_NORMAL * (2 * size**0.5 * norm + constant_part * (6 * (size + 1) + size**0.5 * sums))
        terms = sums * norm + constant_part * biases
        # All terms are positive, and none goes through more than 16 roundings: 16 * 2^-53 < 2^-48.
        errors.append((distances * error + relative * terms + (1 + relative) * flushed) * (1 + 2.0**-48))
    # A single logit's terms are at most those of its pair with itself.
    diagonal = np.diag(sums).max()
    sums_of_logits = diagonal * computed + affine(2 * bias.max())
    # Two products are rounded.
    margins = distances * constant * (1 + 4 * float64.UNIT_ROUNDOFF)
    return Differences(margins, (errors[0], errors[1]), [sums_of_logits])
