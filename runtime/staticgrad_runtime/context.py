"""The one place that says how compiled code and the runtime share memory.

A **context** is a table of 64-bit words that every entry of compiled code takes a pointer to. The
first 16 belong to `sg_run`, the rest to the native entry `sg_entry`, which is the same code for
every program (`codegen/entry.py` emits it with the constants below). No object code holds a process
address: all come from here.

    word  what
    0     pointer to the buffer table (a data pointer per buffer of the manifest)
    1     pointer to the dims table (i64 per symbol of the manifest, in order)
    2     status code: INT64_MAX before the run, then the smallest failing code
    3     failing element (flat index)
    4     failing value
    5     threads to run on; 0 and 1: the caller alone, no word below is read
    6     pointer to the pool's words (`pool_native.PoolWord`)
    7     `i32 sg_dispatch(ptr context, ptr share)`: runs `i32 share(ptr context, i64 tid, i64 n)`
          on those threads. Thread 0 gets this context, each other one a private copy of the first
          16 words with a status of its own; words 2-4 then hold the smallest (status, element)
    8     `i64 sg_barrier(ptr context, i64 n, i64 vote)`: gives every thread the or of all votes
    9     1 where the run is long enough to wait for workers that sleep
    10-12 what long loops ask for interrupts with, see `interrupt`
    13-15 reserved for `sg_run`
    16-   `sg_entry`, see `Word`

`i32 sg_run(ptr context)` returns 0, or another value where it failed before its commit point.
`i32 sg_call(ptr context)` is `sg_run` under round-to-nearest without flush-to-zero.
"""

from __future__ import annotations

from enum import IntEnum

STATUS_OK = 2**63 - 1


class Word(IntEnum):
    """Indices of context words."""

    BUFFERS = 0
    DIMS = 1
    STATUS = 2
    ELEMENT = 3
    VALUE = 4
    THREADS = 5
    POOL = 6
    DISPATCH = 7
    BARRIER = 8
    PATIENT = 9
    GIL_ENSURE = 10  # PyGILState_Ensure, or 0: loops don't ask
    INTERRUPT_OCCURRED = 11  # PyOS_InterruptOccurred
    GIL_RELEASE = 12  # PyGILState_Release
    RUN_LAST = 15
    BUSY = 16  # 1 while a call uses this context
    RELEASE_GIL = 17  # 1 where the bound cost exceeds GIL_RELEASE_NS
    INPUTS = 18  # pointer to the input records
    OUTPUTS = 19  # pointer to the output records
    CELLS = 20  # pointer to the state records
    NDARRAY_TYPE = 21  # PyTypeObject* of numpy.ndarray
    ARRAY_NEW = 22  # PyArray_New
    METHOD_NEW = 23  # PyMethod_New
    VECTORCALL = 24  # PyObject_Vectorcall
    DEC_REF = 25  # Py_DecRef
    TUPLE_NEW = 26  # PyTuple_New
    TUPLE_SET_ITEM = 27  # PyTuple_SetItem
    LONG_NEW = 28  # PyLong_FromLongLong
    SAVE_THREAD = 29  # PyEval_SaveThread
    RESTORE_THREAD = 30  # PyEval_RestoreThread
    CHECKED_CALL = 31  # PyObject* of the Python function that serves any call
    RAISE_FAILURE = 32  # PyObject* of the Python function that raises for a status
    N_INPUTS = 33
    N_OUTPUTS = 34
    N_CELLS = 35
    SINGLE = 36  # 1 where the one output is returned bare, not in a tuple
    ARRAYS = 37  # pointer to a table of the outputs that a call has made (PyObject*)
    # What `sg_dispatch` has measured of this binding, in ns; 0: nothing yet.
    ESTIMATE = 38  # what one thread should take
    TOGETHER = 39  # with all threads
    ALONE = 40  # with the caller's alone
    SPENT = 41  # since the slower way was last tried
    ENDED = 42  # when the last run was over, by the monotonic clock
    INC_REF = 43  # Py_IncRef
    TUPLE_TYPE = 44  # PyTypeObject* of tuple
    OUT_NAME = 45  # PyObject* of the interned "out"
    PACKS = 46  # pointer to a table of pointers to the records of packed copies, see PackRecord
    N_PACKS = 47  # how many of them this binding reads
    PACK = 48  # `void sg_pack(ptr context, i64 which)` of the program
    LIST_TYPE = 49  # PyTypeObject* of list
    # What depends on sizes, see `frames`.
    FRAMES = 50  # pointer to the program's `FramesWord`s; 0 where it has no symbols
    FRAME = 51  # pointer to the frame that this context is bound to, 0: to none that is kept
    SIZED = 52  # pointer to the context's copy of a frame's tables
    N_SIZED = 53  # words of it
    N_KEY = 54  # how many of them, the first ones, are the dims of inputs
    TEMPS = 55  # pointer to the temporaries' indices in the buffer table
    N_TEMPS = 56
    ARENA = 57  # the block that they lie in
    ARENA_BYTES = 58
    PACKED = 59  # pointer to the packed copies' indices in the buffer table
    N_PACKED = 60


CONTEXT_WORDS = 64

