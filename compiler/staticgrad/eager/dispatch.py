"""From a call of a public function with eager tensors to a kernel: keys, tracing, results.

A call is looked up by its function, the signatures of its tensors and the values of all other
arguments. On a miss the function is traced on inputs of symbolic sizes; what must know its sizes is
traced again with them. Where a program exists for the layout class, new sizes cost no compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from staticgrad_runtime.state import StateCell

from staticgrad.ir.dim import Shape, as_shape
from staticgrad.ir.dtype import integer_range, weak_scalar_dtype
from staticgrad.ir.errors import ArgumentTypeError, StaticgradError
from staticgrad.ir.node import Value
from staticgrad.ops import arithmetic, comparison, random, searching, selection
from staticgrad.ops.convert import to_array
from staticgrad.ops.leaves import Parameter, state_of
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.public import dynamic, locate, shown
from staticgrad.ops.tensor import Tensor as GraphTensor
from staticgrad.ops.widening import tell_mixed

from .mode import recording
from .parameters import eager_of, leaf_of
from .program import Bound, Program, rebuilt, statically, updates_of
from .signature import Signature, symbolic_shapes
from .static_values import value_of
from .tape import record, recorded, results_of
from .tensor import Array, Tensor, wrapped
from .views import FUNCTIONS as VIEWS
from .views import note_copy, view_of

# Calls and traced functions that are remembered; what is forgotten is traced again, and its object
# code comes from the disk.
_CALLS = 8192
_TRACES = 4096

_calls: dict[Any, Call] = {}
_traces: dict[Any, Trace] = {}

_recording = recording.get

# Where a Python number beside tensors is an argument of the kernel, so that `x * 0.1` and `x * 0.2`
# share one. Elsewhere it is part of the key: axes, shapes, exponents, rates of dropout.
_RUN_TIME_NUMBERS = {
    getattr(module, name)
    for module, names in (
        (arithmetic, ("add", "subtract", "multiply", "divide", "floor_divide", "remainder")),
        (comparison, ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")),
        (selection, ("maximum", "minimum")),
    )
    for name in names
}


_where = selection.where
_BOUNDED = {selection.clip, selection.clamp}


class Trace:
    """A traced function: its program, and how results and updated state follow from outputs.

    results  what the call returns, with ("input", i), ("output", j) or ("value", v) at the leaves
    updates  (number of an input, output): buffers that layers update
    """

    __slots__ = ("program", "results", "updates")

    def __init__(
        self, name: str, inputs: Sequence[Value], results: Any,
        updates: Sequence[tuple[int, Value]],
    ) -> None:  # fmt: skip
        places: dict[Value, tuple[str, int]] = {v: ("input", i) for i, v in enumerate(inputs)}
        outputs: list[Value] = []

        def place(v: Value) -> tuple[str, int]:
            if v not in places:
                places[v] = ("output", len(outputs))
                outputs.append(v)
            return places[v]

        self.results = _mapped(results, place)
        self.updates = tuple((i, place(v)) for i, v in updates)
        self.program = Program(name, inputs, outputs)


class Call:
    """A traced function at exact sizes. `simple`: one tensor, one output, nothing else."""

    __slots__ = ("bound", "simple", "trace")

    def __init__(self, trace: Trace, sigs: tuple[Signature, ...]) -> None:
        self.trace = trace
        self.bound: Bound | None = trace.program.bound(sigs) if trace.program.outputs else None
        one = trace.results == ("output", 0) and len(trace.program.outputs) == 1
        self.simple = one and not trace.updates


class _Node:
    """An inner node of a tree of results."""

    __slots__ = ("build", "children")

    def __init__(self, build: Callable[[list[Any]], Any], children: list[Any]) -> None:
        self.build = build
        self.children = children


def _mapped(results: Any, place: Callable[[Value], tuple[str, Any]]) -> Any:
    """The tree of what a function returned: tensors' places, tuples, lists, dicts, other values."""
    if isinstance(results, Value):
        return place(results)
    children = [_mapped(r, place) for r in results] if isinstance(results, (tuple, list)) else []
    if isinstance(results, tuple):
        named = hasattr(results, "_fields")
        return _Node(type(results)._make if named else tuple, children)  # type: ignore[attr-defined]
    if isinstance(results, list):
        return _Node(list, children)
    if isinstance(results, dict):
        names = list(results)
        return _Node(
            lambda values: dict(zip(names, values)), [_mapped(results[n], place) for n in names]
        )
    return ("value", results)


