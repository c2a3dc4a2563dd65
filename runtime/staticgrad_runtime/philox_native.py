"""Philox-4x32-10 in native code, for first values of parameters: half a million take 1 ms instead
of the 20 that NumPy takes. The bits are those of the compiler's `ops/random.py`, which explains
what is drawn from which counter.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arena import address
from .loader import compile_text

LANES = 16
_TYPE = f"<{LANES} x i64>"
_LOW = 0xFFFFFFFF


def philox_text(rounds: int, multipliers: Sequence[int], weyl: Sequence[int]) -> str:
    """`void @philox(out, first, count, seed, step, site, i1 second)`: for `count` elements, a
    multiple of LANES, from `first` on, words 0 and 1 of each block, or words 2 and 3, as one i64.

    Words stand in the low halves of 64 bits, whose high halves do not matter until the end. The
    rounds are a loop: unrolled they take as long, and five times as long to compile.
    """
    lines: list[str] = []
    names = itertools.count()

    def op(text: str) -> str:
        name = f"%v{next(names)}"
        lines.append(f"  {name} = {text}")
        return name

    def splat(scalar: str) -> str:
        one = op(f"insertelement {_TYPE} poison, i64 {scalar}, i32 0")
        return op(f"shufflevector {_TYPE} {one}, {_TYPE} poison, <{LANES} x i32> zeroinitializer")

    def both(what: str, a: str, b: str | int) -> str:
        right = f"splat (i64 {b})" if isinstance(b, int) else b
        return op(f"{what} {_TYPE} {a}, {right}")

    seed, step, site, start = (splat(f"%{name}") for name in ("seed", "step", "site", "first"))
    key = seed, both("lshr", seed, 32)
    upper = both("shl", both("lshr", step, 32), 8)
    lines += [
        f"  %begin = add {_TYPE} {start}, <{', '.join(f'i64 {i}' for i in range(LANES))}>",
        "  br label %block",
        "block:",
        "  %i = phi i64 [0, %entry], [%next, %done]",
        f"  %at = phi {_TYPE} [%begin, %entry], [%later, %done]",
    ]
    second = both("xor", both("lshr", "%at", 32), upper)
    lines += ["  br label %rounds", "rounds:", "  %r = phi i64 [0, %block], [%r1, %rounds]"]
    firsts = ("%at", second, site, step, *key)
    c = [f"%c{i}" for i in range(4)]
    k = ["%k0", "%k1"]
    lines += [
        f"  {name} = phi {_TYPE} [{first}, %block], [{name}.next, %rounds]"
        for name, first in zip([*c, *k], firsts)
    ]
    p0, p1 = (both("mul", both("and", x, _LOW), m) for x, m in zip((c[0], c[2]), multipliers))
    one = both("xor", both("lshr", p1, 32), c[1])
    other = both("xor", both("lshr", p0, 32), c[3])
    zero = f"{_TYPE} zeroinitializer"
    lines += [
        f"  %c0.next = xor {_TYPE} {one}, %k0", f"  %c1.next = or {zero}, {p1}",
        f"  %c2.next = xor {_TYPE} {other}, %k1", f"  %c3.next = or {zero}, {p0}",
        *(f"  %k{i}.next = add {_TYPE} %k{i}, splat (i64 {w})" for i, w in enumerate(weyl)),
        "  %r1 = add i64 %r, 1", f"  %again = icmp slt i64 %r1, {rounds}",
        "  br i1 %again, label %rounds, label %done",
        "done:",
    ]  # fmt: skip
    low, high = (
        op(f"select i1 %second, {_TYPE} {c[i + 2]}.next, {_TYPE} {c[i]}.next") for i in (0, 1)
    )
    word = both("or", both("and", low, _LOW), both("shl", high, 32))
    lines += [
        "  %place = getelementptr i64, ptr %out, i64 %i",
        f"  store {_TYPE} {word}, ptr %place, align 8",
        f"  %next = add i64 %i, {LANES}",
        f"  %later = add {_TYPE} %at, splat (i64 {LANES})",
        "  %more = icmp slt i64 %next, %count",
        "  br i1 %more, label %block, label %end",
        "end:",
        "  ret void",
    ]
    head = (
        "define void @philox(ptr %out, i64 %first, i64 %count, i64 %seed, i64 %step, i64 %site, "
        "i1 zeroext %second) nounwind {\nentry:\n"
    )
    return head + "\n".join(lines) + "\n}\n"


@functools.cache
def _compiled(
    rounds: int, multipliers: Sequence[int], weyl: Sequence[int]
) -> tuple[Any, Any]:  # fmt: skip
    library = compile_text(philox_text(rounds, multipliers, weyl), ["philox"])
    prototype = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint64,
        ctypes.c_uint64, ctypes.c_bool,
    )  # fmt: skip
    return library, prototype(library.address("philox"))


def philox_words(
    first: int, count: int, seed: int, step: int, site: int, *, second: bool, rounds: int,
    multipliers: tuple[int, int], weyl: tuple[int, int],
) -> NDArray[np.uint64]:  # fmt: skip
    """Of elements `first` to `first + count` words 0 and 1, or 2 and 3, as one uint64 each."""
    found = np.empty(-(-max(count, 1) // LANES) * LANES, np.uint64)
    _, draw = _compiled(rounds, multipliers, weyl)
    draw(address(found), first, found.size, seed, step, site, second)
    return found[:count]
