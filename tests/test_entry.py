"""The native entry itself: contention, threads, forks, arithmetic modes, other targets."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from staticgrad.codegen.entry import emit_entry, entry_object
from staticgrad.codegen.target import Target, host_target
from staticgrad_runtime import (
    Artifact,
    BindError,
    BufferSpec,
    CostSpec,
    Executable,
    InputSpec,
    OutputSpec,
    StateCell,
    StateSpec,
    context,
)
from staticgrad_runtime import executable as runtime_executable
from staticgrad_runtime.context import CellWord
from staticgrad_runtime.layout import native_interface
from staticgrad_runtime.loader import compile_text
from staticgrad_runtime.symbols import object_symbols

from tests import runtime_programs as programs
from tests.forked import in_child

X = np.arange(5, dtype="float32")


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATICGRAD_ENTRY", raising=False)
    assert native_interface() is not None


def count_checked(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Records the calls that take the checked path, and those among them that the native entry
    sends there a second time."""
    calls: list[tuple[Any, ...]] = []
    checked = Executable.checked

    def counted(self: Executable, *arrays: Any, **named: Any) -> Any:
        if self is executable:
            calls.append(arrays)
        return checked(self, *arrays, **named)

    monkeypatch.setattr(Executable, "checked", counted)
    return calls


def waiting(written: bool = True) -> Artifact:
    """Spins until x[0] is not 0, then returns w + x[0]; adds x[0] to w if `written`."""
    head = programs.TABLES + "\n".join(
        programs.pointer(name, i) for i, name in enumerate(("x", "w", "y"))
    )
    store = "  store double %sum, ptr %w\n" if written else ""
    run = f"""{head}
  br label %spin
spin:
  %v = load volatile double, ptr %x
  %zero = fcmp oeq double %v, 0.0
  br i1 %zero, label %spin, label %go
go:
  %old = load double, ptr %w
  %sum = fadd double %old, %v
{store}  store double %sum, ptr %y
  ret i32 0
}}"""
    manifest = programs.manifest(
        "waiting",
        inputs=[InputSpec("x", "float64", [1], 0)],
        outputs=[OutputSpec("y", "float64", [], 2)],
        single=True,
        state=[StateSpec(1, "w", "float64", [], 1, written)],
        buffers=[BufferSpec("input", 8), BufferSpec("state", 8), BufferSpec("output", 8)],
        cost=CostSpec(ns=1e9),
    )
    return programs.artifact(manifest, run)


@contextlib.contextmanager
def stuck_call(executable: Executable, value: float) -> Iterator[list[Any]]:
    """A call in another thread that runs natively until the block ends; its result follows."""
    flag, results = np.zeros(1), []
    thread = threading.Thread(target=lambda: results.append(executable(flag)))
    thread.start()
    while executable._published is None or not executable._published.busy:
        pass
    try:
        yield results
    finally:
        flag[0] = value
        thread.join()


def natively_bound(cell: StateCell, written: bool = True) -> Executable:
    executable = Executable(waiting(written), [cell])
    executable(np.array([1.0]))
    return executable


def test_declared_arrays_do_not_take_the_checked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    executable = programs.load(programs.x2_plus_1)
    calls = count_checked(executable, monkeypatch)
    for _ in range(3):
        executable(X)
    assert len(calls) == 1
    executable(X[:3])
    executable(X[:3])
    assert len(calls) == 2
    executable(X[::-1][:3])
    executable(x=X[:3])
    assert len(calls) == 4
    executable(X[1:4])
    assert len(calls) == 4


