"""Attacks on the key of a declared graph: pairs of programs that differ in one thing that is easily
left out, all through one warm cache; sources that are not what runs; processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import graph_key as keys
from staticgrad.codegen.target import host_target

X = np.random.default_rng(3).standard_normal((4, 6)).astype("float32")
Made = dict[str, Any]  # inputs, outputs, updates, and state to be looked at


pytestmark = pytest.mark.usefixtures("sources_as_imported")


def declared(outputs: Any, inputs: Any = (), updates: Any = None, state: Any = ()) -> Made:
    return {"inputs": list(inputs), "outputs": outputs, "updates": updates, "state": list(state)}


def with_x(body: Callable[[Any], Any]) -> Made:
    x = sg.input("x", (4, 6))
    return declared([body(x)], [x])


# --- pairs ----------------------------------------------------------------------------------------


def nan(bits: int) -> Any:
    return np.array([bits], "uint32").view("float32")


def payloads_of_nan(second: bool) -> Made:
    return declared([sg.constant(nan(0x7FC00001 + second)) * 1.0])


def zeros_of_either_sign(second: bool) -> Made:
    return with_x(lambda x: sg.copysign(x, sg.constant(np.float32(-0.0 if second else 0.0))))


def constants_of_like_bytes(second: bool) -> Made:
    held = np.array([1, 2], "int32")
    return declared([sg.constant(held.view("float32") if second else held) + 0])


def constants_of_other_shapes(second: bool) -> Made:
    held = np.arange(24, dtype="float32")
    return with_x(lambda x: x + sg.constant(held.reshape(4, 6) if second else held[:6]))


def layouts_of_a_constant(second: bool) -> Made:
    held = np.arange(36, dtype="float32").reshape(6, 6)
    return with_x(lambda x: x @ sg.constant(held.T if second else held))


def one_bit_of_a_long_constant(second: bool) -> Made:
    held = np.arange(5000, dtype="float32")
    held.view("uint32")[4321] ^= second
    return declared([sg.constant(held) * 2.0])


def values_that_a_derivative_captures(second: bool) -> Made:
    factor = 3.0 if second else 2.0

    @sg.custom_vjp
    def double(x: Any) -> Any:
        return x * 2.0

    double.defvjp(lambda x: (double(x), ()), lambda saved, ct: (ct * factor,))

    def body(x: Any) -> Any:
        return sg.gradients(sg.sum(double(x)), x)

    return with_x(body)


def seeds_of_a_key(second: bool) -> Made:
    key = sg.constant(np.array([7, second], "uint64"))
    return declared([sg.random.normal((8,), key=key)])


def sites_of_the_generator(second: bool) -> Made:
    sg.random.seed(0)
    if second:
        sg.random.uniform((1,))
    return declared([sg.random.uniform((8,))])


def rates_of_dropout(second: bool) -> Made:
    sg.random.seed(0)
    x = sg.input("x", (4, 6))
    w = sg.parameter(np.ones(6, "float32"))
    y = sg.nn.functional.dropout(x * w, 0.25 if second else 0.5)
    return declared([y], [x], [(w, w * 0.5)], [w])


def bodies_of_a_scan(second: bool) -> Made:
    def step(carry: Any, row: Any) -> Any:
        carry = carry * (0.5 if second else 0.25) + row
        return carry, carry

    return with_x(lambda x: sg.scan(step, sg.zeros((6,)), x)[1])


def branches_of_a_choice(second: bool) -> Made:
    def body(x: Any) -> Any:
        branches: list[Any] = [lambda v: v + 1.0, lambda v: v * 2.0]
        if second:
            branches.reverse()
        return sg.cond(sg.sum(x) > 0, *branches, x)

    return with_x(body)


def conditions_of_a_loop(second: bool) -> Made:
    def body(x: Any) -> Any:
        limit = 9.0 if second else 5.0
        return sg.while_loop(lambda v: sg.max(v) < limit, lambda v: v * 1.5, x)

    return with_x(body)


def loops_in_loops(second: bool) -> Made:
    def body(x: Any) -> Any:
        def outer(i: Any, v: Any) -> Any:
            return sg.fori_loop(0, 3 + second, lambda j, u: u * 1.25, v) + 1.0

        return sg.fori_loop(0, 2, outer, x)

    return with_x(body)


def mapped_axes(second: bool) -> Made:
    sums = sg.vmap(sg.cumulative_sum, in_axes=int(second))
    return with_x(lambda x: sums(x[:, :4]))


def sizes_that_are_tied(second: bool) -> Made:
    x, y = sg.input("x", ("N", 6)), sg.input("y", ("N" if second else "M", 6))
    return declared([sg.sum(x), sg.sum(y)], [x, y])


def which_of_two_states_is_written(second: bool) -> Made:
    a, b = (sg.parameter(np.full(3, k, "float32"), name="p") for k in (1, 2))
    return declared([a * 2.0 + b], (), [(b if second else a, a + b)], [a, b])


def one_state_or_two(second: bool) -> Made:
    a = sg.parameter(np.ones(3, "float32"), name="p")
    b = sg.parameter(np.ones(3, "float32"), name="p") if second else a
    return declared([a * 2.0, b * 3.0], (), [(a, a + 1.0)], [a, b])


PAIRS = [
    payloads_of_nan, zeros_of_either_sign, constants_of_like_bytes, constants_of_other_shapes,
    layouts_of_a_constant, one_bit_of_a_long_constant, values_that_a_derivative_captures,
    seeds_of_a_key, sites_of_the_generator, rates_of_dropout, bodies_of_a_scan,
    branches_of_a_choice, conditions_of_a_loop, loops_in_loops, mapped_axes, sizes_that_are_tied,
    which_of_two_states_is_written, one_state_or_two,
]  # fmt: skip


def digest(made: Made) -> str:
    graph = sg.Graph(made["inputs"], made["outputs"], made["updates"])
    key = keys.graph_key(graph, None, (), host_target())
    assert key is not None
    return key.digest


def bits(made: Made, **options: Any) -> list[bytes]:
    """What two calls return and leave behind."""
    step = sg.compile(made["inputs"], made["outputs"], made["updates"], **options)
    found = []
    for _ in range(2):
        found += [np.asarray(a).tobytes() for a in step(*[X for _ in made["inputs"]])]
    return found + [p.numpy().tobytes() for p in made["state"]]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda f: f.__name__)
def test_programs_that_differ_have_keys_that_differ(pair: Callable[[bool], Made]) -> None:
    assert digest(pair(False)) == digest(pair(False)) != digest(pair(True)) == digest(pair(True))


def test_one_warm_cache_serves_each_its_own(graph_cache: Path) -> None:
    both = [(pair, second) for pair in PAIRS for second in (False, True)]
    expected = [bits(pair(second), cache=False) for pair, second in both]
    for turn in range(2):
        for (pair, second), wanted in zip(both, expected):
            assert bits(pair(second)) == wanted, (turn, pair.__name__, second)


def test_what_is_found_has_the_values_that_state_has_now(graph_cache: Path) -> None:
    def made(start: float) -> Made:
        w = sg.parameter(np.full(6, start, "float32"), name="w")
        x = sg.input("x", (4, 6))
        return declared([x * w], [x], [(w, w * 0.5)], [w])

    assert digest(made(1.0)) == digest(made(4.0))
    for start in (1.0, 4.0, -0.0):
        assert bits(made(start)) == bits(made(start), cache=False)


# --- sources --------------------------------------------------------------------------------------


def package(root: Path, *contents: str) -> Path:
    for i, text in enumerate(contents):
        path = root / f"part{i}.py"
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18 + i))
    return root


def test_sources_newer_than_the_process_have_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited since they were imported: what runs is not what a later process would run."""
    root = package(tmp_path, "x = 1\n", "y = 1\n")
    monkeypatch.setattr(keys, "IMPORTED_NS", time.time_ns() - 10**9)
    assert keys._versions_of(root) is not None
    (root / "part1.py").write_text("y = 2\n")
    assert keys._versions_of(root) is None


