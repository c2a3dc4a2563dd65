"""The tape: what each recorded operation leaves behind, and the walk back along it.

The tape is the graph of results: a result refers to its node, a node to those of its operands. What
nothing refers to any more is gone, so no tape is ever cleared. Nodes are numbered as they are made;
the walk goes down the numbers, as the static reverse mode goes down the nodes of its graph.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import numpy as np

from staticgrad.ir.errors import DifferentiationError, ExecutionError
from staticgrad.ir.loc import Loc
from staticgrad.ir.types import TensorType

from .derivative import CT, OUT, SAVED, Plan
from .mode import checking, recording
from .program import Bound
from .signature import Signature, signature_of
from .tensor import Array, Storage, Tensor, wrapped

number = itertools.count(1).__next__
Hook = Callable[[Tensor], Any]

_is_ours: dict[str, bool] = {}


def _ours(frame: Any) -> bool:
    """Whether a frame runs code of this project's packages."""
    file = frame.f_code.co_filename
    found = _is_ours.get(file)
    if found is None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        found = _is_ours[file] = name in ("staticgrad", "staticgrad_runtime")
    return found


class Handle:
    """What `register_hook` returns: `remove()` takes the hook off again."""

    __slots__ = ("_hook", "_hooks")

    def __init__(self, hooks: list[Hook], hook: Hook) -> None:
        self._hooks = hooks
        self._hook = hook

    def remove(self) -> None:
        self._hooks[:] = [h for h in self._hooks if h is not self._hook]


class Leaf:
    """The end of the tape at a tensor that the user made: gradients add up here."""

    __slots__ = ("grad", "hooks", "number", "sig")

    def __init__(self, sig: Signature) -> None:
        self.sig = sig
        self.grad: Tensor | None = None
        self.hooks: list[Hook] | None = None
        self.number = number()

    @property
    def edges(self) -> tuple[Any, ...]:
        return ()

    def accumulate(self, ct: Any, create: bool, fresh: bool) -> None:
        """Adds a cotangent (an array; a tensor if `create`) to `grad`."""
        known = self.grad
        if create:
            self.grad = ct if known is None else known + ct
        elif known is None:
            self.grad = wrapped(ct if fresh else ct.copy(), self.sig)
        elif known._node is not None:  # itself differentiable: it is not changed
            self.grad = wrapped(np.add(known._array, ct, out=np.empty_like(ct)), self.sig)
        else:
            array = known._array
            known.change(lambda: np.add(array, ct, out=array))


class Node:
    """A recorded call: its plan, the nodes of its inputs, and what its derivative needs.

    saved     a Tensor for an input, (array, Storage) for an output, an array for other values;
              None once a walk has freed it
    versions  the saved tensors' versions at the call; None: all 0
    retained  by root, the `Leaf` of a result whose gradient is kept
    """

    __slots__ = ("code", "edges", "hooks", "instruction", "number", "plan", "retained", "saved",
                 "versions")  # fmt: skip

    plan: Plan
    edges: tuple[Any, ...]
    saved: tuple[Any, ...] | None
    versions: tuple[int, ...] | None
    code: CodeType | None
    instruction: int
    hooks: dict[int, list[Hook]] | None
    retained: dict[int, Leaf] | None
    number: int

    @property
    def name(self) -> str:
        return self.plan.name

    def line(self) -> str:
        """Where the user called the operation."""
        if self.code is None:
            return ""
        lines = [n for first, last, n in self.code.co_lines() if first <= self.instruction < last]
        return str(Loc(self.code.co_filename, (lines and lines[0]) or self.code.co_firstlineno))


class Port:
    """The way from a result to its node, where it is not the first of the node's roots."""

    __slots__ = ("edges", "hooks", "number", "slot")

    def __init__(self, node: Node, slot: int) -> None:
        self.edges = (node,)
        self.slot = slot
        self.number = number()
        self.hooks: list[Hook] | None = None


GradientEdge = Node | Port | Leaf


def user_line(frame: Any) -> tuple[CodeType | None, int]:
    """Where the user is: the code and the instruction, from which `Node.line` finds the line."""
    while frame is not None:
        code = frame.f_code
        ours = _is_ours.get(code.co_filename)
        if not (_ours(frame) if ours is None else ours):
            return code, frame.f_lasti
        frame = frame.f_back
    return None, 0


