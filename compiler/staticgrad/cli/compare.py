"""`staticgrad compare MODEL`: one model as a static graph and in the dynamic mode."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from staticgrad_runtime.arrays import ConversionError, cast_checked

from staticgrad.api.program import Program
from staticgrad.ir.errors import ArgumentError
from staticgrad.ir.node import Value

from .console import MismatchError, Result, UsageError, shown
from .model import Model, ModelFileError, iterate, load_model, user_code
from .numbers import count, positive

if TYPE_CHECKING:
    from staticgrad.compare.subject import Subject

_EXAMPLES = """\
examples:
  staticgrad compare samples/linear_regression.py
  staticgrad compare samples/rgb_convnet.py -o compare.html
  staticgrad compare model.py --threads 1 --json

What is compared is one step on the model's first batch. Where build() gives the program `loss` (a
function of a batch) and `optimizer`, the dynamic mode calls that function, walks back along the
tape and lets the optimiser step; without them it replays the declared graph node by node, and a
step ends with the gradients.

Times are medians of interleaved repetitions; those up to the first result are of new processes
with a cache of their own, empty at first. The model's state is afterwards as before, and no cache
of yours is touched. Ends with 4 where values or gradients of the two modes disagree.
"""

# Repetitions of warm steps, and rounds of new processes.
_REPETITIONS, _ROUNDS = 15, 3
_FAST_REPETITIONS, _FAST_ROUNDS = 3, 1
_MEASURE = "import sys; from staticgrad.cli.compare import measure; measure(sys.argv[1:])"


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "compare",
        parents=[common],
        help="static against dynamic: values, gradients, time, memory, build cost, errors",
        description="Runs one model both ways: as a compiled static graph and in the dynamic mode.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a Python file with build()")
    parser.add_argument("-o", "--output", metavar="PAGE", help="write the findings as an HTML page")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of both modes (default: STATICGRAD_NUM_THREADS, else all cores)",
    )
    parser.add_argument(
        "--seed", type=count, default=0, metavar="N", help="of parameters and batch (default: 0)"
    )
    parser.add_argument(
        "--fast", action="store_true",
        help=f"{_FAST_REPETITIONS} repetitions in place of {_REPETITIONS}, {_FAST_ROUNDS} round of "
        f"new processes in place of {_ROUNDS}: rougher times, the rest as ever",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Result:
    """Measures, and writes the page."""
    from staticgrad.compare.inside import start
    from staticgrad.compare.page import as_page
    from staticgrad.compare.sections import sections
    from staticgrad.compare.text import as_text

    _check_output(options.output)
    with _environment(options.threads), user_code():
        found = compare(
            options.model, options.seed,
            _FAST_REPETITIONS if options.fast else _REPETITIONS,
            _FAST_ROUNDS if options.fast else _ROUNDS,
        )  # fmt: skip
    title = f"{found['model']}: static against dynamic"
    parts = sections(found)
    if options.output is not None:
        _write(options.output, as_page(title, of_text(found), parts, start()))
    found["page"] = None if options.output is None else shown(options.output)
    text = as_text(title, of_text(found), parts)
    if options.output is not None:
        text += f"\n\n-> {shown(options.output)}"
    return Result(found, text)


def of_text(found: dict[str, Any]) -> str:
    """What was compared, and where."""
    batch = ", ".join(
        f"{b['name']} {b['dtype']}{b['shape']}" for b in found["batch"]
    ) or "no inputs"  # fmt: skip
    step = "forward, backward, update" if found["step"] == "update" else "forward, backward"
    how = "" if found["dynamic"] == "called" else "; dynamic: the declared graph, node by node"
    host, threads = found["host"], found["threads"]
    return (
        f"one step ({step}) on {batch}{how}; "
        f"{threads} thread{'' if threads == 1 else 's'} of a {host['llvm_cpu']} host"
    )


def compare(path: str, seed: int, repetitions: int, rounds: int) -> dict[str, Any]:
    """All that is found out about a model file, as plain data: times are medians of `repetitions`
    of warm steps, and of `rounds` of new processes. Raises `MismatchError` where the modes
    disagree: then no other figure of them means anything."""
    from staticgrad_runtime.workers import thread_count, usable_cpus

    from staticgrad.codegen.target import host_target
    from staticgrad.compare import agreement, build, counts, inside, mistakes, passes, shapes

    subject, model = _subject(path, seed)
    _say("values and gradients")
    agreed = agreement.agreement(subject)
    if not agreed["agrees"]:
        raise MismatchError(agreement.mismatch_text(agreed))
    _say("time to the first result")
    first = _first_results(subject, path, seed, rounds)
    _say("steps, calls and memory")
    steady = build.steady(subject, repetitions)
    python = counts.python_calls(subject)
    native = _child(subject, path, seed, "calls", {"STATICGRAD_ENTRY": "portable"})
    used = _memory(counts.memory(subject), native)
    _say("shapes and mistakes")
    changes, wrong = shapes.shape_changes(subject), mistakes.mistakes(subject)
    _say("optimisations")
    saved = passes.optimisations(subject, repetitions)
    return {
        "model": model.name,
        "host": {"llvm_cpu": host_target().cpu, "cores": usable_cpus()},
        "threads": thread_count(),
        "step": "update" if subject.updates else "gradients",
        "dynamic": "replayed" if subject.replays else "called",
        "batch": [
            {"name": v.node.attrs["name"], "dtype": str(a.dtype), "shape": list(a.shape)}
            for v, a in zip(subject.train.inputs, subject.batch)
        ],
        "agreement": agreed,
        "build": first,
        "steady_ms": steady,
        "calls": {"python": python, "native": native},
        "memory": used,
        "shapes": changes,
        "mistakes": wrong,
        "optimisations": saved,
        "inside": {
            "snippets": inside.snippets(), "value": inside.value_of_the_model(subject)
        },
    }  # fmt: skip


def _memory(measured: dict[str, Any], native: dict[str, Any]) -> dict[str, Any]:
    """With the arenas, which only a counted step knows of all programs of the dynamic mode."""
    static, dynamic = measured["static"], measured["dynamic"]
    static["arena_bytes"] = static["planned_bytes"]
    dynamic["arena_bytes"] = native["dynamic"]["arena_bytes"]
    for mode in (static, dynamic):
        mode["total_bytes"] = mode["arena_bytes"] + mode["allocated_bytes"]
    return measured


def _say(what: str) -> None:
    print(f"compare: {what}", file=sys.stderr, flush=True)


# --- the model and its batch ----------------------------------------------------------------------


def _subject(path: str, seed: int) -> tuple[Subject, Model]:
    from staticgrad.compare.subject import Subject

    if path.endswith(".sgir"):
        raise UsageError(f"{shown(path)}: a graph's text can be run and compiled; to compare, give "
                         "a Python file with build()")  # fmt: skip
    model = load_model(path, seed=seed)
    program = model.program
    assert program is not None
    if program.train is None:
        raise UsageError(f"{model.path}: build() gives no training graph (sg.Program(train=...))")
    return Subject(program, _first_batch(model, program, seed)), model


def _first_batch(model: Model, program: Program, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """The first batch of the first epoch, in the dtypes of the declared inputs."""
    assert program.train is not None
    inputs = program.train.inputs
    if not inputs:
        return ()
    if program.train_batches is None:
        names = ", ".join(v.node.attrs["name"] for v in inputs)
        raise UsageError(f"{model.path}: the training graph has inputs ({names}), but build() "
                         "gives no train_batches")  # fmt: skip
    with user_code():
        batches = program.train_batches(np.random.default_rng(seed))
    for batch in iterate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != len(inputs):
            count = len(batch) if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise ModelFileError(
                f"train_batches: a batch is a tuple of {len(inputs)} arrays, got {count}"
            )
        return tuple(_converted(a, v) for a, v in zip(batch, inputs))
    raise ArgumentError(f"{model.path}: train_batches gives no batch")


def _converted(value: Any, v: Value) -> Any:
    """An array of a batch in the dtype of its input. Empty ones are refused: their loss is no
    number, and no axis of theirs can grow."""
    name = v.node.attrs["name"]
    try:
        array = np.array(cast_checked(np.asarray(value), v.dtype.numpy), order="C")
    except (ConversionError, ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(
            f"train_batches: input {name!r}: expected {v.type}, got {error}"
        ) from None
    if not array.size:
        raise ModelFileError(
            f"train_batches: input {name!r}: the first batch is empty, of shape {array.shape}"
        )
    return array


# --- new processes --------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment(threads: int | None) -> Iterator[None]:
    """For this process and those that it starts: a cache of object code that begins empty, and the
    number of threads."""
    names = ("STATICGRAD_CACHE", "STATICGRAD_CACHE_DIR", "STATICGRAD_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="staticgrad-compare-") as folder:
        os.environ["STATICGRAD_CACHE_DIR"] = folder
        os.environ.pop("STATICGRAD_CACHE", None)
        if threads is not None:
            os.environ["STATICGRAD_NUM_THREADS"] = str(threads)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _first_results(
    subject: Subject, path: str, seed: int, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """For each mode the way to the first result: with an empty cache, then with what that left."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        mode: {"cold": [], "warm": []} for mode in ("static", "dynamic")
    }
    for _ in range(rounds):
        for mode, states in found.items():
            with tempfile.TemporaryDirectory(prefix="staticgrad-compare-") as folder:
                for times in states.values():
                    cache = {"STATICGRAD_CACHE_DIR": folder}
                    times.append(_child(subject, path, seed, mode, cache))
    return {
        mode: {
            state: {stage: median(t[stage] for t in times) for stage in times[0]}
            for state, times in states.items()
        }
        for mode, states in found.items()
    }


