"""`compile`: from a declared graph to a native program that is called like a function."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from staticgrad_runtime import executable as runtime
from staticgrad_runtime.artifact import Artifact, ConstantSpec, StateSpec
from staticgrad_runtime.code_pages import count_code_generation
from staticgrad_runtime.forks import no_fork
from staticgrad_runtime.workers import thread_count, usable_cpus

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, BindError
from staticgrad.ir.graph import Graph as IrGraph
from staticgrad.ir.graph import subgraphs
from staticgrad.kernels.program import Program
from staticgrad.ops.public import listed, public, shown
from staticgrad.ops.tensor import Tensor

from .custom import CFunction, c_functions_of
from .debug import Effects, tapped
from .failure import failure_hook
from .graph import Graph
from .report import Report

if TYPE_CHECKING:
    from staticgrad_runtime.cache import DiskCache
    from staticgrad_runtime.state import StateCell

    from staticgrad.codegen.assemble import Stream
    from staticgrad.codegen.target import Target

    from .graph_key import GraphKey
    from .profile import Profile

# The stages are imported where they are used: 25 ms of the 170 that `import staticgrad` took.

# Passes of this driver, after the graph's own.
LATE_PASSES = ("prepack", "in_place", "scalar_loops", "by_rows", "nontemporal")

Observe = Callable[[int, str, IrGraph], None]


@public
def compile(
    inputs: Sequence[Tensor], outputs: Tensor | Sequence[Tensor], updates: Any = None, *,
    training: bool | None = None, threads: int | None = None, check: str | None = None,
    cache: bool = True, disable: Iterable[str] = (), mode: str = "native",
) -> Any:  # fmt: skip
    """Compiles a graph into one native function: arrays in, arrays out, state updated in place.

    inputs    tensors declared by `sg.input`, in the order in which calls pass arrays
    outputs   a tensor (a call returns one array) or a list of tensors (a call returns a tuple)
    updates   what an optimiser's `minimize` gives, or pairs (state, new value)
    training  the mode of dropout and batch norm; None: training if there are updates
    threads   how many a call may use; None: STATICGRAD_NUM_THREADS, else all cores that this
              process may use. Results have the same bits whatever it is
    check     "nan": a step that computes a NaN raises, names the line, and changes nothing
    cache     whether the program is kept on disk, so that the next process need not compile it
    disable   names of passes to leave out, for comparison: `["fuse"]`; an unknown one raises an
              error that lists them
    mode      "native", or "reference" for the slow NumPy interpreter

    Raises `GraphError`, `ArgumentError`, `UnsupportedError`; calls raise `BindError` for arrays
    that do not fit and `ExecutionError` for data that a kernel refuses. A call returns new arrays,
    or those of `out=`: an array for a bare output, else a sequence of arrays (None: a new one).
    """
    graph, effects = tapped(Graph(inputs, outputs, updates), training)
    threads = thread_count(threads)
    if check not in (None, "nan"):
        raise ArgumentError(f'check must be None or "nan", got {check!r}')
    if mode == "reference":
        with no_fork():
            from .reference import ReferenceExecutable

        return ReferenceExecutable(graph, training, effects)
    if mode != "native":
        raise ArgumentError(f'mode must be "native" or "reference", got {mode!r}')
    if check is None:
        return build(
            graph, effects, training=training, threads=threads, cache=cache, disable=disable
        )
    with no_fork():
        from staticgrad.passes.mode import bind_mode

        from .check import explain_nan, watched

    bound = bind_mode(graph, training)
    program = build(
        watched(bound, effects.count), effects, threads=threads, cache=cache, disable=disable
    )
    told = failure_hook(program.manifest)
    texts = {code: message.text for code, message in program.manifest.messages.items()}

    def explain(code: int, element: int, value: int, arrays: Sequence[Any]) -> None:
        if texts.get(code, "").startswith("check_nan"):
            explain_nan(bound, arrays)
        told(code, element, value, arrays)

    program.on_failure = explain
    return program


@dataclass
class Compiled:
    """The stages of one compilation."""

    graph: IrGraph
    program: Program
    text: str
    called: list[str]
    target: Target
    compile_ms: dict[str, float]


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Compiling makes many nodes that live until it ends, as do the modules that the first one
    imports: looking for garbage among them took a quarter of the time at 70,000 nodes (13.1 against
    9.6 s), and 9 ms of a first compilation where it fell into the imports."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@no_fork()
@_without_collection()
def compile_stages(
    graph: IrGraph, *, training: bool | None = None, disable: Iterable[str] = (),
    observe: Observe | None = None, stream: Stream | None = None,
) -> Compiled:  # fmt: skip
    """Everything up to LLVM's text, which a `stream` takes as it is emitted."""
    from staticgrad.codegen.program import emit_program
    from staticgrad.codegen.target import host_target
    from staticgrad.passes.lowering import lower
    from staticgrad.passes.lowering.by_rows import by_rows
    from staticgrad.passes.lowering.prepack import prepack
    from staticgrad.passes.names import with_free_names
    from staticgrad.passes.nontemporal import nontemporal
    from staticgrad.passes.pipeline import run_pipeline
    from staticgrad.passes.schedule import schedule

    target = host_target()
    off = listed(disable, "disable", "names of passes")
    start = time.perf_counter()
    final = run_pipeline(
        graph, training=training, disable=off, observe=observe, also=LATE_PASSES,
        evaluate=lambda constants: build(constants, disable=(*off, "fold"))(),
    )  # fmt: skip
    passed = time.perf_counter()
    named, names = with_free_names(final)
    program = lower(named, target)
    if "prepack" not in off:
        program = prepack(program, target)
    program = schedule(
        program, in_place="in_place" not in off, scalar_loops="scalar_loops" not in off
    )  # fmt: skip
    if "by_rows" not in off:
        program = by_rows(program, target)
    if "nontemporal" not in off:
        program = nontemporal(program, target)
    program.names = names
    lowered = time.perf_counter()
    text, called = emit_program(program, target, stream or (lambda module: None))
    emitted = time.perf_counter()
    times = {
        "passes": 1e3 * (passed - start),
        "lower": 1e3 * (lowered - passed),
        "emit": 1e3 * (emitted - lowered),
    }
    return Compiled(named, program, text, called, target, times)


