"""Outputs of a megabyte live in memory that later calls use again; they stay ordinary arrays."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import staticgrad as sg
from numpy._core.multiarray import get_handler_name
from staticgrad_runtime import kept_memory
from staticgrad_runtime.layout import native_interface

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or native_interface() is None, reason="the portable path has no handler"
)


def program(size: int) -> sg.Executable:
    x = sg.input("x", (size,))
    made = sg.compile([x], x * 2.0 + 1.0)
    made(np.zeros(size, np.float32))  # the first call binds, on the checked path
    return made


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    gc.collect()
    sg.release_memory()
    assert kept_memory.kept_bytes() == 0


def test_the_next_call_gets_the_block_of_a_dead_output() -> None:
    run, x = program(1 << 20), np.arange(1 << 20, dtype=np.float32)
    y = run(x)
    assert get_handler_name(y) == "staticgrad"
    assert y.flags.owndata and y.flags.writeable and y.base is None
    # No store looks like the load that follows it, from an array of NumPy's 16 bytes into a page.
    assert address(y) % 64 == 0 and 256 <= address(y) % 4096 < 4096 - 256
    np.testing.assert_array_equal(y, x * 2 + 1)
    z = run(x + 1)
    assert address(z) != address(y)  # y lives
    np.testing.assert_array_equal(y, x * 2 + 1)
    first = address(y)
    del y
    assert kept_memory.kept_bytes() >= 4 << 20
    again = run(x + 2)
    assert address(again) == first
    assert kept_memory.kept_bytes() == 0
    np.testing.assert_array_equal(again, x * 2 + 5)
    np.testing.assert_array_equal(z, x * 2 + 3)


def test_small_outputs_have_numpys_own_memory() -> None:
    run = program(100)
    assert get_handler_name(run(np.zeros(100, np.float32))) == "default_allocator"
    assert get_handler_name(np.empty(1 << 20)) == "default_allocator"


def test_an_array_that_owns_its_data_can_be_resized() -> None:
    run, x = program(1 << 18), np.arange(1 << 18, dtype=np.float32)
    y = run(x)
    y.resize((3 << 18,), refcheck=False)
    np.testing.assert_array_equal(y[: 1 << 18], x * 2 + 1)
    np.testing.assert_array_equal(y[1 << 18 :], 0)
    y.resize((5,), refcheck=False)
    np.testing.assert_array_equal(y, [1, 3, 5, 7, 9])


def test_what_is_kept_has_a_limit() -> None:
    sizes = [(5 << 20) + (1 << 20) * i for i in range(20)]
    for size in sizes:
        run = program(size)
        del run
        x = np.zeros(size, np.float32)
        y = program(size)(x)
        del y
        assert 4 * size <= kept_memory.kept_bytes() <= kept_memory.KEPT_BYTES
    sg.release_memory()
    assert kept_memory.kept_bytes() == 0


def test_a_block_serves_outputs_that_are_a_little_smaller() -> None:
    large, small, much_smaller = program(1 << 20), program((1 << 20) - 1000), program(1 << 19)
    first = large(np.zeros(1 << 20, np.float32))
    where = address(first)
    del first
    assert address(much_smaller(np.zeros(1 << 19, np.float32))) != where
    y = small(np.ones((1 << 20) - 1000, np.float32))
    assert address(y) == where and y.size == (1 << 20) - 1000 and np.all(y == 3)


def test_threads_share_what_is_kept() -> None:
    x = np.arange(1 << 18, dtype=np.float32)
    runs = [program(1 << 18) for _ in range(4)]
    wrong: list[int] = []

    def work(k: int) -> None:
        held = []
        for i in range(50):
            held.append(runs[k](x + np.float32(i)))
            if len(held) > 3:
                held.pop(0)
            if not np.array_equal(held[-1], (x + np.float32(i)) * 2 + 1):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import os
import numpy as np
import staticgrad as sg
x = sg.input("x", (1 << 20,))
run = sg.compile([x], x + 1.0)
a = np.zeros(1 << 20, np.float32)
kept_alive = [run(a) for _ in range(3)]
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        del kept_alive[1]
        assert np.all(run(a) == 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
import builtins
builtins.outlives_everything = kept_alive
"""


def test_arrays_that_outlive_the_interpreter_and_forks() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
