"""What only a matrix product reads is computed where the product packs it: which producers are,
that nothing is stored, and bits without `fuse`, for any threads, dims and loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen import sharing
from staticgrad.kernels.ir import Template
from staticgrad.kernels.parser import parse_kernel
from staticgrad.kernels.printer import kernel_text, program_text
from staticgrad.kernels.program import Program, Repeat, steps_of
from staticgrad.kernels.verify import VerifyError, verify_kernel, verify_program
from staticgrad.kernels.walk import accesses
from staticgrad.passes import prologue
from staticgrad_runtime import binding, workers

from .test_gemm import values
from .threaded_programs import Threaded, bits

Array = np.ndarray[Any, Any]
M, K, N = 120, 96, 40  # an operand of 46 KB: more than the first cache


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prologue, "LEAST_BYTES", -1)
    monkeypatch.setattr(prologue, "LEAST_USES", 0)


@pytest.fixture
def threads_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "threads_for", lambda most, *_: most)
    monkeypatch.setattr(workers, "WAKE_NS", 0)
    monkeypatch.setattr(sharing, "LEAST_SHARED_NS", 0)


def inputs(*shapes: Sequence[int | str], dtype: str = "float32") -> list[Any]:
    return [sg.input(f"x{i}", tuple(s), dtype=dtype) for i, s in enumerate(shapes)]


def program_of(ins: list[Any], outs: Any, **options: Any) -> Program:
    outs = outs if isinstance(outs, list) else [outs]
    program = compile_stages(sg.Graph(ins, outs), **options).program
    verify_program(program)
    return program


def product_of(program: Program) -> Template:
    (found,) = products_of(program)
    return found


def products_of(program: Program) -> list[Template]:
    touched = (accesses(step.kernel.body) for step in steps_of(program.items))
    return [
        s for each in touched for s, _ in each if isinstance(s, Template) and s.name == "matmul"
    ]


def sides(program: Program) -> tuple[bool, bool]:
    left, right = product_of(program).prologues
    return left is not None, right is not None


def data(ins: list[Any], sizes: dict[str, int] | None = None) -> list[Array]:
    table = sizes or {}
    return [
        values(tuple(table.get(str(d), d) for d in x.shape), str(x.dtype), i)
        for i, x in enumerate(ins)
    ]


def check(ins: list[Any], out: Any, sizes: dict[str, int] | None = None) -> None:
    """The bits without fusion, and NumPy's values."""
    arrays = data(ins, sizes)
    found = sg.compile(ins, out)(*arrays)
    apart = sg.compile(ins, out, disable=["fuse"])(*arrays)
    assert found.tobytes() == apart.tobytes()
    expected = sg.compile(ins, out, mode="reference")(*arrays)
    if found.dtype.kind == "f":
        tolerance = 1e-4 if found.dtype == np.float32 else 1e-12
        scale = np.abs(expected).max(initial=1.0)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
    else:
        np.testing.assert_array_equal(found, expected)


def test_the_left_operand_is_never_stored() -> None:
    x, mean, scale, w = ins = inputs((M, K), (K,), (K,), (K, N))
    y = sg.relu(((x - mean) * scale) @ w)
    program = program_of(ins, y)
    assert len(program.steps) == 1 and sides(program) == (True, False)
    sizes = {b.size for b in program.buffers if b.kind == "temp" and not b.per_thread}
    assert M * K not in sizes
    check(ins, y)


def test_the_right_operand_is_never_stored() -> None:
    x, w, mask = ins = inputs((M, K), (K, 2 * K), (K, 2 * K))
    y = x @ (w * mask) + 1.0
    assert sides(program_of(ins, y)) == (False, True)
    check(ins, y)


def test_both_operands() -> None:
    x, s, w, mask = ins = inputs((M, K), (M, 1), (2 * K, K), (2 * K, K))
    y = (x * s) @ (w * mask).T
    program = program_of(ins, y)
    assert len(program.steps) == 1 and sides(program) == (True, True)
    check(ins, y)


