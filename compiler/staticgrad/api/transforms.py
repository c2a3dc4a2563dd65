"""`grad`, `value_and_grad`, `vjp`, `jvp`: derivatives of functions of arrays.

All of them build graph: called with tensors of a graph (inside `jit`, inside one another) they add
to that graph; called with arrays they are traced and compiled as `jit` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.autodiff.forward import push
from staticgrad.autodiff.reverse import backward
from staticgrad.ir.errors import ArgumentTypeError
from staticgrad.ir.node import Value
from staticgrad.ops.convert import constant_array
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.values import is_known

from . import pytree
from .arguments import (
    Split,
    checked_argnums,
    checked_function,
    filled,
    floating_output,
    moved_like,
    output_leaves,
    parted,
    remembered,
    scalar_output,
    split,
)
from .call import namer
from .trace import Traced, tracing

Function = Callable[..., Any]


# grad


@public
def grad(fn: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Any:
    """The function that computes the gradient of `fn`: d fn / d argument.

    fn       returns a floating scalar, or (scalar, aux) with `has_aux`
    argnums  which positional arguments to differentiate by: an int, or a tuple of ints, which gives
             a tuple of gradients. An argument may be a tree (`sg.tree`); its gradient is alike.
             The others may be anything that `jit` takes
    has_aux  `fn` returns auxiliary output as well (predictions, running statistics), a tree of any
             dtypes; the result is (gradient, aux)

    A Python float is differentiated by as float32. The gradient by what `fn` does not depend on is
    zero. Called with arrays, it is traced and compiled, like a function under `jit`, and returns
    NumPy arrays; with tensors of a graph it builds graph.

    Raises `DifferentiationError` for integer arguments in `argnums` and for results that are no
    floating scalar, `ArgumentError` where there is no such argument.
    """
    checked_function(fn, "grad")
    argnums = checked_argnums(argnums, "grad")
    both = _value_and_grad(fn, argnums, has_aux, "grad")

    def build(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return remembered(
        fn, ("grad", argnums, has_aux), lambda: named(Traced(fn, build, label="grad"))
    )


@public
def value_and_grad(fn: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Any:
    """The function that computes `fn` and its gradient: (value, gradient), or with `has_aux`
    ((value, aux), gradient). Everything else as `grad`."""
    checked_function(fn, "value_and_grad")
    argnums = checked_argnums(argnums, "value_and_grad")
    label = "value_and_grad"
    both = _value_and_grad(fn, argnums, has_aux, label)
    return remembered(fn, (label, argnums, has_aux), lambda: named(Traced(fn, both, label=label)))


def named(made: Traced) -> Traced:
    made.__name__ = f"{made.label}({made.__name__})"
    return made


def _value_and_grad(fn: Function, argnums: Any, has_aux: bool, label: str) -> Function:
    name_of = namer(fn)

    def build(*args: Any, **kwargs: Any) -> Any:
        s = split(args, argnums, name_of, label)
        result, aux = parted(fn(*s.args, **kwargs), has_aux, label)
        value = scalar_output(result, label)
        one = constant_array(np.ones((), value.dtype.numpy))
        gradient = s.regrouped(filled(backward([value], [one], s.leaves), s.leaves))
        return ((value, aux) if has_aux else value), gradient

    return build


# vjp, jvp


def builds_graph(values: Any) -> bool:
    """Whether a transform called with these arguments adds to a graph that is being built."""
    if tracing():
        return True
    # What follows from constants alone has a value: it is taken as an array.
    return not all(is_known(v) for v in pytree.leaves(values) if isinstance(v, Value))


def split_all(fn: Function, primals: tuple[Any, ...], label: str) -> Split:
    """Fresh tensors in place of all arguments."""
    return split(primals, tuple(range(len(primals))), namer(fn), label)


@public
def vjp(fn: Function, /, *primals: Any, has_aux: bool = False) -> Any:
    """The value of `fn` and its pullback: `out, pullback = vjp(fn, x, y)`.

    `pullback(ct)` takes a cotangent for `out` (a tree like it) and returns a tuple with one
    cotangent for each of `primals`: ct^T J. With `has_aux`, `fn` returns (out, aux) and the result
    is (out, pullback, aux).

    With arrays, `fn` is traced and compiled, and the pullback is a compiled program as well, which
    computes `fn` again, as far as it needs it, from copies of `primals`.
    Raises `DifferentiationError` for integers, `ArgumentError` for cotangents that do not fit.
    """
    checked_function(fn, "vjp")
    if not primals:
        raise ArgumentTypeError("vjp: give the arguments at which to differentiate: vjp(fn, x)")
    if builds_graph(primals):
        out, pullback, aux = _vjp_in_graph(fn, primals, has_aux)
        return (out, pullback, aux) if has_aux else (out, pullback)

    def forward(*args: Any) -> Any:
        out, _, aux = _vjp_in_graph(fn, args, has_aux)
        return out, aux

    def back(args: tuple[Any, ...], cotangent: Any) -> Any:
        return _vjp_in_graph(fn, args, has_aux)[1](cotangent)

    run = remembered(fn, ("vjp", has_aux), lambda: Traced(fn, forward, label="vjp"))
    run_back = remembered(fn, ("pullback", has_aux), lambda: Traced(back, back, label="pullback"))
    out, aux = run(*primals)
    held = _kept(primals)

    def pull(cotangent: Any) -> Any:
        return run_back(held, cotangent)

    return (out, pull, aux) if has_aux else (out, pull)


def _kept(primals: tuple[Any, ...]) -> Any:
    """The arguments as they are now: the pullback is of them, whatever is written to them since."""
    leaves, form = pytree.flatten(primals)
    return pytree.unflatten(form, [
        np.array(v) if type(v) is np.ndarray else v.clone() if dynamic.is_tensor(v) else v
        for v in leaves
    ])  # fmt: skip


def _vjp_in_graph(fn: Function, primals: tuple[Any, ...], has_aux: bool) -> tuple[Any, Any, Any]:
    s = split_all(fn, primals, "vjp")
    result, aux = parted(fn(*s.args), has_aux, "vjp")
    outputs, form, names = output_leaves(result, "vjp")
    for t, name in zip(outputs, names):
        floating_output(t, name, "vjp")

    def pullback(cotangent: Any) -> Any:
        seeds = moved_like(cotangent, outputs, form, names, "cotangent", "pullback")
        return s.regrouped(filled(backward(outputs, seeds, s.leaves), s.leaves))

    return pytree.unflatten(form, outputs), pullback, aux


@public
def jvp(
    fn: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False
) -> Any:
    """The value of `fn` and its derivative along a direction, by forward mode: (out, J tangents).

    primals, tangents  tuples with one entry for each argument of `fn`, of equal structure and types
    has_aux            `fn` returns (out, aux), and the result is (out, tangent, aux)

    Raises `DifferentiationError` for integers, `ArgumentError` for tangents that do not fit.
    """
    checked_function(fn, "jvp")
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise ArgumentTypeError(
                f"jvp: {name} must be a tuple with one entry for each argument, got {given!r}"
            )
    primals, tangents = tuple(primals), tuple(tangents)

    def build(args: tuple[Any, ...], directions: tuple[Any, ...]) -> Any:
        return jvp_in_graph(fn, args, directions, has_aux, "jvp")

    if builds_graph((primals, tangents)):
        return build(primals, tangents)
    return remembered(fn, ("jvp", has_aux), lambda: Traced(build, build, label="jvp"))(
        primals, tangents
    )


def jvp_in_graph(
    fn: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...], has_aux: bool, label: str
) -> Any:
    s = split_all(fn, primals, label)
    form = pytree.structure(primals)
    directions = moved_like(tangents, s.leaves, form, s.names, "tangent", label)
    result, aux = parted(fn(*s.args), has_aux, label)
    outputs, out_form, _ = output_leaves(result, label)
    moved = filled(push(outputs, s.leaves, directions), outputs)
    out = pytree.unflatten(out_form, outputs), pytree.unflatten(out_form, moved)
    return (*out, aux) if has_aux else out


__all__ = ["grad", "jvp", "value_and_grad", "vjp"]
