"""LLVM text -> object code. No mid-end pass runs: the text is in its final form."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

from .target import Target


@dataclass(frozen=True)
class Assembled:
    object_code: bytes
    parse_ms: float
    codegen_ms: float


@functools.cache
def _machine(target: Target, level: int) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic"
    )


def assemble(text: str, target: Target, *, level: int = 2) -> Assembled:
    """Object code of a module, relocatable and without process addresses."""
    import llvmlite.binding as llvm

    machine = _machine(target, level)
    start = time.perf_counter()
    module = llvm.parse_assembly(text)
    parsed = time.perf_counter()
    code = machine.emit_object(module)
    done = time.perf_counter()
    return Assembled(code, 1e3 * (parsed - start), 1e3 * (done - parsed))


def assembly_text(text: str, target: Target, *, level: int = 2) -> str:
    """The same module as the target's assembly, for reading."""
    import llvmlite.binding as llvm

    result: str = _machine(target, level).emit_assembly(llvm.parse_assembly(text))
    return result