def test_the_memory_of_a_weighted_gram_matrix() -> None:
    """`X.T diag(w) X`: the weighted rows are 400 KB that nobody holds."""
    x, w = ins = inputs((4000, 25), (4000, 1))
    y = (x * w).T @ x
    runs = (sg.compile(ins, y, disable=off, threads=1) for off in ([], ["fuse"]))
    fused, apart = (run.report().to_dict()["peak_bytes"] for run in runs)
    assert apart - fused > 300_000
    (left, _) = product_of(program_of(ins, y)).prologues
    assert left is not None and "ld*row" in kernel_text(left)
    check(ins, y)


def test_the_transpose_is_computed_where_that_reads_whole_vectors() -> None:
    """k is the row of the tile for `(x * w).T`, the column for `x * w`."""
    x, w = inputs((4000, 25), (4000, 1))
    (gram, _) = product_of(program_of([x, w], (x * w).T @ x)).prologues
    x2, w2 = inputs((400, 96), (96,))
    v = sg.input("v", (96, 40))
    (plain, _) = product_of(program_of([x2, w2, v], (x2 * w2) @ v)).prologues
    assert gram is not None and plain is not None
    # Whole rows of x, of 25 elements; one weight for each.
    assert "multiply(b0[column+25*row], b1[row])" in kernel_text(gram)
    assert "multiply(b0[l0*row+column], b1[column])" in kernel_text(plain)


STAYS: dict[str, Callable[[], tuple[list[Any], Any]]] = {}


def stays(case: Callable[[], tuple[list[Any], Any]]) -> Callable[[], tuple[list[Any], Any]]:
    STAYS[case.__name__] = case
    return case


@stays
def an_operand_that_others_read() -> tuple[list[Any], Any]:
    x, w = ins = inputs((M, K), (K, N))
    y = x * 2.0
    return ins, [y @ w, sg.sum(y, axis=0)]


@stays
def an_operand_of_two_products() -> tuple[list[Any], Any]:
    x, w, v = ins = inputs((M, K), (K, N), (K, N))
    y = x + 1.0
    return ins, [y @ w, y @ v]


@stays
def an_output() -> tuple[list[Any], Any]:
    x, w = ins = inputs((M, K), (K, N))
    y = x + 1.0
    return ins, [y, y @ w]


@stays
def a_costly_producer() -> tuple[list[Any], Any]:
    x, w = ins = inputs((M, K), (K, N))
    return ins, sg.tanh(x) @ w


@stays
def random_numbers() -> tuple[list[Any], Any]:
    x, w = ins = inputs((M, K), (K, N))
    return ins, (x * sg.random.bernoulli(0.5, (M, K)).astype("float32")) @ w


@stays
def a_small_operand() -> tuple[list[Any], Any]:
    x, w = ins = inputs((8, K), (K, N))
    return ins, (x + 1.0) @ w


@stays
def few_columns() -> tuple[list[Any], Any]:
    x, w = ins = inputs((M, K), (K, 8))
    return ins, (x + 1.0) @ w


@stays
def rows_of_any_number() -> tuple[list[Any], Any]:
    x, w = ins = inputs(("rows", K), (K, 2 * K))
    return ins, x @ (w + 1.0)


@stays
def an_operand_that_is_divided_up() -> tuple[list[Any], Any]:
    """Its rows are parts of rows of what it is computed of."""
    x, w = ins = inputs((M, K, 5), (K, N))
    y = sg.reshape(x + 1.0, (5, M, K))
    return ins, y @ w


@pytest.mark.parametrize("case", STAYS)
def test_what_stays_a_kernel_of_its_own(case: str) -> None:
    ins, outs = STAYS[case]()
    program = program_of(ins, outs)
    products = products_of(program)
    assert products and all(s.prologues == (None, None) for s in products)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 14, 15, 33, 200])
def test_any_number_of_rows(rows: int) -> None:
    """Few rows are multiplied one by one, or with packed copies of the parameter."""
    x, mean = ins = inputs(("rows", K), (K,))
    for w in (sg.input("w", (K, N)), sg.parameter(values((K, N), "float32", 5), name="w"),
              sg.parameter(values((N, K), "float32", 5), name="w").T):  # fmt: skip
        every = [*ins, w] if w.node.op == "input" else ins
        y = sg.relu((x - mean) @ w)
        assert sides(program_of(every, y)) == (True, False)
        check(every, y, {"rows": rows})


