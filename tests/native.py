"""Functions of a module of generated code, compiled as tests call them."""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm
from staticgrad.codegen.builder import Module


def compiled(module: Module) -> tuple[Any, str]:
    """An engine that has the module's functions, which are all to be seen, and its text."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    text = re.sub(r"^define internal", "define", module.to_text(), flags=re.M)
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    target = module.target
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2
    )
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine, text
