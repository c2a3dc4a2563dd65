"""The native half of the worker pool: dispatch, barrier, and the loop that workers stay in.

One program runs on all threads (SPMD): `sg_dispatch` publishes a function and its context to as
many workers as the context asks for, takes part as thread 0, and returns when all have returned.
Whoever waits spins for a bounded number of pauses and then sleeps on a futex. A waiter counts
itself as a sleeper *before* it looks at the word again, a notifier looks at that count *after* it
has stored the word (both sequentially consistent): one of the two sees the other, so no wake is
lost.

A program that is too short to wait for sleeping workers runs alone; if it was called a moment ago
it wakes them, so that its next call finds them spinning.

Where other processes have the cores, threads wait for each other at every barrier: a small LSTM
took 30 ms with two threads and 0.4 with one. So `sg_dispatch` measures both ways of a program that
takes three times its estimate together, takes the faster one from then on, and tries the slower
again once 16 times its time has passed. The bits are the same either way.

A worker that wakes on its caller's core shares it, often for 30 ms while another core idles (a
product of 512 x 512 took 2.6 ms instead of 1.25). So the caller bars its workers from the core that
it is on itself, by a system call when that core changes (`pool_placement.py`).

    i32  sg_dispatch(ptr context, ptr share)     share: i32 (ptr context, i64 tid, i64 n)
    i64  sg_barrier(ptr context, i64 n, i64 vote)    returns the or of all votes of this run so far
    void sg_worker(ptr pool, i64 tid)            returns after `sg_stop`
    i32  sg_stop(ptr pool)                       1 if the workers were told to end, 0 if they run
    void sg_pause(i64 count)                     what a waiter does that many times

Outside of Linux, where no futex is, waiters sleep for 50 us, then twice as long each time up to
3.2 ms, and look again.
"""

from __future__ import annotations

import functools
import platform
from enum import IntEnum

from .context import STATUS_OK, Word
from .loader import Library, compile_text, host_code, libc_address
from .pool_placement import HOOK, MASK_WORDS, placement_text
from .pool_system import has_futex, system_calls, system_text

LINE_WORDS = 16  # 128 bytes: adjacent cache lines are fetched in pairs


class PoolWord(IntEnum):
    """Words of the pool; what different threads write lies on lines of its own."""

    OWNER = 0  # 1 while a program owns the workers
    QUIT = 1
    WORKERS = 2  # started so far; numbered from 1
    CPUS = 3  # with more threads than these nobody spins
    BARRIER_SPIN = 4  # pauses before a thread sleeps inside a run
    IDLE_SPIN = 5  # and between two runs
    NUDGED_SPIN = 6  # and after being woken without a job
    SPIN = 7  # the pauses of this run's barriers
    ARRIVED = LINE_WORDS
    GENERATION = LINE_WORDS + 1
    SLEEPERS = LINE_WORDS + 2
    FAILED = LINE_WORDS + 3
    ALLOWED = 2 * LINE_WORDS  # a bit for each CPU that workers may use; none: they stay unplaced
    SLOTS = ALLOWED + MASK_WORDS  # a line for each thread


class SlotWord(IntEnum):
    """Words of a worker's slot: its job, all on one cache line, and what it has found."""

    EPOCH = 0  # counts the jobs given to the worker
    ASLEEP = 1
    SHARE = 2  # the job: function, context, threads
    CONTEXT = 3
    COUNT = 4
    PAUSES = 5  # how long to spin for the next one
    STATUS = 8  # after a failed run, as in the context
    ELEMENT = 9
    VALUE = 10
    THREAD = 11  # the system's number of this thread, 0 before it runs
    BARRED = 12  # the CPU that it may not use, plus one


# Between two calls of a program whose workers are worth waking for the next: it costs 2 to 5 us,
# and the workers then spin for 200.
SOON_NS = 100_000

EXPORTS = ("sg_dispatch", "sg_barrier", "sg_worker", "sg_stop", "sg_pause")

