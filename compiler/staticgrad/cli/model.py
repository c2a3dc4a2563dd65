"""Model files: a Python file's `build()`, or a graph's text; and the errors of users' code."""

from __future__ import annotations

import io
import linecache
import os
import re
import sys
import tokenize
import traceback
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from staticgrad_runtime.state import StateCell

from staticgrad.api.program import Program, graph_cells
from staticgrad.ir.dtype import dtype
from staticgrad.ir.errors import StaticgradError, UnsupportedError
from staticgrad.ir.graph import Graph

from .console import UsageError, shown

T = TypeVar("T")

_MODULE = "staticgrad_model"
_CLI = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = tuple(
    os.path.dirname(os.path.abspath(sys.modules[name].__file__ or "")) + os.sep
    for name in ("staticgrad", "staticgrad_runtime")
)
_user_roots: set[str] = set()  # directories of the models that this process has loaded


class ModelFileError(UsageError):
    """An exception that the user's own code raised."""


@dataclass(frozen=True)
class Model:
    """A loaded model: a program, or a single graph that was read from text."""

    name: str
    path: str
    program: Program | None
    text_graph: Graph | None = None

    def graph(self, wanted: str | None, default: str) -> tuple[str, Graph]:
        """The graph that a verb works on, and what it is called."""
        if self.text_graph is not None:
            if wanted is not None:
                raise UsageError(f"{self.path} holds one graph; --graph is for Python files")
            return "graph", self.text_graph
        assert self.program is not None
        graphs = {"train": self.program.train, "predict": self.program.predict}
        if wanted is None:
            wanted = (
                default if graphs[default] is not None else next(n for n in graphs if graphs[n])
            )
        chosen = graphs[wanted]
        if chosen is None:
            raise UsageError(f"{self.path}: build() gives no {wanted} graph")
        return wanted, chosen

    def cells(self) -> dict[str, StateCell]:
        """The state by its name in checkpoints."""
        if self.text_graph is not None:
            return graph_cells(self.text_graph)
        assert self.program is not None
        return self.program.cells()


def load_model(path: str, *, seed: int = 0) -> Model:
    """Reads a model file. The random generator is seeded first, so that the same file and seed give
    the same parameters in every process."""
    from staticgrad.ops import random

    name, suffix = os.path.splitext(os.path.basename(path))
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "does not exist"
        raise UsageError(f"the model file {shown(path)} {what}")
    if suffix not in (".py", ".sgir"):
        raise UsageError(f"{shown(path)}: a model file ends in .py or .sgir")
    random.seed(seed)
    if suffix == ".sgir":
        return Model(shown(name), shown(path), None, _read_graph(path))
    return Model(shown(name), shown(path), _build(path))


# A statement of a graph's text up to its op, and what is no code in it.
_STATEMENT = re.compile(r"^\s*%[^=]*=\s*([^\W\d]\w*)\s*\(")
_NO_CODE = re.compile(r'"(?:[^"\\]|\\.)*"|#.*')
_TYPE = re.compile(r"\b([a-z]\w*)\[")


def _read_graph(path: str) -> Graph:
    """The graph of a text. Ops and dtypes that don't exist here are listed all at once, where the
    parser would stop at the first."""
    from staticgrad.api.files import load_graph
    from staticgrad.ops.registry import all_ops

    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    known, found = all_ops(), []
    for number, line in enumerate(lines, 1):
        code = _NO_CODE.sub(lambda m: " " * len(m[0]), line)
        op = _STATEMENT.match(code)
        if op and op[1] not in known:
            found.append(f"op {op[1]!r} (line {number})")
        found += [f"dtype {d} (line {number})" for d in _TYPE.findall(code) if _is_refused(d)]
    if found:
        raise UnsupportedError(f"{shown(path)}: not supported: {', '.join(found)}")
    return load_graph(path)


def _is_refused(name: str) -> bool:
    """Whether it is a dtype that exists, but not here; what is no dtype at all is the parser's."""
    try:
        dtype(name)
    except UnsupportedError:
        return True
    except StaticgradError:
        return False
    return False


