"""Random numbers from counters: Philox-4x32-10 over (seed, step, site, element).

A generator's state is two uint64 numbers, (seed, step). Every random node has a number of its own,
its site, and each of its elements takes one block of four 32-bit words:

    key      (seed low, seed high)                                    32-bit words
    counter  (element low, element high ^ step high << 8, site, step low)

where low and high are the halves of 64-bit numbers, and an element is its row-major place in the
result. Blocks differ for all elements below 2**40, sites below 2**32 and steps below 2**56. So a
number depends on nothing but (seed, step, site, element): not on threads, vector width, fusion or
shapes elsewhere. Several states at once, uint64[.., 2], give a result each: what it gives alone.
Compiled programs that draw from the global generator advance its step by one a call.

Source: Salmon, Moraes, Dror, Shaw 2011, Parallel Random Numbers: As Easy as 1, 2, 3.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from staticgrad_runtime.forks import ForkSafeLock
from staticgrad_runtime.philox_native import philox_words

from staticgrad.ir.dim import DimLike, as_shape, is_index
from staticgrad.ir.dtype import DType, float32, float64, int32, integer_range, uint32, uint64
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ir.types import TensorType
from staticgrad.kernels.ir import Expr, Index, Literal, call, cast

from .comparison import less
from .convert import as_tensor, astype, constant_array, scalar_constant
from .exponential import log, sqrt
from .joining import stack
from .leaves import Parameter, parameter
from .logical import bitwise_and, bitwise_left_shift, bitwise_right_shift
from .lowering import Generate
from .reduction import at_user_line
from .registry import Attrs, NotDifferentiable, Op, Sample, Types, apply, register
from .selection import minimum
from .tensor import Tensor
from .trigonometric import cos

Array = np.ndarray[Any, Any]

_SOURCE = "Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3 (Philox-4x32-10)"
ROUNDS = 10
CHUNK = 1 << 15  # elements that NumPy draws at once: ten rounds of them stay in the cache
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
SITES = 2**32 - 2  # the two above are reserved
SPLIT_SITE = 2**32 - 2
HOST_SITE = 2**32 - 1  # what `init_uniform` and `init_normal` draw from

# --- Philox in NumPy ------------------------------------------------------------------------------


def philox(counter: tuple[Any, ...], key: tuple[int, int]) -> tuple[Array, ...]:
    """Philox-4x32-10: four uint32 arrays of counter words and a key -> four words of bits."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint32) for c in counter)
    for r in range(ROUNDS):
        k0, k1 = (np.uint32((k + r * w) % 2**32) for k, w in zip(key, WEYL))
        p0 = c0.astype(np.uint64) * np.uint64(MULTIPLIERS[0])
        p1 = c2.astype(np.uint64) * np.uint64(MULTIPLIERS[1])
        high0, high1 = ((p >> np.uint64(32)).astype(np.uint32) for p in (p0, p1))
        low0, low1 = (p.astype(np.uint32) for p in (p0, p1))
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def reference_bits(state: Any, site: int, shape: tuple[int, ...], dtype: DType, word: int) -> Array:
    """What `random_bits` is, in NumPy."""
    states = np.asarray(state, np.uint64)
    rows = [_reference_row(s, site, shape, dtype, word) for s in states.reshape(-1, 2)]
    found = np.array(rows, dtype.numpy)
    return found.reshape((*states.shape[:-1], *shape))


def _reference_row(
    state: Any, site: int, shape: tuple[int, ...], dtype: DType, word: int
) -> Array:  # fmt: skip
    seed, step = (int(s) for s in state)
    count = math.prod(shape)
    found = np.empty(count, dtype.numpy)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        found[start:stop] = _numpy_words(seed, step, site, start, stop, dtype, word)
    return found.reshape(shape)