def compile_graph(
    graph: IrGraph, *, training: bool | None = None, threads: int | None = None,
    cache: bool = True, disable: Iterable[str] = (),
) -> Executable:  # fmt: skip
    """`compile` for a graph object."""
    graph, effects = tapped(graph, training)
    return build(graph, effects, training=training, threads=threads, cache=cache, disable=disable)


@no_fork()
@_without_collection()
def build(
    graph: IrGraph, effects: Effects | None = None, *, training: bool | None = None,
    threads: int | None = None, cache: bool = True, disable: Iterable[str] = (),
) -> Executable:  # fmt: skip
    """The program of a graph as it is; `effects` follow each call."""
    disable = listed(disable, "disable", "names of passes")
    store = _store() if cache else None
    key, found = None, None
    compile_ms: dict[str, float] = {}
    if store is not None and _remembers_graphs():
        key, found, compile_ms = _looked_up(store, graph, training, disable)
    if found is None:
        artifact, cells, called, text = _compiled(
            graph, training, disable, store, key, compile_ms, thread_count(threads)
        )
    else:
        (artifact, cells), called, text = found, [], None
    start = time.perf_counter()
    kind = TappedExecutable if effects is not None and effects.taps else Executable
    executable = kind(
        artifact, cells, threads=threads, extra_symbols={c.symbol: c.address for c in called},
        native=kind is Executable and not any(c.calls_python for c in called),
    )  # fmt: skip
    if isinstance(executable, TappedExecutable):
        assert effects is not None
        executable.effects = effects
    executable.called = called
    if artifact.manifest.messages:
        executable.on_failure = failure_hook(artifact.manifest)
    compile_ms["load"] = 1e3 * (time.perf_counter() - start)
    count_code_generation(compile_ms.get("codegen", 0.0))
    executable.source = (graph, training, disable)
    executable.compile_ms = compile_ms
    executable._text = text
    return executable


def _store() -> DiskCache | None:
    from staticgrad_runtime.cache import DiskCache

    return DiskCache.default()


def _remembers_graphs() -> bool:
    from staticgrad_runtime.cache import remembers_graphs

    return remembers_graphs()


def _looked_up(
    store: DiskCache, graph: IrGraph, training: bool | None, disable: Iterable[str]
) -> tuple[GraphKey | None, tuple[Artifact, list[StateCell]] | None, dict[str, float]]:
    """The key of a graph, and the program that an earlier process made of it."""
    from staticgrad.codegen.target import host_target

    from . import known
    from .graph_key import graph_key

    start = time.perf_counter()
    key = graph_key(graph, training, disable, host_target())
    if key is None:
        return None, None, {}
    keyed = time.perf_counter()
    found = known.load(store, key)
    times = {"key": 1e3 * (keyed - start), "cache": 1e3 * (time.perf_counter() - keyed)}
    return key, found, times


