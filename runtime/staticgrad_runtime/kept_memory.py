"""Memory of large outputs that is kept when their arrays die, for the outputs of later calls.

Freed blocks of a megabyte and more go back to the system, and come again a page at a time, zeroed:
of the 7.0 ms that a layer norm and its gradient took (two outputs of 16 MiB) that was 3.8. So the
native entry makes large outputs with a memory handler of our own (NumPy's NEP 49), which keeps up
to KEPT_BYTES of blocks that no array uses any more. They stay ordinary arrays that own their data.

    ptr sg_array_new(...)           PyArray_New, with our handler set meanwhile
    ptr sg_malloc(ctx, size)        the handler's four functions; a block begins with a header, the
    ptr sg_calloc(ctx, n, size)     first word of which is the block's size
    ptr sg_realloc(ctx, ptr, size)
    void sg_free(ctx, ptr, size)
    void sg_release()               gives all that is kept back to the system

The table of kept blocks is behind a lock that nobody waits for: who finds it taken (another thread,
or the parent at the moment of a fork) asks the C library instead. Linux only; elsewhere, and on the
portable path, NumPy's own handler serves.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from enum import IntEnum
from typing import Any

import numpy as np
from numpy._core.multiarray import get_handler_name as handler_name

from .arena import address, aligned_words
from .forks import ForkSafeLock, no_fork
from .layout import NativeInterface, array_api, new_array
from .loader import compile_text, host_code, libc_address

# Below this malloc keeps the memory itself (its threshold for mmap begins at 128 KiB and follows
# what is freed up to 32 MiB, but the top of the heap is trimmed).
KEPT_LEAST_BYTES = 256 << 10
KEPT_BYTES = 256 << 20
# Blocks from here on are aligned for huge pages and ask for them: an eighth of the page faults and
# TLB misses at first, none later.
_HUGE_BYTES = 4 << 20
# Large arrays of NumPy's lie 16 bytes behind a page's begin. A result that lay 64 behind one was
# stored to what the next loads looked like to the processor, which compares the last 12 bits of
# addresses first: 1.8 ns an element for a chain of 8M, 0.9 with the data 256 or 512 behind.
_HEADER_BYTES = 512

_API_SET_HANDLER = 304  # PyDataMem_SetHandler in NumPy's C API table, since 1.22
_SLOTS = 16


class KeptWord(IntEnum):
    """Words of the table of kept blocks."""

    LOCK = 0
    BYTES = 1  # kept now
    HAND = 2  # the slot that is given up next
    HANDLER = 3  # PyObject*: the capsule of our handler
    SLOTS = 8  # pairs (block, its bytes); 0 where empty


_TEXT = """
@sg_kept = external global i64

declare i32 @posix_memalign(ptr, i64, i64)
declare i32 @madvise(ptr, i64, i32)
declare void @free(ptr)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare { i64, i1 } @llvm.umul.with.overflow.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
declare ptr @PyArray_New(ptr, i32, ptr, i32, ptr, ptr, i32, i32, ptr)
declare ptr @PyDataMem_SetHandler(ptr)
declare void @Py_DecRef(ptr)

define ptr @sg_array_new(ptr %type, i32 %nd, ptr %dims, i32 %num, ptr %strides, ptr %data,
                         i32 %itemsize, i32 %flags, ptr %object) nounwind {
entry:
  %handler_at = getelementptr i64, ptr @sg_kept, i64 $HANDLER$
  %handler = load ptr, ptr %handler_at
  %old = call ptr @PyDataMem_SetHandler(ptr %handler)
  %bad = icmp eq ptr %old, null
  br i1 %bad, label %failed, label %make
failed:
  ret ptr null
make:
  %array = call ptr @PyArray_New(ptr %type, i32 %nd, ptr %dims, i32 %num, ptr %strides, ptr %data,
                                 i32 %itemsize, i32 %flags, ptr %object)
  %ours = call ptr @PyDataMem_SetHandler(ptr %old)
  call void @Py_DecRef(ptr %old)
  %none = icmp eq ptr %ours, null
  br i1 %none, label %done, label %drop
drop:
  call void @Py_DecRef(ptr %ours)
  br label %done
done:
  ret ptr %array
}

define internal i1 @lock() nounwind {
  %r = cmpxchg ptr @sg_kept, i64 0, i64 1 acquire monotonic
  %mine = extractvalue { i64, i1 } %r, 1
  ret i1 %mine
}

define internal void @unlock() nounwind {
  store atomic i64 0, ptr @sg_kept release, align 8
  ret void
}

define internal ptr @slot_at(i64 %i) nounwind {
  %twice = shl i64 %i, 1
  %word = add i64 %twice, $SLOTS$
  %at = getelementptr i64, ptr @sg_kept, i64 %word
  ret ptr %at
}

; takes the block out of a slot
define internal ptr @empty_slot(ptr %slot) nounwind {
  %block = load ptr, ptr %slot
  %bytes_at = getelementptr i64, ptr %slot, i64 1
  %bytes = load i64, ptr %bytes_at
  store ptr null, ptr %slot
  store i64 0, ptr %bytes_at
  %total_at = getelementptr i64, ptr @sg_kept, i64 $BYTES$
  %total = load i64, ptr %total_at
  %left = sub i64 %total, %bytes
  store i64 %left, ptr %total_at
  ret ptr %block
}

