"""Values and addresses of kernel IR, in LLVM: where each is computed, and in how many lanes.

Every value has a level: the number of open loops that it depends on. It is emitted in the preheader
of the next loop, so whatever an inner loop does not change is computed outside of it; no LLVM pass
has to find that again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from staticgrad.ir.dim import Dim, DimCall, DimLike, Monomial, symbols
from staticgrad.ir.dtype import DType, int64
from staticgrad.kernels.ir import Buffer, Call, Expr, Index, Kernel, Literal, Load, Ref

from .builder import Function, Module, constant, memory_type, register_type, vector
from .scalar import emit_scalar
from .strided import load_even, masked_load, takes_pairs


class Lane(NamedTuple):
    """An emitted value: its name, dtype, lanes (1 means the same in every lane), level."""

    name: str
    dtype: DType
    lanes: int
    level: int


class Scope:
    """An open loop, or the function itself at level 0."""

    def __init__(self, prelude: list[str]) -> None:
        self.prelude = prelude  # where code that this loop does not change is put
        self.vars: dict[str, str] = {}
        self.memo: dict[object, Lane] = {}
        self.names: dict[str, Lane] = {}


def short_type(dtype: DType) -> str:
    """A dtype in the name of an overloaded intrinsic: f32, i8."""
    return {"float32": "f32", "float64": "f64"}.get(str(dtype)) or memory_type(dtype)


class ValueEmitter:
    """Emits expressions into a function whose parameters `%b_<buffer>` and `%n_<size>` exist."""

    def __init__(self, module: Module, kernel: Kernel, function: Function) -> None:
        self.f = function
        self.module = module
        self.kernel = kernel
        self.buffers: dict[str, Buffer] = {b.name: b for b in kernel.buffers}
        self.scopes: list[Scope] = [Scope([])]
        self.scopes[0].vars = {s: f"%n_{s}" for s in kernel.sizes}
        self.lanes = 1  # of the open vector loop
        self.vector_var: str | None = None
        self.mask: str | None = None  # of the tail being emitted

    # --- levels -----------------------------------------------------------------------------------

    @property
    def level(self) -> int:
        return len(self.scopes) - 1

    def at(self, level: int, build: Callable[[], str]) -> str:
        """Runs `build`, which emits instructions, at the given level."""
        if level >= self.level:
            return build()
        saved = self.f.redirect(self.scopes[level + 1].prelude)
        try:
            return build()
        finally:
            self.f.restore(saved)

    def level_of_dim(self, d: DimLike) -> int:
        return max((self.level_of_var(s) for s in symbols(d)), default=0)

    def level_of_var(self, name: str) -> int:
        for level in range(self.level, -1, -1):
            if name in self.scopes[level].vars:
                return level
        raise KeyError(f"{self.kernel.name}: unknown index variable {name!r}")

    def var(self, name: str) -> str:
        return self.scopes[self.level_of_var(name)].vars[name]

    # --- index arithmetic -------------------------------------------------------------------------

    def integer(self, d: DimLike) -> str:
        """An i64 scalar with the value of `d`; the vector variable counts as its first lane."""
        if isinstance(d, int):
            return str(d)
        level = self.level_of_dim(d)
        memo = self.scopes[level].memo
        key = ("int", d)
        if key in memo:
            return memo[key].name
        # Split by level, so that the part an outer loop fixes is computed there.
        inner = tuple(t for t in d.terms if self._term_level(t[0]) == level)
        outer = tuple(t for t in d.terms if self._term_level(t[0]) < level)
        total = self.integer(Dim(outer)) if outer else None
        name = self.at(level, lambda: self._sum_terms(inner, total))
        memo[key] = Lane(name, int64, 1, level)
        return name

    def _term_level(self, monomial: Monomial) -> int:
        return self.level_of_dim(Dim(((monomial, 1),)))

    def _sum_terms(self, terms: Sequence[tuple[Monomial, int]], total: str | None) -> str:
        for monomial, factor in terms:
            text = str(factor)
            product = None if factor != 1 or not monomial else ""
            if product is None:
                product = text
            for atom in monomial:
                value = self.var(atom) if isinstance(atom, str) else self._atom(atom)
                product = value if product == "" else self.f.emit(f"mul i64 {product}, {value}")
            total = product if total is None else self.f.emit(f"add i64 {total}, {product}")
        assert total is not None
        return total

    def _atom(self, atom: DimCall) -> str:
        a, b = self.integer(atom.left), self.integer(atom.right)
        if atom.op in ("max", "min"):
            return self.f.call_intrinsic(f"llvm.s{atom.op}", "i64", a, b)
        # Sizes and indices are not negative: unsigned division is exact. A size of 0 divides
        # nothing that is used, but must not trap.
        if not isinstance(atom.right, int):
            b = self.f.call_intrinsic("llvm.umax", "i64", b, "1")
        return self.f.emit(f"{'udiv' if atom.op == '//' else 'urem'} i64 {a}, {b}")

    def coefficient(self, d: DimLike) -> tuple[DimLike, bool]:
        """How `d` moves with the vector variable: (its factor, whether `d` is affine in it)."""
        v = self.vector_var
        if v is None or isinstance(d, int) or v not in symbols(d):
            return 0, True
        factor: DimLike = 0
        for monomial, f in d.terms:
            names = [a for a in monomial if isinstance(a, str)]
            inside = [a for a in monomial if not isinstance(a, str) and v in symbols(
                Dim((((a,), 1),)))]  # fmt: skip
            if inside or names.count(v) > 1:
                return 0, False
            if v in names:
                rest = list(monomial)
                rest.remove(v)
                factor = factor + Dim(((tuple(rest), f),)) if rest else factor + f
        return factor, True

    def index_lanes(self, d: DimLike) -> str:
        """A vector of i64 with the value of `d` in each lane (the index differs by lane)."""
        ty = vector("i64", self.lanes)
        factor, affine = self.coefficient(d)
        if affine:
            base = self.f.splat(self.integer(d), ty)
            step = self._iota()
            if factor != 1:
                step = self.f.emit(f"mul {ty} {step}, {self.f.splat(self.integer(factor), ty)}")
            return self.f.emit(f"add {ty} {base}, {step}")
        assert isinstance(d, Dim)
        total: str | None = None
        for monomial, f in d.terms:
            product: str | None = None
            for atom in monomial:
                value = self._atom_lanes(atom)
                product = value if product is None else self.f.emit(f"mul {ty} {product}, {value}")
            if f != 1 or product is None:
                scale = constant(f, ty)
                product = scale if product is None else self.f.emit(f"mul {ty} {product}, {scale}")
            total = product if total is None else self.f.emit(f"add {ty} {total}, {product}")
        assert total is not None
        return total

    def _iota(self) -> str:
        return "<" + ", ".join(f"i64 {i}" for i in range(self.lanes)) + ">"

    def _atom_lanes(self, atom: str | DimCall) -> str:
        ty = vector("i64", self.lanes)
        if isinstance(atom, str):
            base = self.f.splat(self.var(atom), ty)
            if atom != self.vector_var:
                return base
            return self.f.emit(f"add {ty} {base}, {self._iota()}")
        a, b = self.index_lanes(atom.left), self.index_lanes(atom.right)
        if atom.op in ("max", "min"):
            return self.f.call_intrinsic(f"llvm.s{atom.op}", ty, a, b)
        if not isinstance(atom.right, int):
            b = self.f.call_intrinsic("llvm.umax", ty, b, constant(1, ty))
        return self.f.emit(f"{'udiv' if atom.op == '//' else 'urem'} {ty} {a}, {b}")

    # --- values -----------------------------------------------------------------------------------

    def value(self, e: Expr) -> Lane:
        """Emits `e` once for each place where it is valid, at the outermost such place."""
        match e:
            case Ref(name=name):
                return self.named(name)
            case Literal(value=v, dtype=d):
                return Lane(constant(v, register_type(d)), d, 1, 0)
        for scope in reversed(self.scopes):
            if id(e) in scope.memo:
                return scope.memo[id(e)]
        match e:
            case Index():
                lane = self._index(e)
            case Load():
                lane = self._load(e)
            case Call():
                lane = self._call(e)
            case _:
                raise TypeError(f"{e!r} is no kernel expression")
        self.scopes[min(lane.level, self.level)].memo[id(e)] = lane
        return lane

    def named(self, name: str) -> Lane:
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.names[name]
        raise KeyError(f"{self.kernel.name}: unknown name {name!r}")

    def spread(self, lane: Lane) -> str:
        """The value in every lane of the open vector loop."""
        if lane.lanes == self.lanes or self.lanes == 1:
            return lane.name
        ty = vector(register_type(lane.dtype), self.lanes)
        if not lane.name.startswith("%"):
            return f"splat ({register_type(lane.dtype)} {lane.name})"
        memo = self.scopes[min(lane.level, self.level)].memo
        key = ("splat", lane.name, self.lanes)
        if key not in memo:
            name = self.at(lane.level, lambda: self.f.splat(lane.name, ty))
            memo[key] = Lane(name, lane.dtype, self.lanes, lane.level)
        return memo[key].name

    def _varies(self, d: DimLike) -> bool:
        return self.vector_var is not None and self.vector_var in symbols(d)

    def _index(self, e: Index) -> Lane:
        if self._varies(e.index):
            return Lane(self.index_lanes(e.index), int64, self.lanes, self.level)
        return Lane(self.integer(e.index), int64, 1, self.level_of_dim(e.index))

    def _call(self, e: Call) -> Lane:
        args = [self.value(a) for a in e.args]
        lanes = max(a.lanes for a in args)
        level = max(a.level for a in args)
        names = [self.spread(a) if lanes > 1 else a.name for a in args]
        dtypes = [str(a.dtype) for a in args]
        name = self.at(level, lambda: emit_scalar(self.f, e.op, str(e.dtype), dtypes, lanes, names))
        return Lane(name, e.dtype, lanes, level)

    def _load(self, e: Load) -> Lane:
        buffer = self.buffers[e.buffer]
        gathers = [(self.value(g), s) for g, s in e.gathers]
        guard = self.value(e.guard) if e.guard is not None else None
        fixed = buffer.mode == "in"
        varies = (
            self._varies(e.index)
            or any(g.lanes > 1 for g, _ in gathers)
            or (guard is not None and guard.lanes > 1)
        )
        if varies:
            return Lane(self._load_lanes(e, gathers, guard), e.dtype, self.lanes, self.level)
        level = max([self.level_of_dim(e.index), *(g.level for g, _ in gathers),
                     *(self.level_of_dim(s) for _, s in gathers),
                     *([guard.level] if guard else [])])  # fmt: skip
        # The content of a buffer that this kernel writes may change from one iteration to the next.
        level = level if fixed else self.level
        name = self.at(level, lambda: self._load_one(e, gathers, guard))
        return Lane(name, e.dtype, 1, level)

    def _offset_one(self, index: DimLike, gathers: list[tuple[Lane, DimLike]]) -> str:
        total = self.integer(index)
        for g, stride in gathers:
            step = self.f.emit(f"mul i64 {g.name}, {self.integer(stride)}")
            total = self.f.emit(f"add i64 {total}, {step}")
        return total

    def _address(self, buffer: str, offset: str, dtype: DType) -> str:
        return self.f.emit(f"getelementptr {memory_type(dtype)}, ptr %b_{buffer}, i64 {offset}")

    def _load_one(self, e: Load, gathers: list[tuple[Lane, DimLike]], guard: Lane | None) -> str:
        mem = memory_type(e.dtype)
        offset = self._offset_one(e.index, gathers)
        if guard is None:
            name = self.f.emit(f"load {mem}, ptr {self._address(e.buffer, offset, e.dtype)}, "
                               f"align {e.dtype.itemsize_bytes}")  # fmt: skip
        else:
            # A one-lane masked load reads nothing where the guard is false.
            address = self._address(e.buffer, offset, e.dtype)
            one = self._masked_load(address, e.dtype, 1, self._one_lane(guard.name),
                                    constant(e.fill, f"<1 x {mem}>"))  # fmt: skip
            name = self.f.emit(f"extractelement <1 x {mem}> {one}, i32 0")
        return self._from_memory(name, e.dtype, 1)

    def _one_lane(self, bit: str) -> str:
        return self.f.emit(f"insertelement <1 x i1> poison, i1 {bit}, i32 0")

    def _masked_load(self, address: str, dtype: DType, lanes: int, mask: str, fill: str) -> str:
        return masked_load(self.f, f"<{lanes} x {memory_type(dtype)}>", address, mask, fill)

    def _from_memory(self, name: str, dtype: DType, lanes: int) -> str:
        if dtype.kind != "b":
            return name
        ty = vector("i8", lanes)
        return self.f.emit(f"icmp ne {ty} {name}, {constant(0, ty)}")

    def _combined_mask(self, guard: Lane | None) -> str | None:
        if guard is None:
            return self.mask
        bits = self.spread(guard)
        if self.mask is None:
            return bits
        return self.f.emit(f"and <{self.lanes} x i1> {bits}, {self.mask}")

    def _load_lanes(self, e: Load, gathers: list[tuple[Lane, DimLike]], guard: Lane | None) -> str:
        mem, w = memory_type(e.dtype), self.lanes
        ty = f"<{w} x {mem}>"
        mask = self._combined_mask(guard)
        factor, affine = self.coefficient(e.index)
        fill = constant(e.fill if guard is not None else 0, ty)
        if affine and factor == 1 and all(g.lanes == 1 for g, _ in gathers):
            address = self._address(e.buffer, self._offset_one(e.index, gathers), e.dtype)
            if mask is None:
                name = self.f.emit(f"load {ty}, ptr {address}, align {e.dtype.itemsize_bytes}")
            else:
                name = self._masked_load(address, e.dtype, w, mask, fill)
        elif (
            affine and factor == 2 and not gathers
            and takes_pairs(self.module.target, e.dtype.itemsize_bytes)
        ):  # fmt: skip
            address = self._address(e.buffer, self._offset_one(e.index, gathers), e.dtype)
            name = load_even(self, address, ty, mask, fill)
        else:
            pointers = self._pointers(e.buffer, e.dtype, e.index, gathers)
            intrinsic = f"llvm.masked.gather.v{w}{short_type(e.dtype)}.v{w}p0"
            self.module.intrinsic(intrinsic, ty, f"<{w} x ptr>", f"<{w} x i1>", ty)
            lanes_on = mask or "splat (i1 true)"
            name = self.f.emit(
                f"call {ty} @{intrinsic}(<{w} x ptr> align {e.dtype.itemsize_bytes} {pointers}, "
                f"<{w} x i1> {lanes_on}, {ty} {fill})"
            )
        return self._from_memory(name, e.dtype, w)

    def _pointers(
        self, buffer: str, dtype: DType, index: DimLike, gathers: list[tuple[Lane, DimLike]]
    ) -> str:
        ty = vector("i64", self.lanes)
        total = (
            self.index_lanes(index) if self._varies(index)
            else self.f.splat(self.integer(index), ty)
        )  # fmt: skip
        for g, stride in gathers:
            step = self.f.emit(
                f"mul {ty} {self.spread(g)}, {self.f.splat(self.integer(stride), ty)}"
            )
            total = self.f.emit(f"add {ty} {total}, {step}")
        return self.f.emit(f"getelementptr {memory_type(dtype)}, ptr %b_{buffer}, {ty} {total}")
