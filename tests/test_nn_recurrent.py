"""Recurrent layers: one program for all lengths, what its loops hold, training, modes, errors.

Their values and gradients are compared with PyTorch's in `test_nn_torch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn

F = nn.functional
KINDS = ("RNN", "GRU", "LSTM")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def steps_by_hand(kind: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The outputs of one layer in NumPy, step by step: [L, N, I] -> [L, N, H]."""
    w_ih, w_hh, b_ih, b_hh = (weights[f"{n}_l0"] for n in ("weight_ih", "weight_hh", "bias_ih",
                                                           "bias_hh"))  # fmt: skip
    h = np.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    c, found = h, []
    for row in x:
        parts = np.split(row @ w_ih.T + b_ih, GATES[kind], axis=1)
        own = np.split(h @ w_hh.T + b_hh, GATES[kind], axis=1)
        if kind == "RNN":
            h = np.tanh(parts[0] + own[0])
        elif kind == "GRU":
            r, z = (sigmoid(a + b) for a, b in zip(parts[:2], own[:2]))
            h = (1 - z) * np.tanh(parts[2] + r * own[2]) + z * h
        else:
            i, f, g, o = (a + b for a, b in zip(parts, own))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.array(found, x.dtype).reshape(len(x), *h.shape)


def last_h(kind: str, state: Any) -> Any:
    return state[0] if kind == "LSTM" else state


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_pytorchs_names_order_and_first_values(kind: str) -> None:
    layer = getattr(nn, kind)(3, 16, num_layers=2, bidirectional=True)
    rows = GATES[kind] * 16
    expected = {}
    for number in range(2):
        for suffix in ("", "_reverse"):
            end = f"_l{number}{suffix}"
            expected |= {
                f"weight_ih{end}": (rows, 32 if number else 3), f"weight_hh{end}": (rows, 16),
                f"bias_ih{end}": (rows,), f"bias_hh{end}": (rows,),
            }  # fmt: skip
    found = {name: p.shape for name, p in layer.named_parameters()}
    assert list(found.items()) == list(expected.items())
    for p in layer.parameters():
        values = p.numpy()
        assert values.dtype == np.float32
        assert 0.2 < np.abs(values).max() <= 0.25  # 1 / sqrt(16)


def test_projection_and_bias_change_the_parameters() -> None:
    layer = nn.LSTM(3, 5, proj_size=2, bias=False, num_layers=2)
    assert {name: p.shape for name, p in layer.named_parameters()} == {
        "weight_ih_l0": (20, 3), "weight_hh_l0": (20, 2), "weight_hr_l0": (2, 5),
        "weight_ih_l1": (20, 2), "weight_hh_l1": (20, 2), "weight_hr_l1": (2, 5),
    }  # fmt: skip


def test_repr() -> None:
    assert repr(nn.GRU(3, 5)) == "GRU(3, 5)"
    layer = nn.LSTM(3, 5, 2, batch_first=True, dropout=0.5, bidirectional=True, proj_size=2)
    assert repr(layer) == (
        "LSTM(3, 5, proj_size=2, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True)"
    )
    assert repr(nn.RNN(3, 5, nonlinearity="relu")) == "RNN(3, 5, nonlinearity='relu')"
    assert repr(nn.GRUCell(3, 5, bias=False)) == "GRUCell(3, 5, bias=False)"


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_executable_serves_all_lengths_and_batches(kind: str) -> None:
    layer = getattr(nn, kind)(3, 5)
    x = sg.input("x", ("L", "N", 3))
    y, state = layer(x)
    program = sg.compile([x], [y, last_h(kind, state)])
    rng = np.random.default_rng(0)
    for length, batch in ((1, 1), (7, 2), (2, 9), (4, 0), (30, 3)):
        values = rng.standard_normal((length, batch, 3)).astype("float32")
        outputs, last = program(values)
        expected = steps_by_hand(kind, layer.state_dict(), values)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(last[0], outputs[-1])
    outputs, last = program(np.zeros((0, 2, 3), "float32"))
    assert outputs.shape == (0, 2, 5)
    np.testing.assert_array_equal(last, np.zeros((1, 2, 5)))


def test_batch_size_of_the_state_is_checked_at_the_call() -> None:
    layer = nn.GRU(3, 5)
    x, h = sg.input("x", ("L", "N", 3)), sg.input("h", (1, "M", 5))
    program = sg.compile([x, h], layer(x, h)[0])
    assert program(np.zeros((4, 2, 3), "f"), np.zeros((1, 2, 5), "f")).shape == (4, 2, 5)
    with pytest.raises(ValueError, match="N is 2, M is 3"):
        program(np.zeros((4, 2, 3), "f"), np.zeros((1, 3, 5), "f"))