; a kept block of %need bytes, or of up to an eighth more; null if there is none
define internal ptr @take(i64 %need) nounwind {
entry:
  %mine = call i1 @lock()
  br i1 %mine, label %search, label %nothing
search:
  %i = phi i64 [ 0, %entry ], [ %i1, %next ]
  %slot = call ptr @slot_at(i64 %i)
  %bytes_at = getelementptr i64, ptr %slot, i64 1
  %bytes = load i64, ptr %bytes_at
  %spare = sub i64 %bytes, %need
  %most = lshr i64 %need, 3
  %fits = icmp ule i64 %spare, %most
  br i1 %fits, label %found, label %next
next:
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, $COUNT$
  br i1 %more, label %search, label %missing
missing:
  call void @unlock()
  br label %nothing
nothing:
  ret ptr null
found:
  %block = call ptr @empty_slot(ptr %slot)
  call void @unlock()
  ret ptr %block
}

define ptr @sg_malloc(ptr %ctx, i64 %size) nounwind {
entry:
  %place = alloca ptr
  %need = add i64 %size, $HEADER$
  %overflow = icmp ult i64 %need, %size
  br i1 %overflow, label %failed, label %look
look:
  %large = icmp uge i64 %need, $LEAST$
  br i1 %large, label %kept, label %fresh
kept:
  %old = call ptr @take(i64 %need)
  %reused = icmp ne ptr %old, null
  br i1 %reused, label %give, label %fresh
fresh:
  %huge = icmp uge i64 %need, $HUGE$
  %align = select i1 %huge, i64 2097152, i64 64
  %r = call i32 @posix_memalign(ptr %place, i64 %align, i64 %need)
  %fine = icmp eq i32 %r, 0
  br i1 %fine, label %made, label %failed
made:
  %new = load ptr, ptr %place
  store i64 %need, ptr %new
  br i1 %huge, label %advise, label %give
advise:
  %ignored = call i32 @madvise(ptr %new, i64 %need, i32 14)
  br label %give
give:
  %block = phi ptr [ %old, %kept ], [ %new, %made ], [ %new, %advise ]
  %data = getelementptr i8, ptr %block, i64 $HEADER$
  ret ptr %data
failed:
  ret ptr null
}

define ptr @sg_calloc(ptr %ctx, i64 %n, i64 %size) nounwind {
entry:
  %product = call { i64, i1 } @llvm.umul.with.overflow.i64(i64 %n, i64 %size)
  %all = extractvalue { i64, i1 } %product, 0
  %overflow = extractvalue { i64, i1 } %product, 1
  br i1 %overflow, label %failed, label %make
make:
  %data = call ptr @sg_malloc(ptr %ctx, i64 %all)
  %none = icmp eq ptr %data, null
  br i1 %none, label %failed, label %zero
zero:
  call void @llvm.memset.p0.i64(ptr %data, i8 0, i64 %all, i1 false)
  ret ptr %data
failed:
  ret ptr null
}

define ptr @sg_realloc(ptr %ctx, ptr %old, i64 %size) nounwind {
entry:
  %new = call ptr @sg_malloc(ptr %ctx, i64 %size)
  %none = icmp eq ptr %new, null
  %first = icmp eq ptr %old, null
  %plain = or i1 %none, %first
  br i1 %plain, label %done, label %copy
copy:
  %header = getelementptr i8, ptr %old, i64 -$HEADER$
  %block_bytes = load i64, ptr %header
  %held = sub i64 %block_bytes, $HEADER$
  %count = call i64 @llvm.umin.i64(i64 %held, i64 %size)
  call void @llvm.memcpy.p0.p0.i64(ptr %new, ptr %old, i64 %count, i1 false)
  call void @sg_free(ptr %ctx, ptr %old, i64 %held)
  br label %done
done:
  ret ptr %new
}

define void @sg_free(ptr %ctx, ptr %data, i64 %size) nounwind {
entry:
  %block = getelementptr i8, ptr %data, i64 -$HEADER$
  %nothing = icmp eq ptr %data, null
  br i1 %nothing, label %done, label %look
look:
  %bytes = load i64, ptr %block
  %large = icmp uge i64 %bytes, $LEAST$
  %small = icmp ule i64 %bytes, $LIMIT$
  %keeps = and i1 %large, %small
  br i1 %keeps, label %try, label %return
try:
  %mine = call i1 @lock()
  br i1 %mine, label %turn, label %return
turn:
  ; gives up what is next in turn until there is room
  %hand_at = getelementptr i64, ptr @sg_kept, i64 $HAND$
  %hand = load i64, ptr %hand_at
  %after = add i64 %hand, 1
  %wrapped = urem i64 %after, $COUNT$
  store i64 %wrapped, ptr %hand_at
  %slot = call ptr @slot_at(i64 %hand)
  %there = load ptr, ptr %slot
  %used = icmp ne ptr %there, null
  br i1 %used, label %evict, label %room
evict:
  %victim = call ptr @empty_slot(ptr %slot)
  call void @free(ptr %victim)
  br label %room
room:
  %total_at = getelementptr i64, ptr @sg_kept, i64 $BYTES$
  %total = load i64, ptr %total_at
  %sum = add i64 %total, %bytes
  %over = icmp ugt i64 %sum, $LIMIT$
  br i1 %over, label %turn, label %keep
keep:
  store ptr %block, ptr %slot
  %bytes_at = getelementptr i64, ptr %slot, i64 1
  store i64 %bytes, ptr %bytes_at
  store i64 %sum, ptr %total_at
  call void @unlock()
  ret void
return:
  call void @free(ptr %block)
  br label %done
done:
  ret void
}

