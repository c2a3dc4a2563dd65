"""The verifier of graphs: what passes make is accepted, every broken invariant is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim
from staticgrad.ir.dtype import float32, float64
from staticgrad.ir.errors import VerifyError
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Loc, use_locs
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.ir.verify import call_problem, infer_by, verify_graph
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add, multiply
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.ops.linalg import matmul
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import make
from staticgrad.ops.softmax import softmax
from staticgrad.passes.expand import expand
from staticgrad.passes.fuse import fuse

INFER = infer_by(registry)
VECTOR = TensorType(float32, (4,))


def step() -> Graph:
    x = declare("x", ("N", 4))
    w = parameter(np.ones((4, 3), "float32"), name="w")
    loss = reduce_sum(softmax(matmul(x, w), axis=-1))
    return Graph([x], [loss], [(w, w - gradients(loss, w))])


def test_graphs_and_what_passes_make_of_them() -> None:
    graph = step()
    for g in (graph, expand(graph), fuse(expand(graph))):
        verify_graph(g, INFER)
    verify_graph(graph, INFER, located=True)


@pytest.mark.parametrize("name", sorted(registry.all_ops()))
def test_every_op_is_accepted(name: str) -> None:
    for sample in list(registry.get(name).samples())[:3]:
        arrays = [np.array(a) for a in sample.operands]
        inputs = [declare(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
        verify_graph(Graph(inputs, make(name, inputs, sample.attrs).results), INFER)


def test_no_recursion_and_linear() -> None:
    x = y = declare("x", ("N",))
    for _ in range(20_000):
        y = add(y, x)
    verify_graph(Graph([x], [y]), INFER)


# --- broken graphs --------------------------------------------------------------------------------


def node(op: str, operands: list[Value], attrs: object = None, types: object = (VECTOR,)) -> Node:
    return Node(op, operands, attrs, types)  # type: ignore[arg-type]


def x_() -> Value:
    return declare("x", (4,))


def constant_node(array: np.ndarray) -> Node:
    return Node("constant", [], {"dtype": float32, "shape": (4,)}, [VECTOR], payload=array)


def order() -> Graph:
    x = x_()
    y = add(x, x)
    z = multiply(y, x)
    return Graph([x], [z], order=[x.node, z.node, y.node])


def twice(names: bool) -> Graph:
    x = x_()
    attrs = {**x.node.attrs, "name": "x" if names else "y"}
    if names:
        attrs["id"] = "another"
    other = make("input", [], attrs)
    return Graph([x, other.results[0]], [add(x, other.results[0])])


def of(make_node: Callable[[Value], Node]) -> Graph:
    x = x_()
    return Graph([x], make_node(x).results)


def updated(state: Value, *values: Value) -> Graph:
    return Graph([], [], [(state, v) for v in values])


def unlocated() -> Graph:
    graph = step()
    del graph.locs[graph.outputs[0].node]
    return graph


def nested() -> Graph:
    p = declare("p0", (4,))
    body = Graph([p], node("add", [p, p], types=(TensorType(float64, (4,)),)).results)
    attrs = {"kind": "map", "body": body}
    return of(lambda x: node("fused", [x], attrs, (TensorType(float64, (4,)),)))


def w_() -> Value:
    return parameter(np.zeros(4, "float32"), name="w")


BROKEN: dict[str, tuple[Callable[[], Graph], str]] = {
    "order": (order, "operand 0, .*add.*, does not come before it"),
    "names": (lambda: twice(True), "the input name 'x' is given twice"),
    "ids": (lambda: twice(False), r"the input id \d+ is given twice"),
    "no input": (lambda: Graph([add(w_(), 1.0)], []), "among the inputs but is no input"),
    "unknown op": (lambda: of(lambda x: node("no_such_op", [x])), "unknown op 'no_such_op'"),
    "type": (lambda: of(lambda x: node("add", [x, x], types=(TensorType(float32, (5,)),))),
             r"<add #\d+: float32\[5\]>.*: inferred is float32\[4\]"),
    "dtype": (lambda: of(lambda x: node("add", [x, x], types=(TensorType(float64, (4,)),))),
              r"inferred is float32\[4\]"),
    "symbolic": (lambda: of(lambda x: node("add", [x, x],
                                           types=(TensorType(float32, (Dim.symbol("N"),)),))),
                 r"inferred is float32\[4\]"),
    "results": (lambda: of(lambda x: node("add", [x, x], types=(VECTOR, VECTOR))), "inferred is"),
    "arity": (lambda: of(lambda x: node("add", [x])), "add.*: expected 2 operands, got 1"),
    "attributes": (lambda: of(lambda x: node("sum", [x], {"keepdims": True})), "missing: axes"),
    "operands": (lambda: mismatched(), "matmul #.*shapes|matmul #.*differ"),
    "mutable": (lambda: of(lambda x: node("sum", [x], {"axes": [0], "keepdims": True},
                                          (TensorType(float32, (1,)),))),
                r"axes=\[0\] is no immutable plain data"),
    "numpy": (lambda: of(lambda x: node("leaky_relu", [x], {"negative_slope": np.float64(0.1)})),
              "negative_slope=.* is no immutable plain data"),
    "no array": (lambda: Graph([], constant_node(None).results), "a constant without its array"),
    "array": (lambda: Graph([], constant_node(np.zeros(5, "float32")).results),
              r"its array is float32\[5\]"),
    "stateless": (lambda: updated(add(w_(), 1.0), w_()), "it is updated but is no state"),
    "update's type": (lambda: updated(w_(), parameter(np.zeros(5, "float32"))),
                      r"its new value is float32\[5\]"),
    "updated twice": (lambda: (lambda w: updated(w, w, w))(w_()), "it is updated twice"),
    "location": (unlocated, "no entry in the graph's table of locations"),
    "nested": (nested, r"^fused #\d+, body: <add .*inferred is float32\[4\]"),
    "single": (lambda: (lambda x: Graph([x], [x, x], single=True))(x_()), "single output has 2"),
}  # fmt: skip


def test_a_missing_operand_is_found_where_the_reference_does_not_tell() -> None:
    condition = declare("c", (4,), "bool")
    bad = node("where", [condition])
    with pytest.raises(VerifyError, match="where #"):
        verify_graph(Graph([condition], bad.results), INFER)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_invariants_are_named(case: str) -> None:
    build, message = BROKEN[case]
    graph = build()
    with pytest.raises(VerifyError, match=message):
        verify_graph(graph, INFER)


def mismatched() -> Graph:
    x, y = declare("x", (3, 4)), declare("y", (5, 3))
    return Graph([x, y], node("matmul", [x, y], types=(TensorType(float32, (3, 3)),)).results)


def test_a_message_tells_the_users_line() -> None:
    with use_locs(frozenset([Loc("/home/me/model.py", 12)])):
        x = x_()
    bad = Node(
        "add", [x, x], None, [TensorType(float64, (4,))], frozenset([Loc("/me/model.py", 9)])
    )
    with pytest.raises(VerifyError, match=r"declared at model.py:9"):
        verify_graph(Graph([x], bad.results), INFER)


def test_lost_locations_are_found_where_they_are_asked_for() -> None:
    with use_locs(frozenset()):
        x = x_()
        graph = Graph([x], [add(x, x)])
    verify_graph(graph, INFER)
    with pytest.raises(VerifyError, match="it has lost its location"):
        verify_graph(graph, INFER, located=True)


def test_a_bare_rule_of_types_will_do() -> None:
    verify_graph(step(), lambda op, types, attrs: registry.get(op).infer(types, attrs))


CALLS = {
    ("add", 2): None,
    ("add", 3): "expected 2 operands, got 3",
    ("concat", 5): None,
    ("where", 3): None,
    ("constant", 0): None,
}


@pytest.mark.parametrize("call", CALLS)
def test_arity_comes_from_the_reference(call: tuple[str, int]) -> None:
    name, count = call
    attrs = {"concat": {"axis"}, "constant": {"dtype", "shape"}}.get(name, set())
    problem = call_problem(registry.get(name), count, frozenset(attrs))
    expected = CALLS[call]
    assert problem is None if expected is None else expected in str(problem)
