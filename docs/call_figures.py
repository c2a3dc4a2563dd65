"""Makes the figures of docs/fast-calls.md: `python docs/call_figures.py`.

Each row is a call of a very small program: the best of some repetitions of many calls in a row, on
one thread. The part of the page between `<!-- generated: calls -->` and `<!-- end -->` is written
anew, the rest is written by hand; `--print` only prints the table. The machine should have nothing
else to do.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("STATICGRAD_NUM_THREADS", "1")

import numpy as np
import staticgrad as sg

PAGE = Path(__file__).resolve().parent / "fast-calls.md"
_PART = re.compile(r"(<!-- generated: calls -->\n).*?(<!-- end -->)", re.DOTALL)
REPETITIONS, SECONDS = 9, 0.02
Case = tuple[str, Callable[[], Any]]


def program_cases() -> list[Case]:
    """Calls of what `sg.compile` gave, x * 2 + 1."""
    x = sg.input("x", ("N",))
    program, two = sg.compile([x], x * 2.0 + 1.0), sg.compile([x], [x * 2.0, x + 1.0])
    scalar = sg.input("s", ())
    one = sg.compile([scalar], scalar * 2.0 + 1.0)
    a, out = np.ones(4, "float32"), np.empty(4, "float32")
    pair, many = itertools.cycle((a, np.ones(5, "float32"))), np.ones((64, 4), "float32")
    sizes = itertools.cycle([np.ones(n, "float32") for n in range(1, 65)])
    strided, number = np.ones(8, "float32")[::2], np.float32(1)
    w = sg.parameter(np.zeros(4, "float32"))
    step = sg.compile([x], sg.sum(w * x), updates=[(w, w + x)])
    checked = sg.compile([x], x * 2.0 + 1.0, check="nan")
    return [
        ("`program(a)`", lambda: program(a)),
        ("`program(a, out=y)`", lambda: program(a, out=out)),
        ("two sizes in turn", lambda: program(next(pair))),
        ("64 sizes in turn", lambda: program(next(sizes))),
        ("two results", lambda: two(a)),
        ("a parameter read and updated", lambda: step(a)),
        ('with `check="nan"`', lambda: checked(a)),
        ("by name, `program(x=a)`", lambda: program(x=a)),
        ("a row of an array, `program(m[3])`", lambda: program(many[3])),
        ("every other element, `program(b[::2])`", lambda: program(strided)),
        ("a list, `program([1, 2, 3, 4])`", lambda: program([1, 2, 3, 4])),
        ("a NumPy number for a 0-d input", lambda: one(number)),
        ("a Python number for a 0-d input", lambda: one(1.0)),
    ]


def function_cases() -> list[Case]:
    """Calls of functions of arrays, and of what else computes x * 2 + 1."""
    a = np.ones(4, "float32")
    f = sg.jit(lambda x: x * 2.0 + 1.0)
    scaled = sg.jit(lambda x, rate: x * rate + 1.0)
    tree = sg.jit(lambda p: {"y": p["w"] * 2.0 + p["b"]})
    weights = {"w": a, "b": np.float32(1)}
    layer = sg.nn.Linear(4, 4)
    model = sg.jit(lambda x: layer(x))
    slope = sg.jit(sg.value_and_grad(lambda x: sg.sum(x * 2.0 + 1.0)))
    pair = itertools.cycle((a, np.ones(5, "float32")))
    x = sg.input("x", (4,))
    y, session, t = x * 2.0 + 1.0, sg.Session(), sg.eager.tensor(a)
    rows = a[None]
    return [
        ("`sg.jit(f)(a)`", lambda: f(a)),
        ("two sizes in turn, `f(a)`", lambda: f(next(pair))),
        ("with a Python number, `f(a, 0.1)`", lambda: scaled(a, 0.1)),
        ('a dict in and out, `f({"w": .., "b": ..})`', lambda: tree(weights)),
        ("a function that reads a layer", lambda: model(rows)),
        ("`sg.jit(sg.value_and_grad(f))(a)`", lambda: slope(a)),
        ("`sg.Session().run(y, {x: a})`", lambda: session.run(y, {x: a})),
        ("`t * 2 + 1` in the dynamic mode", lambda: t * 2.0 + 1.0),
        ("NumPy's `a * 2 + 1`", lambda: a * 2.0 + 1.0),
    ]


def nanoseconds(call: Callable[[], Any]) -> float:
    """The best of the repetitions, less the `lambda` around the call."""
    for _ in range(200):
        call()
    times = []
    for measured in (call, lambda: None):
        timer = timeit.Timer(measured)
        count = max(1, int(SECONDS / max(timer.timeit(200) / 200, 1e-9)))
        times.append(min(timer.repeat(REPETITIONS, count)) / count)
    return 1e9 * (times[0] - times[1])


def shown(ns: float) -> str:
    return f"{ns:.0f} ns" if ns < 995 else f"{ns / 1e3:.3g} µs"


def table() -> str:
    rows = []
    for head, cases in (("a program", program_cases()), ("a function", function_cases())):
        rows += [f"| a call of {head} |  |"] if not rows else [f"| **a call of {head}** |  |"]
        rows += ["| --- | ---: |"] if len(rows) == 1 else []
        rows += [f"| {name} | {shown(nanoseconds(call))} |" for name, call in cases]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    found = table()
    if parser.parse_args().print:
        print(found)
        return
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_PART.sub(lambda m: f"{m[1]}{found}\n{m[2]}", page), encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
