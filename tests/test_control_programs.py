"""What loops and choices become: regions of one program, its memory, threads, state, texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import LATE_PASSES, compile_stages
from staticgrad.codegen import sharing
from staticgrad.kernels.printer import program_text
from staticgrad.kernels.program import Choose, Item, Program, Repeat, Step, parts
from staticgrad.kernels.verify import verify_program
from staticgrad.ops.interpret import run_graph
from staticgrad.passes.pipeline import PASSES
from staticgrad_runtime import binding, frames, workers

from .pass_checks import assert_same_bits
from .random_control import RandomControl
from .threaded_programs import InTurn, Threaded, bits, random

Array = np.ndarray[Any, Any]
PRESERVING = (*dict.fromkeys(p.name for p in PASSES if p.kind == "preserving"), *LATE_PASSES)


def stages(inputs: Sequence[Any], outputs: Any, updates: Any = None, **options: Any) -> Program:
    """The scheduled program, verified."""
    program = compile_stages(sg.Graph(inputs, outputs, updates), **options).program
    verify_program(program)
    return program


def outline(items: Sequence[Item]) -> list[Any]:
    """The kernels' names; regions as a pair of their kind and their parts."""
    return [
        i.kernel.name if isinstance(i, Step)
        else (type(i).__name__, *(outline(part) for part in parts(i)))
        for i in items
    ]  # fmt: skip


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads that are asked for, however little there is to do."""
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)
    monkeypatch.setattr(sharing, "LEAST_SHARED_NS", 0)


# --- one native call ------------------------------------------------------------------------------

X = sg.input("x", (), "float64")
LR = 0.02


def test_a_descent_is_one_loop_of_one_kernel() -> None:
    end = sg.fori_loop(0, 1000, lambda i, x: x - LR * (2 * x - 4), X)
    program = stages([X], [end], disable=("scalar_loops",))
    first, loop = program.items
    assert isinstance(first, Step) and isinstance(loop, Repeat)
    assert loop.length == 1000 and len(loop.items) == 1 and not loop.test
    (step,) = loop.items
    assert isinstance(step, Step) and step.times == 1000
    run = sg.compile([X], end, cache=False)
    x = 10.0
    for _ in range(1000):
        x = x - LR * (2 * x - 4)
    assert run(10.0) == x
    assert abs(x - 2) < 1e-14


def test_a_descent_that_stops_by_itself() -> None:
    def f(x: Any) -> Any:
        return x * x - 4 * x

    def body(state: Any) -> Any:
        x, _, n = state
        return x - LR * (2 * x - 4), x, n + 1

    def going(state: Any) -> Any:
        return (state[2] == 0) | (sg.abs(f(state[0]) - f(state[1])) > 1e-3)

    x, _, n = sg.while_loop(going, body, (X, X, 0))
    assert [type(i).__name__ for i in stages([X], [x, f(x), n]).items].count("Repeat") == 1
    last, value, steps = sg.compile([X], [x, f(x), n], cache=False)(10.0)
    assert int(steps) == 106
    assert f"{last:.6f} {value:.6f}" == "2.105643 -3.988840"


def test_a_choice_is_one_region_with_its_branches() -> None:
    v = sg.input("v", ("N",))
    chosen = sg.switch(sg.astype(v[0], "int64"), [lambda: sg.exp(v), lambda: v, lambda: sg.sin(v)])
    program = stages([v], chosen)
    (region,) = [i for i in program.items if isinstance(i, Choose)]
    assert outline(region.branches[0]) == ["exp"] and outline(region.branches[2]) == ["sin"]
    assert len(outline(region.branches[1])) == 1  # the copy of v


def test_what_does_not_change_is_computed_before_the_loop() -> None:
    v, w = sg.input("v", (5,)), sg.input("w", (5, 5))
    end, _ = sg.scan(lambda c, _: (sg.tanh(c + sg.exp(w @ v)), None), v, length=9)
    program = stages([v, w], end, disable=("scalar_loops",))
    (loop,) = [i for i in program.items if isinstance(i, Repeat)]
    assert not any("matmul" in name or "exp" in name for name in outline(loop.items))
    assert sum("matmul" in s.kernel.name for s in program.steps) == 1


def test_code_does_not_grow_with_the_length() -> None:
    v, w = sg.input("v", (8,)), sg.input("w", (8, 8))

    def text(length: int) -> int:
        end, ys = sg.scan(lambda c, _: (sg.tanh(w @ c), c), v, length=length)
        loss = end.sum() + (ys * ys).sum()
        return len(compile_stages(sg.Graph([v, w], sg.gradients(loss, [v, w]))).text)

    assert text(1000) < 1.05 * text(10)


# --- memory ---------------------------------------------------------------------------------------


def peak(length: int, checkpoint: Any) -> int:
    v, w = sg.input("v", (64,), "float64"), sg.input("w", (64,), "float64")
    end, _ = sg.scan(lambda c, _: (sg.tanh(w * c), None), v, length=length, checkpoint=checkpoint)
    run = sg.compile([v, w], sg.gradients(end.sum(), [v, w]), cache=False)
    assert run.report().to_dict()["peak_bytes"] == run.peak_bytes()
    found: int = run.peak_bytes()
    return found


def test_memory_grows_with_the_square_root_of_the_length() -> None:
    state = 64 * 8
    every = {n: peak(n, None) for n in (100, 1600, 10_000)}
    root = {n: peak(n, "sqrt") for n in (100, 1600, 10_000)}
    for n, used in every.items():
        assert n * state <= used <= 2.2 * n * state + 20 * state
    for n, used in root.items():  # the segments' states and the steps of one between them
        assert used <= 4 * n**0.5 * state + 20 * state
    assert root[10_000] < every[10_000] / 20
    assert peak(10_000, 10) > root[10_000]


def layers(checkpoint: bool) -> Any:
    """The gradient of a chain of wide layers, four to a block."""
    x = sg.input("x", (512, 32), "float64")
    ws = [sg.input(f"w{i}", (32, 32), "float64") for i in range(16)]
    h = x
    for i in range(0, 16, 4):

        def block(h: Any, *weights: Any) -> Any:
            for w in weights:
                h = sg.tanh(h @ w)
            return h

        h = (sg.checkpoint(block) if checkpoint else block)(h, *ws[i : i + 4])
    return [x, *ws], [h.sum(), *sg.gradients(h.sum(), ws)]


def test_checkpoint_computes_again_instead_of_storing() -> None:
    arrays = [random((512, 32), 9, "float64"), *(random((32, 32), k, "float64") for k in range(16))]
    plain, again = (sg.compile(*layers(c), cache=False) for c in (False, True))
    assert_same_bits(again(*arrays), plain(*arrays))
    assert again.peak_bytes() < 0.7 * plain.peak_bytes()

    def products(checkpoint: bool, *disable: str) -> int:
        program = stages(*layers(checkpoint), disable=disable)
        return sum("matmul" in s.kernel.name for s in program.steps)

    forward, backward = 16, 2 * 16 - 1
    assert products(False) == forward + backward
    # The four forward products of each block, and cse leaves them alone.
    assert products(True) == products(True, "cse") == 2 * forward + backward
    assert sg.checkpoint(layers).__name__ == "layers"


# --- bits -----------------------------------------------------------------------------------------


def compiled(made: RandomControl, outputs: Any, *disable: str) -> Any:
    return sg.compile(made.inputs, outputs, cache=False, disable=disable)


def with_gradients(made: RandomControl) -> list[Any]:
    loss = sg.sin(made.outputs[-2]).sum()
    found = sg.gradients(loss, [made.x, made.series, made.weight], unreachable="zeros")
    return [*made.outputs, *found]


@pytest.mark.parametrize("seed", range(9))
def test_random_programs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference; no preserving pass changes a bit; every pass leaves a valid graph."""
    monkeypatch.setenv("STATICGRAD_VERIFY", "1")
    made = RandomControl(seed, steps=2, depth=2, bounded=seed % 2 == 0)
    outputs = with_gradients(made) if seed % 2 == 0 else made.outputs
    stages(made.inputs, outputs)
    run = compiled(made, outputs)
    reference = sg.compile(made.inputs, outputs, mode="reference")
    cases = [made.arrays(5, 3), made.arrays(1, 1, 0), made.arrays(7, 0, 5), made.arrays(0, 2)]
    for arrays in cases:
        sg.random.seed(4)
        got = run(*arrays)
        sg.random.seed(4)
        for a, b in zip(got, reference(*arrays), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    sg.random.seed(4)
    expected = run(*cases[0])
    for name in PRESERVING if seed in (2, 4, 5) else (("in_place", "fuse")[seed % 2],):
        other = compiled(made, outputs, name)
        sg.random.seed(4)
        assert_same_bits(other(*cases[0]), expected, name)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("seed", range(20, 28))
def test_random_programs_in_any_order_between_barriers(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RandomControl(seed, steps=2, depth=2, bounded=seed % 2 == 0)
    outputs = with_gradients(made) if seed % 4 == 0 else made.outputs
    program = Threaded.of(made.inputs, outputs)
    arrays = made.arrays(140, 3)
    expected = bits(program.on(1)(*arrays))
    assert any(sharing.share(program.program).shared)
    for n in (2, 3):
        assert bits(program.on(n)(*arrays)) == expected
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        pool = InTurn(order)
        monkeypatch.setattr(frames, "pool", lambda threads, pool=pool: pool)
        assert bits(program.on(3)(*arrays)) == expected, order
        assert pool.meetings


def wide(n: int) -> tuple[list[Any], list[Any]]:
    """Loops and choices over arrays large enough that all threads go through them."""
    x, w = sg.input("x", (n, 33)), sg.input("w", (33, 33))
    at, p = sg.input("at", (4, n), "int64"), sg.input("p", (), "int64")

    def step(carry: Any, i: Any) -> Any:
        a, b = carry
        new = sg.tanh(a @ w) + sg.take(b, i, axis=0) * 0.5
        return (b, sg.cond(new.sum() > 0, lambda: new, lambda: -new)), (new.sum(axis=0), a[0])

    (a, b), ys = sg.scan(step, (x, x * 0.5), at)
    looped = sg.while_loop(
        lambda s: (s[0] < p) & (sg.abs(s[1]).sum() < 1e9),
        lambda s: (s[0] + 1, s[1] * 2 + x),
        (0, x),
    )
    chosen = sg.switch(p - 2, [lambda: a, lambda: sg.softmax(b, -1), lambda: sg.exp(x) @ w])
    (gradient,) = sg.gradients((ys[0] * ys[0]).sum(), [w])
    return [x, w, at, p], [a, b, *ys, *looped, chosen, gradient]


@pytest.mark.parametrize("p", [0, 3, 4])
def test_large_bodies_on_several_threads(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    n = 2000  # 66,000 elements
    program = Threaded.of(*wide(n))
    regions = sum(not isinstance(i, Step) for i in program.program.items)
    assert len(sharing.share(program.program).alone) < regions
    rows = np.random.default_rng(1).integers(0, n, (4, n))
    arrays = [random((n, 33)), random((33, 33), 1) / 6, rows, np.array(p)]
    expected = bits(program.on(1)(*arrays))
    for threads in (2, 3):
        assert bits(program.on(threads)(*arrays)) == expected
    for order in ((0, 1, 2), (2, 1, 0)):
        pool = InTurn(order)
        monkeypatch.setattr(frames, "pool", lambda threads, pool=pool: pool)
        assert bits(program.on(3)(*arrays)) == expected, order


# --- failures and state ---------------------------------------------------------------------------


def failing() -> tuple[list[Any], list[Any], Any]:
    """A gather in a scan; the index of one iteration is a result of the one before."""
    x, at = sg.input("x", ("N",)), sg.input("at", ("T", "N"), "int64")
    w = sg.parameter(np.ones(3, "float32"), name="w")
    total, sums = sg.scan(lambda c, i: (c + sg.take(x, i, axis=0), c.sum()), x, at)
    return [x, at], [total], [(w, sg.fori_loop(0, 3, lambda i, c: c + w * sums.sum(), w))]


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    "bad", [{(1, 700): 5000, (3, 10): 7000}, {(4, 0): -1001}, {(0, 999): 1000}]
)
def test_the_first_failure_is_the_one_that_is_told(bad: dict[tuple[int, int], int]) -> None:
    program = Threaded.of(*failing())
    arrays = [np.ones(1000, "f"), np.tile(np.arange(1000), (5, 1))]
    for place, value in bad.items():
        arrays[1][place] = value
    for threads in (1, 2, 3):
        run = program.on(threads)
        with pytest.raises(sg.ExecutionError, match=f"index {next(iter(bad.values()))} is out"):
            run(*arrays)
        np.testing.assert_array_equal(run.cells[0].numpy(), np.ones(3))
        run(arrays[0], arrays[1] * 0)
        assert run.cells[0].numpy()[0] > 1


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("element", [10, 990])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_failure_ends_a_loop_that_would_go_on(threads: int, element: int) -> None:
    x, at = sg.input("x", ("N",)), sg.input("at", ("N",), "int64")
    end = sg.while_loop(
        lambda s: s[0] >= 0,
        lambda s: (s[0] + 1, sg.take(x, at + sg.astype(s[1], "int64") * 0, axis=0)), (0, x),
    )  # fmt: skip
    run = Threaded.of([x, at], end[1]).on(threads)
    index = np.arange(1000)
    index[element] = 5000
    with pytest.raises(sg.ExecutionError, match="index 5000"):
        run(np.ones(1000, "f"), index)


@pytest.mark.parametrize("disable", [(), ("in_place",), ("fuse",), ("in_place", "cse", "dce")])
def test_state_is_read_old_and_written_new(disable: tuple[str, ...]) -> None:
    """Loops read state that the same call writes; what they write comes after all that may fail."""
    x, at = sg.input("x", (3,), "float64"), sg.input("at", (2,), "int64")
    w = sg.parameter(np.ones(3), name="w")
    u = sg.parameter(np.arange(3.0), name="u")
    new_w = sg.fori_loop(0, 4, lambda i, c: c - 0.25 * w * u + x, w)
    new_u, _ = sg.scan(lambda c, _: (c * 0.5 + w, None), u, length=3)
    picked = sg.take(x, at).sum()
    run = sg.compile(
        [x, at], [new_w.sum(), w, picked], updates=[(w, new_w), (u, new_u)], disable=disable,
        cache=False,
    )  # fmt: skip
    program = stages([x, at], [picked], [(w, new_w), (u, new_u)], disable=disable)
    writing = [i for i, s in enumerate(program.steps) if s.can_fail]
    assert max(writing) < program.commit_step
    state_w, state_u = np.ones(3), np.arange(3.0)
    for k in range(3):
        if k == 1:
            with pytest.raises(sg.ExecutionError):
                run(np.ones(3), np.array([0, 9]))
            np.testing.assert_array_equal(w.numpy(), state_w)
        total, old, _ = run(np.full(3, 0.5 * k), np.array([0, 2]))
        np.testing.assert_array_equal(old, state_w)
        c, d = state_w, state_u
        for _ in range(4):
            c = c - 0.25 * state_w * state_u + 0.5 * k
        for _ in range(3):
            d = d * 0.5 + state_w
        state_w, state_u = c, d
        np.testing.assert_allclose(w.numpy(), state_w, rtol=1e-14)
        np.testing.assert_allclose(u.numpy(), state_u, rtol=1e-14)
        assert total == pytest.approx(state_w.sum())


def test_training_inside_of_a_loop() -> None:
    """Gradient descent with gradients taken in the body: one program trains for all steps."""
    rows, target = random((20, 3), 1, "float64"), random(20, 2, "float64")
    a, b = sg.input("a", (20, 3), "float64"), sg.input("b", (20,), "float64")

    def step(i: Any, w: Any) -> Any:
        loss = ((a @ w - b) ** 2).mean()
        (g,) = sg.gradients(loss, [w])
        return w - 0.1 * g

    end = sg.fori_loop(0, 50, step, sg.zeros(3, dtype="float64"))
    assert sum(isinstance(i, Repeat) for i in stages([a, b], end).items) == 1
    w = np.zeros(3)
    for _ in range(50):
        w = w - 0.1 * 2 * rows.T @ (rows @ w - target) / 20
    np.testing.assert_allclose(sg.compile([a, b], end, cache=False)(rows, target), w, rtol=1e-12)


def test_a_nan_is_found_where_it_arises() -> None:
    v, n = sg.input("v", (3,)), sg.input("n", (), "int64")
    w = sg.parameter(np.ones(3, "float32"), name="w")

    def checked(output: Any) -> Any:
        return sg.compile([v, n], output, updates=[(w, w + output)], check="nan", cache=False)

    cases = {
        "sqrt": sg.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, sg.sqrt(s[1] - 1)), (0, v))[
            1
        ],
        "log": sg.cond(n > 1, lambda: sg.log(-v), lambda: v),
        "subtract": sg.scan(lambda c, _: (sg.exp(c * 50) - sg.exp(c * 49), None), v, length=3)[0],
    }
    runs = {name: checked(output) for name, output in cases.items()}
    for name, good in (("sqrt", 1), ("log", 0)):
        runs[name](np.full(3, 5.0, "f"), good)
    state = w.numpy()
    for name, run in runs.items():
        with pytest.raises(
            sg.ExecutionError, match=rf"NaN(.|\n)*{name}(.|\n)*test_control_programs"
        ):
            run(np.full(3, 5.0, "f"), 9)
        np.testing.assert_array_equal(w.numpy(), state)


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_graphs_are_printed_parsed_and_drawn(seed: int) -> None:
    made = RandomControl(seed, steps=2, depth=1, bounded=seed % 2 == 0)
    outputs = with_gradients(made) if seed % 2 == 0 else made.outputs
    graph = sg.Graph(made.inputs, outputs)
    text = graph.to_text()
    again = sg.Graph.from_text(text)
    assert again.to_text() == text
    arrays = made.arrays(3, 2)
    for old, new in zip(graph.state, again.state, strict=True):  # a text holds no values
        new.node.payload.assign(old.node.payload.numpy())
    assert_same_bits(run_graph(again, arrays)[0], run_graph(graph, arrays)[0])
    assert graph.to_dot() and graph.to_mermaid() and graph.to_json()
    assert graph.to_networkx().number_of_nodes() >= len(graph.nodes)
    if seed == 0:
        assert graph.to_svg().lstrip().startswith("<")


def test_programs_are_printed_as_they_run() -> None:
    v, n = sg.input("v", ("N",)), sg.input("n", (), "int64")
    end, _ = sg.scan(lambda c, _: (sg.cond(n > 0, lambda: c + v, lambda: c * v), None), v, length=7)
    last = sg.while_loop(lambda s: s.sum() < 10, lambda s: s * 2, end)
    text = program_text(stages([v, n], last))
    for part in ("repeat _i1 in 0..7 {", "while", "test_control_programs.py:", "commit"):
        assert part in text, text
    assert text.count("{") == text.count("}")
