"""What a fork waits for, so that a child can compile while threads of its parent do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import staticgrad as sg
from llvmlite.binding import ffi
from staticgrad.codegen.assemble import Crew
from staticgrad.codegen.target import host_target
from staticgrad_runtime import forks
from staticgrad_runtime.forks import ForkSafeLock, no_fork

from .forked import in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


def compiles() -> bool:
    x = sg.input("x", (3, "N"))
    run = sg.compile([x], sg.tanh(x) * float(os.getpid()), cache=False)
    return bool(run(np.zeros((3, 2), "float32")).shape == (3, 2))


def until_a_fork_waits() -> None:
    while not forks._forking:
        time.sleep(0.001)


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Another thread that does `work`, from when it sets the event on."""
    begun = threading.Event()
    thread = threading.Thread(target=work, args=(begun,))
    thread.start()
    assert begun.wait(60)
    yield
    thread.join(60)
    assert not thread.is_alive()


_IMPORTING = """
import os, sys, threading, numpy as np
from tests.forked import in_child
from tests.test_forks import compiles, until_a_fork_waits
begun, go = threading.Event(), threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "staticgrad.passes.lowering.lower" and not begun.is_set():
            begun.set()
            go.wait(60)
sys.meta_path.insert(0, Slow())
def let_go():
    until_a_fork_waits()
    go.set()
threads = [threading.Thread(target=work) for work in (compiles, let_go)]
threads[0].start()
begun.wait()
threads[1].start()
assert in_child(compiles) == 0
for thread in threads:
    thread.join()
"""


def test_a_fork_waits_for_a_first_compilation() -> None:
    """Its imports are under way: the child would wait for the lock of one for good."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _IMPORTING], cwd=Path(__file__).parents[1],
        capture_output=True, timeout=120, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_fork_waits_for_a_compilations_helpers() -> None:
    """Those as well that begin while it waits."""
    done: list[int] = []

    def work(begun: threading.Event) -> None:
        with no_fork():
            begun.set()
            until_a_fork_waits()
            crew = Crew(host_target(), threads=2)
            crew.aside(lambda: done.append(threading.get_ident()))
            while not done:
                time.sleep(0.001)
            crew.rest()

    with beside(work):
        assert in_child(lambda: len(done) == 1 and not forks._inside and compiles()) == 0


def test_a_fork_goes_before_what_begins_later() -> None:
    """Or threads that compile in turns would keep it waiting."""
    order: list[str] = []

    def first(begun: threading.Event) -> None:
        with no_fork():
            begun.set()
            until_a_fork_waits()
            later.start()
            time.sleep(0.05)
            with no_fork():  # nested: it must not wait
                order.append("first")

    def second() -> None:
        with no_fork():
            order.append("second")

    later = threading.Thread(target=second)
    with beside(first):
        assert in_child(lambda: order == ["first"]) == 0
    later.join()
    assert order == ["first", "second"]
    assert (forks._forking, forks._inside) == (0, set())


def test_a_fork_from_within_a_compilation_does_not_wait_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a signal's handler: another thread may wait for what this one holds."""
    monkeypatch.setattr(forks, "PATIENCE_S", 0.05)
    held = threading.Lock()

    def work(begun: threading.Event) -> None:
        with no_fork():
            begun.set()
            with held:
                pass

    me = {threading.get_ident()}
    held.acquire()
    with beside(work):
        with no_fork():
            code = in_child(lambda: forks._inside == me and compiles())
        held.release()
    assert code == 0


def test_a_fork_waits_for_the_lock_of_llvmlite() -> None:
    """A finaliser takes it anywhere."""

    def work(begun: threading.Event) -> None:
        with ffi.lib._lock:
            begun.set()
            until_a_fork_waits()
            time.sleep(0.05)

    with beside(work):
        assert in_child(compiles) == 0


def test_a_function_is_traced_in_the_child_of_a_trace() -> None:
    begun, go, parent = threading.Event(), threading.Event(), os.getpid()

    @sg.jit
    def twice(x: sg.Tensor) -> sg.Tensor:
        if os.getpid() == parent:
            begun.set()
            go.wait(60)
        return x + x

    thread = threading.Thread(target=twice, args=(np.ones(3, "float32"),))
    thread.start()
    assert begun.wait(60)
    code = in_child(lambda: list(twice(np.ones(2, "float32"))) == [2, 2])
    go.set()
    thread.join()
    assert code == 0
    assert list(twice(np.ones(3, "float32"))) == [2, 2, 2]


def test_a_lock_of_the_thread_that_forks_stays_its_own() -> None:
    lock, others = ForkSafeLock(), ForkSafeLock()
    inside: list[str] = []

    def enter() -> None:
        with lock:
            inside.append("entered")

    def work() -> bool:
        with others:
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(0.05)
        kept = not inside
        lock.__exit__()
        thread.join(60)
        return kept and inside == ["entered"]

    go = threading.Event()

    def hold(begun: threading.Event) -> None:
        with others:
            begun.set()
            go.wait(60)

    with beside(hold):
        with lock:
            code = in_child(work)
        go.set()
    assert code == 0
