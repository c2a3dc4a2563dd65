"""Element-wise kernels: one sweep over a shape, dims merged wherever every access allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from staticgrad.ir.dim import Dim, DimLike, Shape, product
from staticgrad.ir.loc import Locs
from staticgrad.kernels.ir import Expr, Loop, Stmt
from staticgrad.kernels.rewrite import all_indices, merges, replaced

from .draft import Draft

if TYPE_CHECKING:
    from .lower import Lowerer

At = tuple[DimLike, ...]
Output = tuple[int, Callable[[At], DimLike], Callable[[At], Expr]]


def lower_map(
    lowerer: Lowerer, draft: Draft, name: str, shape: Shape, outputs: Sequence[Output],
    nodes: tuple[str, ...], locs: Locs,
) -> None:  # fmt: skip
    """Adds the step that stores each output (buffer, index of an element, its value)."""
    at, variables, extents = loop_space("d", shape)
    body: Sequence[Stmt] = [draft.store(buffer, index(at), value(at)) for buffer, index, value in
                            outputs]  # fmt: skip
    body, variables, extents = collapse(body, variables, extents)
    extent: DimLike = 1
    if variables:
        extent = extents[0]
        body = nest(body, variables, extents)
    kernel, buffers, sizes = draft.finish(name, body)
    flops = product(shape) * sum(1 for n in nodes if n != "copy")
    lowerer.add_step(kernel, buffers, sizes, extent, nodes, locs, flops=flops)


def loop_space(prefix: str, shape: Shape) -> tuple[At, list[str], list[DimLike]]:
    """Index variables for a shape; a dim of 1 needs none."""
    at: list[DimLike] = []
    variables: list[str] = []
    extents: list[DimLike] = []
    for i, d in enumerate(shape):
        if isinstance(d, int) and d == 1:
            at.append(0)
            continue
        variables.append(f"{prefix}{i}")
        at.append(Dim.symbol(variables[-1]))
        extents.append(d)
    return tuple(at), variables, extents


def collapse(
    body: Sequence[Stmt], variables: list[str], extents: list[DimLike]
) -> tuple[Sequence[Stmt], list[str], list[DimLike]]:
    """Merges neighbouring loops that every access of the body steps through as one."""
    variables, extents = list(variables), list(extents)
    i = len(variables) - 2
    while i >= 0:
        outer, inner = variables[i], variables[i + 1]
        if merges(all_indices(body), outer, inner, extents[i + 1]):
            body = replaced(body, {outer: 0})
            extents[i : i + 2] = [extents[i] * extents[i + 1]]
            variables[i : i + 2] = [inner]
        i -= 1
    return body, variables, extents


def nest(body: Sequence[Stmt], variables: list[str], extents: list[DimLike]) -> tuple[Stmt, ...]:
    """The loops around a body: the outermost is shared among threads, the innermost in lanes."""
    if len(variables) == 1:
        return (Loop(variables[0], extents[0], tuple(body), "parallel_vector"),)
    inner: tuple[Stmt, ...] = (Loop(variables[-1], extents[-1], tuple(body), "vector"),)
    for i in range(len(variables) - 2, 0, -1):
        inner = (Loop(variables[i], extents[i], inner, "serial"),)
    return (Loop(variables[0], extents[0], inner, "parallel"),)