def test_a_layer_is_its_cell_repeated() -> None:
    layer, cell = nn.LSTM(3, 5), nn.LSTMCell(3, 5)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x = sg.input("x", (4, 2, 3))
    state, rows = None, []
    for t in range(4):
        state = cell(x[t], state)
        rows.append(state[0])
    y, (h, c) = layer(x)
    program = sg.compile([x], [y, h, c, sg.stack(rows), *state])
    values = np.random.default_rng(0).standard_normal((4, 2, 3)).astype("float32")
    outputs, h, c, by_cell, last_h, last_c = program(values)
    np.testing.assert_allclose(outputs, by_cell, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h[0], last_h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c[0], last_c, rtol=1e-5, atol=1e-6)


# --- the program ----------------------------------------------------------------------------------


def kernels_of(program: Any) -> tuple[list[str], list[str]]:
    """The names of the kernels that run once and of those that run in every step; no copies."""
    found = program.report().to_dict()["kernels"]
    computing = [(k["name"], k["times"]) for k in found if not k["name"].startswith("copy")]
    return [n for n, times in computing if times == 1], [
        n for n, times in computing if times == "L"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_one_product_and_one_kernel(kind: str) -> None:
    layer = getattr(nn, kind)(24, 32)
    x = sg.input("x", ("L", "N", 24))
    once, inside = kernels_of(sg.compile([x], layer(x)[0]))
    assert [n for n in once if "matmul" in n] == ["matmul_add"]  # all inputs and biases
    assert len([n for n in inside if "matmul" in n]) == 1
    assert len(inside) == (1 if kind == "RNN" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_weights_are_products_over_all_steps(kind: str) -> None:
    layer = getattr(nn, kind)(24, 32)
    x = sg.input("x", ("L", "N", 24))
    grads = sg.gradients((layer(x)[0] ** 2).sum(), list(layer.parameters()))
    once, inside = kernels_of(sg.compile([x], grads))
    # x W_ih^T before the loops, the gradients of W_ih and W_hh behind them; forward and backward.
    assert len([n for n in once if "matmul" in n]) == 3
    assert len([n for n in inside if "matmul" in n]) == 2


def test_costs_are_those_of_the_formula() -> None:
    layer = nn.GRU(24, 32)
    x = sg.input("x", ("L", "N", 24))
    program = sg.compile([x], layer(x)[0])
    kernels = program.report().to_dict()["kernels"]
    products = [k["flops"] for k in kernels if "matmul" in k["name"]]
    each = [(2 * n + 1) * 96 for n in (24, 32)]  # the product, and the bias in its epilogue
    assert sorted(products) == [f"{flops}*L*N" for flops in each]
    assert "L*L" not in str(program.report())  # a step reads its part of the inputs, not all


# --- training and modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_training_follows_the_reference(kind: str) -> None:
    def losses(mode: str) -> list[float]:
        sg.random.seed(0)
        layer, head = getattr(nn, kind)(2, 8, batch_first=True), nn.Linear(8, 1)
        x, y = sg.input("x", ("N", "L", 2)), sg.input("y", ("N", 1))
        outputs, _ = layer(x)
        loss = F.mse_loss(head(outputs[:, -1]), y)
        optimizer = sg.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
        step = sg.compile([x, y], [loss], updates=optimizer.minimize(loss), mode=mode)
        xs = np.random.default_rng(0).standard_normal((16, 6, 2)).astype("float32")
        ys = xs.sum(axis=(1, 2))[:, None] / 4
        return [float(step(xs, ys)[0]) for _ in range(10)]

    found = losses("native")
    np.testing.assert_allclose(found, losses("reference"), rtol=1e-4)
    assert found[-1] < 0.9 * found[0]


def test_dropout_lies_between_layers_and_only_in_training() -> None:
    layer = nn.GRU(3, 64, num_layers=2, dropout=0.5)
    x = sg.input("x", ("L", "N", 3))
    y, h = layer(x)
    values = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("float32")
    evaluate = sg.compile([x], [y, h], training=False)
    train = sg.compile([x], [y, h], training=True)
    plain, state = evaluate(values)
    dropped, dropped_state = train(values)
    np.testing.assert_array_equal(evaluate(values)[0], plain)
    np.testing.assert_array_equal(dropped_state[0], state[0])  # the first layer has none
    assert np.abs(dropped - plain).max() > 1e-3
    assert np.count_nonzero(dropped) == dropped.size  # none behind the last layer


def test_dropout_without_a_second_layer_warns() -> None:
    with pytest.warns(UserWarning, match="between layers") as record:
        nn.GRU(3, 4, dropout=0.5)
    assert record[0].filename == __file__


@pytest.mark.parametrize("kind", KINDS)
def test_the_dynamic_mode_gives_the_same(kind: str) -> None:
    layer = getattr(nn, kind)(3, 5, num_layers=2, bidirectional=True)
    values = np.random.default_rng(0).standard_normal((4, 2, 3)).astype("float32")
    x = sg.input("x", (4, 2, 3))
    y, _ = layer(x)
    wanted = [x, *layer.parameters()]
    static = sg.compile([x], [y, *sg.gradients((y * y).sum(), wanted)])(values)
    t = sg.eager.tensor(values, requires_grad=True)
    outputs, state = layer(t)
    assert last_h(kind, state).shape == (4, 2, 5)
    (outputs * outputs).sum().backward()
    found = [outputs.detach(), t.grad, *(p.grad for p in layer.parameters())]
    for a, b in zip(found, static, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-6)


def test_transforms() -> None:
    layer = nn.GRU(2, 3).double()
    rng = np.random.default_rng(0)
    x, dx = rng.standard_normal((2, 4, 2, 2))

    def f(v: Any) -> Any:
        return layer(v)[0]

    y, pushed = sg.jvp(f, (x,), (dx,))
    eps = 1e-6
    difference = (sg.jit(f)(x + eps * dx) - sg.jit(f)(x - eps * dx)) / (2 * eps)
    np.testing.assert_allclose(pushed, difference, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(sg.vmap(f)(np.stack([x, dx]))[0], y, rtol=1e-12)


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_inputs_are_refused() -> None:
    x = sg.input("x", ("L", "N", 3))
    gru, lstm = nn.GRU(3, 5), nn.LSTM(3, 5)
    wrong: list[tuple[Any, str]] = [
        (lambda: gru(sg.input("x", ("L", "N", 4))), r"be input_size=3, got float32\[L, N, 4\]"),
        (lambda: gru(sg.input("x", (3,))), r"expected an input \[L, N, I\] or \[L, I\]"),
        (lambda: nn.GRU(3, 5, batch_first=True)(sg.input("x", (3,))), r"input \[N, L, I\] or"),
        (lambda: gru(x, sg.input("h", (2, "N", 5))), r"h_0 must be \[1, N, 5\], got float32\[2, N"),
        (lambda: gru(x, sg.input("h", (1, 5))), r"h_0 must be \[1, N, 5\]"),
        (lambda: lstm(x, (sg.input("h", (1, "N", 5)), sg.input("c", (1, "N", 4)))), "c_0 must be"),
        (lambda: gru(x, (x, x)), "hx must be a tensor"),
        (lambda: lstm(x, x), r"hx must be a pair \(h_0, c_0\)"),
        (lambda: nn.GRUCell(3, 5)(sg.input("x", ("N", 2))), "gru_cell: .* input_size=3"),
        (lambda: nn.GRUCell(3, 5)(x[0], sg.input("h", ("N", 4))), r"h_0 must be \[N, 5\]"),
        (lambda: F.gru(x, None, [np.zeros((15, 3))]), "4 parameters, got 1"),
        (lambda: F.gru(x, None, [np.zeros(s) for s in ((15, 3), (12, 5), 15, 15)]),
         r"weight_hh must be \[15, 5\], got float64\[12, 5\] \(layer 0\)"),
        (lambda: F.gru_cell(x[0], None, np.zeros((15, 3)), np.zeros((15, 5)), np.zeros(15)),
         "both biases"),
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_wrong_options_are_refused() -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: nn.GRU(3, 0), "hidden_size must be at least 1"),
        (lambda: nn.GRU(3, 5, num_layers=0), "num_layers must be at least 1"),
        (lambda: nn.GRU(3, 5, num_layers=2, dropout=1.5), "dropout must be between 0 and 1"),
        (lambda: nn.RNN(3, 5, nonlinearity="sigmoid"), 'must be "tanh" or "relu"'),
        (lambda: nn.RNNCell(3, 5, nonlinearity="sigmoid"), 'must be "tanh" or "relu"'),
        (lambda: nn.LSTM(3, 5, proj_size=5), "proj_size must be smaller than hidden_size=5"),
        (lambda: nn.GRU(3, 5, dtype="int32"), "must be floating"),
        (lambda: nn.GRU(3, 5, device="cuda"), "CPUs only"),
    ]
    for call, message in wrong:
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
            call()
