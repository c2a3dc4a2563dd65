"""What emits code that reads and writes the context of a call."""

from __future__ import annotations

from collections.abc import Callable

from staticgrad_runtime.context import Word

from .builder import Function


class Emitter:
    """What emits code that reads the context at `words`."""

    f: Function
    words: str

    def at(self, base: str, offset_bytes: int, ty: str = "ptr") -> str:
        """Loads from `base` + a constant offset."""
        where = self.f.emit(f"getelementptr i8, ptr {base}, i64 {offset_bytes}")
        return self.f.emit(f"load {ty}, ptr {where}")

    def word(self, word: Word, ty: str = "ptr") -> str:
        return self.at(self.words, 8 * word, ty)

    def store(self, base: str, index: int | str, value: int | str, ty: str = "i64") -> None:
        """Stores to a table of words."""
        where = self.f.emit(f"getelementptr i64, ptr {base}, i64 {index}")
        self.f.stmt(f"store {ty} {value}, ptr {where}")

    def item(self, base: str, index: str, ty: str = "i64") -> str:
        """Loads from a table of words."""
        return self.f.emit(
            f"load {ty}, ptr {self.f.emit(f'getelementptr i64, ptr {base}, i64 {index}')}"
        )

    def store_word(self, word: Word, value: int | str, ty: str = "i64") -> None:
        self.store(self.words, int(word), value, ty)

    def record(self, table: Word, index: str, words: int) -> str:
        offset = self.f.emit(f"mul nuw i64 {index}, {8 * words}")
        return self.f.emit(f"getelementptr i8, ptr {self.word(table)}, i64 {offset}")

    def loop(self, count: str, body: Callable[[str], None]) -> None:
        """Emits `body(index)` for 0 <= index < count; `body` may open blocks."""
        f = self.f
        test, inside, step, done = (f.new_label(h) for h in ("test", "body", "step", "done"))
        before, index, following = f.block, f.reserve(), f.reserve()
        f.branch(test)
        f.label(test)
        f.assign(index, f"phi i64 [ 0, %{before} ], [ {following}, %{step} ]")
        f.branch_if(f.emit(f"icmp slt i64 {index}, {count}"), inside, done)
        f.label(inside)
        body(index)
        f.branch(step)
        f.label(step)
        f.assign(following, f"add nuw i64 {index}, 1")
        f.branch(test)
        f.label(done)

    def require(self, condition: str, otherwise: str) -> None:
        """Goes on where `condition` holds, else branches to `otherwise`."""
        going_on = self.f.new_label("ok")
        self.f.branch_if(condition, going_on, otherwise)
        self.f.label(going_on)
