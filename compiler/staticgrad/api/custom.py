"""`custom_op`: an operation of the user's own, computed by a C function that ctypes knows.

The object code calls the function by a name, to which its address is bound when the code is loaded.
So code in the cache holds no address, and stays valid in the next process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from staticgrad.ir.dim import DimLike, as_shape, product
from staticgrad.ir.dtype import DType
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from staticgrad.ir.types import TensorType
from staticgrad.kernels.builder import KernelBuilder
from staticgrad.kernels.ir import Loop, Stmt, Template
from staticgrad.kernels.program import Program
from staticgrad.ops import registry
from staticgrad.ops.convert import as_tensor, promoted
from staticgrad.ops.elementwise import diagonal_jvp
from staticgrad.ops.lowering import Custom
from staticgrad.ops.registry import (
    Attrs,
    Batch,
    BatchContext,
    Jvp,
    NotBatchable,
    NotDifferentiable,
    Op,
    Sample,
    Tolerance,
    Types,
    Vjp,
)
from staticgrad.ops.shape import broadcast_arrays, broadcast_to
from staticgrad.ops.tensor import Tensor

SIGNATURES = ("scalar", "elementwise", "general")

_CTYPES: dict[str, Any] = {
    "bool": ctypes.c_bool, "float32": ctypes.c_float, "float64": ctypes.c_double,
    **{name: getattr(ctypes, f"c_{name}") for name in (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip
# Narrower integers are extended by caller or callee, as each platform has it.
_SCALARS = ("float32", "float64", "int32", "int64", "uint32", "uint64")


@dataclass(frozen=True)
class CFunction:
    """A C function that programs call by the name `symbol`."""

    symbol: str
    pointer: Any
    address: int
    calls_python: bool


_by_symbol: dict[str, CFunction] = {}
_custom: set[str] = set()


def custom_op(
    name: str, *, c_functions: Mapping[Any, Any], reference: Callable[..., Any],
    vjp: Vjp | NotDifferentiable, samples: Iterable[Sequence[Any]], signature: str = "elementwise",
    infer: Callable[..., Any] | None = None, summary: str = "", source: str = "the user's own",
    tolerance: Tolerance | None = None, jvp: Jvp | NotDifferentiable | None = None,
    batch: Batch | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Registers an operation that compiled programs compute by a C function; returns the Python
    function that applies it to tensors.

    name         an ASCII identifier; a second registration replaces the first, but built-in ops
                 are refused
    c_functions  dtype of the first operand -> ctypes function: of a library (`ctypes.CDLL`), or a
                 Python callback (`ctypes.CFUNCTYPE`). A prototype that it declares is checked
    reference    (*arrays) -> array, or a tuple of them: the same in NumPy, by another way
    vjp          (context, cotangent) -> one cotangent (or None) for each operand, built of tensor
                 operations on context.operands and context.results; or `sg.NotDifferentiable(why)`
    jvp          the forward rule: (context, tangents) -> the result's tangent (a list of them for
                 several results). There is one tangent for each operand, None where that is zero.
                 The default is derived from vjp, except for "general", where forward mode then
                 raises `UnsupportedError`
    batch        how it acts on many operands at once (vmap): (context) -> the result, or a list of
                 them, with the batch axis in front; context.operands have it where context.batched
                 is True, context.size is its size. The default is the function itself on all
                 elements, except for "general", where vmap then raises `UnsupportedError`
    samples      tuples of arrays that the operation accepts; the first gives the number of operands
    infer        for "general" only: (*operand types) -> (dtype, shape), or a list of those for
                 several results; types have .dtype and .shape, whose dims may be symbolic
    signature    what the C function is, with T the dtype:
                 "scalar"       T f(T x0, ..)                              called for each element
                 "elementwise"  void f(const T *x0, .., T *y, int64_t n)   n elements at once
                 "general"      void f(const T0 *x0, .., U0 *y0, .., const int64_t *dims)
                                dims: those of all operands, then of all results, one after another
                 Operands of the first two are promoted and broadcast; the result is like them.
                 Arrays are dense, in C order, and do not overlap.

    A function must compute the same from the same operands, whatever else runs, and must not keep
    the pointers. A Python callback costs a call of Python, holds the GIL, and can't raise: ctypes
    prints its exceptions and goes on.

    Raises `ArgumentError` and `ArgumentTypeError` for what does not fit together.
    """
    taken = [tuple(np.asarray(a) for a in operands) for operands in samples]
    _check_name(name)
    if signature not in SIGNATURES:
        raise ArgumentError(f"custom_op: signature must be one of {SIGNATURES}, got {signature!r}")
    if (infer is None) == (signature == "general"):
        raise ArgumentError(
            f'custom_op {name}: infer= belongs to signature="general", and only to it; the others '
            "give a result like their operands"
        )
    if not taken or not taken[0] or len({len(operands) for operands in taken}) != 1:
        raise ArgumentError(
            f"custom_op {name}: samples must be tuples of arrays, one at least, all of one length"
        )
    if not callable(reference) or not (callable(vjp) or isinstance(vjp, NotDifferentiable)):
        raise ArgumentTypeError(
            f"custom_op {name}: reference and vjp must be functions; an op without a gradient "
            "takes vjp=sg.NotDifferentiable(reason)"
        )
    if not (jvp is None or callable(jvp) or isinstance(jvp, NotDifferentiable)):
        raise ArgumentTypeError(f"custom_op {name}: jvp must be a function, got {jvp!r}")
    if not (batch is None or callable(batch)):
        raise ArgumentTypeError(f"custom_op {name}: batch must be a function, got {batch!r}")
    arity = len(taken[0])
    functions = _checked_functions(name, c_functions, signature, arity)
    rule = _Infer(name, signature, arity, tuple(functions), infer)
    if name in _custom:
        registry.unregister(name)
    _custom.add(name)
    registry.register(
        Op(
            name=name,
            summary=summary or f"the C function {name}, {signature}",
            infer=rule,
            reference=lambda *arrays: reference(*arrays),
            vjp=vjp,
            jvp=_forward_rule(name, signature, vjp) if jvp is None else jvp,
            batch=_batch_rule(signature) if batch is None else batch,
            lower=Custom(lambda k: _emit(functions, signature, k)),
            samples=lambda: [Sample(operands) for operands in taken],
            source=source,
            tolerance=Tolerance() if tolerance is None else tolerance,
        )
    )
    _by_symbol.update((f.symbol, f) for f in functions.values())

    def apply(*operands: Any) -> Any:
        if len(operands) != arity:
            raise ArgumentTypeError(f"{name}: expected {arity} operands, got {len(operands)}")
        if signature == "general":
            return registry.apply(name, *(as_tensor(x, name) for x in operands))
        return registry.apply(name, *_alike(operands))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = summary or None
    return apply