def _build(path: str) -> Program:
    module = _execute(path)
    build = getattr(module, "build", None)
    if not callable(build):
        raise UsageError(f"{shown(path)} has no function build(), which returns an sg.Program")
    with user_code():
        program = build()
    if not isinstance(program, Program):
        raise UsageError(
            f"{shown(path)}: build() returned {type(program).__name__}, expected an sg.Program"
        )
    return program


def _execute(path: str) -> types.ModuleType:
    """Runs the file as Python runs a script: with its folder first on the path."""
    full = os.path.abspath(path)
    folder = os.path.dirname(full)
    with open(full, "rb") as file:
        source = file.read()
    if b"\0" in source:
        raise ModelFileError(f"{shown(path)}: this is no Python source: it holds null bytes")
    # The name that locations carry is text; `__file__` is what the system opens.
    name = shown(full)
    module = types.ModuleType(_MODULE)
    module.__file__ = full
    sys.modules[_MODULE] = module
    sys.path.insert(0, folder)
    _user_roots.add(shown(folder))
    with user_code():
        code = compile(source, name, "exec", dont_inherit=True)
        _remember_lines(name, source)
        exec(code, module.__dict__)
    return module


def _remember_lines(name: str, source: bytes) -> None:
    """So that tracebacks show lines even where `name` can't be opened: in an ASCII locale."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    lines = io.TextIOWrapper(io.BytesIO(source), encoding).readlines()
    linecache.cache[name] = (len(source), None, lines, name)


# --- errors of users' code ------------------------------------------------------------------------


def is_user_file(file: str) -> bool:
    """Whether a code object's file belongs to a loaded model rather than to a library."""
    file = shown(file)
    inside = any(file.startswith(root + os.sep) for root in _user_roots)
    return inside and "site-packages" not in file and not file.startswith(_PACKAGES)


@contextmanager
def user_code() -> Iterator[None]:
    """Around calls into a model file: what it raises becomes a `ModelFileError` that names its
    line. staticgrad's own errors pass, and so does a failure inside of staticgrad."""
    try:
        yield
    except (StaticgradError, MemoryError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        if not is_user_file(error.filename or ""):
            raise
        location = f"{error.filename}:{error.lineno}"
        raise ModelFileError(_syntax_text(error), location=location) from error
    except (Exception, SystemExit) as error:  # users' code raises anything
        if _is_internal(error):
            raise
        raise _located(error) from error


def iterate(values: Iterable[T]) -> Iterator[T]:
    """`values`, each taken in `user_code`."""
    with user_code():
        iterator = iter(values)
    while True:
        with user_code():
            try:
                value = next(iterator)
            except StopIteration:
                return
        yield value


def _is_internal(error: BaseException) -> bool:
    """Whether staticgrad's code (not its command line's) raised it, called by the user's or not."""
    internal = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_user_file(file):
            internal = False
        elif frame.f_code.co_name == "__getattr__":
            continue  # a name that its caller misspelt: `sg.exponential`
        elif file.startswith(_PACKAGES) and not file.startswith(_CLI):
            internal = True
    return internal


def _located(error: BaseException) -> ModelFileError:
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_user_file(frame.f_code.co_filename)
    ]
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SystemExit):
        what = f"the model file left the process: sys.exit({error.code!r})"
    if not frames:
        return ModelFileError(what)
    code, line = frames[-1]
    source = linecache.getline(code.co_filename, line).strip()
    file = shown(code.co_filename)
    where = f"{os.path.basename(file)}:{line}"
    inside = "" if code.co_name == "<module>" else f" in {code.co_name}"
    text = f"{where}{inside}: {what}" + (f"\n    {source}" if source else "")
    return ModelFileError(text, location=f"{file}:{line}")


def _syntax_text(error: SyntaxError) -> str:
    where = f"{os.path.basename(error.filename or '')}:{error.lineno}"
    source = (error.text or "").strip()
    return f"{where}: {type(error).__name__}: {error.msg}" + (f"\n    {source}" if source else "")


def call_user(function: Any, *arguments: Any) -> Any:
    """Calls a function of the model file."""
    with user_code():
        return function(*arguments)