define void @sg_release() nounwind {
entry:
  %mine = call i1 @lock()
  br i1 %mine, label %each, label %out
each:
  %i = phi i64 [ 0, %entry ], [ %i1, %each ]
  %slot = call ptr @slot_at(i64 %i)
  %block = call ptr @empty_slot(ptr %slot)
  call void @free(ptr %block)
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, $COUNT$
  br i1 %more, label %each, label %done
done:
  call void @unlock()
  br label %out
out:
  ret void
}
"""

_LEVEL = 1  # of optimisation
_EXPORTS = ("sg_array_new", "sg_malloc", "sg_calloc", "sg_realloc", "sg_free", "sg_release")


class _Handler(ctypes.Structure):
    """PyDataMem_Handler, version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


class _Keeper:
    """The handler's code, and the table of kept blocks. Neither is ever let go: an array may be
    freed after all modules are."""

    def __init__(self, api: dict[str, int]) -> None:
        self.words = aligned_words(KeptWord.SLOTS + 2 * _SLOTS)
        hooks = {name: libc_address(name) for name in ("posix_memalign", "madvise", "free")}
        hooks |= {"sg_kept": address(self.words), "PyArray_New": api["PyArray_New"]}
        hooks |= {"PyDataMem_SetHandler": api["PyDataMem_SetHandler"]}
        python: Any = ctypes.pythonapi
        hooks["Py_DecRef"] = ctypes.cast(python.Py_DecRef, ctypes.c_void_p).value or 0
        self._library = library = compile_text(_text(), _EXPORTS, hooks, level=_LEVEL)
        self.array_new = library.address("sg_array_new")
        self.release = ctypes.PYFUNCTYPE(None)(library.address("sg_release"))
        functions = [
            library.address(f"sg_{name}") for name in ("malloc", "calloc", "realloc", "free")
        ]
        self._handler = _Handler(b"staticgrad", 1, None, *functions)
        self._name = ctypes.create_string_buffer(b"mem_handler")
        python.PyCapsule_New.restype = ctypes.py_object
        python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._capsule = python.PyCapsule_New(
            ctypes.addressof(self._handler), ctypes.addressof(self._name), None
        )
        self.words[KeptWord.HANDLER] = id(self._capsule)
        python.Py_IncRef(ctypes.py_object(self))


def _text() -> str:
    numbers = {word.name: int(word) for word in KeptWord}
    numbers |= {
        "COUNT": _SLOTS,
        "LEAST": KEPT_LEAST_BYTES,
        "LIMIT": KEPT_BYTES,
        "HUGE": _HUGE_BYTES,
        "HEADER": _HEADER_BYTES,
    }
    text = _TEXT
    for name, number in numbers.items():
        text = text.replace(f"${name}$", str(number))
    return text


_keeper_lock = ForkSafeLock()


def generate() -> None:
    """Begins what the first large output waits for, on whichever thread calls."""
    if sys.platform == "linux":
        host_code(_text(), _LEVEL)


@functools.cache
def _keeper() -> _Keeper | None:
    """The process's one; None where NumPy's own handler serves."""
    api = array_api()
    if sys.platform != "linux" or api is None:
        return None
    keeper = _Keeper(api)
    made = new_array(keeper.array_new, (3, 5), "float32")
    ours = handler_name(made) == "staticgrad" != handler_name(np.empty(3))
    return keeper if ours and made.flags.owndata else None


def array_new(interface: NativeInterface, largest_bytes: int) -> int:
    """The function that makes a program's outputs, the largest of which has so many bytes."""
    if largest_bytes < KEPT_LEAST_BYTES:
        return interface.array_new
    with no_fork(), _keeper_lock:
        keeper = _keeper()
    return interface.array_new if keeper is None else keeper.array_new


def kept_bytes() -> int:
    """Bytes of dead outputs that are kept for later calls, at most KEPT_BYTES."""
    keeper = _keeper() if _keeper.cache_info().currsize else None
    return 0 if keeper is None else int(keeper.words[KeptWord.BYTES])


def release_kept() -> None:
    """Gives the memory of dead results that is kept for later ones back to the system."""
    keeper = _keeper() if _keeper.cache_info().currsize else None
    if keeper is not None:
        keeper.release()