def _alike(operands: Sequence[Any]) -> Sequence[Tensor]:
    """Of one dtype and shape, as the C function takes them."""
    tensors = promoted(*operands)
    if all(t.shape == tensors[0].shape for t in tensors):
        return tensors
    return tuple(broadcast_arrays(*tensors))


# --- what is given --------------------------------------------------------------------------------


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise ArgumentError(f"custom_op: the name must be an ASCII identifier, got {name!r}")
    if name in registry.all_ops() and name not in _custom:
        raise ArgumentError(f"custom_op: {name!r} is a built-in operation")


def _checked_functions(
    name: str, given: Any, signature: str, arity: int
) -> dict[DType, CFunction]:  # fmt: skip
    if not isinstance(given, Mapping) or not given:
        raise ArgumentTypeError(
            f"custom_op {name}: c_functions must be a dict: dtype -> ctypes function"
        )
    found = {}
    for key, function in given.items():
        d = as_dtype(key)
        if not isinstance(function, ctypes._CFuncPtr):  # type: ignore[attr-defined]
            raise ArgumentTypeError(
                f"custom_op {name}: c_functions[{d!s}] must be a ctypes function, as of "
                f"ctypes.CDLL(None) or ctypes.CFUNCTYPE, got {type(function).__name__}"
            )
        address = ctypes.cast(function, ctypes.c_void_p).value
        if not address:
            raise ArgumentError(f"custom_op {name}: c_functions[{d!s}] is a null pointer")
        if signature == "scalar" and d not in _SCALARS:
            raise ArgumentError(
                f"custom_op {name}: a scalar function takes one of {', '.join(_SCALARS)}, not "
                f'{d!s}; use signature="elementwise"'
            )
        _check_prototype(f"custom_op {name}: c_functions[{d!s}]", function, d, signature, arity)
        # A thunk among what it keeps alive: ctypes made it from a Python function.
        kept = (function._objects or {}).values()
        calls_python = any(type(o).__name__ == "CThunkObject" for o in kept)
        found[d] = CFunction(f"sgc_{name}_{d!s}", function, address, calls_python)
    return found


