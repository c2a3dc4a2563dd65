"""A kernel under construction: its buffers by name, and its finishing."""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.ir.dim import DimLike, Shape
from staticgrad.ir.dtype import DType
from staticgrad.kernels.ir import Buffer, Expr, Kernel, Literal, Load, Stmt, Store
from staticgrad.kernels.program import Program
from staticgrad.kernels.rewrite import IndexMapper, SizeParameters, loop_vars


def linear(at: Sequence[DimLike], shape: Shape) -> DimLike:
    """Row-major: `(i, j)` of shape [N, M] -> `i*M+j`."""
    total: DimLike = 0
    for i, d in zip(at, shape):
        total = total * d + i
    return total


class Draft:
    """Names the program's buffers that a kernel uses, in order of first use: `b0, b1, ...`."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._names: dict[int, str] = {}
        self._modes: dict[int, str] = {}

    def buffer(self, index: int, mode: str) -> str:
        name = self._names.setdefault(index, f"b{len(self._names)}")
        known = self._modes.get(index, mode)
        self._modes[index] = mode if known == mode else "inout"
        return name

    def load(self, index: int, at: DimLike, dtype: DType) -> Expr:
        constant = self.program.constants.get(index)
        if constant is not None and constant.size == 1:
            return Literal(constant.reshape(()).item(), dtype)
        return Load(self.buffer(index, "in"), at, dtype)

    def store(self, index: int, at: DimLike, value: Expr) -> Store:
        return Store(self.buffer(index, "out"), at, value)

    def finish(
        self, name: str, body: Sequence[Stmt], epilogue_vars: Sequence[str] = ()
    ) -> tuple[Kernel, tuple[int, ...], tuple[DimLike, ...]]:
        """The kernel, the program's buffers for its parameters, the values of its sizes."""
        sizes = SizeParameters([*loop_vars(body), "begin", "end", "batch", *epilogue_vars])
        mapped = IndexMapper(sizes.index, sizes.index).body(body)
        buffers = tuple(
            Buffer(label, self.program.buffers[i].dtype, self._modes[i], 0)
            for i, label in self._names.items()
        )
        kernel = Kernel(name, buffers, tuple(sizes.names), mapped)
        return kernel, tuple(self._names), tuple(sizes.values)

    def entries(self) -> list[tuple[int, str, str]]:
        """The buffers used so far: index, name, mode."""
        return [(i, name, self._modes[i]) for i, name in self._names.items()]