def _compiled(
    graph: IrGraph, training: bool | None, disable: Iterable[str], store: DiskCache | None,
    key: GraphKey | None, compile_ms: dict[str, float], threads: int,
) -> tuple[Artifact, list[StateCell], list[CFunction], str]:  # fmt: skip
    """The program of a graph by way of all stages; kept under `key`, if there is one."""
    with _begun(graph, store) as stream:  # before the imports: half of the work has another core
        from staticgrad_runtime.ahead import generators

        from staticgrad.codegen.entry import entry_object
        from staticgrad.passes.lowering.manifest import build_manifest

        made = compile_stages(graph, training=training, disable=disable, stream=stream)
        manifest, blobs = build_manifest(made.program, made.graph, made.target, made.called, {})
        stream.aside(lambda: entry_object(made.target))
        for generate in generators(manifest, threads):
            stream.aside(generate)
        code, object_key, times = _object_code(made, store, stream)
        compile_ms.update(made.compile_ms | times)
        manifest.report["compile_ms"] = dict(compile_ms)
        artifact = Artifact(manifest, code, blobs, entry_code=entry_object(made.target))
        called = c_functions_of(made.program)
        if store is not None and key is not None and not called:
            from . import known

            known.keep(store, key, artifact, object_key)
    return artifact, [v.node.payload for v in made.graph.state], called, made.text


MOST_THREADS = 4  # for code generation: a program has few parts that are long

compilations = 0  # object code generated by this process; tests count it


@contextlib.contextmanager
def _begun(graph: IrGraph, store: DiskCache | None) -> Iterator[Stream]:
    """Who generates code while the text is emitted. What all matrix products share, a third of a
    small model's code, is begun at once: on another core it is done when the passes are."""
    from staticgrad.codegen.assemble import Crew, Stream
    from staticgrad.codegen.gemm_vector import products_text
    from staticgrad.codegen.split import shared_units
    from staticgrad.codegen.target import host_target

    target, threads = host_target(), min(usable_cpus(), MOST_THREADS)
    crew = Crew(target, threads=threads, load=None if store is None else store.load)
    products = _products(graph)
    try:
        if products:
            crew.aside(lambda: crew.add(shared_units(products_text(target, products))))
        yield Stream(crew)
    finally:
        crew.rest()


def _products(graph: IrGraph) -> set[tuple[str, int]]:
    """The dtypes of products, each with how many vectors are declared. What lies unbroken is only
    a guess: what is no transpose."""
    from staticgrad.codegen.gemm_vector import DOTS, is_dots, vectors_of
    from staticgrad.passes.lowering.matmul_blocks import in_blocks

    found = set()
    for node in graph.nodes:
        if node.op == "matmul":
            a, b = node.operands
            held, sizes = node.types[0].dtype, (a.shape[-2], b.shape[-1], a.shape[-1])
            turned = [v.node.op == "permute_dims" for v in (a, b)]
            a_cs, b_rs = int(not turned[0]), int(turned[1] or sizes[1] == 1)
            vectors = vectors_of(str(held), sizes, a_cs, b_rs)
            is_long = is_dots(vectors, a_cs, b_rs) and in_blocks(held, sizes)
            found.add((str(held), DOTS if is_long else vectors))
    return found.union(*(_products(g) for n in graph.nodes for _, g in subgraphs(n)))


def _object_code(
    made: Compiled, store: DiskCache | None, stream: Stream
) -> tuple[bytes, str, dict[str, float]]:  # fmt: skip
    """Object code with its key, and the times that it took."""
    global compilations
    key = _cache_key(made)
    if store is not None:
        start = time.perf_counter()
        found = store.load(key)
        if found is not None:
            return found, key, {"cache": 1e3 * (time.perf_counter() - start)}
    compilations += 1
    assembled = stream.assembled(made.text, None if store is None else store.store)
    if store is not None:
        store.store(key, assembled.object_code)
    times = {"parse": assembled.parse_ms, "codegen": assembled.codegen_ms}
    return assembled.object_code, key, times