def _numpy_words(
    seed: int, step: int, site: int, start: int, stop: int, dtype: DType, word: int
) -> Array:  # fmt: skip
    """A word (as uint32), or two from `word` on (as uint64), of the elements from start to stop."""
    element = np.arange(start, stop, dtype=np.uint64)
    high = (element >> np.uint64(32)).astype(np.uint32) ^ np.uint32((step >> 32 << 8) % 2**32)
    words = philox(
        (element.astype(np.uint32), high, np.uint32(site), np.uint32(step % 2**32)),
        (seed % 2**32, seed >> 32),
    )
    if dtype == uint32:
        return words[word]
    found: Array = words[word] | words[word + 1].astype(np.uint64) << np.uint64(32)
    return found


# --- Philox in kernel IR --------------------------------------------------------------------------


def _low(x: Expr) -> Expr:
    """The low 32 bits of a uint64. Before a multiplication it costs nothing: the instruction that
    multiplies 32 bits by 32 reads only those."""
    return call("bitwise_and", x, Literal(2**32 - 1, uint64))


def _high(x: Expr) -> Expr:
    return call("bitwise_right_shift", x, Literal(32, uint64))


def _xor(a: Expr, b: Expr) -> Expr:
    return call("bitwise_xor", a, b)


def emit_bits(at: tuple[DimLike, ...], attrs: Attrs, result: TensorType, load: Any) -> Expr:
    """Each element its own block, numbered from 0 for each state. The expression is a DAG: every
    round's words serve twice.

    Words stand in the low halves of uint64, whose high halves don't matter until the end: with
    uint32, widened for each product and narrowed after it, a million took 3.7 ms, not 1.5.
    """
    outer = len(at) - len(attrs["shape"])  # the indices before are those of the state
    element: DimLike = 0
    for i, size in zip(at[outer:], result.shape[outer:]):
        element = element * size + i
    seed, step = load(0, (*at[:outer], 0)), load(0, (*at[:outer], 1))
    place = cast(Index(element), uint64)
    key = seed, _high(seed)
    upper = call("bitwise_left_shift", _high(step), Literal(8, uint64))
    c: tuple[Expr, ...] = place, _xor(_high(place), upper), Literal(attrs["site"], uint64), step
    for r in range(ROUNDS):
        k0, k1 = (
            call("add", k, Literal(r * w % 2**32, uint64)) if r else k for k, w in zip(key, WEYL)
        )
        p0, p1 = (
            call("multiply", _low(x), Literal(m, uint64)) for x, m in zip((c[0], c[2]), MULTIPLIERS)
        )
        c = _xor(_xor(_high(p1), c[1]), k0), p1, _xor(_xor(_high(p0), c[3]), k1), p0
    word = attrs["word"]
    if result.dtype == uint32:
        return cast(c[word], uint32)
    above = call("bitwise_left_shift", c[word + 1], Literal(32, uint64))
    return call("bitwise_or", _low(c[word]), above)


def _infer_bits(types: Types, attrs: Attrs) -> Types:
    (state,) = types
    if state.dtype != uint64 or state.shape[-1:] != (2,):
        raise DTypeError(f"expected keys or generator states of type uint64[.., 2], got {state}")
    words = (0, 1, 2, 3) if attrs["dtype"] == uint32 else (0, 2)
    if attrs["dtype"] not in (uint32, uint64) or attrs["word"] not in words:
        raise DTypeError(f"no word {attrs['word']} of {attrs['dtype']} in a block of 4 x 32 bits")
    if not 0 <= attrs["site"] < 2**32:
        raise ArgumentError(f"a site is a uint32, got {attrs['site']}")
    return (TensorType(attrs["dtype"], (*state.shape[:-1], *attrs["shape"])),)


def _samples() -> list[Sample]:
    state = np.array([0x243F6A8885A308D3, 0x0013198A2E037073], np.uint64)
    several = np.array([[[1, 2], [3, 2**50], [2**40, 5]]], np.uint64)
    found = [
        Sample((s,), {"site": 7, "shape": shape, "dtype": dtype, "word": 0})
        for s in (several, several[:, :0])
        for shape in ((), (5,), (2, 17))
        for dtype in (uint32, uint64)
    ]
    for shape in ((), (0,), (7,), (5, 33), (2, 3, 4)):
        for dtype, words in ((uint32, (0, 1, 2, 3)), (uint64, (0, 2))):
            found += [
                Sample((state,), {"site": 5, "shape": shape, "dtype": dtype, "word": word})
                for word in words
            ]
    return found


