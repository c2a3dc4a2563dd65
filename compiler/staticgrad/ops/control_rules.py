"""How nodes with sub-graphs are differentiated: graphs out of their bodies' graphs.

The reverse of a scan is a scan the other way. What its body needs of the forward body's values is
stored by a second forward scan, which the pass `merge_loops` joins with the first; with `remat`
only the carries are stored, and the rest is computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from staticgrad.ir.dim import DimLike
from staticgrad.ir.dtype import int64
from staticgrad.ir.errors import DifferentiationError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Node, Value
from staticgrad.ir.types import TensorType
from staticgrad.kernels.cost import COST

from .arithmetic import add
from .closing import placeholder, placeholders, replaced
from .elementwise import zeros_as
from .linalg import matmul
from .lowering import Control, Leaf, View
from .reduction import sum as reduce_sum
from .registry import Attrs, JvpContext, VjpContext, get, make
from .shape import reshape
from .tensor import Tensor

INDEX = TensorType(int64, ())

_regions = itertools.count(1)


def branches_of(attrs: Attrs) -> list[Graph]:
    """The graphs of a `cond` or `switch`, in the order of the index that chooses them."""
    if "true" in attrs:
        return [attrs["false"], attrs["true"]]
    names = sorted((n for n in attrs if n.startswith("case")), key=lambda n: int(n[4:]))
    return [attrs[n] for n in names]


def named_branches(graphs: Sequence[Graph], like: Attrs) -> dict[str, Graph]:
    """The reverse of `branches_of`."""
    if "true" in like:
        return {"true": graphs[1], "false": graphs[0]}
    return {f"case{i}": g for i, g in enumerate(graphs)}


def _or_zeros(v: Tensor | None, type: TensorType) -> Tensor:
    return zeros_as(type) if v is None else v


class Scan:
    """A scan's operands, and its body's inputs and outputs, by their parts."""

    def __init__(self, operands: Sequence[Any], attrs: Attrs) -> None:
        self.attrs = attrs
        self.body: Graph = attrs["body"]
        nc, nx = attrs["carries"], attrs["xs"]
        self.nc, self.nx = nc, nx
        self.init, self.xs = operands[:nc], operands[nc : nc + nx]
        self.captured = operands[nc + nx :]
        self.index, *rest = self.body.inputs
        self.carry_in, self.x_in, self.p_in = rest[:nc], rest[nc : nc + nx], rest[nc + nx :]
        self.carry_out, self.y_out = self.body.outputs[:nc], self.body.outputs[nc:]

    def other(
        self, init: Sequence[Any], xs: Sequence[Any], captured: Sequence[Any],
        inputs: Sequence[Any], outputs: Sequence[Any], **changed: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The results of a scan of the same length with another body."""
        attrs = {
            **self.attrs, "body": Graph(inputs, outputs), "carries": len(init), "xs": len(xs),
            **changed,
        }  # fmt: skip
        return make("scan", (*init, *xs, *captured), attrs).results


# --- reverse --------------------------------------------------------------------------------------


