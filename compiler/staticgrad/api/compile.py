"""`compile`: from a declared graph to a native program that is called like a function."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from staticgrad.codegen.assemble import assemble
from staticgrad.codegen.entry import entry_object
from staticgrad.codegen.program import emit_program
from staticgrad.codegen.target import host_target
from staticgrad.ir.graph import Graph
from staticgrad.passes.expand import expand
from staticgrad.passes.fuse import fuse
from staticgrad.passes.lowering import lower
from staticgrad.passes.lowering.manifest import build_manifest
from staticgrad.passes.mode import bind_mode
from staticgrad.passes.schedule import schedule
from staticgrad_runtime.artifact import Artifact
from staticgrad_runtime.executable import Executable


def compile_graph(graph: Graph, *, training: bool | None = None, disable: Sequence[str] = ()) -> Executable:
    target = host_target()
    t0 = time.perf_counter()
    g = bind_mode(graph, training)
    g = expand(g)
    if "fuse" not in disable:
        g = fuse(g)
    t1 = time.perf_counter()
    program = schedule(lower(g, target), in_place="in_place" not in disable)
    t2 = time.perf_counter()
    text, called = emit_program(program, target)
    t3 = time.perf_counter()
    made = assemble(text, target)
    report = {"ms": {"passes": 1e3 * (t1 - t0), "lower": 1e3 * (t2 - t1), "emit": 1e3 * (t3 - t2),
              "parse": made.parse_ms, "codegen": made.codegen_ms}}
    manifest, blobs = build_manifest(program, g, target, called, report)
    artifact = Artifact(manifest, made.object_code, blobs, entry_code=entry_object(target))
    exe = Executable(artifact, [v.node.payload for v in g.state])
    global last
    last = (g, program, text)
    return exe
last: Any = None
