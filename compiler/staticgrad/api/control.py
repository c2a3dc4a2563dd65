"""Control flow inside a compiled program: `scan`, `fori_loop`, `while_loop`, `cond`, `switch`; and
`checkpoint`, which computes again instead of storing.

The functions have the semantics of jax.lax. A body is called once, on tensors that stand for the
carry and the slices, and becomes a graph of its own inside the node (`ops.closing`); carries,
slices and results may be any trees (`api.pytree`). The loops are part of the one native call.

On tensors of the dynamic mode they are what they say: Python's own loops and choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim, DimLike, dim_max, equal_dims, floor_div, is_index
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ShapeError,
)
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Value
from staticgrad.ir.types import TensorType
from staticgrad.ops import taps
from staticgrad.ops.closing import close, depends, placeholder, placeholders
from staticgrad.ops.control import INDEX
from staticgrad.ops.control_rules import named_branches
from staticgrad.ops.convert import as_tensor, astype, promoted
from staticgrad.ops.joining import concat, stack
from staticgrad.ops.public import list_of, public
from staticgrad.ops.random import own_key
from staticgrad.ops.reduction import dim_size
from staticgrad.ops.registry import make
from staticgrad.ops.shape import reshape
from staticgrad.ops.tensor import Tensor

from . import pytree
from .bodies import (
    Attempt,
    alike,
    check_structure,
    check_types,
    checked_functions,
    is_weak,
    refuse_taps,
    settled,
    tensors_of,
    trace_body,
)
from .foreign import foreign_of
from .pytree import Structure

Tree = Any


_CONDITION = "while_loop: the condition"


# --- scan -----------------------------------------------------------------------------------------


@public
def scan(
    f: Callable[..., Any], init: Tree, xs: Tree = None, length: Any = None, reverse: bool = False,
    *, checkpoint: Any = None,
) -> tuple[Tree, Tree]:  # fmt: skip
    """Repeats `carry, y = f(carry, x)` along the first axis of `xs`; returns the last carry and the
    ys, stacked.

        carry = init
        for t in range(length):  carry, ys[t] = f(carry, xs[t])

    init        a tree of tensors: what goes from step to step; its types stay the same
    xs          a tree of arrays with one length of their first axis, or None with `length`
    reverse     goes from the last step to the first; ys[t] still belongs to xs[t]
    checkpoint  how the gradient gets at the states of the forward pass. None stores what it needs
                of every step; a number k stores k states and computes the steps between them again;
                "sqrt" takes the square root of the length. Memory then grows with k + length / k

    The body is compiled once, whatever the length, which may be symbolic. Differentiable in reverse
    and forward mode. Raises `ShapeError` or `DTypeError`, with both sides, where the carry changes
    its type. Source: jax.lax.scan.
    """
    checked_functions("scan", f=f)
    x_leaves, x_form = pytree.flatten(xs)
    leaves, form = pytree.flatten(init)
    if foreign_of((*leaves, *x_leaves)) is not None:
        return _python_scan(f, init, x_leaves, x_form, length, reverse)
    along = tensors_of(x_leaves, "scan: xs")
    count = _length(along, x_form, length)

    def body(index: Tensor, carry: Tree, x: Tree) -> tuple[Tree, Tree]:
        found = f(carry, x)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ArgumentTypeError(
                f"scan: the body must return a pair (carry, y), got {type(found).__name__}"
            )
        return found

    return _scan("scan", body, leaves, form, along, x_form, count, reverse, checkpoint)


def _python_scan(
    f: Any, carry: Tree, xs: list[Any], form: Structure, length: Any, reverse: bool
) -> tuple[Tree, Tree]:
    count = int(xs[0].shape[0]) if length is None else int(length)
    if any(x.shape[0] != count for x in xs):
        raise _lengths_differ(xs, form, length)
    ys: list[Any] = []
    for t in range(count - 1, -1, -1) if reverse else range(count):
        carry, y = f(carry, pytree.unflatten(form, [x[t] for x in xs]))
        ys.append(y)
    if not ys:
        raise ArgumentError("scan: the dynamic mode needs at least one step to know the ys' types")
    if reverse:
        ys.reverse()
    return carry, pytree.map(lambda *rows: stack(list(rows)), *ys)


def _length(xs: list[Tensor], form: Structure, length: Any) -> DimLike:
    asked = length
    if length is not None:
        if not (isinstance(length, Dim) or is_index(length)):
            raise ArgumentTypeError(f"scan: length must be an int, got {length!r}")
        length = length if isinstance(length, Dim) else int(length)
        if isinstance(length, int) and length < 0:
            raise ArgumentError(f"scan: length must not be negative, got {length}")
    for x in xs:
        if not x.ndim:
            raise ShapeError(f"scan: xs must have a first axis to go along, got {x.type}")
        if length is None:
            length = x.shape[0]
        elif equal_dims(x.shape[0], length) is False:
            raise _lengths_differ(xs, form, asked)
    if length is None:
        raise ArgumentError("scan: without xs the number of steps must be given: length=...")
    found: DimLike = length
    return found


def _lengths_differ(xs: Sequence[Any], form: Structure, length: Any) -> ShapeError:
    """The error that says which of `xs` has which length."""
    parts = [] if length is None else [f"length={length}"]
    for path, x in zip(pytree.paths(form, "xs"), xs):
        parts.append(f"{path} has {x.shape[0] if x.ndim else 'no first axis'}")
    return ShapeError(f"scan: the lengths differ: {', '.join(parts)}")


def _scan(
    what: str, body: Callable[..., Any], init: Sequence[Any], form: Structure,
    xs: Sequence[Tensor], x_form: Structure, length: DimLike, reverse: bool, checkpoint: Any,
) -> tuple[Tree, Tree]:  # fmt: skip
    """`scan` with a body that is also given the number of the step."""
    if isinstance(length, int) and length >= 1 << 63:
        raise ArgumentError(f"{what}: {length} steps are more than an int64 counts")
    if checkpoint is None:
        carry, ys, y_form = _one_scan(what, body, init, form, xs, x_form, length, reverse)
        return pytree.unflatten(form, carry), pytree.unflatten(y_form, ys)
    segments, steps = _segments(what, length, checkpoint)
    if any(is_weak(v) for v in init):
        init = settled(what, form, init, _scan_body(what, body, form, xs, x_form, []))[0]
    inner_ys: list[Structure] = []

    def segment(number: Tensor, carry: Tree, parts: Tree) -> tuple[Tree, Tree]:
        def step(index: Tensor, inner: Tree, x: Tree) -> tuple[Tree, Tree]:
            found: tuple[Tree, Tree] = body(number * _size(steps) + index, inner, x)
            return found

        leaves, _ = pytree.flatten(carry)
        last, ys, y_form = _one_scan(
            what, step, leaves, form, pytree.flatten(parts)[0], x_form, steps, reverse
        )
        inner_ys[:] = [y_form]
        return pytree.unflatten(form, last), tuple(ys)

    whole = segments * steps
    rest = length - whole
    split = [reshape(x[:whole], (segments, steps, *x.shape[1:])) for x in xs]
    tail = [x[whole:] for x in xs]

    def last_steps(index: Tensor, carry: Tree, x: Tree) -> tuple[Tree, Tree]:
        found: tuple[Tree, Tree] = body(index + _size(whole), carry, x)
        return found

    has_tail = not (isinstance(rest, int) and rest == 0)
    carry, ends = list(init), None
    if has_tail and reverse:
        carry, ends, _ = _one_scan(what, last_steps, carry, form, tail, x_form, rest, reverse)
    carry, ys, _ = _one_scan(
        what, segment, carry, form, split, x_form, segments, reverse, remat=True
    )
    if has_tail and not reverse:
        carry, ends, _ = _one_scan(what, last_steps, carry, form, tail, x_form, rest, reverse)
    stacked = [reshape(y, (whole, *y.shape[2:])) for y in ys]
    if ends is not None:
        stacked = [concat([y, end]) for y, end in zip(stacked, ends)]
    return pytree.unflatten(form, carry), pytree.unflatten(inner_ys[0], stacked)


def _size(d: DimLike) -> Any:
    return d if isinstance(d, int) else dim_size(d)


def _segments(what: str, length: DimLike, checkpoint: Any) -> tuple[int, DimLike]:
    """How many states are stored, and how many steps lie between two."""
    if checkpoint == "sqrt":
        if not isinstance(length, int):
            raise ArgumentError(
                f'{what}: checkpoint="sqrt" needs a length known when the graph is declared, got '
                f"{length}; give the number of states to store instead"
            )
        segments = max(1, math.isqrt(length))
    elif is_index(checkpoint) and int(checkpoint) >= 1:
        segments = int(checkpoint)
        if isinstance(length, int):
            segments = max(1, min(segments, length))
    else:
        raise ArgumentError(
            f'{what}: checkpoint must be None, "sqrt" or a number of states of at least 1, got '
            f"{checkpoint!r}"
        )
    return segments, floor_div(length, segments)


def _one_scan(
    what: str, body: Callable[..., Any], init: Sequence[Any], form: Structure,
    xs: Sequence[Tensor], x_form: Structure, length: DimLike, reverse: bool, *,
    remat: bool = False,
) -> tuple[list[Tensor], list[Tensor], Structure]:  # fmt: skip
    """The last carry's leaves, the stacked leaves, and the form of one y."""
    watched: list[tuple[Value, taps.Tap]] = []
    attempt = _scan_body(what, body, form, xs, x_form, watched)
    first, inputs, carries, rest, y_form = settled(what, form, init, attempt)
    ys = tensors_of(rest, f"{what}: y")
    rows = [v for v, _ in watched]
    graph, captured = close(
        inputs, [*carries, *ys, *rows], inputs[0].node.id, lambda key: own_key(key, inputs[0])
    )
    attrs = {
        "body": graph, "length": length, "carries": len(first), "xs": len(xs),
        "reverse": bool(reverse), "remat": remat,
    }  # fmt: skip
    results: Any = make("scan", (*first, *xs, *captured), attrs).results
    last = len(first) + len(ys)
    for stacked, (_, tap) in zip(results[last:], watched):
        taps.add(stacked, taps.EachStep(tap.run, bool(reverse)))
    return list(results[: len(first)]), list(results[len(first) : last]), y_form


