"""Random programs with loops and choices for the tests, by a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import staticgrad as sg

Array = np.ndarray[Any, Any]

_KINDS = ("map", "map", "binary", "binary", "row", "sum", "matmul", "view", "softmax", "index")
_CONTROL = ("scan", "scan", "fori", "while", "cond", "switch", "checkpoint")


class RandomControl:
    """Grows a tensor [N, 4] through random ops, loops and choices, nested up to `depth`.

    Values stay moderate, so that no loop leads away from its neighbours. With `bounded`, loops that
    wait for a condition have a bound, so that the whole has a gradient.
    """

    def __init__(
        self, seed: int, *, rows: Any = "N", dtype: str = "float64", steps: int = 3,
        depth: int = 3, bounded: bool = True, draws: bool = True,
    ) -> None:  # fmt: skip
        self.rng = np.random.default_rng(seed)
        self.dtype, self.steps, self.bounded, self.draws = dtype, steps, bounded, draws
        self.x = sg.input("x", (rows, 4), dtype)
        self.series = sg.input("series", ("T", 4), dtype)
        self.count = sg.input("count", (), "int64")
        self.picks = sg.input("picks", (5,), "int64")
        self.weight = sg.parameter(self.rng.standard_normal((4, 4)).astype(dtype) / 2, name="w")
        self.inputs = [self.x, self.series, self.count, self.picks]
        self.outputs: list[Any] = []
        self.known: list[Any] = [self.x, self.x * 0.5 + self.series.mean(axis=0)]
        for _ in range(steps):
            self.known.append(self.control(self.known[-1], depth))
        self.outputs += [*self.known[-2:], self.count + 1]

    def arrays(self, rows: int, length: int, count: int = 3) -> list[Array]:
        rng = np.random.default_rng(rows + 7 * length)
        return [
            rng.standard_normal((rows, 4)).astype(self.dtype),
            rng.standard_normal((length, 4)).astype(self.dtype),
            np.array(count), rng.integers(0, 4, 5),
        ]  # fmt: skip

    def choice(self, of: Any) -> Any:
        return of[int(self.rng.integers(len(of)))]

    # --- bodies -----------------------------------------------------------------------------------

    def body(self, v: Any, depth: int) -> Any:
        """One to three random ops on a tensor [N, 4]."""
        for _ in range(int(self.rng.integers(1, 4))):
            inner = depth > 0 and self.rng.random() < 0.3
            v = self.control(v, depth - 1) if inner else self.op(v)
        return v

    def op(self, v: Any) -> Any:
        kind = self.choice((*_KINDS, "draw") if self.draws else _KINDS)
        other = self.choice(self.known)
        if kind == "map":
            return self.choice((sg.tanh, sg.sin, sg.cos, lambda t: t * 0.75, lambda t: 1 - t))(v)
        if kind == "binary":
            return self.choice((
                lambda: v * sg.cos(other), lambda: (v - other) * 0.5, lambda: sg.tanh(v) + other,
                lambda: other,
            ))()  # fmt: skip
        if kind == "row":
            return v + self.choice((self.series.sum(axis=0), self.weight[0], self.weight[:, 1]))
        if kind == "sum":
            return sg.tanh(v - self.choice((v.mean(axis=1, keepdims=True), v.sum() * 0.1)))
        if kind == "matmul":
            return sg.tanh(v @ self.choice((self.weight, self.weight.T)))
        if kind == "view":
            return self.choice((lambda: v[:, ::-1], lambda: sg.reshape(v, (-1, 4)) * 0.9,
                                lambda: sg.concat([v[:, 2:], v[:, :2]], axis=1)))()  # fmt: skip
        if kind == "softmax":
            return sg.softmax(v, axis=1)
        if kind == "index":
            return v + sg.take(self.weight, self.picks[0], axis=0)
        return v * 0.5 + sg.random.uniform(v.shape, dtype=self.dtype)

    # --- control flow -----------------------------------------------------------------------------

    def control(self, v: Any, depth: int) -> Any:
        found = getattr(self, f"_{self.choice(_CONTROL)}")(v, depth)
        return sg.tanh(found) * 2

    def _scan(self, v: Any, depth: int) -> Any:
        """Two carries, which may change places; slices and no slices; ys of every kind."""
        along = self.choice((self.series, self.series[::-1] * 0.5, None))
        swaps, uses, tail = (bool(b) for b in self.rng.integers(0, 2, 3))
        first = self.choice(self.known)

        def step(carry: Any, row: Any) -> Any:
            a, b, n = carry
            new = self.body(a, depth) if row is None else self.body(a + row, depth)
            y = {
                "y": self.choice((a, new, b, first)) if uses else new.sum(axis=0),
                "n": n,
                "one": 1.5,
            }
            return ((b, new, n + 1) if swaps else (new, b, n + 1)), y

        length = None if along is not None else int(self.rng.integers(0, 4))
        (a, b, n), ys = sg.scan(
            step, (v, first, 0), along, length, reverse=bool(self.rng.integers(2)),
            checkpoint=self.choice((None, None, 1, 2)),
        )  # fmt: skip
        if not tail:
            return a + b * 0.5
        more = sg.sum(ys["y"], axis=0) + sg.sum(ys["one"]) + sg.astype(sg.sum(ys["n"]), self.dtype)
        return a + more * 0.1 + b * sg.astype(n, self.dtype) * 0.1

    def _fori(self, v: Any, depth: int) -> Any:
        upper = self.choice((0, 1, 3, self.series.shape[0]))
        if not self.bounded and self.rng.random() < 0.5:
            upper = self.count
        return sg.fori_loop(
            int(self.rng.integers(-1, 2)), upper,
            lambda i, u: self.body(u + sg.astype(i, self.dtype) * 0.1, depth), v,
        )  # fmt: skip

    def _while(self, v: Any, depth: int) -> Any:
        limit = self.count + int(self.rng.integers(-2, 2))

        def going(state: Any) -> Any:
            return (state[0] < limit) & (sg.sum(sg.abs(state[1])) > -1)

        def step(state: Any) -> Any:
            return state[0] + 1, self.body(state[1], depth), state[1]

        bound = int(self.rng.integers(0, 5)) if self.bounded else None
        _, a, b = sg.while_loop(going, step, (0, v, v * 0.5), max_steps=bound)
        return a - b * 0.5

    def _branches(self, depth: int, count: int) -> list[Callable[..., Any]]:
        known = self.choice(self.known)
        found: list[Callable[..., Any]] = [lambda u: (u, known), lambda u: (known, u * 1.0)]
        return [
            *found[: int(self.rng.integers(0, 3))],
            *(lambda u: (self.body(u, depth), self.body(known, 0)) for _ in range(count)),
        ][:count]  # fmt: skip

    def _cond(self, v: Any, depth: int) -> Any:
        test = self.choice((sg.sum(v) > 0, self.count > 2, self.count * 0 == 0))
        a, b = sg.cond(test, *self._branches(depth, 2), v)
        return a + b

    def _switch(self, v: Any, depth: int) -> Any:
        index = self.choice((self.count - 1, self.picks[1], self.count * 0))
        a, b = sg.switch(index, self._branches(depth, 3), v)
        return a * b

    def _checkpoint(self, v: Any, depth: int) -> Any:
        return sg.checkpoint(lambda u: self.body(u, depth))(v)
