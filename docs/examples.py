"""Pages that are one program: what a block of Python prints stands in the text block below it."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from typing import Any

_EXAMPLE = re.compile(r"(```python\n(.*?)```\n)(?:\n```text\n.*?```\n)?", re.DOTALL)


def with_outputs(page: str, file: str) -> str:
    """`page` with what its code prints, run from top to bottom as one program in `file`.

    The program is that of the blocks, joined by empty lines: its line numbers are shown in errors.
    It runs in a directory of its own.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    line = 0

    def run(found: re.Match[str]) -> str:
        nonlocal line
        code, printed = found[2], io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile("\n" * line + code, file, "exec"), names)
        line += code.count("\n") + 1
        output = printed.getvalue()
        return f"{found[1]}\n```text\n{output}```\n" if output else found[1]

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return _EXAMPLE.sub(run, page)
