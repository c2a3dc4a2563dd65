"""The benchmark's sweeps over sizes, and what threads bring to kernels. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import graphs, results, sweep, threads
from benchmarks.suite import BY_NAME

from .benchmark_runs import kernel, kernels_run


@pytest.fixture(scope="module")
def by_kernel() -> threads.Document:
    return kernels_run()


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_times_a_workload_at_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "chain", "matmul", "--quick", "--json", "--output", str(tmp_path)]
    assert command.main(arguments) == command.OK
    document = json.loads(capsys.readouterr().out)
    assert sweep.read([str(tmp_path / "sweep.json")]) == document
    chain, matmul = document["sweeps"]
    assert [p["sizes"] for p in chain["points"]] == [{"N": 16}, {"N": 32}, {"N": 64}]
    assert [p["work"] for p in chain["points"]] == [16, 32, 64]
    assert matmul["points"][2]["work"] == 2 * 4**3
    assert "elements a ns" in sweep.text(document)
    assert command.main(["sweep", "abacus"]) == command.USAGE


def test_a_cliff_is_where_a_unit_of_work_gets_dearer() -> None:
    times = [(10, 1e-7), (20, 9e-7), (40, 3e-6), (80, 6e-6), (160, 3e-5), (320, 6e-5)]
    points = [{"work": work, "best_s": seconds} for work, seconds in times]
    found = sweep.cliffs(points)
    assert found == [False, False, True, False, True, False]  # no call under 2 us counts


def test_sweeps_go_from_tiny_to_large() -> None:
    for s in sweep.SWEEPS:
        if isinstance(s, sweep.WorkloadSweep):
            work = [s.work(s.at(sizes).sizes) for sizes in s.sizes]
            assert len(work) > 8 and work == sorted(work)
            assert s.at(s.sizes[0]).sizes.keys() == BY_NAME[s.workload].sizes.keys()
        else:
            assert [sizes["nodes"] for sizes in s.sizes] == [1_000, 3_000, 10_000, 30_000]


def test_sweeps_are_chosen_by_name_or_what_it_begins_with() -> None:
    def names(*asked: str) -> list[str]:
        return [s.name for s in sweep.chosen(asked)]

    assert names("nodes") == ["nodes_chain", "nodes_tree", "nodes_training"]
    assert names("softmax_rows", "chain") == ["softmax_rows", "chain"]  # not nodes_chain
    assert len(names()) == len(sweep.SWEEPS)


@pytest.mark.parametrize("shape", graphs.SHAPES)
def test_graphs_have_about_as_many_nodes_as_asked_for(shape: str) -> None:
    for nodes in (300, 900):
        assert 0.8 * nodes < len(graphs.of_nodes(graphs.SHAPES[shape], nodes)) < 1.2 * nodes


def test_a_sweep_over_nodes_counts_those_of_the_graph() -> None:
    (tree,) = sweep.chosen(["nodes_tree"])
    work, seconds = tree.timed({"nodes": 200}, 1, sweep.QUICK)
    assert work == len(graphs.of_nodes(graphs.tree, 200)) and seconds > 0


def swept(name: str, unit: str, costs: list[float], **more: Any) -> sweep.Document:
    """A run of one sweep whose units cost so many seconds, at sizes that double."""
    points = [
        {"sizes": {"N": 1000 << i}, "work": 1000 << i, "best_s": (1000 << i) * cost}
        for i, cost in enumerate(costs)
    ]
    found = {"name": name, "about": "about it", "unit": unit, "points": points}
    host = {"cpu": "Abacus", "usable_cores": 2}
    return {"created": "the first day", "host": host, "quick": False, "threads": 1,
            "sweeps": [found], **more}  # fmt: skip


def test_costs_are_told_beside_each_other_and_steps_are_named() -> None:
    document = swept("chain", "element", [1e-12, 4e-9, 4e-9, 6e-9])
    (row,) = sweep.table(document).rows
    assert row == ["chain: about it", "N 1000 to N 8000", "ns an element",
                   "0.001, 4.00, 4.00, 6.00"]  # fmt: skip
    assert sweep.summary(document) == [
        "at 1 of 3 sizes of over 2 µs a call a unit of work costs at most 30% more than at the "
        "size before",
        "dearer: chain at N 2000 (4000.00 times); chain at N 8000 (1.50 times)",
    ]
    nodes = sweep.table(swept("nodes_tree", "node", [5e-5])).rows[0]
    assert nodes[2:] == ["CPU ms per 1,000 nodes", "50.0"]


def test_runs_of_different_sweeps_are_joined() -> None:
    first, second = swept("mlp", "operation", [1.0]), swept("chain", "element", [1.0])
    again = swept("mlp", "operation", [2.0], created="the second day")
    both = sweep.merged([first, second, again])
    assert [s["name"] for s in both["sweeps"]] == ["chain", "mlp"]
    assert both["sweeps"][1]["points"][0]["best_s"] == 2000.0
    assert both["created"] == "the first day, the second day"
    with pytest.raises(results.DocumentError, match="sweeps differ in 'threads'"):
        sweep.merged([first, {**second, "threads": 2}])


# --- threads --------------------------------------------------------------------------------------


def test_every_kernel_of_a_workload_is_timed_on_one_thread_and_on_two(
    by_kernel: threads.Document, tmp_path: Path
) -> None:
    assert by_kernel["workloads"] == ["mlp", "gru"] and by_kernel["threads"] == 2
    kernels = by_kernel["kernels"]
    assert len([k for k in kernels if "matmul" in k["kernel"] and k["workload"] == "mlp"]) >= 5
    steps = BY_NAME["gru"].small["T"]
    assert {k["runs"] for k in kernels if k["workload"] == "gru"} == {1, steps}
    for k in kernels:
        assert k["one_s"] >= 0 and k["all_s"] >= 0 and k["ceiling"] > 0
        assert k["bound"] in ("fma", "stream")
    text = threads.text(by_kernel)
    assert "mlp: matmul" in text and "gain at least 80%" in text
    results.write(by_kernel, tmp_path / "threads.json")
    assert threads.read([str(tmp_path / "threads.json")])["kernels"] == kernels
    with pytest.raises(results.DocumentError, match="not a document"):
        results.read(str(tmp_path / "threads.json"))


def test_a_kernel_is_held_against_what_bounds_it() -> None:
    def limits(flops: float, near: float, far: float) -> dict[str, Any]:
        rates = {1 << 14: near, 1 << 20: far}
        stream = [{"bytes": size, "bytes_per_s": rate} for size, rate in rates.items()]
        aged = [{"age_s": 0.0, "bytes_per_s": near}, {"age_s": 1.0, "bytes_per_s": near / 4}]
        return {"fma_flops": flops, "stream": stream, "aged": aged}

    pair = limits(10.0, 100.0, 10.0), limits(20.0, 190.0, 11.0)

    def ceiling(count: int, sizes: list[int], one_s: float, age: float = 0.0) -> tuple[str, float]:
        found = threads._ceiling(count, np.array(sizes), np.full(len(sizes), age), one_s, pair)
        return found["bound"], round(found["ceiling"], 3)

    assert ceiling(1000, [1 << 22], 100.0) == ("stream", 1.1)  # as fast as the stream
    assert ceiling(1000, [1 << 22], 199.0) == ("stream", 1.1)
    assert ceiling(1000, [1 << 22], 201.0) == ("fma", 2.0)
    assert ceiling(1000, [1 << 10], 10.0) == ("stream", 1.9)
    assert ceiling(1000, [1 << 10], 100.0) == ("fma", 2.0)
    assert ceiling(1000, [1 << 10], 41.0, 1.0) == ("fma", 2.0)  # a cache of its own keeps it
    assert ceiling(1000, [1 << 20], 199.0, 1.0) == ("stream", 1.1)
    # Half of it from each: 55 s on one thread, 48.1 s on two.
    assert ceiling(1000, [1 << 10, 1 << 22], 55.0) == (
        "stream",
        round(55 / (500 / 190 + 500 / 11), 3),
    )


def test_what_gains_too_little_is_named() -> None:
    kernels = [
        kernel(1.0, 0.5, 2.0), kernel(1.0, 0.63, 2.0, kernel="few_rows"),
        kernel(1.0, 0.95, 1.1, kernel="copy"), kernel(1.0, 1.1, 1.0, kernel="alone"),
    ]  # fmt: skip
    assert [threads.verdict(k) for k in kernels] == ["", "below", "", "slower"]
    document = {"kernels": kernels, "threads": 2, "least_s": 5e-5, "disturbed": ["mlp"]}
    disturbed, enough, less, slower = threads.summary(document)
    assert "every round of mlp" in disturbed and enough.startswith("2 of 4 kernels over 50 µs")
    assert less == "gain less: mlp: few_rows (79%)"
    assert slower == "slower than on one thread: mlp: alone (91%)"
    (first, *_) = threads.table(document).rows
    assert first[1:] == ["1", "1.00 s", "500 ms", "2.00", "2.00", "fma", "100%", "0.00", ""]


def test_runs_over_parts_of_the_suite_are_joined(by_kernel: threads.Document) -> None:
    again = {**by_kernel, "workloads": ["gru"], "kernels": [kernel(1.0, 0.5, 2.0, workload="gru")]}
    both = threads.merged([by_kernel, again])
    assert [k for k in both["kernels"] if k["workload"] == "gru"] == again["kernels"]
    assert sum(k["workload"] == "mlp" for k in both["kernels"]) >= 5
    with pytest.raises(results.DocumentError, match="differ in 'threads'"):
        threads.merged([by_kernel, {**again, "threads": 4}])
