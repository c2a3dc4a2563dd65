"""Calls of changing sizes: bound natively where a size was seen, with the bits of any binding."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad_runtime import BindError, Executable, ExecutionError, frames
from staticgrad_runtime.arena import Arena
from staticgrad_runtime.context import FrameWord, Word
from staticgrad_runtime.frames import dims_hash
from staticgrad_runtime.layout import native_interface
from staticgrad_runtime.plan import Planner

from tests import runtime_programs as programs
from tests import threaded_programs as threaded
from tests.contended import in_threads
from tests.forked import in_child


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATICGRAD_ENTRY", raising=False)
    assert native_interface() is not None


class Counts:
    """How often a program's calls took the checked path, and how often memory was planned."""

    def __init__(self, program: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked = self.planned = 0
        checked, solve = Executable.checked, Planner.solve

        def counted_call(executable: Executable, *given: Any, **named: Any) -> Any:
            self.checked += executable is program
            return checked(executable, *given, **named)

        def counted_solve(planner: Planner, sizes: Any) -> Any:
            self.planned += planner is program._binder._planner
            return solve(planner, sizes)

        monkeypatch.setattr(Executable, "checked", counted_call)
        monkeypatch.setattr(Planner, "solve", counted_solve)

    def since(self) -> tuple[int, int]:
        found, self.checked, self.planned = (self.checked, self.planned), 0, 0
        return found


def arrays(n: int) -> tuple[np.ndarray[Any, Any], ...]:
    return np.linspace(-1, 1, n), np.linspace(2, 5, 2 * n + 1)


def check(n: int, found: tuple[Any, Any]) -> None:
    x, y = arrays(n)
    np.testing.assert_array_equal(found[0], x + y[:n])
    np.testing.assert_array_equal(found[1], (x + y[:n]) * (2 * n + 1))


def frame_of(program: Executable) -> int:
    assert program._published is not None
    return int(program._published.words[Word.FRAME])


# What is bound where


def test_sizes_seen_before_are_bound_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs.load(programs.with_temps)
    counts = Counts(program, monkeypatch)
    for n in (3, 8, 1):
        check(n, program(*arrays(n)))
    assert counts.since() == (3, 3)
    for n in (8, 1, 3, 3, 8, 3, 1) * 5:
        check(n, program(*arrays(n)))
    assert counts.since() == (0, 0)
    program([0.0] * 3, arrays(3)[1])  # a list is checked, at a size that is known
    assert counts.since() == (1, 0)
    program(*arrays(8))
    assert counts.since() == (0, 0)
    assert len(program._contexts) == 1


@pytest.mark.parametrize("count", [130, 400])
def test_any_number_of_sizes_is_planned_once_each(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 129 sizes on each call was bound and planned anew."""
    program = programs.load(programs.with_temps)
    counts = Counts(program, monkeypatch)
    for _ in range(3):
        for n in range(count):
            check(n, program(*arrays(n)))
    assert counts.since() == (count, count)
    assert len(program._frames) == count
    for n in np.random.default_rng(0).integers(0, count, 200):
        check(int(n), program(*arrays(int(n))))
    assert counts.since() == (0, 0)


def test_what_is_converted_goes_on_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, strided arrays and names cost their conversion, no binding and no lock in Python."""
    cell = sg.parameter(np.zeros(3, "float32"), name="total")
    x, k = sg.input("x", (3,)), sg.input("k", ())
    program = sg.compile([x, k], [x * k], updates=[(cell, cell + x * k)])
    given = np.arange(3, dtype="float32")
    program(given, np.array(1, "float32"))
    taken: list[Any] = []
    take = Executable._take_context
    monkeypatch.setattr(Executable, "_take_context", lambda self: taken.append(self) or take(self))
    strided, out = np.repeat(given, 2)[::2], np.zeros(3, "float32")
    for call in (
        lambda: program([0.0, 1.0, 2.0], 1.0), lambda: program(k=1, x=given),
        lambda: program(strided, np.float32(1)), lambda: program(given, k=True),
        lambda: program(given.tolist(), 1, out=[out]),
    ):  # fmt: skip
        np.testing.assert_array_equal(call()[0], given)
    np.testing.assert_array_equal(cell.numpy(), 6 * given)
    assert out.tolist() == given.tolist() and not taken
    with pytest.raises(BindError, match=r"input 'k' .*: expected float32"):
        program([0.0, 1.0, 2.0], "1")
    with pytest.raises(BindError, match=r"dim 0 is 2, expected 3"):
        program([0.0, 1.0], 1)


def test_out_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs.load(programs.with_temps)
    outs = {n: (np.zeros(n), np.zeros(n)) for n in (2, 5)}
    for n in outs:
        program(*arrays(n))
    counts = Counts(program, monkeypatch)
    for n in (2, 5, 5, 2):
        found = program(*arrays(n), out=outs[n])
        assert found[0] is outs[n][0] and found[1] is outs[n][1]
        check(n, found)
    assert counts.since() == (0, 0)
    with pytest.raises(BindError, match=r"out: output 'a' is float64 \(5,\), got float64 \(2,\)"):
        program(*arrays(5), out=outs[2])
    x, y = arrays(5)
    shared = program(x, y, out=(x, np.zeros(5)))[0]  # over an input, which is copied first
    np.testing.assert_array_equal(shared, arrays(5)[0] + y[:5])


def test_dims_that_have_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two shapes of up to 3000 x 60 x 20 have, so a frame is given the hash of another."""
    program = programs.load(programs.with_temps)
    check(6, program(*arrays(6)))
    known = program.bind({"N": 6})
    assert known.frame is not None
    known.frame[FrameWord.HASH] = dims_hash([4, 9])
    program._frames._place([known])
    counts = Counts(program, monkeypatch)
    for _ in range(3):
        check(4, program(*arrays(4)))
        check(4, program(*arrays(4)))
    assert counts.since() == (1, 1)
    check(6, program(*arrays(6)))  # not found by its own hash, but known to Python
    assert counts.since() == (1, 0)


def test_several_symbols_scalars_and_empty_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, z = sg.input("x", ("N", 3, "M")), sg.input("y", ("M",)), sg.input("z", ())
    program = sg.compile([x, y, z], [x * y + z, sg.sum(y) + z])
    rng = np.random.default_rng(1)
    counts = Counts(program, monkeypatch)
    shapes = [(2, 5), (5, 2), (0, 4), (4, 0), (1, 1)]
    for _ in range(3):
        for n, m in shapes:
            a = rng.integers(-5, 5, (n, 3, m)).astype("float32")
            b, c = rng.integers(-5, 5, m).astype("float32"), np.array(2, "float32")
            found = program(a, b, c)
            np.testing.assert_array_equal(found[0], a * b + c)
            np.testing.assert_array_equal(found[1], b.sum() + c)
    assert counts.since()[0] == len(shapes)


def test_a_program_without_symbols_has_no_frames() -> None:
    x = sg.input("x", (3,))
    program = sg.compile([x], x + 1)
    program(np.ones(3, "float32"))
    assert program._published._frames.address == 0
    for _ in range(2):
        with pytest.raises(BindError, match="dim 0 is 4, expected 3"):
            program(np.ones(4, "float32"))
    np.testing.assert_array_equal(program(np.ones(3, "float32")), np.full(3, 2))


# Bits


def step(batch: Any) -> tuple[Any, sg.nn.Module]:
    sg.random.seed(7)
    net = sg.nn.Sequential(sg.nn.Linear(6, 9), sg.nn.Tanh(), sg.nn.Linear(9, 2))
    x = sg.input("x", (batch, 6))
    loss = sg.mean(net(x) ** 2)
    optimizer = sg.optim.Adam(net.parameters(), lr=0.01)
    return sg.compile([x], loss, updates=optimizer.minimize(loss)), net


def test_training_steps_of_changing_sizes_have_the_bits_of_bound_ones() -> None:
    """The same steps, each bound anew by Python."""
    sizes = (16, 5, 16, 3, 16, 16, 5, 3, 3, 5, 16)
    rng = np.random.default_rng(3)
    batches = [rng.standard_normal((n, 6)).astype("float32") for n in sizes]
    found: list[list[bytes]] = []
    for anew in (False, True):
        program, net = step("N")
        losses = []
        for batch in batches:
            if anew:
                program._frames.clear()
                program.release_memory()
            losses.append(program(batch).tobytes())
        found.append([*losses, *(p.numpy().tobytes() for p in net.parameters())])
    assert found[0] == found[1]


def test_packed_copies_are_read_at_the_sizes_that_use_them() -> None:
    """`sg_sizes` empties their places in the buffer table, `sg_refresh` fills those in use."""
    rng = np.random.default_rng(5)
    w = sg.parameter(rng.standard_normal((48, 40)).astype("float32"), name="w")
    x = sg.input("x", ("N", 48))
    program = sg.compile([x], x @ w)
    plain = sg.compile([x], x @ w, disable=["prepack"])
    assert program.manifest.packs
    batches = [rng.standard_normal((n, 48)).astype("float32") for n in (1, 4, 64, 2000)]
    for turn in range(12):
        for batch in batches:
            assert program(batch).tobytes() == plain(batch).tobytes()
        if turn == 6:
            w.assign(rng.standard_normal((48, 40)).astype("float32"))


def test_threads_are_those_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded.binding, "threads_for", lambda most, *_: most)
    x = sg.input("x", ("N", 64))
    program = sg.compile([x], sg.softmax(x, axis=1), threads=2)
    alone = sg.compile([x], sg.softmax(x, axis=1), threads=1)
    batches = [threaded.random((n, 64), n) for n in (1, 700, 33)]
    expected = [alone(batch).tobytes() for batch in batches]
    for _ in range(20):
        assert [program(batch).tobytes() for batch in batches] == expected


def test_what_was_measured_of_threads_stays_with_the_size() -> None:
    program = programs.load(programs.x2_plus_1)
    small, large = np.ones(3, "float32"), np.ones(50, "float32")
    program(small), program(large)
    words = program._published.words
    assert words[Word.TOGETHER] == words[Word.ALONE] == words[Word.SPENT] == 0
    words[Word.TOGETHER], words[Word.ALONE], words[Word.SPENT] = 11, 12, 13
    program(small)
    assert words[Word.TOGETHER] == words[Word.ALONE] == words[Word.SPENT] == 0
    program(large)
    assert (words[Word.TOGETHER], words[Word.ALONE], words[Word.SPENT]) == (11, 12, 13)


# Memory


def test_what_is_kept_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "KEPT_BYTES", 64 << 10)
    program = programs.load(programs.with_temps)
    counts = Counts(program, monkeypatch)
    most = program._frames.most
    assert frames.LEAST_KEPT < most < 60
    for n in range(3 * most):
        check(n, program(*arrays(n)))
        check(0, program(*arrays(0)))  # is always used, so it stays
        assert program.sizes_bytes <= 64 << 10
    assert counts.since() == (3 * most, 3 * most)
    check(1, program(*arrays(1)))
    assert counts.since() == (1, 1)


def test_a_size_takes_no_more_than_is_counted() -> None:
    program = programs.load(programs.with_temps)
    inputs = {n: arrays(n) for n in range(300)}
    for n in range(50):
        program(*inputs[n])
    gc.collect()
    tracemalloc.start()
    try:
        before, counted = tracemalloc.get_traced_memory()[0], program.sizes_bytes
        for n in range(50, 300):
            program(*inputs[n])
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.4 * (program.sizes_bytes - counted) < grown <= program.sizes_bytes - counted


def test_the_report_counts_what_is_kept() -> None:
    program, _ = step("N")
    assert program.report()["sizes_bytes"] == 0
    for n in (3, 9, 3):
        program(np.ones((n, 6), "float32"))
    assert program.report()["sizes_bytes"] == 2 * program._frames.bytes_each > 0


def test_temporaries_are_kept_once_for_all_sizes() -> None:
    program = programs.load(programs.with_temps)
    for n in (10, 1000, 20, 500, 1000, 1, 7):
        check(n, program(*arrays(n)))
        check(10, program(*arrays(10)))
    assert len(program._contexts) == 1
    assert program._contexts[0].arena_bytes == program.peak_bytes(N=1000)


def test_a_context_does_not_refer_to_a_frame_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "KEPT_BYTES", 1)
    program = programs.load(programs.with_temps)
    twin = program.twin()
    check(2, twin(*arrays(2)))
    assert frame_of(twin) != 0
    for n in range(10, 200):
        check(n, program(*arrays(n)))
        kept = {b.frame_address for b in program._frames._bindings.values()}
        assert frame_of(program) in kept
        assert frame_of(twin) in {0, *kept}
    assert frame_of(twin) == 0
    check(2, twin(*arrays(2)))
    assert program._frames is twin._frames


def test_release_memory_between_sizes() -> None:
    program = programs.load(programs.with_temps)
    for turn in range(6):
        for n in (100, 3, 40):
            check(n, program(*arrays(n)))
            if turn % 2:
                program.release_memory()
                assert sum(c.arena_bytes for c in program._contexts) <= 64


def test_arrays_that_are_freed_meanwhile() -> None:
    program = programs.load(programs.with_temps)
    held = sys.getrefcount(None)
    for n in (4, 900, 4, 20_000, 900) * 30:
        x, y = arrays(n)
        a, b = program(x, y)
        del x, y
        a2, b2 = program(*arrays(4))
        check(4, (a2, b2))
        check(n, (a, b))
        assert sys.getrefcount(a) == 2 and sys.getrefcount(b) == 2
    assert abs(sys.getrefcount(None) - held) < 50


# Errors


def test_arguments_that_do_not_fit_at_sizes_that_are_known() -> None:
    program = programs.load(programs.with_temps)
    for n in (3, 6):
        program(*arrays(n))
    x, y = arrays(3)
    for wrong, message in (
        ((arrays(6)[0], y), "2\\*N \\+ 1"), ((x.astype("float32"), y), "dtype float32"),
        ((x[:, None], y), "expected 1 dims"), ((x, 5.0), "expected 1 dims"),
        ((x, None), "input 'y'"), ((arrays(6)[0].astype(int), arrays(6)[1]), "dtype int64"),
    ):  # fmt: skip
        for n in (3, 6):
            check(n, program(*arrays(n)))
            with pytest.raises(BindError, match=message):
                program(*wrong)
    strided = np.repeat(arrays(6)[0], 2)[::2]
    check(6, program(strided, arrays(6)[1]))


def test_a_step_that_fails_at_one_size_leaves_the_others() -> None:
    program = programs.load(programs.gather_rows)
    good = {n: np.arange(n) % 4 for n in (2, 5, 9)}
    bad = {n: np.where(np.arange(n) == n - 1, 40 + n, 0) for n in good}
    table = np.array([0.5, 1.5, 2.5, 3.5])
    for n in (2, 5, 9, 5, 2, 2, 9):
        with pytest.raises(ExecutionError, match=f"index {40 + n} at {n - 1} is out of range"):
            program(bad[n])
        np.testing.assert_array_equal(program(good[n]), table[good[n]])


def test_a_binding_that_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs.load(programs.with_temps)
    check(3, program(*arrays(3)))
    reserve = Arena.reserve

    def full(arena: Arena, size_bytes: int) -> None:
        if size_bytes > 1000:
            arena.release()
            raise MemoryError("no room")
        reserve(arena, size_bytes)

    monkeypatch.setattr(Arena, "reserve", full)
    for n in (3, 5):
        with pytest.raises(MemoryError, match="no room"):
            program(*arrays(500))
        check(n, program(*arrays(n)))
        check(3, program(*arrays(3)))
    monkeypatch.setattr(Arena, "reserve", reserve)
    check(500, program(*arrays(500)))
    check(3, program(*arrays(3)))


# Threads, twins, processes


def test_threads_call_one_program_with_sizes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "KEPT_BYTES", 1)  # sizes go and come meanwhile
    program = programs.load(programs.with_temps)

    def loop(seed: int) -> None:
        for n in np.random.default_rng(seed).integers(0, 40, 300):
            check(int(n), program(*arrays(int(n))))

    in_threads(loop)
    assert len(program._contexts) <= 4
    assert len(program._frames) <= program._frames.most + 4


def test_two_programs_do_not_share_frames() -> None:
    one, two = programs.load(programs.with_temps), programs.load(programs.with_temps)
    for n in (3, 5, 3, 5):
        check(n, one(*arrays(n)))
        check(5, two(*arrays(5)))
    assert (len(one._frames), len(two._frames)) == (2, 1)


def test_twins_bind_by_each_other_s_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    one = programs.load(programs.with_temps)
    two = one.twin()
    check(9, two(*arrays(9)))
    for n in (3, 5):
        check(n, one(*arrays(n)))
    counts = Counts(two, monkeypatch)
    for n in (3, 5, 9, 3):
        check(n, two(*arrays(n)))
    assert counts.since() == (0, 0)


@pytest.fixture
def shared_by_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executable]:
    monkeypatch.setattr(threaded.binding, "threads_for", lambda most, *_: most)
    x = sg.input("x", ("N", 64))
    yield sg.compile([x], sg.softmax(x, axis=1), threads=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_frames_of_its_own(shared_by_two: Executable) -> None:
    """The parent's name its pool, whose workers the child does not have."""
    program = shared_by_two
    batches = [threaded.random((n, 64), n) for n in (40, 3)]
    expected = [program(batch).tobytes() for batch in batches]

    def work() -> bool:
        empty = len(program._frames) == 0 and program.sizes_bytes == 0
        return empty and all(
            [program(batch).tobytes() for batch in batches] == expected for _ in range(3)
        )

    assert in_child(work) == 0
    assert len(program._frames) == 2
    assert [program(batch).tobytes() for batch in batches] == expected


def test_frames_do_not_travel() -> None:
    program = programs.load(programs.with_temps)
    program(*arrays(3))
    for travel in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            travel(program)


def test_a_frame_holds_what_a_context_is_bound_to() -> None:
    program = programs.load(programs.with_temps)
    for n in (3, 6, 3):
        program(*arrays(n))
        binding, context = program.bind({"N": n}), program._published
        assert context.is_bound_to(binding) and binding.frame is not None
        assert binding.frame[FrameWord.HASH] == dims_hash([n, 2 * n + 1])
        assert binding.frame[FrameWord.PEAK] == binding.plan.peak_bytes
        np.testing.assert_array_equal(
            context._sized, [n, 2 * n + 1, n, n, 8 * n, 16 * n + 8, 8 * n, 8 * n, n]
        )
        base = context._arena.base
        np.testing.assert_array_equal(context._buffers[[2, 3]], base + binding.plan.offsets)
