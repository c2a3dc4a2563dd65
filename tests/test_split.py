"""Modules compiled in units: every function once, the same results, shared units alike."""

from __future__ import annotations

import itertools
import re
import threading
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen.assemble import Crew, Stream, assemble
from staticgrad.codegen.gemm_vector import products_text
from staticgrad.codegen.split import PART_LINES, Splitter, Unit, shared_units, split
from staticgrad.codegen.target import host_target
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
    assert sorted(n for u in units for n in defined(u.text)) == sorted(defined(text))
    *parts, _ = [u for u in units if "sg_gemm_full" not in u.text and not u.plain]
    assert min(u.text.count("\n") for u in parts) >= PART_LINES


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
        {u.text for u in split(compile_stages(mlp(*sizes)).text, 1) if "sg_gemm_full" in u.text}
        for sizes in ((20, 30, 10), (7, 64, 64, 3))
    ]
    assert len(units[0]) == 1 and units[0] == units[1]


def test_a_short_module_is_one_unit() -> None:
    x = sg.input("x", ("N",))
    text = compile_stages(sg.Graph([x], [sg.exp(x) * 2.0])).text
    assert split(text, 4) == [Unit(text)]


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


def test_what_is_begun_early_is_what_the_program_needs() -> None:
    """The products' unit, known from the declared graph alone, and all units that programs share,
    known before the program's own kernels are emitted."""
    crew, _ = crew_of(threads=1)
    added: list[list[Unit]] = []
    crew.add = lambda units: added.append(list(units)) or []  # type: ignore[method-assign]
    stream = Stream(crew)
    stream._splitter = Splitter(2)
    made = compile_stages(mlp(20, 30, 40, 10), stream=stream)
    units = split(made.text, 2)
    early = shared_units(products_text(made.target, {("float32", 0)}))
    assert len(early) == 1 and added[0] == early
    begun = [u for us in added for u in us]
    assert len(begun) == len({*begun}) >= 3 and {*begun} < {*units}
    assert stream._splitter.all(stream._module.declarations) != []  # type: ignore[union-attr]


def test_what_has_no_loop_is_compiled_plainly_beside_a_long_driver() -> None:
    made = compile_stages(mlp(20, 30, 40, 10))
    (plain,) = [u for u in split(made.text, 2) if u.plain]
    names = defined(plain.text)
    assert {"sg_share", "sg_split", "sg_run"} < {*names}
    products = {n for n in made.called if "matmul" in n}
    assert products < {*names}  # calls of the products; their epilogues have loops
    assert not any(re.search(r"(?m)^loop\d+:", text) for text in functions_of(plain.text, names))


def functions_of(text: str, names: list[str]) -> list[str]:
    """The texts of functions, the driver's left out."""
    found = [re.search(rf"(?ms)^define [^@]*@{re.escape(n)}\(.*?^}}", text) for n in names]
    return [m[0] for m in found if m is not None and "@sg_share(" not in m[0]]


@pytest.mark.parametrize("products", [0, 1])
def test_nothing_is_compiled_plainly_beside_a_short_driver(products: int) -> None:
    x = sg.input("x", ("N", 8))
    y = x @ sg.parameter(np.ones((8, 8), "float32")) if products else x
    text = compile_stages(sg.Graph([x], [sg.exp(y), sg.sum(x)])).text
    units = split(text, 2)
    assert not any(u.plain for u in units)
    assert sorted(n for u in units for n in defined(u.text)) == sorted(defined(text))


def test_branches_that_lead_back_are_seen() -> None:
    def straight(body: str) -> bool:
        splitter = Splitter(1)
        splitter.add([("f", f"define internal void @f() nounwind {{\nentry:\n{body}\n}}")])
        return splitter._known["f"].is_straight

    assert straight("  ret void")
    assert straight("  br i1 true, label %a, label %b\na:\n  br label %b\nb:\n  ret void")
    assert straight("  switch i64 1, label %a [ i64 0, label %b ]\na:\n  ret void\nb:\n  ret void")
    assert not straight("  br label %a\na:\n  br label %a")
    assert not straight("  br label %a\na:\n  br i1 true, label %b, label %a\nb:\n  ret void")
    again = "switch i64 1, label %b [ i64 0, label %a ]"
    assert not straight(f"  br label %a\na:\n  {again}\nb:\n  ret void")