def test_out_that_fits_does_not_take_the_checked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    executable = programs.load(programs.x2_plus_1)
    x, out = X.copy(), np.zeros(5, "float32")
    executable(x)
    calls = count_checked(executable, monkeypatch)
    held = sys.getrefcount(out)
    for _ in range(100):
        assert executable(x, out=out) is out
    assert sys.getrefcount(out) == held
    np.testing.assert_array_equal(out, X * 2 + 1)
    pair = programs.load(programs.with_temps)
    a, b, both = np.zeros(2), np.zeros(2), (np.zeros(2), np.zeros(2))
    x2, y = np.ones(2), np.ones(5)
    pair(x2, y)
    calls += count_checked(pair, monkeypatch)
    found = pair(x2, y, out=(a, b))
    assert found[0] is a and found[1] is b and type(found) is tuple
    np.testing.assert_array_equal(a, [2, 2])
    np.testing.assert_array_equal(b, [10, 10])
    for out in (both, list(both)):
        held = sys.getrefcount(out), *map(sys.getrefcount, both)
        for _ in range(100):
            found = pair(x2, y, out=out)
            assert found[0] is both[0] and found[1] is both[1]
        del found
        assert (sys.getrefcount(out), *map(sys.getrefcount, both)) == held
        np.testing.assert_array_equal(out[1], [10, 10])
        out[1][:] = 0
    assert not calls


def test_a_list_of_out_may_change_during_the_call() -> None:
    """The arrays are held from the moment they are checked; the list is not looked at again."""
    whole = waiting()
    whole.manifest.single = False
    executable = Executable(whole, [StateCell(0.0)])
    executable(np.array([1.0]))
    flag, result, out = np.zeros(1), np.zeros(()), []
    out.append(result)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(executable(flag, out=out)))
    held = sys.getrefcount(result)
    thread.start()
    while executable._published is None or not executable._published.busy:
        pass
    out[:] = [None] * 1000
    flag[0] = 4.0
    thread.join()
    assert found[0][0] is result and result == 5.0
    found.clear()
    assert sys.getrefcount(result) == held - 1