def _scan_body(
    what: str, body: Callable[..., Any], form: Structure, xs: Sequence[Tensor], x_form: Structure,
    watched: list[tuple[Value, taps.Tap]],
) -> Attempt:  # fmt: skip
    """What calls the body; `watched` then holds the effects in it."""
    slices = [TensorType(x.dtype, x.shape[1:]) for x in xs]

    def attempt(first: list[Tensor]) -> tuple[list[Tensor], list[Any], Structure]:
        inputs = [placeholder("index", 0, INDEX)]
        inputs += placeholders("c", [v.type for v in first], 1)
        inputs += placeholders("x", slices, 1 + len(first))
        with taps.of_body() as seen:
            found, whole = trace_body(body, inputs, (None, form, x_form))
        watched[:] = [(v, t) for v, t in seen if depends(v, inputs)]
        carry_form, y_form = whole.children
        check_structure(what, form, carry_form)
        return inputs, found, y_form

    return attempt


# --- loops ----------------------------------------------------------------------------------------


@public
def fori_loop(
    lower: Any, upper: Any, body: Callable[..., Any], init: Tree, *, checkpoint: Any = None
) -> Tree:
    """Repeats `value = body(i, value)` for i from `lower` to `upper - 1`; returns the last value.

    With bounds that are ints (or sizes) the loop is a `scan`, and differentiable in both modes; for
    `checkpoint` see there. With a tensor as a bound it is a `while_loop`.
    Source: jax.lax.fori_loop.
    """
    checked_functions("fori_loop", body=body)
    leaves, form = pytree.flatten(init)
    bounds = (lower, upper)
    if foreign_of((*leaves, *bounds)) is not None:
        value = init
        for i in range(int(lower), int(upper)):
            value = body(i, value)
        return value
    if any(isinstance(b, Tensor) for b in bounds):
        if checkpoint is not None:
            raise ArgumentError("fori_loop: checkpoint= needs bounds that are ints")
        start, end = (_bound(b) for b in bounds)

        def step(state: Tree) -> Tree:
            i, value = state
            return i + 1, body(i, value)

        return while_loop(lambda state: state[0] < end, step, (start, init))[1]
    for b in bounds:
        if not (isinstance(b, Dim) or is_index(b)):
            raise ArgumentTypeError(f"fori_loop: the bounds must be integers, got {b!r}")
    first = lower if isinstance(lower, Dim) else int(lower)
    count: DimLike = (upper if isinstance(upper, Dim) else int(upper)) - first
    if isinstance(count, int) or any(factor < 0 for _, factor in count.terms):
        count = dim_max(count, 0)  # sizes are not negative, their differences may be

    def turn(index: Tensor, value: Tree, x: Tree) -> tuple[Tree, Tree]:
        at = index if isinstance(first, int) and first == 0 else index + _size(first)
        return body(at, value), None

    empty = pytree.structure(None)
    return _scan("fori_loop", turn, leaves, form, [], empty, count, False, checkpoint)[0]