def record(
    plan: Plan, bound: Bound, inputs: Sequence[Any], arrays: Sequence[Array]
) -> tuple[tuple[Array, ...], Node]:
    """Runs a call and records it. `inputs` are tensors, or arrays where no gradient goes."""
    results = plan.call(*arrays)
    if type(results) is not tuple:
        results = (results,)
    node = _new_node(Node)
    node.plan = plan
    node.hooks = node.retained = None
    node.edges = tuple([inputs[i]._node for i in plan.needed])
    saved: list[Any] = []
    versions: list[int] = []
    changed = False
    for kind, i in plan.saved:
        version = 0
        if kind == "input":
            item = inputs[i]
            if item.__class__ is Tensor:
                store = item._store
                if store is not None:
                    version = store.version
                    changed = changed or version != 0
        elif kind == "output":
            item = (results[i], Storage())
        else:
            item = results[plan.outputs + i]
        saved.append(item)
        versions.append(version)
    node.saved = tuple(saved)
    node.versions = tuple(versions) if changed else None
    node.number = number()
    node.code, node.instruction = user_line(sys._getframe(1))
    return results, node


_new = Tensor.__new__
_new_node = Node.__new__


def recorded(
    bound: Bound, mask: int, inputs: Sequence[Any], arrays: Sequence[Array], depth: int = 2
) -> Tensor:
    """The result of a call with one output, on the tape: `record` for what most calls are. The
    `depth` frames above are ours: to look at each took a third of a call's time."""
    plan = bound.plans.get(mask) or bound.plan(mask)
    if plan.extra:
        results, node = record(plan, bound, inputs, arrays)
        return results_of(node, results, bound.sigs)[0]
    result = _new(Tensor)
    result._array = array = plan.call(*arrays)
    result._sig = bound.sig
    result._leaf = result._store = None
    if plan.dead:
        result._node = None
        return result
    result._node = node = _new_node(Node)
    node.plan = plan
    node.hooks = node.retained = node.versions = None
    edges = plan.needed
    if len(edges) == 1:
        node.edges = (inputs[edges[0]]._node,)
    else:
        node.edges = tuple([inputs[i]._node for i in edges])
    saved = plan.saved_inputs
    if saved:
        node.saved = kept = tuple([inputs[i] for i in saved])
        for t in kept:
            if t.__class__ is Tensor and t._store is not None and t._store.version:
                node.versions = tuple([t._version if t.__class__ is Tensor else 0 for t in kept])
                break
    else:
        node.saved = ()
    if plan.keeps_output:
        result._store = store = Storage()
        node.saved = (*node.saved, (array, store))
        if node.versions is not None:
            node.versions = (*node.versions, 0)
    node.number = number()
    try:
        node.code, node.instruction = user_line(sys._getframe(depth))
    except ValueError:  # called from C, with no Python caller
        node.code, node.instruction = None, 0
    return result


def results_of(
    node: Node, results: Sequence[Array], sigs: Sequence[Signature]
) -> tuple[Tensor, ...]:
    """The tensors of a recorded call; those that are integers end the tape."""
    made = []
    for slot, sig in enumerate(sigs):
        t = wrapped(results[slot], sig)
        if sig.is_float:
            t._node = Port(node, slot) if slot else node
        made.append(t)
    assert node.saved is not None
    for (kind, i), item in zip(node.plan.saved, node.saved):
        if kind == "output":
            made[i]._store = item[1]
    return tuple(made)


# --- the walk back --------------------------------------------------------------------------------


