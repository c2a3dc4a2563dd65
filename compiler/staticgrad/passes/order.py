"""order: which of several possible orders of a program's items holds the least memory at once.

before -> after

    step 7: d2 = d3 @ w3'                     step 7: d2 = d3 @ w3'
    step 8: d1 = d2 @ w2'                     step 8: w3 <- w3 - lr * h2' @ d3     (h2, d3 end here)
    step 9: w3 <- w3 - lr * h2' @ d3          step 9: d1 = d2 @ w2'
    step 10: w2 <- w2 - lr * h1' @ d2         step 10: w2 <- w2 - lr * h1' @ d2

To find the best is NP-hard. Three orders are compared by what is alive at once: as declared, each
item as early as it frees more than it makes, and each as late. The declared one stays where none
saves a twentieth; else the one with the fewest barriers is taken of those so near the least.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from staticgrad.ir.dim import DimLike, substitute, symbols

# What symbolic sizes count as.
NOMINAL_SIZE = 128
# What needs more barriers must save such a part of what was held before ...
LEAST_SAVED_PART = 0.05
# ... and so many bytes: what is less lies in the caches anyway.
LEAST_SAVED_BYTES = 1 << 16


@dataclass
class Work:
    """What one item uses: temporaries that begin and end in its list, bytes that nobody else uses,
    and all memory that it reads and writes. `shared` if threads take parts of it, who meet before
    and behind it if it is a region (`apart`)."""

    uses: list[int]
    own_bytes: int
    reads: set[int]
    writes: set[int]
    shared: bool
    apart: bool = False


@dataclass
class Listed:
    """The items of a list: the work of each, those that each must follow, and the temporaries'
    sizes."""

    work: list[Work]
    before: Sequence[set[int]]
    size: dict[int, int]
    users: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.users = {b: [] for b in self.size}
        for i, work in enumerate(self.work):
            for b in work.uses:
                self.users[b].append(i)


def nominal_bytes(size: DimLike) -> int:
    """A size as a number, where symbols count as `NOMINAL_SIZE`."""
    if isinstance(size, int):
        return size
    known = substitute(size, dict.fromkeys(symbols(size), NOMINAL_SIZE))
    return known if isinstance(known, int) else NOMINAL_SIZE


def best_order(listed: Listed) -> list[int]:
    """The items' numbers in a topological order."""
    declared = declared_order(listed.before)
    total = sum(listed.size.values()) + sum(w.own_bytes for w in listed.work)
    if total < LEAST_SAVED_BYTES:
        return declared
    tried = [(held_bytes(o, listed), o) for o in (declared, _early(listed), _late(listed))]
    least = min(held for held, _ in tried)
    close = [order for held, order in tried if not is_worth_it(held, least)]
    if close[0] is declared:
        return declared
    return min(close, key=lambda order: _phases(order, listed)[-1])


def is_worth_it(before: int, after: int) -> bool:
    """Whether holding less pays for barriers."""
    return before - after >= max(LEAST_SAVED_PART * before, LEAST_SAVED_BYTES)


class Precedence:
    """Which items must follow which; edges can be added. A topological rank of each is kept up to
    date (Pearce, Kelly: "A dynamic topological sort algorithm", 2006), so that only the items
    between two that change places are looked at."""

    def __init__(self, before: list[set[int]]) -> None:
        """`before` are the items that each must follow, all of them numbered lower."""
        self.before = before
        self.followers = _followers(before)
        self._rank = list(range(len(before)))

    def follow(self, item: int, needed: set[int]) -> bool:
        """Makes `item` follow all of `needed`; False, and no change, if one of those follows it."""
        rank, lowest = self._rank, self._rank[item]
        wrong = [n for n in needed if rank[n] > lowest]
        if wrong:
            first = self._behind(wrong, self.before, lambda i: rank[i] >= lowest)
            if item in first:
                return False
            highest = max(rank[n] for n in wrong)
            then = self._behind([item], self.followers, lambda i: rank[i] <= highest)
            places = sorted(rank[i] for i in first | then)
            moved = sorted(first, key=rank.__getitem__) + sorted(then, key=rank.__getitem__)
            for i, place in zip(moved, places):
                rank[i] = place
        for n in needed - self.before[item]:
            self.followers[n].append(item)
        self.before[item] |= needed
        return True

    @staticmethod
    def _behind(
        start: Sequence[int], edges: Sequence[Iterable[int]], near: Callable[[int], bool]
    ) -> set[int]:
        """What edges lead to from `start`, itself too, as far as it is near."""
        stack, seen = list(start), set(start)
        while stack:
            for i in edges[stack.pop()]:
                if i not in seen and near(i):
                    seen.add(i)
                    stack.append(i)
        return seen


