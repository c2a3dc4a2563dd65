"""The dynamic mode: values, gradients, the tape's rules, and the errors of wrong use."""

from __future__ import annotations

import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api import compile as compiling
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    DTypeError,
    ExecutionError,
    ShapeError,
    StateError,
)

eager = sg.eager
F = sg.nn.functional


def leaf(data: Any, dtype: Any = None) -> Any:
    return eager.tensor(data, dtype=dtype, requires_grad=True)


def here() -> str:
    """This file and the caller's line, as errors name it."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return f"test_eager.py:{frame.f_back.f_lineno}"


def central(f: Callable[[np.ndarray[Any, Any]], float], x: np.ndarray[Any, Any]) -> Any:
    """Central differences of a function of an array."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        found[i] = (f(x + step) - f(x - step)) / 2e-6
    return found


# --- the programs of a first lesson ---------------------------------------------------------------


def test_gradients_of_two_leaves() -> None:
    a, b = leaf([1.0, 2.0, 3.0]), leaf([4.0, 5.0, 6.0])
    loss = 50 - (3 * a**2 - b**2).mean()
    loss.backward()
    assert float(loss) == pytest.approx(61.6666667)
    assert str(a.grad) == "tensor([-2., -4., -6.])"
    assert str(b.grad) == "tensor([2.6667, 3.3333, 4.0000])"


def test_gradients_add_up_until_they_are_cleared() -> None:
    x = leaf(10.0)
    seen = []
    for _ in range(3):
        (x**2 - 4 * x).backward()
        seen.append(float(x.grad))
    assert seen == [16.0, 32.0, 48.0]
    assert str(x.grad) == "tensor(48.)"
    x.grad = None
    (x**2 - 4 * x).backward()
    assert float(x.grad) == 16.0


def test_a_graph_built_once_follows_data() -> None:
    x = leaf(10.0)
    cost = x**2 - 4 * x
    for _ in range(1000):
        cost.backward(retain_graph=True)
        x.data.sub_(0.02 * x.grad)
        x.grad.data.zero_()
    assert np.float32(x.item()) == np.float32(2.0000029)


def test_the_same_loop_in_place_is_refused() -> None:
    x = leaf(10.0)
    cost, line = x**2 - 4 * x, here()
    cost.backward(retain_graph=True)
    with eager.no_grad():
        x -= 0.02 * x.grad
    with pytest.raises(DifferentiationError, match="changed in place") as caught:
        cost.backward(retain_graph=True)
    assert "pow" in str(caught.value) and line in str(caught.value)


def test_descent_with_a_new_graph_each_step() -> None:
    x = leaf(10.0)
    for _ in range(1000):
        (x**2 - 4 * x).backward()
        with eager.no_grad():
            x -= 0.02 * x.grad
        x.grad.zero_()
    assert x.item() == pytest.approx(2.0, abs=1e-5)
    assert x.requires_grad and x.is_leaf


# --- gradients ------------------------------------------------------------------------------------


def _network(x: Any) -> Any:
    """A bit of everything: broadcasting, reuse, reductions, indexing, joining."""
    y = x * x[0] + x.sum(1, keepdims=True)
    z = sg.concat([y[:, 1:], y.exp() * 0.1], axis=1)
    return (z.T @ z).tanh().mean() + y[1, 2] * y.max()


def test_gradients_equal_differences() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)) * 0.5
    t = leaf(x)
    _network(t).backward()
    expected = central(lambda a: _network(eager.tensor(a)).item(), x)
    np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_second_derivatives_equal_differences_of_the_first() -> None:
    x = np.random.default_rng(1).normal(size=(3, 4)) * 0.5
    weight = np.random.default_rng(2).normal(size=(3, 4))
    w = eager.tensor(weight)

    def slope(a: np.ndarray[Any, Any]) -> float:
        t = leaf(a)
        (g,) = eager.grad(_network(t), [t])
        return float((g.numpy() * weight).sum())

    t = leaf(x)
    (g,) = eager.grad(_network(t), [t], create_graph=True)
    (h,) = eager.grad((g * w).sum(), [t])
    np.testing.assert_allclose(h.numpy(), central(slope, x), rtol=1e-5, atol=1e-6)


def test_derivatives_nest_to_any_order() -> None:
    x = leaf(2.0, "float64")
    y = x**5
    for expected in (80.0, 160.0, 240.0, 240.0, 120.0):
        (y,) = eager.grad(y, [x], create_graph=True)
        assert y.item() == pytest.approx(expected, rel=1e-12)


