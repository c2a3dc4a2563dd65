"""`jacobian`, `hessian`, `hvp`: derivatives of many results, by batches of directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.autodiff.batching import batched
from staticgrad.autodiff.forward import push
from staticgrad.autodiff.reverse import backward
from staticgrad.ir.dim import DimLike, product
from staticgrad.ir.errors import ArgumentError
from staticgrad.ops.convert import constant_array
from staticgrad.ops.creation import eye
from staticgrad.ops.leaves import input as graph_input
from staticgrad.ops.public import public
from staticgrad.ops.shape import broadcast_to, moveaxis, reshape
from staticgrad.ops.tensor import Tensor

from . import pytree
from .arguments import (
    checked_argnums,
    checked_function,
    filled,
    floating_output,
    output_leaves,
    parted,
    remembered,
    split,
)
from .call import namer
from .trace import Traced
from .transforms import builds_graph, grad, jvp_in_graph, named

Function = Callable[..., Any]
MODES = ("forward", "reverse")


@public
def jacobian(
    fn: Function, argnums: int | tuple[int, ...] = 0, mode: str | None = None,
    has_aux: bool = False,
) -> Any:  # fmt: skip
    """The function that computes the Jacobian of `fn`: d result / d argument.

    For a result of shape R and an argument of shape A it has the shape R + A. Trees are nested: the
    result's tree, and in place of each of its leaves a tree like the argument (a tuple of them
    where `argnums` is a tuple).

    mode  "forward" pushes one direction for each element of the arguments, "reverse" pulls one for
          each element of the result; None takes the one that needs fewer (reverse where sizes are
          symbolic). All directions are computed at once

    Other arguments and errors as for `grad`; the result may have any shape.
    """
    if mode is not None and mode not in MODES:
        raise ArgumentError(f'jacobian: mode must be "forward", "reverse" or None, got {mode!r}')
    return _jacobian(fn, argnums, mode, has_aux, "jacobian")


@public
def jacfwd(fn: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Any:
    """`jacobian` by forward mode."""
    return _jacobian(fn, argnums, "forward", has_aux, "jacfwd")


@public
def jacrev(fn: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Any:
    """`jacobian` by reverse mode."""
    return _jacobian(fn, argnums, "reverse", has_aux, "jacrev")


@public
def hessian(fn: Function, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Any:
    """The function that computes the second derivatives of `fn`, forward mode over reverse mode.

    For a result of shape R and an argument of shape A it has the shape R + A + A; trees are nested
    as by `jacobian` of `jacobian`.
    """
    first = _jacobian(fn, argnums, "reverse", has_aux, "hessian")
    return _jacobian(first, argnums, "forward", has_aux, "hessian")


@public
def hvp(fn: Function, primals: Any, tangents: Any) -> Any:
    """The product of the Hessian of the scalar function `fn` with a direction, by forward mode over
    reverse mode: H tangents, without H.

    `primals` is a tuple of arguments and `tangents` one of directions like them; for a function of
    one argument both may be given without a tuple. Returns a tuple, or the one product.
    """
    checked_function(fn, "hvp")
    if not isinstance(primals, tuple):
        primals, tangents = (primals,), (tangents,)
    argnums = tuple(range(len(primals)))

    def build(args: tuple[Any, ...], directions: tuple[Any, ...]) -> Any:
        products = jvp_in_graph(grad(fn, argnums), args, directions, False, "hvp")[1]
        return products[0] if len(products) == 1 else products

    if builds_graph((primals, tangents)):
        return build(primals, tangents)
    run = remembered(fn, ("hvp", argnums), lambda: Traced(build, build, label="hvp"))
    return run(primals, tangents)


def _jacobian(fn: Function, argnums: Any, mode: str | None, has_aux: bool, label: str) -> Any:
    checked_function(fn, label)
    chosen = checked_argnums(argnums, label)
    name_of = namer(fn)

    def build(*args: Any, **kwargs: Any) -> Any:
        s = split(args, chosen, name_of, label)
        result, aux = parted(fn(*s.args, **kwargs), has_aux, label)
        outputs, form, names = output_leaves(result, label)
        for t, name in zip(outputs, names):
            floating_output(t, name, label)
        by = mode or _cheaper(outputs, s.leaves)
        rows = _forward(outputs, s.leaves) if by == "forward" else _reverse(outputs, s.leaves)
        found = pytree.unflatten(form, [s.regrouped(row) for row in rows])
        return (found, aux) if has_aux else found

    def make() -> Traced:
        return named(Traced(fn, build, label=label))

    return remembered(fn, (label, chosen, mode, has_aux), make)


def _cheaper(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> str:
    sizes: list[list[DimLike]] = [[t.size for t in side] for side in (outputs, inputs)]
    if not all(isinstance(n, int) for side in sizes for n in side):
        return "reverse"
    results, arguments = (sum(n for n in side if isinstance(n, int)) for side in sizes)
    return "forward" if results >= arguments else "reverse"


def _basis(like: Tensor) -> Tensor:
    """All unit directions of a value's shape, along the first axis."""
    n = product(like.shape)
    return reshape(eye(n, dtype=like.dtype), (n, *like.shape))


def _one(like: Tensor) -> Tensor:
    return constant_array(np.ones((), like.dtype.numpy))


def _reverse(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each output a row: its derivative by each input."""
    rows = []
    for out in outputs:
        if out.shape == ():
            rows.append(filled(backward([out], [_one(out)], inputs), inputs))
            continue
        direction = graph_input("cotangent", out.shape, out.dtype)
        found = _all_directions(backward([out], [direction], inputs), direction)
        rows.append([
            _zeros(out, x) if g is None else reshape(g, (*out.shape, *x.shape))
            for g, x in zip(found, inputs)
        ])  # fmt: skip
    return rows


def _forward(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    columns = []
    for x in inputs:
        if x.shape == ():
            columns.append(filled(push(outputs, [x], [_one(x)]), outputs))
            continue
        direction = graph_input("tangent", x.shape, x.dtype)
        found = _all_directions(push(outputs, [x], [direction]), direction)
        columns.append([
            _zeros(out, x) if t is None
            else reshape(moveaxis(t, 0, -1), (*out.shape, *x.shape))
            for t, out in zip(found, outputs)
        ])  # fmt: skip
    return [list(row) for row in zip(*columns)] if columns else [[] for _ in outputs]


def _all_directions(found: Sequence[Tensor | None], direction: Tensor) -> list[Tensor | None]:
    """Derivatives along one direction, computed for all unit directions; None stays."""
    known = [t for t in found if t is not None]
    basis = _basis(direction)
    many = iter(batched(known, {direction: basis}, basis.shape[0]))
    results: list[Tensor | None] = []
    for t in found:
        if t is None:
            results.append(None)
            continue
        value, is_batched = next(many)
        # What does not depend on the direction, in which it is linear, is zero.
        results.append(value if is_batched else None)
    return results


def _zeros(out: Tensor, x: Tensor) -> Tensor:
    zero = constant_array(np.zeros((), out.dtype.numpy))
    return broadcast_to(zero, (*out.shape, *x.shape))


__all__ = ["hessian", "hvp", "jacfwd", "jacobian", "jacrev"]