@pytest.mark.parametrize("dtype", ["float64", "int8", "int32", "uint16", "int64"])
def test_dtypes(dtype: str, any_size: None) -> None:
    x, s, w, t = ins = inputs((33, 70), (33, 1), (70, 50), (50,), dtype=dtype)
    y = (x * s + x) @ (w * t)
    assert sides(program_of(ins, y)) == (True, True)
    check(ins, y)


def test_a_producer_of_another_dtype(any_size: None) -> None:
    x, w = ins = [sg.input("x", (40, 70), dtype="uint8"), sg.input("w", (70, 30))]
    y = (x.astype("float32") / 255.0) @ w
    assert sides(program_of(ins, y)) == (True, False)
    check(ins, y)


BATCHES = [
    ((5, 30, 70), (70, 40)), ((5, 1, 70), (70, 40)), ((5, 30, 70), (5, 70, 40)),
    ((2, 3, 30, 70), (3, 70, 40)), ((2, 3, 30, 70), (2, 1, 70, 40)),
    ((2, 3, 1, 70), (2, 1, 70, 40)),
    ((1, 30, 70), (6, 70, 40)), ((30, 70), (6, 70, 40)),
]  # fmt: skip


@pytest.mark.parametrize("symbolic", [False, True], ids=["declared", "symbolic"])
@pytest.mark.parametrize("shapes", BATCHES, ids=str)
def test_batches(shapes: tuple[tuple[int, ...], ...], symbolic: bool, any_size: None) -> None:
    first, second = shapes
    named = tuple(
        "B" if i == 0 and len(first) > 2 and symbolic and d > 1 else d for i, d in enumerate(first)
    )
    if symbolic and len(second) > 2 and second[0] == first[0]:
        second = ("B", *second[1:])  # type: ignore[assignment]
    x, s, w, t = ins = inputs(named, named[-2:], second, second[-1:])
    y = (x * s) @ (w - t)
    assert sides(program_of(ins, y)) == (True, True)
    check(ins, y, {"B": first[0]})


def test_rows_of_a_batch_of_single_rows() -> None:
    """64 matrices of one row are one matrix of 64."""
    x, w = ins = inputs((4, 16, 1, 96), (96, 40))
    program = program_of(ins, x @ w)
    assert product_of(program).sizes[0] == 64 and not any(
        hasattr(s, "var") for step in program.steps for s in step.kernel.body
    )
    check(ins, x @ w)


@pytest.mark.usefixtures("threads_whatever_the_size")
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_bits_for_any_threads(threads: int) -> None:
    x, mean, w, mask = ins = inputs((M, K), (K,), (K, 2 * K), (K, 2 * K))
    y = sg.relu((x - mean) @ (w * mask)).T @ (x * 2.0)
    program = Threaded.of(ins, y)
    arrays = data(ins)
    assert bits(program.on(threads)(*arrays)) == bits(program.on(1)(*arrays))


def recurrent(batch: int | str) -> tuple[list[Any], Any]:
    """`h <- tanh((h * 1.5 - b) @ w + x)`: the loop's product computes its left operand."""
    xs, b = inputs((7, batch, 64), (64,))
    w = sg.parameter(values((64, 64), "float32", 3) / 16, name="w")
    start = sg.input("start", (batch, 64))

    def step(h: Any, x: Any) -> tuple[Any, Any]:
        h = sg.tanh((h * 1.5 - b) @ w + x)
        return h, sg.sum(h, axis=1)

    last, sums = sg.scan(step, start, xs)
    return [xs, b, start], [last, sums]


