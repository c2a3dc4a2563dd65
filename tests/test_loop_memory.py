"""What loops store and sweep over: carries in their stacks, parts instead of wholes, results in
several places, siblings in one kernel. Structure, and values against NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.kernels.program import Item, Program, Repeat, parts, steps_of
from staticgrad.kernels.verify import verify_program

from .threaded_programs import random

Array = np.ndarray[Any, Any]


def program_of(inputs: Sequence[Any], outputs: Sequence[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, list(outputs)), **options).program
    verify_program(program)
    return program


def loops(items: Sequence[Item]) -> list[Repeat]:
    """The outermost loops, in order."""
    return [i for i in items if isinstance(i, Repeat)]


def names(loop: Repeat) -> list[str]:
    return [s.kernel.name for part in parts(loop) for s in steps_of(part)]


# --- a carry lies in the stack of its old values --------------------------------------------------


def chain(length: Any, reverse: bool) -> tuple[list[Any], list[Any]]:
    """h' = tanh(h w + x), y = 2 h'; a loss of the last h and of all y, with its gradients."""
    h, w = sg.input("h", (3, 4), "float64"), sg.input("w", (4, 4), "float64")
    xs = sg.input("xs", (length, 3, 4), "float64")

    def step(c: Any, x: Any) -> Any:
        c = sg.tanh(c @ w + x)
        return c, c

    last, ys = sg.scan(step, h, xs, reverse=reverse)
    loss = sg.sum(last**3) + sg.sum(ys**2)
    return [h, w, xs], [last, ys, loss, *sg.gradients(loss, [h, w, xs])]


def chain_by_numpy(h: Array, w: Array, xs: Array, reverse: bool) -> list[Array]:
    order = range(len(xs))[:: -1 if reverse else 1]
    ys, before = np.empty_like(xs), np.empty_like(xs)
    for t in order:
        before[t] = h
        h = np.tanh(h @ w + xs[t])
        ys[t] = h
    ct, dw, dxs = 3 * h**2, np.zeros_like(w), np.zeros_like(xs)
    for t in reversed(order):
        dxs[t] = (ct + 2 * ys[t]) * (1 - ys[t] ** 2)
        dw += before[t].T @ dxs[t]
        ct = dxs[t] @ w.T
    return [h, ys, np.sum(h**3) + np.sum(ys**2), ct, dw, dxs]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("declared", [5, "T"])
def test_values_of_a_carry_in_its_stack(declared: Any, reverse: bool) -> None:
    inputs, outputs = chain(declared, reverse)
    runs = [sg.compile(inputs, outputs, threads=n) for n in (1, 3)]
    for length in (5,) if declared == 5 else (0, 1, 2, 7):
        arrays = [random(s, i, "float64") for i, s in enumerate([(3, 4), (4, 4), (length, 3, 4)])]
        for run in runs:
            for got, wanted in zip(run(*arrays), chain_by_numpy(*arrays, reverse)):
                np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)


def test_old_and_new_values_are_one_stack() -> None:
    """Without a program's own output in between, nothing is copied in an iteration."""
    inputs, (_, _, loss, *grads) = chain(6, False)
    program = program_of(inputs, [loss, *grads])
    forward, backward = loops(program.items)
    assert not any(name.startswith("copy") for name in names(forward))
    stacks = {program.base(b) for s in steps_of(forward.items) for b in s.buffers}
    sizes = [program.buffers[b].size for b in stacks if program.buffers[b].kind == "temp"]
    assert 7 * 12 in sizes and 6 * 12 not in sizes  # all values before and after the six steps
    assert len(names(backward)) <= 3


def test_odd_carries() -> None:
    """Carries that change places, that stay, and two with the same new value."""
    a, b, c = (sg.input(n, (3,), "float64") for n in "abc")

    def step(i: Any, old: Any) -> Any:
        x, y, z, u, _ = old
        return y, x * y + z, z, x * u, x * u

    end = sg.fori_loop(0, 4, step, (a, b, c, a, b))
    loss = sum(sg.sum(e * k) for k, e in enumerate(end, 1))
    run = sg.compile([a, b, c], [*end, *sg.gradients(loss, [a, b, c])])

    def by_numpy(x: Array, y: Array, z: Array) -> tuple[Array, ...]:
        u, v = x, y
        for _ in range(4):
            x, y, u, v = y, x * y + z, x * u, x * u
        return x, y, z, u, v

    arrays = [random(3, i, "float64") for i in range(3)]
    got = run(*arrays)
    for g, wanted in zip(got, by_numpy(*arrays)):
        np.testing.assert_allclose(g, wanted, rtol=1e-13)
    eps = 1e-6
    for i, g in enumerate(got[5:]):
        ends = []
        for sign in (1, -1):
            moved = [x + sign * eps * (i == j) for j, x in enumerate(arrays)]
            ends.append(sum(e * k for k, e in enumerate(by_numpy(*moved), 1)))
        np.testing.assert_allclose(g, (ends[0] - ends[1]) / (2 * eps), rtol=1e-6, atol=1e-7)


# --- recurrent networks ---------------------------------------------------------------------------


