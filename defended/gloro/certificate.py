"""The deployed constants of a GloRo Net's certificate, and what they are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from keras import ops

from defended.gloro.graph import LipschitzGraph
from defended.gloro.proof import LayerBound, Proof
from defended.numerics.float32 import FLOAT_MAX, SMALLEST_NORMAL, UNIT_ROUNDOFF, gamma
from defended.numerics.matrix_norms import round_up_to_float32
from defended.text_table import text_table

Array = np.ndarray[Any, np.dtype[Any]]

NO_BUDGET = np.array([0.0, 0.0, 2.0**62], "float32")
"""The budget of a model that counts its logits as exact: only the input's norm must be found without overflow."""


def rounding_budget(proof: Proof, input_size: int, counted: bool = True) -> tuple[Array, Array]:
    """Return K `[m, m]` and the rounding budget `[3]` in float32, rounded so that they keep what was proven.

    `y_j - y_i` is computed at x within `c0 + c1 * |x|`, which is at most `K_ij * (t0 + t1 * |x|)` for
    `t0 = c0 / K_ij` and `t1 = c1 / K_ij`, with the largest quotients among the pairs. Pairs whose K_ij is far below the
    others' would spoil the quotient for all; their K_ij is enlarged until it covers their error.

    The error at x is all that an answer's radius pays. It leaves j as the *exact* class within r; and whatever point
    in the ball is answered has paid for its own error, so that it is answered by its exact class, which is j.

    Args:
        proof: what was proven of the network.
        input_size: entries of an input.
        counted: False returns K and `NO_BUDGET`.

    Returns:
        K and `(t0, t1, limit)`; `|x| + r` must not exceed the limit.
    """
    m = len(proof.margins)
    others = ~np.eye(m, dtype=bool)
    if not counted:
        return round_up_to_float32(proof.margins), NO_BUDGET
    constants = np.where(others, np.maximum(proof.margins, SMALLEST_NORMAL), 0.0)
    typical = others & (constants >= 2.0**-10 * constants.max())
    with np.errstate(over="ignore", invalid="ignore"):
        t0, t1 = (float(np.max(part[typical] / constants[typical])) for part in proof.errors)
        needed = np.maximum(*(part / max(t, SMALLEST_NORMAL) for part, t in zip(proof.errors, (t0, t1), strict=True)))
        # The norm is computed in float32: n roundings, halved by the root, which is rounded itself, make it low by
        # gamma(n / 2 + 1) at most. At most 2 n squares and sums may be flushed to zero: |x| loses sqrt(2 n 2^-126),
        # here counted twice, since `lasting` meets it twice. A graph rounds `t0 + t1 |x|` twice, float64 all that is
        # here less than once.
        flushed = 2.0 * (2 * input_size * SMALLEST_NORMAL) ** 0.5
        t1 *= 1 + gamma(input_size + 16)
        budget = np.array([t0 + t1 * flushed, t1]) * (1 + 16 * UNIT_ROUNDOFF)
    constants = np.where(others, np.maximum(constants, needed), 0.0)
    values = round_up_to_float32(budget)
    # Within the limit the input's norm, too, is found without overflow: its square stays below 2^125. It may be found
    # low, which is covered by what `LARGEST` leaves to the largest float32.
    limit = np.float32(min(proof.limit, 2.0**62) * (1 - 2.0**-20))
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(constants)) and limit > 0):
        # Nothing can be proven of such weights, so nothing is answered.
        return round_up_to_float32(np.where(others, np.minimum(proof.margins, FLOAT_MAX), 0.0)), _NOTHING
    return round_up_to_float32(constants), np.array([*values, limit], "float32")


_NOTHING = np.array([0.0, 1.0, -1.0], "float32")


