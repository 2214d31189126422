"""The deployed constants of a GloRo Net's certificate, and what they are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from defended.gloro.graph import LipschitzGraph
from defended.gloro.proof import LayerBound, Proof
from defended.numerics.float32 import FLOAT_MAX, SMALLEST_NORMAL, UNIT_ROUNDOFF, gamma
from defended.numerics.matrix_norms import round_up_to_float32

Array = np.ndarray[Any, np.dtype[Any]]

NO_BUDGET = np.array([0.0, 0.0, 1.0, 2.0**62], "float32")
"""The budget of a model that counts its logits as exact: only the input's norm must be found without overflow."""


def rounding_budget(proof: Proof, input_size: int, counted: bool = True) -> tuple[Array, Array]:
    """Return K `[m, m]` and the rounding budget `[4]` in float32, rounded so that they keep what was proven.

    Within r of x, `y_j - y_i` is computed within `c0 + c1 * (|x| + r)`, and at x itself within `c0 + c1 * |x|`. Both
    together are at most `K_ij * (t0 + t1 * |x| + (growth - 1) * r)` for `t0 = 2 c0 / K_ij`, `t1 = 2 c1 / K_ij` and
    `growth = 1 + t1 / 2`, with the largest quotients among the pairs. Pairs whose K_ij is far below the others' would
    spoil the quotient for all; their K_ij is enlarged until it covers their error.

    Args:
        proof: what was proven of the network.
        input_size: entries of an input.
        counted: False returns K and `NO_BUDGET`.

    Returns:
        K and `(t0, t1, growth, limit)`; `|x| + r` must not exceed the limit.
    """
    m = len(proof.margins)
    others = ~np.eye(m, dtype=bool)
    if not counted:
        return round_up_to_float32(proof.margins), NO_BUDGET
    constants = np.where(others, np.maximum(proof.margins, SMALLEST_NORMAL), 0.0)
    typical = others & (constants >= 2.0**-10 * constants.max())
    with np.errstate(over="ignore", invalid="ignore"):
        t0, t1 = (float(np.max(2 * part[typical] / constants[typical])) for part in proof.errors)
        needed = np.maximum(
            *(2 * part / max(t, SMALLEST_NORMAL) for part, t in zip(proof.errors, (t0, t1), strict=True))
        )
        # The norm is computed in float32: n roundings, halved by the root, which is rounded itself, make it low by
        # gamma(n / 2 + 1) at most. At most 2 n squares and sums may be flushed to zero: |x| loses sqrt(2 n 2^-126). A
        # graph rounds `t0 + t1 |x|` twice, float64 all that is here less than once.
        flushed = 2.0 * (input_size * SMALLEST_NORMAL) ** 0.5
        t1 *= 1 + gamma(input_size + 16)
        budget = np.array([t0 + t1 * flushed, t1, 1 + t1 / 2]) * (1 + 16 * UNIT_ROUNDOFF)
    constants = np.where(others, np.maximum(constants, needed), 0.0)
    values = round_up_to_float32(budget)
    # Within the limit the input's norm, too, is found without overflow: its square stays below 2^125. It may be found
    # low, which is covered by what `LARGEST` leaves to the largest float32.
    limit = np.float32(min(proof.limit, 2.0**62) * (1 - 2.0**-20))
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(constants)) and limit > 0):
        # Nothing can be proven of such weights, so nothing is answered.
        return round_up_to_float32(np.where(others, np.minimum(proof.margins, FLOAT_MAX), 0.0)), _NOTHING
    return round_up_to_float32(constants), np.array([*values, limit], "float32")


_NOTHING = np.array([0.0, 1.0, 1.0, -1.0], "float32")


@dataclass(frozen=True)
class CertificateReport:
    """What a GloRo Net's certificate is made of; `print` shows it as a table."""

    layers: tuple[LayerBound, ...]
    lipschitz: float
    """Proven Lipschitz constant of the hidden layers."""
    at_norm: float
    """The l2 norm of an input for which errors and `radius_spent` are stated."""
    budget: tuple[float, float, float, float]
    """`(t0, t1, growth, limit)`: a radius is `((y_j - y_i) / K_ij - t0 - t1 * |x|) / growth`, with `|x| <= limit`."""

    @property
    def radius_spent(self) -> float:
        """Return what rounding takes off the radius of an input of norm `at_norm`, in input units."""
        t0, t1, *_ = self.budget
        return t0 + t1 * self.at_norm

    @staticmethod
    def of(graph: LipschitzGraph, at_norm: float, budget: Array) -> CertificateReport:
        """Make the report on a graph with the budget `[4]` that was deployed."""
        lines: list[LayerBound] = []
        proof = graph.prove(lines, at_norm)
        t0, t1, growth, limit = (float(value) for value in budget)
        return CertificateReport(tuple(lines), proof.constant, at_norm, (t0, t1, growth, limit))

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
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]]
        table = "\n".join(lines)
        return (
            f"{table}\n"
            f"Lipschitz constant of the hidden layers: {self.lipschitz:.9g}\n"
            f"Rounding takes {self.radius_spent:.3g} off the radius of an input of norm {self.at_norm:.3g}; "
            f"errors are stated for that norm."
        )
