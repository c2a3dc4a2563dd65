"""The worker pool: how many threads a program gets, and the threads themselves.

Workers are ordinary daemon threads that call `sg_worker` through ctypes and stay in it, without the
GIL, until the interpreter ends. There is one pool a process; one program at a time owns it, and a
program that finds it taken runs on its caller's thread alone, with the same bits.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import os
import sys
import threading
import time
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

from .arena import address, aligned_words
from .errors import ArgumentError
from .forks import ForkSafeLock, no_fork
from .loader import Library
from .pool_native import LINE_WORDS, PoolWord, pool_library
from .pool_placement import MASK_WORDS, allowed_words

NUM_THREADS = "STATICGRAD_NUM_THREADS"
MAX_THREADS = 256

# Work that pays for waking workers that sleep, which takes 50-300 us. Below it a program that finds
# them asleep runs alone, and has them woken for its next call.
WAKE_NS = 200_000
# How long a thread spins before it sleeps, where every thread has a core. Waking one takes a
# futex call of some 2 us and then 5 to 50 us until it runs; inside of a run that is worth more
# patience than between two, where the caller may be gone for good.
BARRIER_SPIN_US = 200.0
IDLE_SPIN_US = 50.0
# A worker that a short program has woken for its next call must outlast the present one.
NUDGED_SPIN_US = WAKE_NS / 1e3


# --- how many ------------------------------------------------------------------------------------


def thread_count(threads: Any = None) -> int:
    """The number of threads to use: `threads`, else STATICGRAD_NUM_THREADS, else as many as there
    are cores that this process may use. More than that are taken, as OpenMP does, but warned of
    once a process. Raises ArgumentError."""
    if threads is None:
        text = os.environ.get(NUM_THREADS, "").strip()
        if not text:
            return min(usable_cpus(), MAX_THREADS)
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_THREADS):
            raise ArgumentError(
                f"{NUM_THREADS}={text!r}: expected a number from 1 to {MAX_THREADS}"
            )
        _warn_if_crowded(int(text), NUM_THREADS)
        return int(text)
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise ArgumentError(f"threads: expected None or an int, got {threads!r}")
    if not 1 <= threads <= MAX_THREADS:
        raise ArgumentError(f"threads: expected 1 to {MAX_THREADS}, got {threads}")
    _warn_if_crowded(threads, "threads")
    return threads


_warned = False


def _warn_if_crowded(threads: int, name: str) -> None:
    """Threads that share a core wait for each other at every barrier."""
    global _warned
    cores = usable_cpus()
    if threads <= cores or _warned:
        return
    _warned = True
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{name}={threads}: this process may use {cores} core{'s' if cores > 1 else ''}; more "
        "threads give the same results, more slowly",
        UserWarning,
        stacklevel=level,
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("staticgrad", "staticgrad_runtime")


def usable_cpus() -> int:
    """Cores that this process may use: its affinity, and its CPU quota rounded up."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_quota())))


@functools.cache
def _cpu_quota(
    mounts: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """Cores' worth of time that the cgroup of this process and those above it allow; inf if none
    sets a limit, or where there are no cgroups."""
    limits = [math.inf]
    for line in _lines(membership):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # version 2
            roots, read = [mounts, mounts / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            roots, read = [mounts / controllers, mounts / "cpu"], _quota_v1
        else:
            continue
        here = PurePosixPath(path).relative_to("/") if path.startswith("/") else PurePosixPath()
        for root in roots:
            limits += [read(root / level) for level in (here, *here.parents)]
    return min(limits)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _quota_v2(group: Path) -> float:
    for line in _lines(group / "cpu.max")[:1]:
        quota, _, period = line.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return math.inf


def _quota_v1(group: Path) -> float:
    quota, period = (_lines(group / f"cpu.cfs_{name}_us")[:1] for name in ("quota", "period"))
    if quota and period and quota[0].isdigit() and period[0].isdigit() and int(period[0]):
        return int(quota[0]) / int(period[0])
    return math.inf


# --- the pool ------------------------------------------------------------------------------------


class Pool:
    """The workers of this process and the words that they share with whoever dispatches."""

    def __init__(self, library: Library | None = None) -> None:
        library = self._library = library or pool_library()
        self.words = aligned_words(PoolWord.SLOTS + LINE_WORDS * MAX_THREADS)
        self.threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.address = address(self.words)
        self.dispatch = library.address("sg_dispatch")
        self.barrier = library.address("sg_barrier")
        self.words[PoolWord.CPUS] = usable_cpus()
        self.words[PoolWord.ALLOWED : PoolWord.ALLOWED + MASK_WORDS] = allowed_words()
        pauses = _pauses_in_us(library)
        self.words[PoolWord.BARRIER_SPIN] = int(BARRIER_SPIN_US * pauses)
        self.words[PoolWord.IDLE_SPIN] = int(IDLE_SPIN_US * pauses)
        self.words[PoolWord.NUDGED_SPIN] = int(NUDGED_SPIN_US * pauses)

    def grow(self, threads: int) -> None:
        """Starts workers until a program can run on `threads` threads, its caller's included.

        Where the system refuses one, programs run on those that there are.
        """
        if len(self.threads) + 1 >= threads:
            return
        work = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(
            self._library.address("sg_worker")
        )
        with self._lock, contextlib.suppress(RuntimeError):  # "can't start new thread"
            while len(self.threads) + 1 < threads:
                number = len(self.threads) + 1
                thread = threading.Thread(
                    target=work, args=(self.address, number), name=f"staticgrad-{number}",
                    daemon=True,
                )  # fmt: skip
                thread.start()
                self.threads.append(thread)
                self.words[PoolWord.WORKERS] = number

    def stop(self) -> None:
        """Ends the workers, unless a program is running on them."""
        stop = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(self._library.address("sg_stop"))
        if stop(self.address):
            for thread in self.threads:
                thread.join(timeout=1.0)


def _pauses_in_us(library: Library) -> float:
    """How often a waiter pauses in a microsecond: 40 to 140 cycles each, depending on the CPU."""
    pause = ctypes.CFUNCTYPE(None, ctypes.c_int64)(library.address("sg_pause"))
    count = 1000
    times = []
    for _ in range(3):
        start = time.perf_counter()
        pause(count)
        times.append(time.perf_counter() - start)
    return count / (1e6 * min(times))


_pool: Pool | None = None
_pool_lock = ForkSafeLock()


@no_fork()
def pool(threads: int) -> Pool:
    """The process's pool, with workers for `threads` threads."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = Pool()
    _pool.grow(threads)
    return _pool


def _stop_at_exit() -> None:
    """Workers that stayed in compiled code while the interpreter takes it down could crash."""
    if _pool is not None:
        _pool.stop()


def _reset_after_fork() -> None:
    """A forked child has no workers; the parent's words stay untouched."""
    global _pool
    _pool = None


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
