"""Places for boxes in layers: arrows lead down, boxes stand near what they are joined to.

Sugiyama's method in its simplest form: longest-path layers, order in a layer by the neighbours'
mean place, then for each layer the places nearest to the neighbours' that keep order and distance
(a least-squares problem that pooling solves in linear time).
Source: Sugiyama, Tagawa, Toda 1981, Methods for Visual Understanding of Hierarchical System
Structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP = 24.0  # between neighbours in a layer
ROW_GAP = 44.0  # between layers
SWEEPS = 6
# An arrow that skips layers is led around boxes by a point in each of them; a graph in which these
# are more than this is too large to be looked at anyway.
MOST_POINTS = 6000


@dataclass
class Item:
    """A box, or a point that an arrow goes through (width 0)."""

    width: float
    height: float
    layer: int = 0
    x: float = 0.0  # of the centre
    y: float = 0.0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """`items[:n]` are the n boxes; `routes` lists for each arrow the items it passes, ends
    included."""

    items: list[Item]
    routes: list[list[int]]
    width: float
    height: float


def layout(sizes: Sequence[tuple[float, float]], arrows: Sequence[tuple[int, int]]) -> Layout:
    """Places for boxes of these widths and heights. An arrow leads from an earlier box to a later
    one."""
    items = [Item(w, h) for w, h in sizes]
    _set_layers(items, arrows)
    routes = _routes(items, arrows)
    for route in routes:
        for a, b in pairwise(route):
            items[a].below.append(b)
            items[b].above.append(a)
    layers = _ordered_layers(items)
    height = _set_rows(items, layers)
    _set_columns(items, layers)
    left = min((i.x - i.width / 2 for i in items), default=0.0)
    for i in items:
        i.x += GAP - left
    width = max((i.x + i.width / 2 for i in items), default=0.0) + GAP
    return Layout(items, routes, width, height)


def _set_layers(items: list[Item], arrows: Sequence[tuple[int, int]]) -> None:
    """One below the lowest that leads here; what nothing leads to stands above its first reader."""
    into: list[list[int]] = [[] for _ in items]
    out: list[list[int]] = [[] for _ in items]
    for a, b in arrows:
        into[b].append(a)
        out[a].append(b)
    for i, item in enumerate(items):
        item.layer = max((items[a].layer + 1 for a in into[i]), default=0)
    for i, item in enumerate(items):
        if not into[i] and out[i]:
            item.layer = min(items[b].layer for b in out[i]) - 1


def _routes(items: list[Item], arrows: Sequence[tuple[int, int]]) -> list[list[int]]:
    points = sum(max(items[b].layer - items[a].layer - 1, 0) for a, b in arrows)
    if points > MOST_POINTS:
        return [[a, b] for a, b in arrows]
    routes = []
    for a, b in arrows:
        route = [a]
        for layer in range(items[a].layer + 1, items[b].layer):
            route.append(len(items))
            items.append(Item(0.0, 0.0, layer))
        routes.append([*route, b])
    return routes


def _ordered_layers(items: list[Item]) -> list[list[int]]:
    """The items of each layer from left to right."""
    count = max((i.layer for i in items), default=-1) + 1
    layers: list[list[int]] = [[] for _ in range(count)]
    for n, item in enumerate(items):
        layers[item.layer].append(n)
    place = [0.0] * len(items)
    for layer in layers:
        for k, n in enumerate(layer):
            place[n] = float(k)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):

            def wanted(n: int, down: bool = down) -> float:
                near = items[n].above if down else items[n].below
                return sum(place[m] for m in near) / len(near) if near else place[n]

            layer.sort(key=wanted)
            for k, n in enumerate(layer):
                place[n] = float(k)
    return layers


def _set_rows(items: list[Item], layers: Sequence[Sequence[int]]) -> float:
    y = GAP
    for layer in layers:
        tallest = max(items[n].height for n in layer)
        for n in layer:
            items[n].y = y + tallest / 2
        y += tallest + ROW_GAP
    return y - ROW_GAP + GAP if layers else 2 * GAP


def _set_columns(items: list[Item], layers: Sequence[Sequence[int]]) -> None:
    for layer in layers:
        _place(items, layer, dict.fromkeys(layer, 0.0))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = {}
            for n in layer:
                near = items[n].above if down else items[n].below
                near = near or items[n].above or items[n].below
                wanted[n] = sum(items[m].x for m in near) / len(near) if near else items[n].x
            _place(items, layer, wanted)


def _place(items: list[Item], layer: Sequence[int], wanted: Mapping[int, float]) -> None:
    """The places nearest to the wanted ones, in this order and without overlap: with the distances
    taken off it is a regression on a rising sequence, solved by pooling what falls."""
    offsets: list[float] = []
    x = 0.0
    for k, n in enumerate(layer):
        if k:
            x += (items[layer[k - 1]].width + items[n].width) / 2 + GAP
        offsets.append(x)
    pools: list[tuple[float, int]] = []  # mean, count
    for n, offset in zip(layer, offsets):
        mean, count = wanted[n] - offset, 1
        while pools and pools[-1][0] >= mean:
            before, size = pools.pop()
            mean = (mean * count + before * size) / (count + size)
            count += size
        pools.append((mean, count))
    k = 0
    for mean, count in pools:
        for _ in range(count):
            items[layer[k]].x = mean + offsets[k]
            k += 1
