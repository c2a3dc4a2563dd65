"""The rewriting driver: order, locations, sub-graphs, the step limit, long chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Loc, use_locs
from staticgrad.passes.fuse import fuse
from staticgrad.rewrite.driver import RewriteLoopError, rebuilt, rewrite, rule_table
from staticgrad.rewrite.pattern import Numbering, constant_of, make, number

from .pass_checks import formula, run, verified


def sin_to_cos(node: Any) -> Any:
    return [make("cos", node.operands[0])] if node.op == "sin" else None


def test_a_rule_that_applies_nowhere_gives_the_graph_itself() -> None:
    x = sg.input("x", (3,))
    g = Graph([x], [sg.exp(x)])
    assert rewrite(g, sin_to_cos) is g


def test_every_node_is_rewritten_and_its_users_rebuilt() -> None:
    x, p = sg.input("x", (3,)), sg.parameter(np.zeros(3, "float32"), name="p")
    g = Graph([x], [sg.exp(sg.sin(x)), x], [(p, sg.sin(p) + sg.sin(sg.sin(x)))])
    after = verified(rewrite(g, sin_to_cos))
    assert formula(after.outputs[0]) == "exp(cos(x))"
    assert after.outputs[1] is x
    assert after.updates[0][0] is p
    assert formula(after.updates[0][1]) == "add(cos(p), cos(cos(x)))"


def test_what_a_rule_makes_is_looked_at_again() -> None:
    def down(node: Any) -> Any:
        """add(x, n) -> add(add(x, n - 1), 1), for whole n above 1"""
        c = number(node.operands[1]) if node.op == "add" else None
        if c is None or c <= 1:
            return None
        one = constant_of(1, node.types[0].dtype)
        return [make("add", make("add", node.operands[0], constant_of(c - 1, one.dtype)), one)]

    x = sg.input("x", (2,))
    g = Graph([x], [x + 50.0])
    after = verified(rewrite(g, down))
    assert len([n for n in after if n.op == "add"]) == 50
    np.testing.assert_array_equal(run(after, [np.zeros(2, "float32")])[0], [50, 50])


def test_rules_that_undo_each_other_are_reported() -> None:
    def swap(node: Any) -> Any:
        return [make("add", *reversed(node.operands))] if node.op == "add" else None

    x, y = sg.input("x", (2,)), sg.input("y", (2,))
    with pytest.raises(RewriteLoopError, match="does not come to an end"):
        rewrite(Graph([x, y], [x + y]), swap)


def test_a_rule_that_changes_the_type_is_a_bug() -> None:
    x = sg.input("x", (2,))
    g = Graph([x], [sg.sin(x)])
    with pytest.raises(AssertionError, match="replaced"):
        rewrite(g, lambda n: [make("isnan", n.operands[0])] if n.op == "sin" else None)


def test_what_replaces_a_node_has_its_locations() -> None:
    here = frozenset((Loc("model.py", 7),))
    x = sg.input("x", (3,))
    with use_locs(here):
        y = sg.sin(x)
    after = rewrite(Graph([x], [sg.exp(y)]), sin_to_cos)
    cos = next(n for n in after if n.op == "cos")
    assert after.locs[cos] == here
    exp = next(n for n in after if n.op == "exp")
    assert {loc.file for loc in after.locs[exp]} == {__file__}


def test_closed_sub_graphs_are_rewritten_too() -> None:
    x = sg.input("x", ("N",))
    fused = fuse(Graph([x], [sg.exp(sg.sin(x) * x)]))
    assert any(n.op == "fused" for n in fused)
    after = verified(rewrite(fused, sin_to_cos))
    body = next(n.attrs["body"] for n in after if n.op == "fused")
    assert "cos" in [n.op for n in body] and "sin" not in [n.op for n in body]
    row = np.linspace(0, 1, 5, dtype="float32")
    np.testing.assert_allclose(run(after, [row])[0], np.exp(np.cos(row) * row), rtol=1e-6)


def test_the_first_rule_of_an_op_that_applies_is_taken() -> None:
    tried: list[str] = []

    def rules_of(op: str) -> list[Any]:
        tried.append(op)
        return [lambda n: None, sin_to_cos] if op == "sin" else []

    x = sg.input("x", (3,))
    g = Graph([x], [sg.sin(x) + sg.sin(x)])
    assert formula(rewrite(g, rule_table(rules_of)).outputs[0]) == "add(cos(x), cos(x))"
    assert tried.count("sin") == 1


def test_constraints_of_sizes_stay() -> None:
    x, y = sg.input("x", ("N",)), sg.input("y", ("M",))
    g = Graph([x, y], [sg.sin(x) + y])
    assert g.constraints
    assert rewrite(g, sin_to_cos).constraints == g.constraints


def test_rebuilt_keeps_what_does_not_differ() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    node = (x + y).node
    assert rebuilt(node, node.operands) is node
    other = rebuilt(node, [y, x])
    assert other.types == node.types and other.locs == node.locs and other.operands == (y, x)
    wide = sg.input("wide", (2, 3))
    assert rebuilt(node, [wide, x]).types[0].shape == (2, 3)


def test_long_chains_need_no_recursion() -> None:
    x = sg.input("x", (2,))
    v = x
    for _ in range(12_000):
        v = sg.sin(v)
    after = rewrite(Graph([x], [v]), sin_to_cos)
    assert len(after) == 12_001 and all(n.op != "sin" for n in after)


def test_numbering_tells_equal_computations() -> None:
    x = sg.input("x", (3,))
    zero, minus = sg.constant(0.0), sg.constant(-0.0)
    a, b, c = sg.sin(x) + zero, sg.sin(x) + zero, sg.sin(x) + minus
    first, second = sg.random.normal((3,)), sg.random.normal((3,))
    numbering = Numbering()
    for node in Graph([x], [a, b, c, first, second]).nodes:
        numbering.add(node)
    assert numbering.same(a, b) and not numbering.same(a, c)
    assert not numbering.same(zero, minus)
    assert not numbering.same(first, second)
