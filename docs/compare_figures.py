"""Makes the figures of docs/static-vs-dynamic.md: `python docs/compare_figures.py`.

Three models are compared as `staticgrad compare MODEL --threads 1` does, and the parts of the
page between `<!-- generated: NAME -->` and `<!-- end -->` are written anew; the rest is written by
hand. Times are of the machine that this runs on, which should have nothing else to do. What was
found is kept in compare_figures.json; `--render` makes the page from it without measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from staticgrad.cli import compare as verb
from staticgrad.compare import sections
from staticgrad.compare.sections import Section, ms, size

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "static-vs-dynamic.md"
FOUND = ROOT / "docs" / "compare_figures.json"
MODELS = ("linear_regression", "digits_mlp", "rgb_convnet")
REPETITIONS, ROUNDS = 25, 5
SEED = 0
_PART = re.compile(r"(<!-- generated: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HOSTS = {"znver3": "Zen 3", "znver4": "Zen 4", "znver5": "Zen 5"}  # as people call them

Plain = Mapping[str, Any]
MODES = ("static", "dynamic")


def measured() -> dict[str, Any]:
    """What `staticgrad compare` finds for each model, on one thread."""
    models = {}
    for name in MODELS:
        print(name, file=sys.stderr)
        with verb._environment(1):
            path = str(ROOT / "samples" / f"{name}.py")
            models[name] = verb.compare(path, SEED, REPETITIONS, ROUNDS)
    return {"date": datetime.date.today().isoformat(), "models": models}


def known() -> Any:
    """What was found when it was last measured."""
    return json.loads(FOUND.read_text(encoding="utf-8"))


# --- tables ---------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text, the others are figures."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def both_modes(models: Plain, rows: Sequence[tuple[str, Callable[[Plain, str], str]]]) -> str:
    """One row a quantity, for each model a column for each mode."""
    header = ["", *(f"{name}<br>{mode}" for name in models for mode in MODES)]
    return table(
        header, [[label, *(cell(m, mode) for m in models.values() for mode in MODES)]
                 for label, cell in rows],
    )  # fmt: skip


def from_section(section: Section) -> str:
    """The tables of one section of a comparison; their cells are text."""
    parts = []
    for t in section.tables:
        lines = [t.header, ["---" for _ in t.header], *t.rows]
        rows = "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)
        parts.append(f"{t.title}:\n\n{rows}" if t.title else rows)
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    """As text of Markdown: what would be a link, emphasis or a column is code."""
    return f"`{text}`" if any(c in text for c in "[]*_<>") and "`" not in text else text


# --- the parts of the page ------------------------------------------------------------------------


def parts(found: Plain) -> dict[str, str]:
    """The generated parts by name."""
    models = found["models"]
    return {
        "host": host(found),
        "agreement": agreement(models),
        "times": times(models),
        "times_in_words": in_words(models, sections.times),
        "first_loss": first_loss(models),
        "steps": steps(models),
        "memory": memory(models),
        "memory_in_words": in_words(models, sections.memory),
        "shapes": from_section(sections.shapes(models["rgb_convnet"])),
        "mistakes": from_section(sections.mistakes(models["digits_mlp"])),
        "passes": "\n\n".join(passes(name, models[name]) for name in ("digits_mlp", "rgb_convnet")),
        "inside": inside(models["digits_mlp"]),
    }


def host(found: Plain) -> str:
    first = next(iter(found["models"].values()))
    cpu = first["host"]["llvm_cpu"]
    batches = "; ".join(
        f"`{name}`: " + ", ".join(f"`{b['name']} {b['dtype']}{b['shape']}`" for b in m["batch"])
        for name, m in found["models"].items()
    )
    return (
        f"Measured on {found['date']}, on one of {first['host']['cores']} cores of a "
        f"{_HOSTS.get(cpu, cpu)} host. The batches: {batches}."
    )


def agreement(models: Plain) -> str:
    rows = []
    for name, m in models.items():
        for dtype, worst in m["agreement"]["worst"].items():
            some = [d for d in m["agreement"]["differences"] if d["dtype"] == dtype]
            rows.append([
                name, dtype, str(len(some)), f"{worst:.1e}" if worst else "0, every bit",
                f"{some[0]['tolerance']:.0e}",
            ])  # fmt: skip
    return table(["model", "dtype", "arrays compared", "largest relative difference", "allowed"],
                 rows)  # fmt: skip


def _stage(name: str, state: str) -> Callable[[Plain, str], str]:
    def cell(m: Plain, mode: str) -> str:
        value = m["build"][mode][state][name]
        return ms(value) if value else "-"

    return cell


def times(models: Plain) -> str:
    return both_modes(models, [
        ("declare", _stage("declare", "cold")),
        ("compile, cold cache", _stage("compile", "cold")),
        ("compile, warm cache", _stage("compile", "warm")),
        ("to the first loss, cold cache", _stage("to_loss", "cold")),
        ("to the first loss, warm cache", _stage("to_loss", "warm")),
        ("to the end of the first step, cold cache", _stage("total", "cold")),
        ("to the end of the first step, warm cache", _stage("total", "warm")),
        ("**a step after that**", lambda m, mode: f"**{ms(m['steady_ms'][mode])}**"),
    ])  # fmt: skip


def first_loss(models: Plain) -> str:
    """Which mode knows its first loss sooner, for which models."""

    def sooner(state: str) -> str:
        found: dict[str, list[str]] = {mode: [] for mode in MODES}
        for name, m in models.items():
            winner = min(MODES, key=lambda mode: m["build"][mode][state]["to_loss"])
            found[winner].append(f"`{name}`")
        parts = [f"in the {mode} mode for {', '.join(names)}" for mode, names in found.items()
                 if names]  # fmt: skip
        return ", ".join(parts)

    return (
        f"With a cold cache the first loss came sooner {sooner('cold')}; with a warm one "
        f"{sooner('warm')}."
    )


def in_words(models: Plain, section: Callable[[Plain], Section]) -> str:
    return "\n".join(f"- `{name}`: {section(m).summary}" for name, m in models.items())


def steps(models: Plain) -> str:
    def calls(kind: str, name: str) -> Callable[[Plain, str], str]:
        return lambda m, mode: str(m["calls"][kind][mode][name])

    return both_modes(models, [
        ("calls of Python functions", calls("python", "python")),
        ("calls of built-in functions", calls("python", "builtin")),
        ("native calls", calls("native", "native_calls")),
        ("kernels", calls("native", "kernels")),
    ])  # fmt: skip


def memory(models: Plain) -> str:
    def figure(name: str) -> Callable[[Plain, str], str]:
        return lambda m, mode: size(m["memory"][mode][name])

    return both_modes(models, [
        ("arenas of temporaries", figure("arena_bytes")),
        ("allocated by a step", figure("allocated_bytes")),
        ("**together**", lambda m, mode: f"**{size(m['memory'][mode]['total_bytes'])}**"),
        ("parameters and optimiser", lambda m, mode: size(m["memory"]["state_bytes"])),
    ])  # fmt: skip


def passes(name: str, m: Plain) -> str:
    section = sections.optimisations(m)
    notes = "".join(f"\n\n({note}.)" for note in section.notes)
    return f"`{name}`: {section.summary}\n\n{from_section(section)}{notes}"


def inside(m: Plain) -> str:
    value = m["inside"]["value"]
    extra = value["kernels_watched"] - value["kernels"]
    cost = "no kernel more" if extra <= 0 else f"{extra} kernels more"
    return (
        f"Such a tap on the middle of `digits_mlp` (`{value['op']}` at `{value['line']}`, "
        f"`{value['dtype']}{value['shape']}`) needed {cost}: a step of {value['kernels']} kernels "
        f"became one of {value['kernels_watched']}."
    )


# --- the page -------------------------------------------------------------------------------------


def with_parts(text: str, made: Mapping[str, str]) -> str:
    """`text` with its generated parts replaced. Raises KeyError for a part that nobody makes."""
    return _PART.sub(lambda m: f"{m[1]}{made[m[2]].strip()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the figures of static-vs-dynamic.md.")
    parser.add_argument("--render", action="store_true", help="from what was found before")
    if not parser.parse_args().render:
        found = measured()
        FOUND.write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8", newline="\n")
    text = with_parts(PAGE.read_text(encoding="utf-8"), parts(known()))
    PAGE.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