def _bound(value: Any) -> Tensor:
    t = as_tensor(value, "fori_loop")
    if not t.dtype.is_integer or t.shape != ():
        raise DTypeError(f"fori_loop: a bound must be an integer without axes, got {t.type}")
    return astype(t, "int64")


@public
def while_loop(
    condition: Callable[..., Any], body: Callable[..., Any], init: Tree, *, max_steps: Any = None
) -> Tree:
    """Repeats `value = body(value)` while `condition(value)`; returns the last value.

    With `max_steps` the loop ends after that many at the latest, whether or not the condition still
    holds: `condition(value)` of what is returned says so. It is then differentiable in both modes.
    Without a bound reverse mode is refused (the states that it would go back through have no place
    in a planned memory); forward mode works. Source: jax.lax.while_loop.
    """
    checked_functions("while_loop", condition=condition, body=body)
    leaves, form = pytree.flatten(init)
    if foreign_of(leaves) is not None:
        return _python_while(condition, body, init, max_steps)
    if max_steps is not None:
        return _bounded(condition, body, leaves, form, max_steps)
    first, inputs, carries = _while_body(body, leaves, form)
    graph, captured = close(inputs, carries, inputs[0].node.id, lambda k: own_key(k, inputs[0]))
    test = [placeholder("index", 0, INDEX), *placeholders("c", [v.type for v in first], 1)]
    with taps.of_body() as seen:
        asked = trace_body(lambda _, value: (condition(value),), test, (None, form))
    refuse_taps("while_loop", seen, test)
    asking, asked_of = close(
        test, [_predicate(pytree.unflatten(asked[1], asked[0])[0], _CONDITION)],
        test[0].node.id, lambda k: own_key(k, test[0]),
    )  # fmt: skip
    attrs = {
        "condition": asking, "body": graph, "carries": len(first),
        "condition_captures": len(asked_of),
    }  # fmt: skip
    results = make("while_loop", (*first, *asked_of, *captured), attrs).results
    return pytree.unflatten(form, results)


