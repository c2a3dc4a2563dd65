"""The native entry of programs: a CPython vectorcall function, emitted once per target.

`sg_entry(self, args, nargsf, names)` serves a call whose arguments are exactly what the published
context is bound to: ndarrays of the native dtype, of the bound shape, C-contiguous and aligned, no
names but `out=`, no contention. Where shapes alone differ, and the program has been called with
these before, `sg_sizes` binds the context to them (`staticgrad_runtime.frames`). The entry
allocates the results, unless `out` holds arrays for all of them that fit and share no memory with
anything else, runs `sg_call` and returns; whatever differs goes to the executable's checked Python
path with the same arguments. All addresses (types, API functions) come from the context
(`staticgrad_runtime.context` documents every word), as do the numbers of inputs and outputs: the
object code holds nothing of a process or a program, is compiled once, and travels in every
artifact.

`sg_call(context)` is `sg_run` under the arithmetic that kernels assume: round to nearest, no
flush-to-zero. Another library may have changed that for the thread; it is put back at the end.

`sg_refresh(context)` sees to the packed copies of state (`staticgrad_runtime.packed`); it is called
before either, with the cells and the GIL held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from staticgrad_runtime.context import (
    CALL_SYMBOL,
    CELL_RECORD_WORDS,
    ENTRY_SYMBOL,
    EXECUTABLE_CONTEXT,
    FLAG_ALIGNED,
    FLAG_C_CONTIGUOUS,
    FLAG_WRITEABLE,
    LIST_ITEMS,
    NDARRAY_DATA,
    NDARRAY_DESCR,
    NDARRAY_FLAGS,
    NDARRAY_NDIM,
    NDARRAY_SHAPE,
    OBJECT_TYPE,
    RECORD_WORDS,
    REFRESH_SYMBOL,
    RUN_SYMBOL,
    SEQUENCE_SIZE,
    STATUS_OK,
    TUPLE_ITEMS,
    VECTORCALL_OFFSET_FLAG,
    ArrayRecord,
    CellRecord,
    CellWord,
    PackRecord,
    Word,
)
from staticgrad_runtime.loader import fixed_code

from .builder import Function, Module
from .entry_emitter import Emitter
from .entry_sizes import SIZES_SYMBOL, Sizes
from .target import Target

MXCSR_DEFAULT = 0x1F80  # every exception masked, round to nearest, no FTZ, no DAZ
MXCSR_CONTROL = 0xFFC0  # all but the six sticky exception flags
FPCR_DEFAULT = 0  # the same on AArch64, whose sticky flags are in another register

# The call that packs state is the so-manieth in a row to find it unchanged. One row times a matrix
# takes a sixth to a thirteenth of the packing, so what changes every few calls is best left alone.
PATIENCE = 4


def entry_object(target: Target) -> bytes:
    """The object code of `sg_call`, `sg_refresh` and `sg_entry`; it wants `i32 @sg_run(ptr)` from
    the program.

    Compiled without optimisation: 5 ms against 30 at level 2, for 5 ns of the 85 of a call.
    """
    return fixed_code(_entry_text(target), (target.triple, target.cpu, target.features), level=0)


@functools.cache
def _entry_text(target: Target) -> str:
    module = Module(target)
    module.intrinsic(RUN_SYMBOL, "i32", "ptr")
    emit_entry(module)
    return module.to_text()


def emit_entry(module: Module) -> None:
    """Defines `sg_call`, `sg_refresh` and `sg_entry` in `module`, which must have
    `i32 @sg_run(ptr)`."""
    _emit_call(module)
    _Refresh(module).emit()
    Sizes(module).emit()
    _Entry(module).emit()


def _emit_call(module: Module) -> None:
    f = Function(module, CALL_SYMBOL, [("ptr", "context")], "i32", linkage="")
    if module.target.is_x86:
        module.intrinsic("llvm.x86.sse.stmxcsr", "void", "ptr")
        module.intrinsic("llvm.x86.sse.ldmxcsr", "void", "ptr")
        saved = f.emit("alloca i32")
        wanted = f.emit("alloca i32")
        f.stmt(f"call void @llvm.x86.sse.stmxcsr(ptr {saved})")
        found = f.emit(f"load i32, ptr {saved}")
        control = f.emit(f"and i32 {found}, {MXCSR_CONTROL}")
        ours = f.emit(f"icmp eq i32 {control}, {MXCSR_DEFAULT}")
        f.stmt(f"store i32 {MXCSR_DEFAULT}, ptr {wanted}")
        change = f"call void @llvm.x86.sse.ldmxcsr(ptr {wanted})"
        restore = f"call void @llvm.x86.sse.ldmxcsr(ptr {saved})"
    else:
        module.intrinsic("llvm.aarch64.get.fpcr", "i64")
        module.intrinsic("llvm.aarch64.set.fpcr", "void", "i64")
        found = f.emit("call i64 @llvm.aarch64.get.fpcr()")
        ours = f.emit(f"icmp eq i64 {found}, {FPCR_DEFAULT}")
        change = f"call void @llvm.aarch64.set.fpcr(i64 {FPCR_DEFAULT})"
        restore = f"call void @llvm.aarch64.set.fpcr(i64 {found})"
    f.branch_if(ours, "plain", "guarded")
    f.label("plain")
    f.stmt(f"ret i32 {f.emit(f'call i32 @{RUN_SYMBOL}(ptr %context)')}")
    f.label("guarded")
    f.stmt(change)
    result = f.emit(f"call i32 @{RUN_SYMBOL}(ptr %context)")
    f.stmt(restore)
    f.stmt(f"ret i32 {result}")
    f.finish()


class _Refresh(Emitter):
    """Emits `void @sg_refresh(ptr context)`: puts each packed copy that the binding reads into the
    buffer table, or null where there is none of the present version; packs what is due."""

    def __init__(self, module: Module) -> None:
        self.f = Function(module, REFRESH_SYMBOL, [("ptr", "context")], linkage="")
        self.words = "%context"

    def emit(self) -> None:
        self.loop(self.word(Word.N_PACKS, "i64"), self.one)
        self.f.stmt("ret void")
        self.f.finish()

    def one(self, index: str) -> None:
        f = self.f
        place = f.emit(f"getelementptr ptr, ptr {self.word(Word.PACKS)}, i64 {index}")
        record = f.emit(f"load ptr, ptr {place}")

        def field(name: PackRecord, ty: str = "i64") -> str:
            return self.at(record, 8 * name, ty)

        def store(name: PackRecord, value: str) -> None:
            where = f.emit(f"getelementptr i64, ptr {record}, i64 {int(name)}")
            f.stmt(f"store i64 {value}, ptr {where}")

        slot = f.emit(
            f"getelementptr ptr, ptr {self.word(Word.BUFFERS)}, i64 {field(PackRecord.BUFFER)}"
        )
        memory = field(PackRecord.MEMORY, "ptr")
        version = self.at(field(PackRecord.CELL, "ptr"), 8 * CellWord.VERSION, "i64")
        changed, absent, due, ready, next_ = (
            f.new_label(name) for name in ("changed", "absent", "due", "ready", "next")
        )
        f.branch_if(f.emit(f"icmp eq i64 {version}, {field(PackRecord.VERSION)}"), ready, changed)
        f.label(changed)
        seen = f.emit(f"icmp eq i64 {version}, {field(PackRecord.SEEN)}")
        more = f.emit(f"add i64 {field(PackRecord.CALLS)}, 1")
        calls = f.emit(f"select i1 {seen}, i64 {more}, i64 1")
        store(PackRecord.SEEN, version)
        store(PackRecord.CALLS, calls)
        f.branch_if(f.emit(f"icmp slt i64 {calls}, {PATIENCE}"), absent, due)
        f.label(absent)
        f.stmt(f"store ptr null, ptr {slot}")
        f.branch(next_)
        f.label(due)
        f.stmt(f"store ptr {memory}, ptr {slot}")
        number = field(PackRecord.NUMBER)
        f.stmt(f"call void {self.word(Word.PACK)}(ptr %context, i64 {number})")
        store(PackRecord.VERSION, version)
        f.branch(next_)
        f.label(ready)
        f.stmt(f"store ptr {memory}, ptr {slot}")
        f.branch(next_)
        f.label(next_)


class _Entry(Emitter):
    """Emits `sg_entry`. Values that several blocks use are emitted in the entry block."""

    def __init__(self, module: Module) -> None:
        params = [("ptr", "self"), ("ptr", "args"), ("i64", "nargsf"), ("ptr", "names")]
        self.f = Function(module, ENTRY_SYMBOL, params, "ptr", linkage="")

    # The stages of a call

    def emit(self) -> None:
        f = self.f
        self.words = self.at(self.at("%self", EXECUTABLE_CONTEXT), NDARRAY_DATA)
        self.buffers = self.word(Word.BUFFERS)
        self.ndarray_type = self.word(Word.NDARRAY_TYPE)
        self.outputs = self.word(Word.ARRAYS)
        self.n_inputs = self.word(Word.N_INPUTS, "i64")
        self.n_outputs = self.word(Word.N_OUTPUTS, "i64")
        self.n_cells = self.word(Word.N_CELLS, "i64")
        count = f.emit(f"and i64 %nargsf, {VECTORCALL_OFFSET_FLAG - 1}")
        self.require(f.emit(f"icmp eq i64 {count}, {self.n_inputs}"), "checked")
        out = self.find_out()
        busy = self.word(Word.BUSY, "i64")
        self.require(f.emit(f"icmp eq i64 {busy}, 0"), "checked")
        f.branch("match")
        f.label("match")
        self.loop(self.n_inputs, self.match_input)
        self.items = self.match_out(out)
        self.loop(self.n_cells, self.test_cell)
        self.loop(self.n_cells, self.hold_cell)
        self.store_word(Word.BUSY, 1)
        self.provide()
        self.run()
        self.emit_other_sizes()
        self.emit_checked()
        self.emit_no_memory()
        f.finish()

    def find_out(self) -> str:
        """The value of `out=`, null where no argument has a name; any other name is checked."""
        f = self.f
        unnamed = f.emit("icmp eq ptr %names, null")
        before = f.block
        f.branch_if(unnamed, "arguments", "named")
        f.label("named")
        size = self.at("%names", SEQUENCE_SIZE, "i64")
        self.require(f.emit(f"icmp eq i64 {size}, 1"), "checked")
        name = self.at("%names", TUPLE_ITEMS)
        self.require(f.emit(f"icmp eq ptr {name}, {self.word(Word.OUT_NAME)}"), "checked")
        where = f.emit(f"getelementptr ptr, ptr %args, i64 {self.n_inputs}")
        value = f.emit(f"load ptr, ptr {where}")
        last = f.block
        f.branch("arguments")
        f.label("arguments")
        return f.emit(f"phi ptr [ null, %{before} ], [ {value}, %{last} ]")

    def match_input(self, index: str) -> None:
        """Compares an argument with its record; stores its data pointer in the buffer table."""
        value = self.f.emit(
            f"load ptr, ptr {self.f.emit(f'getelementptr ptr, ptr %args, i64 {index}')}"
        )
        record = self.record(Word.INPUTS, index, RECORD_WORDS)
        self.match(value, record, FLAG_C_CONTIGUOUS | FLAG_ALIGNED, "other_sizes")

    def match(self, value: str, record: str, wanted: int, otherwise: str) -> None:
        """Compares an object with a record: an array of its type and with these flags, else to the
        checked path; of its dims, else to `otherwise`."""
        f = self.f
        kind = self.at(value, OBJECT_TYPE)
        self.require(f.emit(f"icmp eq ptr {kind}, {self.ndarray_type}"), "checked")
        descr, expected = self.at(value, NDARRAY_DESCR), self.at(record, 8 * ArrayRecord.DESCR)
        same = f.emit(f"icmp eq ptr {descr}, {expected}")
        ndim = self.at(record, 8 * ArrayRecord.NDIM, "i64")
        found = f.emit(f"zext i32 {self.at(value, NDARRAY_NDIM, 'i32')} to i64")
        rank = f.emit(f"icmp eq i64 {found}, {ndim}")
        flags = f.emit(f"and i32 {self.at(value, NDARRAY_FLAGS, 'i32')}, {wanted}")
        is_dense = f.emit(f"icmp eq i32 {flags}, {wanted}")
        both = f.emit(f"and i1 {same}, {rank}")
        self.require(f.emit(f"and i1 {both}, {is_dense}"), "checked")
        shape, bound = self.at(value, NDARRAY_SHAPE), self.at(record, 8 * ArrayRecord.SHAPE)

        def match_dim(axis: str) -> None:
            sizes = [
                f.emit(f"load i64, ptr {f.emit(f'getelementptr i64, ptr {table}, i64 {axis}')}")
                for table in (shape, bound)
            ]
            self.require(f.emit(f"icmp eq i64 {sizes[0]}, {sizes[1]}"), otherwise)

        self.loop(ndim, match_dim)
        self.set_buffer(record, value)

    def match_out(self, out: str) -> str:
        """Where the arrays of `out=` stand, each of which fits its record and shares memory with no
        input, no state and no other; null without `out=`. Those of a list can't change before
        `provide` holds them: until then no Python code runs and the GIL is kept."""
        f = self.f
        before = f.block
        f.branch_if(f.emit(f"icmp eq ptr {out}, null"), "no_out", "given")
        f.label("given")
        single = f.emit(f"icmp ne i64 {self.word(Word.SINGLE, 'i64')}, 0")
        bare = f.emit(f"getelementptr ptr, ptr %args, i64 {self.n_inputs}")
        given = f.block
        f.branch_if(single, "listed", "several_out")
        f.label("several_out")
        inside = self.items_of(out)
        several = f.block
        f.branch("listed")
        f.label("listed")
        items = f.emit(f"phi ptr [ {bare}, %{given} ], [ {inside}, %{several} ]")

        def match(index: str) -> None:
            value = f.emit(
                f"load ptr, ptr {f.emit(f'getelementptr ptr, ptr {items}, i64 {index}')}"
            )
            record = self.record(Word.OUTPUTS, index, RECORD_WORDS)
            wanted = FLAG_C_CONTIGUOUS | FLAG_ALIGNED | FLAG_WRITEABLE
            self.match(value, record, wanted, "checked")
            mine = self.range_of(record)

            def apart_from_cell(cell: str) -> None:
                other = self.record(Word.CELLS, cell, CELL_RECORD_WORDS)
                start = self.at(other, 8 * CellRecord.START, "i64")
                self.apart(mine, (start, self.at(other, 8 * CellRecord.STOP, "i64")))

            def apart_from(table: Word) -> Callable[[str], None]:
                return lambda i: self.apart(
                    mine, self.range_of(self.record(table, i, RECORD_WORDS))
                )

            self.loop(self.n_inputs, apart_from(Word.INPUTS))
            self.loop(index, apart_from(Word.OUTPUTS))
            self.loop(self.n_cells, apart_from_cell)

        self.loop(self.n_outputs, match)
        last = f.block
        f.branch("no_out")
        f.label("no_out")
        return f.emit(f"phi ptr [ null, %{before} ], [ {items}, %{last} ]")

    def items_of(self, out: str) -> str:
        """Where the items of a tuple or list stand, one an output."""
        f = self.f
        kind = self.at(out, OBJECT_TYPE)
        behind = f.emit(f"getelementptr i8, ptr {out}, i64 {TUPLE_ITEMS}")
        is_tuple = f.emit(f"icmp eq ptr {kind}, {self.word(Word.TUPLE_TYPE)}")
        of_tuple = f.block
        f.branch_if(is_tuple, "sized", "not_tuple")
        f.label("not_tuple")
        self.require(f.emit(f"icmp eq ptr {kind}, {self.word(Word.LIST_TYPE)}"), "checked")
        pointed = self.at(out, LIST_ITEMS)
        of_list = f.block
        f.branch("sized")
        f.label("sized")
        items = f.emit(f"phi ptr [ {behind}, %{of_tuple} ], [ {pointed}, %{of_list} ]")
        size = self.at(out, SEQUENCE_SIZE, "i64")
        self.require(f.emit(f"icmp eq i64 {size}, {self.n_outputs}"), "checked")
        return items

    def range_of(self, record: str) -> tuple[str, str]:
        """Where the memory of the array in a record's buffer starts and stops."""
        f = self.f
        buffer = self.at(record, 8 * ArrayRecord.BUFFER, "i64")
        slot = f.emit(f"getelementptr i64, ptr {self.buffers}, i64 {buffer}")
        start = f.emit(f"load i64, ptr {slot}")
        size = self.at(self.at(record, 8 * ArrayRecord.BYTES), 0, "i64")
        return start, f.emit(f"add i64 {start}, {size}")

    def apart(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        """Goes on where two ranges share no byte, else to the checked path, which copies."""
        f = self.f
        before = f.emit(f"icmp ule i64 {a[1]}, {b[0]}")
        behind = f.emit(f"icmp ule i64 {b[1]}, {a[0]}")
        self.require(f.emit(f"or i1 {before}, {behind}"), "checked")

    def set_buffer(self, record: str, array: str) -> None:
        buffer = self.at(record, 8 * ArrayRecord.BUFFER, "i64")
        slot = self.f.emit(f"getelementptr ptr, ptr {self.buffers}, i64 {buffer}")
        self.f.stmt(f"store ptr {self.at(array, NDARRAY_DATA)}, ptr {slot}")

    def test_cell(self, index: str) -> None:
        """A cell must be free of writers, and of readers too where it is written."""
        f = self.f
        record = self.record(Word.CELLS, index, CELL_RECORD_WORDS)
        cell = self.at(record, 8 * CellRecord.CELL)
        written = self.at(record, 8 * CellRecord.WRITTEN, "i64")
        native = self.at(cell, 8 * CellWord.NATIVE, "i64")
        holders = f.emit(f"or i64 {native}, {self.at(cell, 8 * CellWord.CLAIM, 'i64')}")
        # a writer is -1: the sign of the union tells of one, its zero that nobody is there
        unused = f.emit(f"icmp eq i64 {holders}, 0")
        readable = f.emit(f"icmp sge i64 {holders}, 0")
        writes = f.emit(f"icmp ne i64 {written}, 0")
        self.require(f.emit(f"select i1 {writes}, i1 {unused}, i1 {readable}"), "checked")

    def hold_cell(self, index: str) -> None:
        self.add_holder(index, release=False)

    def add_holder(self, index: str, release: bool) -> str:
        """Counts a reader in or out; a writer is -1. Returns the cell's record."""
        f = self.f
        record = self.record(Word.CELLS, index, CELL_RECORD_WORDS)
        cell = self.at(record, 8 * CellRecord.CELL)
        written = self.at(record, 8 * CellRecord.WRITTEN, "i64")
        native = self.at(cell, 8 * CellWord.NATIVE, "i64")
        writes = f.emit(f"icmp ne i64 {written}, 0")
        step = f.emit(f"select i1 {writes}, i64 {'1, i64 -1' if release else '-1, i64 1'}")
        where = f.emit(f"getelementptr i64, ptr {cell}, i64 {int(CellWord.NATIVE)}")
        f.stmt(f"store i64 {f.emit(f'add i64 {native}, {step}')}, ptr {where}")
        return record

    def let_go(self, success: str) -> None:
        """Gives the cells back, counts a write in those written where `success` (i64 0 or 1)."""

        def release(index: str) -> None:
            f = self.f
            record = self.add_holder(index, release=True)
            cell = self.at(record, 8 * CellRecord.CELL)
            written = self.at(record, 8 * CellRecord.WRITTEN, "i64")
            version = self.at(cell, 8 * CellWord.VERSION, "i64")
            bump = f.emit(f"and i64 {written}, {success}")
            where = f.emit(f"getelementptr i64, ptr {cell}, i64 {int(CellWord.VERSION)}")
            f.stmt(f"store i64 {f.emit(f'add i64 {version}, {bump}')}, ptr {where}")

        self.loop(self.n_cells, release)

    def provide(self) -> None:
        """The arrays of the results: those of `out=`, or new ones."""
        f = self.f
        f.branch_if(f.emit(f"icmp eq ptr {self.items}, null"), "new_arrays", "their_arrays")
        f.label("their_arrays")

        def hold(index: str) -> None:
            where = f.emit(f"getelementptr ptr, ptr {self.items}, i64 {index}")
            array = f.emit(f"load ptr, ptr {where}")
            f.stmt(f"call void {self.word(Word.INC_REF)}(ptr {array})")
            slot = f.emit(f"getelementptr ptr, ptr {self.outputs}, i64 {index}")
            f.stmt(f"store ptr {array}, ptr {slot}")

        self.loop(self.n_outputs, hold)
        f.branch("provided")
        f.label("new_arrays")
        self.loop(self.n_outputs, self.allocate)
        f.branch("provided")
        f.label("provided")

    def allocate(self, index: str) -> None:
        """A new array of the bound shape; its data pointer goes to the buffer table."""
        f = self.f
        record = self.record(Word.OUTPUTS, index, RECORD_WORDS)
        ndim = f.emit(f"trunc i64 {self.at(record, 8 * ArrayRecord.NDIM, 'i64')} to i32")
        number = f.emit(f"trunc i64 {self.at(record, 8 * ArrayRecord.TYPE_NUM, 'i64')} to i32")
        shape = self.at(record, 8 * ArrayRecord.SHAPE)
        array = f.emit(
            f"call ptr {self.word(Word.ARRAY_NEW)}(ptr {self.ndarray_type}, i32 {ndim}, "
            f"ptr {shape}, i32 {number}, ptr null, ptr null, i32 0, i32 0, ptr null)"
        )
        slot = f.emit(f"getelementptr ptr, ptr {self.outputs}, i64 {index}")
        f.stmt(f"store ptr {array}, ptr {slot}")
        self.made = index
        self.require(f.emit(f"icmp ne ptr {array}, null"), "no_memory")
        self.set_buffer(record, array)

    def drop_outputs(self, count: str) -> None:
        def drop(index: str) -> None:
            slot = self.f.emit(f"getelementptr ptr, ptr {self.outputs}, i64 {index}")
            self.drop(self.f.emit(f"load ptr, ptr {slot}"))

        self.loop(count, drop)

    def drop(self, value: str) -> None:
        self.f.stmt(f"call void {self.word(Word.DEC_REF)}(ptr {value})")

    def run(self) -> None:
        """Runs, without the GIL where the bound cost is worth it, and returns the results."""
        f = self.f
        f.stmt(f"call void @{REFRESH_SYMBOL}(ptr {self.words})")
        self.store_word(Word.STATUS, STATUS_OK)
        release = f.emit(f"icmp ne i64 {self.word(Word.RELEASE_GIL, 'i64')}, 0")
        f.branch_if(release, "released", "held")
        f.label("held")
        held = f.emit(f"call i32 @{CALL_SYMBOL}(ptr {self.words})")
        f.branch("ran")
        f.label("released")
        thread = f.emit(f"call ptr {self.word(Word.SAVE_THREAD)}()")
        released = f.emit(f"call i32 @{CALL_SYMBOL}(ptr {self.words})")
        f.stmt(f"call void {self.word(Word.RESTORE_THREAD)}(ptr {thread})")
        f.branch("ran")
        f.label("ran")
        status = f.emit(f"phi i32 [ {held}, %held ], [ {released}, %released ]")
        good = f.emit(f"icmp eq i32 {status}, 0")
        self.let_go(f.emit(f"zext i1 {good} to i64"))
        f.branch_if(good, "finish", "failed")
        f.label("finish")
        self.store_word(Word.BUSY, 0)
        self.emit_result()
        f.label("failed")
        self.emit_failure()

    def emit_result(self) -> None:
        f = self.f
        single = f.emit(f"icmp ne i64 {self.word(Word.SINGLE, 'i64')}, 0")
        f.branch_if(single, "bare", "several")
        f.label("bare")
        f.stmt(f"ret ptr {f.emit(f'load ptr, ptr {self.outputs}')}")
        f.label("several")
        made = f.emit(f"call ptr {self.word(Word.TUPLE_NEW)}(i64 {self.n_outputs})")
        f.branch_if(f.emit(f"icmp ne ptr {made}, null"), "fill", "no_tuple")
        f.label("fill")

        def fill(index: str) -> None:
            slot = f.emit(f"getelementptr ptr, ptr {self.outputs}, i64 {index}")
            array = f.emit(f"load ptr, ptr {slot}")
            setter = self.word(Word.TUPLE_SET_ITEM)
            f.emit(f"call i32 {setter}(ptr {made}, i64 {index}, ptr {array})")

        self.loop(self.n_outputs, fill)
        f.stmt(f"ret ptr {made}")
        f.label("no_tuple")
        self.drop_outputs(self.n_outputs)
        f.stmt("ret ptr null")

    def emit_failure(self) -> None:
        """Calls the Python function that raises, with (code, element, value, *arguments)."""
        f = self.f
        reported = [self.word(word, "i64") for word in (Word.STATUS, Word.ELEMENT, Word.VALUE)]
        self.store_word(Word.BUSY, 0)  # the words above may change from here on
        self.drop_outputs(self.n_outputs)
        numbers = [f.emit(f"call ptr {self.word(Word.LONG_NEW)}(i64 {v})") for v in reported]
        method = self.bind_method(Word.RAISE_FAILURE)
        usable = f.emit(f"icmp ne ptr {method}, null")
        for number in numbers:
            usable = f.emit(f"and i1 {usable}, {f.emit(f'icmp ne ptr {number}, null')}")
        self.require(usable, "failed_twice")
        count = f.emit(f"add i64 {self.n_inputs}, {len(numbers)}")
        report = f.emit(f"alloca ptr, i64 {count}")
        for i, number in enumerate(numbers):
            slot = f.emit(f"getelementptr ptr, ptr {report}, i64 {i}")
            f.stmt(f"store ptr {number}, ptr {slot}")

        def copy(index: str) -> None:
            source = f.emit(f"getelementptr ptr, ptr %args, i64 {index}")
            slot = f.emit(f"getelementptr ptr, ptr {report}, i64 {index}")
            slot = f.emit(f"getelementptr ptr, ptr {slot}, i64 {len(numbers)}")
            f.stmt(f"store ptr {f.emit(f'load ptr, ptr {source}')}, ptr {slot}")

        self.loop(self.n_inputs, copy)
        result = f.emit(
            f"call ptr {self.word(Word.VECTORCALL)}(ptr {method}, ptr {report}, i64 {count}, "
            "ptr null)"
        )
        for value in (method, *numbers):
            self.drop(value)
        f.stmt(f"ret ptr {result}")
        f.label("failed_twice")  # no memory for the report: MemoryError is set
        f.stmt("ret ptr null")

    def bind_method(self, function: Word) -> str:
        """A bound method of the executable: PyMethod_New(function, self)."""
        new = self.word(Word.METHOD_NEW)
        return self.f.emit(f"call ptr {new}(ptr {self.word(function)}, ptr %self)")

    def emit_other_sizes(self) -> None:
        """Arguments of other sizes: all is compared anew if they have a frame."""
        f = self.f
        f.label("other_sizes")
        known = f.emit(f"call i1 @{SIZES_SYMBOL}(ptr {self.words}, ptr %args)")
        f.branch_if(known, "match", "checked")

    def emit_checked(self) -> None:
        """The way out for any other call: the same arguments to the checked Python path."""
        f = self.f
        f.label("checked")
        method = self.bind_method(Word.CHECKED_CALL)
        self.require(f.emit(f"icmp ne ptr {method}, null"), "no_method")
        result = f.emit(
            f"call ptr {self.word(Word.VECTORCALL)}(ptr {method}, ptr %args, i64 %nargsf, "
            "ptr %names)"
        )
        self.drop(method)
        f.stmt(f"ret ptr {result}")
        f.label("no_method")
        f.stmt("ret ptr null")

    def emit_no_memory(self) -> None:
        """An output could not be allocated; NumPy has set the error, nothing has run."""
        self.f.label("no_memory")
        self.drop_outputs(self.made)
        self.let_go("0")
        self.store_word(Word.BUSY, 0)
        self.f.stmt("ret ptr null")
