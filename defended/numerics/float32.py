"""The rounding and the range of float32, in which networks are evaluated, with the inequalities that proofs use.

For two float32 numbers and each of the four operations, and for the square root of one (Higham 2002, theorem 2.2):

    fl(x op y) = (x op y) (1 + d),  |d| <= UNIT_ROUNDOFF,  where |fl(x op y)| lies in [SMALLEST_NORMAL, FLOAT_MAX].

Results that are smaller, and operands, may be flushed to zero: each such number changes by less than `SMALLEST_NORMAL`.
"""

UNIT_ROUNDOFF = 2.0**-24
"""u, the largest relative error of rounding to nearest: half of `MACHINE_EPSILON`."""

MACHINE_EPSILON = 2.0**-23
"""The distance from 1 to the next number, `2 u`; two neighbours differ by at most this share of the smaller one."""

SMALLEST_NORMAL = 2.0**-126
"""The smallest positive number of full precision; kernels may flush smaller ones to zero."""

FLOAT_MAX = 3.4028234663852886e38
"""The largest finite number, `(2 - MACHINE_EPSILON) * 2^127`."""


def gamma(roundings: float, unit_roundoff: float = UNIT_ROUNDOFF) -> float:
    """Return `n u / (1 - n u)`, a bound on the relative effect of n roundings; infinite where n u >= 1.

    `|prod (1 + d_i)^(+-1) - 1| <= gamma(n)` for n factors with `|d_i| <= u` (Higham 2002, lemma 3.1). So an inner
    product in which no product goes through more than n roundings, in any order and with or without fused
    multiply-add, is off by at most `gamma(n) |a|^T |b|` (section 3.1 there).
    """
    product = roundings * unit_roundoff
    return product / (1 - product) if product < 1 else float("inf")