def _cache_key(made: Compiled) -> str:
    """Everything that the object code depends on; the text holds no locations."""
    import llvmlite

    from staticgrad import __version__

    t = made.target
    parts = (__version__, llvmlite.__version__, t.triple, t.cpu, t.features, made.text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Executable(runtime.Executable):
    """A compiled program: call it with arrays; ask it for its report, its code, its dumps."""

    source: tuple[IrGraph, bool | None, tuple[str, ...]]
    compile_ms: dict[str, float]
    _text: str | None  # None where the program was found without it
    called: list[CFunction]  # kept alive as long as the code that calls them

    @property
    def text(self) -> str:
        """The LLVM IR; of a program that was found in the cache it is made when asked for."""
        if self._text is None:
            graph, training, disable = self.source
            self._text = compile_stages(graph, training=training, disable=disable).text
        return self._text

    @property
    def llvm_ir(self) -> str:
        """The LLVM IR of the program, in the form that was compiled."""
        return self.text

    @property
    def assembly(self) -> str:
        """The program in the host's assembly."""
        from staticgrad.codegen.assemble import assembly_text
        from staticgrad.codegen.target import host_target

        return assembly_text(self.text, host_target())

    def report(self, /, *sizes: Any, **dims: int) -> Report:
        """Kernels, flops, bytes, memory, compile time; `report(N=128)` fills in symbolic dims.

        Raises `ArgumentTypeError` for sizes without a name, `BindError` for a name that is no
        symbol's.
        """
        from staticgrad_runtime.dims import evaluate_int

        m = self.manifest
        if sizes:
            named = f"sizes by name, as in report({m.dims[0]}=128)" if m.dims else "no arguments"
            raise ArgumentTypeError(f"report: expected {named}; got {shown(sizes[0])}")

        def figure(expr: Any) -> Any:
            return evaluate_int(expr, dims) if not missing else _dim_text(expr)

        unknown = sorted(dims.keys() - set(m.dims))
        if unknown:
            known = ", ".join(m.dims) or "none"
            raise BindError(f"report: no symbol is called {', '.join(unknown)}; known: {known}")
        missing = [d for d in m.dims if d not in dims]
        peak: Any = f"needs {', '.join(missing)}" if missing else self.peak_bytes(**dims)
        kernels = [
            {**k, **{name: figure(k[name]) for name in ("flops", "bytes", "times")}}
            for k in m.kernels
        ]
        return Report({
            "kernels": kernels,
            "distinct_kernels": len({k["symbol"] for k in m.kernels}),
            "flops": figure(m.cost.flops),
            "bytes": figure(m.cost.bytes),
            "peak_bytes": peak,
            "state_bytes": sum(_bytes(s) for s in m.state),
            "constant_bytes": sum(_bytes(s) for s in m.constants),
            "packed_bytes": sum(m.buffers[p.buffer].size_bytes for p in m.packs),
            "sizes_bytes": self.sizes_bytes,
            "compile_ms": dict(self.compile_ms),
        })  # fmt: skip

    def profile(
        self, /, *arrays: Any, seconds: float = 0.5, threads: int | None = None, **named: Any
    ) -> Profile:
        """Where the time of a call with these inputs goes: each kernel's time, share, GFLOP/s, GB/s
        and lines, as a table (`print`) or plain figures (`to_dict`).

        A copy of the program that has a clock behind each kernel is compiled and called for about
        so many seconds, at least five times; this one, its state included, stays as it is. Where a
        clock stands, threads meet: the sum is somewhat longer than a call. `threads`: how many it
        may use, as `compile` has it; None: as many as this program.
        """
        from .profile import profiled

        most = self._binder._threads if threads is None else thread_count(threads)
        return profiled(self, arrays, named, threads=most, seconds=seconds)

    def dump(self, directory: str | os.PathLike[str]) -> list[str]:
        """Writes every stage as files: the graph after each pass as text, DOT, Mermaid and JSON,
        the kernels, LLVM IR, assembly and the memory plan. Returns the files' paths."""
        from .dump import dump_stages

        graph, training, disable = self.source
        return dump_stages(graph, directory, training=training, disable=disable)


class TappedExecutable(Executable):
    """A program with hidden outputs, for the effects of `sg.debug` that follow each call."""

    effects: Effects

    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        if out is not None:
            out = self.effects.extended(out)
        return self.effects.finish(super().__call__(*arrays, out=out, **named))


def _bytes(spec: StateSpec | ConstantSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _dim_text(expr: Any) -> Any:
    """A manifest's size in prefix form as people write it."""
    if not isinstance(expr, list):
        return expr
    op, *rest = expr
    parts = [str(_dim_text(e)) for e in rest]
    if op in ("max", "min"):
        return f"{op}({', '.join(parts)})"
    if op == "+":
        return "+".join(parts)
    return op.join(f"({p})" if "+" in p else p for p in parts)


__all__ = ["Executable", "build", "compile", "compile_graph", "compile_stages"]
