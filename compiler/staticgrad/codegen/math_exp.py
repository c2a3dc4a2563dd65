"""exp, exp2, expm1, and the pieces of them that other functions are built from.

x = n ln 2 + r with |r| <= ln 2 / 2, and exp(x) = 2**n (1 + r + r**2 P(r)). The polynomials are
minimax fits (Remez exchange at 300 bits; each coefficient rounded in turn, the rest refitted).
"""

from __future__ import annotations

LOG2E = 1.4426950408889634
# ln 2 in two parts of the format: the product n * high is exact within the fma that subtracts it.
LN2 = {
    "float": (0.693147182464599609375, -1.904654299957767878541e-9),
    "double": (0.6931471805599453094, 2.319046813846299558e-17),
}
# (exp(r) - 1 - r) / r**2, error relative to exp(r): 2**-28.2 and 2**-EXP64.
EXP_TAIL = {
    "float": (
        0.0013838951708748937, 0.008369197137653828, 0.04166810214519501, 0.16666516661643982,
        0.4999999403953552,
    ),
}  # fmt: skip
