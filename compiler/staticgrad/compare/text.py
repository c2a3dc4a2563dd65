"""The sections on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .sections import Section, Table

_WIDTH = 100
_NARROWEST = 30


def as_text(title: str, of: str, sections: Sequence[Section]) -> str:
    """All sections, numbered. `of` says what was measured where."""
    parts = [title, *textwrap.wrap(of, _WIDTH)]
    for number, section in enumerate(sections, 1):
        lines = ["", f"{number}. {section.title}", ""]
        lines += textwrap.wrap(section.summary, _WIDTH)
        for table in section.tables:
            lines += ["", *_table(table)]
        for code in section.codes:
            lines += ["", f"  {code.title}", *_indented(code.code, "    ")]
            lines += _indented(code.output, "      > ")
        for note in section.notes:
            lines += ["", *textwrap.wrap(note, _WIDTH - 2, initial_indent="  ",
                                         subsequent_indent="  ")]  # fmt: skip
        parts += lines
    return "\n".join(parts)


def _indented(text: str, by: str) -> list[str]:
    return [f"{by}{line}".rstrip() for line in text.splitlines()]


def _table(table: Table) -> list[str]:
    """Columns as wide as their cells; a last column that is too long goes on below."""
    header, rows = table.header, table.rows
    lines = [f"  {table.title}"] if table.title else []
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    start = 2 + sum(w + 2 for w in widths[:-1])
    last_width = max(_NARROWEST, min(widths[-1], _WIDTH - start))
    for number, row in enumerate((header, *rows)):
        *cells, last = row
        wrapped = textwrap.wrap(last, last_width) or [""]
        first = "  " + "".join(f"{c:{w}s}  " for c, w in zip(cells, widths))
        lines.append((first + wrapped[0]).rstrip())
        lines += [" " * start + more for more in wrapped[1:]]
        if number == 0:
            lines.append("  " + "-" * (start - 2 + last_width))
    return lines


__all__ = ["as_text"]
