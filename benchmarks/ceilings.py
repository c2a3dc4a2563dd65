"""What the machine does at best: multiply-adds and memory streams, by code made for just that.

    fma      chains of independent multiply-adds on the widest vectors, float32
    stream   a[i] = b[i] + s * c[i], counted as 3 arrays (McCalpin's STREAM triad), for arrays that
             together take 16 KiB to 256 MiB: with plain stores, and with stores past the caches

The larger of both kinds of store counts, and of all vector widths. Every thread has arrays of its
own, and all are timed together.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from staticgrad.codegen.assemble import assemble
from staticgrad.codegen.target import host_target
from staticgrad_runtime.loader import Library

STREAM_BYTES = tuple(1 << n for n in (14, 16, 18, 20, 22, 24, 26, 28))
_ROUNDS = 5
_DISTURBED = 1.15  # two threads that share a core for 0.3 of 2 ms
_CHAINS = {512: 20, 256: 12, 128: 20}  # enough to hide an FMA's latency, within the registers


def fma_text(lanes: int, chains: int) -> str:
    """`void fma(i64 n, ptr p)`: n rounds of `chains` multiply-adds; their sum goes to p."""
    v = f"<{lanes} x float>"
    sums = [f"  %c{i} = phi {v} [zeroinitializer, %entry], [%d{i}, %loop]" for i in range(chains)]
    rounds = [
        f"  %d{i} = call {v} @llvm.fma.v{lanes}f32({v} %a, {v} %b, {v} %c{i})"
        for i in range(chains)
    ]
    total = [
        f"  %s{i} = fadd {v} {f'%s{i - 1}' if i > 1 else '%d0'}, %d{i}" for i in range(1, chains)
    ]
    return "\n".join([
        f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
        "define void @fma(i64 %n, ptr %p) {", "entry:",
        f"  %a = load {v}, ptr %p", f"  %q = getelementptr {v}, ptr %p, i64 1",
        f"  %b = load {v}, ptr %q", "  br label %loop", "loop:",
        "  %i = phi i64 [0, %entry], [%j, %loop]", *sums, *rounds,
        "  %j = add i64 %i, 1", "  %more = icmp ult i64 %j, %n",
        "  br i1 %more, label %loop, label %exit", "exit:", *total,
        f"  store {v} %s{chains - 1}, ptr %p", "  ret void", "}",
    ])  # fmt: skip


def triad_text(lanes: int, past_caches: bool, unroll: int = 4) -> str:
    """`void triad(i64 rounds, i64 n, ptr a, ptr b, ptr c)`: so often over n elements, a multiple
    of lanes * unroll."""
    v = f"<{lanes} x float>"
    align = 4 * lanes
    hint = ", !nontemporal !0" if past_caches else ""
    body = []
    for u in range(unroll):
        body += [
            f"  %k{u} = add i64 %i, {u * lanes}",
            f"  %pa{u} = getelementptr float, ptr %a, i64 %k{u}",
            f"  %pb{u} = getelementptr float, ptr %b, i64 %k{u}",
            f"  %pc{u} = getelementptr float, ptr %c, i64 %k{u}",
            f"  %b{u} = load {v}, ptr %pb{u}, align {align}",
            f"  %c{u} = load {v}, ptr %pc{u}, align {align}",
            f"  %r{u} = call {v} @llvm.fma.v{lanes}f32({v} %c{u}, {v} {_splat(lanes)}, {v} %b{u})",
            f"  store {v} %r{u}, ptr %pa{u}, align {align}{hint}",
        ]
    return "\n".join([
        f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
        "define void @triad(i64 %rounds, i64 %n, ptr %a, ptr %b, ptr %c) {", "entry:",
        "  br label %again", "again:", "  %r = phi i64 [0, %entry], [%s, %done]",
        "  br label %loop", "loop:", "  %i = phi i64 [0, %again], [%j, %loop]", *body,
        f"  %j = add i64 %i, {unroll * lanes}", "  %more = icmp ult i64 %j, %n",
        "  br i1 %more, label %loop, label %done", "done:", "  %s = add i64 %r, 1",
        "  %left = icmp ult i64 %s, %rounds", "  br i1 %left, label %again, label %exit", "exit:",
        "  ret void", "}", "!0 = !{i32 1}",
    ])  # fmt: skip


def _splat(lanes: int) -> str:
    return "<" + ", ".join(["float 0.5"] * lanes) + ">"


def measure(threads: int, seconds: float, largest: int = STREAM_BYTES[-1]) -> dict[str, Any]:
    """{"threads", "fma_flops", "stream": [{"bytes", "bytes_per_s"}]}; each about `seconds` long.
    Streams of more than `largest` bytes are left out."""
    widest = host_target().vector_bits
    widths = [bits for bits in _CHAINS if bits <= widest]
    flops = max(MultiplyAdds(bits, threads).rate(seconds) for bits in widths[:2])
    return {"threads": threads, "fma_flops": flops,
            "stream": _streams(widest, threads, seconds, largest)}  # fmt: skip


def _library(text: str, name: str) -> Library:
    return Library([assemble(text, host_target()).object_code], [name], {})


class MultiplyAdds:
    """Multiply-adds on vectors of so many bits, by each of some threads."""

    def __init__(self, bits: int, threads: int) -> None:
        self.threads = threads
        self.flops = 2 * bits // 32 * _CHAINS[bits]  # of one thread in one round
        self._library = _library(fma_text(bits // 32, _CHAINS[bits]), "fma")
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(
            self._library.address("fma")
        )
        self._arrays = [_aligned(2 * bits // 32) for _ in range(threads)]

    def __call__(self, thread: int, rounds: int) -> None:
        self._run(rounds, self._arrays[thread].ctypes.data)

    def rate(self, seconds: float) -> float:
        """Operations a second of all threads together."""
        return _rate(self, self.threads, seconds, self.flops)


class Probe:
    """Tells whether this process has its cores to itself: multiply-adds on all threads, which take
    longer than they did at best where another process, or another guest of the host, has a core."""

    def __init__(self, threads: int, seconds: float = 2e-3) -> None:
        self._job = MultiplyAdds(min(256, host_target().vector_bits), threads)
        self._rounds = max(1, round(seconds * self._job.rate(seconds) / threads / self._job.flops))
        self._best = min(self._took() for _ in range(_ROUNDS))

    def _took(self) -> float:
        return _together(self._job, self._job.threads, self._rounds)

    def disturbed(self) -> bool:
        took = self._took()
        self._best = min(self._best, took)
        return took > _DISTURBED * self._best


def _streams(bits: int, threads: int, seconds: float, largest: int) -> list[dict[str, Any]]:
    lanes = bits // 32
    sizes = [size for size in STREAM_BYTES if size <= largest]
    best = dict.fromkeys(sizes, 0.0)
    for past_caches in (False, True):
        library = _library(triad_text(lanes, past_caches), "triad")
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3)(
            library.address("triad")
        )
        for size in sizes:
            elements = size // 12 // threads // (4 * lanes) * 4 * lanes
            if elements:
                rate = _stream_rate(run, elements, threads, seconds)
                best[size] = max(best[size], rate)
    fastest, found = 0.0, []
    for size in reversed(sizes):  # what fits a larger size fits a smaller one
        fastest = max(fastest, best[size])
        found.append({"bytes": size, "bytes_per_s": fastest})
    return found[::-1]


def _stream_rate(run: Any, elements: int, threads: int, seconds: float) -> float:
    arrays = [[_aligned(elements) for _ in range(3)] for _ in range(threads)]
    places = [[a.ctypes.data for a in mine] for mine in arrays]

    return _rate(lambda t, n: run(n, elements, *places[t]), threads, seconds, 12 * elements)


def _rate(job: Callable[[int, int], None], threads: int, seconds: float, work: int) -> float:
    """Units of work a second of all threads together, at best of some rounds."""
    n = 1
    while (took := _together(job, threads, n)) < 0.2 * seconds:
        n *= 2 if took == 0 else max(2, int(0.5 * seconds / took))
    n = max(1, round(n * seconds / took))
    return threads * n * work / min(_together(job, threads, n) for _ in range(_ROUNDS))


def _together(job: Callable[[int, int], None], threads: int, n: int) -> float:
    """Seconds from the first thread's start to the last one's end."""
    gate = threading.Barrier(threads)
    spans: list[tuple[float, float]] = []

    def work(thread: int) -> None:
        gate.wait()
        start = time.perf_counter()
        job(thread, n)
        spans.append((start, time.perf_counter()))

    others = [threading.Thread(target=work, args=(t,)) for t in range(1, threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _aligned(elements: int) -> np.ndarray[Any, Any]:
    memory = np.zeros(4 * elements + 64, np.uint8)
    offset = -memory.ctypes.data % 64
    array = memory[offset : offset + 4 * elements].view(np.float32)
    array.fill(1.0)
    return array
