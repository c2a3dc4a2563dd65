"""A batch of unknown size costs no more than a declared one: planned memory, and loops that threads
share by rows where there turn out to be enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen import sharing
from staticgrad.ir.dim import DimLike, substitute
from staticgrad_runtime import binding, frames, workers

from .test_by_rows import STEPS, loops
from .threaded_programs import InTurn, Threaded, bits, random

F = sg.nn.functional
LEAST = 32  # rows that are shared by rows


@pytest.fixture
def _threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)
    monkeypatch.setattr(sharing, "LEAST_SHARED_NS", 0)


# --- memory ---------------------------------------------------------------------------------------


def mlp(batch: DimLike | str) -> Any:
    """A training step."""
    x, y = sg.input("x", (batch, 50)), sg.input("y", (batch,), "int64")
    model = sg.nn.Sequential(sg.nn.Linear(50, 130), sg.nn.ReLU(), sg.nn.Linear(130, 10))
    loss = F.cross_entropy(model(x), y)
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1)
    return sg.compile([x, y], loss, updates=optimizer.minimize(loss), threads=2)


def weight_gradient(batch: DimLike | str) -> Any:
    x, ct = sg.input("x", (batch, 8)), sg.input("ct", (batch, 3))
    return sg.compile([x, ct], x.T @ ct, threads=2)


def few_columns(batch: DimLike | str) -> Any:
    x, w = sg.input("x", (batch, 8)), sg.input("w", (8, 3))
    return sg.compile([x, w], sg.tanh(x @ w), threads=2)


def gru(batch: DimLike | str) -> Any:
    """Its reverse keeps a third of a product of each step, not all. Packed weights aside: up to
    three rows are multiplied with the weights themselves, and an unknown number may be those."""
    x = sg.input("x", (STEPS, batch, 24))
    layer = sg.nn.GRU(24, 64)
    ys = layer(x)[0]
    loss = sg.mean(ys * ys)
    outputs = [loss, *sg.gradients(loss, layer.parameters())]
    return sg.compile([x], outputs, threads=2, disable=("prepack",))


# Steps are ordered for a batch of 128, whatever it is.
SIZES = [
    (mlp, (1, 13, 128)), (weight_gradient, (1, 64, 1100)), (few_columns, (2, 50, 1100)),
    (gru, (32, 100)),
]  # fmt: skip


@pytest.mark.parametrize("make, sizes", SIZES)
def test_the_plan_is_that_of_the_size(make: Any, sizes: tuple[int, ...]) -> None:
    symbolic = make("N")
    for n in sizes:
        expected = make(n).bind({}).plan
        found = symbolic.bind({"N": n}).plan
        # Numbers that follow from a declared batch are constants, else temporaries of 64 bytes.
        assert abs(found.lower_bound_bytes - expected.lower_bound_bytes) <= 256, n


def test_products_of_few_rows_need_little() -> None:
    """583,424 bytes a thread were planned for [N, 8] @ [8, 3]."""
    program = few_columns("N")
    assert program.bind({"N": 300}).plan.peak_bytes < 1024
    assert program.bind({"N": 100_000}).plan.peak_bytes < 2 * 62_000


# --- loops by rows --------------------------------------------------------------------------------


def recurrent(layer: Any, batch: DimLike | str) -> Threaded:
    """The loss and the gradients: two loops."""
    x = sg.input("x", (STEPS, batch, 10))
    ys = layer(x)[0]
    loss = sg.mean(ys * ys)
    return Threaded.of([x], [ys, loss, *sg.gradients(loss, [x, *layer.parameters()])])


@pytest.mark.usefixtures("_threads_whatever_the_size")
@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
def test_recurrent_networks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody meets in a loop over many rows; over few, threads share columns and do."""
    layer = {"gru": sg.nn.GRU, "lstm": sg.nn.LSTM, "rnn": sg.nn.RNN}[kind](10, 48)
    made = recurrent(layer, "N")
    barriers = sharing.share(made.program).barriers
    met = {}
    for n in (1, 5, LEAST - 1, LEAST, 45):
        x = random((STEPS, n, 10), n)
        expected = bits(made.on(1)(x))
        assert expected == bits(recurrent(layer, n).on(1)(x))
        for threads in (2, 3):
            assert bits(made.on(threads)(x)) == expected, (n, threads)
        pools = [InTurn(order) for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0))]
        with monkeypatch.context() as patched:
            for pool in pools:
                patched.setattr(frames, "pool", lambda threads, pool=pool: pool)
                assert bits(made.on(3)(x)) == expected, n
        met[n] = pools[0].meetings
        by_rows = [substitute(r.by_rows, {"N": n}) for r in loops(made.program.items)]
        assert by_rows == [int(n >= LEAST)] * 2
        counted = substitute(barriers, {"N": n})
        assert isinstance(counted, int) and (counted < 4 * STEPS) == (n >= LEAST)
    assert met[LEAST] == met[45] < 4 * STEPS < met[LEAST - 1] == met[1]


@pytest.mark.usefixtures("_threads_whatever_the_size")
def test_flat_loops_and_loops_within_rows() -> None:
    h, w = sg.input("h", ("N", 24)), sg.input("w", (24, 24))
    flat = sg.fori_loop(0, STEPS, lambda i, x: sg.sin(x) * 0.5 + x, h)
    own = sg.fori_loop(0, STEPS, lambda i, x: sg.softmax(x @ w, -1), h)
    mixed = sg.fori_loop(0, STEPS, lambda i, x: sg.tanh(x @ w) - sg.mean(x), h)
    made = Threaded.of([h, w], [flat, own, mixed])
    found = [r.by_rows for r in loops(made.program.items)]
    assert [substitute(f, {"N": 5}) for f in found] == [0, 0, 0]
    assert [substitute(f, {"N": 6}) for f in found] == [1, 0, 0]  # 144 elements
    assert [substitute(f, {"N": 32}) for f in found] == [1, 1, 0]
    for n in (0, 1, 6, 33):
        arrays = random((n, 24), 1), random((24, 24), 2) / 5
        expected = bits(made.on(1)(*arrays))
        assert bits(made.on(2)(*arrays)) == expected == bits(made.on(3)(*arrays))


def test_an_interrupt_is_asked_for_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of unknown cost asks now and then; who meets for that must not depend on the mode."""
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    h, w = sg.input("h", ("N", 24)), sg.input("w", (24, 24))
    steps = sg.input("steps", ("T",))
    end = sg.scan(lambda x, s: (sg.tanh(x @ w) + s, s), h, steps)[0]
    program = sg.compile([h, w, steps], end, threads=2, cache=False)
    once = sg.compile([h, w, steps], end, threads=1, cache=False)
    for n in (4, 40):
        arrays = random((n, 24), 1), random((24, 24), 2) / 5, random(3000, 3)
        assert bits(program(*arrays)) == bits(once(*arrays))
        assert np.isfinite(program(*arrays)).all()
    (region,) = loops(compile_stages(sg.Graph([h, w, steps], [end])).program.items)
    assert substitute(region.by_rows, {"N": 40}) == 1
