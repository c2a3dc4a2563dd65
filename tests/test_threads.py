"""Programs on several threads: bits, barriers, failures, the pool's life."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as api
from staticgrad.codegen import sharing
from staticgrad_runtime import binding, frames, workers
from staticgrad_runtime.arena import address, aligned_words
from staticgrad_runtime.cache import DiskCache
from staticgrad_runtime.context import CONTEXT_WORDS, STATUS_OK, Word
from staticgrad_runtime.pool_native import EXPORTS, PoolWord, build_pool, pool_text
from staticgrad_runtime.pool_system import has_futex
from staticgrad_runtime.symbols import object_symbols
from staticgrad_runtime.workers import MAX_THREADS, Pool, thread_count, usable_cpus

from tests import threaded_programs as programs
from tests.test_entry import MODES, mode_functions
from tests.threaded_programs import InTurn, Threaded, bits, random

COUNTS = (2, 3, 5)  # more than there may be cores, too

MAKERS: dict[str, tuple[Callable[[], Threaded], Callable[[int], list[Any]]]] = {
    "sweeps": (programs.sweeps, programs.sweeps_arrays),
    "products": (programs.products, lambda n: [random((n, 33), n)]),
    "images": (programs.images, lambda n: [random((n, 4, 9, 8), n)]),
    "training": (programs.training, programs.training_arrays),
}


@cache
def made(name: str) -> Threaded:
    return MAKERS[name][0]()


@pytest.fixture(autouse=True)
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    programs.share_whatever_the_size(monkeypatch)


@pytest.fixture
def restless() -> Iterator[Pool]:
    """The pool, whose threads sleep as soon as they wait."""
    pool = workers.pool(max(COUNTS))
    saved = pool.words.copy()
    names = (PoolWord.BARRIER_SPIN, PoolWord.IDLE_SPIN, PoolWord.NUDGED_SPIN)
    for name in names:
        pool.words[name] = 0
    yield pool
    for name in names:
        pool.words[name] = saved[name]


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    program, arrays = made(name), MAKERS[name][1]
    runs = {n: program.on(n) for n in (1, *COUNTS)}
    for size in (0, 1, 2, 3, 8, 9, 65, 130, 700):
        expected = bits(runs[1](*arrays(size)))
        for n in COUNTS:
            assert bits(runs[n](*arrays(size))) == expected, (size, n)
    for n in COUNTS:  # state was written as often as read, in place
        for cell, alone in zip(runs[n].cells, runs[1].cells, strict=True):
            assert bits(cell.numpy()) == bits(alone.numpy()), cell.name


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_any_order_between_barriers(
    name: str, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, arrays = made(name), MAKERS[name][1](70)
    pool = InTurn(order)
    alone, shared = program.on(1), program.on(len(order))
    monkeypatch.setattr(frames, "pool", lambda threads: pool)
    for _ in range(2):
        assert bits(shared(*arrays)) == bits(alone(*arrays))
    steps = program.program.steps
    asked = any(s.can_fail for s in steps) and program.program.commit_step == len(steps)
    assert pool.meetings == 2 * (program.artifact.manifest.cost.barriers + asked)


def test_steps_of_several_axes_and_known_sizes() -> None:
    x = sg.input("x", (5, 3, 130))
    y = sg.input("y", (3, 130))
    outputs = [
        sg.exp(x) + y, x.sum(axis=1), sg.max(x, axis=(0, 1)), x.mean(axis=(0, 2)),
        sg.permute_dims(x, (2, 0, 1)) * 2, x @ y.T, (x > y), sg.astype(x, "int8") + 1,
        sg.cumulative_sum(x, axis=2), sg.full((7,), 3.0), x[0, 0, 0] * 2,
    ]  # fmt: skip
    program = Threaded.of([x, y], outputs)
    arrays = [random((5, 3, 130)), random((3, 130), 1)]
    expected = bits(program.on(1)(*arrays))
    for n in COUNTS:
        assert bits(program.on(n)(*arrays)) == expected


# --- what runs on several threads -----------------------------------------------------------------


def test_memory_is_not_given_away_inside_of_a_phase() -> None:
    program = made("training").program
    shared = sharing.share(program)
    spans = sharing.lifetimes(program, shared)
    users: dict[int, list[int]] = {}
    for i, step in enumerate(program.steps):
        for b in step.buffers:
            if program.buffers[b].kind == "temp":
                users.setdefault(b, []).append(i)
    phase = np.cumsum(shared.barrier)
    apart = 0
    for a, a_steps in users.items():
        for b, b_steps in users.items():
            if spans[a][1] >= spans[b][0]:
                continue  # never in the same memory, or the pair comes the other way round
            apart += 1
            for i in a_steps:
                for j in b_steps:
                    same = phase[i] == phase[j]
                    assert not (same and (shared.shared[i] or shared.shared[j])), (a, b, i, j)
    assert apart


def test_small_programs_stay_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x = sg.input("x", ("N",))
    program = Threaded.of([x], sg.exp(x) + 1).on(4)
    assert program.bind({"N": 1000}).threads == 1
    assert program.bind({"N": 10_000_000}).threads == 4
    assert not program.bind({"N": 1000}).release_gil
    assert binding.threads_for(8, 1e9, 10) == 8
    assert binding.threads_for(1, 1e9, 0) == 1
    assert binding.threads_for(64, 20_000, 0) <= 2  # some microseconds for each
    assert binding.threads_for(2, 100_000, 1000) == 1  # all of it would go into barriers
    assert binding.threads_for(MAX_THREADS, 150_000, 0) == 1  # without a core each


def test_each_thread_has_its_own_scratch_memory() -> None:
    program = made("products")
    temps = [b for b in program.artifact.manifest.buffers if b.kind == "temp"]
    assert any(b.per_thread for b in temps)
    one, five = (program.on(n).peak_bytes(N=1) for n in (1, 5))
    largest = max(b.size_bytes for b in temps if b.per_thread and isinstance(b.size_bytes, int))
    assert five >= one + 4 * largest


def test_one_artifact_serves_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskCache, "default", classmethod(lambda cls: cls(tmp_path)))
    x = sg.input("x", ("N", 3))
    before = api.compilations
    a, b = (sg.compile([x], sg.softmax(x * 1.25, -1), threads=n) for n in (1, 3))
    assert api.compilations == before + 1
    assert bits(a(random((50, 3)))) == bits(b(random((50, 3))))


# --- failures -------------------------------------------------------------------------------------


@cache
def checked() -> Threaded:
    x = sg.input("x", ("N", 5))
    first, second = (sg.input(name, ("N",), "int64") for name in ("first", "second"))
    w = sg.parameter(random((9, 5), 1), name="w")
    picked = sg.take(w, first, axis=0) + sg.take(x, second, axis=0)
    return Threaded.of([x, first, second], [picked.sum()], updates=[(w, w * 0.5 + picked.sum())])


@pytest.mark.parametrize(
    "bad",
    [
        {"first": {699: 9}},
        {"first": {698: -90, 350: 11, 699: 12}},
        {"second": {0: 700, 699: 701}, "first": {640: 13}},
        {"second": {65: 1 << 40}},
    ],
)
def test_the_same_failure_for_any_number(bad: dict[str, dict[int, int]]) -> None:
    n = 700
    good = [random((n, 5)), np.arange(n) % 9, np.arange(n)]
    arrays = [good[0], good[1].copy(), good[2].copy()]
    for name, places in bad.items():
        for at, value in places.items():
            arrays[1 if name == "first" else 2][at] = value
    found = []
    for threads in (1, *COUNTS):
        program = checked().on(threads)
        before = bits(program.cells[0].numpy())
        for _ in range(3):
            with pytest.raises(sg.ExecutionError) as caught:
                program(*arrays)
            error = caught.value
            found.append((error.code, error.element, error.value, str(error)))
            assert bits(program.cells[0].numpy()) == before
        program(*good)
        assert bits(program.cells[0].numpy()) != before
    assert len(set(found)) == 1


# --- the pool -------------------------------------------------------------------------------------


def test_sleeping_threads_wake(restless: Pool) -> None:
    program = made("products")
    array = random((40, 33))
    expected = bits(program.on(1)(array))
    for threads in (2, 5):
        run = program.on(threads)
        for i in range(100):
            assert bits(run(array)) == expected
            if i % 20 == 0:
                time.sleep(0.02)


def test_threads_that_poll_instead_of_sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(build_pool(futex=False))
    pool.words[PoolWord.BARRIER_SPIN] = pool.words[PoolWord.IDLE_SPIN] = 0
    pool.grow(3)
    monkeypatch.setattr(frames, "pool", lambda threads: pool)
    program, array = made("products"), random((40, 33))
    expected = bits(program.on(1)(array))
    run = program.on(3)
    for _ in range(5):
        assert bits(run(array)) == expected
    pool.stop()
    assert not any(thread.is_alive() for thread in pool.threads)
    assert bits(run(array)) == expected  # nobody owns a stopped pool: alone


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_other_targets_get_code(machine: str, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(pool_text(futex=has_futex()))
    module.verify()
    target = llvm.Target.from_triple(f"{machine}-unknown-linux-gnu")
    symbols = object_symbols(target.create_target_machine(reloc="pic").emit_object(module))
    assert symbols.defined >= set(EXPORTS)
    asked = {"linux": {"syscall", "clock_gettime", "sched_getcpu"}, "win32": {"Sleep"}}
    assert symbols.undefined == asked.get(system, {"usleep"})


def test_short_programs_do_not_wait_for_sleepers(
    restless: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WAKE_NS", float("inf"))
    program, array = made("products"), random((40, 33))
    expected = bits(program.on(1)(array))
    restless.words[PoolWord.NUDGED_SPIN] = 1000
    run = program.on(3)
    for _ in range(100):
        assert bits(run(array)) == expected


def test_workers_stay_off_the_core_of_their_caller() -> None:
    program, array = made("products"), random((40, 33))
    run, pool = program.on(2), workers.pool(2)
    run(array)
    cores = sorted(os.sched_getaffinity(0))
    (worker,) = (thread.native_id for thread in pool.threads[:1])
    assert worker is not None
    try:
        for core in [cores[0], cores[-1]]:
            os.sched_setaffinity(0, {core})
            left = set(cores) - {core} if pool.words[PoolWord.CPUS] > 1 else set(cores)
            for _ in range(1000):  # where the machine is busy the caller runs alone for a while
                run(array)
                if os.sched_getaffinity(worker) == left:
                    break
            assert os.sched_getaffinity(worker) == left
    finally:
        os.sched_setaffinity(0, cores)


def test_a_program_that_finds_the_workers_taken_runs_alone() -> None:
    program, array = made("products"), random((40, 33))
    run, pool = program.on(3), workers.pool(3)
    expected = bits(run(array))
    pool.words[PoolWord.OWNER] = 1
    try:
        assert bits(run(array)) == expected
    finally:
        pool.words[PoolWord.OWNER] = 0
    assert bits(run(array)) == expected


def test_two_programs_at_once() -> None:
    work = [("products", 60), ("sweeps", 90)]
    failures: list[BaseException] = []

    def loop(name: str, size: int) -> None:
        try:
            program, arrays = made(name), MAKERS[name][1](size)
            run, expected = program.on(3), bits(program.on(1)(*arrays))
            for _ in range(100):
                assert bits(run(*arrays)) == expected
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=loop, args=item) for item in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_many_executables_share_the_workers() -> None:
    program, array = made("products"), random((30, 33))
    expected = bits(program.on(1)(array))
    for threads in (2, 3, 4, 5) * 5:
        assert bits(program.on(threads)(array)) == expected
    names = [t.name for t in threading.enumerate() if t.name.startswith("staticgrad-")]
    pool = workers.pool(1)
    assert len(set(names)) >= len(pool.threads) >= 4


def test_a_worker_that_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    start = threading.Thread.start

    def limited(self: threading.Thread) -> None:
        if len(pool.threads) == 1:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(frames, "pool", lambda threads: pool.grow(threads) or pool)
    program, array = made("products"), random((40, 33))
    assert bits(program.on(4)(array)) == bits(program.on(1)(array))
    assert len(pool.threads) == 1
    pool.stop()


@pytest.mark.parametrize("mode", MODES)
def test_workers_have_an_arithmetic_of_their_own(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = sg.input("x", ("N",))
    program = Threaded.of([x], x * 0.5)
    array = np.full(1000, 3e-45, "float32")
    expected = bits(program.on(1)(array))
    _, get, put = mode_functions()
    before = get()
    put(mode)  # a new thread starts with that of its maker
    try:
        pool = Pool()
        pool.grow(4)
    finally:
        put(before)
    monkeypatch.setattr(frames, "pool", lambda threads: pool)
    assert bits(program.on(4)(array)) == expected
    pool.stop()


_SCRIPT = """
import os, sys, threading, time
from staticgrad_runtime import binding, workers
from tests.forked import in_child
from tests.threaded_programs import bits, products, random
binding.threads_for = lambda most, *_: most
workers.WAKE_NS = 0
program, array = products(), random((300, 33))
expected = bits(program.on(1)(array))
run = program.on(3)
assert bits(run(array)) == expected
"""
_FORK = """
def work():
    assert not workers._pool
    assert bits(run(array)) == expected
    assert bits(program.on(2)(array)) == expected
    return len(workers.pool(1).threads) == 2