def walk(
    roots: Sequence[Tensor], seeds: Sequence[Any], *, create: bool, keep: bool,
    targets: Sequence[GradientEdge] | None = None, within: Callable[[int], bool] | None = None,
) -> list[Any]:  # fmt: skip
    """Sends cotangents from `roots` along the tape.

    Without `targets` they add up in the leaves' `.grad`; with, those that arrive at the targets are
    returned (None: no path). Cotangents are arrays, or tensors if `create`: then the walk is
    recorded itself. `within` tells by number which nodes take part.
    """
    pending: dict[GradientEdge, Any] = {}
    further: dict[Node, dict[int, Any]] = {}  # of roots beyond a node's first
    aliased: set[int] = set()  # arrays that may be held by others
    for t, seed in zip(roots, seeds):
        assert t._node is not None
        aliased.add(id(seed))
        _add(pending, t._node, seed)
    wanted = None if targets is None else set(targets)
    found: dict[GradientEdge, Any] = {}
    token = recording.set(create)
    try:
        for node in _order([t._node for t in roots], wanted, within):
            ct = pending.pop(node, None)
            rest = further.pop(node, None) if node.__class__ is Node else None  # type: ignore[arg-type]
            if ct is None and rest is None:
                continue
            if node.hooks or (node.__class__ is Node and node.retained):
                ct = _hooked(node, ct, rest, create, aliased)
            if wanted is not None and node in wanted:
                found[node] = ct
            if node.__class__ is Leaf:
                if wanted is None:
                    node.accumulate(ct, create, id(ct) not in aliased)
            elif node.__class__ is Port:
                slots = further.setdefault(node.edges[0], {})  # type: ignore[arg-type]
                _add(slots, node.slot, ct)  # type: ignore[union-attr]
            else:
                assert node.__class__ is Node
                grads = _step(node, ct, rest, create, keep, aliased)  # type: ignore[arg-type]
                for edge, g in zip(node.edges, grads):
                    if g is not None and edge is not None:
                        _add(pending, edge, g)
    finally:
        recording.reset(token)
    return [] if targets is None else [found.get(t) for t in targets]


def _add(pending: dict[Any, Any], key: Any, ct: Any) -> None:
    known = pending.get(key)
    if known is None:
        pending[key] = ct
    elif ct.__class__ is Tensor:
        pending[key] = known + ct
    else:
        pending[key] = np.add(known, ct, out=np.empty_like(ct))


def _order(
    roots: Sequence[Any], wanted: set[GradientEdge] | None, within: Callable[[int], bool] | None
) -> list[GradientEdge]:
    """The nodes below `roots`, newest first; with `wanted`, those that lead to one of them."""
    seen: set[GradientEdge] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for edge in node.edges:
            if edge is not None and edge not in seen and (
                within is None or edge.__class__ is not Node or within(edge.number)
            ):  # fmt: skip
                stack.append(edge)
    if within is not None:
        seen = {n for n in seen if n.__class__ is not Node or within(n.number)}
    order = sorted(seen, key=_number)
    if wanted is not None:
        leading: set[GradientEdge] = set()
        for node in order:
            if node in wanted or any(e in leading for e in node.edges):
                leading.add(node)
        order = [n for n in order if n in leading]
    order.reverse()
    return order


def _number(node: GradientEdge) -> int:
    return node.number


def _hooked(node: Any, ct: Any, rest: Any, create: bool, aliased: set[int]) -> Any:
    """Calls the hooks of a node's results; keeps the gradients that `retain_grad` asked for."""
    if node.__class__ is not Node:
        return _call_hooks(node.hooks, ct, create, aliased)
    if ct is not None:
        ct = _call_hooks((node.hooks or {}).get(0), ct, create, aliased)
        leaf = (node.retained or {}).get(0)
        if leaf is not None:
            leaf.accumulate(ct, create, False)
    return ct


def _call_hooks(hooks: list[Hook] | None, ct: Any, create: bool, aliased: set[int]) -> Any:
    for hook in tuple(hooks or ()):
        aliased.add(id(ct))
        given = ct if create else Tensor(ct)
        answer = hook(given)
        if answer is None:
            continue
        if not isinstance(answer, Tensor) or answer._sig is not given._sig:
            came = answer.type if isinstance(answer, Tensor) else type(answer).__name__
            raise DifferentiationError(
                f"a hook must return None or a tensor of the gradient's type {given.type}, got "
                f"{came}"
            )
        ct = answer if create else answer._array
        aliased.add(id(ct))
    return ct


