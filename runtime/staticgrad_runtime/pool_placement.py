"""Native code that keeps a program's workers off the core that their caller is on.

The scheduler wakes a thread on the core of whoever wakes it when it takes the other for busy, and
may leave the two there for tens of milliseconds: twice the time, since they wait for each other.

    void introduce(ptr slot)                    a worker notes the system's number of its thread
    void place(ptr pool, i64 n, i1 crowded)     bars the workers 1 .. n-1 from this core

It costs a read of the core's number a run (2 ns), and a system call a worker whenever that has
changed. With more threads than cores workers may be everywhere. Nowhere but on Linux.
"""

from __future__ import annotations

import os

MASK_WORDS = 16  # 1024 CPUs

_SYSTEM_CALLS = {  # gettid, sched_setaffinity
    "x86_64": (186, 203),
    "amd64": (186, 203),
    "aarch64": (178, 122),
    "arm64": (178, 122),
}

HOOK = "sched_getcpu"

_PLACED = """
declare i32 @sched_getcpu()

define internal void @introduce(ptr %slot) nounwind {
  %number = call i64 (i64, ...) @syscall(i64 $GETTID$)
  %thread_at = getelementptr i64, ptr %slot, i64 $THREAD$
  store atomic i64 %number, ptr %thread_at release, align 8
  ret void
}

; a core is told by its number plus one, none by 0
define internal void @bar(ptr %pool, ptr %slot, i64 %core) nounwind {
entry:
  %mask = alloca [$MASK_WORDS$ x i64]
  %thread_at = getelementptr i64, ptr %slot, i64 $THREAD$
  %thread = load atomic i64, ptr %thread_at acquire, align 8
  %starting = icmp eq i64 %thread, 0
  br i1 %starting, label %done, label %copy
copy:
  %i = phi i64 [ 0, %entry ], [ %i1, %copy ]
  %first = mul i64 %i, 64
  %past = sub i64 %core, 1
  %bit = sub i64 %past, %first
  %here = icmp ult i64 %bit, 64
  %shift = select i1 %here, i64 %bit, i64 0
  %one = shl i64 1, %shift
  %cleared = select i1 %here, i64 %one, i64 0
  %kept = xor i64 %cleared, -1
  %word = add i64 %i, $ALLOWED$
  %from = getelementptr i64, ptr %pool, i64 %word
  %allowed = load i64, ptr %from
  %left = and i64 %allowed, %kept
  %to = getelementptr i64, ptr %mask, i64 %i
  store i64 %left, ptr %to
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, $MASK_WORDS$
  br i1 %more, label %copy, label %set
set:
  ; where the system refuses, it has its reasons: not asked again before the core changes
  %r = call i64 (i64, ...) @syscall(i64 $SETAFFINITY$, i64 %thread, i64 $MASK_BYTES$, ptr %mask)
  %barred_at = getelementptr i64, ptr %slot, i64 $BARRED$
  store i64 %core, ptr %barred_at
  br label %done
done:
  ret void
}

define internal void @place(ptr %pool, i64 %n, i1 %crowded) nounwind {
entry:
  %cpu = call i32 @sched_getcpu()
  %number = sext i32 %cpu to i64
  %own = add i64 %number, 1
  %core = select i1 %crowded, i64 0, i64 %own
  %slots = getelementptr i64, ptr %pool, i64 $SLOTS$
  br label %next
next:
  %t = phi i64 [ 1, %entry ], [ %t1, %look ], [ %t1, %move ]
  %more = icmp slt i64 %t, %n
  br i1 %more, label %look, label %done
look:
  %t1 = add i64 %t, 1
  %offset = mul i64 %t, $LINE_WORDS$
  %slot = getelementptr i64, ptr %slots, i64 %offset
  %barred_at = getelementptr i64, ptr %slot, i64 $BARRED$
  %barred = load i64, ptr %barred_at
  %same = icmp eq i64 %barred, %core
  br i1 %same, label %next, label %move
move:
  call void @bar(ptr %pool, ptr %slot, i64 %core)
  br label %next
done:
  ret void
}
"""

_UNPLACED = """
define internal void @introduce(ptr %slot) nounwind {
  ret void
}

define internal void @place(ptr %pool, i64 %n, i1 %crowded) nounwind {
  ret void
}
"""


def placement_text(machine: str | None) -> str:
    """The LLVM text for a `machine`, or that of a system without placement (None). `$NAME$` is left
    for the pool's words."""
    if machine is None:
        return _UNPLACED
    gettid, setaffinity = _SYSTEM_CALLS[machine]
    numbers = {"GETTID": gettid, "SETAFFINITY": setaffinity, "MASK_BYTES": 8 * MASK_WORDS}
    text = _PLACED
    for name, number in numbers.items():
        text = text.replace(f"${name}$", str(number))
    return text


def allowed_words() -> list[int]:
    """The CPUs that this process may use, a bit each, in MASK_WORDS words of 64."""
    words = [0] * MASK_WORDS
    if hasattr(os, "sched_getaffinity"):
        for cpu in os.sched_getaffinity(0):
            if cpu < 64 * MASK_WORDS:
                words[cpu // 64] |= 1 << cpu % 64
    return [word - (word >> 63 << 64) for word in words]  # as signed numbers
