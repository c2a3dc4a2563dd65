"""A driver that has every step timed, for measuring: the ordinary program has no trace of it.

Behind each step all threads meet, and thread 0 calls `sg_tick` with the step's number, so that what
lies between two ticks is one step from its first thread's begin to its last one's end. Regions that
one thread does alone, and loops whose threads keep to rows of their own, have no such meetings:
there a tick tells the time of thread 0, and that of the last step holds its waiting for the others.
"""

from __future__ import annotations

from staticgrad.kernels.program import Item, Step

from .program import Driver

TICK = "sg_tick"  # void(i64 step, i64 tid, i64 n), which whoever loads the program provides


class ClockedDriver(Driver):
    """Ticks with the number of steps once at the start, then with a step's number behind it."""

    def program_items(self) -> None:
        self._tick(len(self.program.steps))
        super().program_items()

    def shared_step(self, step: Step, name: str) -> None:
        super().shared_step(step, name)
        self._tick(self.at - 1)

    def lone_step(self, step: Step, name: str) -> None:
        super().lone_step(step, name)
        self._tick(self.at - 1)

    def alone_step(self, step: Step, name: str) -> None:
        super().alone_step(step, name)
        self._record(self.at - 1)

    def item(self, item: Item, *, met: bool = False) -> None:
        super().item(item, met=met)
        if not isinstance(item, Step):
            self._tick(self.at - 1)

    def _tick(self, step: int) -> None:
        self.barrier()
        self._record(step)

    def _record(self, step: int) -> None:
        self.f.module.declare(TICK, f"declare void @{TICK}(i64, i64, i64)")
        self.f.stmt(f"call void @{TICK}(i64 {step}, i64 %tid, i64 %n)")
