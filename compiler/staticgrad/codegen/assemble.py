"""LLVM text -> object code. No mid-end pass runs: the text is in its final form.

A long module is compiled in units (`split`) on several threads. llvmlite guards its calls by one
lock; code generation of modules that share no context needs none, so that one call goes by the
function behind the guard. Object code of units that other programs have too is kept by their text.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from staticgrad_runtime.objects import pack

from .split import split
from .target import Target

Load = Callable[[str], bytes | None]
Store = Callable[[str, bytes], object]


@dataclass(frozen=True)
class Assembled:
    """`object_code` is one object file or several, packed. Times are those of all threads."""

    object_code: bytes
    parse_ms: float
    codegen_ms: float


_local = threading.local()
_known: dict[str, bytes] = {}  # object code of shared units, by key


def _machine(target: Target, level: int) -> Any:
    """A target machine of this thread's own."""
    made: dict[Any, Any] = _local.__dict__.setdefault("machines", {})
    if (target, level) not in made:
        made[target, level] = _new_machine(target, level)
    return made[target, level]


def _new_machine(target: Target, level: int) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic"
    )


def assemble(
    text: str, target: Target, *, level: int = 2, threads: int = 1, load: Load | None = None,
    store: Store | None = None,
) -> Assembled:  # fmt: skip
    """Object code of a module, relocatable and without process addresses.

    `load` and `store` are a cache's: units that other programs share are looked up there.
    """
    units = split(text, threads)
    keys = [_key(u, target, level) for u in units]
    objects: list[bytes | None] = [None] * len(units)
    if len(units) > 1:
        for i, key in enumerate(keys):
            objects[i] = _known.get(key) or (load(key) if load is not None else None)
    todo = sorted((i for i, o in enumerate(objects) if o is None), key=lambda i: -len(units[i]))
    times = [0.0, 0.0]
    errors: list[BaseException] = []
    turn = threading.Lock()

    def work() -> None:
        while todo and not errors:
            try:
                with turn:
                    if not todo:
                        return
                    i = todo.pop(0)
                code, parse_ms, codegen_ms = _compile(units[i], target, level)
                objects[i] = code
                with turn:
                    times[0] += parse_ms
                    times[1] += codegen_ms
            except BaseException as error:  # raised again by the thread that asked
                errors.append(error)

    helpers = [threading.Thread(target=work) for _ in range(min(threads, len(todo)) - 1)]
    for h in helpers:
        h.start()
    work()
    for h in helpers:
        h.join()
    if errors:
        raise errors[0]
    done = [o for o in objects if o is not None]
    if len(units) > 1:
        _keep(keys, done, store)
    return Assembled(pack(done), *times)


_MOST_KNOWN = 64


def _keep(keys: list[str], objects: list[bytes], store: Store | None) -> None:
    for key, code in zip(keys, objects):
        if key not in _known:
            if len(_known) >= _MOST_KNOWN:
                _known.pop(next(iter(_known)))
            _known[key] = code
            if store is not None:
                store(key, code)


def _key(unit: str, target: Target, level: int) -> str:
    import llvmlite

    parts = ("unit", llvmlite.__version__, target.triple, target.cpu, target.features, str(level))
    return hashlib.sha256("\0".join((*parts, unit)).encode()).hexdigest()


def _compile(text: str, target: Target, level: int) -> tuple[bytes, float, float]:
    """Object code of one unit, in a context of its own."""
    import llvmlite.binding as llvm

    machine = _machine(target, level)
    start = time.perf_counter()
    module = llvm.parse_assembly(text, llvm.create_context())
    parsed = time.perf_counter()
    emit = _unguarded_emit()
    code = machine.emit_object(module) if emit is None else emit(machine, module)
    done = time.perf_counter()
    return code, 1e3 * (parsed - start), 1e3 * (done - parsed)


@functools.cache
def _unguarded_emit() -> Callable[[Any, Any], bytes] | None:
    """Code generation without llvmlite's lock; None where llvmlite looks otherwise."""
    from llvmlite.binding import ffi

    generate = getattr(ffi.lib.LLVMPY_TargetMachineEmitToMemory, "_cfn", None)
    if generate is None:
        return None

    def emit(machine: Any, module: Any) -> bytes:
        with ffi.OutputString() as problem:
            buffer = generate(machine, module, 1, problem)
            if not buffer:
                raise RuntimeError(str(problem))
        try:
            start, size = (
                ffi.lib.LLVMPY_GetBufferStart(buffer),
                ffi.lib.LLVMPY_GetBufferSize(buffer),
            )
            return ctypes.string_at(start, size)
        finally:
            ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)

    return emit


def assembly_text(text: str, target: Target, *, level: int = 2) -> str:
    """The same module as the target's assembly, for reading."""
    import llvmlite.binding as llvm

    result: str = _machine(target, level).emit_assembly(llvm.parse_assembly(text))
    return result
