"""Calls of executables, by the native entry and by the portable path: what fits, what does not."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from staticgrad_runtime import (
    Artifact,
    BindError,
    BufferSpec,
    ConstraintSpec,
    Executable,
    ExecutionError,
    InputSpec,
    OutputSpec,
    StateCell,
    StateError,
)
from staticgrad_runtime.arguments import to_array
from staticgrad_runtime.arrays import overlaps

from tests import runtime_programs as programs

X = np.arange(5, dtype="float32")
Y = X * 2 + 1


@pytest.fixture(params=["native", "portable"], autouse=True)
def entry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with both; the native entry needs one call to be bound, then serves."""
    if request.param == "portable":
        monkeypatch.setenv("STATICGRAD_ENTRY", "portable")
    else:
        monkeypatch.delenv("STATICGRAD_ENTRY", raising=False)
    return str(request.param)


def read_only(x: Any) -> Any:
    y = x.copy()
    y.flags.writeable = False
    return y


def misaligned(x: Any) -> Any:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


class Marked(np.ndarray[Any, Any]):
    """A subclass of ndarray without behaviour of its own."""


class ArrayLike:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return X.copy()


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "strided": lambda: np.repeat(X, 2)[::2],
    "reversed": lambda: X[::-1].copy()[::-1],
    "column": lambda: np.asfortranarray(np.stack([X, X], 1))[:, 0],
    "read_only": lambda: read_only(X),
    "misaligned": lambda: misaligned(X),
    "broadcast": lambda: np.broadcast_to(X, (3, 5))[1],
    "subclass": lambda: X.view(Marked),
    "array_like": ArrayLike,
    "list": lambda: [0, 1.0, 2, 3.0, 4],
    "ints": lambda: [0, 1, 2, 3, 4],
    "tuple": lambda: (0.0, 1.0, 2.0, 3.0, 4.0),
    "scalars": lambda: [np.float32(i) for i in range(5)],
    "memoryview": lambda: memoryview(X),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_holds_the_right_values_is_taken(kind: str) -> None:
    executable = programs.load(programs.x2_plus_1)
    for _ in range(3):
        np.testing.assert_array_equal(executable(VALUES[kind]()), Y, strict=True)
    np.testing.assert_array_equal(executable(X), Y, strict=True)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "rank_2": (lambda: X[None], r"expected 1 dims \(N,\), got 2: \(1, 5\)"),
    "rank_0": (lambda: X[0], r"expected 1 dims \(N,\), got 0: \(\)"),
    "scalar": (lambda: 1.0, r"expected 1 dims \(N,\), got 0"),
    "float64": (
        lambda: X.astype("float64"),
        r"got dtype float64; convert it: `x.astype\(\"float32",
    ),
    "int": (lambda: X.astype("int32"), "got dtype int32; convert it"),
    "float64_scalar": (lambda: [np.float64(1.0)], "got dtype float64; convert it"),
    "swapped": (lambda: X.astype(">f4"), "got dtype >f4; convert it"),
    "half": (lambda: X.astype("float16"), "got dtype float16; convert it"),
    "complex": (lambda: X.astype("complex64"), "got ndarray of dtype complex64"),
    "complex_list": (lambda: [1j], "got list of dtype complex128"),
    "object": (lambda: X.astype(object), "got ndarray of dtype object"),
    "structured": (lambda: np.zeros(5, "f4,f4"), "got ndarray of dtype"),
    "masked": (lambda: np.ma.masked_array(X, X > 2), r"got a masked array; fill it first"),
    "none": (lambda: None, "got None"),
    "string": (lambda: "text", "got str of dtype <U4"),
    "dict": (lambda: {"a": 1}, "got dict of dtype object"),
    "generator": (lambda: (i for i in range(5)), "got generator of dtype object"),
    "ragged": (lambda: [[1.0], [1.0, 2.0]], "got a list that is no array"),
    "huge": (lambda: [1e300], "overflows to infinity"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    executable = programs.load(programs.x2_plus_1)
    make, message = WRONG[kind]
    for _ in range(2):  # before the sizes are bound, and after
        with pytest.raises(BindError, match=message) as caught:
            executable(make())
        assert "input 'x' (model.py:3)" in str(caught.value)
        np.testing.assert_array_equal(executable(X), Y, strict=True)


@pytest.mark.parametrize(
    ("arrays", "named", "message"),
    [
        ((), {}, r"takes 1 input \(x\), got 0: x missing"),
        ((X, X), {}, r"takes 1 input \(x\), got 2"),
        ((X,), {"x": X}, "got 'x' twice"),
        ((X,), {"z": X}, "got an unknown one called 'z'"),
        ((), {"z": X}, "got an unknown one called 'z'"),
    ],
)
def test_the_number_and_names_of_inputs(
    arrays: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    executable = programs.load(programs.x2_plus_1)
    executable(X)
    with pytest.raises(BindError, match=message):
        executable(*arrays, **named)


def test_inputs_by_name() -> None:
    executable = programs.load(programs.with_temps)
    x, y = np.array([1.0, 2.0]), np.arange(5.0)
    expected = executable(x, y)
    for _ in range(2):
        for found in (executable(y=y, x=x), executable(x, y=y)):
            for a, b in zip(found, expected):
                np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 0, 7, 70_000])
