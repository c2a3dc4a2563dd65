"""Two runs side by side: what became faster or slower, and what the machine did in between."""

from __future__ import annotations

import statistics
from typing import Any

from .drivers import OURS, PEERS
from .report import NONE, Table, duration
from .results import Document, Result, ratio, seconds_of

# Changes below this are not called any: medians of repeated runs differ by as much.
_NOISE = 0.03


def _keyed(document: Document) -> dict[tuple[str, int], Result]:
    return {(r["workload"], r["threads"]): r for r in document["results"]}


def _apart(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the middle halves of the repetitions do not touch."""
    return bool(old["high_s"] < new["low_s"] or new["high_s"] < old["low_s"])


def verdict(old: Result, new: Result) -> str:
    """faster, slower, or nothing to tell; a status that is not "ok" as it is."""
    states = [r["frameworks"][OURS]["status"] for r in (old, new)]
    if states != ["ok", "ok"]:
        return states[1] if states[1] != "ok" else f"was {states[0]}"
    before, after = (r["frameworks"][OURS]["time"] for r in (old, new))
    change = after["median_s"] / before["median_s"] - 1
    if abs(change) < _NOISE or not _apart(before, after):
        return ""
    return "slower" if change > 0 else "faster"


def table(old: Document, new: Document) -> Table:
    """Our time and the ratio to the best peer, before and after."""
    before, after = _keyed(old), _keyed(new)
    rows = []
    for key in before:
        if key not in after:
            continue
        a, b = before[key], after[key]
        x, y = seconds_of(a, OURS), seconds_of(b, OURS)
        change = NONE if x is None or y is None else f"{y / x - 1:+.1%}"
        ratios = [NONE if (q := ratio(r)) is None else f"{q:.3f}" for r in (a, b)]
        rows.append(
            [f"{key[0]}, {key[1]} thr.", duration(x), duration(y), change, *ratios, verdict(a, b)]
        )
    header = ["workload", "old", "new", "change", "old ratio", "new ratio", "verdict"]
    return Table("staticgrad, old and new; ratio: ours / best peer of the same run", header, rows)


def drift(old: Document, new: Document) -> float | None:
    """The peers' times, new by old, as a geometric mean: what the machine made of the same
    work. None where no peer took part in both."""
    before, after = _keyed(old), _keyed(new)
    found = []
    for key in before.keys() & after.keys():
        for name in PEERS:
            a, b = seconds_of(before[key], name), seconds_of(after[key], name)
            if a and b:
                found.append(b / a)
    return statistics.geometric_mean(found) if found else None


def text(old: Document, new: Document) -> str:
    lines = [f"old: {old['created']}, {old['host']['cpu']}",
             f"new: {new['created']}, {new['host']['cpu']}"]  # fmt: skip
    if (old["host"], old["ceilings"].keys()) != (new["host"], new["ceilings"].keys()):
        lines.append("the hosts or threads differ: compare ratios, not times")
    made = table(old, new)
    lines += ["", made.text() if made.rows else "no workload is in both"]
    changed = drift(old, new)
    if changed is not None:
        lines += ["", f"the peers took {changed:.3f} times as long: so much is the machine's"]
    for words, a, b in (("only in old", old, new), ("only in new", new, old)):
        single = [f"{n}, {t} thr." for n, t in _keyed(a) if (n, t) not in _keyed(b)]
        if single:
            lines.append(f"{words}: {'; '.join(single)}")
    return "\n".join(lines) + "\n"