for _ in range(3):
    assert in_child(work) == 0
    assert bits(run(array)) == expected
"""
_BUSY = """
def loop():
    while True:
        run(array)
for _ in range(2):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.05)
"""


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            _FORK, id="fork",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
        ),
        pytest.param(_BUSY, id="busy"),
        pytest.param("sys.exit(0)", id="at once"),
    ],
)  # fmt: skip
def test_processes_fork_and_end(more: str) -> None:
    root = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore:threads=3", "-c", _SCRIPT + more], cwd=root,
        capture_output=True, timeout=120, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", MAX_THREADS + 1])
def test_wrong_numbers_are_refused(wrong: Any) -> None:
    x = sg.input("x", (2,))
    kind = sg.ArgumentError if type(wrong) is int else sg.ArgumentTypeError
    with pytest.raises(kind, match="threads"):
        sg.compile([x], x + 1, threads=wrong)


@pytest.mark.parametrize("wrong", ["0", "-2", "two", "1.5", "100000"])
def test_wrong_environments_are_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workers.NUM_THREADS, wrong)
    x = sg.input("x", (2,))
    with pytest.raises(sg.ArgumentError, match=workers.NUM_THREADS):
        sg.compile([x], x + 1)
    assert thread_count(2) == 2  # asked for: the environment does not matter


def test_default_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() == usable_cpus() >= 1
    monkeypatch.setenv(workers.NUM_THREADS, "3")
    assert thread_count() == 3
    assert thread_count(1) == 1
    for unset in ("", " "):  # as shells have it that can't unset
        monkeypatch.setenv(workers.NUM_THREADS, unset)
        assert thread_count() == usable_cpus()


def test_more_threads_than_cores_are_taken_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many, x = usable_cpus() + 1, sg.input("x", (2,))
    monkeypatch.setattr(workers, "_warned", False)
    monkeypatch.setenv(workers.NUM_THREADS, str(many))
    with pytest.warns(UserWarning, match=f"{workers.NUM_THREADS}={many}: this process") as told:
        assert thread_count() == many
        assert thread_count(many + 1) == many + 1
    assert len(told) == 1
    monkeypatch.setattr(workers, "_warned", False)
    with pytest.warns(UserWarning, match=f"^threads={many}: ") as told:
        program = sg.compile([x], x + 1, threads=many)
    assert told[0].filename == __file__  # the user's line
    np.testing.assert_array_equal(program(np.ones(2, np.float32)), [2, 2])
    monkeypatch.setattr(workers, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert thread_count(usable_cpus()) == usable_cpus()


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/gone\n", {"cpu.max": "400000 100000"}, 4),
        ("1:name=x:/\n0::/\n", {}, float("inf")),
        ("3:cpu,cpuacct:/j\n",
         {"cpu,cpuacct/j/cpu.cfs_quota_us": "50000", "cpu,cpuacct/j/cpu.cfs_period_us": "100000"},
         0.5),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
         float("inf")),
        ("nonsense\n", {"cpu.max": "strange"}, float("inf")),
        (None, {}, float("inf")),
    ],
)  # fmt: skip
def test_quotas(
    membership: str | None, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    mounts = tmp_path / "cgroup"
    for name, text in files.items():
        (mounts / name).parent.mkdir(parents=True, exist_ok=True)
        (mounts / name).write_text(text + "\n")
    own = tmp_path / "self"
    if membership is not None:
        own.write_text(membership)
    assert workers._cpu_quota.__wrapped__(mounts, own) == cores


def test_a_program_that_is_slow_together_runs_alone_until_it_is_not() -> None:
    """Where others have the cores, the caller alone is faster: as long as that lasts."""
    pool = Pool(build_pool(futex=True))
    pool.grow(2)
    words = aligned_words(CONTEXT_WORDS)
    words[Word.POOL], words[Word.THREADS], words[Word.PATIENT] = pool.address, 2, 1
    words[Word.STATUS], words[Word.ESTIMATE] = STATUS_OK, 1_000
    counts: list[int] = []
    slow_for = [2]

    def share(context: int, tid: int, n: int) -> int:
        if tid == 0:
            counts.append(n)
            if n in slow_for:
                time.sleep(0.003)
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    dispatch = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(pool.dispatch)
    function = kind(share)
    run = [address(words), ctypes.cast(function, ctypes.c_void_p)]

    def settles_on(threads: int) -> bool:
        """Whether ten runs in a row have so many threads: later where the machine is busy."""
        for _ in range(1000):
            dispatch(*run)
            if counts[-10:] == [threads] * 10:
                return True
        return False

    dispatch(*run)
    assert counts == [2]
    assert settles_on(1)
    slow_for[:] = [1]
    assert settles_on(2)
    pool.stop()
