"""cse and dce: what merges, what does not, what goes; bits stay."""

from __future__ import annotations

import numpy as np
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Loc, use_locs
from staticgrad.ops import registry
from staticgrad.ops.registry import make
from staticgrad.passes.cse import cse
from staticgrad.passes.dce import dce
from staticgrad.passes.fuse import fuse

from .pass_checks import assert_same_bits, formula, ops_of, run, verified

ROW = np.array([0.5, -1.5, 3.0], "float32")


def test_equal_nodes_are_merged() -> None:
    x = sg.input("x", (3,))
    before = Graph([x], [sg.exp(x) + sg.exp(x), sg.exp(x)])
    after = verified(cse(before))
    assert ops_of(after) == ["add", "exp"]
    assert_same_bits(run(after, [ROW]), run(before, [ROW]))
    assert cse(after) is after


def test_whole_expressions_are_merged() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    f = lambda: sg.sum(sg.sin(x * y) ** 2.0, axis=0) + 3.0  # noqa: E731
    after = cse(Graph([x, y], [f() * f()]))
    assert ops_of(after) == ["add", "multiply", "multiply", "pow", "sin", "sum"]


def test_order_of_operands_is_not_changed() -> None:
    """Canonicalisation orders them; cse keeps every bit, that of a NaN included."""
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    g = Graph([x, y], [x + y, y + x])
    assert cse(g) is g


def test_attributes_and_constants_are_compared_by_bits() -> None:
    x = sg.input("x", (3,))
    pads = [make("pad", [x], {"start": (1,), "step": (1,), "shape": (5,), "value": v}).results[0]
            for v in (0.0, -0.0, 0.0)]  # fmt: skip
    before = Graph([x], [*pads, x + 0.0, x + -0.0, x + 0.0])
    after = verified(cse(before))
    assert after.outputs[0] is after.outputs[2] and after.outputs[0] is not after.outputs[1]
    assert after.outputs[3] is after.outputs[5] and after.outputs[3] is not after.outputs[4]
    assert_same_bits(run(after, [ROW]), run(before, [ROW]))


def test_constants_of_other_dtypes_or_shapes_stay() -> None:
    values = [np.zeros(2, "float32"), np.zeros(1, "float64"), np.zeros(2, "int32"),
              np.zeros((1, 2), "float32"), np.zeros(2, "float32")]  # fmt: skip
    after = cse(Graph([], [sg.constant(v) for v in values]))
    assert len(after) == 4
    big = np.arange(5000.0)
    other = big.copy()
    other[-1] = 0
    assert len(cse(Graph([], [sg.constant(v) for v in (big, other, big.copy())]))) == 2


def test_iota_by_int_and_by_float_are_not_one() -> None:
    whole, real = sg.arange(0, 4, 1, dtype="float32"), sg.arange(0.0, 4.0, 1.0, dtype="float32")
    assert len(cse(Graph([], [whole, real]))) == 2


def test_random_draws_and_inputs_stay_apart() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    p = [sg.parameter(np.zeros(3, "float32"), name="p") for _ in range(2)]
    draws = [sg.random.normal((3,)) for _ in range(2)]
    g = Graph([x, y], [sg.sin(x), sg.sin(y), *p, *draws])
    after = cse(g)
    assert len({id(v) for v in after.outputs}) == 6


def test_merged_nodes_have_both_locations() -> None:
    x = sg.input("x", (3,))
    found = []
    for line in (3, 8):
        with use_locs(frozenset((Loc("model.py", line),))):
            found.append(sg.exp(x))
    after = cse(Graph([x], found))
    (node,) = (n for n in after if n.op == "exp")
    assert {loc.line for loc in after.locs[node]} == {3, 8}


def test_reductions_that_differ_in_keepdims_are_done_once() -> None:
    x = sg.input("x", ("N", 3))
    kept, dropped = sg.sum(x, axis=1, keepdims=True), sg.sum(x, axis=1)
    for outputs in ([kept, dropped, dropped + 1], [dropped, kept, sg.sum(x, axis=1)]):
        before = Graph([x], outputs)
        after = verified(cse(before))
        assert ops_of(after).count("sum") == 1 and ops_of(after).count("reshape") == 1
        rows = np.arange(6, dtype="float32").reshape(2, 3)
        assert_same_bits(run(after, [rows]), run(before, [rows]))
    assert len(cse(Graph([x], [sg.sum(x, axis=1), sg.max(x, axis=1)]))) == 3


def test_inside_of_sub_graphs() -> None:
    x = sg.input("x", ("N",))
    fused = fuse(Graph([x], [sg.exp(x) * sg.sin(x) + sg.exp(x)]))
    after = verified(cse(fused))
    body = next(n.attrs["body"] for n in after if n.op == "fused")
    assert [n.op for n in body].count("exp") == 1
    assert_same_bits(run(after, [ROW]), run(fused, [ROW]))


def test_updates_of_state() -> None:
    p = sg.parameter(np.ones(3, "float32"), name="p")
    g = Graph([], [p * 2.0], [(p, p * 2.0)])
    after = cse(g)
    assert after.outputs[0] is after.updates[0][1]


# --- dce ------------------------------------------------------------------------------------------


def test_identity_updates_go() -> None:
    p, q = (sg.parameter(np.ones(3, "float32"), name=n) for n in "pq")
    after = verified(dce(Graph([], [p + 1.0], [(p, p), (q, q * 2.0)])))
    assert [s.node.attrs["name"] for s, _ in after.updates] == ["q"]
    assert dce(after) is after


def test_unused_results_of_fused_nodes_go_with_what_they_read() -> None:
    x, y = sg.input("x", ("N",)), sg.input("y", ("N",))
    a, b = sg.input("a", ("N",)), sg.input("b", ("N",))
    shared = sg.sin(a)
    body = Graph([a, b], [shared * 2.0, sg.exp(b) + shared])
    node = registry.make("fused", [x, y], {"kind": "map", "body": body})
    before = Graph([x, y], [node.results[0] + 1.0])
    after = verified(dce(before))
    (fused,) = (n for n in after if n.op == "fused")
    assert fused.operands == (x,) and len(fused.results) == 1
    assert "exp" not in [n.op for n in fused.attrs["body"]]
    assert_same_bits(run(after, [ROW, ROW]), run(before, [ROW, ROW]))
    assert after.inputs == before.inputs
    whole = Graph([x, y], list(node.results))
    assert dce(whole) is whole


def test_chains_of_fused_nodes_lose_what_only_dead_results_read() -> None:
    x = sg.input("x", ("N",))
    a, b = sg.input("a", ("N",)), sg.input("b", ("N",))
    first = registry.make("fused", [x], {"kind": "map", "body": Graph([a], [a * 2.0, sg.exp(a)])})
    body = Graph([a, b], [a + 1.0, sg.sin(b)])
    second = registry.make("fused", first.results, {"kind": "map", "body": body})
    before = Graph([x], [second.results[0]])
    after = verified(dce(before))
    assert [len(n.results) for n in after if n.op == "fused"] == [1, 1]
    assert_same_bits(run(after, [ROW]), run(before, [ROW]))


def test_long_chains() -> None:
    x = sg.input("x", (2,))
    v = x
    for i in range(15_000):
        v = sg.sin(v) if i % 2 else v + sg.cos(x)
    g = Graph([x], [v])
    after = cse(g)
    assert [n.op for n in after].count("cos") == 1
    assert formula(dce(Graph([x], [x])).outputs[0]) == "x"
