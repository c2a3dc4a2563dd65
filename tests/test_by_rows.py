"""Loops that threads share by rows: which are, that nobody waits in them, and their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen import sharing
from staticgrad.kernels.program import Item, Program, Repeat, parts
from staticgrad.kernels.verify import verify_program
from staticgrad_runtime import binding, frames, workers

from .threaded_programs import InTurn, Threaded, bits, random

STEPS = 7


@pytest.fixture(autouse=True)
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)
    monkeypatch.setattr(sharing, "LEAST_SHARED_NS", 0)


def loops(items: list[Item] | tuple[Item, ...]) -> list[Repeat]:
    found = []
    for item in items:
        if isinstance(item, Repeat):
            found.append(item)
        if not hasattr(item, "kernel"):
            found += [r for part in parts(item) for r in loops(part)]  # type: ignore[arg-type]
    return found


def compiled(inputs: list[Any], outputs: list[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs), **options).program
    verify_program(program)
    return program


def recurrent(kind: str, batch: int, hidden: int = 48, inputs: int = 10) -> Threaded:
    """A network's loss and gradients: two loops."""
    x = sg.input("x", (STEPS, batch, inputs))
    layer = {"gru": sg.nn.GRU, "lstm": sg.nn.LSTM, "rnn": sg.nn.RNN}[kind](inputs, hidden)
    ys = layer(x)[0]
    loss = sg.mean(ys * ys)
    return Threaded.of([x], [ys, loss, *sg.gradients(loss, [x, *layer.parameters()])])


@pytest.mark.parametrize("batch", [32, 45])
@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
def test_recurrent_networks(kind: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody meets inside; so one thread may go through all iterations before another begins."""
    made = recurrent(kind, batch)
    regions = loops(made.program.items)
    assert len(regions) == 2 and all(r.by_rows for r in regions)
    assert isinstance(sharing.share(made.program).barriers, int)
    assert sharing.share(made.program).barriers < 4 * STEPS
    x = random((STEPS, batch, 10), 1)
    expected = bits(made.on(1)(x))
    for n in (2, 3, 5):
        assert bits(made.on(n)(x)) == expected, n
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        pool = InTurn(order)
        monkeypatch.setattr(frames, "pool", lambda threads, pool=pool: pool)
        assert bits(made.on(3)(x)) == expected, order
        assert 0 < pool.meetings < 4 * STEPS


def test_the_bits_without_the_pass() -> None:
    x = sg.input("x", (STEPS, 40, 9))
    layer = sg.nn.GRU(9, 32)
    ys = layer(x)[0]
    outputs = [ys, *sg.gradients(sg.mean(ys * ys), layer.parameters())]
    arrays = random((STEPS, 40, 9), 3)
    found = [bits(tuple(sg.compile([x], outputs, threads=2, disable=off)(arrays)))
             for off in ((), ("by_rows",), ("prepack",), ("by_rows", "prepack"))]  # fmt: skip
    assert found.count(found[0]) == 4


W = sg.input("w", (64, 64))
STATE = (48, 64)

Body = Callable[[Any], Any]
OWN: dict[str, Body] = {
    "product": lambda h: sg.tanh(h @ W),
    "flat": lambda h: sg.sin(h) * 0.5 + h,
    "softmax of rows": lambda h: sg.softmax(h @ W, -1),
    "two products": lambda h: sg.relu(h @ W) @ W.T * 0.1,
    "within the row": lambda h: sg.flip(h, axis=1) * 0.5 + h @ W,
}
MIXED: dict[str, Body] = {
    "softmax of columns": lambda h: sg.softmax(h @ W, 0),
    "rows turned": lambda h: sg.roll(h, 1, axis=0) * 0.5 + sg.tanh(h @ W),
    "rows reversed": lambda h: sg.tanh(sg.flip(h, axis=0) @ W),
    "all rows": lambda h: sg.tanh(h @ W) - sg.mean(h),
    "gram": lambda h: sg.tanh((h @ sg.permute_dims(h, (1, 0))) @ h),
    "sums over rows": lambda h: sg.tanh(h @ W) + sg.cumulative_sum(h, axis=0) * 0.01,
}


@pytest.mark.parametrize("name", [*OWN, *MIXED])
def test_which_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = OWN.get(name) or MIXED[name]
    h = sg.input("h", STATE)
    inputs = [h] if name == "flat" else [h, W]
    if name == "gram":
        inputs = [h]
    end = sg.fori_loop(0, STEPS, lambda i, x: body(x), h)
    made = Threaded.of(inputs, [end])
    (region,) = loops(made.program.items)
    assert region.by_rows == (name in OWN)
    arrays = [random(STATE, 1), random((64, 64), 2) / 8][: len(inputs)]
    expected = bits(made.on(1)(*arrays))
    for order in ((0, 1), (1, 0), (2, 0, 1)):
        pool = InTurn(order)
        monkeypatch.setattr(frames, "pool", lambda threads, pool=pool: pool)
        assert bits(made.on(len(order))(*arrays)) == expected, order


def test_stacks_are_written_by_rows_too() -> None:
    h, xs = sg.input("h", STATE), sg.input("xs", (STEPS, *STATE))

    def body(c: Any, x: Any) -> Any:
        c = sg.tanh(c @ W + x)
        return c, sg.concat([c, x], axis=1)

    (region,) = loops(compiled([h, xs, W], list(sg.scan(body, h, xs))).items)
    assert region.by_rows

    def whole(c: Any, x: Any) -> Any:  # reads the row of the stack beside its own
        c = sg.tanh(c @ W + x)
        return c, sg.flip(c, axis=0)

    (region,) = loops(compiled([h, xs, W], list(sg.scan(whole, h, xs))).items)
    assert not region.by_rows


def test_few_rows_or_a_large_matrix() -> None:
    """Then columns are shared, and threads wait."""
    few, some = sg.input("few", (16, 64)), sg.input("some", (32, 1024))
    large = sg.input("large", (1024, 1024))
    end = sg.fori_loop(0, STEPS, lambda i, x: sg.tanh(x @ W), few)
    assert not loops(compiled([few, W], [end]).items)[0].by_rows
    end = sg.fori_loop(0, STEPS, lambda i, x: sg.tanh(x @ large), some)
    assert not loops(compiled([some, large], [end]).items)[0].by_rows


def test_an_inner_loop() -> None:
    h = sg.input("h", STATE)

    def outer(i: Any, x: Any) -> Any:
        x = sg.fori_loop(0, STEPS, lambda j, y: sg.tanh(y @ W), x)
        return x - sg.mean(x)

    made = Threaded.of([h, W], [sg.fori_loop(0, 3, outer, h)])
    assert [r.by_rows for r in loops(made.program.items)] == [False, True]
    arrays = random(STATE, 1), random((64, 64), 2) / 8
    assert bits(made.on(3)(*arrays)) == bits(made.on(1)(*arrays))
    assert np.isfinite(made.on(2)(*arrays)[0]).all()
