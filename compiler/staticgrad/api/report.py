"""`report()`: what a compiled program does and what it cost to compile, in plain figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Figures(Mapping[str, Any]):
    """What was found, by name: a mapping, `to_dict()` for JSON, `str()` for people."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._plain = dict(plain)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._plain)

    def __getitem__(self, name: str) -> Any:
        return self._plain[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)

    def __repr__(self) -> str:
        return str(self)


class Report(Figures):
    """Figures of one executable.

    flops and bytes are those of one call (elements touched, each buffer of a kernel counted once);
    expressions where they depend on symbolic dims. peak_bytes is the arena of temporaries;
    packed_bytes are copies of state as matrix products read it, made where calls find it unchanged;
    sizes_bytes is what is kept of the sizes that calls came with (up to 4 MiB, no temporaries).
    """

    def __str__(self) -> str:
        p = self._plain
        lines = [
            f"{len(p['kernels'])} kernels, {p['distinct_kernels']} distinct; "
            f"flops {_number(p['flops'])}, bytes {_number(p['bytes'])}, "
            f"peak_bytes {_number(p['peak_bytes'])}, state_bytes {_number(p['state_bytes'])}"
            + "".join(f", {k} {_number(p[k])}" for k in ("constant_bytes", "packed_bytes") if p[k]),
            "compile: " + ", ".join(f"{k} {v:.1f} ms" for k, v in p["compile_ms"].items()),
        ]
        width = max((len(k["name"]) for k in p["kernels"]), default=0)
        for k in p["kernels"]:
            lines.append(
                f"  {k['step']:3d}  {k['name']:{width}s}  flops {_number(k['flops'])}, bytes "
                f"{_number(k['bytes'])}  {k['locations']}"
            )
        return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
