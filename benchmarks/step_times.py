"""The time of each step of a program, on one thread and on several."""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.api.timed import TimedProgram as Timed
from staticgrad.ir.graph import Graph

from .footprints import reuses


class TimedProgram(Timed):
    """A timed program; `reuses` tells how far apart the uses of memory are."""

    def __init__(self, graph: Graph, threads: Sequence[int]) -> None:
        super().__init__(graph, threads)
        self.reuses = reuses(self.program, self.any.bind({}).plan)
