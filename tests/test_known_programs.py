"""Programs found by their declared graphs: what a key must tell apart, and what happens where the
cache is damaged, read-only or not there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as driver
from staticgrad.api import graph_key as keys
from staticgrad.api import known
from staticgrad.codegen.target import host_target
from staticgrad.passes import pipeline
from staticgrad_runtime.cache import DiskCache

X = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
TABLE = np.arange(100, dtype="float32")
F = sg.nn.functional


pytestmark = pytest.mark.usefixtures("sources_as_imported")


@pytest.fixture
def no_pass(graph_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forbids passes from the moment it is called."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pass runs")

    return lambda: monkeypatch.setattr(pipeline, "run_pipeline", refuse)


# --- programs that differ in one thing ------------------------------------------------------------


def base(
    *, axis: int = 1, scale: float = 2.0, dtype: str = "float32", size: Any = 4, name: str = "x",
    swapped: bool = False, single: bool = False, twice: bool = False, label: str = "w",
    start: float = 1.0, updated: str = "one", flipped: bool = False, table: Any = TABLE,
    unused: bool = False, keepdims: bool = False, trainable: bool = True, steps: int = 3,
    inner: float = 0.5, message: str = "",
) -> dict[str, Any]:  # fmt: skip
    """A program with something of everything; each argument changes one thing."""
    x = sg.input(name, (size, 6), dtype)
    w = sg.parameter(np.full(6, start, dtype), name=label, trainable=trainable)
    v = sg.parameter(np.full(6, 3, dtype), name="v")
    inputs = [x, sg.input("more", (2,))] if unused else [x]
    y = (w - x if flipped else x - w) * scale + v
    total = sg.sum(y, axis=axis, keepdims=keepdims)
    peak = sg.max(y) + sg.sum(sg.constant(table.astype(dtype)))
    peak = sg.fori_loop(0, steps, lambda i, z: z * inner, peak)
    outputs: Any = total if single else [peak, total] if swapped else [total, peak]
    if twice:
        outputs = [total, total]
    updates = {
        "none": None, "one": [(w, w * 0.5)], "other": [(v, v * 0.5)], "both": [(w, v), (v, w)],
        "straight": [(w, w), (v, v)],
    }[updated]  # fmt: skip
    return {"inputs": inputs, "outputs": outputs, "updates": updates, "state": [w, v]}


CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "an attribute": {"axis": 0},
    "another attribute": {"keepdims": True},
    "a constant": {"scale": 3.0},
    "a constant's sign": {"scale": -2.0},
    "one element of a large constant": {"table": TABLE + (np.arange(100) == 99)},
    "a dtype": {"dtype": "float64"},
    "a symbolic size": {"size": "N"},
    "the name of a size": {"size": "M"},
    "a size": {"size": 5},
    "the name of an input": {"name": "z"},
    "an input that nothing reads": {"unused": True},
    "the name of a parameter": {"label": "weight"},
    "what is trainable": {"trainable": False},
    "the order of outputs": {"swapped": True},
    "a single output": {"single": True},
    "an output twice": {"twice": True},
    "no update": {"updated": "none"},
    "which state is updated": {"updated": "other"},
    "a swap": {"updated": "both"},
    "two updates": {"updated": "straight"},
    "the order of operands": {"flipped": True},
    "the length of a loop": {"steps": 4},
    "the body of a loop": {"inner": 0.25},
}  # fmt: skip


def key_of(made: dict[str, Any], training: bool | None = None, disable: Any = ()) -> str:
    graph = sg.Graph(made["inputs"], made["outputs"], made["updates"])
    key = keys.graph_key(graph, training, disable, host_target())
    assert key is not None
    return key.digest


def run(made: dict[str, Any], **options: Any) -> list[bytes]:
    """The bits that two calls return and leave behind, and how the program presents itself."""
    step = sg.compile(made["inputs"], made["outputs"], made["updates"], **options)
    arrays = [np.resize(X, [4 if isinstance(d, sg_dim) else d for d in i.shape]).astype(i.dtype)
              for i in made["inputs"]]  # fmt: skip
    found: list[Any] = []
    for _ in range(2):
        result = step(*arrays)
        found += [type(result).__name__.encode()]
        found += [np.asarray(a).tobytes() for a in (result if type(result) is tuple else [result])]
    found += [p.numpy().tobytes() for p in made.get("state", [])]
    m = step.manifest
    found.append(repr([(s.name, s.dtype, s.shape) for s in (*m.inputs, *m.state)]).encode())
    return found


sg_dim = type(sg.input("n", ("N",)).shape[0])


def test_keys_tell_programs_apart_and_know_them_again() -> None:
    first = {what: key_of(base(**change)) for what, change in CHANGES.items()}
    for a in first:
        for b in first:
            assert a == b or first[a] != first[b], f"{a} and {b} have one key"
    for what, change in CHANGES.items():  # ids of nodes, inputs and state are others by now
        assert key_of(base(**change)) == first[what], what


def test_keys_tell_options_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        key_of(base()), key_of(base(), training=True), key_of(base(), training=False),
        key_of(base(), disable=["fuse"]), key_of(base(), disable=["cse"]),
        key_of(base(), disable=["cse", "fuse"]),
    ]  # fmt: skip
    assert len({*found}) == len(found)
    assert key_of(base(), disable=["fuse", "cse", "fuse"]) == found[-1]
    monkeypatch.setattr(keys, "code_versions", lambda: ("another version",))
    assert key_of(base()) not in found


def test_keys_tell_targets_apart() -> None:
    import dataclasses

    made = base()
    graph = sg.Graph(made["inputs"], made["outputs"])
    changes = ("triple", "x"), ("cpu", "x"), ("features", "x"), ("vector_bits", 64)
    targets = [dataclasses.replace(host_target(), **{name: v}) for name, v in changes]
    targets += [host_target(), dataclasses.replace(host_target(), l2_bytes=1)]
    found = [keys.graph_key(graph, None, (), t) for t in targets]
    assert len({k.digest for k in found if k is not None}) == len(targets)


@pytest.mark.parametrize(
    "values",
    [(0.0, -0.0), (np.nan, -np.nan), (1.0, 1), (True, 1), (1, 2), ("1", 1), ((1,), 1), (None, 0)],
    ids=str,
)
def test_plain_values_that_are_nearly_the_same_differ(values: tuple[Any, Any]) -> None:
    a, b = (repr(keys._plain(v)) for v in values)
    assert a != b


def test_which_state_is_meant_is_part_of_the_key() -> None:
    def made(second: bool) -> dict[str, Any]:
        a, b = (sg.parameter(np.ones(3, "float32"), name="p") for _ in range(2))
        return {"inputs": [], "outputs": [a * 2, b * 3, b if second else a], "updates": None}

    assert key_of(made(False)) != key_of(made(True))


def test_random_sites_are_part_of_the_key() -> None:
    def made(seed_first: bool) -> dict[str, Any]:
        sg.random.seed(0)
        if seed_first:
            sg.random.normal((2,))
        return {"inputs": [], "outputs": [sg.random.normal((2,))], "updates": None}

    assert key_of(made(False)) == key_of(made(False)) != key_of(made(True))


def test_results_have_the_same_bits_however_a_program_was_found(graph_cache: Path) -> None:
    """All variants share one cache: first each is compiled, then each is found."""
    expected = {what: run(base(**change), cache=False) for what, change in CHANGES.items()}
    assert not graph_cache.exists()
    for turn in range(2):
        before = driver.compilations
        for what, change in CHANGES.items():
            assert run(base(**change)) == expected[what], (turn, what)
        assert turn == 0 or driver.compilations == before


# --- what is found --------------------------------------------------------------------------------


def test_no_pass_runs_where_a_program_is_found(no_pass: Callable[[], None]) -> None:
    expected = run(base())
    no_pass()
    [sg.parameter(np.zeros(1)) for _ in range(3)]  # the cells' ids are others
    assert run(base()) == expected
    with pytest.raises(AssertionError, match="a pass runs"):
        run(base(axis=0))
    with pytest.raises(AssertionError, match="a pass runs"):
        run(base(), cache=False)


@pytest.mark.parametrize("variable", ["STATICGRAD_CACHE=objects", "STATICGRAD_VERIFY=1"])
def test_every_pass_runs_where_that_is_asked_for(
    no_pass: Callable[[], None], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    run(base())
    monkeypatch.setenv(*variable.split("="))
    no_pass()
    with pytest.raises(AssertionError, match="a pass runs"):
        run(base())


def layers() -> dict[str, Any]:
    """Batch norm and dropout: state that the passes find, not the user."""
    sg.random.seed(7)
    x = sg.input("x", ("N", 6))
    model = sg.nn.Sequential(sg.nn.Linear(6, 5), sg.nn.BatchNorm1d(5), sg.nn.Dropout(0.5))
    loss = sg.mean(model(x) ** 2)
    optimizer = sg.optim.Adam(model.parameters(), lr=0.1)
    state = [*model.parameters(), *model.buffers()]
    updates = optimizer.minimize(loss)
    return {"inputs": [x], "outputs": [loss], "updates": updates, "state": state}


def test_state_of_layers_optimisers_and_generators_is_found(no_pass: Callable[[], None]) -> None:
    expected = run(layers(), cache=False)
    assert run(layers()) == expected
    no_pass()
    assert run(layers()) == expected
    assert run(layers()) == expected


def test_what_is_asked_of_a_found_program_is_made_then(graph_cache: Path, tmp_path: Path) -> None:
    made = base()
    arguments = made["inputs"], made["outputs"], made["updates"]
    cold, warm = (sg.compile(*arguments) for _ in range(2))
    assert set(cold.compile_ms) >= {"passes", "emit", "codegen"}
    assert set(warm.compile_ms) == {"key", "cache", "load"}
    assert warm.llvm_ir == cold.llvm_ir
    assert warm.assembly == cold.assembly
    assert warm.report().to_dict()["kernels"] == cold.report().to_dict()["kernels"]
    assert warm.peak_bytes() == cold.peak_bytes()
    a, b = (p.dump(str(tmp_path / n)) for p, n in ((cold, "cold"), (warm, "warm")))
    assert [Path(f).name for f in a] == [Path(f).name for f in b]
    for one, other in zip(a, b):
        if Path(one).name == "report.json":  # tells the times
            continue
        assert Path(one).read_bytes() == Path(other).read_bytes()
    plain = [p.manifest.to_plain() | {"report": {}} for p in (cold, warm)]
    assert plain[0] == plain[1]


SOURCE = """
x = sg.input("x", ("N", 6))
at = sg.input("at", ("N",), "int64")
y = sg.take(x, at, axis=0) + sg.input("z", ("M", 6))
program = sg.compile([x, at, y.node.operands[1]], [sg.sum(y), y])
"""


def declared(lines_before: int, file: str) -> Any:
    names: dict[str, Any] = {"sg": sg, "__name__": "user"}
    exec(compile("\n" * lines_before + SOURCE, file, "exec"), names)
    return names["program"]


def failure(program: Any, rows: int) -> str:
    with pytest.raises(sg.StaticgradError) as error:
        program(X, np.full(rows, 9, "int64"), np.zeros((rows, 6), "float32"))
    return str(error.value)


def test_a_program_that_moved_in_its_file_is_found_with_its_new_lines(
    no_pass: Callable[[], None],
) -> None:
    cold = declared(0, "old.py")
    no_pass()
    for before, file in ((0, "old.py"), (5, "old.py"), (2, "new.py")):
        warm = declared(before, file)
        assert warm.manifest.inputs[1].location == f"{file}:{before + 3}"
        assert warm.manifest.kernels[0]["locations"].startswith(f"{file}:")
        for rows in (4, 3):  # an index out of range; sizes that do not fit
            text = failure(cold, rows)
            for line in range(2, 6):
                text = text.replace(f"old.py:{line}", f"{file}:{before + line}!")
            assert failure(warm, rows) == text.replace("!", "")
            assert f"{file}:{before + 4}" in text or rows == 3


def test_the_pattern_of_lines_is_part_of_the_key() -> None:
    def made(text: str) -> str:
        names: dict[str, Any] = {"sg": sg, "__name__": "user"}
        exec(compile(text, "user.py", "exec"), names)
        x, y = names["x"], names["y"]
        return key_of({"inputs": [x], "outputs": [y], "updates": None})

    apart = made("x = sg.input('x', (3,))\ny = sg.exp(x)")
    assert apart == made("\n\nx = sg.input('x', (3,))\n\n\ny = sg.exp(x)")
    assert apart != made("x = sg.input('x', (3,)); y = sg.exp(x)")


def test_effects_follow_the_calls_of_a_found_program(no_pass: Callable[[], None]) -> None:
    def seen() -> list[float]:
        values: list[float] = []
        x = sg.input("x", (3,))
        sg.debug.tap(x * 2, lambda a: values.append(float(a.sum())))
        program = sg.compile([x], sg.sum(x))
        assert program(np.ones(3, "float32")) == 3
        return values

    assert seen() == [6.0]
    no_pass()
    assert seen() == [6.0]


def test_nan_is_still_found(no_pass: Callable[[], None]) -> None:
    def message() -> str:
        x = sg.input("x", (3,))
        program = sg.compile([x], [sg.sum(sg.log(x))], check="nan")
        with pytest.raises(sg.StaticgradError) as error:
            program(np.array([1, -1, 2], "float32"))
        return str(error.value)

    assert message() == message()


# --- what has no key ------------------------------------------------------------------------------


def has_key(outputs: list[Any], inputs: Any = ()) -> bool:
    return keys.graph_key(sg.Graph(inputs, outputs), None, (), host_target()) is not None


def test_an_operation_of_the_user_s_has_no_key() -> None:
    sine = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(np.sin)
    op = sg.custom_op(
        "test_no_key", c_functions={"float64": sine}, reference=np.sin, signature="scalar",
        vjp=sg.NotDifferentiable("a test"), samples=[(np.ones(2),)],
    )  # fmt: skip
    x = sg.input("x", (2,), "float64")
    assert has_key([x * 2], [x])
    assert not has_key([op(x)], [x])


def test_a_replaced_record_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from staticgrad.ops import registry

    x = sg.input("x", (2,))
    y = sg.exp(x)
    assert has_key([y], [x])
    monkeypatch.setitem(registry._registry, "exp", dataclasses.replace(registry.get("exp")))
    assert not has_key([y], [x])


def test_large_constants_have_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (sg.constant(np.zeros(60, "float32")) * 2 for _ in range(2))
    monkeypatch.setattr(keys, "MOST_CONSTANT_BYTES", 300)
    assert has_key([a])
    assert not has_key([a, b])


def test_an_unknown_kind_of_attribute_has_no_key() -> None:
    with pytest.raises(keys.NoKeyError):
        keys._plain(lambda: None)
    with pytest.raises(keys.NoKeyError):
        keys._plain((1, np.float32(1)))


def test_sources_that_change_make_other_versions(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "a.py"
    file.write_text("x = 1\n")
    first = list(keys._sources(tmp_path))
    assert list(keys._sources(tmp_path)) == first
    file.write_text("x = 12\n")
    second = list(keys._sources(tmp_path))
    os.utime(file, ns=(1, 1))
    third = list(keys._sources(tmp_path))
    file.rename(tmp_path / "a.py")
    assert len({*map(tuple, (first, second, third, keys._sources(tmp_path)))}) == 4


def test_without_sources_there_is_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = sg.input("x", (2,))
    for place in (None, str(tmp_path / "none" / "__init__.py"), str(tmp_path / "__init__.pyc")):
        monkeypatch.setattr(sg, "__file__", place)
        monkeypatch.setattr(keys, "code_versions", keys.code_versions.__wrapped__)
        assert not has_key([x * 2], [x])
        monkeypatch.undo()
    assert has_key([x * 2], [x])


# --- a cache that is damaged, or not there --------------------------------------------------------


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.sgc"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut off": lambda p: p.write_bytes(p.read_bytes()[:-5]),
    "empty": lambda p: p.write_bytes(b""),
    "removed": Path.unlink,
    "writable by others": lambda p: p.chmod(0o666),
    "a directory": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_made_anew(graph_cache: Path, damage: str) -> None:
    expected = run(base())
    names = {p.name for p in entries(graph_cache)}
    assert len(names) == 2  # the graph's, and the text's
    for name in sorted(names):
        (path,) = [p for p in entries(graph_cache) if p.name == name]
        DAMAGE[damage](path)
        assert run(base()) == expected
        if damage != "a directory":
            assert {p.name for p in entries(graph_cache)} == names
            assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x01", b"\xff" * 50, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]rest",
        b"\x1d" + bytes(7) + b'{"object": "aa", "locs": [1]}',
    ],
)  # fmt: skip
def test_entries_that_say_something_else_are_made_anew(graph_cache: Path, content: bytes) -> None:
    """Their digest is right: what is in them is not."""
    expected = run(base())
    store = DiskCache(graph_cache)
    assert store.store(key_of(base()), content)
    assert run(base()) == expected
    assert store.load(key_of(base())) != content


def test_an_entry_for_another_graph_is_not_taken(graph_cache: Path) -> None:
    """Whoever may write to the cache runs code anyway; but a mistake must not give wrong state."""
    expected = run(base())
    made = {"inputs": [], "outputs": [sg.constant([1.0])], "updates": None}
    run(made)
    store = DiskCache(graph_cache)
    other = store.load(key_of(base()))
    assert other is not None and store.store(key_of(made), other)
    run(made)
    assert store.load(key_of(made)) != other
    assert run(base()) == expected


def test_a_read_only_cache_serves_what_it_has(
    graph_cache: Path, no_pass: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, other = run(base()), run(base(axis=0), cache=False)

    def refused(*_: Any) -> None:  # as for who may not write; a superuser always may
        raise PermissionError(13, "Permission denied")

    for name in ("_write", "remove"):
        monkeypatch.setattr(DiskCache, name, staticmethod(refused))
    monkeypatch.setattr(os, "utime", refused)
    kept = entries(graph_cache)
    assert run(base(axis=0)) == other
    assert entries(graph_cache) == kept
    no_pass()
    assert run(base()) == expected


@pytest.mark.parametrize("kind", ["a file", "below a file", "off"])
def test_without_a_usable_cache_programs_are_compiled(
    graph_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    expected = run(base(), cache=False)
    if kind == "off":
        monkeypatch.setenv("STATICGRAD_CACHE", "0")
    else:
        graph_cache.write_bytes(b"")
        if kind == "below a file":
            monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(graph_cache / "inner"))
    for _ in range(2):
        assert run(base()) == expected


def test_a_program_is_not_kept_where_a_line_is_no_part_of_its_graph(graph_cache: Path) -> None:
    made = base()
    graph = sg.Graph(made["inputs"], made["outputs"])
    key = keys.graph_key(graph, None, (), host_target())
    assert key is not None
    program = sg.compile(made["inputs"], made["outputs"])
    assert known._relocated(program.manifest, {text: text for text in key.locs}) is not None
    assert known._relocated(program.manifest, {}) is None


# --- processes ------------------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy as np
import staticgrad as sg

sg.random.seed(0)
x = sg.input("x", ("N", 8))
model = sg.nn.Sequential(sg.nn.Linear(8, 4), sg.nn.GELU(), sg.nn.Linear(4, 2))
loss = sg.mean(model(x) ** 2)
optimizer = sg.optim.AdamW(model.parameters(), lr=0.01)
step = sg.compile([x], [loss], updates=optimizer.minimize(loss))
for i in range(3):
    (found,) = step(np.full((5, 8), i + 1, "float32"))
late = [m for m in sys.modules if m.startswith(("staticgrad.passes", "staticgrad.codegen"))]
print(found.tobytes().hex(), *(p.numpy().tobytes().hex() for p in model.parameters()))
print(sorted(late))
"""


def test_a_second_process_runs_no_pass_and_loads_no_compiler(graph_cache: Path) -> None:
    def lines() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    cold, warm = lines(), lines()
    assert warm[0] == cold[0]
    assert "staticgrad.passes.pipeline" in cold[1]
    assert warm[1] == "['staticgrad.codegen', 'staticgrad.codegen.target']"


@pytest.fixture(autouse=True)
def _no_effects() -> Iterator[None]:
    yield
    sg.debug.clear()