# $name$ stands for a number of the tables above; %pool, %slot and %job are pointers to words.
_COMMON = """
define void @sg_pause(i64 %count) nounwind {
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %i1, %body ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %done
body:
  call void @relax()
  %i1 = add i64 %i, 1
  br label %test
done:
  ret void
}

; returns when *word differs from %seen; one that is woken before that spins again at first
define internal void @wait_change(ptr %word, i64 %seen, ptr %sleepers, i64 %spin,
                                  i64 %nudged_spin) nounwind {
entry:
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i1, %again ], [ 0, %nudged ]
  %limit = phi i64 [ %spin, %entry ], [ %limit, %again ], [ %nudged_spin, %nudged ]
  %v = load atomic i64, ptr %word acquire, align 8
  %same = icmp eq i64 %v, %seen
  br i1 %same, label %stay, label %done
stay:
  %patient = icmp slt i64 %i, %limit
  br i1 %patient, label %again, label %tired
again:
  call void @relax()
  %i1 = add i64 %i, 1
  br label %look
tired:
  %before = atomicrmw add ptr %sleepers, i64 1 seq_cst
  br label %check
check:
  %us = phi i32 [ 50, %tired ], [ %us1, %block ]
  %v2 = load atomic i64, ptr %word seq_cst, align 8
  %same2 = icmp eq i64 %v2, %seen
  br i1 %same2, label %block, label %awake
block:
  %woken = call i1 @sleep_on(ptr %word, i64 %seen, i32 %us)
  %twice = shl i32 %us, 1
  %short = icmp ult i32 %twice, 3200
  %us1 = select i1 %short, i32 %twice, i32 3200
  br i1 %woken, label %nudged, label %check
nudged:
  %others = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %look
awake:
  %left = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %done
done:
  ret void
}

define internal void @notify(ptr %word, i64 %value, ptr %sleepers) nounwind {
entry:
  store atomic i64 %value, ptr %word seq_cst, align 8
  %n = load atomic i64, ptr %sleepers seq_cst, align 8
  %none = icmp eq i64 %n, 0
  br i1 %none, label %done, label %wake
wake:
  call void @wake_all(ptr %word)
  br label %done
done:
  ret void
}

define i64 @sg_barrier(ptr %context, i64 %n, i64 %vote) nounwind {
entry:
  %pool_at = getelementptr i64, ptr %context, i64 $POOL$
  %pool = load ptr, ptr %pool_at
  %generation = getelementptr i64, ptr %pool, i64 $GENERATION$
  %sleepers = getelementptr i64, ptr %pool, i64 $SLEEPERS$
  %failed = getelementptr i64, ptr %pool, i64 $FAILED$
  %arrived = getelementptr i64, ptr %pool, i64 $ARRIVED$
  %seen = load atomic i64, ptr %generation monotonic, align 8
  %for = icmp ne i64 %vote, 0
  br i1 %for, label %voting, label %arriving
voting:
  store atomic i64 1, ptr %failed monotonic, align 8
  br label %arriving
arriving:
  %others = atomicrmw add ptr %arrived, i64 1 acq_rel
  %all = add i64 %others, 1
  %last = icmp eq i64 %all, %n
  br i1 %last, label %opening, label %waiting
opening:
  store atomic i64 0, ptr %arrived monotonic, align 8
  %next = add i64 %seen, 1
  call void @notify(ptr %generation, i64 %next, ptr %sleepers)
  br label %passed
waiting:
  %spin_at = getelementptr i64, ptr %pool, i64 $SPIN$
  %spin = load i64, ptr %spin_at
  call void @wait_change(ptr %generation, i64 %seen, ptr %sleepers, i64 %spin,
                         i64 %spin)
  br label %passed
passed:
  %result = load atomic i64, ptr %failed monotonic, align 8
  ret i64 %result
}

define void @sg_worker(ptr %pool, i64 %tid) nounwind {
entry:
  %private = alloca [$RUN_WORDS$ x i64], align 64
  call void @set_arithmetic()
  %slots = getelementptr i64, ptr %pool, i64 $SLOTS$
  %offset = mul i64 %tid, $LINE_WORDS$
  %slot = getelementptr i64, ptr %slots, i64 %offset
  call void @introduce(ptr %slot)
  %asleep = getelementptr i64, ptr %slot, i64 $ASLEEP$
  %quit_at = getelementptr i64, ptr %pool, i64 $QUIT$
  %share_at = getelementptr i64, ptr %slot, i64 $SHARE$
  %context_at = getelementptr i64, ptr %slot, i64 $CONTEXT$
  %count_at = getelementptr i64, ptr %slot, i64 $COUNT$
  %pauses_at = getelementptr i64, ptr %slot, i64 $PAUSES$
  %nudged_at = getelementptr i64, ptr %pool, i64 $NUDGED_SPIN$
  %status_at = getelementptr i64, ptr %private, i64 $STATUS$
  br label %idle
idle:
  %seen = phi i64 [ 0, %entry ], [ %now, %share_done ]
  %pauses = phi i64 [ 0, %entry ], [ %pauses1, %share_done ]
  %nudged = load i64, ptr %nudged_at
  call void @wait_change(ptr %slot, i64 %seen, ptr %asleep, i64 %pauses, i64 %nudged)
  %now = add i64 %seen, 1
  %quit = load atomic i64, ptr %quit_at acquire, align 8
  %ends = icmp ne i64 %quit, 0
  br i1 %ends, label %exit, label %work
work:
  %share = load ptr, ptr %share_at
  %context = load ptr, ptr %context_at
  %n = load i64, ptr %count_at
  %pauses1 = load i64, ptr %pauses_at
  br label %copy
copy:
  %i = phi i64 [ 0, %work ], [ %i1, %copy ]
  %from = getelementptr i64, ptr %context, i64 %i
  %word = load i64, ptr %from
  %to = getelementptr i64, ptr %private, i64 %i
  store i64 %word, ptr %to
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, $RUN_WORDS$
  br i1 %more, label %copy, label %run
run:
  store i64 $STATUS_OK$, ptr %status_at
  %r = call i32 %share(ptr %private, i64 %tid, i64 %n)
  %fine = icmp eq i32 %r, 0
  br i1 %fine, label %share_done, label %report
report:
  %j = phi i64 [ 0, %run ], [ %j1, %report ]
  %kept_at = getelementptr i64, ptr %status_at, i64 %j
  %kept = load i64, ptr %kept_at
  %word2 = add i64 %j, $SLOT_STATUS$
  %said_at = getelementptr i64, ptr %slot, i64 %word2
  store i64 %kept, ptr %said_at
  %j1 = add i64 %j, 1
  %more2 = icmp slt i64 %j1, 3
  br i1 %more2, label %report, label %share_done
share_done:
  %v = call i64 @sg_barrier(ptr %private, i64 %n, i64 0)
  br label %idle
exit:
  ret void
}

; the smallest (status, element) of all threads goes to the caller's context
define internal void @merge(ptr %context, ptr %slot) nounwind {
entry:
  %status_at = getelementptr i64, ptr %context, i64 $STATUS$
  %element_at = getelementptr i64, ptr %context, i64 $ELEMENT$
  %value_at = getelementptr i64, ptr %context, i64 $VALUE$
  %their_status_at = getelementptr i64, ptr %slot, i64 $SLOT_STATUS$
  %their_element_at = getelementptr i64, ptr %slot, i64 $SLOT_ELEMENT$
  %their_value_at = getelementptr i64, ptr %slot, i64 $SLOT_VALUE$
  %status = load i64, ptr %status_at
  %element = load i64, ptr %element_at
  %their_status = load i64, ptr %their_status_at
  %their_element = load i64, ptr %their_element_at
  %their_value = load i64, ptr %their_value_at
  %bad = icmp ne i64 %their_status, $STATUS_OK$
  %lower = icmp slt i64 %their_status, %status
  %same = icmp eq i64 %their_status, %status
  %earlier = icmp slt i64 %their_element, %element
  %first = and i1 %same, %earlier
  %before = or i1 %lower, %first
  %wins = and i1 %bad, %before
  br i1 %wins, label %take, label %done
take:
  store i64 %their_status, ptr %status_at
  store i64 %their_element, ptr %element_at
  store i64 %their_value, ptr %value_at
  br label %done
done:
  ret void
}

define internal i32 @together(ptr %context, ptr %share, i1 %soon) nounwind {
entry:
  %pool_at = getelementptr i64, ptr %context, i64 $POOL$
  %pool = load ptr, ptr %pool_at
  %taken = cmpxchg ptr %pool, i64 0, i64 1 acquire monotonic
  %mine = extractvalue { i64, i1 } %taken, 1
  %slots = getelementptr i64, ptr %pool, i64 $SLOTS$
  br i1 %mine, label %owner, label %alone
alone:
  %r0 = call i32 %share(ptr %context, i64 0, i64 1)
  ret i32 %r0
owner:
  %wanted_at = getelementptr i64, ptr %context, i64 $THREADS$
  %wanted = load i64, ptr %wanted_at
  %workers_at = getelementptr i64, ptr %pool, i64 $WORKERS$
  %workers = load atomic i64, ptr %workers_at acquire, align 8
  %most = add i64 %workers, 1
  %fewer = icmp slt i64 %most, %wanted
  %n = select i1 %fewer, i64 %most, i64 %wanted
  %patient_at = getelementptr i64, ptr %context, i64 $PATIENT$
  %patient = load i64, ptr %patient_at
  %waits = icmp ne i64 %patient, 0
  %cpus_at = getelementptr i64, ptr %pool, i64 $CPUS$
  %cpus = load i64, ptr %cpus_at
  %crowded = icmp sgt i64 %n, %cpus
  call void @place(ptr %pool, i64 %n, i1 %crowded)
  br i1 %waits, label %publish, label %survey
survey:
  %s = phi i64 [ 1, %owner ], [ %s1, %counting ], [ %s1, %down ], [ %s1, %nudging ]
  %sum = phi i64 [ 0, %owner ], [ %sum1, %counting ], [ %sum1, %down ], [ %sum1, %nudging ]
  %unseen = icmp slt i64 %s, %n
  br i1 %unseen, label %counting, label %surveyed
counting:
  %s1 = add i64 %s, 1
  %offset0 = mul i64 %s, $LINE_WORDS$
  %slot0 = getelementptr i64, ptr %slots, i64 %offset0
  %asleep0 = getelementptr i64, ptr %slot0, i64 $ASLEEP$
  %sleeps = load atomic i64, ptr %asleep0 monotonic, align 8
  %sum1 = add i64 %sum, %sleeps
  %up = icmp eq i64 %sleeps, 0
  br i1 %up, label %survey, label %down
down:
  br i1 %soon, label %nudging, label %survey
nudging:
  call void @wake_all(ptr %slot0)
  br label %survey
surveyed:
  %all_up = icmp eq i64 %sum, 0
  br i1 %all_up, label %publish, label %impatient
impatient:
  store atomic i64 0, ptr %pool release, align 8
  %r1 = call i32 %share(ptr %context, i64 0, i64 1)
  ret i32 %r1
publish:
  %budget_at = getelementptr i64, ptr %pool, i64 $BARRIER_SPIN$
  %budget = load i64, ptr %budget_at
  %spin = select i1 %crowded, i64 0, i64 %budget
  %idle_at = getelementptr i64, ptr %pool, i64 $IDLE_SPIN$
  %idle = load i64, ptr %idle_at
  %pauses = select i1 %crowded, i64 0, i64 %idle
  %spin_at = getelementptr i64, ptr %pool, i64 $SPIN$
  store i64 %spin, ptr %spin_at
  %failed_at = getelementptr i64, ptr %pool, i64 $FAILED$
  store atomic i64 0, ptr %failed_at monotonic, align 8
  br label %give
give:
  %t = phi i64 [ 1, %publish ], [ %t1, %giving ]
  %more = icmp slt i64 %t, %n
  br i1 %more, label %giving, label %run
giving:
  %offset = mul i64 %t, $LINE_WORDS$
  %slot = getelementptr i64, ptr %slots, i64 %offset
  %asleep = getelementptr i64, ptr %slot, i64 $ASLEEP$
  %share_at = getelementptr i64, ptr %slot, i64 $SHARE$
  %context_at = getelementptr i64, ptr %slot, i64 $CONTEXT$
  %count_at = getelementptr i64, ptr %slot, i64 $COUNT$
  %pauses_at = getelementptr i64, ptr %slot, i64 $PAUSES$
  store ptr %share, ptr %share_at
  store ptr %context, ptr %context_at
  store i64 %n, ptr %count_at
  store i64 %pauses, ptr %pauses_at
  %epoch = load atomic i64, ptr %slot monotonic, align 8
  %next = add i64 %epoch, 1
  call void @notify(ptr %slot, i64 %next, ptr %asleep)
  %t1 = add i64 %t, 1
  br label %give
run:
  %r = call i32 %share(ptr %context, i64 0, i64 %n)
  %v = call i64 @sg_barrier(ptr %context, i64 %n, i64 0)
  %fine = icmp eq i32 %r, 0
  br i1 %fine, label %release, label %gather
gather:
  %u = phi i64 [ 1, %run ], [ %u1, %gathering ]
  %more2 = icmp slt i64 %u, %n
  br i1 %more2, label %gathering, label %release
gathering:
  %offset2 = mul i64 %u, $LINE_WORDS$
  %slot2 = getelementptr i64, ptr %slots, i64 %offset2
  call void @merge(ptr %context, ptr %slot2)
  %u1 = add i64 %u, 1
  br label %gather
release:
  store atomic i64 0, ptr %pool release, align 8
  ret i32 %r
}

$DISPATCH$
define i32 @sg_stop(ptr %pool) nounwind {
entry:
  %taken = cmpxchg ptr %pool, i64 0, i64 1 acquire monotonic
  %mine = extractvalue { i64, i1 } %taken, 1
  br i1 %mine, label %owner, label %busy
busy:
  ret i32 0
owner:
  %quit_at = getelementptr i64, ptr %pool, i64 $QUIT$
  store atomic i64 1, ptr %quit_at seq_cst, align 8
  %workers_at = getelementptr i64, ptr %pool, i64 $WORKERS$
  %workers = load atomic i64, ptr %workers_at acquire, align 8
  %slots = getelementptr i64, ptr %pool, i64 $SLOTS$
  br label %tell
tell:
  %t = phi i64 [ 1, %owner ], [ %t1, %telling ]
  %more = icmp sle i64 %t, %workers
  br i1 %more, label %telling, label %done
telling:
  %offset = mul i64 %t, $LINE_WORDS$
  %slot = getelementptr i64, ptr %slots, i64 %offset
  %asleep = getelementptr i64, ptr %slot, i64 $ASLEEP$
  %epoch = load atomic i64, ptr %slot monotonic, align 8
  %next = add i64 %epoch, 1
  call void @notify(ptr %slot, i64 %next, ptr %asleep)
  %t1 = add i64 %t, 1
  br label %tell
done:
  ret i32 1
}
"""


