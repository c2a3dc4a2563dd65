"""One operation, one record: everything that the system knows of an op stands in its `Op`.

The reference page, the gradient checks, the fuzzer and the invariance tests derive from the
records. A record with a missing field fails when its module is imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from staticgrad.ir.dim import Dim, DimLike, Shape, equal_dims, shape_text
from staticgrad.ir.errors import DTypeError, ShapeError, StaticgradError, UnsupportedError
from staticgrad.ir.loc import Locs, current_locs, locs_text
from staticgrad.ir.node import DimEquality, Node, Value
from staticgrad.ir.types import TensorType

from .lowering import Lowering

Attrs = Mapping[str, Any]
Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class NotDifferentiable:
    """What a record says in place of a `vjp`: no gradient passes, and why."""

    reason: str


@dataclass(frozen=True)
class NotBatchable:
    """What a record says in place of a `batch` rule: it can't act on many operands at once, and
    why. As a rule it raises that."""

    reason: str

    def __call__(self, c: BatchContext) -> NoReturn:
        raise UnsupportedError(f"{c.node.op} can't be batched (vmap): {self.reason}")


@dataclass(frozen=True)
class Sample:
    """Operands and attributes that an op accepts; arrays are NumPy's. Tests derive from these.

    `differentiable` is False where the point lies on a kink or a jump (|x| at 0), so that values
    are compared there but gradients are not.
    """

    operands: tuple[Any, ...]
    attrs: Attrs = field(default_factory=dict)
    differentiable: bool = True


@dataclass(frozen=True)
class Tolerance:
    """The relative error against the reference that the record's formula allows."""

    float32: float = 1e-5
    float64: float = 1e-12


@dataclass(frozen=True)
class VjpContext:
    """What a `vjp` rule sees: the node's operands, results and attributes."""

    operands: tuple[Any, ...]
    results: tuple[Any, ...]
    attrs: Attrs
    needed: tuple[bool, ...]
    # `autodiff.reverse.backward`, for records whose nodes hold sub-graphs.
    backward: Callable[..., Any] | None = None


@dataclass(frozen=True)
class JvpContext:
    """What a `jvp` rule sees: the node's operands, results and attributes."""

    operands: tuple[Any, ...]
    results: tuple[Any, ...]
    attrs: Attrs
    # `autodiff.forward.push`, for records whose nodes hold sub-graphs.
    push: Callable[..., Any] | None = None


@dataclass(frozen=True)
class BatchContext:
    """What a `batch` rule sees. Some operands have an extra axis of `size` in front: those whose
    place in `batched` is True. `types` and `result_types` are the node's own, without that axis."""

    operands: tuple[Any, ...]
    batched: tuple[bool, ...]
    size: DimLike
    attrs: Attrs
    types: Types
    result_types: Types
    node: Node
    # `autodiff.batching.batched`, for records whose nodes hold sub-graphs.
    batch: Callable[..., Any] | None = None


# A vjp rule gets the context and one cotangent for each result (None where nothing arrives) and
# returns one cotangent, or None, for each operand. A cotangent may still have the broadcast shape:
# `autodiff.reverse` sums it to the operand's own.
Vjp = Callable[..., Sequence[Any]]

# A jvp rule gets the context and one tangent for each operand (None: zero, not all of them are) and
# returns the tangent of the result, or a sequence with one for each of several results (None:
# zero).
# A tangent may still have a shape that broadcasts to the result's: `autodiff.forward` does that.
Jvp = Callable[..., Any]

# A batch rule returns the result (or a sequence, of several), each with the batch axis in front.
Batch = Callable[[BatchContext], Any]


@dataclass(frozen=True, kw_only=True)
class Op:
    """The record of one operation.

    name        as spelled in the API, the IR text, the dumps and the tests
    summary     one line, with the formula
    infer       (operand types, attrs) -> result types; raises ShapeError or DTypeError
    reference   (*arrays, **attrs) -> array or tuple of arrays, in NumPy: the oracle
    vjp         reverse rule, or NotDifferentiable(reason)
    jvp         forward rule, or NotDifferentiable(reason)
    batch       how it acts on many operands at once (vmap), or NotBatchable(reason)
    lower       how it becomes kernels: one of `ops.lowering`
    samples     () -> Samples over dtypes, shapes, zero sizes and special values
    source      where the definition comes from
    traits      "commutative", "random" (never merged), "can_fail" (checks its data when it runs),
                "elementwise"
    tolerance   looser than the default only where the formula says why
    failure     node -> what a run says that it fails; with "can_fail". {value} and {element} are
                what failed, `{=N}` is the size of N in that run (`failures`)
    """

    name: str
    summary: str
    infer: Callable[[Types, Attrs], Types]
    reference: Callable[..., Any]
    vjp: Vjp | NotDifferentiable
    jvp: Jvp | NotDifferentiable
    batch: Batch
    lower: Lowering
    samples: Callable[[], Iterable[Sample]]
    source: str
    traits: frozenset[str] = frozenset()
    tolerance: Tolerance = Tolerance()
    failure: Callable[[Node], str] | None = None


_registry: dict[str, Op] = {}
_TOO_MANY = 2**59  # 8 bytes each, and room for the arithmetic on offsets


def register(op: Op) -> Op:
    if op.name in _registry:
        raise ValueError(f"op {op.name!r} is registered twice")
    _registry[op.name] = op
    return op


_builtin: dict[str, Op] = {}


def seal_builtin() -> None:
    """What is registered by now is this project's own; called where the last of them is."""
    _builtin.update(_registry)


def is_builtin(name: str) -> bool:
    """Whether an op means what this version of the project says, in every process alike."""
    return name in _builtin and _registry.get(name) is _builtin[name]