register(
    Op(
        name="random_bits",
        summary="uniform random bits: words of Philox-4x32-10 over (seed, step, site, element)",
        infer=_infer_bits,
        reference=reference_bits,
        vjp=NotDifferentiable("random bits are integers"),
        jvp=NotDifferentiable("random bits are integers"),
        # Each row draws what its own state gives alone.
        batch=lambda c: apply("random_bits", *c.operands, **c.attrs),
        lower=Generate(emit_bits),
        samples=_samples,
        source=_SOURCE,
        traits=frozenset(("random",)),
    )
)

# --- the global generator -------------------------------------------------------------------------


class _Generator:
    """The global generator: its state, the next site, and the number of the next host draw."""

    def __init__(self) -> None:
        self.lock = ForkSafeLock()
        self.state: Parameter | None = None
        self.sites = itertools.count()
        self.draws = itertools.count()


_global = _Generator()


def default_generator() -> Parameter:
    """The state of the global generator: uint64[2], (seed, step). It starts at seed 0.

    Programs that draw from it advance the step by one a call. `numpy()` and `assign` save and
    restore it.
    """
    with _global.lock:
        if _global.state is None:
            _global.state = parameter(np.zeros(2, np.uint64), "generator", trainable=False)
        return _global.state


def seed(seed: int) -> None:
    """Sets the global generator to (seed, step 0) and starts the numbering of sites again.

    So a program that is declared after `seed(0)` gives the numbers that it gave when it was
    declared after an earlier `seed(0)`; programs declared before go on from the new seed.
    """
    if not is_index(seed):
        raise at_user_line(ArgumentTypeError(f"seed: expected an int, got {seed!r}"))
    number = seed.__index__()
    if not 0 <= number < 2**64:
        raise at_user_line(ArgumentError(f"seed: expected 0 <= seed < 2**64, got {number}"))
    default_generator().assign(np.array([number, 0], np.uint64))
    with _global.lock:
        _global.sites, _global.draws = itertools.count(), itertools.count()


def key(seed: int) -> Tensor:
    """An explicit generator state, uint64[2], for the functions' argument `key`."""
    if not is_index(seed):
        raise at_user_line(ArgumentTypeError(f"key: expected an int, got {seed!r}"))
    number = seed.__index__()
    if not 0 <= number < 2**64:
        raise at_user_line(ArgumentError(f"key: expected 0 <= seed < 2**64, got {number}"))
    return constant_array(np.array([number, 0], np.uint64))


def split(key: Any, num: int = 2) -> Tensor:
    """`num` new keys from one, uint64[num, 2]; `a, b = split(key)`. The old one is then used up."""
    bits = apply(
        "random_bits",
        _explicit(key, "split"),
        site=SPLIT_SITE,
        shape=as_shape((num, 2)),
        dtype=uint64,
        word=0,
    )
    return bits * constant_array(np.array([1, 0], np.uint64))


def _explicit(key: Any, what: str) -> Tensor:
    """One key; of several, `vmap` makes one call each."""
    state = as_tensor(key, f"{what}: key")
    if state.dtype != uint64 or state.shape != (2,):
        raise at_user_line(
            DTypeError(
                f"{what}: expected a key of type uint64[2], as of key(seed), got {state.type}"
            )
        )
    return state


def own_key(key: Any, index: Tensor) -> Tensor:
    """The key of a loop's iteration: other numbers in each, from one state of a generator."""
    high = bitwise_left_shift(astype(index, uint64), constant_array(np.array(32, np.uint64)))
    moved = key + stack([constant_array(np.array(0, np.uint64)), high])  # (seed, step + index 2^32)
    bits = apply(
        "random_bits", moved, site=SPLIT_SITE, shape=(2,), dtype=uint64, word=0
    )  # fmt: skip
    return bitwise_and(bits, constant_array(np.array([2**64 - 1, 2**56 - 1], np.uint64)))