def test_the_static_mode_gives_the_same_numbers() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(6, 5), sg.nn.Tanh(), sg.nn.Linear(5, 3))
    x, y = sg.input("x", ("N", 6)), sg.input("y", ("N",), dtype="int64")
    loss = F.cross_entropy(model(x), y)
    parameters = list(model.parameters())
    program = sg.compile([x, y], [loss, *sg.gradients(loss, parameters)])
    xs = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")
    ys = np.array([0, 1, 2, 1, 0, 2, 2])
    expected = program(xs, ys)
    found = sg.nn.CrossEntropyLoss()(model(eager.tensor(xs)), eager.tensor(ys))
    found.backward()
    np.testing.assert_allclose(found.item(), expected[0], rtol=1e-6)
    for p, e in zip(parameters, expected[1:], strict=True):
        np.testing.assert_allclose(p.grad.numpy(), e, rtol=1e-5, atol=1e-7)


def test_a_gradient_argument_weighs_the_elements() -> None:
    x = leaf([1.0, 2.0, 3.0])
    (x**2).backward(eager.tensor([1.0, 10.0, 100.0]))
    assert x.grad.tolist() == [2.0, 40.0, 600.0]


def test_grad_touches_no_leaf() -> None:
    x, unused = leaf([1.0, 2.0]), leaf(1.0)
    y = (x * x).sum()
    gx, none = eager.grad(y, [x, unused], retain_graph=True, allow_unused=True)
    assert gx.tolist() == [2.0, 4.0] and none is None and x.grad is None
    assert eager.grad(y, [unused], materialize_grads=True)[0].tolist() == 0.0


def test_results_of_several_outputs() -> None:
    x = leaf([3.0, 1.0, 2.0, 5.0])
    a, b = sg.split(x, 2)
    (a * 10.0 + b * b).sum().backward()
    assert x.grad.tolist() == [10.0, 10.0, 4.0, 10.0]


def test_the_gradient_of_one_leaf_is_not_anothers() -> None:
    """Where a cotangent passes unchanged to both operands, each leaf has an array of its own."""
    a, b = leaf([1.0]), leaf([2.0])
    (a + b).backward(eager.tensor([1.0]))
    a.grad.zero_()
    assert b.grad.tolist() == [1.0]


def test_hooks_see_and_change_gradients() -> None:
    x = leaf([1.0, 2.0])
    seen: list[Any] = []
    y = x * 3.0
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10.0)
    y.sum().backward(retain_graph=True)
    assert seen == [[1.0, 1.0]] and x.grad.tolist() == [30.0, 30.0]
    handle.remove()
    y.sum().backward()
    assert len(seen) == 1


def test_retain_grad_keeps_that_of_a_result() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.tolist() == [6.0, 12.0] and y.retains_grad and not y.is_leaf


# --- recording ------------------------------------------------------------------------------------


def test_no_grad_as_block_and_decorator() -> None:
    x = leaf(1.0)
    with eager.no_grad():
        assert not (x * 2).requires_grad
        with eager.enable_grad():
            assert (x * 2).requires_grad

    @eager.no_grad()
    def double(t: Any) -> Any:
        return t * 2

    assert not double(x).requires_grad and (x * 2).requires_grad
    with eager.set_grad_enabled(False):
        assert not eager.is_grad_enabled()
    assert eager.is_grad_enabled()


