"""`Executable.profile`: every kernel is told of once, with its work, and nothing of the program
changes. Times themselves are not judged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.profile import Profile

FIELDS = {
    "step", "name", "kind", "calls", "us", "share", "flops", "bytes", "gflop_s", "gb_s",
    "locations",
}  # fmt: skip
XS = np.random.default_rng(0).standard_normal((8, 16)).astype("float32")


def checked(profile: Profile, program: Any) -> list[dict[str, Any]]:
    """The kernels, after what holds of every profile."""
    kernels: list[dict[str, Any]] = profile["kernels"]
    reported = program.report(**profile["dims"])
    assert [k["name"] for k in kernels] == [k["name"] for k in reported["kernels"]]
    assert all(k.keys() == FIELDS for k in kernels)
    for name in ("flops", "bytes"):
        assert sum(k[name] for k in kernels) == reported[name]
    assert profile["us"] == pytest.approx(sum(k["us"] for k in kernels))
    assert sum(k["share"] for k in kernels) == pytest.approx(1)
    assert json.loads(json.dumps(profile.to_dict())) == profile.to_dict()
    assert profile["calls"] >= 5
    lines = str(profile).splitlines()
    assert len(lines) == 2 + len(kernels)
    assert all(any(f"  {k['name']} " in line for line in lines) for k in kernels)
    return kernels


def test_a_training_step_is_profiled_and_not_taken() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(16, 4), sg.nn.ReLU(), sg.nn.Dropout(0.5))
    x = sg.input("x", ("N", 16))
    loss = sg.mean(model(x) ** 2)
    optimizer = sg.optim.Adam(model.parameters())
    step = sg.compile([x], [loss], updates=optimizer.minimize(loss))
    before = {**model.state_dict(), **optimizer.state_dict()}
    profile = step.profile(x=XS, seconds=0.0, threads=1)
    for name, value in {**model.state_dict(), **optimizer.state_dict()}.items():
        np.testing.assert_array_equal(value, before[name])
    kernels = checked(profile, step)
    assert profile["dims"] == {"N": 8} and profile["threads"] == 1 and profile["calls"] == 5
    assert {"matmul", "reduction"} <= {k["kind"] for k in kernels}
    assert all("test_profile.py:" in k["locations"] for k in kernels)
    assert "on 1 thread, N = 8" in str(profile)


def test_flops_of_what_rides_on_products_count() -> None:
    x, w, b = sg.input("x", ("N", 16)), sg.input("w", (16, 4)), sg.input("b", (4,))
    program = sg.compile([x, w, b], sg.tanh(x @ w + b))
    arrays = (XS, np.ones((16, 4), "float32"), np.ones(4, "float32"))
    (kernel,) = checked(program.profile(*arrays, seconds=0.0), program)
    assert kernel["kind"] == "matmul" and kernel["calls"] == 1
    assert kernel["flops"] == 2 * 8 * 16 * 4 + 2 * 8 * 4  # product, add and tanh
    assert program.report()["flops"] == "136*N"
    a, c = sg.input("a", (120, 96)), sg.input("c", (96, 40))
    drawn = sg.compile([a, c], sg.where(a > 0, a, 0.0) @ c)  # computed where it is packed
    assert len(drawn.report()["kernels"]) == 1
    assert drawn.report()["flops"] == 2 * 120 * 96 * 40 + 2 * 120 * 96
    images, kernels = sg.input("i", (2, 3, 8, 8)), sg.input("k", (4, 3, 3, 3))
    conv = sg.compile([images, kernels], sg.relu(sg.nn.functional.conv2d(images, kernels)))
    assert conv.report()["flops"] == (2 * 27 + 1) * 2 * 4 * 36


def test_steps_of_loops_are_summed() -> None:
    x, w = sg.input("x", (8, 16)), sg.input("w", (16, 16))
    program = sg.compile([x, w], sg.fori_loop(0, 5, lambda i, h: sg.tanh(h @ w), x))
    kernels = checked(program.profile(XS, np.eye(16, dtype="float32"), seconds=0.0), program)
    (product,) = (k for k in kernels if k["kind"] == "matmul")
    assert product["calls"] == 5 and product["flops"] == 5 * (2 * 8 * 16 * 16 + 8 * 16)


@pytest.mark.parametrize("which", ["check", "tap", "disable", "training"])
def test_it_is_the_program_s_own_kernels(which: str) -> None:
    x = sg.input("x", ("N", 16))
    y = sg.nn.Dropout(0.5)(sg.softmax(x * 2.0))
    options: dict[str, Any] = {}
    seen: list[Any] = []
    if which == "check":
        options["check"] = "nan"
    elif which == "tap":
        sg.debug.tap(y, seen.append)
    elif which == "disable":
        options["disable"] = ["fuse"]
    else:
        options["training"] = True
    program = sg.compile([x], y, **options)
    state = sg.random.default_generator().cell.numpy()
    checked(program.profile(XS, seconds=0.0), program)
    assert not seen
    np.testing.assert_array_equal(sg.random.default_generator().cell.numpy(), state)


def test_kinds_of_kernels() -> None:
    x = sg.input("x", (8, 16))
    program = sg.compile([x], [sg.sort(x), sg.sum(sg.exp(x)), x * 2.0 + 1.0, x])
    kinds = {k["kind"] for k in checked(program.profile(XS, seconds=0.0), program)}
    assert kinds == {"sort", "reduction", "element-wise", "copy"}


def test_inputs_that_do_not_fit_are_refused_as_in_a_call() -> None:
    x = sg.input("x", ("N", 16))
    program = sg.compile([x], x * 2.0)
    for call in (lambda: program.profile(), lambda: program.profile(XS, z=XS)):
        with pytest.raises(sg.BindError, match="takes 1 input"):
            call()
    with pytest.raises(sg.BindError, match="float64"):
        program.profile(XS.astype("float64"))
    with pytest.raises(sg.ArgumentError, match="threads"):
        program.profile(XS, threads=0)


def test_what_a_call_refuses_a_profile_refuses_with_the_same_text() -> None:
    x, at = sg.input("x", ("N", 16)), sg.input("at", (2,), "int64")
    program = sg.compile([x, at], sg.take(x, at, axis=0))
    texts = []
    for call in (program, program.profile):
        with pytest.raises(sg.ExecutionError) as caught:
            call(XS, np.array([0, 8]))
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and "test_profile.py:" in texts[0]


def test_a_loop_of_unknown_length_counts_once() -> None:
    x = sg.input("x", ())
    program = sg.compile([x], sg.while_loop(lambda v: v < 100, lambda v: v * 2.0, x))
    checked(program.profile(np.float32(1), seconds=0.0), program)


def test_functions_of_arrays_are_profiled_too() -> None:
    layer = sg.nn.Sequential(sg.nn.Linear(16, 4), sg.nn.Dropout(0.5))

    @sg.jit(training=True, threads=1)
    def f(p: Any, scale: float, power: str = "two") -> Any:
        return {"y": layer(p["x"]) * scale}

    first = f.profile({"x": XS}, 0.5, seconds=0.0)  # traces it
    assert first["threads"] == 1 and "matmul" in {k["kind"] for k in first["kernels"]}
    assert [k["name"] for k in first["kernels"]] == [k["name"] for k in f.report()["kernels"]]
    f.profile({"x": XS[:3]}, 0.5, power="three", seconds=0.0)
    f.profile({"x": XS[:4]}, 2.5, power="three", seconds=0.0)
    assert len(f.cache_entries) == 3
    with pytest.raises(sg.ArgumentTypeError, match="arrays, not tensors"):
        f.profile({"x": sg.input("x", (8, 16))}, 0.5)
    with pytest.raises(sg.ArgumentError, match="no program"):
        sg.jit(lambda x: ()).profile(XS)


def test_reports_and_profiles_are_mappings() -> None:
    x = sg.input("x", (3,))
    program = sg.compile([x], x * 2)
    for found in (program.report(), program.profile(np.ones(3, "float32"), seconds=0.01)):
        assert "kernels" in found and "nothing" not in found
        assert dict(found) == found.to_dict() and len(found) == len(list(found))