class _Source:
    """Where one call's bits come from: a state and a site."""

    def __init__(self, key: Any, what: str) -> None:
        if key is None:
            self.state: Tensor = default_generator()
            with _global.lock:
                self.site = next(_global.sites) % SITES
        else:
            self.state, self.site = _explicit(key, what), 0

    def bits(self, shape: Any, dtype: DType, word: int = 0) -> Tensor:
        result: Tensor = apply(
            "random_bits", self.state, site=self.site, shape=shape, dtype=dtype, word=word
        )
        return result


# --- distributions --------------------------------------------------------------------------------


def bits(shape: Any, key: Any = None, dtype: Any = "uint32") -> Tensor:
    """Uniform random bits, uint32 or uint64, of `shape`."""
    wanted = as_dtype(dtype)
    if wanted not in (uint32, uint64):
        raise at_user_line(DTypeError(f"bits: expected uint32 or uint64, got {wanted!s}"))
    return _Source(key, "bits").bits(as_shape(shape), wanted)


def _floating(dtype: Any, what: str) -> DType:
    wanted = as_dtype(dtype)
    if not wanted.is_float:
        raise at_user_line(DTypeError(f"{what}: expected a floating dtype, got {wanted!s}"))
    return wanted


def _unit(source: _Source, shape: Any, dtype: DType) -> Tensor:
    """Uniform in [0, 1): multiples of 2**-24, or of 2**-53 in float64."""
    if dtype == float32:
        return _upper(source.bits(shape, uint32), 8, float32) * 2.0**-24
    return _upper(source.bits(shape, uint64), 11, float64) * 2.0**-53


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise at_user_line(ArgumentTypeError(f"{what}: expected a number, got {value!r}"))
    if not math.isfinite(value):
        raise at_user_line(ArgumentError(f"{what}: expected a finite number, got {value!r}"))
    return float(value)


def _bounds(low: Any, high: Any, dtype: DType, what: str) -> tuple[float, float, float]:
    """low, high - low, and the greatest number below high, all exact in `dtype`."""
    scalar = dtype.numpy.type
    with np.errstate(over="ignore"):
        a, b = scalar(_finite(low, f"{what}: low")), scalar(_finite(high, f"{what}: high"))
        width = b - a
    if not np.isfinite(width) or width < 0:
        raise at_user_line(
            ArgumentError(
                f"{what}: expected low <= high with a {dtype!s} distance, got {low!r} and {high!r}"
            )
        )
    return float(a), float(width), float(np.nextafter(b, a))


def uniform(
    shape: Any, low: float = 0.0, high: float = 1.0, key: Any = None, dtype: Any = "float32"
) -> Tensor:
    """Uniform numbers in [low, high): `low + (high - low) * u`, u of 24 bits (float64: 53).

    `key`: None draws from the global generator, each call its own numbers; an explicit uint64[2]
    (see `key`) makes the result a function of that key and the shape alone.
    """
    wanted = _floating(dtype, "uniform")
    a, width, last = _bounds(low, high, wanted, "uniform")
    u = _unit(_Source(key, "uniform"), as_shape(shape), wanted)
    if a == 0 and width == 1:
        return u
    return minimum(u * width + a, last)  # rounding could reach high


def _box_muller(radius: Tensor, angle: Tensor, scale: float, turn: float) -> Tensor:
    """Normal numbers from integers: sqrt(-2 log u) cos(2 pi v), u = (radius + 1/2) scale in (0, 1],
    v = angle * turn in [0, 1)."""
    r = sqrt(log((radius + 0.5) * scale) * -2.0)
    return r * cos(angle * (2 * math.pi * turn))