def test_no_grad_holds_for_its_own_thread() -> None:
    x, found = leaf(1.0), []
    with eager.no_grad():
        thread = threading.Thread(target=lambda: found.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert found == [True]


def test_threads_share_kernels() -> None:
    def work(number: int, found: dict[int, Any]) -> None:
        x = leaf(np.full((3, 7), float(number), np.float32))
        for _ in range(50):
            x.grad = None
            ((x * 1.25).cosh() / (x + 1.5)).sum(0).prod().backward()
        found[number] = x.grad.numpy()

    together: dict[int, Any] = {}
    threads = [threading.Thread(target=work, args=(n, together)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in range(4):
        alone: dict[int, Any] = {}
        work(n, alone)
        assert (alone[n] == together[n]).all()


def test_detach_shares_memory_and_counts_changes() -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    x.detach().mul_(10.0)
    assert x.tolist() == [10.0, 20.0]
    with pytest.raises(DifferentiationError, match="changed in place"):
        y.sum().backward()


def test_data_shares_memory_and_is_not_counted() -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    x.data[0] = 5.0
    y.backward()
    assert x.grad.tolist() == [10.0, 4.0]
    x.data = eager.tensor([7.0, 8.0])
    assert x.tolist() == [7.0, 8.0] and x.requires_grad


def test_changing_a_saved_result_is_seen() -> None:
    x = leaf([1.0, 2.0])
    y, line = x.exp(), here()
    y.add_(1.0)
    with pytest.raises(DifferentiationError, match="its result of type float32") as caught:
        y.sum().backward()
    assert f"exp ({line})" in str(caught.value)


def test_in_place_results_are_recorded() -> None:
    x = leaf([1.0, 2.0, 3.0])
    y = x * 2.0
    y += 1.0
    y *= x
    y[0] = x[2] * 10.0
    y.sum().backward()
    # y = [10 x2, (2 x1 + 1) x1, (2 x2 + 1) x2]
    assert x.grad.tolist() == [0.0, 9.0, 23.0]


def test_in_place_methods() -> None:
    x = eager.tensor([1.0, -4.0, 9.0])
    assert x.add_(1, alpha=2).tolist() == [3.0, -2.0, 11.0]
    assert x.clamp_(0, 10).tolist() == [3.0, 0.0, 10.0]
    assert x.sub_(1).div_(3).mul_(3).neg_().abs_().tolist() == [2.0, 1.0, 9.0]
    assert x.fill_(2).pow_(3).zero_().tolist() == [0.0, 0.0, 0.0]
    assert x.copy_(eager.tensor([1, 2, 3])).tolist() == [1.0, 2.0, 3.0]
    x[eager.tensor([True, False, True])] = 0
    assert x.tolist() == [0.0, 2.0, 0.0]
    sg.random.seed(3)
    assert 0 <= x.uniform_(0, 1).min().item() < x.max().item() < 1


# --- NumPy and Python -----------------------------------------------------------------------------


def test_from_numpy_shares_memory() -> None:
    array = np.ones(3, np.float32)
    t = eager.from_numpy(array)
    array[0] = 5
    t[1] = 7
    t.mul_(2.0)
    assert array.tolist() == [10.0, 14.0, 2.0] and t.numpy() is not None
    assert np.shares_memory(t.numpy(), array)


def test_tensors_meet_numpy_and_python_numbers() -> None:
    t = eager.tensor([1.0, 2.0])
    array = np.array([10.0, 20.0], np.float32)
    assert (array + t).tolist() == (t + array).tolist() == [11.0, 22.0]
    assert (1 - t).tolist() == [0.0, -1.0] and (2 / t).tolist() == [2.0, 1.0]
    assert (2**t).tolist() == [2.0, 4.0] and (t > 1).tolist() == [False, True]
    array[0] = t[1]
    assert array[0] == 2.0 and float(t[0]) == 1.0 and int(t[1]) == 2
    assert np.asarray(t).tolist() == [1.0, 2.0] and [*t][1].item() == 2.0
    assert f"{t.sum():.1f}" == "3.0" and [5, 6, 7][eager.tensor(1)] == 6
    assert (eager.tensor(3) / 2).item() == 1.5 and (eager.tensor([1, 2]) * 2.5).dtype == "float32"


def test_numpys_functions() -> None:
    t = eager.tensor([1.0, 2.0])
    array = np.zeros(2, np.float32)
    array += t
    assert array.tolist() == [1.0, 2.0] and np.sin(t).dtype == np.float32
    assert np.sum(t) == 3.0 and np.mean(t) == 1.5 and np.max(t) == 2.0
    assert isinstance(np.float32(2) * t, eager.Tensor) and np.around(t * 1.234, 1)[0] == 1.2
    assert (array @ t).item() == 5.0 and isinstance(array < t, eager.Tensor)
    assert (array * leaf([1.0, 2.0])).requires_grad


def test_numbers_keep_the_tensors_dtype() -> None:
    assert (eager.tensor([1.0]) * 2.0).dtype == "float32"
    assert (eager.tensor(np.ones(2)) * 2).dtype == "float64"
    assert (eager.tensor([1]) + 1).dtype == "int64"
    assert (eager.tensor(np.ones(2, "int8")) + 1).dtype == "int8"
    assert (eager.tensor([True]) + 1).dtype == "int64"
    with pytest.raises(DTypeError, match="does not fit int8"):
        eager.tensor(np.ones(2, "int8")) + 1000


def test_pytorchs_spellings() -> None:
    x = eager.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert x.sum(dim=1, keepdim=True).tolist() == [[6.0], [15.0]]
    assert x.argmax(dim=1).tolist() == [2, 2] and x.t().shape == (3, 2)
    assert x.size() == (2, 3) and x.size(-1) == 3 and x.size == x.numel() == 6
    assert x.mul(2).sub(x).eq(x).all() and x.mm(x.T).shape == (2, 2)
    assert x.masked_fill(x > 2, 0.0).sum().item() == 3.0 and len(x.unbind()) == 2
    assert x.contiguous() is x and x.float() is not None and x.long().dtype == "int64"
    assert x.view(-1, 2).unsqueeze(0).permute(2, 0, 1).shape == (2, 1, 3)


def test_results_whose_shape_depends_on_values() -> None:
    x = eager.tensor([[0, 3], [3, 0]])
    assert [t.tolist() for t in sg.nonzero(x)] == [[0, 1], [1, 0]]
    assert sg.argwhere(x).tolist() == x.nonzero().tolist() == [[0, 1], [1, 0]]
    assert sg.unique_values(x).tolist() == [0, 3]
    assert sg.unique_counts(x).counts.tolist() == [2, 2]


def test_tensors_can_be_pickled() -> None:
    t = pickle.loads(pickle.dumps(leaf([1.0, 2.0])))
    assert t.tolist() == [1.0, 2.0] and t.requires_grad


def test_indexing_is_numpys() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    plain, recorded = eager.tensor(array), leaf(array)
    keys = [
        0, -1, slice(1, None), (slice(None), 1), (..., 2), (0, slice(None), slice(None, None, 2)),
        None, (slice(None), None, -1), (1, 2, 3), (slice(None, None, -1),), [1, 0, 1],
        (slice(None), [0, 2]), array > 5, (0, array[0] > 3),
    ]  # fmt: skip
    for key in keys:
        for t in (plain, recorded):
            found = t[key]
            assert found.shape == array[key].shape
            np.testing.assert_array_equal(found.detach().numpy(), array[key])
    (recorded[0, 1:] * 2.0).sum().backward()
    expected = np.zeros_like(array)
    expected[0, 1:] = 2
    np.testing.assert_array_equal(recorded.grad.numpy(), expected)


def test_a_plain_slice_is_a_view() -> None:
    x = eager.zeros(4)
    x[1:3].add_(5.0)
    assert x.tolist() == [0.0, 5.0, 5.0, 0.0]


def test_creation() -> None:
    assert eager.zeros(2, 3).shape == eager.ones((2, 3)).shape == (2, 3)
    assert eager.full((2,), 7.0).tolist() == [7.0, 7.0]
    assert eager.arange(4).tolist() == [0, 1, 2, 3]
    assert eager.eye(2).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert eager.zeros_like(eager.tensor([1, 2])).dtype == "int64"
    assert eager.as_tensor(5).item() == 5 and eager.tensor([eager.tensor(1.0), 2.0]).shape == (2,)
    sg.random.seed(0)
    first = eager.randn(3, 4)
    sg.random.seed(0)
    assert (eager.randn(3, 4) == first).all() and not (eager.randn(3, 4) == first).any()


# --- errors ---------------------------------------------------------------------------------------


def test_the_gradient_of_a_non_scalar() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(DifferentiationError, match=r"for scalars only.*float32\[2\]"):
        (x * x).backward()


def test_a_second_backward_needs_retain_graph() -> None:
    x = leaf(3.0)
    y, line = x**2, here()
    y.backward()
    with pytest.raises(DifferentiationError, match=r"a second time.*retain_graph=True") as caught:
        y.backward()
    assert line in str(caught.value) and here().split(":")[0] in str(caught.value)
    z = x + 1.0  # saves nothing, so nothing is missing
    z.backward()
    z.backward()


def test_numpy_of_a_tensor_that_requires_a_gradient() -> None:
    x = leaf([1.0])
    for attempt in (x.numpy, lambda: np.asarray(x), lambda: np.sin(x)):
        with pytest.raises(DifferentiationError, match=r"detach\(\)"):
            attempt()
    assert x.detach().numpy().tolist() == x.numpy(force=True).tolist() == [1.0]


def test_a_leaf_is_not_changed_where_it_is_recorded() -> None:
    x = leaf([1.0, 2.0])
    for change in (
        lambda: x.add_(1.0), lambda: x.__isub__(1.0), lambda: x.zero_(), lambda: x.__setitem__(0, 1)
    ):  # fmt: skip
        with pytest.raises(DifferentiationError, match="no_grad"):
            change()
    assert x.tolist() == [1.0, 2.0]


def test_backward_after_a_leaf_was_replaced_says_why() -> None:
    p = leaf(1.0)
    (p * p).backward()
    with eager.no_grad():
        p = p - 0.1 * p.grad
    assert p.grad is None and not p.requires_grad
    with pytest.raises(DifferentiationError, match=r"does not require a gradient.*p -= lr"):
        (p * p).backward()


def test_integers_have_no_gradient() -> None:
    with pytest.raises(DTypeError, match=r"only floating tensors.*int64\[2\]"):
        eager.tensor([1, 2], requires_grad=True)
    assert not (leaf([1.0]) > 0).requires_grad


def test_requires_grad_of_a_result_is_fixed() -> None:
    with pytest.raises(DifferentiationError, match="leaves only"):
        (leaf(1.0) * 2).requires_grad = False


def test_shapes_that_do_not_fit_name_the_line() -> None:
    with pytest.raises(ShapeError, match=r"\[3\] and \[4\] do not broadcast") as caught:
        eager.ones(3) + eager.ones(4)
    assert "test_eager.py:" in str(caught.value)


def test_a_kernels_failure_names_the_line_of_its_call() -> None:
    table = eager.ones(3, 2)
    assert sg.take(table, eager.tensor([2]), axis=0).tolist() == [[1.0, 1.0]]
    with pytest.raises(ExecutionError, match="out of") as caught:
        sg.take(table, eager.tensor([5]), axis=0)
    assert "test_eager.py:" in str(caught.value)


def test_a_nan_in_a_backward_pass_is_found() -> None:
    x = leaf([0.0, 1.0])
    with eager.detect_anomaly():
        y, line = x.sqrt() * 0.0, here()
        with pytest.raises(ExecutionError, match="NaN") as caught:
            y.sum().backward()
    assert f"sqrt ({line})" in str(caught.value)
    assert not eager.is_anomaly_enabled()


def test_static_and_eager_tensors_do_not_mix() -> None:
    with pytest.raises(ArgumentTypeError, match="Use one mode in one computation"):
        sg.input("x", (3,)) + eager.ones(3)
    assert (sg.zeros((3,)) + eager.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_other_wrong_uses() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(ShapeError, match="no Python number"):
        x.item()
    with pytest.raises(ShapeError, match="ambiguous"):
        bool(x)
    with pytest.raises(ShapeError, match="0-d tensor"):
        len(eager.tensor(1.0))
    with pytest.raises(DifferentiationError, match="has type float32"):
        x.backward(eager.ones(3))
    with pytest.raises(DifferentiationError, match="do not depend"):
        eager.grad((x * 2).sum(), [leaf(1.0)])
    with pytest.raises(DTypeError, match="can't hold"):
        eager.tensor([1, 2]).add_(0.5)
    with pytest.raises(ShapeError, match="the result is"):
        eager.ones(2).add_(eager.ones(3, 2))
    with pytest.raises(ArgumentTypeError, match="from_numpy"):
        eager.from_numpy([1.0])
    with pytest.raises(ShapeError, match="indexing"):
        eager.ones(2)[5]
    frozen = np.ones(2)
    frozen.flags.writeable = False
    with pytest.raises(StateError, match="read-only"):
        eager.from_numpy(frozen).add_(1.0)


# --- structure ------------------------------------------------------------------------------------


def test_new_sizes_and_numbers_compile_nothing() -> None:
    def step(n: int, m: int) -> None:
        x = leaf(np.ones((n, m), np.float32))
        y = ((x * (1.0 / n)).exp() - m).sum(1) / float(m)
        y[: n - 1].mean().backward()

    step(3, 5)
    before = compiling.compilations
    for n, m in ((4, 6), (7, 3), (9, 4), (33, 65)):
        step(n, m)
    assert compiling.compilations == before


def test_a_chain_of_100_000_operations() -> None:
    x = leaf([1.0, 2.0])
    y = x
    for _ in range(100_000):
        y = y * 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    del y


def test_graphs_are_freed_without_the_garbage_collector() -> None:
    x = leaf([1.0, 2.0])

    def run() -> weakref.ref[Any]:
        h = x
        for _ in range(5):
            h = (h.exp() * 0.1).tanh() + sg.softmax(h, 0)
        h.sum().backward()
        return weakref.ref(h)

    gc.collect()
    gc.disable()
    try:
        assert run()() is None
    finally:
        gc.enable()


def test_a_graph_runs_as_one_operation() -> None:
    a, b = sg.input("a", ("N",)), sg.input("b", ("N",))
    w = sg.parameter(np.float32(2))
    graph = sg.Graph([a, b], [(a * b * w).sum(), a - b])
    x, y = leaf([1.0, 2.0]), eager.tensor([3.0, 4.0])
    total, difference = eager.call_graph(graph, [x, y])
    assert total.item() == 22.0 and difference.tolist() == [-2.0, -2.0]
    (total + difference.sum()).backward()
    assert x.grad.tolist() == [7.0, 9.0] and w.grad.item() == 11.0
    with pytest.raises(ArgumentError, match="2 inputs, got 1"):
        eager.call_graph(graph, [x])