def test_any_size(size: int) -> None:
    executable = programs.load(programs.x2_plus_1)
    executable(X)
    x = np.arange(size, dtype="float32")
    for _ in range(3):
        np.testing.assert_array_equal(executable(x), x * 2 + 1, strict=True)


def test_sizes_that_change_from_call_to_call() -> None:
    executable = programs.load(programs.with_temps)
    for size in [3, 3, 3, 0, 500, 3, 1, 500, 2, 3]:
        x, y = np.arange(float(size)), np.arange(2.0 * size + 1)
        total = x + y[:size]
        for _ in range(2):
            a, b = executable(x, y)
            np.testing.assert_array_equal(a, total, strict=True)
            np.testing.assert_array_equal(b, total * (2 * size + 1), strict=True)


def test_results_own_their_memory() -> None:
    executable = programs.load(programs.x2_plus_1)
    results = [executable(X) for _ in range(4)]
    assert all(r.flags.owndata and r.flags.writeable and type(r) is np.ndarray for r in results)
    results[0][:] = 0
    np.testing.assert_array_equal(results[1], Y)
    x = X.copy()
    result = executable(x)
    x[:] = 0
    np.testing.assert_array_equal(result, Y)


def test_no_references_are_lost_or_kept() -> None:
    executable = programs.load(programs.x2_plus_1)
    gone = []
    for argument in (X.copy(), X[:3].copy(), X[::2]):
        for _ in range(3):
            result = executable(argument)
            gone += [weakref.ref(result)]
            del result
    assert all(reference() is None for reference in gone)
    argument_reference = weakref.ref(argument)
    del argument
    assert argument_reference() is None


def test_mismatches_name_both_inputs() -> None:
    executable = programs.load(programs.with_temps)
    executable(np.ones(3), np.ones(7))
    with pytest.raises(BindError) as caught:
        executable(np.ones(3), np.ones(6))
    assert str(caught.value) == (
        "input 'y' (model.py:6): expected shape (2*N + 1,), got (6,): dim 0 is 6, expected "
        "2*N + 1 = 7, where N is 3 from input 'x' (model.py:5), dim 0"
    )


# Binding, on manifests whose program does nothing


def idle(inputs: list[InputSpec], dims: list[str], **fields: Any) -> Executable:
    """A program without results, to see how sizes are bound."""
    manifest = programs.manifest(
        "idle", dims=dims, inputs=inputs, buffers=[BufferSpec("input", 0) for _ in inputs], **fields
    )
    return Executable(programs.artifact(manifest, "define i32 @sg_run(ptr %c) {\n  ret i32 0\n}"))


def zeros(*shapes: tuple[int, ...]) -> list[Any]:
    return [np.zeros(shape, "float32") for shape in shapes]


def test_equal_symbols_must_be_equal() -> None:
    a = InputSpec("a", "float32", ["N", 3], 0, "m.py:1")
    executable = idle([a, InputSpec("b", "float32", ["N"], 1, "m.py:2")], ["N"])
    assert executable(*zeros((4, 3), (4,))) == ()
    with pytest.raises(BindError) as caught:
        executable(*zeros((4, 3), (5,)))
    assert str(caught.value) == (
        "input 'b' (m.py:2): expected shape (N,), got (5,): dim 0 is 5, expected N, where N is 4 "
        "from input 'a' (m.py:1), dim 0"
    )
    with pytest.raises(BindError, match=re.escape("got (4, 2): dim 1 is 2, expected 3")):
        executable(*zeros((4, 2), (4,)))


def test_a_symbol_twice_in_one_shape() -> None:
    executable = idle([InputSpec("a", "float32", ["N", "N"], 0)], ["N"])
    assert executable(*zeros((3, 3))) == ()
    with pytest.raises(
        BindError, match="dim 1 is 4, expected N, where N is 3 from input 'a', dim 0"
    ):
        executable(*zeros((3, 4)))


