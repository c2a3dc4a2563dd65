"""Batching against a Python loop: every record, over each operand alone and over all together, with
int, symbolic and zero sizes; nested; compiled; and the structure of what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_graph
from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.loc import Loc
from staticgrad.ops import registry
from staticgrad.ops.convert import constant_array
from staticgrad.ops.gather import gather, scatter_add
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.registry import NotBatchable, Sample, make
from staticgrad.ops.tensor import Tensor

from .oracle import Array, arrays_of, evaluate

ROWS = 3
B = Dim.symbol("B")


def _batchable(name: str) -> bool:
    op = registry.get(name)
    if isinstance(op.batch, NotBatchable):
        return False
    return any(s.operands for s in op.samples())


NAMES = sorted(name for name in registry.all_ops() if _batchable(name))


def rows_of(name: str, array: Array, count: int = ROWS) -> Array:
    """The array and others like it: its elements in another order, floats a little smaller, which
    stays valid for every record (indices in range, lines that are searched in sorted)."""
    rng = np.random.default_rng([7, *array.shape])
    rows = [array]
    for r in range(1, count):
        row = rng.permutation(array.flatten()).reshape(array.shape)
        rows.append((row * (1 - r / 8)).astype(array.dtype) if array.dtype.kind == "f" else row)
    found = np.stack(rows)[:count]
    return np.sort(found, axis=-1) if name == "searchsorted" and array.ndim else found


@dataclass
class Case:
    """A record's node and its batched results: `inputs` are placeholders of one item, `many` the
    inputs of the batched graph, with the batch axis where `which` says so."""

    name: str
    inputs: list[Tensor]
    results: list[Tensor]
    which: tuple[bool, ...]
    many: list[Tensor]
    found: list[tuple[Any, bool]]

    @staticmethod
    def of(name: str, sample: Sample, which: tuple[bool, ...], size: Any) -> Case:
        arrays = arrays_of(sample)
        inputs = [declare(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
        results: list[Any] = list(make(name, inputs, sample.attrs).results)
        many = [
            declare(f"m{i}", (size, *v.shape), v.dtype) if b else v
            for i, (v, b) in enumerate(zip(inputs, which))
        ]
        replaced = {v: m for v, m, b in zip(inputs, many, which) if b}
        return Case(name, inputs, results, which, many, batched(results, replaced, size))

    def run(self, sample: Sample, count: int) -> tuple[list[Array], list[Array]]:
        """The batched results, and those of the rows one by one."""
        arrays = arrays_of(sample)
        stacked = [rows_of(self.name, a, count) if b else a for a, b in zip(arrays, self.which)]
        got = evaluate([v for v, _ in self.found], self.many, stacked)
        lines = []
        for r in range(count):
            row = [np.asarray(a[r]) if b else a for a, b in zip(stacked, self.which)]
            lines.append(evaluate(self.results, self.inputs, row))
        wanted = [
            np.stack(rows) if rows else np.empty((0, *v.shape), v.dtype.numpy)
            for v, rows in zip(self.results, list(zip(*lines)) or [()] * len(self.results))
        ]
        return got, wanted


def patterns(name: str, sample: Sample) -> Iterator[tuple[bool, ...]]:
    """Each operand alone, then all together. State that a switch writes is one for all rows."""
    count = len(sample.operands)
    free = 2 if name == "training_switch" else count
    for i in range(free):
        yield tuple(j == i for j in range(count))
    if free > 1:
        yield tuple(j < free for j in range(count))


def assert_equal(name: str, got: Sequence[Array], wanted: Sequence[Array], what: Any) -> None:
    """Integers and bools exactly, floats to the record's tolerance of the largest element."""
    op = registry.get(name)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape, (name, what)
        if w.dtype.kind != "f":
            np.testing.assert_array_equal(g, w, err_msg=f"{name} {what}")
            continue
        rtol = op.tolerance.float32 if w.dtype == np.float32 else op.tolerance.float64
        scale = np.max(np.abs(w), initial=0.0, where=np.isfinite(w))
        np.testing.assert_allclose(g, w, rtol, rtol * scale, err_msg=f"{name} {what}")