def network(kind: str, steps: int = 6, batch: int = 32, hidden: int = 32) -> Program:
    x = sg.input("x", (steps, batch, 10))
    layer = {"gru": sg.nn.GRU, "lstm": sg.nn.LSTM, "rnn": sg.nn.RNN}[kind](10, hidden)
    last = layer(x)[0][-1]
    return program_of([x], [*sg.gradients(sg.mean(last * last), layer.parameters())])


def test_few_kernels_in_an_iteration() -> None:
    """A product and a sweep each way, which also copies what the product leaves for the reverse. An
    LSTM has a copy of its own."""
    forward, backward = map(names, loops(network("gru").items))
    assert [n.split("_")[0] for n in forward] == ["matmul", "add"]
    assert len(backward) == 2 and backward[1].startswith("matmul")
    forward, backward = map(names, loops(network("lstm").items))
    assert len(forward) == 2 and len(backward) == 3
    assert backward[1] == "matmul" and backward[2].startswith("copy")


def test_a_part_is_kept_and_not_the_whole() -> None:
    """Of a GRU's product of three gates the reverse reads one."""
    program = network("gru", hidden=40)
    (forward, _) = loops(program.items)
    written = {
        program.base(b)
        for s in steps_of(forward.items)
        for b, p in zip(s.buffers, s.kernel.buffers)
        if p.mode != "in" and not program.buffers[b].per_thread
    }
    gates = [b for b in written if program.buffers[b].size == 6 * 32 * 120]
    assert not gates
    assert sum(program.buffers[b].size == 6 * 32 * 40 for b in written) == 4  # r, z, n and h's part


def test_parts_that_are_all_of_a_whole() -> None:
    """Then the whole is kept; and what overlaps or is read twice is right."""
    h, w = sg.input("h", (4, 6), "float64"), sg.input("w", (6, 6), "float64")
    for cuts in ([(0, 6)], [(0, 3), (3, 6)], [(0, 2)], [(0, 4), (2, 6)], [(1, 3), (1, 3)]):

        def body(i: Any, x: Any, cuts: Any = cuts) -> Any:
            y = x @ w
            found = x * 0.1
            for low, high in cuts:
                part = y[:, low:high]
                found = found + sg.sum(sg.sin(part) * part, axis=1, keepdims=True)
            return found

        run = sg.compile([h, w], sg.gradients(sg.sum(sg.fori_loop(0, 3, body, h) ** 2), [h, w]))
        arrays = [random((4, 6), 1, "float64"), random((6, 6), 2, "float64") / 3]

        def loss(x: Array, m: Array, cuts: Any = cuts) -> Any:
            for _ in range(3):
                y, found = x @ m, x * 0.1
                for low, high in cuts:
                    part = y[:, low:high]
                    found = found + np.sum(np.sin(part) * part, axis=1, keepdims=True)
                x = found
            return np.sum(x**2)

        for k, g in enumerate(run(*arrays)):
            for at in itertools.islice(np.ndindex(*g.shape), 0, None, 5):
                ends = []
                for eps in (1e-6, -1e-6):
                    moved = [a.copy() for a in arrays]
                    moved[k][at] += eps
                    ends.append(loss(*moved))
                np.testing.assert_allclose(g[at], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


# --- results in several places, siblings ----------------------------------------------------------


def test_a_result_is_stored_in_all_concats_that_want_it() -> None:
    x = sg.input("x", (5, 7))
    a, b = sg.sin(x), sg.cos(x)
    outputs = [
        sg.concat([a, b], axis=1), sg.concat([b, a, x], axis=0), a, sg.concat([a, a], axis=1)
    ]  # fmt: skip
    program = program_of([x], outputs)
    copies = [s for s in program.steps if s.kernel.name.startswith("copy")]
    assert len(copies) == 1  # of x
    v = random((5, 7), 1)
    s, c = sg.compile([x], [a, b])(v)
    got = sg.compile([x], outputs)(v)
    wanted = (np.hstack([s, c]), np.vstack([c, s, v]), s, np.hstack([s, s]))
    for g, w in zip(got, wanted):
        np.testing.assert_array_equal(g, w, strict=True)


def test_siblings_in_a_loop_are_one_kernel() -> None:
    x, y = sg.input("x", (8, 16)), sg.input("y", (8, 16))

    def body(i: Any, old: Any) -> Any:
        a, b = old
        return a * 0.5 + sg.sin(b), sg.cos(b) - a

    ends = sg.fori_loop(0, 5, body, (x, y))
    (loop,) = loops(program_of([x, y], ends).items)
    assert len([n for n in names(loop) if not n.startswith("copy")]) == 1
    a, b = u, v = random((8, 16), 1, "float32"), random((8, 16), 2, "float32")
    for _ in range(5):
        a, b = (a * np.float32(0.5) + np.sin(b)), np.cos(b) - a
    got = sg.compile([x, y], ends)(u, v)
    for g, w in zip(got, (a, b)):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)
    fused = sg.compile([x, y], ends, disable=("fuse",))(u, v)
    for g, w in zip(got, fused):
        np.testing.assert_array_equal(g, w, strict=True)