def test_expressions_are_solved() -> None:
    executable = idle(
        [
            InputSpec("a", "float32", [["+", ["*", 2, "N"], 1]], 0),
            InputSpec("b", "float32", [["*", "M", "N"]], 1),
        ],
        ["N", "M"],
    )
    assert executable(*zeros((7,), (12,))) == ()
    with pytest.raises(BindError, match=r"no N makes dim 0, 2\*N \+ 1, equal 8"):
        executable(*zeros((8,), (12,)))
    with pytest.raises(BindError, match=r"no M makes dim 0, M\*N, equal 13"):
        executable(*zeros((7,), (13,)))
    with pytest.raises(BindError, match="do not determine M"):
        executable(*zeros((1,), (0,)))  # with N = 0 any M would do


def test_constraints_are_asked() -> None:
    executable = idle(
        [InputSpec("a", "float32", ["N"], 0), InputSpec("b", "float32", ["M"], 1)],
        ["N", "M"],
        constraints=[ConstraintSpec(["*", 2, "N"], "M", "reshape at m.py:8")],
    )
    assert executable(*zeros((3,), (6,))) == ()
    with pytest.raises(BindError, match=re.escape("reshape at m.py:8: 2*N is 6, M is 7")):
        executable(*zeros((3,), (7,)))


def test_zero_dimensional_inputs() -> None:
    executable = idle([InputSpec("a", "float32", [], 0), InputSpec("k", "int64", [], 1)], [])
    for a in (np.float32(1), np.array(1, "float32"), 1.5, 1, True):
        for k in (np.int64(1), np.array(1), 7, True):
            assert executable(a, k) == ()
    for a, k in ((1.5, 1.5), (1.5, 2**63), (np.float64(1), 1), (1.5, np.int32(1)), ("1", 1)):
        with pytest.raises(BindError):
            executable(a, k)


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("bool", [True, False], True), ("bool", [1, 0], False), ("int8", [127, -128], True),
        ("int8", [128], False), ("uint8", [-1], False), ("uint64", [2**64 - 1], True),
        ("int64", [2**63], False), ("int64", [1.0], False), ("float64", [1e300], True),
        ("float64", [2**70], False), ("float32", [float("inf"), float("nan")], True),
        ("float32", [], True), ("int32", [], True), ("bool", [], True),
    ],
)  # fmt: skip
def test_lists_are_converted_where_they_fit(dtype: str, value: list[Any], fits: bool) -> None:
    executable = idle([InputSpec("a", dtype, ["N"], 0)], ["N"])
    if fits:
        assert executable(value) == ()
    else:
        with pytest.raises(BindError, match=f"expected {dtype}"):
            executable(value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_become_arrays_of_the_dtype(dtype: str) -> None:
    spec = InputSpec("a", dtype, [], 0)
    for value in (0.1, -0.0, 1e38, -1.5e38, 1e-42, 3.4e38, float("inf"), float("nan"), 7, True):
        found = to_array(spec, value)
        assert found.shape == () and found.tobytes() == np.asarray(value).astype(dtype).tobytes()
    if dtype == "float32":
        with pytest.raises(BindError, match="overflows to infinity in a float"):
            to_array(spec, 1e39)


def test_sizes_and_memory_are_known_before_the_first_run() -> None:
    executable = programs.load(programs.with_temps)
    assert executable.peak_bytes(N=100) == 2 * (800 + 32)
    binding = executable.bind({"N": 3})
    assert binding.input_shapes == [(3,), (7,)]
    assert binding.output_shapes == [(3,), (3,)]
    assert binding.plan.lower_bound_bytes == binding.plan.peak_bytes == 128
    assert executable.bind({"N": 3}) is binding
    for dims, message in (
        ({}, "N has no value"), ({"N": -1}, "at least 0"), ({"N": 1.0}, "expected an int"),
        ({"N": True}, "expected an int"), ({"N": 1, "M": 2}, "no symbol is called M; known: N"),
    ):  # fmt: skip
        with pytest.raises(BindError, match=message):
            executable.bind(dims)  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        executable.bind({"N": 2**60})


# out=


def test_out_is_written_and_returned() -> None:
    executable = programs.load(programs.x2_plus_1)
    out = np.zeros(5, "float32")
    assert executable(X, out=out) is out
    np.testing.assert_array_equal(out, Y)
    pair = programs.load(programs.with_temps)
    a, b = np.zeros(2), np.zeros(2)
    x, y = np.ones(2), np.ones(5)
    assert pair(x, y, out=(a, b))[1] is b
    found = pair(x, y, out=[None, b])
    np.testing.assert_array_equal(found[0], [2, 2])
    np.testing.assert_array_equal(b, [10, 10])


def test_an_input_may_be_the_output() -> None:
    executable = programs.load(programs.x2_plus_1)
    x = X.copy()
    executable(x, out=x)
    np.testing.assert_array_equal(x, Y)
    memory = np.arange(6, dtype="float32")  # the input is one element behind the output
    executable(memory[:5], out=memory[1:])
    np.testing.assert_array_equal(memory[1:], Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.zeros(4, "float32"), r"is float32 \(5,\), got float32 \(4,\)"),
        (lambda: np.zeros(5), r"got float64 \(5,\)"),
        (lambda: np.zeros((5, 1), "float32"), r"got float32 \(5, 1\)"),
        (lambda: np.zeros(10, "float32")[::2], "not C-contiguous"),
        (lambda: misaligned(X), "not C-contiguous and aligned"),
        (lambda: read_only(X), "read-only"),
        (lambda: [0.0] * 5, "got a list"),
        (lambda: np.ma.masked_array(X), "got a MaskedArray"),
    ],
)
def test_out_must_fit(make: Callable[[], Any], message: str) -> None:
    executable = programs.load(programs.x2_plus_1)
    with pytest.raises(BindError, match=message):
        executable(X, out=make())