def test_contents_count_where_a_packager_has_set_all_times(tmp_path: Path) -> None:
    def version(text: str, *, same_times: bool) -> Any:
        root = package(tmp_path, "x = 1\n", text)
        if same_times:
            for path in root.iterdir():
                os.utime(path, ns=(10**18, 10**18))
        return keys._versions_of(root)

    first, edited = (version(f"y = {k}\n", same_times=True) for k in (1, 2))
    assert first is not None and first != edited
    assert version("y = 1\n", same_times=True) == first
    first, edited = (version(f"y = {k}\n", same_times=False) for k in (1, 2))
    assert first == edited  # as Python takes bytecode for its source's


def test_bytecode_alone_has_no_version(tmp_path: Path) -> None:
    (tmp_path / "part.pyc").write_bytes(b"")
    assert keys._versions_of(tmp_path) is None


# --- processes at once ----------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy as np
import staticgrad as sg

x = sg.input("x", ("N", 6))
for turn in range(2):
    for k in range(4):
        w = sg.parameter(np.full((6, 2), k, "float32"), name="w")
        step = sg.compile([x], [(x @ w) * float(k)], updates=[(w, w + 1.0)])
        (found,) = step(np.ones((3, 6), "float32"))
        assert found.tolist() == [[6.0 * k * k] * 2] * 3, (k, found)
        assert w.numpy().tolist() == [[k + 1.0] * 2] * 6
"""


def test_processes_that_write_at_once_get_what_is_theirs(graph_cache: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert not list(graph_cache.glob("*/.tmp-*"))
