"""A step of `fuse`: what is cheap to compute again is computed where it is read, and not stored.

before -> after

    %3, %4, %5 = fused(%x, %ct) { mean; x - mean; ..     %3, %4 = fused(%x) { mean; x - mean; .. }
    %8 = fused(%5, ..)                      (x - mean) }   %8 = fused(%x, %4, ..) { x - mean; .. }

A normalisation's gradient reads the standardised values, which the kernel of the rows had to store
beside its result; with the rows' means, which are few, they are two operations on what that kernel
read. `sink` moves nodes; here they stay, and are copied, where they are read inside as well.
"""

from __future__ import annotations

from staticgrad.ir.node import Node, Value
from staticgrad.kernels.cost import COST
from staticgrad.ops import registry
from staticgrad.ops.lowering import Leaf, Pointwise, Reduction, View

from .groups import MOST_NODES, Group, Grouping

MOST_COST = 8  # of all that is computed again: less than storing an array and loading it takes
MOST_READERS = 64  # of a value that are looked at, so that the pass is linear in the nodes


def recompute_cheap(fusion: Grouping) -> None:
    """Copies cheap nodes of the full shape of a reduction's group into the groups that read them,
    where less memory is moved so."""
    made = _Copies(fusion)
    for g in fusion.groups:
        if g.merged is None and g.kind == "reduce":
            for n in sorted(g.nodes, key=lambda n: n.id):
                made.place(g, n)


class _Copies:
    def __init__(self, fusion: Grouping) -> None:
        self.fusion = fusion
        self.holders: dict[Node, list[Group]] = {}  # of copies

    def place(self, g: Group, n: Node) -> None:
        readers = self._readers(g, n)
        chain = self._chain(g, n) if readers else None
        if chain is None:
            return
        nodes, sources = chain
        if any(len(h.nodes) + len(h.copies) + len(nodes) > MOST_NODES for h in readers):
            return
        unread = self._unread(g, n, nodes, readers)
        # Arrays stored and read: the node, those that `g` alone needed for it, those read instead.
        saved = 1 + sum(self._only_for(g, v, unread) for v in sources)
        saved += sum(1 - len(sources - h.full_reads()) for h in readers)
        # One array may take the place of the node in memory.
        if saved <= 0 or sum(not self._is_there(g, v, readers) for v in sources) > 1:
            return
        for h in readers:
            for m in nodes:
                if m not in h.copies:
                    h.copies[m] = None
                    self.holders.setdefault(m, []).append(h)
        g.nodes = [m for m in g.nodes if m not in unread]

    def _readers(self, g: Group, n: Node) -> list[Group]:
        """The other groups that read a node, all of them element by element; none where one does
        not."""
        v = n.results[0]
        users = self.fusion.uses.get(v, ())
        if v in self.fusion.roots or v.shape != g.shape or len(users) > MOST_READERS:
            return []
        found: dict[Group, None] = {}
        for u in users:
            h = self.fusion.group(u)
            if h is g or (h is not None and n in h.copies):
                continue
            if h is None or h.kind == "product" or h.shape != g.shape or not _by_elements(u):
                return []
            found[h] = None
        return list(found)

    def _chain(self, g: Group, n: Node) -> tuple[list[Node], set[Value]] | None:
        """What `n` is computed from inside `g`, up to results for whole rows, and the arrays of the
        full shape that are read for it; None where that is dear."""
        nodes: dict[Node, None] = {}
        sources: set[Value] = set()
        stack, cost = [n], 0
        while stack:
            m = stack.pop()
            if m in nodes:
                continue
            cost += COST.get(m.op, 1)
            is_pointwise = isinstance(registry.get(m.op).lower, Pointwise)
            if cost > MOST_COST or len(m.results) > 1 or not is_pointwise:
                return None
            nodes[m] = None
            for v in m.operands:
                if self.fusion.group(v.node) is g or v.node in g.copies:
                    if g.forms.get(v.node, "full") == "full":
                        stack.append(v.node)
                elif v.shape == g.shape:
                    sources.add(v)
        if any(v.dtype.bits > n.types[0].dtype.bits for v in sources):
            return None
        return list(nodes), sources

    def _unread(self, g: Group, n: Node, nodes: list[Node], readers: list[Group]) -> set[Node]:
        """Those of `nodes` that neither `g` nor anything else reads once `readers` have copies."""
        found: set[Node] = set()
        for m in sorted(nodes, key=lambda m: -m.id):
            users = self.fusion.uses.get(m.results[0], ())
            if m in g.copies or m.results[0] in self.fusion.roots or len(users) > MOST_READERS:
                continue
            groups = [(u, self.fusion.group(u)) for u in users]
            if all(
                u in found or (h is not None and h is not g and (h in readers or m in h.copies))
                for u, h in groups
            ):
                found.add(m)
        return found

    def _only_for(self, g: Group, v: Value, unread: set[Node]) -> bool:
        """Whether `g` needs an array of the outside for these nodes alone."""
        inside, users = {*g.nodes, *g.copies}, self.fusion.uses[v]
        return len(users) <= MOST_READERS and all(u in unread for u in users if u in inside)

    def _is_there(self, g: Group, v: Value, readers: list[Group]) -> bool:
        """Whether an array from outside is in memory anyway when `readers` run."""
        source = v.node
        while isinstance(registry.get(source.op).lower, View):
            source = source.operands[0].node
        if isinstance(registry.get(source.op).lower, Leaf) or v in self.fusion.roots:
            return True
        last = max(h.level for h in readers)
        for u in self.fusion.uses[v][:MOST_READERS]:
            own = self.fusion.group(u)
            groups = [*self.holders.get(u, ()), *([] if own is None else [own])]
            if any(h is not g and h.level >= last for h in groups):
                return True
        return False


def _by_elements(u: Node) -> bool:
    return isinstance(registry.get(u.op).lower, (Pointwise, Reduction))