_DISPATCH_PLAIN = """
define i32 @sg_dispatch(ptr %context, ptr %share) nounwind {
  %r = tail call i32 @together(ptr %context, ptr %share, i1 true)
  ret i32 %r
}
"""

_DISPATCH_MEASURED = """
declare i32 @clock_gettime(i32, ptr)
declare i64 @llvm.smin.i64(i64, i64)

define internal i64 @now() nounwind {
  %time = alloca [2 x i64]
  %r = call i32 @clock_gettime(i32 1, ptr %time)
  %s = load i64, ptr %time
  %ns_at = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %ns_at
  %whole = mul i64 %s, 1000000000
  %all = add i64 %whole, %ns
  ret i64 %all
}

define i32 @sg_dispatch(ptr %context, ptr %share) nounwind {
entry:
  %estimate_at = getelementptr i64, ptr %context, i64 $ESTIMATE$
  %together_at = getelementptr i64, ptr %context, i64 $TOGETHER$
  %single_at = getelementptr i64, ptr %context, i64 $ALONE$
  %spent_at = getelementptr i64, ptr %context, i64 $SPENT$
  %estimate = load i64, ptr %estimate_at
  %together = load i64, ptr %together_at
  %single = load i64, ptr %single_at
  %spent = load i64, ptr %spent_at
  ; the first time alone: where together takes three times the estimate
  %untried = icmp eq i64 %single, 0
  %often = mul i64 %estimate, 3
  %slow = icmp sgt i64 %together, %often
  %tries = and i1 %untried, %slow
  ; then the faster way, and the slower one again at times
  %alone_wins = icmp slt i64 %single, %together
  %other = select i1 %alone_wins, i64 %together, i64 %single
  %long = mul i64 %other, 16
  %again = icmp sgt i64 %spent, %long
  %known = xor i1 %untried, true
  %choice = xor i1 %alone_wins, %again
  %chosen = and i1 %known, %choice
  %alone = or i1 %tries, %chosen
  %before = call i64 @now()
  %ended_at = getelementptr i64, ptr %context, i64 $ENDED$
  %ended = load i64, ptr %ended_at
  %between = sub i64 %before, %ended
  %soon = icmp slt i64 %between, $SOON_NS$
  br i1 %alone, label %by_one, label %by_all
by_one:
  %r1 = call i32 %share(ptr %context, i64 0, i64 1)
  br label %done
by_all:
  %r2 = call i32 @together(ptr %context, ptr %share, i1 %soon)
  br label %done
done:
  %r = phi i32 [ %r1, %by_one ], [ %r2, %by_all ]
  %place = phi ptr [ %single_at, %by_one ], [ %together_at, %by_all ]
  %old = phi i64 [ %single, %by_one ], [ %together, %by_all ]
  %after = call i64 @now()
  store i64 %after, ptr %ended_at
  %took = sub i64 %after, %before
  ; a quicker run counts as it is, a slower one by a quarter and at most double, so that it takes
  ; several in a row; the first, which finds nothing in the caches, by twice the estimate at most
  %twice = shl i64 %estimate, 1
  %first = icmp eq i64 %old, 0
  %cold = call i64 @llvm.smin.i64(i64 %took, i64 %twice)
  %less = icmp slt i64 %took, %old
  %direct = or i1 %first, %less
  %more = sub i64 %took, %old
  %quarter = ashr i64 %more, 2
  %part = call i64 @llvm.smin.i64(i64 %quarter, i64 %old)
  %slower = add i64 %old, %part
  %later = select i1 %direct, i64 %took, i64 %slower
  %new = select i1 %first, i64 %cold, i64 %later
  store i64 %new, ptr %place
  %sum = add i64 %spent, %took
  %both = and i1 %known, %again
  %next = select i1 %both, i64 0, i64 %sum
  store i64 %next, ptr %spent_at
  ret i32 %r
}
"""


