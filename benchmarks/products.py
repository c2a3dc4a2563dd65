"""Matrix products over a grid of shapes, with one thread and with all."""

from __future__ import annotations

from typing import Any

import numpy as np

from .workload import Array, Sizes, Workload, normal

# (M, N, K): squares up to 2048, sizes off the tile, and what layers of models multiply.
SHAPES = (
    *((n, n, n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)),
    (127, 127, 127), (129, 257, 65), (1000, 1000, 1000),
    (1, 512, 784), (1, 4096, 4096), (8, 1024, 1024), (32, 4096, 1024),
    (128, 512, 784), (4096, 64, 64), (64, 64, 4096), (2048, 16, 2048), (512, 2048, 512),
)  # fmt: skip


def _draw(rng: np.random.Generator, s: Sizes) -> tuple[list[Array], list[Array]]:
    return [], [normal(rng, s["M"], s["K"]), normal(rng, s["K"], s["N"])]


def _product(X: Any, P: Any, x: Any, y: Any) -> Any:
    return x @ y


def _matmul(m: int, n: int, k: int) -> Workload:
    return Workload(
        f"matmul_{m}x{n}x{k}", "matmul", f"[{m}, {k}] @ [{k}, {n}]", "call",
        {"M": m, "N": n, "K": k}, {"M": min(m, 9), "N": min(n, 17), "K": min(k, 13)}, _draw,
        _product, lambda s: 2 * s["M"] * s["N"] * s["K"], tolerance=1e-5, headline=False,
        without={"torch_compile": "it calls the product that PyTorch eager calls"}, one_thread=True,
    )  # fmt: skip


MATMULS = tuple(_matmul(*shape) for shape in SHAPES)