def test_out_of_several_outputs() -> None:
    pair = programs.load(programs.with_temps)
    x, y, memory = np.ones(2), np.ones(5), np.zeros(3)
    for out, message in (
        ((memory[:2], memory[1:]), "two of the arrays share memory"),
        ((memory[:2],), "expected 2 arrays, got 1"), (memory[:2], "expected a sequence of 2"),
    ):  # fmt: skip
        with pytest.raises(BindError, match=message):
            pair(x, y, out=out)


def test_ranges_that_overlap() -> None:
    """Against every pair compared, empty ranges among them."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        cuts = np.sort(rng.choice(40, 12, replace=False)).tolist()
        others = [pair for pair in zip(cuts[::2], cuts[1::2]) if rng.random() < 0.6]
        start = int(rng.integers(42))
        mine = (start, start + int(rng.integers(8)))
        pairwise = any(max(mine[0], a) < min(mine[1], b) for a, b in others)
        assert overlaps(mine, others) == pairwise, (mine, others)


# State


def step_cells() -> tuple[StateCell, StateCell]:
    return StateCell(np.ones(3, "float32"), "w"), StateCell(np.int64(5), "count")


def test_state_is_read_and_written() -> None:
    w, count = step_cells()
    step = programs.load(programs.step, w, count)
    read = programs.load(programs.read_state, w)
    for i in range(4):
        (before,) = step(np.full(3, 2, "float32"))
        assert (before, int(count.numpy())) == (5 + i, 6 + i)
        np.testing.assert_array_equal(read(), np.full(3, -i, "float32"), strict=True)
        assert (w.version, count.version) == (i + 1, i + 1)
    w.assign([7, 8, 9])
    np.testing.assert_array_equal(read(), [7, 8, 9])
    assert w.version == 5


def test_cells_must_fit() -> None:
    w, count = step_cells()
    with pytest.raises(StateError, match="2 cells expected, 1 given"):
        programs.load(programs.step, w)
    with pytest.raises(StateError, match=r"state 'w': expected float32 \(3,\), got int64 \(\)"):
        programs.load(programs.step, count, w)
    with pytest.raises(StateError, match="given twice"):
        programs.load(programs.step, w, w)


def test_inputs_and_outputs_that_share_memory_with_state() -> None:
    w, count = step_cells()
    step = programs.load(programs.step, w, count)
    view = w.view()
    step(view[::-1][::-1], out=None)  # by way of the checked path
    np.testing.assert_array_equal(w.numpy(), np.full(3, 0.5, "float32"))
    read = programs.load(programs.read_state, w)
    with pytest.raises(BindError, match="shares memory with the program's state"):
        read(out=view)


# Failures


def test_a_failing_step_is_reported_and_changes_nothing() -> None:
    executable = programs.load(programs.gather_rows)
    good, bad = np.array([3, 0, 1]), np.array([1, 4, -1])
    for _ in range(3):
        np.testing.assert_array_equal(executable(good), [3.5, 0.5, 1.5], strict=True)
        with pytest.raises(ExecutionError) as caught:
            executable(bad)
        error = caught.value
        assert str(error) == "index 4 at 1 is out of range (model.py:9)"
        assert (error.code, error.element, error.value, error.location) == (7, 1, 4, "model.py:9")
        with pytest.raises(ExecutionError, match="index -5 at 0"):
            executable([-5])


def test_an_unlisted_code_is_reported_too() -> None:
    whole = programs.gather_rows()
    whole.manifest.messages.clear()
    executable = Executable(whole)
    executable([0, 1])
    with pytest.raises(ExecutionError, match="gather_rows: step failed with the unlisted code 7"):
        executable(np.array([9, 9]))


def test_a_hook_may_look_at_a_failure() -> None:
    executable = programs.load(programs.gather_rows)
    seen: list[Any] = []
    executable.on_failure = lambda *report: seen.append(report)
    executable([1, 2])
    for bad in (np.array([0, 9]), [0, 9]):
        with pytest.raises(ExecutionError):
            executable(bad)
    for code, element, value, arrays in seen:
        assert (code, element, value) == (7, 1, 9)
        np.testing.assert_array_equal(arrays[0], [0, 9])
    assert len(seen) == 2

    def better(*report: Any) -> None:
        raise KeyError("found it")

    executable.on_failure = better
    with pytest.raises(KeyError, match="found it"):
        executable(np.array([0, 9]))


# The object


def test_an_executable_is_an_object_of_its_class() -> None:
    class Program(Executable):
        """What a compiler makes of it."""

        def report(self) -> str:
            return self.manifest.name

    program = Program(programs.x2_plus_1())
    program.note = "kept"  # type: ignore[attr-defined]
    assert isinstance(program, Program)
    assert (program.report(), type(program).__name__) == ("x2_plus_1", "Program")
    assert type(program).__doc__ == "What a compiler makes of it."
    np.testing.assert_array_equal(program(X), Y)
    np.testing.assert_array_equal(program(X), Y)
    np.testing.assert_array_equal(program.__call__(X), Y)
    assert "x2_plus_1(x: float32(N,)) -> (float32(N,))" in repr(program)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled: .*Save the state"):
            way(program)


def test_executables_are_collected_even_in_cycles() -> None:
    class Program(Executable):
        me: Any

    references = []
    for _ in range(3):
        program = Program(programs.x2_plus_1())
        program(X)
        program(X)
        program.me = program
        references.append(weakref.ref(program))
    del program
    gc.collect()
    assert all(reference() is None for reference in references)


def test_a_class_of_executables_is_collected() -> None:
    class Program(Executable):
        pass

    Program(programs.x2_plus_1())(X)
    reference = weakref.ref(Program)
    del Program
    gc.collect()
    assert reference() is None


def test_without_entry_code_the_portable_path_serves() -> None:
    whole = programs.x2_plus_1()
    executable = Executable(Artifact(whole.manifest, whole.object_code))
    assert not executable.is_native
    for _ in range(2):
        np.testing.assert_array_equal(executable(X), Y)


def test_the_environment_chooses_the_path(entry: str) -> None:
    assert programs.load(programs.x2_plus_1).is_native == (entry == "native")
    assert not programs.load(programs.x2_plus_1, native=False).is_native


def test_symbols_may_be_injected() -> None:
    import ctypes

    calls: list[int] = []
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)
    function = prototype(lambda value: calls.append(value) or 0)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    text = """declare i32 @user_op(i32)
