"""What the code generator needs to know of the machine: vectors, registers, caches."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

from staticgrad.ir.errors import UnsupportedError


@dataclass(frozen=True)
class Target:
    """A description of one CPU; tile shapes and vector widths come from here, never from a kernel.

    `vector_bits` is the widest vector the CPU computes with, `vector_registers` how many of them
    it has. Cache sizes are per core for L1 and L2, and shared for L3, all in bytes.
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int
    vector_registers: int
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 1024 * 1024
    l3_bytes: int = 16 * 1024 * 1024

    def lanes(self, itemsize: int) -> int:
        """How many elements of `itemsize` bytes one vector register holds."""
        return self.vector_bits // (8 * itemsize)

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith("x86_64")


def _cache_bytes(index: int, default: int) -> int:
    """The size of cache `index` of CPU 0 as Linux tells it, else `default`."""
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size", encoding="ascii") as f:
            text = f.read().strip()
    except OSError:
        return default
    scale = {"K": 1024, "M": 1024 * 1024}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else default


@functools.cache
def host_target() -> Target:
    """The CPU that this process runs on.

    `STATICGRAD_VECTOR_BITS` (128, 256 or 512) narrows the vectors, for tests of the other widths.
    """
    import llvmlite.binding as llvm

    triple = llvm.get_process_triple()
    machine = platform.machine().lower()
    found = llvm.get_host_cpu_features()
    if machine in ("x86_64", "amd64"):
        if not (found.get("avx2") and found.get("fma")):
            raise UnsupportedError(
                "staticgrad needs an x86-64-v3 CPU (AVX2 and FMA); this one is "
                f"{llvm.get_host_cpu_name()!r}"
            )
        wide = bool(found.get("avx512f") and found.get("avx512dq") and found.get("avx512vl"))
        bits, registers = (512, 32) if wide else (256, 16)
        # LLVM halves 512-bit vectors on some CPUs unless told otherwise: 202 against 125 GFLOP/s.
        features = found.flatten() + ",-prefer-256-bit"
    elif machine in ("aarch64", "arm64"):
        bits, registers, features = 128, 32, found.flatten()
    else:
        raise UnsupportedError(
            f"staticgrad generates code for x86-64-v3 and AArch64; this machine is {machine!r}"
        )
    asked = os.environ.get("STATICGRAD_VECTOR_BITS")
    if asked is not None:
        if asked not in ("128", "256", "512") or int(asked) > bits:
            raise UnsupportedError(
                f"STATICGRAD_VECTOR_BITS={asked!r}: expected 128, 256 or 512, at most {bits}"
            )
        bits = int(asked)
    return Target(
        triple,
        llvm.get_host_cpu_name(),
        features,
        bits,
        registers,
        _cache_bytes(0, 32 * 1024),
        _cache_bytes(2, 1024 * 1024),
        _cache_bytes(3, 16 * 1024 * 1024),
    )