def _while_body(
    body: Callable[..., Any], init: Sequence[Any], form: Structure
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The first values, the body's inputs and what it makes of them."""

    def attempt(first: list[Tensor]) -> tuple[list[Tensor], list[Any], Structure]:
        inputs = [placeholder("index", 0, INDEX)]
        inputs += placeholders("c", [v.type for v in first], 1)
        with taps.of_body() as seen:
            found, returned = trace_body(lambda _, value: body(value), inputs, (None, form))
        refuse_taps("while_loop", seen, inputs)
        check_structure("while_loop", form, returned)
        return inputs, found, returned

    return settled("while_loop", form, init, attempt)[:3]


def _python_while(condition: Any, body: Any, value: Tree, max_steps: Any) -> Tree:
    steps = 0
    while (max_steps is None or steps < int(max_steps)) and condition(value):
        value = body(value)
        steps += 1
    return value


def _bounded(
    condition: Any, body: Any, init: Sequence[Any], form: Structure, max_steps: Any
) -> Tree:  # fmt: skip
    """A scan of `max_steps` steps, which do nothing once the condition has failed."""
    if not (isinstance(max_steps, Dim) or is_index(max_steps)):
        raise ArgumentTypeError(f"while_loop: max_steps must be an int, got {max_steps!r}")
    if not isinstance(max_steps, Dim) and int(max_steps) < 0:
        raise ArgumentError(f"while_loop: max_steps must not be negative, got {max_steps}")
    first, _, _ = _while_body(body, init, form)

    def step(i: Tensor, value: Tree) -> Tree:
        going = _predicate(condition(value), _CONDITION)

        # Of the body's results Python numbers take the carries' dtypes, as without a bound.
        def turn(*leaves: Tensor) -> list[Tensor]:
            new = pytree.flatten(body(pytree.unflatten(form, leaves)))[0]
            return [alike(v, t) for v, t in zip(new, leaves)]

        leaves = cond(going, turn, lambda *same: list(same), *pytree.flatten(value)[0])
        return pytree.unflatten(form, leaves)

    return fori_loop(0, max_steps, step, pytree.unflatten(form, first))


def _predicate(value: Any, what: str) -> Tensor:
    """A bool without axes; numbers are true unless they are zero."""
    if value is None or isinstance(value, (tuple, list, dict)):
        raise ArgumentTypeError(f"{what} must be one bool, got {value!r}")
    t = as_tensor(value, what)
    if t.shape != ():
        raise ShapeError(f"{what} must be one bool, got {t.type}; reduce it with .all() or .any()")
    return t if t.dtype.kind == "b" else t != 0


# --- choices --------------------------------------------------------------------------------------


@public
def cond(predicate: Any, true_fn: Any, false_fn: Any, *operands: Any) -> Tree:
    """`true_fn(*operands)` where `predicate` holds, else `false_fn(*operands)`; only that one is
    computed when the program runs.

    Both return the same structure of the same types. Under `vmap` with a predicate for each row
    both are computed, and each row takes its own. Source: jax.lax.cond.
    """
    checked_functions("cond", true_fn=true_fn, false_fn=false_fn)
    if isinstance(predicate, (bool, np.bool_)) or foreign_of((predicate,)) is not None:
        return (true_fn if predicate else false_fn)(*operands)
    test = _predicate(predicate, "cond: the predicate")
    return _choose("cond", test, (false_fn, true_fn), {"true": None}, operands)


@public
def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Tree:
    """`branches[index](*operands)`, with an index beyond the ends clamped to them; only that one is
    computed when the program runs. Source: jax.lax.switch."""
    functions = tuple(list_of(branches, "switch: branches", "functions"))
    checked_functions("switch", **{f"branches[{i}]": f for i, f in enumerate(functions)})
    if not functions:
        raise ArgumentError("switch: expected at least one branch")
    if foreign_of((index,)) is not None or (is_index(index) and not isinstance(index, Tensor)):
        return functions[min(max(int(index), 0), len(functions) - 1)](*operands)
    t = as_tensor(index, "switch: the index")
    if not t.dtype.is_integer or t.shape != ():
        raise DTypeError(f"switch: the index must be one integer, got {t.type}")
    return _choose("switch", astype(t, "int64"), functions, {}, operands)


def _choose(
    what: str, choice: Tensor, functions: Sequence[Any], kind: dict[str, Any], operands: Any
) -> Tree:
    leaves, form = pytree.flatten(operands)
    given = tensors_of(leaves, what)
    traced = []
    for function in functions:
        inputs = placeholders("a", [v.type for v in given])
        mark = placeholder("mark", 0, INDEX).node.id
        with taps.of_body() as seen:
            found, returned = trace_body(lambda args, f=function: f(*args), inputs, (form,))
        refuse_taps(what, seen, inputs)
        traced.append((inputs, found, returned, mark))
    first_form = traced[0][2]
    for _, _, other, _ in traced[1:]:
        if other != first_form:
            differs = pytree.difference(first_form, other, ("one branch", "another"))
            raise ArgumentTypeError(f"{what}: the branches return different structures: {differs}")
    outputs = _promoted_results([found for _, found, _, _ in traced])
    for k, values in enumerate(outputs[1:], 1):
        names = ("false", "true") if what == "cond" else ("branch 0", f"branch {k}")
        check_types(what, first_form, outputs[0], values, names, "the branches' types differ")
    graphs, captured = _closed_alike([t[0] for t in traced], outputs, [t[3] for t in traced])
    named = named_branches(graphs, kind)
    results = make(what, (choice, *given, *captured), named).results
    return pytree.unflatten(first_form, results)


def _promoted_results(found: list[list[Any]]) -> list[list[Tensor]]:
    """The branches' results; Python numbers take the dtype of the others' at their place."""
    places = []
    for values in zip(*found):
        strong = [as_tensor(v, "a branch's result") for v in values if not is_weak(v)]
        if not strong:
            places.append(list(promoted(*values)))
            continue
        places.append([alike(v, strong[0]) for v in values])
    return [list(row) for row in zip(*places)] if places else [[] for _ in found]


def _closed_alike(
    inputs: Sequence[list[Tensor]], outputs: Sequence[list[Tensor]], marks: Sequence[int]
) -> tuple[list[Graph], list[Value]]:
    """Closed graphs with the same inputs: each has those that any of them captures."""
    closed = [close(i, o, since, lazy=True) for i, o, since in zip(inputs, outputs, marks)]
    every = list(dict.fromkeys(v for _, captured in closed for v in captured))
    graphs = []
    for (graph, captured), own in zip(closed, inputs):
        known = dict(zip(captured, graph.inputs[len(own) :]))
        more = [
            known[v] if v in known else placeholder(f"q{k}", len(own) + len(every) + k, v.type)
            for k, v in enumerate(every)
        ]
        graphs.append(Graph([*own, *more], graph.outputs))
    return graphs, every


# --- checkpoint -----------------------------------------------------------------------------------


@public
def checkpoint(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, of whose values a gradient stores only the arguments: the others are computed again
    when the backward pass comes to them, and common subexpression elimination leaves that alone.

    Less memory for about one more forward pass of `fn`. Source: jax.checkpoint.
    """
    if not callable(fn):
        raise ArgumentTypeError(f"checkpoint: expected a function, got {fn!r}")

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        leaves, form = pytree.flatten((args, kwargs))
        if foreign_of(leaves) is not None:
            return fn(*args, **kwargs)  # the tape of the dynamic mode saves what it needs
        moved = [i for i, v in enumerate(leaves) if isinstance(v, Tensor)]
        inputs = placeholders("a", [leaves[i].type for i in moved])
        mark = placeholder("mark", 0, INDEX).node.id
        replaced = list(leaves)
        for i, v in zip(moved, inputs):
            replaced[i] = v
        inner_args, inner_kwargs = pytree.unflatten(form, replaced)
        with taps.of_body() as seen:
            found, result_form = pytree.flatten(fn(*inner_args, **inner_kwargs))
        watched = [(v, t) for v, t in seen if depends(v, inputs)]
        outputs = tensors_of(found, "checkpoint: a result")
        graph, captured = close(inputs, [*outputs, *(v for v, _ in watched)], mark)
        operands = (*(leaves[i] for i in moved), *captured)
        results = make("checkpoint", operands, {"body": graph}).results
        for value, (_, tap) in zip(results[len(outputs) :], watched):
            taps.add(value, tap.run)
        return pytree.unflatten(result_form, results[: len(outputs)])

    recomputing.__name__ = getattr(fn, "__name__", "checkpoint")
    recomputing.__doc__ = fn.__doc__
    return recomputing


__all__ = ["checkpoint", "cond", "fori_loop", "scan", "switch", "while_loop"]
