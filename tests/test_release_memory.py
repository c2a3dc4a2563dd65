"""`sg.release_memory` frees the temporaries of programs that are not running, and of no others."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad_runtime.state import StateCell

from .test_entry import natively_bound, stuck_call


def step() -> Any:
    """A program with temporaries and state: w goes down the gradient of a sum of exponentials."""
    x = sg.input("x", ("N", 64))
    w = sg.parameter(np.full((64, 64), 0.01, np.float32))
    loss = sg.exp(sg.tanh(x @ w) @ w).sum()
    return sg.compile([x], loss, updates=[(w, w - 1e-9 * sg.gradients(loss, w))])


def arena_bytes(program: Any) -> int:
    return sum(context.arena_bytes for context in program._contexts)


def batch(size: int) -> np.ndarray:
    return np.linspace(-1, 1, size * 64, dtype=np.float32).reshape(size, 64)


@pytest.mark.parametrize("entry", ["native", "portable"])
def test_the_next_call_makes_its_arena_anew(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATICGRAD_ENTRY", entry)
    program, undisturbed = step(), step()
    sizes = (2048, 2048, 64, 64, 2048)
    expected = [undisturbed(batch(n)) for n in sizes]
    for n, wanted in zip(sizes, expected):
        assert np.isfinite(wanted) and program(batch(n)) == wanted
        assert arena_bytes(program) >= program.peak_bytes(N=n) > 1 << 12
        sg.release_memory()
        assert arena_bytes(program) <= 64 * len(program._contexts)
    program(batch(64))
    assert arena_bytes(program) < program.peak_bytes(N=2048)


def test_later_calls_take_the_native_entry_again() -> None:
    program = step()
    program(batch(8))
    published = program._published
    sg.release_memory()
    assert program._published is None
    program(batch(8))
    assert (program._published is None) == (published is None)
    assert len(program._contexts) == 1


def test_a_running_call_keeps_its_context() -> None:
    executable = natively_bound(StateCell(0.0))
    if not executable.is_native:
        pytest.skip("the portable path publishes no context")
    with stuck_call(executable, 3.0) as results:
        running = executable._published
        sg.release_memory()
        assert executable._retired == [running] and running.binding is not None
    assert results == [4.0]  # 1 of the first call, and 3
    executable(np.array([1.0]))
    assert executable._contexts == [running]


def test_threads_may_call_meanwhile() -> None:
    program = sg.compile([x := sg.input("x", ("N", 64))], sg.exp(sg.tanh(x @ x.T) @ x).sum())
    expected = {n: program(batch(n)) for n in (3, 64, 200)}
    wrong: list[int] = []
    done = threading.Event()

    def work() -> None:
        for _ in range(60):
            wrong.extend(n for n, wanted in expected.items() if program(batch(n)) != wanted)

    def release() -> None:
        while not done.is_set():
            sg.release_memory()

    releasing = threading.Thread(target=release)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in (*threads, releasing):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    releasing.join()
    assert not wrong
