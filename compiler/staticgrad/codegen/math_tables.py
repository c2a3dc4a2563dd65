"""Functions as polynomials on up to 16 intervals, their coefficients looked up in registers.

A lookup is one `vpermps` on AVX-512, which runs beside the multiplications: on Zen 4 tanh takes 15
cycles a vector of 16 lanes, where two branches with exp and a division took 23; erf 14 instead of
29; erfc 32 instead of 72 in float64 lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .builder import literal, vector, width
from .math_exp import EXP_TAIL
from .math_lanes import (
    Lanes,
    at_least,
    at_most,
    by_halves,
    fast_two_sum,
    fma,
    has_avx512,
    horner,
)

Columns = tuple[tuple[float, ...], ...]


class Intervals(NamedTuple):
    """f(u) for u >= 0 in float32 as f(p) + d c(d), d = u - p.

    Which interval u lies in is told by the exponent and the upper mantissa bits of u + `offset`:
    its bits without the last `shift`, `first` for the first interval. Each column has one number
    for every interval: a point p in it, f(p), and the coefficients of c, lowest power first. Each
    p is chosen so that f(p) is nearly a float32 (within 0.002 ULP).
    """

    offset: float
    shift: int
    first: int
    columns: Columns

    def parts(self, u: Lanes) -> tuple[Lanes, Lanes, Lanes]:
        """d, f(p), c(d). A NaN in u is in d."""
        index = (u + self.offset).bits().shift_logical(self.shift)
        point, value, *powers = (lookup(index, self._placed(c)) for c in self.columns)
        d = u - point
        return d, value, horner(d, powers[::-1])

    def odd(self, u: Lanes, start: float) -> Lanes:
        """f(u) = u + u c(u) in the first interval, below `start`, whose f(p) is 0; rounded once."""
        d, value, slope = self.parts(u)
        # u there, else f(p), which is above `start`: compared as integers, which order positive
        # numbers alike, on any port.
        base = at_least(value.bits(), at_most(u.bits(), u.const(start).bits()))
        return fma(d, slope, base.as_float())

    def times_exp(self, u: Lanes, reduced: Lanes, low: Lanes) -> tuple[Lanes, Lanes]:
        """f(u) exp(reduced - low) as an unevaluated sum, |reduced| <= ln 2 / 2.

        With f(u) = f + g and exp = 1 + r + q the sum is f (1 + r), then g, whose rounding errors
        are kept, and the small terms f q + g (r + q).
        """
        r = reduced - low
        q = fma(horner(r, EXP_TAIL["float"]), r * r, (reduced - r) - low)
        d, f, slope = self.parts(u)
        g = d * slope
        first = fma(f, r, f)
        lost = fma(f, r, f - first)
        total, error = fast_two_sum(first, g)
        return total, fma(f, q, fma(g, r + q, lost + error))

    def _placed(self, column: Sequence[float]) -> list[float]:
        """The column by the lowest four bits of the index."""
        filled = [*column, *[column[-1]] * (16 - len(column))]
        return [filled[(i - self.first) % 16] for i in range(16)]


def lookup(index: Lanes, table: Sequence[float]) -> Lanes:
    """The entry of `table` (16 floats) that the lowest four bits of each index name."""
    f, lanes = index.f, width(index.ty)
    target = f.module.target
    whole = 16 if has_avx512(index) else 8 if target.is_x86 else 4
    if lanes > whole:
        return by_halves(lambda part: lookup(part, table), index)
    # Shorter vectors are looked up in a whole one.
    wide = _resized(index, whole)
    look = {16: _lookup_avx512, 8: _lookup_avx2, 4: _lookup_neon}[whole]
    return _resized(look(wide, table), lanes)


def _table(values: Sequence[float], scalar: str = "float") -> str:
    return "<" + ", ".join(f"{scalar} {literal(v, scalar)}" for v in values) + ">"


def _lookup_avx512(index: Lanes, table: Sequence[float]) -> Lanes:
    return _permute(index, "llvm.x86.avx512.permvar.sf.512", table)


def _lookup_avx2(index: Lanes, table: Sequence[float]) -> Lanes:
    """Two permutations, chosen between by bit 3, which the blend wants as the sign."""
    halves = (_permute(index, "llvm.x86.avx2.permps", table[i : i + 8]) for i in (8, 0))
    return (index << 28).lt(0).where(*halves)


def _permute(index: Lanes, name: str, table: Sequence[float]) -> Lanes:
    f, ty = index.f, index.typed("float")
    f.module.intrinsic(name, ty, ty, index.ty)
    return Lanes(f, f.emit(f"call {ty} @{name}({ty} {_table(table)}, {index.ty} {index.name})"), ty)


def _lookup_neon(index: Lanes, table: Sequence[float]) -> Lanes:
    """One `tbl` of the table's 64 bytes by the four bytes of each entry."""
    f, ty, name = index.f, "<16 x i8>", "llvm.aarch64.neon.tbl4.v16i8"
    places = (index & 15) * 0x04040404 + 0x03020100
    picked = f.emit(f"bitcast {places.ty} {places.name} to {ty}")
    parts = [
        f.emit(f"bitcast <4 x float> {_table(table[i : i + 4])} to {ty}") for i in range(0, 16, 4)
    ]
    f.module.intrinsic(name, ty, *[ty] * 5)
    operands = ", ".join(f"{ty} {p}" for p in (*parts, picked))
    found = Lanes(f, f.emit(f"call {ty} @{name}({operands})"), ty)
    return Lanes(f, f.emit(f"bitcast {ty} {found.name} to <4 x float>"), "<4 x float>")