def _built(tree: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    if tree.__class__ is _Node:
        return tree.build([_built(c, inputs, outputs) for c in tree.children])
    kind, what = tree
    return inputs[what] if kind == "input" else outputs[what] if kind == "output" else what


# --- arguments ------------------------------------------------------------------------------------


class _Arguments:
    """The tensors among a call's arguments, and its key."""

    __slots__ = ("fixed", "key", "params", "tensors")

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[Any] = []
        self.fixed: list[bool] = []  # whose sizes are part of the layout class
        self.params: list[Parameter | None] = []
        self.key: list[Any] = [function]
        for a in args:
            self.add(a)
        for name, a in kwargs.items():
            self.add(name)
            self.add(a)

    def add(self, a: Any) -> None:
        kind = a.__class__
        key = self.key
        if kind is Tensor:
            self._tensor(a)
        elif kind is Parameter:
            self._tensor(leaf_of(a), a)
            key.append(a.node.attrs["trainable"])
        elif kind in _PLAIN:
            key.append(kind)
            key.append(repr(a) if kind is float and (not a or a != a) else a)  # -0.0, NaN
        elif kind is list or kind is tuple or (isinstance(a, tuple) and hasattr(a, "_fields")):
            key.append((kind, len(a)))
            for x in a:
                self.add(x)
        elif kind is dict:
            key.append((dict, tuple(a)))
            for x in a.values():
                self.add(x)
        elif kind is slice:
            key.append(slice)
            for x in (a.start, a.stop, a.step):
                self.add(x)
        elif kind in dynamic.types:  # a variable
            self._tensor(a.value())
        elif isinstance(a, np.ndarray):
            self._tensor(Tensor(np.array(to_array(a), order="C", copy=True)))
        elif isinstance(a, np.generic):
            key.append(a.dtype)
            key.append(a.tobytes())
        elif isinstance(a, GraphTensor):
            self._tensor(value_of(a))
        else:
            try:
                hash(a)
            except TypeError:
                raise ArgumentTypeError(
                    f"{getattr(key[0], '__name__', 'call')}: expected tensors, arrays, numbers or "
                    f"lists of them, got {shown(a)}"
                ) from None
            key.append(kind)
            key.append(a)

    def _tensor(self, t: Tensor, param: Parameter | None = None) -> None:
        self.key.append(t._sig)
        self.tensors.append(t)
        self.fixed.append(param is not None)
        self.params.append(param)


_PLAIN = frozenset((type(None), bool, int, float, str, type(Ellipsis)))
_HASHED = _PLAIN - {float}


def _placed(a: Any, inputs: Iterator[Any]) -> Any:
    """An argument with its tensors replaced by the next of `inputs`, in `_Arguments`' order."""
    kind = a.__class__
    if kind in dynamic.types or isinstance(a, (GraphTensor, np.ndarray)):
        return next(inputs)
    if isinstance(a, tuple) and hasattr(a, "_fields"):
        return type(a)._make(_placed(x, inputs) for x in a)  # type: ignore[attr-defined]
    if kind is list or kind is tuple:
        return kind(_placed(x, inputs) for x in a)
    if kind is dict:
        return {name: _placed(x, inputs) for name, x in a.items()}
    if kind is slice:
        return slice(*(_placed(x, inputs) for x in (a.start, a.stop, a.step)))
    return a


def weak_number(value: Any, like: Signature) -> Array | None:
    """A Python number beside a tensor as a 0-d array of the dtype that it takes; None for other
    values, and where it does not fit, which the traced function then says."""
    if value.__class__ is not float and value.__class__ is not int:
        return None
    chosen = weak_scalar_dtype(value, like.dtype)
    if chosen.is_integer:
        low, high = integer_range(chosen)
        if not low <= value <= high:
            return None
    try:
        return np.array(value, chosen.numpy)
    except OverflowError:
        return None


# --- calls ----------------------------------------------------------------------------------------


def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a public function on eager tensors, and records it where a gradient is wanted."""
    if function in VIEWS and args and args[0].__class__ is Tensor:
        return _viewed(function, args, kwargs)
    return _called(function, args, kwargs)


def _viewed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a function that gives a view of its first argument."""
    t, *rest = args
    view = VIEWS[function]
    if t._node is None or not _recording():
        found = view_of(view, t, rest, kwargs)
        if found is not None:
            return found
    result = _called(function, args, kwargs)
    return note_copy(result, t, lambda a: view(a, *rest, **kwargs))  # type: ignore[arg-type, return-value]


def _called(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) == 1 and not kwargs and args[0].__class__ is Tensor:
        (t,) = args
        found = _calls.get((function, t._sig))
        if found is not None and found.simple:
            bound = found.bound
            if t._node is None or not _recording():
                return wrapped(bound.call(t._array), bound.sig)  # type: ignore[union-attr]
            return recorded(bound, 1, args, (t._array,), 3)  # type: ignore[arg-type]
    if function in _RUN_TIME_NUMBERS and len(args) == 2:
        args = _with_numbers(args)
    elif function is _where and len(args) == 3:
        args = (args[0], *_with_numbers(args[1:]))
    elif function in _BOUNDED and args[0].__class__ is Tensor and args[0]._sig.is_float:
        args = (args[0], *(_number(a, args[0]) for a in args[1:]))
        kwargs = {name: _number(a, args[0]) for name, a in kwargs.items()}
    # What most calls are: tensors, parameters, plain values. The same key as `_Arguments`.
    key: list[Any] = [function]
    tensors: list[Any] = []
    for a in (*args, *chain.from_iterable(kwargs.items())) if kwargs else args:
        kind = a.__class__
        if kind is Tensor:
            key.append(a._sig)
            tensors.append(a)
        elif kind in _HASHED or (kind is float and a and a == a):
            key.append(kind)
            key.append(a)
        elif kind is Parameter:
            leaf = leaf_of(a)
            key.append(leaf._sig)
            key.append(a.node.attrs["trainable"])
            tensors.append(leaf)
        else:
            return _general(function, args, kwargs)
    found = _calls.get(tuple(key))
    return _general(function, args, kwargs) if found is None else run(found, tensors, 4)


def _general(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call with arguments of any kind, or one that was not met before."""
    try:
        if function in _BY_VALUE and len(args) == 1 and not kwargs:
            return _by_value(function, args[0])
        arguments = _Arguments(function, args, kwargs)
        key = tuple(arguments.key)
        found = _calls.get(key)
        if found is None and not arguments.tensors:
            if function in _SHAPED and args:
                # The shape comes with an empty array, so that one kernel serves all.
                shape = as_shape(args[0])
                sizes = Tensor(np.empty((*shape, 0), np.float32))  # type: ignore[arg-type]
                return call(_drawn, (sizes, function, *args[1:]), kwargs)
            if not _draws(function):
                return _created(function, args, kwargs)
        if found is None:
            found = _compiled(function, args, kwargs, arguments, key)
            if found is None:
                return statically(function)(*args, **kwargs)
    except StaticgradError as error:
        locate(error)
        raise
    return run(found, arguments.tensors)


def _with_numbers(args: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = args
    if a.__class__ is Tensor:
        number = weak_number(b, a._sig)
        return args if number is None else (a, Tensor(number))
    if b.__class__ is Tensor:
        number = weak_number(a, b._sig)
        return args if number is None else (Tensor(number), b)
    return args


def _number(value: Any, like: Tensor) -> Any:
    number = weak_number(value, like._sig)
    return value if number is None else Tensor(number)


_SHAPED = {random.uniform, random.normal, random.bits}


def _drawn(sizes: GraphTensor, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Traced: random numbers of the shape that `sizes` has before its last axis."""
    return function(sizes.shape[:-1], *args, **kwargs)


# Functions whose results' shapes depend on values, which the static graph can't have.
_BY_VALUE: dict[Any, Callable[[Array], Any]] = {
    searching.nonzero: np.nonzero,
    searching.argwhere: np.argwhere,
    searching.unique_all: np.unique_all,
    searching.unique_counts: np.unique_counts,
    searching.unique_inverse: np.unique_inverse,
    searching.unique_values: np.unique,  # sorted
}


def _by_value(function: Any, x: Any) -> Any:
    """A function of the values themselves; no gradient passes."""
    found = _BY_VALUE[function](eager_of(x, function.__name__)._array)
    if isinstance(found, np.ndarray):
        return Tensor(found)
    made = [Tensor(np.asarray(a)) for a in found]
    return type(found)(*made) if hasattr(found, "_fields") else tuple(made)


def _draws(function: Any) -> bool:
    return getattr(function, "__module__", "") == random.__name__


def _created(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of a function without tensors (zeros, arange): its constants as eager tensors."""
    result = statically(function)(*args, **kwargs)
    if isinstance(result, GraphTensor) and not isinstance(result, Parameter):
        return _own(result)
    if isinstance(result, (tuple, list)) and any(isinstance(r, GraphTensor) for r in result):
        return type(result)(_own(r) for r in result)
    return result


def _own(t: GraphTensor) -> Tensor:
    """The value of a constant in memory of its own."""
    return Tensor(np.array(value_of(t)._array, order="C"))


def run(found: Call, tensors: Sequence[Tensor], depth: int = 3) -> Any:
    """Runs a call on its tensors; see `tape.recorded` for `depth`."""
    bound = found.bound
    if found.simple:
        assert bound is not None
        mask = 0
        if _recording():
            bit = 1
            for t in tensors:
                if t._node is not None:
                    mask |= bit
                bit += bit
        arrays = [t._array for t in tensors]
        if mask:
            return recorded(bound, mask, tensors, arrays, depth)
        return wrapped(bound.call(*arrays), bound.sig)
    outputs: Sequence[Tensor] = ()
    if bound is not None:
        mask = 0
        if _recording():
            for i, t in enumerate(tensors):
                if t._node is not None:
                    mask |= 1 << i
        plan = (bound.plans.get(mask) or bound.plan(mask)) if mask else None
        arrays = [t._array for t in tensors]
        if plan is not None and not plan.dead:
            results, node = record(plan, bound, tensors, arrays)
            outputs = results_of(node, results, bound.sigs)
        else:
            made = bound.call(*arrays)
            if made.__class__ is not tuple:
                made = (made,)
            outputs = [wrapped(a, s) for a, s in zip(made, bound.sigs)]
    trace = found.trace
    for i, (kind, j) in trace.updates:
        value = tensors[j] if kind == "input" else outputs[j]
        tensors[i].change(lambda i=i, value=value: np.copyto(tensors[i]._array, value._array))  # type: ignore[misc]
    return _built(trace.results, tensors, outputs)


def _compiled(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: _Arguments, key: Any
) -> Call | None:
    """The call for a key that was not met before; None for a function that gives no tensor."""
    tensors, params = arguments.tensors, arguments.params
    sigs = tuple(t._sig for t in tensors)
    tell_mixed(sigs, params)
    shapes = [s.shape for s in sigs]
    found = None
    symbolic = symbolic_shapes(shapes, arguments.fixed)
    if symbolic != shapes:
        found = _at_sizes(function, args, kwargs, sigs, params, key, symbolic)
    if found is None:
        found = _at_sizes(function, args, kwargs, sigs, params, key, shapes, exact=True)
    if found is None:
        return None
    if len(_calls) >= _CALLS:
        _calls.clear()
    _calls[key] = found
    return found


def run_exactly(function: Any, args: tuple[Any, ...]) -> Any:
    """A call by a program for these sizes alone."""
    arguments = _Arguments(function, args, {})
    key = tuple(arguments.key)
    found = _calls.get(key)
    if found is None:
        sigs = tuple(t._sig for t in arguments.tensors)
        shapes = [s.shape for s in sigs]
        found = _at_sizes(function, args, {}, sigs, arguments.params, key, shapes, exact=True)
        assert found is not None
        if len(_calls) >= _CALLS:
            _calls.clear()
        _calls[key] = found
    return run(found, arguments.tensors)


def _at_sizes(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sigs: tuple[Signature, ...],
    params: Sequence[Parameter | None], key: Any, shapes: Sequence[Shape], exact: bool = False,
) -> Call | None:  # fmt: skip
    """The call by a program for these shapes. With symbolic ones None where that is not possible:
    the exact ones then serve, or raise what is wrong with them."""
    classes = iter(zip((s.dtype for s in sigs), shapes))
    layout = tuple(next(classes) if k.__class__ is Signature else k for k in key)
    trace = _traces.get(layout)
    try:
        if trace is None:
            trace = traced(function, args, kwargs, sigs, params, shapes)
            if trace is None:
                return None
            if len(_traces) >= _TRACES:
                _traces.clear()
            _traces[layout] = trace
        return Call(trace, sigs)
    except StaticgradError:
        if exact:
            raise
        return None


@statically
def traced(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sigs: Sequence[Signature],
    params: Sequence[Parameter | None], shapes: Sequence[Shape],
) -> Trace | None:  # fmt: skip
    """Calls a function on inputs of these shapes. None where it returns no tensor, unless these are
    the exact shapes: then what it returns (`NotImplemented` for `x == None`) is the result."""
    inputs: list[GraphTensor] = []
    given: list[GraphTensor] = []
    states: dict[Value, int] = {}
    for i, (sig, shape, param) in enumerate(zip(sigs, shapes, params)):
        inputs.append(declare(f"x{i}", shape, sig.dtype))
        if param is not None and not param.trainable:
            # A buffer, which a layer may update: state while it is traced, then an input.
            state = state_of(StateCell(np.zeros(sig.shape, sig.numpy_dtype)), trainable=False)
            states[state] = i
            given.append(state)
        else:
            given.append(inputs[-1])
    places = iter(given)
    placed_args = tuple(_placed(a, places) for a in args)
    placed_kwargs = {name: _placed(a, places) for name, a in kwargs.items()}
    returned = function(*placed_args, **placed_kwargs)
    values: dict[Value, None] = {}

    def note(v: Value) -> tuple[str, Any]:
        values[v] = None
        return ("value", v)

    _mapped(returned, note)
    if not values and (not sigs or any(s.shape != shape for s, shape in zip(sigs, shapes))):
        return None
    updates = [(states[s], new) for s, new in updates_of(list(values)) if s in states]
    mapping: dict[Value, Value] = {s: inputs[i] for s, i in states.items()}
    wanted = [*values, *(new for _, new in updates)]
    made = dict(zip(wanted, rebuilt(wanted, mapping)))
    name = getattr(function, "__name__", "call").strip("_")
    tree = _mapped(returned, lambda v: ("value", made[v]))
    return Trace(name, inputs, _built(tree, (), ()), [(i, made[new]) for i, new in updates])


def bound_of(function: Any, *sigs: Signature) -> Bound | None:
    """The bound program of a call with tensors alone and one result, if such a call was made."""
    found = _calls.get((function, *sigs))
    return found.bound if found is not None and found.simple else None


__all__ = ["Call", "Trace", "bound_of", "call", "run", "traced", "weak_number"]
