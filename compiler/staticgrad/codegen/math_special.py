"""erf (and erfc, to follow)."""

from __future__ import annotations

from .math_exp import EXP_TAIL, plus_power, reduce_exp
from .math_lanes import Lanes, at_most, copysign, fabs, fma, horner

# erf(x) / x - 1 in powers of x**2 for |x| <= 0.93, relative to erf: 2**-25.7.
_ERF_SMALL = (
    -0.0005959068075753748, 0.004987259861081839, -0.026762915775179863, 0.11281730234622955,
    -0.37612488865852356, 0.12837915122509003,
)  # fmt: skip
# log(erfc(t)) / t for 0.92 <= t <= 3.95, relative to erf: 2**-30.3.
_LOG_ERFC = (
    -1.121656532632187e-05, 0.0003226762928534299, -0.0036420105025172234, 0.023761242628097534,
    -0.1062360554933548, -0.635151743888855, -1.1286484003067017,
)  # fmt: skip
_ERF_SPLIT = 0.93
_ERF_ONE = 3.95


def erf(x: Lanes) -> Lanes:
    """x + x P(x**2) up to 0.93, 1 - exp(t Q(t)) with t = |x| beyond (the form of N. Juffa's erff)."""
    t = at_most(fabs(x), _ERF_ONE)
    z = t * t
    small = fma(horner(z, _ERF_SMALL), t, t)
    shifted, _, r = reduce_exp(horner(t, _LOG_ERFC) * t)
    q = fma(horner(r, EXP_TAIL["float"]), r * r, r)
    s = plus_power(shifted)
    large = fma(-s, q, 1.0 - s)
    return copysign(t.lt(_ERF_SPLIT).where(small, large), x)