@pytest.mark.parametrize(
    "other",
    [
        lambda a, b: [a], lambda a, b: [a, b, b], lambda a, b: [], lambda a, b: [a, None],
        lambda a, b: [a, a], lambda a, b: [a, 0.0], lambda a, b: type("L", (list,), {})([a, b]),
    ],
)  # fmt: skip
def test_any_other_list_is_checked(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = programs.load(programs.with_temps)
    x, y, a, b = np.ones(2), np.ones(5), np.zeros(2), np.zeros(2)
    pair(x, y)
    checked = []
    gather_arguments = runtime_executable.gather
    monkeypatch.setattr(
        runtime_executable, "gather", lambda *a: checked.append(a) or gather_arguments(*a)
    )
    out = other(a, b)
    held = [sys.getrefcount(array) for array in (out, a, b)]
    with contextlib.suppress(BindError):
        assert pair(x, y, out=out)[0] is a
    assert [sys.getrefcount(array) for array in (out, a, b)] == held
    assert len(checked) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x, out=x),
        lambda f, x: f(x, out=None),
        lambda f, x: f(x, out=[0.0]),
        lambda f, x: f(x, out=np.zeros(5)),
        lambda f, x: f(x, out=np.zeros(4, "float32")),
        lambda f, x: f(x, out=np.zeros((5, 1), "float32")),
        lambda f, x: f(x, out=read_only()),
        lambda f, x: f(x=x),
        lambda f, x: f(x=x, out=np.zeros(5, "float32")),
        lambda f, x: f(x, other=x),
        lambda f, x: f(out=x),
        lambda f, x: f(x, x, out=x),
    ],
)
def test_any_other_call_with_names_is_checked(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checked path makes of it is `test_runtime_call.py`'s business."""
    executable = programs.load(programs.x2_plus_1)
    x = X.copy()
    executable(x)
    checked = []
    gather_arguments = runtime_executable.gather
    monkeypatch.setattr(
        runtime_executable, "gather", lambda *a: checked.append(a) or gather_arguments(*a)
    )
    with contextlib.suppress(BindError):
        found = call(executable, x)
        np.testing.assert_array_equal(found, X * 2 + 1)
    assert len(checked) == 1


def read_only() -> Any:
    array = np.zeros(5, "float32")
    array.flags.writeable = False
    return array


def test_a_busy_context_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = StateCell(0.0)
    executable = natively_bound(cell, written=False)
    calls = count_checked(executable, monkeypatch)
    with stuck_call(executable, 5.0) as results:
        assert [executable(np.array([float(i)])) for i in range(1, 4)] == [1.0, 2.0, 3.0]
        assert not results
        assert len(calls) >= 1
    assert results == [5.0]


def test_a_native_writer_excludes_everyone_on_its_cells() -> None:
    cell, other = StateCell(0.0, "w"), StateCell(0.0)
    writer = natively_bound(cell)
    reader = natively_bound(cell, written=False)
    bystander = natively_bound(other)
    done: list[Any] = []
    threads = [
        threading.Thread(target=lambda: done.append(float(cell.numpy()))),
        threading.Thread(target=lambda: done.append(float(reader(np.array([100.0])) - 100))),
    ]
    with stuck_call(writer, 10.0):
        assert cell._words[CellWord.NATIVE] == -1
        for thread in threads:
            thread.start()
            thread.join(0.03)
        assert bystander(np.array([1.0])) == 2.0
        assert done == []
    for thread in threads:
        thread.join()
    assert done == [11.0, 11.0]
    assert list(cell._words[:3]) == [0, 0, 2]


def test_native_readers_share_and_hold_off_a_writer() -> None:
    cell = StateCell(7.0, "w")
    readers = [natively_bound(cell, written=False) for _ in range(2)]
    assigning = threading.Thread(target=lambda: cell.assign(9.0))
    with stuck_call(readers[0], 1.0) as first:
        with stuck_call(readers[1], 2.0) as second:
            assert cell._words[CellWord.NATIVE] == 2
            assert cell.numpy() == 7.0
            assigning.start()
            assigning.join(0.03)
            assert assigning.is_alive()
        assert second == [9.0]
    assigning.join()
    assert first == [8.0]
    assert cell.numpy() == 9.0


def test_threads_get_the_bits_of_one_thread() -> None:
    executable = Executable(programs.x2_plus_1(ns=1e9))
    failures: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            x = rng.random(int(rng.integers(0, 4)) * 50, dtype="float32")
            if not np.array_equal(executable(x), x * 2 + 1):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(executable._contexts) <= 6


@pytest.mark.parametrize("ns", [0, 1e9])
def test_every_step_of_every_thread_counts(ns: float) -> None:
    w, count = StateCell(np.zeros(3, "float32"), "w"), StateCell(np.int64(0), "count")
    whole = programs.step()
    whole.manifest.cost = CostSpec(ns=ns)
    executables = [Executable(whole, [w, count]) for _ in range(2)]
    gradient = np.full(3, -2, "float32")

    def work(executable: Executable) -> None:
        for _ in range(500):
            executable(gradient)

    threads = [threading.Thread(target=work, args=(executables[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(w.numpy(), np.full(3, 2000, "float32"))
    assert (int(count.numpy()), count.version) == (2000, 2000)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_afresh() -> None:
    cell = StateCell(0.0, "w")
    executable = natively_bound(cell)

    def work() -> bool:
        # the parent's other thread held the cell and a context; neither is held here
        results = [float(executable(np.array([1.0]))) for _ in range(3)]
        cell.assign(50.0)
        return results == [2.0, 3.0, 4.0] and executable(np.array([1.0])) == 51.0

    with stuck_call(executable, 3.0) as results:
        assert in_child(work) == 0
    assert results == [4.0]
    assert float(cell.numpy()) == 4.0  # the child's writes stayed in the child
    assert executable(np.array([1.0])) == 5.0


def halve() -> Artifact:
    """y[N] = x[N] * 0.5, which shows flush-to-zero on subnormal numbers."""
    head = programs.TABLES + "  %n = load i64, ptr %dims\n"
    head += programs.pointer("x", 0) + "\n" + programs.pointer("y", 1)
    body = """
  %xi = getelementptr float, ptr %x, i64 %i
  %v = load float, ptr %xi, align 4
  %half = fmul float %v, 0.5
  %yi = getelementptr float, ptr %y, i64 %i
  store float %half, ptr %yi, align 4"""
    manifest = programs.x2_plus_1().manifest
    return programs.artifact(manifest, programs.LOOP.format(head=head, body=body, tail="") + "}")


X86_MODE = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i64 @get_mode() {
  %slot = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %slot)
  %value = load i32, ptr %slot
  %control = and i32 %value, 65472
  %wide = zext i32 %control to i64
  ret i64 %wide
}
define void @set_mode(i64 %wide) {
  %slot = alloca i32
  %value = trunc i64 %wide to i32
  store i32 %value, ptr %slot
  call void @llvm.x86.sse.ldmxcsr(ptr %slot)
  ret void
}"""
ARM_MODE = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define i64 @get_mode() {
  %value = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %value
}
define void @set_mode(i64 %value) {
  call void @llvm.aarch64.set.fpcr(i64 %value)
  ret void
}"""
# flush-to-zero, and rounding towards zero beside it
MODES = [0x9FC0, 0xFFC0] if host_target().is_x86 else [1 << 24, 1 << 24 | 3 << 22]


@functools.cache
def mode_functions() -> tuple[Any, Any, Any]:
    text = X86_MODE if host_target().is_x86 else ARM_MODE
    library = compile_text(text, ["get_mode", "set_mode"])
    get = ctypes.PYFUNCTYPE(ctypes.c_int64)(library.address("get_mode"))
    put = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(library.address("set_mode"))
    return library, get, put


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("ns", [0, 1e9])
def test_arithmetic_modes_are_set_and_put_back(mode: int, native: bool, ns: float) -> None:
    _, get, put = mode_functions()
    whole = halve()
    whole.manifest.cost = CostSpec(ns=ns)
    executable = Executable(whole, native=native)
    x = np.array([1e-39, 3e-45, 1.0], "float32")
    expected = (x * np.float32(0.5)).view("uint32").tolist()
    assert executable(x).view("uint32").tolist() == expected
    before = get()
    put(mode)
    try:
        result, after = executable(x), get()
    finally:
        put(before)
    assert result.view("uint32").tolist() == expected
    assert after == mode


def test_one_entry_serves_every_program() -> None:
    code = entry_object(host_target())
    symbols = object_symbols(code)
    assert symbols.undefined == {context.RUN_SYMBOL}
    names = {context.CALL_SYMBOL, context.ENTRY_SYMBOL, context.REFRESH_SYMBOL}
    assert symbols.defined == names
    assert entry_object(host_target()) is code


@pytest.mark.parametrize(
    "triple", ["aarch64-unknown-linux-gnu", "arm64-apple-macosx14.0.0", "x86_64-apple-macosx14.0.0"]
)
def test_the_entry_compiles_for_other_targets(triple: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    code = entry_object(Target(triple, "", "", 128, 32))
    assert object_symbols(code).undefined == {context.RUN_SYMBOL}


def test_the_entry_may_share_a_module_with_its_program() -> None:
    """`emit_entry` beside `sg_run` in one module gives the same calls as the separate object."""
    from staticgrad.codegen.builder import Module

    whole = programs.x2_plus_1()
    module = Module(host_target())
    emit_entry(module)
    text = "define i32 @sg_run(ptr %context) {\n  ret i32 0\n}"
    code = programs.compile_text(module.to_text() + text)
    assert object_symbols(code).undefined == set()
    assert Executable(Artifact(whole.manifest, code)).is_native


# The probe: whatever looks different leads to the portable path


def probe_anew() -> Any:
    return native_interface.__wrapped__()  # past its cache


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OBJECT_TYPE", 0), ("NDARRAY_DATA", 24), ("NDARRAY_NDIM", 28), ("NDARRAY_SHAPE", 40),
        ("NDARRAY_DESCR", 48), ("FLAG_C_CONTIGUOUS", 2), ("FLAG_ALIGNED", 0x400),
        ("SEQUENCE_SIZE", 8), ("TUPLE_ITEMS", 32), ("LIST_ITEMS", 8),
    ],
)  # fmt: skip
def test_another_array_struct_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(context, name, value)
    assert probe_anew() is None


def test_another_interpreter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_anew() == native_interface()
    monkeypatch.setattr(sys.implementation, "name", "other")
    assert probe_anew() is None


def test_a_free_threaded_build_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version", "3.14.0 free-threading build (main, Oct 7 2025) [GCC]")
    assert probe_anew() is None


def test_without_the_interface_executables_are_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("staticgrad_runtime.executable.native_interface", lambda: None)
    executable = programs.load(programs.x2_plus_1)
    assert not executable.is_native
    assert type(executable) is Executable
    np.testing.assert_array_equal(executable(X), X * 2 + 1)
