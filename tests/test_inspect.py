"""Graphs as pictures and plain data: well formed whatever names hold, and faithful."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import networkx as nx
import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.inspect import to_dot, to_json, to_mermaid, to_networkx, to_svg
from staticgrad.inspect.drawing import draw
from staticgrad.inspect.layout import layout
from staticgrad.inspect.svg import text_columns
from staticgrad.ir.dim import Dim
from staticgrad.ir.graph import Graph
from staticgrad.ir.loc import Loc, use_locs
from staticgrad.ir.node import Node
from staticgrad.ops.arithmetic import add, multiply
from staticgrad.ops.convert import constant
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.ops.linalg import matmul
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import make
from staticgrad.ops.shape import reshape
from staticgrad.passes.expand import expand
from staticgrad.passes.fuse import fuse

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ('say "hi"', "line\nbreak", "a<b>&amp;", "权重 น้ำหนัก", "back\\slash\\n", "#quot; `x`; %%",
         "end", "]]>", "\x00\x1b\udc80", "x" * 200)  # fmt: skip


def training_step() -> Graph:
    with use_locs(frozenset([Loc("/home/me/<模型>.py", 3)])):
        x = declare("x", ("N", 4))
        w = parameter(np.ones((4, 3), "float32"), name="0.weight")
        count = parameter(np.int64(0), name="step", trainable=False)
        loss = reduce_sum(multiply(matmul(x, w), 2.5))
        new = w - multiply(gradients(loss, w), 0.1)
        return Graph([x], [loss], [(w, new), (count, add(count, 1))])


def fused_step() -> Graph:
    return fuse(expand(training_step()))


def odd_names() -> Graph:
    inputs = [declare(name, ()) for name in NAMES]
    states = [parameter(np.float32(1), name=name) for name in NAMES]
    total = inputs[0]
    for v in (*inputs[1:], *states):
        total = add(total, v)
    return Graph(inputs, [total, total], [(s, total) for s in states])


def with_body() -> Graph:
    """A node that runs a sub-graph as it likes, as loops do."""
    p = declare("carry", (3,))
    body = Graph([p], [add(p, 1.0)])
    x = declare("x", (3,))
    loop = Node("scan", [x], {"length": Dim.symbol("N"), "body": body}, [x.type, x.type])
    return Graph([x], loop.results)


def empty() -> Graph:
    return Graph([], [])


def nothing_to_compute() -> Graph:
    x = declare("x", ("N",))
    return Graph([x], [x, constant(2.0), constant(np.zeros((3, 0)))])


GRAPHS = {f.__name__: f for f in (
    training_step, fused_step, odd_names, with_body, empty, nothing_to_compute)}  # fmt: skip


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return GRAPHS[request.param]()


# --- all forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [to_dot, to_mermaid, to_json, to_svg])
def test_forms_can_be_written_and_are_stable(form: object, graph: Graph) -> None:
    text = form(graph)  # type: ignore[operator]
    text.encode("utf-8")
    assert text == form(graph) and text.endswith("\n")  # type: ignore[operator]


@pytest.mark.parametrize("form", [to_dot, to_mermaid, to_json, to_svg])
def test_ids_do_not_depend_on_what_was_declared_before(form: object) -> None:
    first = form(training_step())  # type: ignore[operator]
    parameter(np.zeros(3)), declare("another", ())
    assert form(training_step()) == first  # type: ignore[operator]


@pytest.mark.parametrize("form", [to_dot, to_mermaid, to_json, to_svg])
def test_no_recursion(form: object) -> None:
    x = y = declare("x", ("N",))
    for _ in range(3000):
        y = add(y, x)
    assert len(form(Graph([x], [y]))) > 3000  # type: ignore[operator]


def test_arrows_lead_from_earlier_boxes_to_later_ones(graph: Graph) -> None:
    for expand_bodies in (True, False):
        drawing = draw(graph, expand=expand_bodies)
        place = {b.id: i for i, b in enumerate(drawing.boxes)}
        assert len(place) == len(drawing.boxes)
        assert all(place[a.source] < place[a.target] for a in drawing.arrows)
        frames = {f.id for f in drawing.frames}
        assert {b.frame for b in drawing.boxes} | {f.outer for f in drawing.frames} <= {*frames, ""}


def test_what_boxes_tell() -> None:
    drawing = draw(training_step())
    assert {(b.lines[0], b.kind) for b in drawing.boxes} >= {
        ("x", "input"), ("0.weight", "parameter"), ("step", "state"),
        ("multiply(·, 2.5)", "op"), ("multiply(·, 2.5)", "later"), ("multiply(·, 0.1)", "later"),
        ("output", "output"), ("update 0.weight", "update"), ("update step", "update"),
    }  # fmt: skip
    (box,) = [b for b in drawing.boxes if b.lines[0] == "matmul" and b.kind == "op"]
    assert box.lines[1] == "float32[N, 3]"
    assert box.tooltip.startswith("%0 = matmul(%x, %0.weight) : float32[N, 3]\n")
    assert box.tooltip.endswith("/home/me/<模型>.py:3")


def test_a_fused_body_reads_what_is_outside() -> None:
    drawing = draw(fused_step())
    inside = {b.id for b in drawing.boxes if b.frame}
    assert inside and drawing.frames[0].label.startswith("fused (")
    joined = {(a.source in inside, a.target in inside) for a in drawing.arrows}
    assert {(False, True), (True, False)} <= joined
    assert not [b for b in drawing.boxes if b.frame and b.kind == "input"]
    listed = draw(fused_step(), expand=False)
    assert not listed.frames
    assert any("  multiply" in b.lines for b in listed.boxes)


# --- dot ------------------------------------------------------------------------------------------

DOT_TOKEN = re.compile(r'\s*(?:"(?:[^"\\]|\\.)*"|[A-Za-z_][A-Za-z0-9_]*|->|[{}\[\]=;,]|[0-9.]+)')


def test_dot_is_well_formed(graph: Graph) -> None:
    text = to_dot(graph)
    at, tokens = 0, []
    while text[at:].strip():
        m = DOT_TOKEN.match(text, at)
        assert m, text[at : at + 60]
        tokens.append(m[0].strip())
        at = m.end()
    assert tokens[:3] == ["digraph", "staticgrad", "{"] and tokens[-1] == "}"
    depth = 0
    for t in tokens:
        depth += {"{": 1, "}": -1}.get(t, 0)
        assert depth >= 0
    assert depth == 0
    declared = {t for t, after in pairwise(tokens) if after == "[" and t.startswith("n")}
    drawing = draw(graph)
    assert {b.id for b in drawing.boxes} <= declared
    assert tokens.count("->") == len(drawing.arrows)
    assert tokens.count("subgraph") == len(drawing.frames)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", text)


def test_dot_escapes() -> None:
    text = to_dot(odd_names())
    assert 'label="say \\"hi\\"\\nfloat32[]"' in text
    assert 'label="a<b>&amp;amp;\\nfloat32[]"' in text
    assert 'label="back\\\\slash\\\\n\\nfloat32[]"' in text
    assert "权重 น้ำหนัก" in text


# --- mermaid --------------------------------------------------------------------------------------

MERMAID_LINE = re.compile(
    r'flowchart TD|  end|  subgraph \w+\["[^"]*"\]'
    r'|  (?:  )?\w+(?:\["[^"]*"\]|\(\["[^"]*"\]\)|\[\("[^"]*"\)\]|\[/"[^"]*"/\]):::\w+'
    r'|  \w+ (?:-->|-\.->)(?:\|"\d+"\|)? \w+|  classDef \w+ fill:#\w+,stroke:#\w+,color:#\w+'
)


def test_mermaid_is_well_formed(graph: Graph) -> None:
    lines = to_mermaid(graph).splitlines()
    assert lines[0] == "flowchart TD"
    for line in lines:
        assert MERMAID_LINE.fullmatch(line), line
    opened = sum(line.startswith("  subgraph") for line in lines)
    assert opened == sum(line == "  end" for line in lines) == len(draw(graph).frames)


def test_mermaid_escapes() -> None:
    text = to_mermaid(odd_names())
    assert '(["say #34;hi#34;<br/>float32[]"])' in text
    assert '(["a#60;b#62;#38;amp#59;<br/>float32[]"])' in text
    assert "line<br/>break" in text and "权重 น้ำหนัก" in text


# --- json -----------------------------------------------------------------------------------------


def test_json_is_plain_versioned_ascii(graph: Graph) -> None:
    text = to_json(graph)
    assert text.isascii()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["format"] == "staticgrad.graph" and document["version"] == 1

    def check(g: dict) -> None:
        assert [n["id"] for n in g["nodes"]] == list(range(len(g["nodes"])))
        for n in g["nodes"]:
            for source, result in n["operands"]:
                assert source < n["id"] and result < len(g["nodes"][source]["types"])
            for inner in n.get("graphs", {}).values():
                check(inner)

    check(document)


def test_what_json_tells() -> None:
    document = json.loads(to_json(training_step()))
    nodes = document["nodes"]
    matmul_node = next(n for n in nodes if n["op"] == "matmul")
    assert matmul_node == {
        "id": matmul_node["id"], "op": "matmul", "names": ["%0"], "attrs": {},
        "operands": [document["inputs"][0], [document["state"][0], 0]],
        "types": [{"dtype": "float32", "shape": ["N", 3]}],
        "locs": [{"file": "/home/me/<模型>.py", "line": 3}],
    }  # fmt: skip
    assert nodes[document["state"][0]]["attrs"]["shape"] == [4, 3]
    assert [n["value"] for n in nodes if n["op"] == "constant"][:2] == ["2.5", "1.0"]
    assert [u["state"][0] for u in document["updates"]] == document["state"]
    fused = [n for n in json.loads(to_json(fused_step()))["nodes"] if n["op"] == "fused"]
    assert fused and all(n["graphs"]["body"]["outputs"] for n in fused)


def test_json_attributes() -> None:
    x = declare("x", (2,))
    attrs = {"a": float("nan"), "b": (1, (True, None)), "c": Dim.symbol("N") * 2, "d": 2.0,
             "e": x.dtype, "f": "s", "g": len}  # fmt: skip
    held = Node("op", [x], attrs, [x.type])
    found = json.loads(to_json(Graph([x], held.results)))["nodes"][1]["attrs"]
    assert found == {"a": {"float": "nan"}, "b": [1, [True, None]], "c": {"dim": "2*N"}, "d": 2.0,
                     "e": {"dtype": "float32"}, "f": "s", "g": {"opaque": "len"}}  # fmt: skip


def test_large_constants_are_named_by_a_digest() -> None:
    graph = Graph([], [constant(np.arange(100.0))])
    (node,) = json.loads(to_json(graph))["nodes"]
    assert re.fullmatch(r"constant\.[0-9a-f]{32}", node["digest"]) and "value" not in node


# --- networkx -------------------------------------------------------------------------------------


def test_networkx(graph: Graph) -> None:
    found = to_networkx(graph)
    assert isinstance(found, nx.MultiDiGraph) and nx.is_directed_acyclic_graph(found)
    assert found.number_of_edges() == sum(len(n.operands) for n in graph.nodes)
    assert len(found.graph["outputs"]) == len(graph.outputs)
    assert all(a < b for a, b in found.edges())


def test_what_networkx_tells() -> None:
    graph = training_step()
    found = to_networkx(graph)
    ops = nx.get_node_attributes(found, "op")
    at = next(i for i, op in ops.items() if op == "matmul")
    assert found.nodes[at]["types"] == ("float32[N, 3]",)
    assert found.nodes[at]["locs"] == (("/home/me/<模型>.py", 3),)
    edges = [(u, data) for u, _, data in found.in_edges(at, data=True)]
    assert [data["operand"] for _, data in edges] == [0, 1]
    assert edges[1][1] == {"operand": 1, "result": 0, "type": "float32[4, 3]"}
    assert nx.ancestors(found, found.graph["outputs"][0][0]) >= {at, found.graph["inputs"][0]}
    fused = to_networkx(fused_step())
    held = [d["graphs"]["body"] for _, d in fused.nodes(data=True) if d["op"] == "fused"]
    assert held and all(isinstance(g, nx.MultiDiGraph) for g in held)


def test_networkx_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, staticgrad.inspect; assert 'networkx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- svg ------------------------------------------------------------------------------------------


def boxes_of(root: ET.Element) -> list[tuple[float, float, float, float]]:
    found = []
    for g in root.iter(f"{SVG}g"):
        rect = g.find(f"{SVG}rect")
        assert rect is not None
        x, y, w, h = (float(rect.get(k, "")) for k in ("x", "y", "width", "height"))
        found.append((x, y, x + w, y + h))
    return found


def test_svg_is_well_formed_and_boxes_do_not_overlap(graph: Graph) -> None:
    root = ET.fromstring(to_svg(graph))
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    boxes = boxes_of(root)
    assert len(boxes) == len(draw(graph, expand=False).boxes)
    for left, top, right, bottom in boxes:
        assert min(left, top) >= 0 and right <= width and bottom <= height
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_svg_tooltips_hold_everything() -> None:
    root = ET.fromstring(to_svg(training_step()))
    titles = [g.findtext(f"{SVG}title") for g in root.iter(f"{SVG}g")]
    assert any(t and "matmul(%x, %0.weight)" in t and "/home/me/<模型>.py:3" in t for t in titles)
    shown = [t.text for t in root.iter(f"{SVG}text")]
    assert "multiply(·, 2.5)" in shown and "float32[N, 3]" in shown
    odd = ET.fromstring(to_svg(odd_names()))
    shown = [t.text or "" for t in odd.iter(f"{SVG}text")]
    assert 'say "hi"' in shown and "a<b>&amp;" in shown and "权重 น้ำหนัก" in shown
    assert any(line.endswith("…") for line in shown)


def test_arrows_lead_down() -> None:
    root = ET.fromstring(to_svg(training_step()))
    paths = [p.get("d", "") for p in root.iter(f"{SVG}path") if p.get("marker-end")]
    assert paths
    for d in paths:
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", d)]
        assert numbers[1] < numbers[-1]


def test_columns_of_letters() -> None:
    assert text_columns("abc") == 3 and text_columns("权重") == 4
    assert text_columns("น้ำ") == 2  # a tone mark stands above its letter


def test_layout_places_a_box_between_its_neighbours() -> None:
    size = (40.0, 20.0)
    found = layout([size] * 4, [(0, 2), (1, 2), (2, 3)])
    a, b, c, d = found.items[:4]
    assert a.y == b.y < c.y < d.y
    assert abs(c.x - (a.x + b.x) / 2) < 1e-6 and abs(c.x - d.x) < 1e-6
    assert abs(a.x - b.x) >= 40.0


def test_an_arrow_over_layers_goes_around_boxes() -> None:
    size = (40.0, 20.0)
    found = layout([size] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert [len(route) for route in found.routes] == [2, 2, 2, 4]
    for point in found.routes[3][1:-1]:
        beside = next(i for i in found.items[:4] if i.layer == found.items[point].layer)
        assert abs(found.items[point].x - beside.x) > beside.width / 2


def test_several_results_are_told_apart() -> None:
    x = declare("x", (4,))
    held = make("fused", [x], {"kind": "map", "body": two_results()})
    graph = Graph([x], [add(held.results[0], reshape(held.results[1], (4,)))])
    labels = [a.label for a in draw(graph, expand=False).arrows if a.label]
    assert labels == ["1", "0"] or labels == ["0", "1"]


def two_results() -> Graph:
    p = declare("p0", (4,))
    return Graph([p], [add(p, p), multiply(p, p)])
