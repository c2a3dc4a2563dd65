"""The sections as one HTML file: no script, no external resource, readable on light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .sections import Bars, Code, Section, Table

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --line: #d0d7de;
  --card: #f6f8fa; --back: #ffffff; --static: #0969da; --dynamic: #bc4c00; }
@media (prefers-color-scheme: dark) { :root { --text: #f0f6fc; --faint: #9198a1; --line: #3d444d;
  --card: #151b23; --back: #0d1117; --static: #4493f8; --dynamic: #f0883e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
.of { color: var(--faint); margin: 0 0 1.5rem; }
.key span { display: inline-block; margin-right: 1.25rem; }
.key i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px;
  margin-right: .4rem; }
section { border-top: 1px solid var(--line); padding: 1.5rem 0 .5rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
td:not(:last-child) { white-space: nowrap; }
td:first-child, th:first-child { min-width: 9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
.note { color: var(--faint); font-size: .9rem; margin: .5rem 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow-x: auto;
  padding: .75rem 1rem; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
  'DejaVu Sans Mono', monospace; margin: .5rem 0; }
pre.out { border-left: 3px solid var(--static); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
svg { display: block; width: 100%; height: auto; max-width: 46rem; margin: 1rem 0; }
svg text { fill: var(--text); font-size: 13px; }
svg .title { fill: var(--faint); }
svg .static { fill: var(--static); } svg .dynamic { fill: var(--dynamic); }
""".strip()

_LABEL, _BAR, _TEXT, _ROW = 190, 430, 110, 24


def as_page(title: str, of: str, sections: Sequence[Section], start: str) -> str:
    """A whole document. `of` says what was measured where; `start` stands before each snippet."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>\n{_STYLE}\n</style>", "</head>", "<body>",
        "<main>", f"<h1>{escape(title)}</h1>", f'<p class="of">{escape(of)}</p>',
        '<p class="key"><span><i style="background: var(--static)"></i>static graph, compiled'
        '</span><span><i style="background: var(--dynamic)"></i>dynamic mode</span></p>',
    ]  # fmt: skip
    for number, section in enumerate(sections, 1):
        parts += _section(number, section, start)
    return "\n".join([*parts, "</main>", "</body>", "</html>"]) + "\n"


def _section(number: int, section: Section, start: str) -> list[str]:
    parts = ["<section>", f"<h2>{number}. {escape(section.title)}</h2>"]
    parts.append(f"<p>{escape(section.summary)}</p>")
    parts += [_svg(bars) for bars in section.bars]
    parts += [_table(table) for table in section.tables]
    if section.codes:
        parts += ['<p class="note">Each of these follows the same lines:</p>', _pre(start)]
    for code in section.codes:
        parts += _code(code)
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    return [*parts, "</section>"]


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in table.header)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in table.rows
    )
    title = f"<caption>{escape(table.title)}</caption>\n" if table.title else ""
    return (
        f'<div class="table"><table>\n{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _code(code: Code) -> list[str]:
    return [f"<h3>{escape(code.title)}</h3>", _pre(code.code), _pre(code.output, "out")]


def _pre(text: str, kind: str = "") -> str:
    return f"<pre{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</pre>"


def _svg(bars: Bars) -> str:
    """Horizontal bars from 0, so that lengths compare as the values do."""
    largest = max((value for _, _, value, _ in bars.values), default=0.0) or 1.0
    width, height = _LABEL + _BAR + _TEXT, 26 + _ROW * len(bars.values)
    described = ", ".join(f"{label} {text}" for label, _, _, text in bars.values)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{bars.title}: {described}", quote=True)}">',
        f'<text class="title" x="0" y="14">{escape(bars.title)}</text>',
    ]
    for i, (label, mode, value, text) in enumerate(bars.values):
        top = 22 + i * _ROW
        long = max(1.0, _BAR * value / largest)
        parts += [
            f'<text x="0" y="{top + 15}">{escape(label)}</text>',
            f'<rect class="{mode}" x="{_LABEL}" y="{top + 3}" width="{long:.1f}" height="16" '
            'rx="3"/>',
            f'<text x="{_LABEL + long + 8:.1f}" y="{top + 15}">{escape(text)}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


__all__ = ["as_page"]