def _resized(x: Lanes, lanes: int) -> Lanes:
    """The lower lanes, or more lanes of which the upper ones are undefined."""
    f, given, ty = x.f, width(x.ty), vector(x.scalar, lanes)
    if given == lanes:
        return x
    if given == 1:
        return Lanes(f, f.emit(f"insertelement {ty} poison, {x.ty} {x.name}, i32 0"), ty)
    if lanes == 1:
        return Lanes(f, f.emit(f"extractelement {x.ty} {x.name}, i32 0"), ty)
    picks = ", ".join(f"i32 {i if i < given else 'poison'}" for i in range(lanes))
    picks = picks.replace("i32 poison", "i32 poison")
    text = f"shufflevector {x.ty} {x.name}, {x.ty} poison, <{lanes} x i32> <{picks}>"
    return Lanes(f, f.emit(text), ty)


# tanh for u <= 9.1; the error relative to it is below 2**-27.7.
TANH = Intervals(
    0.75, 21, 0x1FA,
    (
        (0.0, 0.18745422, 0.37494707, 0.62510586, 0.87499523, 1.1243534, 1.4989815, 1.999527,
         2.4979439, 3.0001297, 3.7518692, 4.7524796, 5.751335, 6.512305, 7.7684846),
        (0.0, 0.185289, 0.35831127, 0.554673, 0.7039032, 0.80907786, 0.904964, 0.96399415,
         0.9865595, 0.99505603, 0.99889857, 0.99985105, 0.9999798, 0.9999956, 0.99999964),
        (9.586557e-11, 0.96566796, 0.871613, 0.6923379, 0.5045203, 0.34539303, 0.18104,
         0.07071527, 0.026700335, 0.009863493, 0.0022016983, 0.000297888, 4.041224e-05,
         8.821447e-06, 7.149169e-07),
        (-5.546964e-08, -0.17892776, -0.31230882, -0.38402113, -0.35513347, -0.27944985,
         -0.1638347, -0.06816909, -0.026341464, -0.009814726, -0.002199267, -0.0002978433,
         -4.041099e-05, -8.821854e-06, -7.1478263e-07),
        (-0.33332813, -0.28871006, -0.1786328, -0.017783357, 0.081802286, 0.1109625, 0.08793116,
         0.042145103, 0.017087067, 0.006478084, 0.0014615041, 0.00019829436, 2.6912696e-05,
         5.8856585e-06, 4.804538e-07),
        (-0.00017851903, 0.11326541, 0.16811639, 0.13786536, 0.06079961, 0.003371474,
         -0.024956465, -0.017905077, -0.008077425, -0.003174716, -0.00072755653, -9.908221e-05,
         -1.3457485e-05, -2.9439025e-06, -2.4353466e-07),
        (0.13610342, 0.09130511, 0.018838603, -0.05412978, -0.058463663, -0.031921033,
         -0.003133434, 0.004709335, 0.0028743795, 0.0012282536, 0.00030017673, 4.1283016e-05,
         5.609065e-06, 1.1241603e-06, 8.84462e-08),
        (-0.019877201, -0.08517112, -0.06959417, -0.02390057, 0.0128831025, 0.018465135,
         0.0072510843, -9.704987e-05, -0.00071458425, -0.00037420396, -9.820739e-05,
         -1.3759367e-05, -1.8661674e-06, -2.560041e-07, -1.6310143e-08),
    ),
)  # fmt: skip
# erf for u <= 3.95, to 2**-26.2.
ERF = Intervals(
    1.5, 20, 0x3FC,
    (
        (0.0, 0.20374939, 0.3286042, 0.45341632, 0.65774435, 0.9077148, 1.1571139, 1.4068202,
         1.6582888, 1.9070281, 2.1592522, 2.4056816, 2.8144605, 3.3158147, 3.8325198),
        (0.0, 0.22676437, 0.3578655, 0.47862512, 0.6477278, 0.80075395, 0.8982454, 0.9533588,
         0.9809818, 0.9930021, 0.9977392, 0.9993314, 0.99993116, 0.99999726, 0.99999994),
        (0.12837917, 1.0824949, 1.0128838, 0.91869223, 0.73209494, 0.4950167, 0.29578257,
         0.1559279, 0.07214042, 0.029718824, 0.010656484, 0.0034598967, 0.00040987335,
         1.8995352e-05, 4.715897e-07),
        (3.1111654e-07, -0.22055769, -0.332838, -0.41655007, -0.4815316, -0.44933417,
         -0.34225443, -0.21936283, -0.11962973, -0.056674633, -0.023009995, -0.008323315,
         -0.001152814, -6.288784e-05, -1.8382378e-06),
        (-0.3761426, -0.33088142, -0.26470304, -0.18033335, -0.03297987, 0.106882915, 0.16546026,
         0.15381105, 0.10824109, 0.062156726, 0.029566482, 0.01218851, 0.0019954182,
         0.00012758154, 4.356223e-06),
        (0.00029352546, 0.10718301, 0.15448543, 0.17964782, 0.17112517, 0.10125488, 0.018527303,
         -0.03486608, -0.049763415, -0.040351756, -0.02427277, -0.01192313, -0.0025010433,
         -0.00020182665, -5.768257e-06),
        (0.110954605, 0.09382455, 0.06211001, 0.026797716, -0.026722064, -0.066663094,
         -0.061071474, -0.030666588, -0.0023011616, 0.011314521, 0.012436402, 0.008361014,
         0.0028311594, 0.00033379713, 2.278493e-05),
    ),
)  # fmt: skip
# exp(u**2) erfc(u) for u <= 10.3, to 2**-27.5.
ERFCX = Intervals(
    0.75, 21, 0x1FA,
    (
        (0.062483788, 0.18749142, 0.3751402, 0.6245508, 0.8755388, 1.1243458, 1.4996777,
         1.9998627, 2.5001945, 3.000145, 3.7513046, 4.7461853, 5.7505646, 6.7540436, 8.247635,
         9.778845),
        (0.93322265, 0.81918836, 0.68577117, 0.55700815, 0.46414146, 0.39585388, 0.32163817,
         0.25541034, 0.2107919, 0.17899327, 0.14554217, 0.11639243, 0.09668955, 0.08264658,
         0.06791411, 0.057397854),
        (-1.0117565, -0.82119757, -0.6138585, -0.4326194, -0.31563142, -0.23822589, -0.16367204,
         -0.10680795, -0.07433765, -0.054367654, -0.036433112, -0.023539053, -0.016340142,
         -0.011981981, -0.008117547, -0.0058097593),
        (0.87000424, 0.66522086, 0.45548815, 0.28681538, 0.18779385, 0.1280056, 0.0761829,
         0.04180912, 0.02493333, 0.015882421, 0.008870516, 0.0046717334, 0.0027245139,
         0.0017197592, 0.0009635661, 0.00058512035),
        (-0.63832045, -0.46434295, -0.29532042, -0.16898723, -0.10080979, -0.06286941,
         -0.03294541, -0.015463094, -0.007999412, -0.0044787484, -0.0021044149, -0.00091069634,
         -0.00044840935, -0.0002444299, -0.000113584836, -5.8637565e-05),
        (0.4151065, 0.28909388, 0.17235184, 0.09063169, 0.049771823, 0.02866035, 0.013384565,
         0.005441971, 0.0024661263, 0.0012228721, 0.00048741937, 0.0001745553, 7.28926e-05,
         3.4410583e-05, 1.3303113e-05, 5.847437e-06),
        (-0.23358443, -0.15876232, -0.09282708, -0.045377214, -0.022823866, -0.012264683,
         -0.005229703, -0.0018513025, -0.0007403548, -0.00032514878, -0.00011284838,
         -3.3406937e-05, -1.1855293e-05, -4.84439e-06, -1.5845129e-06, -5.8701124e-07),
        (0.12310268, 0.08299625, 0.046024263, 0.02111433, 0.00973835, 0.0049302797, 0.0019171645,
         0.00059714407, 0.00021443682, 8.3241815e-05, 2.5039253e-05, 6.163877e-06, 1.8685445e-06,
         6.7752336e-07, 1.8278729e-07, 5.904224e-08),
    ),
)  # fmt: skip
# exp(u) log(1 + exp(-u)) for u <= 18, to 2**-26.6.
SOFTPLUS = Intervals(
    1.25, 21, 0x1FD,
    (
        (0.15746659, 0.40712446, 0.6568002, 1.0636157, 1.5635756, 2.0662267, 2.563156, 3.378639,
         4.37828, 5.383491, 6.3786387, 8.006576, 10.007461, 11.535655, 13.639794, 15.942368),
        (0.72282135, 0.7665142, 0.8056352, 0.85904425, 0.9079537, 0.94155496, 0.9633411,
         0.9833309, 0.9937785, 0.9977111, 0.99915224, 0.9998334, 0.99997747, 0.9999951,
         0.9999994, 0.99999994),
        (0.18353584, 0.166116, 0.14709398, 0.11566336, 0.08108783, 0.05397795, 0.034888726,
         0.016300635, 0.0061699986, 0.0022819147, 0.0008468059, 0.00016661394, 2.2537584e-05,
         4.886728e-06, 5.9599427e-07, 5.9484808e-08),
        (-0.032460384, -0.0369021, -0.03888537, -0.03755121, -0.03103545, -0.022903051,
         -0.015769923, -0.007791003, -0.0030339535, -0.0011339968, -0.0004224417, -8.325143e-05,
         -1.1265734e-05, -2.4426427e-06, -2.9773813e-07, -2.9754906e-08),
        (-0.0075659626, -0.004271123, -0.0010790206, 0.0029586956, 0.005254489, 0.0052584754,
         0.004231324, 0.0023671777, 0.0009770996, 0.0003729545, 0.00013999562, 2.736685e-05,
         3.7052857e-06, 8.201244e-07, 9.969289e-08, 1.02315045e-08),
        (0.003187057, 0.0033252824, 0.003003049, 0.0018895871, 0.00047471217, -0.0003522245,
         -0.0006056242, -0.00048287088, -0.00022860107, -9.129833e-05, -3.4849407e-05,
         -6.9968396e-06, -9.4870893e-07, -2.0926905e-07, -2.5860421e-08, -2.6206308e-09),
        (0.00033544927, -6.256673e-05, -0.00035506656, -0.0006065743, -0.000499137,
         -0.00023063178, -4.135228e-05, 5.2130774e-05, 4.2743948e-05, 1.9622155e-05,
         7.785294e-06, 1.857611e-06, 2.536919e-07, 3.442752e-08, 4.6567177e-09, 3.6460232e-10),
    ),
)  # fmt: skip
# Where the first intervals of TANH and ERF end.
TABLE_START = 0.125
