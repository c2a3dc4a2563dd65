"""The command `staticgrad`: one file a verb. Each verb's module has `add_parser`, which names the
function that does the work; `main` is the one place where results and errors leave the process.

Exit codes: 0 ok, 2 usage (a missing or unusable file and errors in the user's model file too),
3 unsupported op, dtype or device, 4 numeric mismatch, 5 memory limit, 70 internal error, 130
interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from staticgrad_runtime.environment import chosen

from . import compare, compile, doctor, run, train
from .console import (
    OK,
    UsageError,
    error_text,
    exit_code,
    failure,
    json_text,
    location_of,
    success,
    use_utf8,
)
from .model import is_user_file

_EPILOG = """\
A MODEL is a Python file with a function build() that returns an sg.Program, or (for run and
compile) a graph's text, .sgir. `staticgrad VERB --help` shows examples.
"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process, so that --json gets its document."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def _parser() -> argparse.ArgumentParser:
    from staticgrad import __version__

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", action="store_true", help="print one JSON document, on failure too"
    )
    common.add_argument(
        "--traceback", action="store_true", help="show Python's traceback of an error"
    )
    parser = _Parser(
        prog="staticgrad",
        description="Static graphs of numerical models, compiled to one native call a step.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"staticgrad {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=_Parser, title="verbs"
    )
    for verb in (train, run, compile, compare, doctor):
        verb.add_parser(verbs, common)
    for verb_parser in verbs.choices.values():
        verb_parser.set_defaults(verb_parser=verb_parser)
    return parser


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. What the verb does not know is an error with the usage of that verb."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        # The value of an unknown option may have been taken for MODEL, which is then left over.
        named = [a for a in unknown if a.startswith("-")] or unknown
        options.verb_parser.error(f"unrecognized arguments: {' '.join(named)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    use_utf8()
    as_json = "--json" in arguments
    paths = list(sys.path)
    with_traceback = False
    try:
        with_traceback = _wants_traceback(arguments)
        options = _parsed(arguments)
        # What a model file prints must not mix with the document.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = options.run(options)
        _write(json_text(success(options.verb, result.fields)) if as_json else result.text)
        return OK
    except SystemExit as done:  # --help and --version have printed already
        _write("")
        return done.code if isinstance(done.code, int) else OK
    except (Exception, KeyboardInterrupt) as error:  # the process ends here: any error has a code
        return _report(error, as_json, with_traceback)
    finally:
        sys.path[:] = paths


def _wants_traceback(arguments: Sequence[str]) -> bool:
    """STATICGRAD_TRACEBACK: 1 is --traceback, 0 or nothing is not."""
    return chosen("STATICGRAD_TRACEBACK", ("0", "1"), "0") == "1" or "--traceback" in arguments


def _report(error: BaseException, as_json: bool, with_traceback: bool) -> int:
    location = location_of(error, is_user_file)
    if with_traceback:
        traceback.print_exception(error)
    print(error_text(error, location), file=sys.stderr)
    if as_json:
        _write(json_text(failure(error, location)))
    return exit_code(error)


def _write(text: str) -> None:
    """Prints to standard output; a reader that has gone away (`| head`) is no error."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["main"]