def _child(
    subject: Subject, path: str, seed: int, task: str, environment: dict[str, str]
) -> dict[str, Any]:
    """What `task` finds in a new process."""
    command = [sys.executable, "-c", _MEASURE, task, path, str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace",
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    with subject.unchanged():
        _task(subject, task)  # what is wrong with the model is raised here, with its line
    raise RuntimeError(
        f"measuring {task} in a new process ended with {done.returncode}:\n{done.stderr}"
    )


def _task(subject: Subject, task: str) -> dict[str, Any]:
    from staticgrad.compare import build, counts

    if task == "calls":
        return counts.native_calls(subject)
    return dict(build.first_result(subject, task))


def measure(arguments: Sequence[str]) -> None:
    """What a new process does: one task, whose findings it prints as JSON."""
    task, path, seed = arguments
    with contextlib.redirect_stdout(sys.stderr):  # the model file may print
        subject, _ = _subject(path, int(seed))
        found = _task(subject, task)
    print(json.dumps(found))


# --- the page -------------------------------------------------------------------------------------


def _check_output(path: str | None) -> None:
    if path is None:
        return
    if os.path.splitext(path)[1] not in (".html", ".htm"):
        raise UsageError(f"--output {shown(path)}: expected a name that ends in .html")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"--output {shown(path)}: the folder {shown(folder)} does not exist")


def _write(path: str, text: str) -> None:
    """To a temporary name, then renamed: no reader sees a part of the file."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, leaves no half-written file
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


__all__ = ["add_parser", "compare", "measure", "run"]
