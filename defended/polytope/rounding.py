"""What float32 may do to the network and to the bounds on it, as a share of sums that one forward pass computes.

Let z be the network's values as float32 computes them at some point of the ball, and Z >= |z| a bound on them over the
ball. With u = 2^-24 and `gamma_n = n u / (1 - n u)`, an inner product of n roundings, in any order and with or without
fused multiply-add, is off by at most `gamma_n |a|ᵀ|b|` (Higham 2002, section 3.1). At an affine map v with source s and
`m = |W| Z_s + |b|`:

- the network computes `z_v = W z_s + b + d` with `|d| <= gamma_f m`, f the roundings of an output entry. The same holds
  for the reference point (the value at x, or the centre of the relaxation), from which bounds measure deviations;
- the bounds' coefficients a_v go through the transposed map: `a_s = Wᵀ a_v + e` with `|e| <= gamma_t |W|ᵀ|a_v|`, t the
  roundings of the transposed map. A dual bound holds for *any* coefficients, if `e · (z_s - reference)` is paid for.
  With l <= z_s <= u, a reference inside or, as a centre, at most `(u - l) / 2` outside, that is at most
  `3 gamma_t |a_v| · |W| (u - l) / 2`;
- products with slopes, sums of coefficients where branches meet, and the lines' own offsets cost a few u of
  `|a_s| Z_s`, and `|a_s| · Z_s <= (1 + gamma_t) |a_v| · m`. With values within 2 Z of their references: 2 u for the
  slope; 8 u for an offset, a sum of at most four terms, none above Z, or a reference computed from them; and, where v
  and s are used n times, `2 (n - 1) u` each for adding up their coefficients. `c = 24 + 2 n`, and 2 more for each use
  beyond 8, are enough: `10 + 4 (n - 1) <= 24 + 2 n` for n <= 8.

So everything that rounding may cost between two ReLUs is at most `|a_v| · q_v` with `q_v = |W| q_s + 1.01 (2 gamma_f
+ c u) m + 1.01 * 3 gamma_t |W| (u - l) / 2`: a vector that one forward pass computes, the same for all bounds. At a
ReLU it widens the lines by `slope * q`, and vanishes. What is left are sums of terms that are not negative, whose
computed values are enlarged by `gamma_n` of their own.

Numbers below t = 2^-126 may be flushed to zero. With at most 2^20 entries in a value, Z <= V = 2^20, sums of
coefficients at most C = 2^60, and at most L entries that meet in one, weights that vanish cost a bound `C t L V` in the
network's map, as much in the reference's and, where values are within 2 V of it, twice as much in the transposed map.
Everything else costs less than 2^-16 of that: at most 2 L + 1 products and sums, each `t C` forward and `2^20 * 2 V t`
transposed, and entries of values, `t C`. So `8 C t L V`, and at least `FLUSHED`, pays for each map. Where those limits
cannot be shown to hold, nothing is certified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from defended.numerics.float32 import SMALLEST_NORMAL, UNIT_ROUNDOFF, gamma
from defended.polytope.graph import PolytopeGraph
from defended.polytope.reductions import Shape, roundings_of_sums

FLUSHED = 2.0**-25
"""More than flushing to zero may cost a bound in one map in which at most 2^18 entries meet in one."""

LARGEST_VALUE = 2.0**20
"""No value may pass this over the ball."""

LARGEST_COEFFICIENTS = 2.0**60
LARGEST_SIZE = 2**20
_LARGEST_SHARE = 2.0**-8
# Outweighs products of errors, `(1 + _LARGEST_SHARE)^2 < 1.008`, and what float32 does to q itself: as long as the
# shares are that small, q is computed within gammas of the same size times shares.
_MORE = 1.01
_FEW = 24


class Shares:
    """The budget's constants for one graph.

    Args:
        graph: the network.
        counted: False counts arithmetic as exact: every constant is 0.
        patches: shapes, other than those of values, over which the bounds sum up.

    Attributes:
        sums: computed sums of positive terms are enlarged by this share of themselves.
        affine: for each node that is an affine map, its share of m;
        transposed: and its share of `|W| (upper - lower) / 2`.
        interval: the same for a step of interval arithmetic.
        added: for each node that is a sum of branches, its share of `sum |z|`.
        flushed: absolute, for each bound.
    """

    def __init__(self, graph: PolytopeGraph, counted: bool = True, patches: Iterable[Shape] = ()):
        self.counted = counted
        unit = UNIT_ROUNDOFF if counted else 0.0
        most = max(Counter(source for node in graph.nodes for source in node.sources).values())
        few = (_FEW + 2 * most + 2 * max(0, most - 8)) * unit
        longest = max(roundings_of_sums(shape) for shape in (*(node.shape for node in graph.nodes), *patches))
        self.sums = _MORE * gamma(longest + len(graph.nodes) + _FEW) if counted else 0.0
        self.affine: dict[int, float] = {}
        self.transposed: dict[int, float] = {}
        self.interval: dict[int, float] = {}
        for index, node in enumerate(graph.nodes):
            if node.map is not None and counted:
                forward, transposed = (gamma(count) for count in node.map.roundings)
                self.affine[index] = _MORE * (2 * forward + few)
                self.transposed[index] = _MORE * 3 * transposed
                self.interval[index] = _MORE * (3 * forward + few)
            else:
                self.affine[index] = self.transposed[index] = self.interval[index] = 0.0
        # Seven additions cost 7 u in the network, in its reference and in its bounds: `few` is enough, and each further
        # addition costs 3 u more.
        self.added = {
            index: few + 3 * max(0, len(node.sources) - 8) * unit
            for index, node in enumerate(graph.nodes)
            if node.kind == "add"
        }
        meet = max(node.map.largest for node in graph.nodes if node.map is not None)
        flushed = max(FLUSHED, 8 * LARGEST_COEFFICIENTS * SMALLEST_NORMAL * meet * LARGEST_VALUE)
        self.flushed = flushed * len(graph.nodes) if counted else 0.0
        shares = (self.affine, self.transposed, self.interval, self.added)
        worst = max(self.sums, *(share for kind in shares for share in kind.values()))
        self.holds = not counted or (
            worst <= _LARGEST_SHARE and all(node.size <= LARGEST_SIZE for node in graph.nodes) and meet <= LARGEST_SIZE
        )


def largest_coefficients(graph: PolytopeGraph, row_sums: dict[int, Any]) -> float:
    """Bound the sum of magnitudes of any bound's coefficients by the l1 norms of each map's rows, in float64.

    `|Wᵀ a|_1 <= |a|_1 * (largest l1 norm of a row)`; slopes are at most 1, and a bound on a difference of logits begins
    with coefficients of 1 and -1. The factor 1.01 outweighs rounding, as `_MORE` does.
    """
    largest = 2.0
    for target in [graph.output, *(graph.nodes[index].sources[0] for index in graph.relus)]:
        reach = {target: 2.0}
        for index in range(target, 0, -1):
            size = reach.get(index, 0.0)
            node = graph.nodes[index]
            factor = float(np.max(row_sums[index], initial=0.0)) if node.map is not None else 1.0
            for source in node.sources:
                reach[source] = reach.get(source, 0.0) + _MORE * size * factor
            largest = max(largest, size * max(factor, 1.0))
        largest = max(largest, reach.get(0, 0.0))
    return largest if np.isfinite(largest) else float("inf")