def unregister(name: str) -> None:
    """Takes a user's op out again, so that another can have its name."""
    _registry.pop(name, None)


def get(name: str) -> Op:
    found = _registry.get(name)
    if found is None:
        raise KeyError(f"unknown op {name!r}")
    return found


def all_ops() -> dict[str, Op]:
    """Every record by name, in order of registration."""
    return dict(_registry)


class _Pending(threading.local):
    """The dim equalities that the `infer` under way has asked for."""

    def __init__(self) -> None:
        self.equalities: list[DimEquality] = []


_pending = _Pending()


def require_equal(a: DimLike, b: DimLike, message: str) -> DimLike:
    """Asks that two sizes be equal: raises where they can't be, else, unless it can be proved,
    leaves the question for bind time. Called by `infer`; returns the simpler of the two."""
    same = equal_dims(a, b)
    if same is False:
        raise ShapeError(f"{message}: {a} and {b} differ")
    if same is None and _only_empty(a, b):
        raise ShapeError(f"{message}: {a} and {b} differ, unless they are 0")
    if same is None:
        _pending.equalities.append(DimEquality(a, b, message))
    return a if isinstance(a, int) or not isinstance(b, int) else b


def _only_empty(a: DimLike, b: DimLike) -> bool:
    """Whether two sizes, neither written as 0, are equal only where both are: N and 2*N."""
    if (isinstance(a, int) and a == 0) or (isinstance(b, int) and b == 0):
        return False
    difference = a - b
    return (
        isinstance(difference, Dim)
        and len(difference.terms) == 1
        and len(difference.terms[0][0]) > 0
        and all(isinstance(atom, str) for atom in difference.terms[0][0])
        and _proportional(a, b)
    )


def _proportional(a: DimLike, b: DimLike) -> bool:
    """Whether both are multiples of one product of names."""
    return (
        isinstance(a, Dim) and isinstance(b, Dim) and len(a.terms) == len(b.terms) == 1
        and a.terms[0][0] == b.terms[0][0]
    )  # fmt: skip


def _check_sizes(types: Types) -> None:
    """Refuses results with more elements than an int64 counts."""
    for t in types:
        count = 1
        for d in t.shape:
            count *= d if isinstance(d, int) and d > 1 else 1
        if count >= _TOO_MANY:
            raise ShapeError(f"a result of type {t} would have {count} elements or more")


def make(
    name: str, operands: Sequence[Value], attrs: Attrs | None = None, *,
    payload: Any = None, locs: Locs | None = None,
) -> Node:  # fmt: skip
    """A node of op `name`; infers its types and raises at the user's line what does not fit."""
    from .tensor import Tensor

    op = get(name)
    attrs = attrs or {}
    equalities = _pending.equalities
    equalities.clear()
    if locs is None:
        locs = current_locs()
    try:
        types = op.infer(tuple(v.type for v in operands), attrs)
        _check_sizes(types)
    except StaticgradError as error:
        if not getattr(error, "located", False):
            where = f"\n  at {locs_text(locs)}" if locs else ""
            located = type(error)(f"{name}: {error}{where}")
            located.located = bool(locs)  # type: ignore[attr-defined]
            raise located from None
        raise
    constraints: tuple[DimEquality, ...] = ()
    if equalities:
        constraints = tuple(
            DimEquality(e.left, e.right, f"{name}: {e.message}", locs) for e in equalities
        )
        equalities.clear()
    value_class = Tensor if name != "state" else _state_class()
    return Node(name, operands, attrs, types, locs, payload, constraints, value_class)


def clone(node: Node, operands: Sequence[Value], locs: Locs) -> Node:
    """`node` on other operands of the same types: nothing is inferred again."""
    return Node(
        node.op, operands, node.attrs, node.types, locs, node.payload, node.constraints,
        type(node.results[0]) if node.results else Value,
    )  # fmt: skip


def _state_class() -> type[Value]:
    from .leaves import Parameter

    return Parameter


def apply(name: str, /, *operands: Value, payload: Any = None, **attrs: Any) -> Any:
    """`make` for ops with one result: the result's handle; several results give a tuple."""
    results = make(name, operands, attrs, payload=payload).results
    return results[0] if len(results) == 1 else results


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape of arrays that are combined element by element, NumPy's rule.

    A symbolic dim broadcasts against the int 1 and against an equal dim only; whether two different
    names are equal is asked at bind time.
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[DimLike] = []
    for axis in range(rank):
        size: DimLike = 1
        for shape in shapes:
            at = axis - rank + len(shape)
            if at < 0 or shape[at] == 1 or shape[at] == size:
                continue
            if size == 1:
                size = shape[at]
            else:
                text = " and ".join(shape_text(s) for s in shapes)
                size = require_equal(size, shape[at], f"shapes {text} do not broadcast")
        result.append(size)
    return tuple(result)


def infer_elementwise(types: Types) -> TensorType:
    """The common dtype and broadcast shape of operands that were promoted already."""
    first = types[0].dtype
    if any(t.dtype != first for t in types):
        raise DTypeError(f"operands differ in dtype: {', '.join(str(t) for t in types)}")
    return TensorType(first, broadcast_shapes(*(t.shape for t in types)))


__all__ = [
    "Attrs",
    "Batch",
    "BatchContext",
    "Jvp",
    "JvpContext",
    "NotBatchable",
    "NotDifferentiable",
    "Op",
    "Sample",
    "Tolerance",
    "Types",
    "Vjp",
    "VjpContext",
    "all_ops",
    "apply",
    "broadcast_shapes",
    "clone",
    "get",
    "infer_elementwise",
    "is_builtin",
    "make",
    "register",
    "require_equal",
    "seal_builtin",
]
