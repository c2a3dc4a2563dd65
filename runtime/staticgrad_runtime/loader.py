"""Object code -> addresses, by LLVM's LLJIT; llvmlite is imported at the first load."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .cache import DiskCache
from .code_pages import count_code_generation
from .errors import ArtifactError, UnsupportedError
from .forks import ForkSafeLock, no_fork
from .symbols import object_symbols

# What a program may use of the C library; code generators emit calls of them for large copies.
LIBC_SYMBOLS = ("memcpy", "memmove", "memset")

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

Host = tuple[str, str, str]  # what code is generated for: triple, CPU, features

_lock = ForkSafeLock()
_names = itertools.count()
_fixed: dict[str, bytes] = {}  # what `fixed_code` has generated, by key
_turns: dict[str, ForkSafeLock] = {}  # whose turn it is to generate it


@functools.cache
def libc_address(name: str) -> int:
    """Where a function of the C library is (of the kernel's library for `Sleep`, on Windows)."""
    library = "kernel32" if name == "Sleep" else "msvcrt"
    libc: Any = ctypes.CDLL(library if sys.platform == "win32" else None)
    return ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0


@functools.cache
def _libc_addresses() -> dict[str, int]:
    return {name: libc_address(name) for name in LIBC_SYMBOLS}


@functools.cache
def _jit() -> Any:
    """The process's one JIT. It only links: the objects are compiled already."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_lljit_compiler(machine)


@no_fork()
def check_host(triple: str, features: str) -> None:
    """Refuses code for another architecture, or for CPU features that this host lacks."""
    machine = platform.machine().lower()
    machine = _ARCHITECTURES.get(machine, machine)
    wanted = triple.split("-")[0]
    if _ARCHITECTURES.get(wanted, wanted) != machine:
        raise UnsupportedError(f"the program was compiled for {wanted}; this machine is {machine}")
    asked = [item[1:] for item in features.split(",") if item.startswith("+")]
    missing = sorted(name for name in asked if not _host_features().get(name, False))
    if missing:
        raise UnsupportedError(
            f"the program was compiled for a CPU with {', '.join(missing)}, which this one lacks"
        )


@functools.cache
def _host_features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features())


class Library:
    """Object files linked together; their addresses are valid as long as this object lives.

    `exports` are the names wanted; `in` tells which of them the objects have.
    """

    @no_fork()
    def __init__(
        self, objects: Iterable[bytes], exports: Iterable[str], extra_symbols: Mapping[str, int]
    ) -> None:
        import llvmlite.binding as llvm

        allowed = _libc_addresses() | dict(extra_symbols)
        builder = llvm.JITLibraryBuilder()
        defined: set[str] = set()
        wanted: set[str] = set()
        for code in objects:
            symbols = object_symbols(code)
            defined |= symbols.defined
            wanted |= symbols.undefined
            builder.add_object_img(code)
        wanted -= defined
        refused = sorted(wanted - allowed.keys())
        if refused:
            raise ArtifactError(
                f"object code uses {', '.join(refused)}; allowed are {', '.join(sorted(allowed))}"
            )
        for name in sorted(wanted):
            builder.import_symbol(name, allowed[name])
        self._exports = frozenset(exports) & defined
        for name in self._exports:
            builder.export_symbol(name)
        with _lock:
            try:
                self._tracker = builder.link(_jit(), f"staticgrad{next(_names)}")
            except RuntimeError as error:
                raise ArtifactError(f"object code does not link: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._exports

    def address(self, name: str) -> int:
        """Where an exported symbol is."""
        return int(self._tracker[name])


def compile_text(
    text: str, exports: Iterable[str], hooks: Mapping[str, int] | None = None, *, level: int = 2
) -> Library:
    """A library of the runtime's own LLVM text, compiled for this host. `hooks` are addresses of
    what it may call beside the C library's three, `level` how much is optimised."""
    library = Library([host_code(text, level)], exports, hooks or {})
    _fixed.pop(_fixed_key(text, _host(), level), None)  # it is in use, and on disk
    return library


def host_code(text: str, level: int = 2) -> bytes:
    """Object code for this host of a text that is the same in every process: it is kept on disk.
    The pool's takes 5 ms, the planner's 14."""
    return fixed_code(text, _host(), level, DiskCache.default())


@no_fork()
def fixed_code(text: str, target: Host, level: int, store: DiskCache | None = None) -> bytes:
    """Object code for a target, generated once in a process: a thread that asks for what another
    has begun waits for it."""
    key = _fixed_key(text, target, level)
    with _lock:
        turn = _turns.setdefault(key, ForkSafeLock())
    with turn:
        if key not in _fixed:
            code = None if store is None else store.load(key)
            if code is None:
                code = _object_code(text, *target, level)
                if store is not None:
                    store.store(key, code)
            _fixed[key] = code
        return _fixed[key]


def _fixed_key(text: str, target: Host, level: int) -> str:
    parts = ("runtime", _llvmlite_version(), *target, str(level), text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _object_code(text: str, triple: str, cpu: str, features: str, level: int) -> bytes:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=level, reloc="pic"
    )
    start = time.perf_counter()
    code = emit_object(machine, llvm.parse_assembly(text, llvm.create_context()))
    count_code_generation(1e3 * (time.perf_counter() - start))
    return code


def emit_object(machine: Any, module: Any) -> bytes:
    """Object code of a module in a context of its own. llvmlite guards its calls by one lock;
    modules that share no context need none, so this one goes by the function behind the guard."""
    generate = _unguarded_emit()
    if generate is None:
        guarded: bytes = machine.emit_object(module)
        return guarded
    from llvmlite.binding import ffi

    with ffi.OutputString() as problem:
        buffer = generate(machine, module, 1, problem)
        if not buffer:
            raise RuntimeError(str(problem))
    try:
        start, size = ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(start, size)
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


@functools.cache
def _unguarded_emit() -> Any:
    """None where llvmlite looks otherwise."""
    from llvmlite.binding import ffi

    return getattr(ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_cfn", None)


@functools.cache
def _host() -> Host:
    import llvmlite.binding as llvm

    return (
        llvm.get_default_triple(), llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )  # fmt: skip


def _llvmlite_version() -> str:
    import llvmlite

    return str(llvmlite.__version__)
