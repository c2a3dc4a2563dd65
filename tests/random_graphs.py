"""Random graphs for the tests: any op family on any shape, by a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import staticgrad as sg

FLOATING = ("negative", "tanh", "relu", "sigmoid", "sin", "abs", "square")
INTEGER = ("negative", "relu", "abs", "square", "sign", "bitwise_invert")
BINARY = ("add", "subtract", "multiply", "maximum", "minimum")
Array = np.ndarray[Any, Any]


class RandomGraph:
    """Grows a pool of tensors; each step applies a random op to members of the pool."""

    def __init__(self, seed: int, steps: int = 14, dtype: str = "float32") -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.floating = dtype.startswith("float")
        self.unary = FLOATING if self.floating else INTEGER
        self.sizes = {"N": int(self.rng.integers(0, 40)), "M": int(self.rng.integers(1, 40))}
        dims: list[Any] = ["N", "M", 3, 17, 1]
        self.inputs: list[Any] = []
        self.arrays: list[Array] = []
        for i in range(3):
            rank = int(self.rng.integers(0 if i else 2, 4))
            shape = tuple(dims[int(k)] for k in self.rng.integers(0, len(dims), rank))
            self.inputs.append(sg.input(f"x{i}", shape, dtype))
            concrete = tuple(self.sizes.get(d, d) for d in shape)
            self.arrays.append(self.values(concrete))
        used = {str(d) for x in self.inputs for d in x.shape}
        for name, size in self.sizes.items():
            if name not in used:  # every symbol must be bound by some input
                self.inputs.append(sg.input(f"only_{name}", (name,), dtype))
                self.arrays.append(self.values((size,)))
        self.pool: list[Any] = list(self.inputs)
        for _ in range(steps):
            self.grow()

    def values(self, shape: tuple[int, ...]) -> Array:
        """Normal numbers; of integers the whole range, so that they wrap."""
        if self.floating:
            return self.rng.standard_normal(shape).astype(self.dtype)
        ends = np.iinfo(self.dtype)
        return self.rng.integers(ends.min, ends.max, shape, self.dtype, endpoint=True)

    def scaled(self, x: Any, factor: float) -> Any:
        """Keeps floats moderate; integers stay as they are."""
        return x * factor if self.floating else x

    def pick(self) -> Any:
        return self.pool[int(self.rng.integers(len(self.pool)))]

    def grow(self) -> None:
        kinds = ("unary", "binary", "binary", "reduce", "reduce_keep", "permute", "reshape",
                 "slice", "matmul", "concat", "softmax", "where", "flip", "broadcast")  # fmt: skip
        kind = kinds[int(self.rng.integers(len(kinds)))]
        made = getattr(self, f"_{kind}")(self.pick())
        if made is not None:
            self.pool.append(made)

    def _unary(self, x: Any) -> Any:
        return getattr(sg, self.unary[int(self.rng.integers(len(self.unary)))])(x)

    def _binary(self, x: Any) -> Any:
        name = BINARY[int(self.rng.integers(len(BINARY)))]
        fitting = [y for y in self.pool if _broadcasts(x.shape, y.shape)]
        return getattr(sg, name)(x, fitting[int(self.rng.integers(len(fitting)))])

    def _reduce(self, x: Any, keepdims: bool = False) -> Any:
        if not x.ndim:
            return None
        count = int(self.rng.integers(1, x.ndim + 1))
        axes = tuple(int(a) for a in self.rng.permutation(x.ndim)[:count])
        return self.scaled(sg.sum(x, axis=axes, dtype=x.dtype, keepdims=keepdims), 0.125)

    def _reduce_keep(self, x: Any) -> Any:
        made = self._reduce(x, keepdims=True)
        return None if made is None else x - made

    def _permute(self, x: Any) -> Any:
        return sg.permute_dims(x, tuple(int(a) for a in self.rng.permutation(x.ndim)))

    def _reshape(self, x: Any) -> Any:
        return sg.reshape(x, (-1,)) if self._nonzero(x) else None

    def _nonzero(self, x: Any) -> bool:
        return all(not isinstance(d, int) or d for d in x.shape)

    def _slice(self, x: Any) -> Any:
        if not x.ndim:
            return None
        step = int(self.rng.choice((1, 2, -1)))
        return x[(slice(None, None, step), *([slice(None)] * (x.ndim - 1)))]

    def _matmul(self, x: Any) -> Any:
        if x.ndim < 2:
            return None
        fitting = [
            y for y in self.pool if y.ndim == 2 and y.shape[0] == x.shape[-1]
        ]  # fmt: skip
        if not fitting:
            return self.scaled(sg.matmul(x, sg.matrix_transpose(x)), 0.05)
        return self.scaled(sg.matmul(x, fitting[int(self.rng.integers(len(fitting)))]), 0.05)

    def _concat(self, x: Any) -> Any:
        return sg.concat([x, x * 2], axis=int(self.rng.integers(x.ndim))) if x.ndim else None

    def _softmax(self, x: Any) -> Any:
        if not x.ndim or not self.floating:
            return None
        return sg.softmax(x, axis=int(self.rng.integers(x.ndim)))

    def _where(self, x: Any) -> Any:
        return sg.where(x > 0.1, x, 0.5) if self.floating else sg.where(x > 1, x, 2)

    def _flip(self, x: Any) -> Any:
        return sg.flip(x, axis=int(self.rng.integers(x.ndim))) if x.ndim else None

    def _broadcast(self, x: Any) -> Any:
        return sg.broadcast_to(x, (2, *x.shape))

    def outputs(self) -> list[Any]:
        """The last tensors of the pool, some in its middle; of floats the gradients of all, too."""
        middle = self.pool[len(self.inputs) :: 4]
        chosen = list({id(t): t for t in (*self.pool[-3:], *middle)}.values())
        if not self.floating:
            return chosen
        loss = None
        for t in chosen:
            term = sg.sum(sg.tanh(t))
            loss = term if loss is None else loss + term
        found = sg.gradients(loss, self.inputs, unreachable="zeros")
        return [*chosen, loss, *found]


def _broadcasts(a: Any, b: Any) -> bool:
    pairs = zip(reversed(a), reversed(b))
    return all(x == y or (isinstance(x, int) and x == 1) or (isinstance(y, int) and y == 1)
               for x, y in pairs)  # fmt: skip