def normal(
    shape: Any, key: Any = None, dtype: Any = "float32", *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Normal numbers of the given mean and standard deviation, by Box and Muller's transform.

    The radius is drawn from 32 bits (float64: 64), so the tails are right to 6.7 (9.4) standard
    deviations. `key`: None draws from the global generator, each call its own numbers; an explicit
    uint64[2] (see `key`) makes the result a function of that key and the shape alone.
    """
    wanted = _floating(dtype, "normal")
    shape, source = as_shape(shape), _Source(key, "normal")
    centre, spread = _finite(mean, "normal: mean"), _finite(std, "normal: std")
    if spread < 0:
        raise at_user_line(
            ArgumentError(f"normal: the standard deviation can't be negative, got {std!r}")
        )
    if wanted == float32:
        both = source.bits(shape, uint64)
        radius = astype(astype(both, uint32), float32)
        z = _box_muller(radius, _upper(both, 40, float32), 2.0**-32, 2.0**-24)
    else:
        radius = astype(source.bits(shape, uint64), float64)
        angle = _upper(source.bits(shape, uint64, 2), 11, float64)
        z = _box_muller(radius, angle, 2.0**-64, 2.0**-53)
    if spread != 1:
        z = z * spread
    return z + centre if centre != 0 else z


def _upper(x: Tensor, drop: int, dtype: DType) -> Tensor:
    """The 24 bits of x above the lowest `drop` as float32, or the 53 as float64."""
    kept = bitwise_right_shift(x, drop)
    # Through int32, which every CPU converts in one instruction, unlike unsigned integers.
    return astype(astype(kept, int32) if dtype == float32 else kept, dtype)


def bernoulli(p: Any, shape: Any = None, key: Any = None) -> Tensor:
    """True with probability `p`, bool, of `shape` (default: p's).

    p: a number in [0, 1], or a floating tensor that broadcasts to `shape`; a tensor's values below
    0 count as 0, above 1 as 1. p is met to 2**-24 (a float64 tensor's to 2**-53).
    """
    if isinstance(p, (bool, int, float)) and not 0 <= p <= 1:
        raise at_user_line(
            ArgumentError(f"bernoulli: expected a probability from 0 to 1, got {p!r}")
        )
    chance = as_tensor(p, "bernoulli: p")
    if not chance.dtype.is_float:
        if not isinstance(p, (bool, int)):
            raise at_user_line(
                DTypeError(f"bernoulli: expected floating probabilities, got {chance.type}")
            )
        chance = astype(chance, float32)
    wanted = chance.shape if shape is None else as_shape(shape)
    result = less(_unit(_Source(key, "bernoulli"), wanted, chance.dtype), chance)
    if result.shape != wanted:
        raise at_user_line(
            ShapeError(
                f"bernoulli: p of type {chance.type} does not broadcast to the shape {wanted}"
            )
        )
    return result


def randint(low: int, high: int, shape: Any = (), key: Any = None, dtype: Any = "int64") -> Tensor:
    """Uniform integers in [low, high), of `shape`: `low + floor(bits * (high - low) / 2**64)`.

    Single values' probabilities differ by at most one part in 2**64 / (high - low).
    """
    wanted = as_dtype(dtype)
    if not wanted.is_integer:
        raise at_user_line(DTypeError(f"randint: expected an integer dtype, got {wanted!s}"))
    for name, value in (("low", low), ("high", high)):
        if not is_index(value):
            raise at_user_line(ArgumentTypeError(f"randint: {name} is an int, got {value!r}"))
    first, stop = low.__index__(), high.__index__()
    least, greatest = integer_range(wanted)
    if not least <= first < stop <= greatest + 1:
        raise at_user_line(
            ArgumentError(
                f"randint: expected {least} <= low < high <= {greatest + 1} for {wanted!s}, got "
                f"{first} and {stop}"
            )
        )
    drawn = _Source(key, "randint").bits(as_shape(shape), uint64)
    offset = astype(_scaled(drawn, stop - first), wanted)
    return offset + scalar_constant(first, wanted) if first else offset


def _scaled(x: Tensor, n: int) -> Tensor:
    """floor(x * n / 2**64) of a uint64 x, 1 <= n <= 2**64, by 32-bit limbs."""
    if n == 2**64:
        return x
    n0, n1 = n % 2**32, n >> 32
    x0, x1 = bitwise_and(x, 2**32 - 1), bitwise_right_shift(x, 32)
    middle = x1 * n0 + bitwise_right_shift(x0 * n0, 32)
    if not n1:
        return bitwise_right_shift(middle, 32)
    low = x0 * n1 + bitwise_and(middle, 2**32 - 1)
    return x1 * n1 + bitwise_right_shift(middle, 32) + bitwise_right_shift(low, 32)


# --- on the host: first values of parameters ------------------------------------------------------


# Compiling the native loop takes what NumPy takes for so many elements; after that it is kept.
NATIVE_FROM = 1 << 16


class _HostBits:
    """The bits of one draw: words of the blocks of all elements, as uint64."""

    def __init__(self, count: int) -> None:
        (number, _) = default_generator().numpy()
        self.count = count
        self._state = int(number), _next_draw()

    def piece(self, start: int, stop: int, word: int = 0) -> Array:
        """Of the elements from `start` to `stop`. `word` is 0 or 2."""
        seed, step = self._state
        if self.count < NATIVE_FROM:
            return _numpy_words(seed, step, HOST_SITE, start, stop, uint64, word)
        return philox_words(
            start, stop - start, seed, step, HOST_SITE, second=word == 2, rounds=ROUNDS,
            multipliers=MULTIPLIERS, weyl=WEYL,
        )  # fmt: skip


def _drawn(shape: tuple[int, ...], dtype: DType, number: Callable[..., Array]) -> Array:
    """`number(words)` of each element, in pieces that stay in the cache; `words(0)` and `words(2)`
    are the bits of the present ones."""
    bits = _HostBits(math.prod(shape))
    found = np.empty(bits.count, dtype.numpy)
    for start in range(0, bits.count, CHUNK):
        stop = min(start + CHUNK, bits.count)
        found[start:stop] = number(functools.partial(bits.piece, start, stop))
    return found.reshape(shape)


def _next_draw() -> int:
    with _global.lock:
        return next(_global.draws)


def _host_shape(shape: Any, what: str) -> tuple[int, ...]:
    found = as_shape(shape)
    if not all(isinstance(d, int) for d in found):
        raise at_user_line(ShapeError(f"{what}: expected a shape of ints, got {found}"))
    return tuple(int(d) for d in found)


def init_uniform(shape: Any, low: float = 0.0, high: float = 1.0, dtype: Any = "float32") -> Array:
    """A NumPy array of uniform numbers in [low, high), for first values of parameters.

    Drawn at once from the global generator's seed; each call since `seed` has its own numbers,
    which no compiled program draws.
    """
    wanted = _floating(dtype, "init_uniform")
    a, width, last = _bounds(low, high, wanted, "init_uniform")
    kept = 24 if wanted == float32 else 53
    scalar = wanted.numpy.type

    def number(words: Callable[[int], Array]) -> Array:
        # As signed integers, which every CPU converts by vectors.
        u = (words(0) >> np.uint64(64 - kept)).view(np.int64).astype(wanted.numpy)
        u *= scalar(2.0**-kept)
        u *= scalar(width)
        u += scalar(a)
        return np.minimum(u, scalar(last), out=u)

    return _drawn(_host_shape(shape, "init_uniform"), wanted, number)


def init_normal(shape: Any, mean: float = 0.0, std: float = 1.0, dtype: Any = "float32") -> Array:
    """A NumPy array of normal numbers, for first values of parameters; see `init_uniform`."""
    wanted = _floating(dtype, "init_normal")
    centre, spread = _finite(mean, "init_normal: mean"), _finite(std, "init_normal: std")
    if spread < 0:
        raise at_user_line(
            ArgumentError(f"init_normal: the standard deviation can't be negative, got {std!r}")
        )

    def number(words: Callable[[int], Array]) -> Array:
        u = (words(0).astype(np.float64) + 0.5) * 2.0**-64
        v = (words(2) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        z = np.sqrt(-2.0 * np.log(u)) * np.cos(2 * math.pi * v)
        return z * spread + centre

    return _drawn(_host_shape(shape, "init_normal"), wanted, number)


__all__ = [
    "bernoulli",
    "bits",
    "default_generator",
    "init_normal",
    "init_uniform",
    "key",
    "normal",
    "randint",
    "seed",
    "split",
    "uniform",
]
