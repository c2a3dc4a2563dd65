"""Random graphs with their gradients: compiled values agree with the reference interpreter, and no
preserving pass changes a bit."""

from __future__ import annotations

import numpy as np
import pytest
from staticgrad.api.compile import compile_graph
from staticgrad.ir.graph import Graph
from staticgrad.ops.interpret import run_graph

from .random_graphs import RandomGraph


@pytest.mark.parametrize("seed", range(40))
def test_random_graph(seed: int) -> None:
    made = RandomGraph(seed)
    graph = Graph(made.inputs, made.outputs())
    expected, _ = run_graph(graph, made.arrays)
    fused = compile_graph(graph, cache=False)(*made.arrays)
    alone = compile_graph(graph, cache=False, disable=("fuse", "in_place"))(*made.arrays)
    for number, (a, b, want) in enumerate(zip(fused, alone, expected, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"output {number}: fused against alone")
        scale = float(np.max(np.abs(want), initial=0.0))
        np.testing.assert_allclose(
            a, want, rtol=3e-4, atol=3e-5 * scale + 1e-6, err_msg=f"output {number}"
        )