def text(sample: Sample) -> str:
    return f"{[f'{a.dtype}{list(a.shape)}' for a in arrays_of(sample)]} {dict(sample.attrs)}"


@pytest.mark.parametrize("name", NAMES)
def test_batching_is_a_loop(name: str) -> None:
    for number, sample in enumerate(registry.get(name).samples()):
        for which in patterns(name, sample):
            case = Case.of(name, sample, which, ROWS)
            assert all(flag for _, flag in case.found)
            assert_equal(name, *case.run(sample, ROWS), (which, text(sample)))
            if number % 4:
                continue
            case = Case.of(name, sample, which, B)
            for count in (ROWS, 1, 0):
                assert_equal(name, *case.run(sample, count), (which, count, text(sample)))
            for count in (1, 0):
                case = Case.of(name, sample, which, count)
                assert_equal(name, *case.run(sample, count), (which, count, text(sample)))


NESTED = (
    "add", "where", "softmax", "matmul", "conv", "conv_grad_input", "conv_grad_weight", "gather",
    "scatter_add", "sum", "max", "var", "cumulative_prod", "linear_recurrence", "sort", "argmax",
    "searchsorted", "concat", "slice", "pad", "reshape", "broadcast_to", "permute_dims", "diagonal",
    "max_pool", "max_pool_grad", "windows_sum",
)  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_nested_batching_is_two_loops(name: str) -> None:
    """The inner batch is over the first operand, the outer one over the first, the last, and both:
    the inner batch's rows, the second axis, are batched again."""
    for sample in list(registry.get(name).samples())[:8]:
        arrays = arrays_of(sample)
        inner = [rows_of(name, a, 2) if i == 0 else a for i, a in enumerate(arrays)]
        for outer in {(0,), (len(arrays) - 1,), (0, len(arrays) - 1)}:
            items = [declare(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
            once = [declare(f"y{i}", a.shape, str(a.dtype)) for i, a in enumerate(inner)]
            nodes = make(name, [items[0], *once[1:]], sample.attrs)
            middle = [v for v, _ in batched(nodes.results, {items[0]: once[0]}, 2)]
            twice = [
                declare(f"z{i}", ("B", *y.shape), y.dtype) if i in outer else y
                for i, y in enumerate(once)
            ]
            found = batched(middle, {once[i]: twice[i] for i in outer}, B)
            stacked = [rows_of(name, a) if i in outer else a for i, a in enumerate(inner)]
            got = evaluate([v for v, _ in found], twice, stacked)
            plain = make(name, items, sample.attrs).results
            for r, q in np.ndindex(ROWS, 2):
                row = [a[r] if i in outer else a for i, a in enumerate(stacked)]
                row[0] = row[0][q]
                wanted = evaluate(plain, items, [np.asarray(a) for a in row])
                assert_equal(name, [g[r, q] for g in got], wanted, (outer, text(sample)))


COMPILED = (
    "matmul", "conv", "conv_grad_input", "conv_grad_weight", "gather", "scatter_add",
    "searchsorted", "sort", "max_pool_grad", "pad",
)  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    """Every third sample: one program for all, its batch symbolic, called with 3 rows and with
    none; in it a size is bound once, so all samples share the batch."""
    cases, samples = [], []
    for sample in list(registry.get(name).samples())[::3]:
        for which in patterns(name, sample):
            cases.append(Case.of(name, sample, which, B))
            samples.append(sample)
    inputs = [v for case in cases for v in case.many]
    renamed = [declare(f"v{i}", v.shape, v.dtype) for i, v in enumerate(inputs)]
    fresh = iter(renamed)
    outputs = []
    for case, sample in zip(cases, samples):
        own = [next(fresh) for _ in case.many]
        items = [x if b else v for x, v, b in zip(case.inputs, own, case.which)]
        replaced = {x: v for x, v, b in zip(case.inputs, own, case.which) if b}
        outputs += [v for v, _ in batched(make(name, items, sample.attrs).results, replaced, B)]
    program = compile_graph(Graph(renamed, outputs), cache=False)
    for count in (ROWS, 0):
        arrays: list[Array] = []
        wanted: list[Array] = []
        for case, sample in zip(cases, samples):
            operands = arrays_of(sample)
            arrays += [
                rows_of(name, a, count) if b else a for a, b in zip(operands, case.which)
            ]  # fmt: skip
            wanted += case.run(sample, count)[1]
        assert_equal(name, program(*arrays), wanted, count)


# --- structure ------------------------------------------------------------------------------------


def ops_of(*values: Any) -> list[str]:
    leaves = ("input", "constant")
    return [n.op for n in reachable(values) if n.op not in leaves]


def one(output: Any, replaced: dict[Any, Any], size: Any = B) -> Any:
    ((found, flag),) = batched([output], replaced, size)
    assert flag
    return found


def test_one_matmul_stays_one() -> None:
    w = declare("w", (5, 7))
    many = declare("X", (B, 4, 5))
    x = declare("x", (4, 5))
    assert ops_of(one(x @ w, {x: many})) == ["matmul"]
    # A row for each item, or a column: the rows of one product, no product for each item.
    row, rows = declare("r", (5,)), declare("R", (B, 5))
    for y, shape in ((row @ w, (B, 5)), (w.T @ row, (B, 5))):
        found = one(y, {row: rows})
        products = [n for n in reachable([found]) if n.op == "matmul"]
        assert [n.operands[0].shape for n in products] == [shape]
        assert "broadcast_to" not in ops_of(found)
    # Ranks differ: the batch axis stays in front of all others.
    deep, deeps = declare("d", (3, 4, 5)), declare("D", (B, 5, 7))
    assert one(deep @ w, {w: deeps}).shape == (B, 3, 4, 7)


def test_a_shared_table_is_not_repeated() -> None:
    table, i = declare("t", (9, 4)), declare("i", (6,), "int64")
    many = declare("I", (B, 6), "int64")
    assert ops_of(one(gather(table, [i]), {i: many})) == ["gather"]
    assert ops_of(one(gather(table, [i], axis=1), {i: many})) == ["gather", "permute_dims"]
    tables = declare("T", (B, 9, 4))
    assert ops_of(one(gather(table, [i]), {table: tables})) == ["gather"]
    values = declare("V", (B, 6, 4))
    v = declare("v", (6, 4))
    assert ops_of(one(scatter_add(v, [i], (9, 4)), {v: values})) == ["scatter_add"]


def test_convolutions_fold() -> None:
    shared: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    x, w = declare("x", (2, 4, 6, 6)), declare("w", (8, 2, 3, 3))
    y = registry.apply("conv", x, w, **shared, groups=2)
    xs, ws = declare("X", (3, 2, 4, 6, 6)), declare("W", (3, 8, 2, 3, 3))

    def convolution(replaced: dict[Any, Any]) -> Any:
        (node,) = [n for n in reachable([one(y, replaced, 3)]) if n.op == "conv"]
        return node

    images = convolution({x: xs})
    assert images.operands[0].shape == (6, 4, 6, 6) and images.attrs["groups"] == 2
    channels = convolution({w: ws})
    assert channels.operands[1].shape == (24, 2, 3, 3) and channels.attrs["groups"] == 2
    both = convolution({x: xs, w: ws})
    assert both.operands[0].shape == (2, 12, 6, 6) and both.attrs["groups"] == 6


def test_what_depends_on_no_item_stays() -> None:
    x, w = declare("x", (5,)), declare("w", (5,))
    shared = sg.exp(w) * 2
    many = declare("X", (B, 5))
    found = batched([x * shared, shared, x, w], {x: many}, B)
    assert [flag for _, flag in found] == [True, False, True, False]
    assert found[1][0] is shared and found[2][0] is many and found[3][0] is w
    assert shared.node in reachable([found[0][0]])


def test_values_inside_a_graph_can_be_replaced() -> None:
    x = declare("x", (5,))
    inner = sg.exp(x)
    many = declare("M", (B, 5))
    found = one(inner + 1, {inner: many})
    assert x.node not in reachable([found])
    assert found.shape == (B, 5)


def test_lines_of_the_user_are_kept() -> None:
    x, many = declare("x", (5,)), declare("X", (B, 5))
    y = sg.sin(x)
    assert one(y, {x: many}).node.locs == y.node.locs
    assert all(isinstance(loc, Loc) for loc in y.node.locs)


def test_sizes_written_in_another_way() -> None:
    """The batch is one symbol everywhere, whatever the axis of an argument is called."""
    x, z = declare("x", (5,)), declare("z", (5,))
    a, b = declare("A", ("N", 5)), declare("C", ("M", 5))
    found = one(registry.apply("linear_recurrence", x, z, axis=0, reverse=False, shifted=False),
                {x: a, z: b}, Dim.symbol("N"))  # fmt: skip
    assert found.shape == (Dim.symbol("N"), 5)
    ones = np.ones((4, 5), "float32")
    assert evaluate([found], [a, b], [ones, ones])[0].shape == (4, 5)
    with pytest.raises(sg.BindError):
        evaluate([found], [a, b], [ones, ones[:3]])


def test_a_long_chain() -> None:
    x, many = declare("x", ()), declare("X", (B,))
    y: Any = x
    for _ in range(5000):
        y = y + 1.0
    assert one(y, {x: many}).shape == (B,)


def test_wrong_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x, many = declare("x", (5,)), declare("X", (B, 5))
    y = sg.exp(x)
    op = registry.get("exp")
    for rule, message in (
        (lambda c: (), "gave 0 results"),
        (lambda c: constant_array(np.zeros((5,), "float32")), "expected float32"),
        (lambda c: c.operands[0].astype("int32"), "expected float32"),
    ):
        changed = registry.Op(**{**vars(op), "batch": rule})
        monkeypatch.setitem(registry._registry, "exp", changed)
        with pytest.raises(AssertionError, match=message):
            batched([y], {x: many}, B)
    with pytest.raises(AssertionError, match="replaces a value"):
        batched([y], {x: x}, B)


def test_an_op_without_a_rule_says_so() -> None:
    x = declare("x", (5,))
    with pytest.raises(sg.UnsupportedError, match=r"can't be batched \(vmap\): "):
        NotBatchable("why")(registry.BatchContext((), (), 2, {}, (), (), x.node))


# --- with gradients -------------------------------------------------------------------------------


def _network(x: Any, kernel: Any, w: Any) -> Any:
    shared: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    h = registry.apply("conv", x.reshape(1, 2, 6, 6), kernel, **shared, groups=1)
    pooled = registry.apply("max_pool", sg.tanh(h), kernel=(2, 2), stride=(2, 2), ceil_mode=False,
                            padding=((0, 0), (0, 0)), dilation=(1, 1))  # fmt: skip
    return sg.logsumexp(pooled.reshape(1, 27) @ w)


@pytest.mark.parametrize("size", [ROWS, B])
def test_gradients_of_each_item_and_of_the_batch(size: Any) -> None:
    """The gradients of the items, batched, sum up to the gradient of the batched losses' sum."""
    rng = np.random.default_rng(1)
    shapes = ((2, 6, 6), (3, 2, 3, 3), (27, 4))
    x, kernel, w = (declare(n, s, "float64") for n, s in zip("xkw", shapes))
    xs = declare("X", (size, *shapes[0]), "float64")
    arrays = [rng.standard_normal(s) for s in ((ROWS, *shapes[0]), *shapes[1:])]
    loss = _network(x, kernel, w)
    each = batched(gradients(loss, [x, kernel, w]), {x: xs}, size)
    total = one(loss, {x: xs}, size).sum()
    whole = gradients(total, [xs, kernel, w])
    outputs = [*(v for v, _ in each), *whole]
    got = compile_graph(Graph([xs, kernel, w], outputs), cache=False)(*arrays)
    np.testing.assert_allclose(got[0], got[3], rtol=1e-12, atol=1e-14)
    for item, summed in ((got[1], got[4]), (got[2], got[5])):
        np.testing.assert_allclose(item.sum(axis=0), summed, rtol=1e-12, atol=1e-13)
    lines = gradients(loss, [x, kernel, w])
    for r in range(ROWS):
        wanted = evaluate(lines, [x, kernel, w], [arrays[0][r], *arrays[1:]])
        for g, expected in zip(got[:3], wanted):
            np.testing.assert_allclose(g[r], expected, rtol=1e-12, atol=1e-14)