def declared_order(before: Sequence[set[int]]) -> list[int]:
    """Topological, the earlier declared first."""
    followers = _followers(before)
    waiting = [len(b) for b in before]
    ready = [i for i, w in enumerate(waiting) if not w]
    heapq.heapify(ready)
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in followers[i]:
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(ready, j)
    assert len(order) == len(before), "schedule: a cycle among the steps"
    return order


def _followers(before: Sequence[set[int]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in before]
    for i, needed in enumerate(before):
        for j in needed:
            found[j].append(i)
    return found


# --- what an order holds --------------------------------------------------------------------------


def held_bytes(order: Sequence[int], listed: Listed) -> int:
    """The most that is alive at one item. Memory that a shared item uses in the phase in which it
    begins or ends is alive in all of that phase (`codegen.sharing.lifetimes`)."""
    phase = _phases(order, listed)
    starts = [i for i in range(len(order)) if not i or phase[i] != phase[i - 1]]
    ends = [*starts[1:], len(order)]
    at = {item: i for i, item in enumerate(order)}
    change = [0] * (len(order) + 1)
    for b, users in listed.users.items():
        places = [at[i] for i in users]
        first, last = min(places), max(places)
        shared = {phase[i] for i in places if listed.work[order[i]].shared}
        change[starts[phase[first]] if phase[first] in shared else first] += listed.size[b]
        change[ends[phase[last]] if phase[last] in shared else last + 1] -= listed.size[b]
    for start, end in zip(starts, ends):
        own = max(listed.work[order[i]].own_bytes for i in range(start, end))
        change[start] += own
        change[end] -= own
    return max(accumulate(change))


def _phases(order: Sequence[int], listed: Listed) -> list[int]:
    """The number of the phase that each item in order belongs to: threads meet before an item that
    uses what another of them has written, or writes what it has read, since they met."""
    found: list[int] = []
    number = 0
    reads: set[int] = set()
    writes: set[int] = set()
    apart = False
    for i in order:
        work = listed.work[i]
        conflict = not (writes.isdisjoint(work.reads) and writes.isdisjoint(work.writes)
                        and reads.isdisjoint(work.writes))  # fmt: skip
        if found and (conflict or work.apart or apart):
            number += 1
            reads, writes = set(), set()
        found.append(number)
        apart = work.apart
        if work.shared:
            reads |= work.reads
            writes |= work.writes
    return found


# --- candidates -----------------------------------------------------------------------------------


def _early(listed: Listed) -> list[int]:
    """Of the items that can be next the one that frees most; of equal ones the first declared."""
    return _greedy(listed, [len(b) for b in listed.before], _followers(listed.before), 1)


def _late(listed: Listed) -> list[int]:
    """The same from the end: of the items that can be last, the one that makes most."""
    followers = _followers(listed.before)
    waiting = [len(f) for f in followers]
    return _greedy(listed, waiting, [sorted(b) for b in listed.before], -1)[::-1]


def _greedy(
    listed: Listed, waiting: list[int], followers: Sequence[Sequence[int]], sign: int
) -> list[int]:
    """List scheduling by how much more is alive behind an item. A buffer begins with the first of
    its users that is taken and ends with the last; both change what its other users are worth, and
    only then they are looked at again: time is linear in the uses, but for a heap's logarithm."""
    size, users = listed.size, listed.users
    left = {b: len(u) for b, u in users.items()}
    alive: set[int] = set()
    done = [False] * len(waiting)

    def grows(i: int) -> int:
        total = 0
        for b in listed.work[i].uses:
            if b not in alive:
                total += size[b]
            if left[b] == 1:
                total -= size[b]
        return total

    known = [grows(i) for i in range(len(waiting))]
    ready = [(known[i], sign * i) for i, w in enumerate(waiting) if not w]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        worth, at = heapq.heappop(ready)
        i = sign * at
        if done[i] or worth != known[i]:
            continue  # a newer entry holds
        done[i] = True
        order.append(i)
        changed: set[int] = set()
        for b in listed.work[i].uses:
            left[b] -= 1
            if b not in alive or left[b] == 1:
                changed.update(users[b])
            alive.add(b)
        for j in changed:
            if not done[j]:
                known[j] = grows(j)
                if not waiting[j]:
                    heapq.heappush(ready, (known[j], sign * j))
        for j in followers[i]:
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(ready, (known[j], sign * j))
    return order