@pytest.mark.parametrize("threads", [1, 3])
def test_in_a_loop_by_rows(threads: int, any_size: None, threads_whatever_the_size: None) -> None:
    """Threads keep to rows of their own, of what the prologue reads as well."""
    for batch in (64, "batch"):
        ins, outs = recurrent(batch)
        program = program_of(ins, outs)
        (loop,) = (item for item in program.items if isinstance(item, Repeat))
        assert loop.by_rows != 0 and sides(program) == (True, False)
        arrays = data(ins, {"batch": 64})
        found = sg.compile(ins, outs, threads=threads)(*arrays)
        apart = sg.compile(ins, outs, disable=["fuse", "by_rows", "prepack"], threads=1)(*arrays)
        assert [a.tobytes() for a in found] == [a.tobytes() for a in apart]


def test_gradients_through_a_prologue() -> None:
    x, s = inputs((M, K), (K,), dtype="float64")
    w = sg.parameter(values((K, N), "float64", 3), name="w")
    loss = sg.sum(sg.sin((x * s) @ w))
    gs, gw = sg.gradients(loss, [s, w])
    run = sg.compile([x, s], [gs, gw])
    xv, sv = data([x, s])
    wv = w.numpy()
    c = np.cos((xv * sv) @ wv)
    found_s, found_w = run(xv, sv)
    np.testing.assert_allclose(found_w, (xv * sv).T @ c, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found_s, (xv * (c @ wv.T)).sum(0), rtol=1e-10, atol=1e-10)


def test_nothing_is_computed_in_the_place_of_what_a_prologue_reads() -> None:
    """The new value of a state that the product's operand is computed of: row by row it would
    overwrite what later rows need."""
    state = sg.parameter(values((96, 96), "float32", 1), name="state")
    new = (state * 0.5) @ (state + 1.0)
    old = state.numpy()
    run = sg.compile([], [], updates=[(state, new)])
    run()
    expected = (old * np.float32(0.5)) @ (old + np.float32(1.0))
    np.testing.assert_allclose(state.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_constant_that_is_packed_and_in_a_prologue() -> None:
    """Only the packed form is multiplied with, but the prologue reads the constant itself."""
    x, w = sg.input("x", (128, 128)), sg.constant(values((128, 128), "float32", 1))
    for y in ((x * w) @ w, (x * w) @ w + w):
        assert sides(program_of([x], y)) == (True, False)
        check([x], y)


def test_a_left_side_that_lies_otherwise_is_copied() -> None:
    """Matrices that share their right side are rows of one, if need be of a copy."""
    x, w = ins = inputs((4, 64, 96), (96, 128))
    y = sg.permute_dims(x, (1, 0, 2)) @ w
    program = program_of(ins, y)
    assert product_of(program).sizes[11] == 0 and len(program.steps) == 2  # no batch
    check(ins, y)
    tall, v = every = inputs((2, 96, 300), (96, 8))
    z = sg.permute_dims(tall, (0, 2, 1)) @ v  # more rows than columns: read where they lie
    assert len(program_of(every, z).steps) == 1
    check(every, z)


def test_the_text_of_a_prologue() -> None:
    x, s, w, t = ins = inputs((M, K), (M, 1), (K, N), (N,))
    text = program_text(program_of(ins, (x * s) @ w))
    assert "left prologue kernel prologue(tile: out float32" in text
    kernel = program_of(ins, (x * s) @ (w * t)).steps[-1].kernel
    assert kernel_text(parse_kernel(kernel_text(kernel))) == kernel_text(kernel)


HEAD = "kernel k(x: in float32, y: out float32; n) {{ call matmul(y; n) {} }}"
BROKEN = {
    "no tile": ("left prologue kernel p(x: in float32; ld) { }", "a prologue writes to "),
    "another result": ("right prologue kernel p(tile: out float32, y: out float32; ld) { }",
                       "a prologue writes to tile, y, expected tile by ld"),
    "no stride": ("left prologue kernel p(tile: out float32) { }", "expected tile by ld"),
    "a buffer": ("left prologue kernel p(tile: out float32, z: in float32; ld) { }",
                 "the prologue's buffer z is none of k's"),
    "a size": ("left prologue kernel p(tile: out float32; ld, m) { }",
               "the prologue's size m is none of k's"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_prologues_are_named(case: str) -> None:
    text, message = BROKEN[case]
    with pytest.raises(VerifyError, match=message):
        verify_kernel(parse_kernel(HEAD.format(text)))
