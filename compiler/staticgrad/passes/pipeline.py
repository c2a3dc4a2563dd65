"""The passes over the graph, in the order in which they run.

Three kinds: *required* ones translate what has no kernel, *defining* ones may change rounding
(towards the more stable form), *preserving* ones keep every bit. All but the required ones can be
switched off by name. Scheduling and memory reuse follow on the level of kernels, in the driver.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

from staticgrad_runtime.environment import verifies

from staticgrad.ir.errors import ArgumentError, StaticgradError, VerifyError
from staticgrad.ir.graph import Graph
from staticgrad.ops.public import listed
from staticgrad.rewrite.driver import RewriteLoopError

from .canonicalize import canonicalize
from .cse import cse
from .dce import dce
from .expand import expand
from .fold import Evaluate, fold
from .fuse import fuse
from .layout import layout
from .merge_loops import merge_loops
from .mode import bind_mode
from .simplify import simplify
from .stabilize import stabilize

Observe = Callable[[int, str, Graph], None]


class PassError(StaticgradError):
    """A pass failed inside: a bug here, not in the user's program. Names the command that repeats
    it."""


class Options(NamedTuple):
    """What single passes need to know beside the graph."""

    training: bool | None = None
    evaluate: Evaluate | None = None


class Pass(NamedTuple):
    """One line of the pipeline; `kind` is "required", "defining" or "preserving"."""

    name: str
    kind: str
    run: Callable[[Graph, Options], Graph]


PASSES: tuple[Pass, ...] = (
    Pass("bind_mode", "required", lambda g, o: bind_mode(g, o.training)),
    Pass("merge_loops", "preserving", lambda g, o: merge_loops(g)),
    Pass("canonicalize", "defining", lambda g, o: canonicalize(g)),
    Pass("stabilize", "defining", lambda g, o: stabilize(g)),
    Pass("expand", "required", lambda g, o: expand(g)),
    Pass("canonicalize", "defining", lambda g, o: canonicalize(g)),
    Pass("simplify", "defining", lambda g, o: simplify(g)),
    Pass("fold", "preserving", lambda g, o: fold(g, o.evaluate)),
    Pass("cse", "preserving", lambda g, o: cse(g)),
    Pass("dce", "preserving", lambda g, o: dce(g)),
    Pass("layout", "preserving", lambda g, o: layout(g)),
    Pass("fuse", "preserving", lambda g, o: fuse(g)),
)  # fmt: skip


def run_pipeline(
    graph: Graph, *, training: bool | None = None, disable: Iterable[str] = (),
    also: Iterable[str] = (), verify: bool | None = None, observe: Observe | None = None,
    evaluate: Evaluate | None = None,
) -> Graph:  # fmt: skip
    """The graph after all passes: ready to be lowered to kernels.

    training  the mode for `bind_mode`; None: training where there are updates
    disable   names of passes to leave out; every place of a pass that runs twice
    also      further names that `disable` may hold: passes of the driver that come later
    verify    whether the graph is checked after every pass; None: if STATICGRAD_VERIFY=1
    observe   called with (index, name, graph) for the declared graph and after each pass
    evaluate  compiles a graph without inputs and runs it, for `fold`; None: heavy sub-graphs of
              constants are left to the program

    Raises `ArgumentError` for a name that is no pass or that can't be left out, `PassError` where a
    pass fails inside.
    """
    off = checked_names(disable, also)
    if verify is None:
        verify = verifies()
    options = Options(training, evaluate)
    if verify:
        _verify(graph)
    if observe is not None:
        observe(0, "declared", graph)
    for index, step in enumerate(PASSES, 1):
        if step.name not in off:
            graph = _run(step, graph, options, verify)
        if observe is not None:
            observe(index, step.name, graph)
    return graph


def checked_names(disable: Iterable[str], also: Iterable[str] = ()) -> frozenset[str]:
    """The names as a set. Raises `ArgumentError` where one is no pass that can be left out."""
    off = frozenset(listed(disable, "disable", "names of passes"))
    valid = [*dict.fromkeys(p.name for p in PASSES if p.kind != "required"), *also]
    for name in sorted(off, key=str):
        if any(p.name == name and p.kind == "required" for p in PASSES):
            raise ArgumentError(f"disable: the pass {name!r} can't be left out; {_valid(valid)}")
        if name not in valid:
            raise ArgumentError(f"disable: there is no pass {name!r}; {_valid(valid)}")
    return off


def _valid(names: list[str]) -> str:
    return f"those that can are {', '.join(names)}"


def _run(step: Pass, graph: Graph, options: Options, verify: bool) -> Graph:
    try:
        result = step.run(graph, options)
        if verify:
            _verify(result)
    except (VerifyError, RewriteLoopError, PassError) as error:
        raise _failure(step, graph, options, error) from error
    except StaticgradError:
        raise  # what is wrong is in the user's program, and says so
    except Exception as error:  # whatever else a pass raises is a bug in it
        raise _failure(step, graph, options, error) from error
    return result


def _verify(graph: Graph) -> None:
    from staticgrad.ir.verify import infer_by, verify_graph
    from staticgrad.ops import registry

    verify_graph(graph, infer_by(registry))


def _failure(step: Pass, graph: Graph, options: Options, error: Exception) -> PassError:
    """Writes the graph that the pass failed on, and says how to repeat it."""
    from staticgrad.ir.printer import save_graph

    directory = tempfile.mkdtemp(prefix="staticgrad-")
    path = os.path.join(directory, f"before_{step.name}.sgir")
    save_graph(graph, path)
    call = f"repeat({path!r}, {step.name!r}, training={options.training!r})"
    return PassError(
        f"the pass {step.name!r} failed: {type(error).__name__}: {error}\n"
        f"  the graph before it: {path}\n"
        f'  to repeat: python -c "from staticgrad.passes.pipeline import repeat; {call}"'
    )


def repeat(path: str, name: str, *, training: bool | None = None) -> Graph:
    """Runs one pass on a graph's text: what the message of a `PassError` asks for."""
    from staticgrad.ir.parser import load_graph
    from staticgrad.ops import registry

    graph = load_graph(path, registry)
    for step in PASSES:
        if step.name == name:
            return step.run(graph, Options(training))
    raise ArgumentError(f"there is no pass {name!r}")
