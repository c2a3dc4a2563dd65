"""`python -m benchmarks`: runs workloads here and in other frameworks, and tells who is faster.

Ends with 0 where all went well, 2 for arguments or files that are no good, 4 where values differ
between frameworks, 70 where staticgrad fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from . import compare, page, plot, report, results, sweep, threads
from .client import WorkerError
from .drivers import OURS, PEERS
from .measure import Options, run
from .suite import BY_NAME, WORKLOADS, chosen
from .workload import Workload

OK, USAGE, MISMATCH, FAILED, INTERRUPTED = 0, 2, 4, 70, 130
_EXAMPLES = """\
examples:
  python -m benchmarks                               all workloads; results in build/benchmarks
  python -m benchmarks --peer-python ../p/bin/python PyTorch and JAX from another installation
  python -m benchmarks --only mlp,cnn --threads 1,2  two workloads, with one thread and with two
  python -m benchmarks --only 'matmul*' --quick      the matrix products, roughly
  python -m benchmarks compare old.json new.json     what became faster or slower
  python -m benchmarks page results.json             writes docs/performance.md
  python -m benchmarks sweep chain mlp nodes         what a unit of work costs over sizes
  python -m benchmarks threads --only mlp,gpt        what a second thread brings to each kernel
"""


class UsageError(Exception):
    """Arguments or files that are no good."""


def _usage() -> str:
    commands = ",".join(_COMMANDS)
    return f"%(prog)s [options]\n       %(prog)s {{{commands}}} [options]  (--help tells which)"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", usage=_usage(), description=(__doc__ or "").partition(": ")[2],
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    add("--list", action="store_true", help="name the workloads, and run none")
    add("--only", default="", metavar="NAME,...", help="workloads (patterns) or groups")
    add("--peers", default=",".join(PEERS), metavar="NAME,...", help="default: %(default)s")
    add("--peer-python", metavar="PATH", help="the Python that has PyTorch and JAX; default: this")
    add("--threads", metavar="N,...", help="default: all cores; matrix products with one too")
    add("--quick", action="store_true", help="few and short repetitions, to see that it works")
    add("--repetitions", type=int, metavar="N", help="default: 30; 3 with --quick")
    add("--no-first", action="store_true", help="no fresh processes: no first call, no memory")
    add("--output", default="build/benchmarks", metavar="DIR",
        help="where results.json and ratios.svg, .png go; default: %(default)s")  # fmt: skip
    add("--json", action="store_true", help="print the results as JSON, not as tables")
    return made


def _subparser(command: str, about: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks {command}", description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _threads(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    most = results.usable_cores()
    parts = _names(text)
    if not parts or not all(p.isdecimal() and 1 <= int(p) <= most for p in parts):
        raise UsageError(f"--threads {text}: expected numbers from 1 to {most}, as in 1,{most}")
    return tuple(sorted({int(p) for p in parts}))


def options_of(given: argparse.Namespace) -> Options:
    """Raises UsageError."""
    peers = _names(given.peers)
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise UsageError(f"--peers {', '.join(unknown)}: expected some of {', '.join(PEERS)}")
    if given.repetitions is not None and given.repetitions < 1:
        raise UsageError(f"--repetitions {given.repetitions}: expected at least 1")
    python = given.peer_python or sys.executable
    if shutil.which(python) is None:
        raise UsageError(f"--peer-python {python}: there is no such program")
    if os.sep in python:  # workers run in another directory
        python = os.path.abspath(python)
    quick = given.quick
    return Options(
        sys.executable, python, peers, _threads(given.threads), quick=quick,
        repetitions=given.repetitions or (3 if quick else 30),
        repetition_s=0.002 if quick else 0.02, patience_s=2.0 if quick else 20.0,
        ceiling_s=0.005 if quick else 0.05, fresh=0 if given.no_first else 1 if quick else 3,
    )  # fmt: skip


def _chosen(only: str) -> list[Workload]:
    try:
        return chosen(_names(only))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _directory(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}") from None
    return path


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def list_workloads() -> int:
    width = max(len(w.name) for w in WORKLOADS)
    for w in WORKLOADS:
        print(f"{w.name:{width}}  {w.group:12}  {w.about}")
    return OK


def run_command(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    if given.list:
        return list_workloads()
    workloads = _chosen(given.only)
    options = options_of(given)
    output = _directory(given.output)
    path = output / "results.json"
    document = run(workloads, options, _note, lambda document: results.write(document, path))
    pictures = [output / "ratios.svg", output / "ratios.png"]
    if not _can_draw():
        _note('no picture: matplotlib is not installed (pip install -e ".[bench]")')
    elif plot.draw(document, pictures):
        _note(f"wrote {', '.join(map(str, pictures))}")
    _note(f"wrote {path}")
    print(results.dumped(document) if given.json else report.text(document), end="")
    return exit_code(document)


def exit_code(document: results.Document) -> int:
    """What the run as a whole came to: a peer that fails is told of, and no failure of ours."""
    found = list(results.failures(document))
    if any(f["status"] == "failed" for _, name, f in found if name == OURS):
        return FAILED
    return MISMATCH if any(f["status"] == "differs" for _, _, f in found) else OK


def compare_command(arguments: list[str]) -> int:
    made = _subparser("compare", compare.__doc__)
    made.add_argument("old", help="results.json of a run")
    made.add_argument("new", help="results.json of a later one")
    given = made.parse_args(arguments)
    print(compare.text(results.read(given.old), results.read(given.new)), end="")
    return OK


def page_command(arguments: list[str]) -> int:
    made = _subparser("page", page.__doc__)
    made.add_argument(
        "results", nargs="+", help="results.json of a run, or of several over different workloads "
        "or numbers of threads; of what several have, the last counts",
    )  # fmt: skip
    made.add_argument(
        "--first", metavar="RESULTS", nargs="+", help="take first calls and memory from these "
        "runs, where the others have none",
    )  # fmt: skip
    made.add_argument(
        "--sweep", metavar="SWEEP", nargs="+", help="sweep.json of one run or several: what a unit "
        "of work costs at each size",
    )  # fmt: skip
    made.add_argument(
        "--threads", metavar="THREADS", nargs="+", help="threads.json of one run or several: what "
        "threads bring to each kernel",
    )  # fmt: skip
    made.add_argument(
        "--output", metavar="PATH", default=str(page.PAGE), help="the page to write; its picture "
        "goes to images/ beside it, with the page's name; default: docs/performance.md",
    )  # fmt: skip
    given = made.parse_args(arguments)
    document = results.joined([results.read(path) for path in given.results], list(BY_NAME))
    others = [results.read(path) for path in given.first or ()]
    by_kernel = None if given.threads is None else threads.read(given.threads)
    sweeps = None if given.sweep is None else sweep.read(given.sweep)
    if any(d is not None and d["quick"] for d in (document, *others, by_kernel, sweeps)):
        raise UsageError("a quick run's figures are not for publishing; run without --quick")
    if others:
        document = page.with_first_calls(document, others)
    for line in page.missing(document, by_kernel):
        _note(f"warning: {line}")
    if not _can_draw():
        raise UsageError('the picture needs matplotlib (pip install -e ".[bench]")')
    try:
        written = page.write(document, Path(given.output), by_kernel, sweeps)
    except OSError as error:
        raise UsageError(f"--output {error.filename}: {error.strerror}") from None
    for path in written:
        print(f"wrote {path}")
    return OK


def sweep_command(arguments: list[str]) -> int:
    made = _subparser("sweep", sweep.__doc__)
    add = made.add_argument
    add("sweeps", nargs="*", metavar="SWEEP", help="some of these, or what their names begin with "
        f"(nodes, softmax): {', '.join(s.name for s in sweep.SWEEPS)}; default: all")  # fmt: skip
    add("--threads", type=int, default=1, help="default: %(default)s")
    add("--quick", action="store_true", help="three points of each, to see that it works")
    add("--output", default="build/benchmarks", metavar="DIR",
        help="where sweep.json goes; default: %(default)s")  # fmt: skip
    add("--json", action="store_true", help="print JSON, not tables")
    given = made.parse_args(arguments)
    (threads,) = _threads(str(given.threads)) or (1,)
    try:
        sweeps = sweep.chosen(given.sweeps)
    except ValueError as error:
        raise UsageError(str(error)) from None
    path = _directory(given.output) / "sweep.json"
    document = sweep.run(sweeps, threads, _note, sweep.QUICK if given.quick else sweep.Effort())
    results.write(document, path)
    _note(f"wrote {path}")
    print(results.dumped(document) if given.json else sweep.text(document), end="")
    return OK


def threads_command(arguments: list[str]) -> int:
    made = _subparser("threads", threads.__doc__)
    add = made.add_argument
    add("--only", default="", metavar="NAME,...", help="workloads (patterns) or groups")
    add("--threads", type=int, metavar="N", help="to compare with one; default: all cores")
    add("--quick", action="store_true", help="one short round, to see that it works")
    add("--output", default="build/benchmarks", metavar="DIR",
        help="where threads.json goes; default: %(default)s")  # fmt: skip
    add("--json", action="store_true", help="print JSON, not a table")
    given = made.parse_args(arguments)
    workloads = _chosen(given.only)
    count = results.usable_cores() if given.threads is None else given.threads
    (count,) = _threads(str(count)) or (1,)
    if count == 1:
        raise UsageError("threads: there is nothing to compare with one thread's times but one")
    path = _directory(given.output) / "threads.json"
    effort = threads.QUICK if given.quick else threads.Effort()
    document = threads.run(workloads, count, _note, effort)
    results.write(document, path)
    _note(f"wrote {path}")
    print(results.dumped(document) if given.json else threads.text(document), end="")
    return OK


_COMMANDS = {"compare": compare_command, "page": page_command, "sweep": sweep_command,
             "threads": threads_command}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = _COMMANDS.get(arguments[0]) if arguments else None
    try:
        return command(arguments[1:]) if command else run_command(arguments)
    except (UsageError, results.DocumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; the workloads that were done are in results.json", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