# Above this the GIL is released: giving it up and taking it back costs some 50 ns when nobody
# waits, and up to a switch interval when somebody does.
GIL_RELEASE_NS = 20_000


class ArrayRecord(IntEnum):
    """Words of the record of one input or output: what the native entry compares an argument or an
    array of `out=` with, and what it allocates."""

    DESCR = 0  # PyArray_Descr* of the native dtype
    NDIM = 1
    BUFFER = 2  # index in the buffer table
    SHAPE = 3  # pointer to the bound dims
    BYTES = 4  # pointer to the size at these dims
    TYPE_NUM = 5


class FrameWord(IntEnum):
    """Words of a frame: what binding a program to sizes sets in a context. Behind TABLES come the
    tables that a context has a copy of (inputs' dims, outputs' dims, bytes of inputs, of outputs,
    packed copies that are read, symbols), then the offsets of temporaries in the arena."""

    HASH = 0  # of the inputs' dims, see `frames.dims_hash`
    USED = 1  # when a context was bound to it last, by the clock of `FramesWord`
    PEAK = 2  # bytes of arena that it needs
    N_PACKS = 3
    ARRAY_NEW = 4
    RELEASE_GIL = 5
    THREADS = 6
    PATIENT = 7
    POOL = 8
    DISPATCH = 9
    BARRIER = 10
    ESTIMATE = 11
    TOGETHER = 12  # these three as the context had them when it was bound to another
    ALONE = 13
    SPENT = 14
    TABLES = 16


# Words of a frame that are words of the context as well.
FRAME_TO_WORD = (
    (FrameWord.N_PACKS, Word.N_PACKS),
    (FrameWord.ARRAY_NEW, Word.ARRAY_NEW),
    (FrameWord.RELEASE_GIL, Word.RELEASE_GIL),
    (FrameWord.THREADS, Word.THREADS),
    (FrameWord.PATIENT, Word.PATIENT),
    (FrameWord.POOL, Word.POOL),
    (FrameWord.DISPATCH, Word.DISPATCH),
    (FrameWord.BARRIER, Word.BARRIER),
    (FrameWord.ESTIMATE, Word.ESTIMATE),
    (FrameWord.TOGETHER, Word.TOGETHER),
    (FrameWord.ALONE, Word.ALONE),
    (FrameWord.SPENT, Word.SPENT),
)
MEASURED = FRAME_TO_WORD[-3:]

FRAME_HASH_FACTOR = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio
FRAME_HASH_SHIFT = 32


class FramesWord(IntEnum):
    """Words of a program's table of frames, which all its contexts share; written with the GIL."""

    TABLE = 0  # pointer to a mask and so many slots and one; each a frame's address or 0
    CLOCK = 1  # counts bindings


FRAMES_WORDS = 8


class CellRecord(IntEnum):
    """Words of one state cell's record."""

    CELL = 0  # pointer to the cell's words, see CellWord
    WRITTEN = 1
    START = 2  # its memory
    STOP = 3


class PackRecord(IntEnum):
    """Words of the record of one packed copy of a state cell, which all contexts of an executable
    and its twins share; written with the GIL held, see `packed`."""

    CELL = 0  # pointer to the cell's words
    VERSION = 1  # of the cell that the copy holds, -1: none
    SEEN = 2  # that the last call found
    CALLS = 3  # and how many calls in a row have
    MEMORY = 4
    BUFFER = 5  # index in the buffer table
    NUMBER = 6  # what `sg_pack` calls it


class CellWord(IntEnum):
    """Words of a state cell. `NATIVE` is written by native entries alone, and only while they hold
    the GIL, so that test and set are one step; `CLAIM` by Python alone, under a mutex."""

    NATIVE = 0  # readers inside native calls, or -1 for a writer
    CLAIM = 1  # readers holding or -1 for a writer holding or awaiting it, on the Python side
    VERSION = 2  # bumped by every writer


RECORD_WORDS = 6  # of an input or output record
CELL_RECORD_WORDS = 4
PACK_RECORD_WORDS = 8
CELL_WORDS = 8  # a cache line each


# CPython and NumPy structures, as offsets in bytes. `layout.py` compares them with live objects
# before the native entry is used; where one differs the portable path serves.
OBJECT_TYPE = 8
EXECUTABLE_CONTEXT = 16  # the executable's slot that holds the published words (an ndarray)
NDARRAY_DATA = 16
NDARRAY_NDIM = 24
NDARRAY_SHAPE = 32
NDARRAY_DESCR = 56
NDARRAY_FLAGS = 64
FLAG_C_CONTIGUOUS = 0x0001
FLAG_ALIGNED = 0x0100
FLAG_WRITEABLE = 0x0400
SEQUENCE_SIZE = 16  # of a tuple and of a list
TUPLE_ITEMS = 24  # the items themselves
LIST_ITEMS = 24  # a pointer to them
VECTORCALL_OFFSET_FLAG = 1 << 63

RUN_SYMBOL = "sg_run"
CALL_SYMBOL = "sg_call"
PACK_SYMBOL = "sg_pack"
REFRESH_SYMBOL = "sg_refresh"
ENTRY_SYMBOL = "sg_entry"
