"""The core of sorting: a stable merge sort of signed integers, as LLVM text.

Runs of 4 by a network without branches, then merges of 4, 8, 16, ... between the two halves of the
work space. Two runs of equal length are merged from both ends at once: no bound needs checking, and
the two chains of dependent loads overlap (the idea is the Rust standard library's driftsort). Runs
that are in order already are copied, so sorted input costs copies alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from .builder import Module


@dataclass(frozen=True)
class Core:
    """The sort of signed integers of one width, with or without their places."""

    bits: int
    indices: bool

    @property
    def ty(self) -> str:
        return f"i{self.bits}"

    @property
    def size(self) -> int:
        return self.bits // 8

    @property
    def name(self) -> str:
        return f"sg_sort_i{self.bits}{'_indices' if self.indices else ''}"

    def less(self, result: str, a: str, b: str) -> str:
        return f"%{result} = icmp slt {self.ty} %{a}, %{b}"

    def load(self, result: str, array: str, at: str) -> str:
        """Instructions that load %result and, with indices, %i.result from place %at."""
        text = f"""%p.{result} = getelementptr {self.ty}, ptr %{array}, i64 %{at}
  %{result} = load {self.ty}, ptr %p.{result}"""
        if self.indices:
            text += f"""
  %ip.{result} = getelementptr i64, ptr %i.{array}, i64 %{at}
  %i.{result} = load i64, ptr %ip.{result}"""
        return text

    def store(self, value: str, array: str, at: str, tag: str = "") -> str:
        """Instructions that store %value and, with indices, %i.value at place %at."""
        text = f"""%q.{value}{tag} = getelementptr {self.ty}, ptr %{array}, i64 %{at}
  store {self.ty} %{value}, ptr %q.{value}{tag}"""
        if self.indices:
            text += f"""
  %iq.{value}{tag} = getelementptr i64, ptr %i.{array}, i64 %{at}
  store i64 %i.{value}, ptr %iq.{value}{tag}"""
        return text

    def select(self, result: str, condition: str, a: str, b: str) -> str:
        text = f"%{result} = select i1 %{condition}, {self.ty} %{a}, {self.ty} %{b}"
        if self.indices:
            text += f"\n  %i.{result} = select i1 %{condition}, i64 %i.{a}, i64 %i.{b}"
        return text

    def copy(self, to: str, to_at: str, source: str, from_at: str, count: str, tag: str) -> str:
        """Instructions that copy %count elements and, with indices, their indices."""
        text = ""
        for prefix, ty, size in (("", self.ty, self.size), ("i.", "i64", 8)):
            if prefix and not self.indices:
                continue
            at = f"%{prefix}{tag}"
            text += f"""
  {at}.to = getelementptr {ty}, ptr %{prefix}{to}, i64 {to_at}
  {at}.from = getelementptr {ty}, ptr %{prefix}{source}, i64 {from_at}
  {at}.bytes = mul i64 %{count}, {size}
  call void @llvm.memcpy.p0.p0.i64(ptr {at}.to, ptr {at}.from, i64 {at}.bytes, i1 false)"""
        return text.strip()


def _runs(e: Core) -> str:
    """Sorts each group of 4 in place by 5 comparisons, and the 1 to 3 left over by insertion."""
    return f"""define internal void @{e.name}_runs(ptr %v, ptr %i.v, i64 %n) nounwind {{
entry:
  %whole = and i64 %n, -4
  %some = icmp sgt i64 %whole, 0
  br i1 %some, label %four, label %tail
four:
  %j = phi i64 [0, %entry], [%j1, %four]
  %at1 = add i64 %j, 1
  %at2 = add i64 %j, 2
  %at3 = add i64 %j, 3
  {e.load("v0", "v", "j")}
  {e.load("v1", "v", "at1")}
  {e.load("v2", "v", "at2")}
  {e.load("v3", "v", "at3")}
  {e.less("c1", "v1", "v0")}
  {e.less("c2", "v3", "v2")}
  {e.select("a", "c1", "v1", "v0")}
  {e.select("b", "c1", "v0", "v1")}
  {e.select("c", "c2", "v3", "v2")}
  {e.select("d", "c2", "v2", "v3")}
  {e.less("c3", "c", "a")}
  {e.less("c4", "d", "b")}
  {e.select("first", "c3", "c", "a")}
  {e.select("last", "c4", "b", "d")}
  {e.select("cb", "c4", "c", "b")}
  {e.select("left", "c3", "a", "cb")}
  {e.select("bc", "c3", "b", "c")}
  {e.select("right", "c4", "d", "bc")}
  {e.less("c5", "right", "left")}
  {e.select("second", "c5", "right", "left")}
  {e.select("third", "c5", "left", "right")}
  {e.store("first", "v", "j")}
  {e.store("second", "v", "at1")}
  {e.store("third", "v", "at2")}
  {e.store("last", "v", "at3")}
  %j1 = add i64 %j, 4
  %more = icmp slt i64 %j1, %whole
  br i1 %more, label %four, label %tail
tail:
  %t = phi i64 [%whole, %entry], [%whole, %four], [%t1, %place]
  %left.over = icmp slt i64 %t, %n
  br i1 %left.over, label %take, label %done
take:
  {e.load("x", "v", "t")}
  br label %back
back:
  %h = phi i64 [%t, %take], [%h1, %move]
  %inside = icmp sgt i64 %h, %whole
  br i1 %inside, label %compare, label %place
compare:
  %h1 = add i64 %h, -1
  {e.load("y", "v", "h1")}
  {e.less("before", "x", "y")}
  br i1 %before, label %move, label %place
move:
  {e.store("y", "v", "h")}
  br label %back
place:
  {e.store("x", "v", "h")}
  %t1 = add i64 %t, 1
  br label %tail
done:
  ret void
}}"""


def _merge(e: Core) -> str:
    """Merges src[0:left] and src[left:total], each sorted, into dst; 0 < left <= total."""
    return f"""define internal void @{e.name}_merge(ptr %src, ptr %i.src, ptr %dst, ptr %i.dst, \
i64 %left, i64 %total) nounwind {{
entry:
  %two = icmp slt i64 %left, %total
  br i1 %two, label %check, label %whole
check:
  %last = add i64 %left, -1
  {e.load("end", "src", "last")}
  {e.load("start", "src", "left")}
  {e.less("mixed", "start", "end")}
  br i1 %mixed, label %choose, label %whole
whole:
  {e.copy("dst", "0", "src", "0", "total", "whole")}
  ret void
choose:
  %twice = shl i64 %left, 1
  %even = icmp eq i64 %twice, %total
  %top = add i64 %total, -1
  br i1 %even, label %both, label %head
both:
  %k = phi i64 [0, %choose], [%k1, %both]
  %l = phi i64 [0, %choose], [%l1, %both]
  %r = phi i64 [%left, %choose], [%r1, %both]
  %lb = phi i64 [%last, %choose], [%lb1, %both]
  %rb = phi i64 [%top, %choose], [%rb1, %both]
  {e.load("vl", "src", "l")}
  {e.load("vr", "src", "r")}
  {e.less("takes.r", "vr", "vl")}
  {e.select("low", "takes.r", "vr", "vl")}
  {e.store("low", "dst", "k")}
  %step.r = zext i1 %takes.r to i64
  %k1 = add i64 %k, 1
  %r1 = add i64 %r, %step.r
  %l0 = add i64 %l, 1
  %l1 = sub i64 %l0, %step.r
  {e.load("vlb", "src", "lb")}
  {e.load("vrb", "src", "rb")}
  {e.less("takes.lb", "vrb", "vlb")}
  {e.select("high", "takes.lb", "vlb", "vrb")}
  %kb = sub i64 %top, %k
  {e.store("high", "dst", "kb")}
  %step.lb = zext i1 %takes.lb to i64
  %lb1 = sub i64 %lb, %step.lb
  %rb0 = add i64 %rb, -1
  %rb1 = add i64 %rb0, %step.lb
  %again = icmp slt i64 %k1, %left
  br i1 %again, label %both, label %done
head:
  %fl = phi i64 [0, %choose], [%fl1, %body]
  %fr = phi i64 [%left, %choose], [%fr1, %body]
  %moved = sub i64 %fr, %left
  %fk = add i64 %fl, %moved
  %left.has = icmp slt i64 %fl, %left
  %right.has = icmp slt i64 %fr, %total
  %go = and i1 %left.has, %right.has
  br i1 %go, label %body, label %rest
body:
  {e.load("a", "src", "fl")}
  {e.load("b", "src", "fr")}
  {e.less("takes.b", "b", "a")}
  {e.select("next", "takes.b", "b", "a")}
  {e.store("next", "dst", "fk")}
  %step.b = zext i1 %takes.b to i64
  %fr1 = add i64 %fr, %step.b
  %fl0 = add i64 %fl, 1
  %fl1 = sub i64 %fl0, %step.b
  br label %head
rest:
  %rest.l = sub i64 %left, %fl
  {e.copy("dst", "%fk", "src", "%fl", "rest.l", "rest.a")}
  %after.l = add i64 %fk, %rest.l
  %rest.r = sub i64 %total, %fr
  {e.copy("dst", "%after.l", "src", "%fr", "rest.r", "rest.b")}
  br label %done
done:
  ret void
}}"""


def _passes(e: Core) -> str:
    """Sorts work[0:n], with work[n:2n] as the other half; returns 0 or n, where the result starts.
    After the runs of 4, pass w merges pairs of runs of w from one half to the other."""
    return f"""define internal i64 @{e.name}_passes(ptr %work, ptr %i.work, i64 %n) nounwind {{
entry:
  call void @{e.name}_runs(ptr %work, ptr %i.work, i64 %n)
  br label %pass
pass:
  %w = phi i64 [4, %entry], [%pair, %next]
  %from = phi i64 [0, %entry], [%to, %next]
  %go = icmp slt i64 %w, %n
  br i1 %go, label %start, label %done
start:
  %to = sub i64 %n, %from
  %pair = shl i64 %w, 1
  br label %merge
merge:
  %s = phi i64 [0, %start], [%s1, %merge]
  %rest = sub i64 %n, %s
  %short.l = icmp slt i64 %rest, %w
  %left = select i1 %short.l, i64 %rest, i64 %w
  %short.t = icmp slt i64 %rest, %pair
  %total = select i1 %short.t, i64 %rest, i64 %pair
  %in = add i64 %from, %s
  %out = add i64 %to, %s
  %src = getelementptr {e.ty}, ptr %work, i64 %in
  %dst = getelementptr {e.ty}, ptr %work, i64 %out
  %i.src = getelementptr i64, ptr %i.work, i64 %in
  %i.dst = getelementptr i64, ptr %i.work, i64 %out
  call void @{e.name}_merge(ptr %src, ptr %i.src, ptr %dst, ptr %i.dst, i64 %left, i64 %total)
  %s1 = add i64 %s, %pair
  %more = icmp slt i64 %s1, %n
  br i1 %more, label %merge, label %next
next:
  br label %pass
done:
  ret i64 %from
}}"""


def require_core(module: Module, bits: int, indices: bool) -> str:
    """Makes sure of `i64 @sg_sort_i<bits>[_indices]_passes(ptr work, ptr work_indices, i64 n)` and
    returns its name: it sorts work[0:n], using work[n:2n], and returns 0 or n, where the result
    starts. `work_indices` is permuted likewise; ignored by the form without indices."""
    e = Core(bits, indices)
    name = f"{e.name}_passes"
    if not module.has(name):
        module.intrinsic("llvm.memcpy.p0.p0.i64", "void", "ptr", "ptr", "i64", "i1")
        module.define(f"{e.name}_runs", _runs(e))
        module.define(f"{e.name}_merge", _merge(e))
        module.define(name, _passes(e))
    return name