def lasting(radius: Any, level: Any, budget: Any, norm: Any, input_size: int, share: float = 1.0) -> Any:
    """Return the distance from an input within which the radius, as float32 computes it, stays above `level`.

    Let r be the radius at x, and P(x) = t0 + t1 |x|, so that K_ij P bounds the error of `y_j - y_i`. At x' with
    |x' - x| = d the exact difference is at least K_ij (r - d), the computed one at least K_ij (r - d - P(x')), and the
    radius pays P(x') once more: it is at least `r - d - 2 P(x')`, where P(x') <= P(x) + t1 d. So it stays above the
    level within

        d = (r - level - 2 P(x)) / (1 + 2 t1).

    In float32 the norm at x' may be found too large, and that at x too small, by gamma(n / 2 + 2) each: so the factor
    2 is a little more. `_DOWN` of `defended.margins` and the roundings around it take at most 21 u off the quotient at
    x', and the formula here is off by at most 8 u of its terms. All are made up for by a level, a price and a result
    that are 64 u on the safe side. A level of 0 is lifted above what is flushed to zero.

    Args:
        radius: `[batch]`, the certified radius.
        level: a positive number or 0.
        budget: `(t0, t1, limit)` of `rounding_budget`, as a tensor.
        norm: `[batch]`, |x| as float32 computes it.
        input_size: entries of an input.
        share: of the budget, where what is computed errs by less.

    Returns:
        `[batch]`; what is not positive promises nothing.
    """
    t0, t1, limit = ops.unstack(budget)
    apart = gamma(input_size + 32)
    twice = 2 * share * (1 + apart) * (1 + 64 * UNIT_ROUNDOFF)
    level = ops.maximum(level * (1 + 64 * UNIT_ROUNDOFF), 2.0**-120)
    distance = (radius - level - twice * (t0 + t1 * norm)) / (1 + twice * t1)
    # The point must be within the limit, too, by more than the level.
    room = limit / ((1 + apart) * (1 + 64 * UNIT_ROUNDOFF)) - norm - level
    return ops.minimum(distance, room) * (1 - 64 * UNIT_ROUNDOFF)


@dataclass(frozen=True)
class CertificateReport:
    """What a GloRo Net's certificate is made of; `print` shows it as a table."""

    layers: tuple[LayerBound, ...]
    lipschitz: float
    """Proven Lipschitz constant of the hidden layers."""
    at_norm: float
    """The l2 norm of an input for which errors and `radius_spent` are stated."""
    budget: tuple[float, float, float]
    """`(t0, t1, limit)`: a radius is `(y_j - y_i) / K_ij - t0 - t1 * |x|`, with `|x| <= limit`."""

    @property
    def radius_spent(self) -> float:
        """What rounding takes off the radius of an input of norm `at_norm`, in input units."""
        t0, t1, *_ = self.budget
        return t0 + t1 * self.at_norm

    @staticmethod
    def of(graph: LipschitzGraph, at_norm: float, budget: Array) -> CertificateReport:
        """Make the report on a graph with the budget `[3]` that was deployed."""
        lines: list[LayerBound] = []
        proof = graph.prove(lines, at_norm)
        t0, t1, limit = (float(value) for value in budget)
        return CertificateReport(tuple(lines), proof.constant, at_norm, (t0, t1, limit))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return {
            **asdict(self),
            "layers": [layer._asdict() for layer in self.layers],
            "radius_spent": self.radius_spent,
        }

    def __str__(self) -> str:
        head = ("layer", "class", "bound", "slack", "method", "roundings", "float32 error")
        rows = [
            (
                line.layer, line.kind, f"{line.bound:.9g}", f"{line.slack:.1e}", line.method, str(line.roundings),
                f"{line.error:.2e}",
            )
            for line in self.layers
        ]  # fmt: skip
        table = text_table([head, *rows], left=range(len(head)))
        return (
            f"{table}\n"
            f"Lipschitz constant of the hidden layers: {self.lipschitz:.9g}\n"
            f"Rounding takes {self.radius_spent:.3g} off the radius of an input of norm {self.at_norm:.3g}; "
            f"errors are stated for that norm."
        )
