"""`sg_sizes` of the native entry: binds a context to sizes that came before.

Frames are found and copied as `staticgrad_runtime.frames` documents it; `CallContext.bind` is the
same in Python.
"""

from __future__ import annotations

from collections.abc import Callable

from staticgrad_runtime.context import (
    FRAME_HASH_FACTOR,
    FRAME_HASH_SHIFT,
    FRAME_TO_WORD,
    MEASURED,
    NDARRAY_NDIM,
    NDARRAY_SHAPE,
    OBJECT_TYPE,
    RECORD_WORDS,
    ArrayRecord,
    FramesWord,
    FrameWord,
    Word,
)

from .builder import Function, Module
from .entry_emitter import Emitter

SIZES_SYMBOL = "sg_sizes"


class Sizes(Emitter):
    """Emits `i1 @sg_sizes(ptr context, ptr args)`: whether the context is now bound to the sizes of
    these arguments, which must be as many as the inputs. That needs a frame, and the memory that
    the frame wants. Nothing but sizes is looked at: the caller compares the arguments again."""

    def __init__(self, module: Module) -> None:
        params = [("ptr", "context"), ("ptr", "args")]
        self.f = Function(module, SIZES_SYMBOL, params, "i1", linkage="internal")
        self.words = "%context"

    def emit(self) -> None:
        f = self.f
        self.n_inputs = self.word(Word.N_INPUTS, "i64")
        self.cursor = f.emit("alloca i64")  # the hash so far, then the next dim of the key
        frames = self.word(Word.FRAMES)
        self.require(f.emit(f"icmp ne ptr {frames}, null"), "unknown")
        f.stmt(f"store i64 0, ptr {self.cursor}")
        self.each_dim(self.add_to_hash, self.test_rank)
        sum_ = f.emit(f"load i64, ptr {self.cursor}")
        hash_ = f.emit(f"lshr i64 {sum_}, {FRAME_HASH_SHIFT}")
        frame = self.find(frames, hash_)
        enough = f.emit(
            f"icmp ule i64 {self.at(frame, 8 * FrameWord.PEAK, 'i64')}, "
            f"{self.word(Word.ARENA_BYTES, 'i64')}"
        )
        self.require(enough, "unknown")
        self.save_measured()
        self.bind(frames, frame)
        f.stmt("ret i1 true")
        f.label("unknown")
        f.stmt("ret i1 false")
        f.finish()

    def each_dim(
        self, body: Callable[[str], None], before: Callable[[str, str], None] | None = None
    ) -> None:
        """Emits `body(dim)` for each dim of the arguments, and `before(array, record)` for each."""

        def one(index: str) -> None:
            value = self.item("%args", index, "ptr")
            record = self.record(Word.INPUTS, index, RECORD_WORDS)
            if before is not None:
                before(value, record)
            shape = self.at(value, NDARRAY_SHAPE)
            ndim = self.at(record, 8 * ArrayRecord.NDIM, "i64")
            self.loop(ndim, lambda axis: body(self.item(shape, axis)))

        self.loop(self.n_inputs, one)

    def test_rank(self, value: str, record: str) -> None:
        f = self.f
        kind = self.at(value, OBJECT_TYPE)
        self.require(f.emit(f"icmp eq ptr {kind}, {self.word(Word.NDARRAY_TYPE)}"), "unknown")
        found = f.emit(f"zext i32 {self.at(value, NDARRAY_NDIM, 'i32')} to i64")
        ndim = self.at(record, 8 * ArrayRecord.NDIM, "i64")
        self.require(f.emit(f"icmp eq i64 {found}, {ndim}"), "unknown")

    def add_to_hash(self, dim: str) -> None:
        f = self.f
        old = f.emit(f"load i64, ptr {self.cursor}")
        more = f.emit(f"mul i64 {f.emit(f'add i64 {old}, {dim}')}, {FRAME_HASH_FACTOR}")
        f.stmt(f"store i64 {more}, ptr {self.cursor}")

    def find(self, frames: str, hash_: str) -> str:
        """The frame of these dims; a table always has an empty slot, where the search ends."""
        f = self.f
        table = self.at(frames, 8 * FramesWord.TABLE)
        mask = self.at(table, 0, "i64")
        slot, next_slot = f.reserve(), f.reserve()
        before = f.block
        f.branch("probe")
        f.label("probe")
        f.assign(slot, f"phi i64 [ {hash_}, %{before} ], [ {next_slot}, %another ]")
        at = f.emit(f"add i64 {f.emit(f'and i64 {slot}, {mask}')}, 1")
        frame = self.item(table, at, "ptr")
        self.require(f.emit(f"icmp ne ptr {frame}, null"), "unknown")
        same = f.emit(f"icmp eq i64 {self.at(frame, 8 * FrameWord.HASH, 'i64')}, {hash_}")
        self.require(same, "another")
        f.stmt(f"store i64 {int(FrameWord.TABLES)}, ptr {self.cursor}")

        def compare(dim: str) -> None:
            place = f.emit(f"load i64, ptr {self.cursor}")
            f.stmt(f"store i64 {f.emit(f'add i64 {place}, 1')}, ptr {self.cursor}")
            self.require(f.emit(f"icmp eq i64 {dim}, {self.item(frame, place)}"), "another")

        self.each_dim(compare)
        f.branch("known")
        f.label("another")
        f.assign(next_slot, f"add i64 {slot}, 1")
        f.branch("probe")
        f.label("known")
        return frame

    def save_measured(self) -> None:
        """What was measured of threads at the old sizes goes to their frame."""
        f = self.f
        old = self.word(Word.FRAME)
        f.branch_if(f.emit(f"icmp eq ptr {old}, null"), "saved", "save")
        f.label("save")
        for field, word in MEASURED:
            self.store(old, int(field), self.word(word, "i64"))
        f.branch("saved")
        f.label("saved")

    def bind(self, frames: str, frame: str) -> None:
        """What `CallContext.bind` does."""
        f = self.f
        clock = f.emit(f"add i64 {self.at(frames, 8 * FramesWord.CLOCK, 'i64')}, 1")
        self.store(frames, int(FramesWord.CLOCK), clock)
        self.store(frame, int(FrameWord.USED), clock)
        for field, word in FRAME_TO_WORD:
            self.store_word(word, self.at(frame, 8 * field, "i64"))
        tables = f.emit(f"getelementptr i64, ptr {frame}, i64 {int(FrameWord.TABLES)}")
        sized, n_sized = self.word(Word.SIZED), self.word(Word.N_SIZED, "i64")
        self.loop(n_sized, lambda i: self.store(sized, i, self.item(tables, i)))
        buffers, packed = self.word(Word.BUFFERS), self.word(Word.PACKED)
        self.loop(
            self.word(Word.N_PACKED, "i64"),
            lambda i: self.store(buffers, self.item(packed, i), "null", "ptr"),
        )
        temps, arena = self.word(Word.TEMPS), self.word(Word.ARENA, "i64")
        offsets = f.emit(f"getelementptr i64, ptr {tables}, i64 {n_sized}")

        def place(i: str) -> None:
            where = f.emit(f"add i64 {arena}, {self.item(offsets, i)}")
            self.store(buffers, self.item(temps, i), where)

        self.loop(self.word(Word.N_TEMPS, "i64"), place)
        self.store_word(Word.FRAME, frame, "ptr")
