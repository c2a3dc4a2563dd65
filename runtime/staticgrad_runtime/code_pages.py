"""Pages of LLVM's own code, given back once it has generated ours.

Code generation goes through some 30 MiB of LLVM's library, more than a model's temporaries often
are. They stay resident, though they can be had from the library's file again: with them the process
of an MLP's step grew by 46 MiB, without by nothing. A container's limit counts them.

To give them back takes 2 ms, and the next code generation then 1 to 2 ms more. So it is done when a
program is bound, behind all that is compiled before a first call, and where code generation took
many times as long since the last time.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from .forks import ForkSafeLock

WORTH_MS = 50.0
FIRST_MS = 20.0  # the first time: most of what is resident then is of no more use
_DONTNEED = 4  # Linux's number; private pages that nobody has written come from the file again

_turn = ForkSafeLock()
_spent_ms = WORTH_MS - FIRST_MS


def count_code_generation(ms: float) -> None:
    """Tells of time that LLVM has generated code for."""
    global _spent_ms
    with _turn:
        _spent_ms += ms


def give_back_code_pages() -> None:
    """Gives pages back, on Linux, if enough code was generated."""
    global _spent_ms
    if _spent_ms < WORTH_MS:
        return
    with _turn:
        _spent_ms = 0.0
    found = code_range()
    if found is not None:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(found[0]), ctypes.c_size_t(found[1] - found[0]), _DONTNEED)


@functools.cache
def code_range() -> tuple[int, int] | None:
    """Where the code of LLVM's library is mapped: privately from its file, never to be written."""
    if not sys.platform.startswith("linux"):
        return None
    from llvmlite.binding import ffi

    function = getattr(ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_cfn", None)
    if function is None:  # llvmlite looks otherwise
        return None
    inside = ctypes.cast(function, ctypes.c_void_p).value or 0
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                where, rights, _, _, inode = line.split()[:5]
                start, end = (int(part, 16) for part in where.split("-"))
                if start <= inside < end:
                    return (start, end) if rights == "r-xp" and inode != "0" else None
    except OSError:
        pass
    return None