define i32 @sg_run(ptr %context) {
  %r = call i32 @user_op(i32 42)
  ret i32 %r
}"""
    artifact = programs.artifact(programs.manifest("injected"), text)
    assert Executable(artifact, extra_symbols={"user_op": address})() == ()
    assert calls == [42]


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_any_number_of_inputs_and_outputs(count: int) -> None:
    """Each output i is input i, copied as 8 bytes; ranks 0 to 4."""
    shapes = [(1,) * (i % 5) for i in range(count)]
    lines = [programs.TABLES]
    for i in range(count):
        lines += [programs.pointer(f"x{i}", i), programs.pointer(f"y{i}", count + i)]
        lines += [f"  %v{i} = load i64, ptr %x{i}", f"  store i64 %v{i}, ptr %y{i}"]
    manifest = programs.manifest(
        "copies",
        inputs=[InputSpec(f"x{i}", "int64", list(s), i) for i, s in enumerate(shapes)],
        outputs=[OutputSpec(f"y{i}", "int64", list(s), count + i) for i, s in enumerate(shapes)],
        buffers=[BufferSpec("input", 8)] * count + [BufferSpec("output", 8)] * count,
    )
    executable = Executable(programs.artifact(manifest, "\n".join([*lines, "  ret i32 0", "}"])))
    arrays = [np.full(shape, 100 + i) for i, shape in enumerate(shapes)]
    for _ in range(3):
        results = executable(*arrays)
        assert isinstance(results, tuple)
        for result, array in zip(results, arrays, strict=True):
            np.testing.assert_array_equal(result, array, strict=True)
