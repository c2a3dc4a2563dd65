"""Ctrl-C in a long native run: it ends, nothing has changed, and Python's handler is called."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAD = """
import os, signal, threading
import numpy as np
import staticgrad as sg
interrupt = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))  # of the run
w = sg.parameter(np.float64(1.0), "w")
"""

ENDLESS = """
x = sg.input("x", (), "float64")
y = sg.while_loop(lambda v: v > 0, lambda v: v * 1.0, x)
run, argument = sg.compile([x], [y], updates=[(w, y)]), 2.0
"""
LONG = """
x = sg.input("x", (), "float64")
y = sg.fori_loop(0, 10**12, lambda i, v: v * 0.5 + 1.0, x)
run, argument = sg.compile([x], [y], updates=[(w, y)]), 2.0
"""
NESTED = """
x = sg.input("x", (), "float64")
inner = lambda i, v: sg.fori_loop(0, 1000, lambda j, u: u * 0.5 + 1.0, v)
y = sg.fori_loop(0, 10**9, inner, x)
run, argument = sg.compile([x], [y], updates=[(w, y)]), 2.0
"""
SHARED = """
x = sg.input("x", (200_000,))
y = sg.while_loop(lambda v: v[0] > 0, lambda v: sg.sin(v) * 0 + v, x)
run = sg.compile([x], [y], updates=[(w, y[0].astype("float64"))], threads=2)
argument = np.ones(200_000, "float32") * 2
"""
BY_ROWS = """
x = sg.input("x", (200_000,))
y = sg.fori_loop(0, 10**9, lambda i, v: sg.sin(v) * 0 + v, x)
run = sg.compile([x], [y], updates=[(w, y[0].astype("float64"))], threads=2)
argument = np.ones(200_000, "float32") * 2
"""


def _run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", [ENDLESS, LONG, NESTED, SHARED, BY_ROWS])
def test_an_interrupt_ends_a_long_run_and_changes_nothing(program: str) -> None:
    tail = """
interrupt.start()
try:
    run(argument)
except KeyboardInterrupt:
    print("interrupted", w.numpy())
"""
    assert _run(_HEAD + program + tail).split() == ["interrupted", "1.0"]


def test_a_handler_of_the_users_own_is_called() -> None:
    tail = """
def handler(number, frame):
    raise RuntimeError("mine")
signal.signal(signal.SIGINT, handler)
interrupt.start()
try:
    run(argument)
except RuntimeError as error:
    print(error, w.numpy())
"""
    assert _run(_HEAD + ENDLESS + tail).split() == ["mine", "1.0"]
