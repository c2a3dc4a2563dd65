"""`jit`: when a call is traced, what the traces hold for, what the function may read."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as driver


def counted(fn: Any) -> tuple[Any, list[int]]:
    """`fn` under jit, and a list that grows with each trace."""
    traces: list[int] = []

    @functools.wraps(fn)
    def traced(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return fn(*args, **kwargs)

    return sg.jit(traced), traces


def array(*shape: int, dtype: str = "float64") -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def test_results_are_arrays_in_the_function_s_structure() -> None:
    f = sg.jit(lambda x, p: {"sum": x.sum(), "rest": (p["a"] * x, [p["b"]], None)})
    x, p = array(3), {"b": array(2), "a": 2.0}
    found = f(x, p)
    np.testing.assert_allclose(found["sum"], x.sum())
    np.testing.assert_array_equal(found["rest"][0], 2 * x)
    np.testing.assert_array_equal(found["rest"][1][0], p["b"])
    assert found["rest"][2] is None
    assert isinstance(found["sum"], np.ndarray) and found["sum"].shape == ()
    assert f(x, p)["rest"][0] is not found["rest"][0]


def test_a_function_is_traced_once_for_each_kind_of_call() -> None:
    f, traces = counted(lambda x, y: x * y)
    x, y = array(3), array(3)
    for _ in range(3):
        np.testing.assert_array_equal(f(x, y), x * y)
    assert len(traces) == 1
    f(x.astype("float32"), y)
    f(x, 2.0)
    f(x, 3.0)
    f(x, y[:, None])
    assert len(traces) == 4
    assert f.cache_entries == [
        "first call",
        "argument x: float64 of rank 1 -> float32 of rank 1",
        "argument x: float32 of rank 1 -> float64 of rank 1; "
        "argument y: float64 of rank 1 -> a Python float",
        "argument y: a Python float -> float64 of rank 2",
    ]


def test_the_second_size_of_an_axis_makes_it_symbolic() -> None:
    f, traces = counted(lambda x, w: sg.tanh(x @ w) + x.shape[0])
    w = array(3, 2)
    for n in (4, 5, 9, 4):
        x = array(n, 3)
        np.testing.assert_allclose(f(x, w), np.tanh(x @ w) + n, rtol=1e-12)
    assert len(traces) == 2
    assert f.cache_entries[1] == "argument x: axis 0 was 4, is 5 -> symbolic 'x_0'"
    assert "float64[x_0, 3]" in f.explain_cache()
    x, w = array(6, 7), array(7, 2)
    np.testing.assert_allclose(f(x, w), np.tanh(x @ w) + 6, rtol=1e-12)
    assert f.cache_entries[2].startswith("argument x: axis 0 was 4, is 6 -> symbolic 'x_0'; "
                                         "argument x: axis 1 was 3, is 7 -> symbolic")  # fmt: skip
    x, w = array(8, 11), array(11, 2)
    np.testing.assert_allclose(f(x, w), np.tanh(x @ w) + 8, rtol=1e-12)
    assert len(traces) == 3


def test_the_report_is_that_of_a_trace_s_program() -> None:
    @sg.jit
    def f(x: Any) -> Any:
        return sg.sum(x * 2.0)

    with pytest.raises(sg.ArgumentError, match="nothing of f is compiled yet") as caught:
        f.report()
    assert "at test_jit.py:" in str(caught.value)
    x = sg.input("x", (4,), dtype="float64")
    for n in (4, 5):
        f(array(n))
    made = f.report(1).to_dict()
    asked = sg.compile([x], sg.sum(x * 2.0)).report().to_dict()
    told = ("flops", "bytes", "peak_bytes", "state_bytes", "distinct_kernels")
    assert [made[k] for k in told] == [asked[k] for k in told]
    assert f.report()["flops"] == f.report(2)["flops"] == "2*x_0"
    assert f.report(2, x_0=100)["flops"] == 200 and "kernels" in str(f.report())
    with pytest.raises(sg.ArgumentError, match=r"no program 3; .*these have one: 1, 2"):
        f.report(3)
    with pytest.raises(sg.BindError, match="no symbol is called N; known: x_0"):
        f.report(N=4)
    with pytest.raises(sg.ArgumentTypeError, match="report: trace must be an int"):
        f.report("1")


def test_what_runs_no_program_has_no_report() -> None:
    empty = sg.jit(lambda x: ())
    assert empty(array(3)) == ()
    double = sg.jit(lambda x: x * 2.0)
    double(sg.eager.tensor([1.0]))  # runs on the tape
    for f in (empty, double):
        with pytest.raises(sg.ArgumentError, match="is compiled yet"):
            f.report()
    double(array(3))
    assert double.report()["flops"] == 3


def test_transforms_have_a_report_too() -> None:
    slope = sg.grad(lambda x: sg.sum(x**2))
    slope(array(3))
    assert slope.report()["flops"] == 3


def test_axes_that_were_equal_share_a_symbol_until_they_differ() -> None:
    f, traces = counted(lambda x, y: sg.concat([x, y]))
    for n, m in ((2, 2), (3, 3), (4, 4), (5, 6), (7, 3), (4, 4)):
        x, y = array(n), array(m)
        np.testing.assert_array_equal(f(x, y), np.concatenate([x, y]))
    assert len(traces) == 3  # ints, one symbol, two symbols


@pytest.mark.parametrize("sizes", [((4,), (4,)), ((5,), (1,)), ((6,), (6,)), ((1,), (7,))])
def test_a_size_of_one_broadcasts(sizes: tuple[tuple[int], tuple[int]]) -> None:
    f = sg.jit(lambda x, y: x + y)
    for shapes in (((4,), (4,)), ((5,), (5,)), sizes, ((1,), (1,)), ((9,), (9,))):
        x, y = array(*shapes[0]), array(*shapes[1])
        np.testing.assert_array_equal(f(x, y), x + y)


def test_sizes_that_do_not_fit_raise_at_the_user_s_line() -> None:
    f = sg.jit(lambda x, y: x + y)
    for n in (3, 4, 5):
        f(array(n), array(n))
    with pytest.raises(sg.ShapeError, match=r"do not broadcast.*\n  at test_jit.py:"):
        f(array(4), array(5))


def test_sizes_that_python_reads_are_guarded() -> None:
    def f(x: Any) -> Any:
        if x.shape[0] > 4:
            x = x * 10
        if x.shape[0] == 7 or not x.shape[0]:
            x = x - 1
        for i in range(x.shape[0] // 3):
            x = x + i
        return x / x.shape[0] + 0.5 * x.shape[0] + np.zeros(x.shape[1])

    def g(x: Any) -> Any:
        n = x.shape[0]
        x = x * 10 if n > 4 else x
        x = x - 1 if n in (7, 0) else x
        return (x + sum(range(n // 3))) / max(n, 1) + 0.5 * n

    traced = sg.jit(f)
    for n in (3, 4, 5, 6, 7, 8, 11, 7, 3, 4):
        x = array(n, 2)
        np.testing.assert_allclose(traced(x), g(x), rtol=1e-12, err_msg=str(n))
    text = traced.explain_cache()
    assert "4 < x_0 is True (test_jit.py:" in text
    assert "guard failed" in text


def test_sizes_are_looked_up_as_ints() -> None:
    table = {3: 1.0, 5: 2.0}
    f = sg.jit(lambda x: x * table.get(x.shape[0], 0.0))
    for n in (3, 4, 5, 6, 3):
        x = array(n)
        np.testing.assert_array_equal(f(x), x * table.get(n, 0.0))


def test_derived_sizes_of_one_are_treated_apart() -> None:
    f = sg.jit(lambda x, y: x[1:] + y)
    for n, m in ((4, 3), (5, 4), (6, 5), (2, 5), (2, 1), (9, 8)):
        x, y = array(n), array(m)
        np.testing.assert_array_equal(f(x, y), x[1:] + y)


def test_where_symbols_do_not_do_the_axis_keeps_its_ints() -> None:
    def f(x: Any, y: Any) -> Any:
        rows = [row * (i + 1) for i, row in enumerate(sg.unstack(x))]  # needs an int
        return sg.stack(rows).sum() + y.sum()

    f, traces = counted(f)
    for n, m in ((2, 3), (3, 4), (4, 5), (4, 6)):
        x, y = array(n, 2), array(m)
        expected = (x * np.arange(1, n + 1)[:, None]).sum() + y.sum()
        np.testing.assert_allclose(f(x, y), expected, rtol=1e-12)
    assert "traced with ints" in f.cache_entries[1]
    count = len(traces)
    f(array(4, 2), array(17))  # y's axis is symbolic all the same
    assert len(traces) == count


OF_SIZES = {
    "matmul": lambda x, y: x @ y.T,
    "slices": lambda x, y: x[1:] * 2 + y[:1],
    "concat": lambda x, y: sg.concat([x, y]).sum(1),
    "choice": lambda x, y: (x * 2 if x.shape[0] > y.shape[0] else x * 3) + y.sum(),
    "equality": lambda x, y: x + y if x.shape == y.shape else x * 0.5,
    "mean": lambda x, y: sg.stack([x, x])[1] + y.sum() / max(y.shape[0], 1),
    "jacobian": sg.jacobian(lambda x, y: (x * y.sum(0)).sum(1)),
    "pad": lambda x, y: sg.pad(x, ((1, x.shape[0]), (0, 0))) + y.sum(),
}


@pytest.mark.parametrize("name", OF_SIZES)
def test_any_sequence_of_sizes_gives_what_a_fresh_trace_gives(name: str) -> None:
    fn, rng = OF_SIZES[name], np.random.default_rng(5)
    kept = sg.jit(fn)
    for _ in range(8):
        n, m, k = (int(rng.choice([0, 1, 2, 3, 5])) for _ in range(3))
        x, y = array(n, k), array(n if rng.random() < 0.4 else m, k)
        try:
            expected = sg.jit(lambda x, y: fn(x, y))(x, y)
        except sg.ShapeError:
            with pytest.raises(sg.ShapeError):
                kept(x, y)
            continue
        found = kept(x, y)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_python_numbers_are_values_of_the_program_and_weak() -> None:
    f, traces = counted(lambda x, lr, n: (x - lr * x, x * n, lr / 2, n / 2, n // 2, -n, n**2))
    x32, xi = array(3, dtype="float32"), np.arange(3, dtype="int32")
    for lr, n in ((0.1, 3), (0.3, 5), (1e-3, 8)):
        moved, scaled, half, fraction, whole, negative, square = f(x32, lr, n)
        np.testing.assert_allclose(moved, x32 - np.float32(lr) * x32, rtol=1e-6)
        assert moved.dtype == scaled.dtype == half.dtype == fraction.dtype == np.float32
        assert [float(fraction), int(whole), int(negative)] == [n / 2, n // 2, -n]
        assert int(square) == n**2
        assert whole.dtype == np.int64
        np.testing.assert_allclose(half, np.float32(lr / 2))
    assert len(traces) == 1
    x64 = array(3)
    np.testing.assert_array_equal(f(x64, 0.1, 2)[0], x64 - 0.1 * x64)  # not 0.1 rounded to float32
    assert sg.jit(lambda x, n: x + n)(xi, 3).dtype == np.int32


def test_numbers_that_python_reads_are_guarded() -> None:
    def f(x: Any, n: Any, flag: Any, rate: Any) -> Any:
        for _ in range(n):
            x = x + 1
        if flag and n > 2:
            x = x * rate
        return x * math.sqrt(rate)

    traced, traces = counted(f)
    x = array(3)
    for n, flag, rate in ((2, True, 1.0), (2, True, 1.0), (3, True, 4.0), (3, False, 0.25)):
        expected = (x + n) * (rate if flag and n > 2 else 1) * math.sqrt(rate)
        np.testing.assert_allclose(traced(x, n, flag, rate), expected, rtol=1e-12)
    assert len(traces) == 3
    assert "guard failed: n read at test_jit.py" in traced.cache_entries[1]


def test_dynamic_indices_are_not_read() -> None:
    f, traces = counted(lambda x, i: x[i])
    x = array(5)
    for i in (0, 3, 4):
        assert f(x, i) == x[i]
    assert len(traces) == 1


def test_static_arguments() -> None:
    def f(x: Any, order: int, mode: str = "sum", *, keep: bool = False) -> Any:
        assert type(order) is int
        return getattr(x**order, mode)(axis=-1, keepdims=keep)

    traced, traces = counted(f)
    traced = sg.jit(traced.fn, static_argnums=1, static_argnames=("keep",))
    x = array(2, 3)
    for order, mode, keep in ((2, "sum", False), (3, "sum", False), (3, "mean", True)):
        expected = getattr(x**order, mode)(axis=-1, keepdims=keep)
        np.testing.assert_allclose(traced(x, order, mode, keep=keep), expected, rtol=1e-12)
    traced(x, order=2)
    assert len(traces) == 4
    assert traced.cache_entries[1] == "argument order (static): 2 -> 3"
    with pytest.raises(sg.ArgumentTypeError, match="static argument order must be hashable"):
        traced(x, [1, 2])
    with pytest.raises(sg.ArgumentError, match="static_argnums has 5, but the function takes 2"):
        sg.jit(lambda x, y: x, static_argnums=5)


def test_functions_and_other_objects_are_static_by_themselves() -> None:
    f, traces = counted(lambda x, activation, shape: activation(x).astype(shape))
    x = array(3)
    np.testing.assert_allclose(f(x, sg.exp, "float32"), np.exp(x).astype("float32"), rtol=1e-6)
    np.testing.assert_allclose(f(x, sg.sin, sg.float32), np.sin(x).astype("float32"), rtol=1e-6)
    f(x, sg.exp, "float32")
    assert len(traces) == 2


def test_decorators_methods_and_keywords() -> None:
    class Model:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        @sg.jit
        def forward(self, x: Any, shift: Any = 1.0) -> Any:
            return x * self.scale + shift

        @sg.jit(static_argnames="n")
        def power(self, x: Any, n: int = 2) -> Any:
            return x**n

    a, b, x = Model(2.0), Model(3.0), array(3)
    np.testing.assert_array_equal(a.forward(x), 2 * x + 1)
    np.testing.assert_array_equal(b.forward(x, shift=5.0), 3 * x + 5)
    np.testing.assert_allclose(a.power(x, n=3), x**3)
    assert Model.forward.__name__ == "forward"


def test_jit_inside_a_transform_or_a_graph_builds_graph() -> None:
    inner = sg.jit(lambda x: sg.sin(x) * 2.0)
    x = array(3)
    np.testing.assert_allclose(sg.jit(lambda x: inner(x) + inner(2 * x))(x),
                               2 * np.sin(x) + 2 * np.sin(2 * x))  # fmt: skip
    t = sg.input("t", ("N",), "float64")
    y = inner(t)
    assert isinstance(y, sg.Tensor)
    np.testing.assert_allclose(sg.compile([t], y)(x), 2 * np.sin(x))
    outer = sg.jit(lambda a: a * t)(x)  # reads an input that is declared around it
    assert isinstance(outer, sg.Tensor)
    np.testing.assert_allclose(sg.compile([t], outer)(x), x * x)


def test_sizes_take_part_in_arithmetic_of_declared_graphs() -> None:
    t = sg.input("t", ("N", 3), "float32")
    y = t.sum() / t.shape[0] + (t.shape[0] + 1) * t[0, 0]
    assert y.dtype == "float32"
    x = array(4, 3, dtype="float32")
    np.testing.assert_allclose(sg.compile([t], y)(x), x.sum() / 4 + 5 * x[0, 0], rtol=1e-5)
    with pytest.raises(sg.ShapeError, match="can't be told"):
        _ = t.shape[0] > 3
    with pytest.raises(sg.ShapeError, match="known only at run time"):
        range(t.shape[0])


def test_state_is_read_when_the_program_runs() -> None:
    w = sg.parameter(np.array([1.0, 2.0]))
    f, traces = counted(lambda x: x * w)
    np.testing.assert_array_equal(f(np.ones(2)), [1.0, 2.0])
    w.assign(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(f(np.ones(2)), [3.0, 4.0])
    assert len(traces) == 1


def test_random_numbers_differ_from_call_to_call() -> None:
    sg.random.seed(0)
    f = sg.jit(lambda x: x + sg.random.normal((3,)))
    x = np.zeros(3, "float32")
    assert not np.array_equal(f(x), f(x))


def test_variables_from_outside_are_watched() -> None:
    scale, helper, count = 2.0, lambda x: x + 1, 0

    def f(x: Any) -> Any:
        nonlocal count
        count += 1
        return helper(x) * scale

    traced, x = sg.jit(f), array(3)
    np.testing.assert_array_equal(traced(x), (x + 1) * 2)
    traced(x)
    assert count == 1
    scale = 5.0
    np.testing.assert_array_equal(traced(x), (x + 1) * 5)
    helper = lambda x: x - 1  # noqa: E731
    np.testing.assert_array_equal(traced(x), (x - 1) * 5)
    assert count == 3
    assert traced.cache_entries[-1].startswith("the variable helper, which the function reads,")


class Settings:
    def __init__(self) -> None:
        self.rate, self.calls, self.nested = 2.0, 0, {"shift": [np.ones(3)]}

    def scaled(self, x: Any) -> Any:
        self.calls += 1  # what the function itself changes is not watched
        return self.rate * x

    def fn(self, x: Any) -> Any:
        return self.scaled(x) + self.nested["shift"][0]


def test_attributes_of_objects_are_watched() -> None:
    settings = Settings()
    traced = {
        "captured": sg.jit(lambda x: settings.scaled(x) + settings.nested["shift"][0]),
        "static": functools.partial(sg.jit(lambda s, x: s.fn(x)), settings),
        "method": sg.jit(settings.fn),
    }
    x = array(3)
    for fn in traced.values():
        settings.calls = 0
        for rate in (2.0, 2.0, 3.0):
            settings.rate = rate
            np.testing.assert_array_equal(fn(x), rate * x + settings.nested["shift"][0])
        settings.nested["shift"][0] = np.zeros(3)
        np.testing.assert_array_equal(fn(x), 3 * x)
        settings.nested["shift"][0] = np.ones(3)
        settings.unrelated = object()  # type: ignore[attr-defined]
        settings.rate = 2.0
        assert settings.calls == 3


def test_a_layer_s_mode_is_watched() -> None:
    model = sg.nn.Dropout(0.5)
    f, x = sg.jit(lambda m, x: m(x)), np.ones(100)
    model.eval()
    np.testing.assert_array_equal(f(model, x), x)
    model.train()
    assert not np.array_equal(f(model, x), x)
    model.eval()
    np.testing.assert_array_equal(f(model, x), x)


def test_outputs_that_are_inputs_or_constants() -> None:
    f = sg.jit(lambda x: (x, x, 3, 2.5, np.arange(2), True, x.shape[0]))
    x = array(4)
    a, b, three, half, c, true, size = f(x)
    np.testing.assert_array_equal(a, x)
    assert a is not x and b is not x
    assert (int(three), float(half), bool(true), int(size)) == (3, 2.5, True, 4)
    assert three.dtype == np.int64 and half.dtype == np.float32 and true.dtype == np.bool_
    np.testing.assert_array_equal(c, [0, 1])
    assert sg.jit(lambda: ())() == ()
    assert sg.jit(lambda x: None)(x) is None


def test_arrays_of_any_layout() -> None:
    f = sg.jit(lambda x: x * 2)
    x = array(4, 6)
    for view in (x, x.T, x[::2, ::3], np.asfortranarray(x), x.astype(">f8"), x[0, 0]):
        np.testing.assert_array_equal(f(view), view * 2)


def test_a_warm_call_compiles_nothing() -> None:
    f = sg.jit(lambda x: x * 2 + 1)
    x = array(3)
    f(x), f(array(4))
    before = driver.compilations
    for n in range(2, 30):
        f(array(n))
    assert driver.compilations == before


@pytest.mark.parametrize(
    ("fn", "args", "error", "message"),
    [
        (lambda x: "text", (1.0,), sg.ArgumentTypeError, "result is 'text'"),
        (lambda x: {"a": [x, {1}]}, (1.0,), sg.ArgumentTypeError, r"result\['a'\]\[1\]"),
        (lambda x: x, ({1, 2},), sg.ArgumentTypeError, "argument x is an object of type set"),
        (lambda x: x, (np.array(["a"]),), sg.DTypeError, "argument x"),
        (lambda x: x, (np.array([1j]),), sg.UnsupportedError, "argument x: dtype complex128"),
        (lambda x: x, (2**70,), sg.DTypeError, "argument x: the number"),
        (lambda p: p, ({"a": [1.0, object]},), None, ""),
        (lambda x: float(x) and x.sum(), (np.ones(3),), sg.ArgumentTypeError, "no value"),
        (lambda x: x if x > 0 else -x, (np.float64(1),), sg.ArgumentTypeError, "no value"),
        (
            lambda x: x if x > 0 else -x,
            (1.0,),
            sg.ArgumentTypeError,
            r"\(x > 0\) is a value of the program .* use sg.cond.*static_argnames.*sg.eager",
        ),
    ],
)
def test_errors(fn: Any, args: tuple[Any, ...], error: Any, message: str) -> None:
    if error is None:
        fn = sg.jit(lambda p: p["a"][0])
        assert fn(*args) == 1.0
        return
    with pytest.raises(error, match=message):
        sg.jit(fn)(*args)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(sg.ArgumentTypeError, match="expected a function"):
        sg.jit(3)  # type: ignore[arg-type]


def test_an_argument_that_is_kept_does_not_pass_for_a_declared_input() -> None:
    kept: list[Any] = []
    sg.jit(lambda x: kept.append(x) or x)(1.5)  # type: ignore[func-returns-value]
    sg.jit(lambda x: kept.append(x) or x)(array(3))  # type: ignore[func-returns-value]
    with pytest.raises(sg.GraphError, match="'x', an argument of an earlier trace"):
        sg.jit(lambda y: y + kept[1])(array(3))


def test_errors_of_the_function_pass_through() -> None:
    def f(x: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sg.jit(f)(1.0)


def test_a_size_in_an_f_string_is_read() -> None:
    text = sg.jit(lambda a: a.sum() * len(f"{a.shape[0]}"))
    for size in (2, 3, 4, 12, 100):
        assert float(text(np.ones(size))) == size * len(str(size))


def test_threads_are_those_asked_for() -> None:
    a = array(512, 512, dtype="float32")
    found = []
    for threads in (1, 3):
        f = sg.jit(lambda x: sg.exp(x) @ x, threads=threads)
        found.append(f(a))
        ((_, entry),) = f._order
        assert entry.executable.bind({}).threads == threads
    np.testing.assert_array_equal(*found)
    decorated = sg.jit(threads=1)(lambda x: x + 1.0)
    assert decorated(1.0) == 2.0
    with pytest.raises(sg.ArgumentError, match="threads: expected 1 to"):
        sg.jit(lambda x: x, threads=0)
    with pytest.raises(sg.ArgumentTypeError, match="jit: threads must be an int, got '2'"):
        sg.jit(lambda x: x, threads="2")  # type: ignore[arg-type]