def crew_of(load: Any = None, threads: int = 2) -> tuple[Crew, list[str]]:
    """A crew, and what it generates."""
    generated: list[str] = []

    def generate(text: str, target: Any, level: int) -> tuple[bytes, float, float]:
        generated.append(text)
        if "wrong" in text:
            raise RuntimeError(text)
        return text.encode(), 1.0, 2.0

    crew = Crew(host_target(), threads=threads, load=load)
    crew._generate = generate  # type: ignore[method-assign]
    return crew, generated


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_crew_generates_each_unit_once(threads: int) -> None:
    crew, generated = crew_of(threads=threads)
    names = [f"crew {threads} {i}" for i in range(9)]
    crew.aside(lambda: crew.add([Unit(n) for n in names[:2]]))
    crew.add([Unit(n) for n in names[1:4]])
    keys = crew.add([Unit(n) for n in names])
    assert crew.objects(keys) == [n.encode() for n in names]
    assert sorted(generated) == names
    assert crew.codegen_ms == 2 * len(names)


def test_a_crew_asks_the_cache_first() -> None:
    crew, generated = crew_of(load=lambda key: b"known")
    assert crew.objects(crew.add([Unit("cached")])) == [b"known"] and not generated


def test_a_crew_raises_what_failed_and_only_where_it_is_needed() -> None:
    crew, _ = crew_of()
    crew.aside(lambda: crew.add([Unit("a wrong guess")]))
    crew.aside(lambda: 1 / 0)
    assert crew.objects(crew.add([Unit("right")])) == [b"right"]
    with pytest.raises(RuntimeError, match="wrong unit"):
        crew.objects(crew.add([Unit("fine"), Unit("wrong unit")]))


def test_a_unit_that_was_left_out_can_be_asked_for_again() -> None:
    crew, generated = crew_of(threads=1)
    crew.add([Unit("left out")])
    assert crew.objects(crew.add([Unit("wanted")])) == [b"wanted"]
    assert crew.objects(crew.add([Unit("left out")])) == [b"left out"]
    assert generated == ["wanted", "left out"]


def test_helpers_do_what_is_set_aside_and_nobody_waits_for_it() -> None:
    crew, _ = crew_of(threads=2)
    begun, go, done = (threading.Event() for _ in range(3))

    def job() -> None:
        begun.set()
        go.wait(10)
        done.set()

    crew.aside(job)
    assert begun.wait(10)
    assert crew.objects(crew.add([Unit("a unit")])) == [b"a unit"]
    assert not done.is_set()
    go.set()
    crew.rest()
    assert done.is_set()
    alone, _ = crew_of(threads=1)
    alone.aside(begun.clear)
    assert alone.objects([]) == [] and begun.is_set()


def test_no_helper_is_at_work_when_a_program_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where compiling fails, either."""
    from staticgrad.api import compile as driver

    crews: list[Crew] = []
    made = Crew.__init__

    def noted(self: Crew, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        crews.append(self)

    monkeypatch.setattr(Crew, "__init__", noted)
    monkeypatch.setattr(driver, "usable_cpus", lambda: 3)
    driver.compile_graph(mlp(20, 30, 10), cache=False)
    with pytest.raises(sg.ArgumentError, match="no pass"):
        driver.compile_graph(mlp(20, 30, 11), cache=False, disable=["no pass"])
    assert [crew._free for crew in crews] == [2, 2]


def test_a_helper_that_cannot_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    crew, generated = crew_of(threads=3)
    crew.aside(lambda: generated.append("aside"))
    assert crew.objects(crew.add([Unit("a"), Unit("b")])) == [b"a", b"b"]
    crew.rest()
    assert sorted(generated) == ["a", "b"]


def test_equal_epilogues_are_one_function() -> None:
    """Of products whose sizes coincide in other ways; results are those of NumPy."""
    x = sg.input("x", (64, 200))
    arrays = [np.random.default_rng(n).normal(size=(200, n)).astype("float32") for n in (200, 300)]
    products = [sg.relu(x @ sg.constant(a) + 1.0) for a in arrays]
    program = sg.compile([x], products, cache=False)
    names = defined(program.llvm_ir)
    assert sum("matmul" in n and not n.endswith("epilogue") for n in names) == 2
    assert sum(n.endswith("epilogue") for n in names) == 1
    given = np.random.default_rng(0).normal(size=(64, 200)).astype("float32")
    for found, a in zip(program(given), arrays):
        expected = np.maximum(given.astype("float64") @ a + 1, 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_crew_takes_long_units_first() -> None:
    crew, generated = crew_of(threads=1)
    units = [Unit("x" * 10), Unit("y" * 90, plain=True), Unit("z" * 30), Unit("w" * 20)]
    crew.objects(crew.add(units))
    assert [text[0] for text in generated] == ["z", "y", "w", "x"]