def _check_prototype(
    what: str, function: Any, d: DType, signature: str, arity: int
) -> None:  # fmt: skip
    """The declared argument types, where there are any, must be those of the signature."""
    if function.argtypes is None:
        return
    scalar = _CTYPES[d]
    arrays = (ctypes.POINTER(scalar), ctypes.c_void_p)
    lengths = (ctypes.c_int64, ctypes.c_ssize_t)
    wanted: list[tuple[Any, ...]]
    if signature == "scalar":
        wanted, result = [(scalar,)] * arity, scalar
    elif signature == "elementwise":
        wanted, result = [*[arrays] * (arity + 1), lengths], None
    else:
        return  # the results' number and dtypes are known only for given operands
    fits = len(function.argtypes) == len(wanted) and all(
        a in allowed for a, allowed in zip(function.argtypes, wanted)
    )
    if not fits or function.restype is not result:
        declared = ", ".join(a.__name__ for a in function.argtypes)
        expected = ", ".join(allowed[0].__name__ for allowed in wanted)
        raise ArgumentTypeError(
            f"{what}: expected the prototype ({expected}) -> {_type_name(result)}, it declares "
            f"({declared}) -> {_type_name(function.restype)}"
        )


def _type_name(ctype: Any) -> str:
    return "void" if ctype is None else ctype.__name__


# --- the record's parts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Infer:
    """The record's `infer`."""

    name: str
    signature: str
    arity: int
    dtypes: tuple[DType, ...]
    rule: Callable[..., Any] | None

    def __call__(self, types: Types, attrs: Attrs) -> Types:
        first = types[0]
        if first.dtype not in self.dtypes:
            known = ", ".join(str(d) for d in self.dtypes)
            raise DTypeError(f"has C functions for {known}, got {first}")
        if self.signature == "general":
            return self._general(types)
        for t in types:
            if t.dtype != first.dtype:
                raise DTypeError(f"operands differ in dtype: {first} and {t}")
            if t.shape != first.shape:
                raise ShapeError(f"operands differ in shape: {first} and {t}")
        return (first,)

    def _general(self, types: Types) -> Types:
        assert self.rule is not None
        given = self.rule(*types)
        results = given if isinstance(given, list) else [given]
        found = []
        for r in results:
            if not isinstance(r, tuple) or len(r) != 2:
                raise ArgumentTypeError(
                    f"infer must give (dtype, shape) or a list of those, got {r!r}"
                )
            found.append(TensorType(as_dtype(r[0]), as_shape(r[1])))
        if not found:
            raise ArgumentTypeError("infer must give one result at least")
        return tuple(found)


def _forward_rule(
    name: str, signature: str, vjp: Vjp | NotDifferentiable
) -> Jvp | NotDifferentiable:  # fmt: skip
    if signature != "general" or isinstance(vjp, NotDifferentiable):
        return diagonal_jvp(vjp)

    def refuse(context: Any, tangents: Any) -> NoReturn:
        # Not `NotDifferentiable`, which would give zeros for a derivative that there is.
        raise UnsupportedError(
            f"{name}: a general operation has no forward derivative of its own; give its rule, "
            "custom_op(..., jvp=lambda context, tangents: ...), or use reverse mode"
        )

    return refuse


def _batch_rule(signature: str) -> Batch:
    if signature == "general":
        return NotBatchable(
            "a C function of any shapes; give its rule, custom_op(..., batch=lambda context: ...)"
        )
    return _batch_alike


def _batch_alike(c: BatchContext) -> Any:
    """Of one shape, as the C function takes them: what is not batched is repeated."""
    shape = c.operands[c.batched.index(True)].shape
    return registry.apply(c.node.op, *(broadcast_to(v, shape) for v in c.operands))


def _emit(functions: Mapping[DType, CFunction], signature: str, k: KernelBuilder) -> None:
    arrays = [*k.operands, *k.results]
    symbol = functions[k.operands[0].dtype].symbol
    count = product(k.operands[0].shape)
    if signature == "scalar":
        # One thread: a C function need not be ready for several.
        with k.loop(count) as i:
            k.template("c_scalar", arrays, (i,), symbol=symbol, dtype=k.operands[0].dtype)
    elif signature == "elementwise":
        k.template("c_elementwise", arrays, (count,), symbol=symbol)
    else:
        dims: list[DimLike] = [d for a in arrays for d in a.shape]
        k.template("c_general", arrays, dims, symbol=symbol)


# --- what a program needs -------------------------------------------------------------------------


def c_functions_of(program: Program) -> list[CFunction]:
    """The C functions that a program's kernels call."""
    symbols = dict.fromkeys(s for step in program.steps for s in _symbols(step.kernel.body))
    return [_by_symbol[s] for s in symbols]


def _symbols(body: tuple[Stmt, ...]) -> Iterable[str]:
    for s in body:
        if isinstance(s, Template) and "symbol" in s.attrs:
            yield s.attrs["symbol"]
        elif isinstance(s, Loop):
            yield from _symbols(s.body)


__all__ = ["NotDifferentiable", "Tolerance", "custom_op"]
