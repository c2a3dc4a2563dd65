"""Two runs side by side: what became faster or slower.

A machine is not equally fast in two runs, for its clock and for other work. So our change is judged
beside that of the peers, which did the same work in both: where they take 20 % longer and we do
too, nothing of ours became slower. `change` is ours as measured, `peers` the median of theirs for
that workload and number of threads, `corrected` what is left of ours beside it. The verdict is of
the corrected change, if it is at least 3 % and the middle halves of our repetitions, so scaled, do
not touch; of the raw change where no peer has a time in both runs. A peer whose versions differ
between the runs does not count. Of a `--quick` run, whose three short repetitions tell neither what
the machine did nor how far they scatter, the times stand side by side and nothing is judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .drivers import LABELS, OURS, PEERS
from .report import NONE, Table, duration
from .results import Document, Result, ratio, seconds_of

# Changes below this are not called any: medians of repeated runs differ by as much.
_NOISE = 0.03


def _keyed(document: Document) -> dict[tuple[str, int], Result]:
    return {(r["workload"], r["threads"]): r for r in document["results"]}


def judged(old: Document, new: Document) -> bool:
    """Whether both runs have the repetitions that a verdict needs."""
    return not (old["quick"] or new["quick"])


def unchanged_peers(old: Document, new: Document) -> list[str]:
    """Those of the same versions in both: the work that their times tell of is the same."""
    return [n for n in PEERS if old["versions"].get(n) == new["versions"].get(n)]


def factor(old: Result, new: Result, framework: str) -> float | None:
    """A framework's time, new by old."""
    before, after = seconds_of(old, framework), seconds_of(new, framework)
    return after / before if before and after else None


def drift(old: Result, new: Result, peers: Sequence[str]) -> float | None:
    """What the machine made of the same work: the median of the peers' factors. None where no peer
    took part in both."""
    found = [f for name in peers if (f := factor(old, new, name)) is not None]
    return statistics.median(found) if found else None


def _apart(old: dict[str, Any], new: dict[str, Any], scale: float) -> bool:
    """Whether the middle halves of the repetitions do not touch, the old ones scaled."""
    return bool(scale * old["high_s"] < new["low_s"] or new["high_s"] < scale * old["low_s"])


def _status(old: Result, new: Result) -> str:
    """What kept either from a time that counts; else nothing."""
    before, after = (r["frameworks"][OURS]["status"] for r in (old, new))
    return after if after != "ok" else f"was {before}" if before != "ok" else ""


def verdict(old: Result, new: Result, machine: float | None = None) -> str:
    """faster, slower, or nothing to tell, beside what the machine made of the same work; a status
    that is not "ok" as it is."""
    if told := _status(old, new):
        return told
    before, after = (r["frameworks"][OURS]["time"] for r in (old, new))
    scale = 1.0 if machine is None else machine
    change = after["median_s"] / (scale * before["median_s"]) - 1
    if abs(change) < _NOISE or not _apart(before, after, scale):
        return ""
    return "slower" if change > 0 else "faster"


def table(old: Document, new: Document) -> Table:
    """Our time, raw and corrected, and the ratio to the best peer, before and after."""
    before, after = _keyed(old), _keyed(new)
    whole = judged(old, new)
    peers = unchanged_peers(old, new) if whole else []
    rows = []
    for key in before:
        if key not in after:
            continue
        a, b = before[key], after[key]
        ours, machine = factor(a, b, OURS), drift(a, b, peers)
        corrected = ours / machine if ours and machine else None
        ratios = [NONE if (q := ratio(r)) is None else f"{q:.3f}" for r in (a, b)]
        rows.append([
            f"{key[0]}, {key[1]} thr.", *(duration(seconds_of(r, OURS)) for r in (a, b)),
            *map(_percent, (ours, machine, corrected)), *ratios,
            verdict(a, b, machine) if whole else _status(a, b),
        ])  # fmt: skip
    header = ["workload", "old", "new", "change", "peers", "corrected", "old ratio", "new ratio",
              "verdict"]  # fmt: skip
    return Table(
        "staticgrad, old and new; peers: their change, the median; corrected: ours beside that; "
        "ratio: ours / best peer of the same run", header, rows,
    )  # fmt: skip


def _percent(change: float | None) -> str:
    return NONE if change is None else f"{change - 1:+.1%}"


def text(old: Document, new: Document) -> str:
    lines = [f"old: {old['created']}, {old['host']['cpu']}",
             f"new: {new['created']}, {new['host']['cpu']}"]  # fmt: skip
    if (old["host"], old["ceilings"].keys()) != (new["host"], new["ceilings"].keys()):
        lines.append("the hosts or threads differ: old and new are times of unlike machines")
    made = table(old, new)
    lines += ["", made.text() if made.rows else "no workload is in both", ""]
    if judged(old, new):
        lines += _told_of_peers(old, new)
    else:
        which = " and ".join(n for n, d in (("old", old), ("new", new)) if d["quick"])
        lines.append(f"{which}: a quick run, so nothing is judged; run without --quick")
    for words, a, b in (("only in old", old, new), ("only in new", new, old)):
        single = [f"{n}, {t} thr." for n, t in _keyed(a) if (n, t) not in _keyed(b)]
        if single:
            lines.append(f"{words}: {'; '.join(single)}")
    return "\n".join(lines) + "\n"


def _told_of_peers(old: Document, new: Document) -> list[str]:
    """What the machine did over all workloads, and where nothing tells it."""
    before, after = _keyed(old), _keyed(new)
    peers = unchanged_peers(old, new)
    both = [key for key in before if key in after]
    found = {key: drift(before[key], after[key], peers) for key in both}
    known = [f for f in found.values() if f is not None]
    lines = []
    if known:
        mean = statistics.geometric_mean(known)
        lines.append(f"the peers took {mean:.3f} times as long: so much is the machine's")
    alone = [f"{n}, {t} thr." for (n, t), f in found.items() if f is None]
    if alone:
        lines.append(f"no peer in both, so the verdict is of the raw change: {'; '.join(alone)}")
    others = [LABELS[n] for n in PEERS if n not in peers]
    if others:
        lines.append(f"in one run alone or of other versions, so not counted: {', '.join(others)}")
    return lines