def vjp_scan(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    """ct_carry(t), ct_x(t), ct_p += body's vjp(t)(ct_carry(t+1), ct_y(t)), t backwards."""
    s = Scan(c.operands, c.attrs)
    cts = list(arriving) if isinstance(arriving, (list, tuple)) else [arriving]
    active = [i for i, v in enumerate(s.carry_in) if v.dtype.is_float]
    seeded = [j for j, v in enumerate(s.y_out) if v.dtype.is_float and cts[s.nc + j] is not None]
    ct_carry = placeholders("ct_c", [s.carry_in[i].type for i in active])
    ct_y = placeholders("ct_y", [s.y_out[j].type for j in seeded])
    needed = c.needed[s.nc :]
    wanted = [k for k, v in enumerate((*s.x_in, *s.p_in)) if needed[k] and v.dtype.is_float]
    targets = [*(s.carry_in[i] for i in active), *((*s.x_in, *s.p_in)[k] for k in wanted)]
    roots = [*(s.carry_out[i] for i in active), *(s.y_out[j] for j in seeded)]
    assert c.backward is not None
    found = c.backward(roots, [*ct_carry, *ct_y], targets)
    ct_next = [_or_zeros(g, v.type) for g, v in zip(found, targets[: len(active)])]
    ct_rest = dict(zip(wanted, found[len(active) :]))
    ct_x = {k: g for k, g in ct_rest.items() if k < s.nx and g is not None}
    ct_p = {k: g for k, g in ct_rest.items() if k >= s.nx and g is not None}
    products = {} if s.attrs["remat"] else _row_products(s, ct_p)
    stacked = dict.fromkeys(v for pair in products.values() for v in pair)
    totals = _row_sums(ct_p, stacked)
    sums = {
        k: placeholder(f"sum{k}", 0, (*s.x_in, *s.p_in)[k].type)
        for k in ct_p
        if k not in products and k not in totals
    }
    carried = [*ct_next, *(add(sums[k], ct_p[k]) for k in sums)]
    results = _reversed_scan(
        s, [*ct_carry, *sums.values()],
        [*(_or_zeros(cts[i], s.carry_in[i].type) for i in active),
         *(zeros_as(v.type) for v in sums.values())],
        ct_y, [cts[s.nc + j] for j in seeded], carried, [*ct_x.values(), *stacked],
    )  # fmt: skip
    gradients: list[Tensor | None] = [None] * len(c.operands)
    for i, g in zip(active, results):
        gradients[i] = g
    for k, g in zip((*sums, *ct_x), results[len(active) :]):
        gradients[s.nc + k] = g
    rows = dict(zip(stacked, results[len(carried) + len(ct_x) :]))
    for k, (a, b) in products.items():
        gradients[s.nc + k] = matmul(_all_rows_of(rows[a]).T, _all_rows_of(rows[b]))
    for k, v in totals.items():
        gradients[s.nc + k] = reduce_sum(_all_rows_of(rows[v]), axis=0)
    return gradients


def _row_products(s: Scan, ct_p: dict[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """The gradients `a.T @ b` of captured matrices, as pairs of matrices with a row for each item.

    The sum over all steps is one product over all rows: in the GRU of 100 steps of 32 x 128 that
    is one of K = 3200 instead of 100 of K = 32, and no sum of matrices in each step.
    """
    found: dict[int, tuple[Any, Any]] = {}
    fixed = {v.node for v in s.p_in}
    for k, g in ct_p.items():
        if g.node.op != "matmul":
            continue
        a, b = g.node.operands
        if a.node.op == "permute_dims" and a.ndim == 2 and b.ndim == 2:
            source = a.node.operands[0]
            if a.node.attrs["axes"] == (1, 0) and source.node not in fixed:
                found[k] = (source, b)
    return found


def _row_sums(ct_p: dict[int, Tensor], stacked: dict[Any, None]) -> dict[int, Any]:
    """The gradients `sum(b, axis=0)` of captured vectors, for matrices b that are stacked anyway:
    a bias beside a product. One sum over all rows."""
    found: dict[int, Any] = {}
    for k, g in ct_p.items():
        node = g.node
        if node.op == "reshape":  # the sum keeps the axis along which the vector was repeated
            node = node.operands[0].node
        if node.op == "sum" and node.attrs["axes"] == (0,):
            (b,) = node.operands
            if b in stacked and b.ndim == 2 and g.ndim == 1:
                found[k] = b
    return found


def _all_rows_of(stacked: Tensor) -> Tensor:
    """[steps, rows, columns] -> [steps * rows, columns]"""
    steps, rows, columns = stacked.shape
    return reshape(stacked, (steps * rows, columns))


def _reversed_scan(
    s: Scan, carries: list[Tensor], init: list[Tensor], ct_y: list[Tensor], ct_ys: list[Any],
    carried: list[Any], rows: list[Any],
) -> tuple[Any, ...]:  # fmt: skip
    """The scan backwards whose body computes the new carries and the rows, with all that they read
    of the forward body stored or computed again."""
    outputs = [*carried, *rows]
    stored = set(_residuals(s, outputs, [*carries, *ct_y]))
    given = {s.index, *s.x_in, *s.p_in}
    inner = sorted((v for v in stored if v not in given), key=lambda v: (v.node.id, v.index))
    saved: dict[Value, Any] = {}
    if inner:
        results = dict.fromkeys(s.y_out)  # what is stacked as a result is not stored once more
        more = [v for v in inner if v not in results]
        every = s.other(s.init, s.xs, s.captured, s.body.inputs, [*s.body.outputs, *more])
        stacks = dict(zip((*s.y_out, *more), every[s.nc :]))
        saved = {v: stacks[v] for v in inner}
    # Rows that are stored or given already need not be stored again.
    known = {**dict(zip(s.x_in, s.xs)), **saved}
    new_rows = list(dict.fromkeys(v for v in rows if v not in known))
    outputs = [*carried, *new_rows]
    copies = placeholders("saved", [v.type for v in inner])
    read = [i for i, v in enumerate(s.x_in) if v in stored]
    captured = [i for i, v in enumerate(s.p_in) if v in stored]
    new = replaced(outputs, dict(zip(inner, copies)))
    inputs = [
        s.index, *carries, *(s.x_in[i] for i in read), *copies, *ct_y,
        *(s.p_in[i] for i in captured),
    ]  # fmt: skip
    mapping = dict(zip(inputs, _renumbered(inputs)))
    found = s.other(
        init, [*(s.xs[i] for i in read), *saved.values(), *ct_ys],
        [s.captured[i] for i in captured],
        list(mapping.values()), replaced(new, mapping), reverse=not s.attrs["reverse"],
        remat=False,
    )  # fmt: skip
    known.update(zip(new_rows, found[len(carried) :]))
    return (*found[: len(carried)], *(known[v] for v in rows))


def _renumbered(inputs: Sequence[Value]) -> list[Tensor]:
    """Placeholders of the same types, whose names and numbers differ from each other."""
    names: set[str] = set()
    found = []
    for i, v in enumerate(inputs):
        name = v.node.attrs["name"]
        while name in names:
            name += "_"
        names.add(name)
        found.append(placeholder(name, i, v.type))
    return found


def _residuals(s: Scan, outputs: Sequence[Value], cotangents: Sequence[Value]) -> list[Value]:
    """The values of the forward body that `outputs` read and that are not computed again: all that
    costs something; with `remat` the body's inputs alone."""
    remat = s.attrs["remat"]
    forward = _forward_nodes(s.body, outputs, cotangents)
    found: dict[Value, None] = {}
    parts: dict[Value, None] = {}
    seen: set[Node] = set()

    def boundary(v: Value) -> None:
        stack = [v]
        while stack:
            v = stack.pop()
            if v in found or v.node.op == "constant":
                continue
            if v.node.op == "input" or not (remat or _is_cheap(v.node)):
                found[v] = None
            elif not remat and _is_part(v):
                parts[v] = None
            elif v.node not in seen:
                seen.add(v.node)
                stack += v.node.operands

    for node in reachable(outputs):
        if node not in forward:
            for v in node.operands:
                if v.node in forward:
                    boundary(v)
    for v in outputs:
        if v.node in forward:
            boundary(v)
    return _without_derived(_with_parts(list(found), list(parts)))


def _forward_nodes(body: Graph, outputs: Sequence[Value], cotangents: Sequence[Value]) -> set[Node]:
    """What the forward scan computes: the body's nodes, and loops that only wait for them (those
    that store what an inner loop's reverse needs)."""
    behind = {v.node for v in cotangents}
    early: list[Value] = []
    for node in reachable((*cotangents, *outputs)):
        if any(v.node in behind for v in node.operands):
            behind.add(node)
        elif isinstance(get(node.op).lower, Control):
            early += node.results
    return {*body.nodes, *reachable(early)}


def _is_cheap(node: Node) -> bool:
    """Whether a value is computed again rather than kept: indices of views, sizes, numbers."""
    lower = get(node.op).lower
    return isinstance(lower, (View, Leaf)) or node.op == "dim_size"


def _is_part(v: Value) -> bool:
    """Whether a value is a part of one that would have to be kept for it."""
    if v.node.op != "slice":
        return False
    (whole,) = v.node.operands
    is_smaller = _is_less(v.type.size, whole.type.size)
    return is_smaller and whole.node.op != "input" and not _is_cheap(whole.node)


def _is_less(size: DimLike, other: DimLike) -> bool:
    """Whether that holds whatever the symbols are; 0 aside, where either will do."""
    more = other - size
    return more > 0 if isinstance(more, int) else all(factor > 0 for _, factor in more.terms)


def _with_parts(kept: list[Value], parts: list[Value]) -> list[Value]:
    """What is kept, with parts of values that are not: alone where they are less than the whole.
    Of its product a GRU's reverse reads a third, in steps of 32 x 384 that is 32 KiB each."""
    size: dict[Value, DimLike] = {}
    for v in parts:
        (whole,) = v.node.operands
        size[whole] = size.get(whole, 0) + v.type.size
    known = set(kept)
    whole_ones = {w for w in size if w in known or not _is_less(size[w], w.type.size)}
    added = [v if v.node.operands[0] not in whole_ones else v.node.operands[0] for v in parts]
    return list(dict.fromkeys([*kept, *added]))


def _without_derived(values: list[Value]) -> list[Value]:
    """Without what is one cheap operation away from other values that are kept: `1 - z` of `z`."""
    kept = set(values)
    for v in sorted(values, key=lambda v: -v.node.id):
        node = v.node
        is_cheap = "elementwise" in get(node.op).traits and COST.get(node.op, 1) < 8
        if is_cheap and all(o in kept or o.node.op == "constant" for o in node.operands):
            kept.discard(v)
    return [v for v in values if v in kept]


def vjp_while(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    raise DifferentiationError(
        "while_loop: the number of iterations is known only when the loop has run, so the states "
        "that reverse mode goes back through have no place in the memory plan. Give a bound, "
        "while_loop(..., max_steps=n), or use fori_loop or scan with a number of iterations known "
        "before; forward mode (sg.jvp, sg.jacobian(mode='forward')) and the dynamic mode "
        "(sg.eager) need no bound"
    )


def vjp_branches(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    """The branch that was chosen, computed again and gone through backwards."""
    cts = list(arriving) if isinstance(arriving, (list, tuple)) else [arriving]
    choice, *operands = c.operands
    wanted = [i for i, n in enumerate(c.needed[1:]) if n]
    types = [operands[i].type for i in wanted]
    given = [j for j, ct in enumerate(cts) if ct is not None and ct.dtype.is_float]
    graphs = []
    for g in branches_of(c.attrs):
        seeds = placeholders("ct", [g.outputs[j].type for j in given], len(g.inputs))
        assert c.backward is not None
        found = c.backward([g.outputs[j] for j in given], seeds, [g.inputs[i] for i in wanted])
        outputs = [_or_zeros(v, t) for v, t in zip(found, types)]
        graphs.append(closed([*g.inputs, *seeds], outputs))
    every = (choice, *operands, *(cts[j] for j in given))
    results = make(branch_op(c.attrs), every, named_branches(graphs, c.attrs)).results
    gradients: list[Any] = [None] * len(c.operands)
    for i, r in zip(wanted, results):
        gradients[i + 1] = r
    return gradients


def branch_op(attrs: Attrs) -> str:
    return "cond" if "true" in attrs else "switch"


def closed(inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """A graph on new inputs, so that names and numbers differ."""
    fresh = _renumbered(inputs)
    return Graph(fresh, replaced(outputs, dict(zip(inputs, fresh))))


def vjp_checkpoint(c: VjpContext, arriving: Any) -> list[Tensor | None]:
    """The body once more, on operands that are read when the cotangent is known."""
    cts = list(arriving) if isinstance(arriving, (list, tuple)) else [arriving]
    body: Graph = c.attrs["body"]
    region = next(_regions)
    signal = next(ct for ct in cts if ct is not None)
    again = [make("recompute", (v, signal), {"region": region}).results[0] for v in c.operands]
    outputs = replaced(body.outputs, dict(zip(body.inputs, again)))
    given = [j for j, ct in enumerate(cts) if ct is not None]
    wanted = [i for i, n in enumerate(c.needed) if n]
    assert c.backward is not None
    found = c.backward(
        [outputs[j] for j in given], [cts[j] for j in given], [again[i] for i in wanted]
    )
    gradients: list[Tensor | None] = [None] * len(c.operands)
    for i, g in zip(wanted, found):
        gradients[i] = g
    return gradients


# --- forward --------------------------------------------------------------------------------------


def jvp_scan(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A scan of the values and their tangents together."""
    s = Scan(c.operands, c.attrs)
    active = [i for i, v in enumerate(s.carry_in) if v.dtype.is_float]
    rest = (*s.x_in, *s.p_in)
    moved = [k for k, t in enumerate(tangents[s.nc :]) if t is not None]
    t_carry = placeholders("t_c", [s.carry_in[i].type for i in active])
    t_rest = placeholders("t_v", [rest[k].type for k in moved])
    wrt = [*(s.carry_in[i] for i in active), *(rest[k] for k in moved)]
    assert c.push is not None
    pushed = c.push(s.body.outputs, wrt, [*t_carry, *t_rest])
    t_out = [_or_zeros(pushed[i], s.carry_in[i].type) for i in active]
    along = [j for j, t in enumerate(pushed[s.nc :]) if t is not None]
    t_xs = [k for k in moved if k < s.nx]
    t_ps = [k for k in moved if k >= s.nx]
    inputs = [
        s.index, *s.carry_in, *t_carry, *s.x_in, *t_rest[: len(t_xs)], *s.p_in,
        *t_rest[len(t_xs) :],
    ]  # fmt: skip
    outputs = [*s.carry_out, *t_out, *s.y_out, *(pushed[s.nc + j] for j in along)]
    body = closed(inputs, outputs)
    results = s.other(
        [*s.init, *(_or_zeros(tangents[i], s.carry_in[i].type) for i in active)],
        [*s.xs, *(tangents[s.nc + k] for k in t_xs)],
        [*s.captured, *(tangents[s.nc + k] for k in t_ps)],
        body.inputs, body.outputs,
    )  # fmt: skip
    found: list[Tensor | None] = [None] * len(c.results)
    for i, r in zip(active, results[s.nc :]):
        found[i] = r
    for j, r in zip(along, results[s.nc + len(active) + len(s.y_out) :]):
        found[s.nc + j] = r
    return found


def jvp_while(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    w = While(c.operands, c.attrs)
    active = [i for i, v in enumerate(w.carry_in) if v.dtype.is_float]
    moved = [k for k, t in enumerate(tangents[w.nc + w.tested :]) if t is not None]
    t_carry = placeholders("t_c", [w.carry_in[i].type for i in active])
    t_p = placeholders("t_p", [w.p_in[k].type for k in moved])
    wrt = [*(w.carry_in[i] for i in active), *(w.p_in[k] for k in moved)]
    assert c.push is not None
    pushed = c.push(w.body.outputs, wrt, [*t_carry, *t_p])
    t_out = [_or_zeros(pushed[i], w.carry_in[i].type) for i in active]
    body = closed([w.index, *w.carry_in, *t_carry, *w.p_in, *t_p], [*w.body.outputs, *t_out])
    index, *rest = w.condition.inputs
    condition = closed([index, *rest[: w.nc], *t_carry, *rest[w.nc :]], w.condition.outputs)
    operands = (
        *w.init, *(_or_zeros(tangents[i], w.carry_in[i].type) for i in active),
        *w.condition_captured, *w.captured, *(tangents[w.nc + w.tested + k] for k in moved),
    )  # fmt: skip
    results = w.other(operands, w.nc + len(active), condition, body)
    found: list[Tensor | None] = [None] * w.nc
    for i, r in zip(active, results[w.nc :]):
        found[i] = r
    return found


class While:
    """A while loop's operands and its graphs' inputs by their parts."""

    def __init__(self, operands: Sequence[Any], attrs: Attrs) -> None:
        self.body: Graph = attrs["body"]
        self.condition: Graph = attrs["condition"]
        self.nc, self.tested = attrs["carries"], attrs["condition_captures"]
        self.init = operands[: self.nc]
        self.condition_captured = operands[self.nc : self.nc + self.tested]
        self.captured = operands[self.nc + self.tested :]
        self.index, *rest = self.body.inputs
        self.carry_in, self.p_in = rest[: self.nc], rest[self.nc :]

    def other(
        self, operands: Sequence[Any], carries: int, condition: Graph, body: Graph
    ) -> tuple[Any, ...]:
        attrs = {
            "condition": condition, "body": body, "carries": carries,
            "condition_captures": self.tested,
        }  # fmt: skip
        return make("while_loop", operands, attrs).results


def jvp_branches(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    moved = [i for i, t in enumerate(tangents[1:]) if t is not None]
    floats = [j for j, r in enumerate(c.results) if r.dtype.is_float]
    graphs = []
    for g in branches_of(c.attrs):
        t_in = placeholders("t", [g.inputs[i].type for i in moved], len(g.inputs))
        assert c.push is not None
        pushed = c.push([g.outputs[j] for j in floats], [g.inputs[i] for i in moved], t_in)
        outputs = [_or_zeros(t, g.outputs[j].type) for j, t in zip(floats, pushed)]
        graphs.append(closed([*g.inputs, *t_in], outputs))
    every = (*c.operands, *(tangents[i + 1] for i in moved))
    results = make(branch_op(c.attrs), every, named_branches(graphs, c.attrs)).results
    found: list[Any] = [None] * len(c.results)
    for j, r in zip(floats, results):
        found[j] = r
    return found


def jvp_checkpoint(c: JvpContext, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A checkpoint of the tangents' formula, which computes the values that it needs itself."""
    body: Graph = c.attrs["body"]
    moved = [i for i, t in enumerate(tangents) if t is not None]
    t_in = placeholders("t", [body.inputs[i].type for i in moved], len(body.inputs))
    assert c.push is not None
    pushed = c.push(body.outputs, [body.inputs[i] for i in moved], t_in)
    given = [j for j, t in enumerate(pushed) if t is not None]
    found: list[Any] = [None] * len(c.results)
    if given:
        inner = closed([*body.inputs, *t_in], [pushed[j] for j in given])
        operands = (*c.operands, *(tangents[i] for i in moved))
        results = make("checkpoint", operands, {"body": inner}).results
        for j, r in zip(given, results):
            found[j] = r
    return found


__all__ = [
    "Scan",
    "While",
    "branch_op",
    "branches_of",
    "closed",
    "jvp_branches",
    "jvp_checkpoint",
    "jvp_scan",
    "jvp_while",
    "named_branches",
    "vjp_branches",
    "vjp_checkpoint",
    "vjp_scan",
    "vjp_while",
]
