"""Graphs as text: what is printed reads back as the same graph, and what is wrong is told."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import Dim, dim_max, dim_min, floor_div, modulo
from staticgrad.ir.dtype import float32
from staticgrad.ir.errors import ArgumentError, ParseError
from staticgrad.ir.graph import Graph, subgraphs
from staticgrad.ir.lexer import Lexer
from staticgrad.ir.literal import attr_text, element_text, quote, scalar
from staticgrad.ir.loc import Loc, use_locs
from staticgrad.ir.node import Node
from staticgrad.ir.parser import load_graph, parse_graph
from staticgrad.ir.printer import graph_tensors, save_graph, tensors_path, to_text
from staticgrad.ops import registry
from staticgrad.ops.arithmetic import add, multiply
from staticgrad.ops.convert import astype, constant, constant_array
from staticgrad.ops.interpret import run_graph
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter, state_of
from staticgrad.ops.linalg import matmul
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import Sample, make
from staticgrad.passes.expand import expand
from staticgrad.passes.fuse import fuse

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float32", "float64")  # fmt: skip


def plain_attrs(node: Node) -> dict[str, object]:
    """Attributes but for process-wide ids; NaN equals itself by its text."""
    skip = ("id",) if node.op in ("input", "state") else ()
    return {
        k: attr_text(v) for k, v in node.attrs.items() if k not in skip and not isinstance(v, Graph)
    }


def assert_same(a: Graph, b: Graph) -> None:
    """Equal but for the identity of nodes and cells, and for where constants stand in the order."""
    match: dict[Node, Node] = {}

    def same_node(n: Node, m: Node) -> None:
        assert (n.op, plain_attrs(n), n.types) == (m.op, plain_attrs(m), m.types)
        assert a.locs.get(n, n.locs) == b.locs.get(m, m.locs), n
        if n.op == "constant":
            assert n.payload.tobytes() == m.payload.tobytes()
            assert n.payload.dtype == m.payload.dtype
        assert match.setdefault(n, m) is m
        for (name, inner), (other, theirs) in zip(subgraphs(n), subgraphs(m), strict=True):
            assert name == other
            assert_same(inner, theirs)
        for v, w in zip(n.operands, m.operands, strict=True):
            assert v.index == w.index
            if v.node not in match and v.node.op == "constant":
                same_node(v.node, w.node)
            assert match[v.node] is w.node

    def order(g: Graph, leaves: bool) -> list[Node]:
        kinds = ("input", "state")
        return [n for n in g.nodes if n.op != "constant" and (n.op in kinds) == leaves]

    def pairs(values: object) -> list[tuple[Node, int]]:
        return [(v.node, v.index) for v in values]  # type: ignore[attr-defined]

    for v, w in zip(a.inputs, b.inputs, strict=True):
        same_node(v.node, w.node)
    for (s, _), (t, _) in zip(a.updates, b.updates, strict=True):
        same_node(s.node, t.node)
    for leaves in (True, False):
        for n, m in zip(order(a, leaves), order(b, leaves), strict=True):
            same_node(n, m)
    for n, m in zip(pairs(a.roots), pairs(b.roots), strict=True):
        if n[0].op == "constant":
            same_node(n[0], m[0])
        assert (match[n[0]], n[1]) == m
    assert len(a.nodes) == len(b.nodes)
    assert a.single == b.single
    assert a.constraints == b.constraints


def round_trip(graph: Graph) -> Graph:
    text = to_text(graph)
    parsed = parse_graph(text, registry, graph_tensors(graph))
    assert to_text(parsed) == text
    assert_same(graph, parsed)
    return parsed


def model() -> Graph:
    with use_locs(frozenset([Loc("/home/me/model.py", 3)])):
        x, y = declare("x", ("N", 4)), declare("y", ("N",), "int64")
        w = parameter(np.ones((4, 2), "float32"), name="0.weight")
        m = parameter(np.zeros((4, 2), "float32"), name="momentum", trainable=False)
    with use_locs(frozenset([Loc("/home/me/model.py", 4), Loc("/home/me/loss.py", 1)])):
        h = multiply(matmul(x, w), 2.0)
        loss = reduce_sum(add(h, astype(y, "float32").reshape(("N", 1))))
        new = add(m, gradients(loss, w))
    return Graph([x, y], [loss], [(m, new), (w, w - new)])


# --- round trips ----------------------------------------------------------------------------------


def test_text_of_a_model_reads_like_a_story() -> None:
    with use_locs(frozenset([Loc("/home/me/model.py", 7)])):
        x = declare("x", ("N", 4))
        w = parameter(np.ones((4, 2), "float32"), name="0.weight")
        y = add(multiply(matmul(x, w), 2.0), constant(np.array([0.5, -0.0], "float32")))
        state = parameter(np.int64(0), name="step", trainable=False)
        graph = Graph([x], [y], [(state, add(state, 1))])
    assert to_text(graph) == (
        '@model.py = "/home/me/model.py"\n'
        "graph(%x: float32[N, 4]  @model.py:7) {\n"
        "  state %0.weight{trainable}: float32[4, 2]  @model.py:7\n"
        "  state %step: int64[]  @model.py:7\n"
        "  %0 = matmul(%x, %0.weight) : float32[N, 2]  @model.py:7\n"
        "  %1 = multiply(%0, 2.0) : float32[N, 2]  @model.py:7\n"
        "  %2 = constant([0.5, -0.0]) : float32[2]  @model.py:7\n"
        "  %3 = add(%1, %2) : float32[N, 2]  @model.py:7\n"
        "  %4 = add(%step, 1) : int64[]  @model.py:7\n"
        "  return (%3,)\n"
        "  update %step <- %4\n"
        "}\n"
    )
    without = to_text(graph, locs=False)
    assert "@" not in without and without.startswith("graph(%x: float32[N, 4]) {")
    round_trip(graph)


def op_graphs(samples: list[Sample], name: str) -> list[Graph]:
    """Each sample on inputs, and on constants."""
    found = []
    for sample in samples:
        arrays = [np.array(a) for a in sample.operands]
        inputs = [declare(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
        found.append(Graph(inputs, make(name, inputs, sample.attrs).results))
        constants = [constant_array(a) for a in arrays]
        found.append(Graph([], make(name, constants, sample.attrs).results))
    return found


@pytest.mark.parametrize("name", sorted(registry.all_ops()))
def test_every_op_round_trips(name: str) -> None:
    samples = list(registry.get(name).samples())
    by_attrs = {repr(sorted(s.attrs.items())): s for s in samples}
    for graph in op_graphs([*by_attrs.values(), *samples[:: max(len(samples) // 6, 1)]], name):
        round_trip(graph)


def test_training_step_round_trips_and_computes_the_same() -> None:
    graph = model()
    parsed = round_trip(graph)
    arrays = [np.arange(12, dtype="float32").reshape(3, 4), np.array([1, 2, 3])]
    (expected,), state = run_graph(graph, arrays)
    (got,), new_state = run_graph(parsed, arrays)
    np.testing.assert_array_equal(got, expected)
    for a, b in zip(state.values(), new_state.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fused_bodies_are_nested_graphs() -> None:
    graph = fuse(expand(model()))
    text = to_text(graph)
    assert "\n    body graph(%p0: " in text and "\n      return (" in text
    round_trip(graph)


def random_graph(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    x = declare("x", ("N", 3))
    w = parameter(rng.standard_normal(3).astype("float32"), name="w")
    values = [x, w, multiply(x, w)]
    shared = constant(float(rng.integers(9)))
    for _ in range(25):
        a, b = (values[i] for i in rng.integers(0, len(values), 2))
        pick = rng.integers(5)
        if pick == 0:
            values.append(add(a, shared))
        elif pick == 1:
            values.append(multiply(a, float(rng.standard_normal())))
        elif pick == 2:
            values.append(reduce_sum(a, axis=-1, keepdims=True))
        elif pick == 3:
            values.append(add(a, constant(rng.standard_normal(3))).astype("float32"))
        else:
            values.append(add(a, b))
    step = reduce_sum(values[-1])
    return Graph([x], values[-3:], [(w, multiply(w, step))])


@pytest.mark.filterwarnings("ignore::staticgrad.PromotionWarning")  # both dtypes are to be there
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_round_trip(seed: int) -> None:
    graph = random_graph(seed)
    round_trip(graph)
    round_trip(fuse(expand(graph)))


def test_single_output_and_constraints() -> None:
    x, y = declare("x", ("N",)), declare("y", ("M",))
    graph = Graph([x, y], [add(x, y)], single=True)
    text = to_text(graph)
    assert "  return %0\n" in text
    assert 'require N == M "add: shapes [N] and [M] do not broadcast"' in text
    parsed = round_trip(graph)
    assert parsed.single and len(parsed.constraints) == 1


def test_a_shared_constant_stays_one_node() -> None:
    x = declare("x", ())
    two = constant(2.0)
    shared = Graph([x], [add(multiply(x, two), two)])
    single = Graph([x], [add(multiply(x, constant(2.0)), constant(2.0))])
    assert len(round_trip(shared).nodes) == 4
    assert len(round_trip(single).nodes) == 5
    assert "multiply(%x, 2.0)" in to_text(single)


def test_a_constant_of_another_line_keeps_it() -> None:
    with use_locs(frozenset([Loc("a.py", 1)])):
        x, two = declare("x", ()), constant(2.0)
    with use_locs(frozenset([Loc("b.py", 2)])):
        y = multiply(x, two)
    with use_locs(frozenset()):
        three = constant(3.0)
    with use_locs(frozenset([Loc("b.py", 3)])):
        graph = Graph([x], [add(y, three)])
    text = to_text(graph)
    assert "multiply(%x, 2.0 @a.py:1) : float32[]  @b.py:2" in text
    assert "add(%0, 3.0 @nowhere) : float32[]  @b.py:3" in text
    round_trip(graph)


def test_no_recursion_on_long_chains() -> None:
    x = declare("x", ("N",))
    y = x
    for _ in range(20_000):
        y = add(y, x)
    graph = Graph([x], [y])
    parsed = parse_graph(to_text(graph), registry)
    assert len(parsed.nodes) == 20_001


# --- constants ------------------------------------------------------------------------------------


def special(dtype: str) -> np.ndarray:
    if dtype == "bool":
        return np.array([True, False])
    if not dtype.startswith("float"):
        info = np.iinfo(dtype)
        return np.array([info.min, info.max, 0, 1], dtype)
    info = np.finfo(dtype)
    values = [np.nan, np.inf, -np.inf, -0.0, 0.0, info.max, info.tiny, info.smallest_subnormal]
    return np.array([*values, 0.1, 1 / 3, 1e30, -1e-30, 16777217.0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_keep_every_bit(dtype: str) -> None:
    values = special(dtype)
    whole = Graph([], [constant_array(values)])
    assert "constant([" in to_text(whole)
    round_trip(whole)
    for shape in ((0,), (3, 0, 2), (1, 1), (2, 1, 3)):
        round_trip(Graph([], [constant_array(np.zeros(shape, dtype))]))
    for value in values:
        round_trip(Graph([], [constant_array(value).reshape((1,))]))


@pytest.mark.parametrize("bits", [0x7FC00001, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_nan_payloads(bits: int) -> None:
    array = np.array([bits], "uint32").view("float32")
    assert element_text(array) == f"nan({bits:#x})"
    round_trip(Graph([], [constant_array(array)]))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(0, 2**32 - 1))
def test_every_float32_is_exact_in_text(bits: int) -> None:
    array = np.array(bits, "uint32").view("float32")
    assert scalar(element_text(array), float32).tobytes() == array.tobytes()


def test_large_constants_lie_beside_the_text() -> None:
    rng = np.random.default_rng(1)
    big = rng.standard_normal((5, 9)).astype("float32")
    graph = Graph([], [add(constant(big), constant(big.reshape(9, 5)).reshape((5, 9)))])
    text, tensors = to_text(graph), graph_tensors(graph)
    assert len(text) < 600 and len(tensors) == 2  # of one content, but not of one shape
    round_trip(graph)
    with pytest.raises(ParseError, match="lies beside the text"):
        parse_graph(text, registry)
    damaged = {k: v + 1 for k, v in tensors.items()}
    with pytest.raises(ParseError, match="is not the one that was saved"):
        parse_graph(text, registry, damaged)
    everything = to_text(graph, inline_elems=100)
    assert_same(graph, parse_graph(everything, registry))


def test_constants_of_one_value_are_short() -> None:
    graph = Graph([], [constant(np.full((100, 3), -0.0))])
    assert "constant(splat -0.0) : float64[100, 3]" in to_text(graph)
    assert not graph_tensors(graph)
    round_trip(graph)


# --- names, locations, files ----------------------------------------------------------------------

NAMES = ("x", "0", "0.weight", 'say "hi"', "行", "น้ำหนัก", "a b", "a\nb", "a_b", "<&>", "\\",
         "\u2028", "%x", "N", "nan", "True", "state")  # fmt: skip


def test_names_of_any_kind() -> None:
    inputs = [declare(name, ()) for name in NAMES]
    total = inputs[0]
    for v in inputs[1:]:
        total = add(total, v)
    states = [parameter(np.float32(0), name=name) for name in (*NAMES, None, "")]
    for s in states:
        total = add(total, s)
    graph = Graph(inputs, [total])
    parsed = round_trip(graph)
    assert [v.node.attrs["name"] for v in parsed.inputs] == list(NAMES)
    assert [v.node.attrs["name"] for v in parsed.state] == [*NAMES, None, ""]


FILES = (
    "model.py", "/a/model.py", "/b/model.py", "/a/b/model.py", "/家/模型.py", "/บ้าน/น้ำ หนัก.py",
    'quote"d.py', "back\\slash.py", "<stdin>", "/x/", "/tab\there.py", "/bad\udc80name.py",
    "nowhere", "a:b.py", "C:\\model.py", "/line\nbreak.py",
)  # fmt: skip


def test_paths_of_any_kind() -> None:
    x = y = declare("x", ())
    for i, file in enumerate(FILES):
        with use_locs(frozenset([Loc(file, i + 1), Loc(FILES[0], 99)])):
            y = add(y, x)
    graph = Graph([x], [y])
    text = to_text(graph)
    text.encode("utf-8")  # whatever a path is, the text can be written
    assert len([line for line in text.splitlines() if "= add(" in line]) == len(FILES)
    round_trip(graph)


def test_short_names_of_files_are_the_shortest_that_differ() -> None:
    x = declare("x", ())
    y = x
    for file in ("/p/samples/model.py", "/p/tests/model.py", "/p/train.py"):
        with use_locs(frozenset([Loc(file, 2)])):
            y = add(y, x)
    text = to_text(Graph([x], [y]))
    assert '@samples/model.py = "/p/samples/model.py"' in text
    assert '@train.py = "/p/train.py"' in text and "  @tests/model.py:2" in text


def test_save_and_load(tmp_path: Path) -> None:
    graph = model()
    big = constant(np.arange(40, dtype="int16"))
    graph = Graph(graph.inputs, [*graph.outputs, big], graph.updates)
    path = tmp_path / "โมเดล 模型.sgir"
    save_graph(graph, path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors", ".sgir"]
    loaded = load_graph(path, registry)
    assert_same(graph, loaded)
    for a, b in zip(graph.state, loaded.state, strict=True):
        assert a.node.payload is not b.node.payload
        np.testing.assert_array_equal(a.node.payload.numpy(), b.node.payload.numpy())
    x = declare("x", ())
    save_graph(Graph([x], [x]), path)  # no array of the graph before stays beside it
    assert len(load_graph(path, registry).nodes) == 1
    with pytest.raises(ArgumentError):
        tensors_path("model.safetensors")


def test_state_without_values_starts_as_zeros() -> None:
    text = "graph() {\n  state %w: float32[2, 3]\n  return %w\n}\n"
    (w,) = parse_graph(text, registry).state
    np.testing.assert_array_equal(w.node.payload.numpy(), np.zeros((2, 3), "float32"))
    assert w.node.attrs["trainable"] is False and w.node.attrs["name"] == "w"


def test_two_nodes_of_one_cell_stay_so() -> None:
    w = parameter(np.ones(2), name="w")
    again = state_of(w.cell)
    graph = Graph([], [add(w, again)])
    assert 'same "w"' in to_text(graph)
    a, b = round_trip(graph).state
    assert a.node.payload is b.node.payload and a.node.attrs["id"] == b.node.attrs["id"]


def test_files_under_an_ascii_locale(tmp_path: Path) -> None:
    script = tmp_path / "脚本 ไทย.py"
    script.write_text(
        "import sys\n"
        "from staticgrad.ir.graph import Graph\n"
        "from staticgrad.ir.parser import load_graph\n"
        "from staticgrad.ir.printer import save_graph, to_text\n"
        "from staticgrad.ops import registry\n"
        "from staticgrad.ops.leaves import input\n"
        "from staticgrad.inspect import to_json\n"
        "x = input('输入', ())\n"
        "g = Graph([x], [x + 1.0])\n"
        "save_graph(g, sys.argv[1])\n"
        "h = load_graph(sys.argv[1], registry)\n"
        "assert to_text(h) == to_text(g)\n"
        "print(to_json(h))\n",
        encoding="utf-8",
    )
    saved = tmp_path / "图.sgir"
    env = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, script, saved], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    graph = load_graph(saved, registry)
    assert graph.inputs[0].node.attrs["name"] == "输入"
    (loc,) = graph.locs[graph.outputs[0].node]
    assert loc.line == 9 and loc.file == str(script)


# --- sizes and attributes -------------------------------------------------------------------------

N, M = Dim.symbol("N"), Dim.symbol("批次")
LEAVES = st.one_of(st.integers(0, 9), st.sampled_from([N, M]))


def grown(children: st.SearchStrategy) -> st.SearchStrategy:
    pairs = st.tuples(children, children)
    positive = st.tuples(children, st.integers(1, 5))
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]), pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: p[0] - p[1]), pairs.map(lambda p: dim_max(*p)),
        pairs.map(lambda p: dim_min(*p)), positive.map(lambda p: floor_div(*p)),
        positive.map(lambda p: modulo(*p)),
    )  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.recursive(LEAVES, grown, max_leaves=8))
def test_sizes_read_back_as_they_are(d: object) -> None:
    lexer = Lexer(str(d))
    assert lexer.dim() == d and lexer.token.kind == "end"
    assert Lexer(attr_text(d)).attr_value() == d


def test_a_multiple_of_a_quotient() -> None:
    half = floor_div(N + 1, 2)
    assert Lexer(str(half * 2)).dim() == half * 2
    assert Lexer("N // 2 * 2").dim() == floor_div(N, 2) * 2
    assert Lexer("N%4").dim() == modulo(N, 4) and Lexer("(N + 1)*2").dim() == 2 * N + 2


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
        st.sampled_from([N, N + 1, Dim.symbol("float32"), Dim.symbol("nan"), Dim.symbol("dim"),
                         floor_div(N, 2), *(declare("x", (), d).dtype for d in DTYPES)]),
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8,
)  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=300)
@given(PLAIN)
def test_attributes_read_back_as_they_are(value: object) -> None:
    found = Lexer(attr_text(value)).attr_value()
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text())
def test_strings_read_back_as_they_are(text: str) -> None:
    quoted = quote(text)
    assert Lexer(quoted).string("") == text
    assert len(quoted.splitlines()) == 1
    quoted.encode("utf-8")


def test_what_is_no_data_is_shown_but_not_read() -> None:
    x = declare("x", ())
    held = Node("negative", [x], {"fn": math.sin}, [x.type], payload=object())
    text = to_text(Graph([x], held.results))
    assert "negative(%x){fn=<sin>, payload=<object>}" in text
    with pytest.raises(ParseError, match="no plain data"):
        parse_graph(text, registry)


# --- errors ---------------------------------------------------------------------------------------


def in_graph(*lines: str, head: str = "%x: float32[N, 4]") -> str:
    return "\n".join((f"graph({head}) {{", *(f"  {line}" for line in lines), "}")) + "\n"


ERRORS = {
    "unknown op": (in_graph("%0 = matmull(%x, %x)", "return %0"), 2, 8,
                   r"unknown op 'matmull' \(did you mean 'matmul'\?\)"),
    "arity": (in_graph("%0 = add(%x) : float32[N, 4]", "return %0"), 2, 8,
              "add: expected 2 operands, got 1"),
    "arity of a variadic op's fixed part": (in_graph("%0 = sum(%x, %x){axes=(0,), keepdims}"), 2, 8,
                                            "sum: expected 1 operand, got 2"),
    "no attribute": (in_graph("%0 = sum(%x){keepdims}"), 2, 8, "sum: .*missing: axes"),
    "strange attribute": (in_graph("%0 = add(%x, %x){axis=1}"), 2, 8, "add: unexpected .* axis"),
    "attribute of a wrong kind": (in_graph('%0 = sum(%x){axes="a", keepdims}'), 2, 8,
                                  "sum: its attributes do not fit"),
    "type": (in_graph("%0 = add(%x, %x) : float32[N, 5]", "return %0"), 2, 20,
             r"add: the inferred type is float32\[N, 4\]"),
    "shapes": (in_graph("%0 = matmul(%x, %x)", head="%x: float32[3, 4]"), 2, 8, "matmul: "),
    "results": (in_graph("%0, %1 = add(%x, %x)"), 2, 3, "add has 1 results, here are 2"),
    "undefined": (in_graph("%0 = add(%x, %y)", "return %0"), 2, 16, "%y is not defined above"),
    "twice": (in_graph("%0 = add(%x, %x)", "%0 = add(%x, %x)"), 3, 3, "%0 is defined twice"),
    "input twice": (in_graph("return %x", head="%x: int8[], %x: int8[]"), 1, 19, "defined twice"),
    "no return": (in_graph("%0 = add(%x, %x)"), 1, 26, "no `return`"),
    "two returns": (in_graph("return %x", "return %x"), 3, 3, "a second `return`"),
    "open": ("graph(%x: int8[]) {\n  return %x\n", 1, 19, "`{` is not closed"),
    "after the end": (in_graph("return %x") + "%0", 4, 1, "expected the end of the text, got '%0'"),
    "statement": (in_graph("0 = add(%x, %x)"), 2, 3, "expected a statement"),
    "operand": (in_graph("%0 = add(%x, =)"), 2, 16, "expected an operand.*got '='"),
    "comma": (in_graph("%0 = add(%x %x)"), 2, 15, r"expected ',' or '\)', got '%x'"),
    "character": (in_graph("%0 = add(%x, ^)"), 2, 16, r"unexpected '\^'"),
    "string": (in_graph('state %w "w: int8[]', "return %x"), 2, 12, "a string without its end"),
    "dtype": (in_graph("return %x", head="%x: float16[N]"), 1, 11, "expected a dtype"),
    "size": (in_graph("return %x", head="%x: int8[N, *]"), 1, 19, "expected a size"),
    "symbolic state": (in_graph("state %w: int8[N]", "return %x"), 2, 9, "not a symbolic one"),
    "update": (in_graph("return %x", "update %x <- %x"), 3, 10, "only state can be updated"),
    "update's type": (in_graph("state %w: int8[]", "return %x", "update %w <- %x"), 4, 10,
                      r"the new value is float32\[N, 4\], the state int8\[\]"),
    "updated twice": (in_graph("state %w: int8[]", "return %x", "update %w <- %w",
                               "update %w <- %w"), 5, 10, "updated twice"),
    "leaf as a call": (in_graph("%0 = input()"), 2, 8, "inputs stand in the graph's head"),
    "constant without type": (in_graph("%0 = constant([1])"), 3, 1, "a constant needs its type"),
    "constant of a wrong shape": (in_graph("%0 = constant([[1, 2]]) : int8[2]"), 2, 8,
                                  r"the numbers do not make a int8\[2\]"),
    "constant out of range": (in_graph("%0 = constant([300]) : int8[1]"), 2, 8, "300 is no int8"),
    "number of a wrong kind": (in_graph("%0 = add(%x, 1.5:int8)"), 2, 16, "1.5 is no int8"),
    "too large": (in_graph("%0 = add(%x, 1e300)"), 2, 16, "1e300 is too large for float32"),
    "attribute twice": (in_graph("%0 = sum(%x){axes=(0,), axes=(1,)}"), 2, 27, "given twice"),
    "line": (in_graph("%0 = add(%x, %x)  @a.py:x"), 2, 27, "expected a line number"),
    "version": ("sgir 99\n" + in_graph("return %x"), 1, 6, "version 99 is newer"),
    "nothing": ("", 1, 1, "expected 'graph'.*got the end of the text"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_line_and_column(case: str) -> None:
    text, line, column, message = ERRORS[case]
    with pytest.raises(ParseError, match=message) as raised:
        parse_graph(text, registry)
    assert str(raised.value).startswith(f"line {line}, column {column}: ")


def test_hand_written_text_needs_no_types() -> None:
    text = """
    # comments and line ends mean nothing
    graph(%x: float32[2*N+1, 3], %y: float32[3]) {
        %h = add(%x, %y)   # the type is inferred
        %s = sum(%h){axes=(0, 1), keepdims=False} : float32[]
        return (%s, %h,)
    }"""
    graph = parse_graph(text, registry)
    assert [str(v.type) for v in graph.outputs] == ["float32[]", "float32[2*N+1, 3]"]
    round_trip(graph)