def _step(
    node: Node, ct: Any, rest: dict[int, Any] | None, create: bool, keep: bool, aliased: set[int]
) -> list[Any]:
    """The cotangents of a node's inputs."""
    if node.saved is None:
        raise DifferentiationError(
            f"backward went through {_at(node)} a second time, but what it had saved was freed by "
            "the first; pass retain_graph=True to the first backward"
        )
    arriving, cts = 0, {}
    if ct is not None:
        arriving, cts[0] = 1, ct
    for slot, value in (rest or {}).items():
        arriving |= 1 << slot
        cts[slot] = value
    back, sizes = node.plan.back(arriving)
    saved = _saved_tensors(node) if create else _saved_arrays(node)
    given: list[Any] = []
    for kind, i in back.feed:
        given.append(cts[i] if kind == CT else saved[i] if kind == SAVED else sizes)
    outputs: Sequence[Any] = ()
    if back.program.outputs:
        if create:
            outputs = apply(back.program, given)
        else:
            outputs = back.program.bound(tuple([signature_of(a) for a in given])).call(*given)
            if outputs.__class__ is not tuple:
                outputs = (outputs,)
    if checking.get():
        _check_nan(node, outputs, create)
    if not keep and node.saved:
        node.saved = None
    grads: list[Any] = []
    for route in back.routes:
        if route is None:
            grads.append(None)
        elif route[0] == OUT:
            grads.append(outputs[route[1]])
        else:
            aliased.add(id(cts[route[1]]))
            grads.append(cts[route[1]])
    return grads


def _saved_arrays(node: Node) -> list[Array]:
    found = []
    versions = node.versions
    for k, item in enumerate(node.saved or ()):
        kind = item.__class__
        if kind is Tensor:
            store = item._store
            if store is not None and store.version != (0 if versions is None else versions[k]):
                raise _changed(node, item.type, "input")
            found.append(item._array)
        elif kind is tuple:
            if item[1].version:
                raise _changed(node, Tensor(item[0]).type, "result")
            found.append(item[0])
        else:
            found.append(item)
    return found


def _saved_tensors(node: Node) -> list[Any]:
    """The saved values as tensors on the tape, so that the walk can be differentiated."""
    _saved_arrays(node)
    found: list[Any] = []
    plan = node.plan
    edges = dict(zip(plan.needed, node.edges))
    for (kind, i), item in zip(plan.saved, node.saved or ()):
        if kind == "input":
            t = Tensor(item._array if item.__class__ is Tensor else item)
            t._node = edges.get(i)  # as it was at the call, whatever became of the tensor since
        else:
            slot = i if kind == "output" else plan.outputs + i
            t = Tensor(item[0] if item.__class__ is tuple else item)
            if t._sig.is_float:
                t._node = Port(node, slot) if slot else node
        found.append(t)
    return found


def _at(node: Node) -> str:
    line = node.line()
    return f"{node.name} ({line})" if line else node.name


def _changed(node: Node, type: TensorType, which: str) -> DifferentiationError:
    return DifferentiationError(
        f"a tensor that the gradient of {_at(node)} needs, its {which} of type {type}, was changed "
        "in place after the call; compute a new tensor instead, or change .data if the gradient "
        "shall see the new values"
    )


def _check_nan(node: Node, outputs: Sequence[Any], create: bool) -> None:
    for value in outputs:
        array = value._array if create else value
        if np.isnan(array).any():
            raise ExecutionError(
                f"the gradient of {_at(node)} is NaN; the line is that of the forward call"
            )


# --- running programs on tensors ------------------------------------------------------------------


def apply(program: Any, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """A program's outputs for tensors (arrays: where no gradient goes), recorded where one of them
    requires a gradient."""
    mask = 0
    arrays: list[Array] = []
    sigs = []
    for i, t in enumerate(inputs):
        if t.__class__ is Tensor:
            arrays.append(t._array)
            sigs.append(t._sig)
            if t._node is not None:
                mask |= 1 << i
        else:
            arrays.append(t)
            sigs.append(signature_of(t))
    key = tuple(sigs)
    bound = program.bound(key)
    if mask and recording.get():
        plan = bound.plans.get(mask) or bound.plan(mask)
        if not plan.dead:
            results, node = record(plan, bound, inputs, arrays)
            return results_of(node, results, bound.sigs)
    results = bound.call(*arrays)
    if type(results) is not tuple:
        results = (results,)
    return tuple([wrapped(a, s) for a, s in zip(results, bound.sigs)])
