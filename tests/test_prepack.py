"""Constants packed when compiling, and packed copies of parameters: the same bits with and without,
nothing packed in a call, and never a copy of an old value."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import eager, nn
from staticgrad.api import compile as driver
from staticgrad.api.compile import compile_stages
from staticgrad.codegen.entry import PATIENCE
from staticgrad.codegen.gemm_prepacked import prepacked_bytes
from staticgrad.codegen.target import host_target
from staticgrad.kernels.printer import program_text
from staticgrad.kernels.program import Program, Step, steps_of
from staticgrad.kernels.verify import verify_program
from staticgrad_runtime import Artifact, ExecutionError, StateCell
from staticgrad_runtime import Executable as Loaded

from .test_gemm import values
from .threaded_programs import Threaded, bits

Array = np.ndarray[Any, Any]


def parameter(shape: tuple[int, ...], seed: int = 1, dtype: str = "float32") -> Any:
    return sg.parameter(values(shape, dtype, seed), name="w")


def program_of(inputs: Sequence[Any], outputs: Any, updates: Any = None, **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs, updates), **options).program
    verify_program(program)
    return program


def products(program: Program) -> list[Step]:
    return [s for s in steps_of(program.items) if "matmul" in s.nodes]


def reads(program: Program, kind: str) -> list[bool]:
    """Of each product whether it reads a buffer of this kind."""
    return [any(program.buffers[b].kind == kind for b in s.buffers) for s in products(program)]


def both(inputs: Sequence[Any], outputs: Any, updates: Any = None) -> tuple[Any, Any]:
    """A program with the pass and without."""
    return (
        sg.compile(inputs, outputs, updates),
        sg.compile(inputs, outputs, updates, disable=("prepack",)),
    )


def settle(run: Callable[..., Any], *arrays: Array) -> None:
    """Calls until what does not change is packed."""
    for _ in range(PATIENCE):
        run(*arrays)


def close(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


# --- constants ------------------------------------------------------------------------------------

SHAPES = [
    (1, 96, 160),
    (2, 80, 160),
    (3, 64, 130),
    (5, 200, 33),
    (7, 1100, 64),
    (14, 64, 64),
    (33, 1100, 70),
    (128, 96, 160),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_with_a_constant(dtype: str) -> None:
    for m, k, n in SHAPES:
        for turned in (False, True):
            c = values((n, k) if turned else (k, n), dtype, 2)
            x = sg.input("x", (m, k), dtype)
            weight = sg.constant(c).T if turned else sg.constant(c)
            run, plain = both([x], sg.relu(x @ weight))
            a = values((m, k), dtype, m)
            close(run(a), np.maximum(a @ (c.T if turned else c), 0))
            assert bits(run(a)) == bits(plain(a))


def test_a_constant_is_packed_once_and_for_all() -> None:
    """Only the packed form is part of the program; a product wants no room for packing."""
    x, c = sg.input("x", (32, 64)), sg.constant(values((64, 96), "float32", 1))
    program = program_of([x], sg.relu(x @ c))
    (packed,) = program.constants.values()
    assert packed.nbytes == prepacked_bytes(host_target(), "float32", 96, 64)
    assert reads(program, "constant") == [True] and not program.packs
    assert not any(s.nodes == ("pack",) for s in steps_of(program.items))
    run, plain = both([x], sg.relu(x @ c))
    assert run.report()["constant_bytes"] == packed.nbytes < 1.1 * 4 * 64 * 96
    assert plain.report()["constant_bytes"] == 4 * 64 * 96
    assert run.peak_bytes() < plain.peak_bytes() - 4 * 64 * 96
    assert "c0_packed" in program_text(program)


def test_a_constant_of_several_products() -> None:
    """Packed once for those that read it alike, and still there for what reads its elements."""
    x, c = sg.input("x", (32, 64)), sg.constant(values((64, 64), "float32", 1))
    program = program_of([x], [sg.tanh(x @ c) @ c, x @ c.T, sg.sum(c, axis=0)])
    sizes = sorted(a.nbytes for a in program.constants.values())
    assert len(sizes) == 3 and sizes[0] == 4 * 64 * 64
    run, plain = both([x], [sg.tanh(x @ c) @ c, x @ c.T, sg.sum(c, axis=0), c @ x.T, c @ c])
    a = values((32, 64), "float32", 3)
    assert bits(run(a)) == bits(plain(a))


def test_a_folded_constant() -> None:
    x = sg.input("x", (16, 64))
    table = values((64, 64), "float32", 1)
    c = sg.constant(table).T * 0.5
    program = program_of([x], x @ c)
    assert [a.nbytes for a in program.constants.values()] == [
        prepacked_bytes(host_target(), "float32", 64, 64)
    ]
    a = values((16, 64), "float32", 2)
    run, plain = both([x], x @ c)
    close(run(a), a @ (table.T * 0.5))
    assert bits(run(a)) == bits(plain(a))


def test_views_of_a_constant() -> None:
    """A part, and one that is read backwards, from behind."""
    table = values((70, 120), "float32", 1)
    x, c = sg.input("x", (16, 64)), sg.constant(table)
    views = [c[3:67, 20:100], sg.flip(c[3:67], axis=1), sg.flip(c[6:, ::2], axis=0)]
    arrays = [table[3:67, 20:100], table[3:67, ::-1], table[6:, ::2][::-1]]
    program = program_of([x], [x @ v for v in views])
    assert len(program.constants) == 3
    run, plain = both([x], [x @ v for v in views])
    a = values((16, 64), "float32", 2)
    for got, array in zip(run(a), arrays):
        close(got, a @ array)
    assert bits(run(a)) == bits(plain(a))


def test_constants_with_rows_of_any_number() -> None:
    c = values((48, 80), "float32", 1)
    x = sg.input("x", ("N", 48))
    run, plain = both([x], sg.tanh(x @ sg.constant(c)))
    for n in (0, 1, 2, 3, 4, 14, 15, 100, 300):
        a = values((n, 48), "float32", n)
        close(run(a), np.tanh(a @ c))
        assert bits(run(a)) == bits(plain(a))


def test_constants_in_loops_and_choices() -> None:
    x, c = sg.input("x", (8, 64)), sg.constant(values((64, 64), "float32", 1) / 8)
    looped = sg.fori_loop(0, 5, lambda i, h: sg.tanh(h @ c), x)
    chosen = sg.cond(sg.sum(x) > 0, lambda h: h @ c, lambda h: h - 1.0, x)
    program = program_of([x], [looped, chosen])
    assert reads(program, "constant") == [True, True] and len(program.constants) < 6
    assert not any(s.nodes == ("pack",) for s in steps_of(program.items))
    run, plain = both([x], [looped, chosen])
    for seed in (1, 2, 3):
        a = values((8, 64), "float32", seed)
        assert bits(run(a)) == bits(plain(a))


def test_what_stays_a_plain_constant() -> None:
    """Many rows, few columns, a number in the place of a matrix, a batch of matrices."""

    def program(x: Any, c: Array) -> Program:
        return program_of([x], x @ sg.constant(c))

    def table(*shape: int) -> Array:
        return values(shape, "float32", 1)

    for found in (
        program(sg.input("x", (300, 64)), table(64, 64)),
        program(sg.input("x", (32, 640)), table(640, 5)),
        program(sg.input("x", (32, 64)), np.ones((64, 64), "float32")),
        program(sg.input("x", (3, 32, 64)), table(3, 64, 64)),
    ):  # fmt: skip
        assert all(b.dtype != "uint8" for b in found.buffers if b.kind == "constant")


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_with_a_parameter(dtype: str) -> None:
    """The bits are the same before there is a packed copy and after."""
    for m, k, n in SHAPES:
        for turned in (False, True):
            w = parameter((n, k) if turned else (k, n), 2, dtype)
            x = sg.input("x", (m, k), dtype)
            run, plain = both([x], sg.relu(x @ (w.T if turned else w)))
            a = values((m, k), dtype, m)
            wanted = plain(a)
            close(wanted, np.maximum(a @ (w.numpy().T if turned else w.numpy()), 0))
            for _ in range(PATIENCE + 1):
                assert bits(run(a)) == bits(wanted)
            assert run._packed.versions() == [w.cell.version]


def test_a_parameter_is_not_packed_in_calls() -> None:
    x, w = sg.input("x", (32, 64)), parameter((64, 96))
    program = program_of([x], sg.relu(x @ w))
    (pack,) = program.packs
    assert len(program.steps) == 1 and reads(program, "packed") == [True]
    assert "kept: pack(b0=w, b1=w_packed)" in program_text(program)
    run = sg.compile([x], sg.relu(x @ w))
    size = program.buffers[pack.buffer].size
    assert run.report()["packed_bytes"] == size == run.manifest.buffers[pack.buffer].size_bytes
    assert "packed_bytes" in str(run.report())
    assert sg.compile([x], x @ w, disable=("prepack",)).report()["packed_bytes"] == 0


def test_it_is_packed_once_it_has_not_changed_for_a_while() -> None:
    x, w = sg.input("x", (32, 64)), parameter((64, 96))
    run, a = sg.compile([x], x @ w), values((32, 64), "float32", 1)
    start = w.cell.version
    for _ in range(PATIENCE - 1):
        run(a)
        assert run._packed.versions() == [-1]
    run(a)
    assert run._packed.versions() == [start]
    for i in range(5):  # changes with every call
        w.assign(values((64, 96), "float32", 10 + i))
        close(run(a), a @ w.numpy())
        assert run._packed.versions() == [start]
    settle(run, a)
    assert run._packed.versions() == [w.cell.version]


def test_state_that_the_program_writes_is_not_kept() -> None:
    x, w, v = sg.input("x", (32, 64)), parameter((64, 64)), parameter((64, 64), 2)
    updates = [(w, w * 0.5)]
    program = program_of([x], (x @ w) @ v, updates)
    assert [program.buffers[p.state].name for p in program.packs] == ["w"]
    assert program.packs[0].state not in program.written and reads(program, "packed") == [
        False,
        True,
    ]
    run, plain = both([x], (x @ w) @ v, updates)
    a = values((32, 64), "float32", 1)
    for _ in range(PATIENCE + 2):
        value = w.numpy()
        got = run(a)
        w.assign(value)
        assert bits(got) == bits(plain(a))


def test_rows_of_any_number() -> None:
    """Many rows do without, in the same program; each number of rows has its own binding."""
    x, w = sg.input("x", ("N", 48)), parameter((80, 48))
    run, plain = both([x], sg.tanh(x @ w.T))
    read_by = {n: len(run._packed.read_by({"N": n})) for n in (0, 1, 128, 129)}
    assert read_by == {0: 0, 1: 1, 128: 1, 129: 0}
    a = values((300, 48), "float32", 1)
    settle(run, a)
    assert run._packed.versions() == [-1]
    for n in (0, 1, 2, 3, 4, 14, 15, 100, 300, 100, 5):
        settle(run, a[:n])
        assert bits(run(a[:n])) == bits(plain(a[:n]))
    assert run._packed.versions() == [w.cell.version]


def test_few_rows_of_any_number() -> None:
    """Of unbroken rows of the parameter too; nothing is packed for no rows."""
    a = values((40, 48), "float32", 1)
    x, w = sg.input("x", ("N", 48)), parameter((48, 80))
    run, plain = both([x], x @ w)
    settle(run, a[:0])
    assert run._packed.versions() == [-1]
    for n in (1, 2, 4, 40, 1, 0):
        settle(run, a[:n])
        assert bits(run(a[:n])) == bits(plain(a[:n]))
        assert run._packed.versions() == [w.cell.version]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(48, 32), (256, 80), (784, 512)], ids=str)
def test_one_declared_row_has_panels(sizes: tuple[int, int], turned: bool) -> None:
    """Of constants and of parameters, however their rows lie; small products as well."""
    x, m = sg.input("x", (1, sizes[0])), values(sizes[::-1] if turned else sizes, "float32", 1)
    for w in (sg.constant(m), sg.parameter(m)):
        run, plain = both([x], sg.relu(x @ (w.T if turned else w)))
        a = values((1, sizes[0]), "float32", 2)
        settle(run, a)
        assert bits(run(a)) == bits(plain(a))
        np.testing.assert_allclose(
            run(a), np.maximum(a.astype(float) @ (m.T if turned else m), 0), rtol=1e-4, atol=1e-4
        )
        (step,) = program_of([x], [x @ (w.T if turned else w)]).steps
        assert len(step.kernel.body[0].buffers) == 5


def test_parts_and_branches() -> None:
    """A slice of a parameter, and a product that not every call computes."""
    x, w = sg.input("x", (16, 64)), parameter((64, 192))
    parts = [x @ w[:, i : i + 64] for i in (0, 64, 128)]
    chosen = sg.cond(sg.sum(x) > 0, lambda h: h @ w, lambda h: h @ (w * 2.0), x)
    assert len(program_of([x], parts).packs) == 3
    run, plain = both([x], [*parts, chosen])
    for seed in range(2 * PATIENCE):
        a = values((16, 64), "float32", seed)
        assert bits(run(a)) == bits(plain(a))
    w.assign(w.numpy() * 3)
    assert bits(run(a)) == bits(plain(a))


def test_twins_share_the_copies() -> None:
    x, w = sg.input("x", ("N", 64)), parameter((64, 96))
    run = sg.compile([x], x @ w)
    other = run.twin()
    a = values((40, 64), "float32", 1)
    settle(run, a)
    assert other._packed is run._packed
    close(other(a[:7]), a[:7] @ w.numpy())
    w.assign(w.numpy() + 1)
    for n in (7, 40, 7, 40, 40):
        close(other(a[:n]), a[:n] @ w.numpy())
        close(run(a[:n]), a[:n] @ w.numpy())


def test_any_number_of_threads() -> None:
    x, w = sg.input("x", ("N", 256)), parameter((384, 256))
    made = Threaded.of([x], sg.relu(x @ w.T))
    for n in (2, 40, 120):
        a = values((n, 256), "float32", n)
        alone, together = made.on(1), made.on(2)
        for _ in range(PATIENCE + 1):
            assert bits(alone(a)) == bits(together(a))


# --- never stale ----------------------------------------------------------------------------------


def _assign(w: Any, new: Array) -> None:
    w.assign(new)


def _eager_copy(w: Any, new: Array) -> None:
    w.data.copy_(eager.tensor(new))


def _eager_setitem(w: Any, new: Array) -> None:
    w.data[:] = eager.tensor(new)


def _eager_rows(w: Any, new: Array) -> None:
    for i, row in enumerate(new):
        w.data[i] = eager.tensor(row)


def _eager_data(w: Any, new: Array) -> None:
    w.data = eager.tensor(new)


def _eager_add(w: Any, new: Array) -> None:
    with eager.no_grad():
        w.data.add_(eager.tensor(new - w.numpy()))


def _program(w: Any, new: Array) -> None:
    sg.compile([], [], updates=[(w, sg.constant(new))])()


def _warm_program(w: Any, new: Array) -> None:
    """The native entry counts the write."""
    v = sg.input("v", w.shape)
    step = sg.compile([v], sg.sum(v), updates=[(w, v)])
    for value in (new * 2, new * 3, new):
        step(value)


WRITERS = [_assign, _eager_copy, _eager_setitem, _eager_rows, _eager_data, _eager_add, _program,
           _warm_program]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_every_way_to_change_a_parameter_is_seen(write: Callable[[Any, Array], None]) -> None:
    x, w = sg.input("x", (16, 64)), parameter((64, 64))
    run, a = sg.compile([x], x @ w), values((16, 64), "float32", 1)
    for round_ in range(3):
        settle(run, a)
        assert run._packed.versions() == [w.cell.version]
        new = values((64, 64), "float32", 20 + round_)
        write(w, new)
        close(w.numpy(), new)
        for _ in range(PATIENCE + 1):
            close(run(a), a @ w.numpy())


def test_layers_that_load_and_train() -> None:
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    x = sg.input("x", (16, 64))
    run = sg.compile([x], layer(x))
    step = sg.compile(
        [x], sg.mean(layer(x) ** 2),
        updates=sg.optim.SGD(layer.parameters(), lr=0.5).minimize(sg.mean(layer(x) ** 2)),
    )  # fmt: skip
    a = values((16, 64), "float32", 1)

    def check() -> None:
        close(run(a), a @ layer.weight.numpy().T + layer.bias.numpy())

    for change in (lambda: step(a), lambda: layer.load_state_dict(other.state_dict()),
                   lambda: step(a)):  # fmt: skip
        settle(run, a)
        before = run(a)
        change()
        check()
        assert np.abs(run(a) - before).max() > 1e-3
        settle(run, a)
        check()


def test_a_write_that_is_cut_short_counts() -> None:
    """The count comes before the write, so an error or an interrupt in it leaves no old copy."""
    x, w = sg.input("x", (16, 64)), parameter((64, 64))
    run, a = sg.compile([x], x @ w), values((16, 64), "float32", 1)
    settle(run, a)

    def half() -> None:
        w.cell.view()[:32] = 7
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        w.data.change(half)
    close(run(a), a @ w.numpy())
    assert (w.numpy()[:32] == 7).all()


def test_a_failed_step_is_no_write() -> None:
    w, i = parameter((64, 64)), sg.input("i", (1,), "int64")
    step = sg.compile([i], sg.take(w, i, axis=0), updates=[(w, w * 2.0)])
    before, version = w.numpy(), w.cell.version
    for _ in range(2):
        with pytest.raises(ExecutionError):
            step(np.array([64]))
    assert w.cell.version == version and (w.numpy() == before).all()
    step(np.array([3]))
    assert w.cell.version == version + 1


def test_calls_and_writers_of_several_threads() -> None:
    """Each result is that of one value of the parameter, whoever packs it when."""
    x, w = sg.input("x", (24, 64)), parameter((64, 64))
    run, a = sg.compile([x], x @ w), values((24, 64), "float32", 1)
    tables = [values((64, 64), "float32", seed) for seed in range(4)]
    wanted = set()
    plain = sg.compile([x], x @ w, disable=("prepack",))
    for table in tables:
        w.assign(table)
        wanted.add(plain(a).tobytes())
    stop, wrong = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            if run(a).tobytes() not in wanted:
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(60):
        w.assign(tables[i % 4])
        for _ in range(PATIENCE):
            run(a)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# --- artifacts, caches ----------------------------------------------------------------------------


def test_saved_and_loaded() -> None:
    x, w = sg.input("x", ("N", 64)), parameter((96, 64))
    c = values((96, 64), "float32", 2)
    made = Threaded.of([x], sg.tanh(x @ w.T) @ sg.constant(c))
    artifact = Artifact.from_bytes(made.artifact.to_bytes())
    assert artifact == made.artifact and len(artifact.manifest.packs) == 1
    cell = StateCell(w.numpy(), "w")
    a = values((20, 64), "float32", 1)
    for options in ({}, {"native": False}):
        run = Loaded(artifact, [cell], **options)
        for _ in range(PATIENCE + 1):
            close(run(a), np.tanh(a @ cell.numpy().T) @ c)
        # Where nothing keeps threads apart nothing is packed.
        assert run._packed.versions() == ([-1] if options else [cell.version])
        cell.assign(cell.numpy() * 0.5)
        close(run(a), np.tanh(a @ cell.numpy().T) @ c)


def test_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATICGRAD_CACHE", raising=False)
    monkeypatch.delenv("STATICGRAD_VERIFY", raising=False)
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path))
    c, a = values((96, 64), "float32", 2), values((20, 64), "float32", 1)

    def program(seed: int) -> tuple[Any, Any]:
        x, w = sg.input("x", (20, 64)), parameter((96, 64), seed)
        return sg.compile([x], sg.tanh(x @ w.T) @ sg.constant(c)), w

    first, _ = program(1)
    before = driver.compilations
    monkeypatch.setattr("staticgrad.passes.pipeline.run_pipeline", None)
    found, w = program(2)
    assert driver.compilations == before and found.manifest.packs == first.manifest.packs
    for _ in range(PATIENCE + 1):
        close(found(a), np.tanh(a @ w.numpy().T) @ c)
    assert found._packed.versions() == [0]
    assert found.report()["packed_bytes"] == first.report()["packed_bytes"] > 0


def test_manifests_that_do_not_fit_are_refused() -> None:
    from dataclasses import replace

    from staticgrad_runtime.errors import ArtifactError

    x, w = sg.input("x", (20, 64)), parameter((64, 64))
    manifest = Threaded.of([x], x @ w).artifact.manifest
    (pack,) = manifest.packs
    written = [replace(s, written=True) for s in manifest.state]
    symbolic = [replace(b, size_bytes="N") if b.kind == "packed" else b for b in manifest.buffers]
    for wrong in (
        replace(manifest, packs=[]),
        replace(manifest, packs=[replace(pack, buffer=pack.state)]),
        replace(manifest, packs=[replace(pack, state=99)]),
        replace(manifest, packs=[replace(pack, rows="M")]),
        replace(manifest, packs=[replace(pack, useful=[1])]),
        replace(manifest, state=written),
        replace(manifest, buffers=symbolic),
    ):
        with pytest.raises(ArtifactError):
            wrong.validate()
