"""What the worker pool asks of the system and the processor: to sleep on a word and to wake whoever
does, to relax while spinning, and the arithmetic of every thread.

    i1   sleep_on(ptr word, i64 seen, i32 us)    sleeps while the low half of *word is as seen
    void wake_all(ptr word)
    void relax()                                 the processor's hint that this is a spinning loop
    void set_arithmetic()                        nearest, no exceptions, subnormals as they are

Outside of Linux, where no futex is, `sleep_on` sleeps for `us` microseconds, and nobody is woken.
"""

from __future__ import annotations

import platform
import sys

_MXCSR_DEFAULT = 0x1F80  # every exception masked, round to nearest, no FTZ, no DAZ

_FUTEX_NUMBERS = {"x86_64": 202, "amd64": 202, "aarch64": 98, "arm64": 98}
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # private to the process

_FUTEX = """
declare i64 @syscall(i64, ...)

; true after a wake
define internal i1 @sleep_on(ptr %word, i64 %seen, i32 %us) nounwind {{
  %low = trunc i64 %seen to i32
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 {wait}, i32 %low, ptr null)
  %woken = icmp eq i64 %r, 0
  ret i1 %woken
}}

define internal void @wake_all(ptr %word) nounwind {{
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 {wake}, i32 2147483647)
  ret void
}}
"""

_POLL_POSIX = """
declare i32 @usleep(i32)

define internal i1 @sleep_on(ptr %word, i64 %seen, i32 %us) nounwind {
  %r = call i32 @usleep(i32 %us)
  ret i1 false
}

define internal void @wake_all(ptr %word) nounwind {
  ret void
}
"""

_POLL_WINDOWS = """
declare void @Sleep(i32)

define internal i1 @sleep_on(ptr %word, i64 %seen, i32 %us) nounwind {
  %ms = udiv i32 %us, 1000
  call void @Sleep(i32 %ms)
  ret i1 false
}

define internal void @wake_all(ptr %word) nounwind {
  ret void
}
"""

_X86 = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal void @relax() nounwind {{
  call void @llvm.x86.sse2.pause()
  ret void
}}

define internal void @set_arithmetic() nounwind {{
  %place = alloca i32
  store i32 {mxcsr}, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}}
"""

_AARCH64 = """
declare void @llvm.aarch64.hint(i32)
declare void @llvm.aarch64.set.fpcr(i64)

define internal void @relax() nounwind {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}

define internal void @set_arithmetic() nounwind {
  call void @llvm.aarch64.set.fpcr(i64 0)
  ret void
}
"""


def has_futex() -> bool:
    """Whether waiters can sleep until they are woken."""
    return sys.platform == "linux" and platform.machine().lower() in _FUTEX_NUMBERS


def system_calls(*, futex: bool) -> list[str]:
    """The functions of the C library that `system_text` calls."""
    if futex:
        return ["syscall"]
    return ["Sleep"] if sys.platform == "win32" else ["usleep"]


def system_text(*, futex: bool) -> str:
    """The LLVM text for this host; without `futex` waiters poll."""
    machine = platform.machine().lower()
    if futex:
        hooks = _FUTEX.format(number=_FUTEX_NUMBERS[machine], wait=_FUTEX_WAIT, wake=_FUTEX_WAKE)
    else:
        hooks = _POLL_WINDOWS if sys.platform == "win32" else _POLL_POSIX
    x86 = machine in ("x86_64", "amd64")
    return hooks + (_X86.format(mxcsr=_MXCSR_DEFAULT) if x86 else _AARCH64)
