"""Builds kernels by hand: what the `lower` of an op with a kernel of its own writes.

def emit(k):
    x, y = k.operands[0], k.results[0]
    with k.parallel(x.shape[0]) as i, k.loop(x.shape[1], total=k.literal(0, x.dtype)) as j:
        total = k.call("add", k.ref("total"), k.load(x, (i, j)))
        k.next("total", total)
        k.store(y, (i, j), total)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from staticgrad.ir.dim import Dim, DimLike, Shape, product
from staticgrad.ir.dtype import DType, int64, uint8
from staticgrad.ir.types import TensorType

from .ir import (
    Accumulator,
    Buffer,
    Call,
    Carry,
    Check,
    Expr,
    Index,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Next,
    Reduce,
    Ref,
    Stmt,
    Store,
    Template,
)


@dataclass(frozen=True)
class Array:
    """A dense buffer with a shape."""

    name: str
    dtype: DType
    shape: Shape
    mode: str

    def linear(self, indices: Sequence[DimLike]) -> DimLike:
        """Row-major: `(i, j)` of shape [N, M] -> `i*M+j`."""
        if len(indices) != len(self.shape):
            raise ValueError(f"{self.name}: {len(indices)} indices for shape {self.shape}")
        total: DimLike = 0
        for i, size in zip(indices, self.shape):
            total = total * size + i
        return total

    def reshaped(self, shape: Shape) -> Array:
        """The same memory with another shape of as many elements."""
        return Array(self.name, self.dtype, shape, self.mode)


class KernelBuilder:
    """Collects statements in nested loops; `finish` gives the `Kernel`."""

    def __init__(
        self, operands: Sequence[TensorType], results: Sequence[TensorType],
        attrs: Mapping[str, Any], code: int = 0,
        workspace_bytes: Callable[[DType, Sequence[Shape]], DimLike] | None = None,
    ) -> None:  # fmt: skip
        self.attrs = attrs
        self._workspace_bytes = workspace_bytes
        self.code = code  # what a failed `check` of this node records
        self.operands = [Array(f"x{i}", t.dtype, t.shape, "in") for i, t in enumerate(operands)]
        self.results = [Array(f"y{i}", t.dtype, t.shape, "out") for i, t in enumerate(results)]
        self._scratch: list[Array] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._carried: dict[str, DType] = {}
        self._names = itertools.count()

    # values

    def literal(self, value: float | int | bool, dtype: DType) -> Literal:
        return Literal(value, dtype)

    def index(self, index: DimLike) -> Index:
        return Index(index)

    def call(self, op: str, *args: Expr, dtype: DType | None = None) -> Call:
        return Call(op, args, args[0].dtype if dtype is None else dtype)

    def cast(self, x: Expr, dtype: DType) -> Expr:
        return x if x.dtype == dtype else Call("cast", (x,), dtype)

    def load(
        self, array: Array, indices: Sequence[DimLike | Expr], guard: Expr | None = None,
        fill: float | int | bool = 0,
    ) -> Load:  # fmt: skip
        """The element at `indices`; an index may be an int64 expression (a gather)."""
        linear, gathers = self._address(array, indices)
        return Load(array.name, linear, array.dtype, gathers, guard, fill)

    def let(self, value: Expr) -> Ref:
        """Computes a value once, here."""
        name = f"v{next(self._names)}"
        self._blocks[-1].append(Let(name, value))
        return Ref(name, value.dtype)

    def ref(self, name: str) -> Ref:
        """The current value of a carry."""
        return Ref(name, self._carried[name])

    # statements

    def store(
        self, array: Array, indices: Sequence[DimLike | Expr], value: Expr,
        guard: Expr | None = None,
    ) -> None:  # fmt: skip
        linear, gathers = self._address(array, indices)
        self._blocks[-1].append(Store(array.name, linear, value, gathers, guard))

    def check(self, condition: Expr, element: DimLike, value: Expr) -> None:
        """Fails the step (before anything is written to state) where `condition` is false."""
        self._blocks[-1].append(Check(condition, self.code, element, value))

    def next(self, name: str, value: Expr) -> None:
        self._blocks[-1].append(Next(name, value))

    def template(
        self, name: str, arrays: Sequence[Array], sizes: Sequence[DimLike], **attrs: Any
    ) -> None:
        names = tuple(a.name for a in arrays)
        self._blocks[-1].append(Template(name, names, tuple(sizes), attrs))

    def scratch(self, dtype: DType, shape: Shape) -> Array:
        """Memory of this kernel's own, uninitialised."""
        array = Array(f"s{len(self._scratch)}", dtype, shape, "scratch")
        self._scratch.append(array)
        return array

    def workspace(self, dtype: DType, products: Sequence[Shape]) -> Array:
        """What the template "matmul" wants as its last buffer, for products of `dtype` whose sizes
        (m, n, k) are at most these."""
        assert self._workspace_bytes is not None
        return self.scratch(uint8, (self._workspace_bytes(dtype, products),))

    @contextmanager
    def _loop(self, extent: DimLike, kind: str, carries: dict[str, Expr]) -> Iterator[Dim]:
        var = f"i{next(self._names)}"
        for name, init in carries.items():
            self._carried[name] = init.dtype
        self._blocks.append([])
        yield Dim.symbol(var)
        body = tuple(self._blocks.pop())
        bound = tuple(Carry(name, init) for name, init in carries.items())
        self._blocks[-1].append(Loop(var, extent, body, kind, bound))

    def parallel(self, extent: DimLike) -> Any:
        return self._loop(extent, "parallel", {})

    def loop(self, extent: DimLike, **carries: Expr) -> Any:
        """A serial loop; keyword arguments are carries with their first values."""
        return self._loop(extent, "serial", carries)

    def vector(self, extent: DimLike) -> Any:
        return self._loop(extent, "vector", {})

    def reduce(
        self, op: str, extents: Sequence[DimLike], value: Any, *, vector: bool = False
    ) -> Ref:
        """`op` over an index space of `value(*indices) -> Expr`."""
        names = tuple(f"r{next(self._names)}" for _ in extents)
        result = f"a{next(self._names)}"
        self._blocks.append([])
        expr = value(*(Dim.symbol(n) for n in names))
        body = tuple(self._blocks.pop())
        accumulators = (Accumulator(result, op, expr),)
        self._blocks[-1].append(Reduce(names, tuple(extents), body, accumulators, vector))
        return Ref(result, expr.dtype)

    def _address(
        self, array: Array, indices: Sequence[DimLike | Expr]
    ) -> tuple[DimLike, tuple[tuple[Expr, DimLike], ...]]:
        plain: list[DimLike] = []
        gathers: list[tuple[Expr, DimLike]] = []
        for axis, i in enumerate(indices):
            if isinstance(i, (int, Dim)):
                plain.append(i)
            else:
                plain.append(0)
                gathers.append((self.cast(i, int64), product(array.shape[axis + 1 :])))
        return array.linear(plain), tuple(gathers)

    def finish(self, name: str, sizes: Sequence[str]) -> Kernel:
        arrays = (*self.operands, *self.results, *self._scratch)
        buffers = tuple(Buffer(a.name, a.dtype, a.mode, product(a.shape)) for a in arrays)
        return Kernel(name, buffers, tuple(sizes), tuple(self._blocks[0]))