def pool_text(*, futex: bool) -> str:
    """The pool's LLVM text for this host; without `futex` waiters poll."""
    common = _COMMON.replace("$DISPATCH$", _DISPATCH_MEASURED if futex else _DISPATCH_PLAIN)
    numbers = {word.name: int(word) for word in PoolWord}
    numbers |= {
        "SOON_NS": SOON_NS,
        "LINE_WORDS": LINE_WORDS,
        "MASK_WORDS": MASK_WORDS,
        "STATUS_OK": STATUS_OK,
    }
    for slot_word in SlotWord:
        shared = slot_word.name in Word.__members__  # the context has a word of this name as well
        numbers["SLOT_" * shared + slot_word.name] = int(slot_word)
    for word in (Word.STATUS, Word.ELEMENT, Word.VALUE, Word.THREADS, Word.POOL, Word.PATIENT,
                 Word.ESTIMATE, Word.TOGETHER, Word.ALONE, Word.SPENT, Word.ENDED):  # fmt: skip
        numbers[word.name] = int(word)
    numbers["RUN_WORDS"] = Word.RUN_LAST + 1
    placement = placement_text(platform.machine().lower() if futex else None)
    text = system_text(futex=futex) + placement + common
    for name, number in numbers.items():
        text = text.replace(f"${name}$", str(number))
    return text


def build_pool(*, futex: bool) -> Library:
    """The pool, compiled for this host. Without optimisation: 5 ms against 20, and a call that
    dispatches and joins takes the same 430 ns, a barrier 155 ns, as cache lines travel."""
    calls = [*system_calls(futex=futex), *(["clock_gettime", HOOK] if futex else [])]
    addresses = {call: libc_address(call) for call in calls}
    return compile_text(pool_text(futex=futex), EXPORTS, addresses, level=0)


def generate() -> None:
    """Begins what the first program on several threads waits for, on whichever thread calls."""
    host_code(pool_text(futex=has_futex()), level=0)


@functools.cache
def pool_library() -> Library:
    """The process's pool code; it is never unloaded, since workers may be inside to the end."""
    return build_pool(futex=has_futex())
