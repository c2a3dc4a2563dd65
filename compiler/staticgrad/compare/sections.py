"""The answers as sections of a document: a sentence that says what came out, tables, bars, code.

The terminal, the HTML page and the documentation show the same sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Bars:
    """One quantity in both modes: (label, mode, value, text)."""

    title: str
    values: Sequence[tuple[str, str, float, str]]


@dataclass(frozen=True)
class Code:
    title: str
    code: str
    output: str


@dataclass(frozen=True)
class Section:
    title: str
    summary: str
    tables: Sequence[Table] = ()
    bars: Sequence[Bars] = ()
    codes: Sequence[Code] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def sections(found: Plain) -> list[Section]:
    """The eight sections of what `staticgrad compare` found."""
    return [
        agreement(found), times(found), calls(found), memory(found), shapes(found),
        mistakes(found), optimisations(found), inside(found),
    ]  # fmt: skip


# --- quantities -----------------------------------------------------------------------------------


def ms(value: float) -> str:
    """Milliseconds with a unit that suits them."""
    if value < 0.9995:
        return f"{_digits(1e3 * value)} µs"
    return f"{_digits(value)} ms" if value < 999.5 else f"{_digits(value / 1e3)} s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def size(value: float) -> str:
    """Bytes with a unit that suits them."""
    if value < 1024:
        return f"{value:.0f} B"
    if value < 1024**2:
        return f"{_digits(value / 1024)} KiB"
    return f"{_digits(value / 1024**2)} MiB"


def ratio(static: float, dynamic: float, better: str, worse: str) -> str:
    """How much better the static mode does, in words: `2.1 times faster`, or slower."""
    if static <= 0 or dynamic <= 0:
        return f"as {better}"
    times_better = dynamic / static
    if 0.95 < times_better < 1.05:
        return "the same"
    word = better if times_better > 1 else worse
    return f"{max(times_better, 1 / times_better):.1f} times {word}"


def _line(outcome: Plain) -> str:
    return f"{outcome['line']}: " if outcome.get("line") else ""


# --- the sections ---------------------------------------------------------------------------------


def agreement(found: Plain) -> Section:
    a = found["agreement"]
    rows = []
    for what in dict.fromkeys((d["what"], d["dtype"]) for d in a["differences"]):
        some = [d for d in a["differences"] if (d["what"], d["dtype"]) == what]
        compared = [d for d in some if not d["zero_but_for_rounding"]]
        worst = max(compared, key=lambda d: d["max_relative_difference"], default=None)
        rows.append((
            what[0], what[1], str(len(some)),
            "-" if worst is None else _difference(worst["max_relative_difference"]),
            "-" if worst is None or not worst["max_relative_difference"] else worst["name"],
            f"{some[0]['tolerance']:.0e}",
        ))  # fmt: skip
    worst = ", ".join(f"{_difference(v)} in {k}" for k, v in a["worst"].items())
    header = ("what", "dtype", "arrays", "worst difference", "where", "allowed")
    return Section(
        "Values and gradients",
        f"Both modes compute the same: the largest relative difference is {worst}.",
        [Table(header, rows)],
        notes=a["notes"],
    )


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def times(found: Plain) -> Section:
    build, steady = found["build"], found["steady_ms"]
    cold = {mode: build[mode]["cold"] for mode in ("static", "dynamic")}
    warm = {mode: build[mode]["warm"] for mode in ("static", "dynamic")}
    rows = [
        ("declare", ms(cold["static"]["declare"]), "-"),
        ("compile, cold cache", ms(cold["static"]["compile"]), "-"),
        ("compile, warm cache", ms(warm["static"]["compile"]), "-"),
        ("first step", ms(cold["static"]["first_step"]), ms(cold["dynamic"]["first_step"])),
        ("to the first loss, cold cache", *(ms(cold[m]["to_loss"]) for m in cold)),
        ("to the first loss, warm cache", *(ms(warm[m]["to_loss"]) for m in warm)),
        ("to the end of the first step, cold cache", *(ms(cold[m]["total"]) for m in cold)),
        ("to the end of the first step, warm cache", *(ms(warm[m]["total"]) for m in warm)),
        ("a step after that", ms(steady["static"]), ms(steady["dynamic"])),
    ]
    gain = steady["dynamic"] - steady["static"]
    later = warm["static"]["total"] - warm["dynamic"]["total"]
    faster = ratio(steady["static"], steady["dynamic"], "faster", "slower")
    summary = f"A step of the compiled program is {_than(faster, 'one of the dynamic mode')}"
    first = ratio(warm["static"]["total"], warm["dynamic"]["total"], "sooner", "later")
    summary += "; with a warm cache its first step is done "
    summary += "at the same time" if first == "the same" else first
    if gain > 0 and later > 0:
        summary += f", which {later / gain:,.0f} steps make good"
    bars = [
        _pair("to the end of the first step, cold cache", cold["static"]["total"],
              cold["dynamic"]["total"]),
        _pair("to the end of the first step, warm cache", warm["static"]["total"],
              warm["dynamic"]["total"]),
        _pair("a step after that", steady["static"], steady["dynamic"]),
    ]  # fmt: skip
    return Section("Time", summary + ".", [Table(("", "static", "dynamic"), rows)], bars)


def _than(text: str, what: str) -> str:
    return f"as fast as {what}" if text == "the same" else f"{text} than {what}"


def _pair(title: str, static: float, dynamic: float, text: Any = ms) -> Bars:
    values = (("static", "static", static, text(static)),
              ("dynamic", "dynamic", dynamic, text(dynamic)))  # fmt: skip
    return Bars(title, values)


def calls(found: Plain) -> Section:
    python, native = found["calls"]["python"], found["calls"]["native"]
    rows = [
        ("Python functions called", *(str(python[m]["python"]) for m in ("static", "dynamic"))),
        ("built-in functions called", *(str(python[m]["builtin"]) for m in ("static", "dynamic"))),
        ("native calls", *(str(native[m]["native_calls"]) for m in ("static", "dynamic"))),
        ("- of them forward, backward", "-",
         f"{native['dynamic']['forward']['native_calls']}, "
         f"{native['dynamic']['backward']['native_calls']}"),
        ("kernels run", *(str(native[m]["kernels"]) for m in ("static", "dynamic"))),
    ]  # fmt: skip
    summary = (
        f"A compiled step is {native['static']['native_calls']} native call that runs "
        f"{native['static']['kernels']} kernels; the dynamic mode makes "
        f"{native['dynamic']['native_calls']} native calls, {native['dynamic']['kernels']} kernels "
        f"in all, and {python['dynamic']['python']} calls of Python functions around them."
    )
    bars = [
        _pair("kernels a step", native["static"]["kernels"], native["dynamic"]["kernels"], str),
    ]
    return Section(
        "What one step does", summary, [Table(("in one step", "static", "dynamic"), rows)], bars
    )


def memory(found: Plain) -> Section:
    m = found["memory"]
    static, dynamic = m["static"], m["dynamic"]
    rows = [
        ("state: parameters, optimiser", size(m["state_bytes"]), size(m["state_bytes"])),
        ("arenas of temporaries", f"{size(static['planned_bytes'])}, known before the run",
         f"{size(dynamic['arena_bytes'])}, one for each operation's program"),
        ("arrays and objects that a step allocates", size(static["allocated_bytes"]),
         size(dynamic["allocated_bytes"])),
        ("together, without state", *(size(m[k]["total_bytes"]) for k in ("static", "dynamic"))),
    ]  # fmt: skip
    less = ratio(static["total_bytes"], dynamic["total_bytes"], "less", "more")
    summary = (
        f"The compiled step's {size(static['planned_bytes'])} are known before it runs. Its total "
        f"is {'the same' if less == 'the same' else less + ' than the dynamic mode takes'}."
    )
    bars = [_pair("without state", static["total_bytes"], dynamic["total_bytes"], size)]
    return Section("Memory", summary, [Table(("", "static", "dynamic"), rows)], bars)


def shapes(found: Plain) -> Section:
    rows = []
    for axis in found["shapes"]:
        free = axis["symbolic"]
        rows.append((
            f"{axis['axis']}: {axis['from']} to {axis['to']}",
            f"built again: {ms(axis['static_fixed']['rebuild_ms'])}" if free else
            _first_call(axis["static_symbolic"]),
            _first_call(axis["static_symbolic"]) if free else "-",
            _first_call(axis["dynamic"]),
        ))  # fmt: skip
    if not rows:
        return Section("A new shape", "The model takes no batch.")
    compiled = sum(a["dynamic"]["compiled"] for a in found["shapes"] if a["symbolic"])
    summary = (
        "Declared with ints, the program is built again for each new size; with symbolic dims "
        "nothing is compiled again. The dynamic mode "
        + ("compiles nothing either." if not compiled else
           f"compiled {compiled} programs of single operations: an axis of size 1, or sizes that "
           "were equal and no longer are, make a layout of their own.")
    )  # fmt: skip
    header = ("axis", "static, fixed dim", "static, symbolic dim", "dynamic")
    fixed = [a["axis"] for a in found["shapes"] if not a["symbolic"]]
    notes = [f"declared with ints, as the model's weights want it: {', '.join(fixed)}"]
    return Section("A new shape", summary, [Table(header, rows)], notes=notes if fixed else ())


def _first_call(measured: Plain | None) -> str:
    if measured is None:
        return "-"
    if not measured["accepted"]:
        return f"refused: {measured['error']['type']}"
    count = measured["compiled"]
    what = "nothing compiled" if not count else f"{count} programs compiled"
    return f"{what}; first step {ms(measured['first_ms'])}"


_STAGES = (
    ("declare", "static, when declared"), ("call", "static, when called"), ("dynamic", "dynamic"),
)  # fmt: skip


def mistakes(found: Plain) -> Section:
    tables = []
    for mistake in found["mistakes"]:
        rows = []
        for stage, label in _STAGES:
            outcome = mistake[stage]
            if outcome is None:
                continue
            if outcome["noticed"]:
                rows.append((label, outcome["type"], f"{_line(outcome)}{outcome['message']}"))
            else:
                rows.append((label, "not noticed", "it runs, and gives a number"))
        title = f"{mistake['name']}: {mistake['what']}"
        tables.append(Table(("", "error", "what it says"), rows, title))
    summary = (
        "A shape that can't fit is refused when a static graph is declared, before any data is "
        "there; what depends on the data is refused by the call, and the state stays as it was. "
        "The dynamic mode refuses at the operation that meets it."
    )
    return Section("What an error looks like", summary, tables)


def optimisations(found: Plain) -> Section:
    entries = found["optimisations"]
    base = entries[0]
    rows = [(
        "(all on)", str(base["kernels"]), size(base["planned_bytes"]), size(base["moved_bytes"]),
        ms(base["step_ms"]), "",
    )]  # fmt: skip
    unchanged = []
    figures = ("kernels", "planned_bytes", "moved_bytes")
    for e in entries[1:]:
        if e["without"] != "all" and all(e[f] == base[f] for f in figures):
            unchanged.append(e["without"])
            continue
        name = "(all off)" if e["without"] == "all" else f"without {e['without']}"
        rows.append((
            name, str(e["kernels"]), size(e["planned_bytes"]), size(e["moved_bytes"]),
            ms(e["step_ms"]), e["meaning"],
        ))  # fmt: skip
    off = entries[-1]
    summary = (
        f"The whole step is seen before it runs, so the compiler makes {base['kernels']} kernels "
        f"of what would be {off['kernels']}, which move {size(base['moved_bytes'])} in place of "
        f"{size(off['moved_bytes'])}; without any of the passes a step takes {ms(off['step_ms'])} "
        f"in place of {ms(base['step_ms'])}."
    )
    notes = [f"nothing to do on this model: {', '.join(unchanged)}"] if unchanged else []
    header = ("", "kernels", "planned memory", "bytes moved", "a step", "what the pass does")
    bars = [Bars("a step", [
        ("all on" if not e["without"] else "all off" if e["without"] == "all" else
         f"without {e['without']}", "static", e["step_ms"], ms(e["step_ms"]))
        for e in entries if e["without"] not in unchanged
    ])]  # fmt: skip
    return Section("What the optimisations save", summary, [Table(header, rows)], bars, notes=notes)


def inside(found: Plain) -> Section:
    value = found["inside"]["value"]
    notes = []
    if value is not None:
        kernels = value["kernels_watched"] - value["kernels"]
        cost = "no kernel more" if kernels <= 0 else f"{kernels} kernels more"
        notes.append(
            f"of this model: {value['op']} at {value['line']}, {value['dtype']}"
            f"{value['shape']}, by sg.debug.tap from its compiled step: mean {value['mean']:.4g}, "
            f"from {value['min']:.4g} to {value['max']:.4g}; {cost}"
        )
    codes = [
        Code(f"{s['mode']}: {s['name']}", s["code"], s["output"])
        for s in found["inside"]["snippets"]
    ]
    summary = (
        "In the dynamic mode a value is there as soon as its line has run, so Python's print shows "
        "it. A compiled step has to be told before it is compiled: sg.debug.print and sg.debug.tap "
        "make the value an output more, and fit calls functions between epochs."
    )
    return Section("A value from the middle", summary, codes=codes, notes=notes)


__all__ = ["Bars", "Code", "Section", "Table", "ms", "sections", "size"]
