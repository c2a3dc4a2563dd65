"""Modules compiled in units: every function once, the same results, shared units alike."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen.assemble import assemble
from staticgrad.codegen.split import LEAST_LINES, split
from staticgrad_runtime.errors import ArtifactError
from staticgrad_runtime.objects import pack, unpack
from staticgrad_runtime.symbols import object_symbols


def mlp(*sizes: int) -> Any:
    x, y = sg.input("x", ("N", sizes[0])), sg.input("y", ("N",), dtype="int64")
    layers: list[Any] = []
    for a, b in itertools.pairwise(sizes):
        layers += [sg.nn.Linear(a, b), sg.nn.ReLU()]
    model = sg.nn.Sequential(*layers[:-1])
    loss = sg.nn.functional.cross_entropy(model(x), y)
    optimizer = sg.optim.Adam(model.parameters(), lr=0.01)
    return sg.Graph([x, y], [loss], updates=optimizer.minimize(loss))


def defined(text: str) -> list[str]:
    return re.findall(r"(?m)^define .*?@([\w.$]+)\(", text)


def test_units_hold_every_function_once() -> None:
    text = compile_stages(mlp(20, 30, 40, 10)).text
    units = split(text, 3)
    assert len(units) >= 3
    assert sorted(n for u in units for n in defined(u)) == sorted(defined(text))
    lengths = [u.count("\n") for u in units if "sg_gemm_full" not in u]
    assert min(lengths) >= LEAST_LINES / 2


def test_units_are_complete() -> None:
    """What one calls of another is declared there, defined once, and nothing else is missing."""
    made = compile_stages(mlp(20, 30, 40, 10))
    symbols = [
        object_symbols(o) for o in unpack(assemble(made.text, made.target, threads=2).object_code)
    ]
    known = set().union(*(s.defined for s in symbols))
    wanted = set().union(*(s.undefined for s in symbols))
    assert wanted - known <= {"memcpy", "memmove", "memset"}


def test_products_are_one_unit_in_all_programs() -> None:
    units = [
        {u for u in split(compile_stages(mlp(*sizes)).text, 1) if "sg_gemm_full" in u}
        for sizes in ((20, 30, 10), (7, 64, 64, 3))
    ]
    assert len(units[0]) == 1 and units[0] == units[1]


def test_a_short_module_is_one_unit() -> None:
    x = sg.input("x", ("N",))
    text = compile_stages(sg.Graph([x], [sg.exp(x) * 2.0])).text
    assert split(text, 4) == [text]


def test_shared_units_come_from_the_cache() -> None:
    made = compile_stages(mlp(20, 31, 11))
    seen: dict[str, bytes] = {}
    first = assemble(made.text, made.target, level=1, store=seen.__setitem__)
    asked: list[str] = []

    def load(key: str) -> bytes | None:
        asked.append(key)
        return seen.get(key)

    again = assemble(made.text, made.target, level=1, load=load)
    assert again.object_code == first.object_code and again.codegen_ms == 0.0
    assert len(seen) == len(unpack(first.object_code))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_steps_whatever_the_units(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from staticgrad.api import compile as driver

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 20)).astype("float32"), rng.integers(0, 10, 9)

    def losses() -> list[float]:
        sg.random.seed(0)
        graph = mlp(20, 30, 40, 10)
        step = driver.compile_graph(graph, cache=False)
        return [float(step(x, y)[0]) for _ in range(3)]

    monkeypatch.setattr(driver, "usable_cpus", lambda: threads)
    found = losses()
    monkeypatch.setattr(driver, "usable_cpus", lambda: 1)
    assert found == losses()


def test_packed_objects_come_apart() -> None:
    parts = [b"one", b"", b"three"]
    assert unpack(pack(parts)) == parts
    assert unpack(pack([b"alone"])) == [b"alone"] and pack([b"alone"]) == b"alone"


@pytest.mark.parametrize("cut", [9, 17, 30, -1])
def test_damaged_packs_are_refused(cut: int) -> None:
    with pytest.raises(ArtifactError, match="object code"):
        unpack(pack([b"x" * 20, b"y" * 20])[:cut])


def test_an_impossible_count_is_refused() -> None:
    damaged = bytearray(pack([b"x", b"y"]))
    damaged[8:16] = b"\xff" * 8
    with pytest.raises(ArtifactError, match="do not add up"):
        unpack(bytes(damaged))
