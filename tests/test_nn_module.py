"""Modules: registration, naming, modes, checkpoints, containers; first values; errors."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn
from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    ExecutionError,
    ShapeError,
    StateError,
    UnsupportedError,
)
from staticgrad.nn import functional as F
from staticgrad.nn import init
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter

from .oracle import evaluate


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(np.ones(3, "float32"))
        self.register_buffer("seen", np.zeros((), "int64"))
        self.register_buffer("cache", np.zeros(2, "float32"), persistent=False)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.body(x) * self.scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.blocks.append(Block())
        self.blocks.append(Block())
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 1, bias=False)})

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.heads["a"](x), self.heads["b"](x)


NAMES = [
    "blocks.0.scale", "blocks.0.body.0.weight", "blocks.0.body.0.bias", "blocks.1.scale",
    "blocks.1.body.0.weight", "blocks.1.body.0.bias", "heads.a.weight", "heads.a.bias",
    "heads.b.weight",
]  # fmt: skip


def test_names_and_traversal() -> None:
    model = Model()
    assert [n for n, _ in model.named_parameters()] == NAMES
    assert len(list(model.parameters())) == len(NAMES)
    assert [n for n, _ in model.named_buffers()] == [
        "blocks.0.seen", "blocks.0.cache", "blocks.1.seen", "blocks.1.cache",
    ]  # fmt: skip
    assert [n for n, _ in model.named_children()] == ["blocks", "heads"]
    assert "blocks.1.body.1" in dict(model.named_modules())
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 4
    assert model.get_submodule("blocks.0.body.0") is model.blocks[0].body[0]
    assert model.get_parameter("heads.a.bias") is model.heads["a"].bias
    seen: list[str] = []
    model.apply(lambda m: seen.append(type(m).__name__))
    assert seen[-1] == "Model" and seen[0] == "Linear"
    with pytest.raises(AttributeError, match="nothing"):
        model.get_submodule("blocks.nothing")


def test_parameters_carry_their_dotted_names() -> None:
    model = Model()
    assert model.blocks[1].scale.name == "1.scale"  # as far as it is known yet
    model(declare("x", ("N", 3)))
    assert [p.name for p in model.parameters()] == NAMES
    assert model.blocks[0].scale.cell.name == "blocks.0.scale"
    model.blocks[0](declare("x", ("N", 3)))  # a part called alone keeps the whole model's names
    assert model.blocks[0].scale.name == "blocks.0.scale"
    named = parameter(np.ones(3, "float32"), "mine")
    block = Block()
    block.scale = named
    block(declare("x", ("N", 3)))
    assert named.name == "mine"
    assert "blocks.1.body.0.weight" in repr(model.blocks[1].body[0].weight)


def test_registration_rules() -> None:
    block = Block()
    weight = parameter(np.zeros(3, "float32"))
    block.scale = weight
    assert block.scale is weight and len(list(block.parameters())) == 3
    block.scale = None
    assert block.scale is None and len(list(block.parameters())) == 2
    with pytest.raises(ArgumentTypeError, match="body is registered"):
        block.body = 3
    del block.body
    assert not hasattr(block, "body") and not list(block.parameters())
    block.count = 4
    assert block.count == 4
    with pytest.raises(AttributeError, match="'Block' object has no attribute 'other'"):
        _ = block.other
    with pytest.raises(ArgumentError, match="already has an attribute"):
        block.register_buffer("count", np.zeros(1))
    with pytest.raises(ArgumentError, match=r"without '\.'"):
        block.register_parameter("a.b", weight)
    with pytest.raises(ArgumentTypeError, match="expected a parameter"):
        block.register_parameter("w", np.zeros(2))
    with pytest.raises(ArgumentError, match="trainable"):
        block.register_buffer("b", weight)

    class Early(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    with pytest.raises(ArgumentError, match=r"Early: call super\(\).__init__\(\)"):
        Early()


def test_shared_parameters_count_once() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_checkpoint_round_trip() -> None:
    model, other = Model(), Model()
    state = model.state_dict()
    assert "blocks.0.seen" in state and "blocks.0.cache" not in state
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    state["heads.a.bias"][:] = 7  # a copy
    assert not (model.heads["a"].bias.numpy() == 7).any()


def test_checkpoint_errors_name_every_key_and_write_nothing() -> None:
    model = Model()
    before = model.state_dict()
    broken = {**before, "heads.a.weight": np.zeros((3, 2)), "extra": np.zeros(1)}
    broken["heads.a.bias"] = np.zeros(2, "complex64").real.astype("float64") + 1e300
    broken["blocks.0.scale"] = before["blocks.0.scale"] + 1
    del broken["heads.b.weight"]
    with pytest.raises(StateError) as caught:
        model.load_state_dict(broken)
    text = str(caught.value)
    assert "missing keys: heads.b.weight" in text and "surplus keys: extra" in text
    assert "heads.a.weight: expected float32[2, 3], got float64[3, 2]" in text
    assert "heads.a.bias: expected float32[2], got a finite value that overflows" in text
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    found = model.load_state_dict({"extra": np.zeros(1)}, strict=False)
    assert found.unexpected_keys == ["extra"] and len(found.missing_keys) == len(before)
    with pytest.raises(ArgumentTypeError, match="dict of arrays"):
        model.load_state_dict([1])


def test_mode_is_symbolic_until_it_is_fixed() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(3)))
    assert repr(model.training) == "symbolic"
    with pytest.raises(ArgumentTypeError, match="not known while the graph is declared"):
        bool(model.training)
    assert model.eval() is model
    assert [m.training for m in model.modules()] == [False] * 4
    x = declare("x", (4, 3))
    assert all(n.op != "training_switch" for n in sg.Graph([x], [model(x)]).nodes)
    model.train()
    assert model[1][0].training is True
    model[0].eval()
    assert model[0].training is False and model.training is True
    model.train(None)
    assert repr(model[1][0].training) == "symbolic"
    model.training = False
    assert model[0].training is False
    with pytest.raises(ArgumentTypeError, match="True, False or None"):
        model.train("yes")


def test_dropout_in_training_and_evaluation() -> None:
    sg.random.seed(3)
    x = declare("x", (200, 50))
    ones = np.ones((200, 50), "float32")
    (kept,) = evaluate([nn.Dropout(0.2).train()(x)], [x], [ones])
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1.25)}
    # 10,000 draws: the standard deviation of the mean is 0.004.
    assert abs((kept == 0).mean() - 0.2) < 0.02
    layer = nn.Dropout(0.2)
    (same,) = evaluate([layer(x)], [x], [ones])
    np.testing.assert_array_equal(same, ones)
    assert F.dropout(x, 0.0) is x and F.dropout(x, 0.5, training=False) is x
    (none,) = evaluate([F.dropout(x, 1.0)], [x], [ones])
    assert not none.any()
    maps = declare("m", (20, 30, 2, 2))
    (channels,) = evaluate([F.dropout2d(maps)], [maps], [np.ones((20, 30, 2, 2), "float32")])
    flat = channels.reshape(600, 4)
    assert ((flat == 0).all(1) | (flat == 2).all(1)).all() and 200 < (flat[:, 0] == 0).sum() < 400
    (gradient,) = evaluate([gradients(F.dropout(x, 0.2).sum(), x)], [x], [ones])
    assert set(np.unique(gradient)) == {np.float32(0), np.float32(1.25)}
    for p in (1.5, -0.1):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            nn.Dropout(p)
    with pytest.raises(ArgumentTypeError, match="p must be a number"):
        nn.Dropout(True)
    with pytest.raises(DTypeError, match="floating"):
        F.dropout(declare("i", (3,), "int64"))


def test_devices_and_dtypes() -> None:
    layer = nn.Linear(2, 3)
    assert layer.to("cpu") is layer and layer.cpu() is layer
    for device in ("cuda", "cuda:0", "gpu", "tpu", "mps"):
        with pytest.raises(UnsupportedError, match=device):
            layer.to(device)
    with pytest.raises(UnsupportedError, match="cuda"):
        layer.cuda()
    with pytest.raises(UnsupportedError, match="cuda"):
        nn.Linear(2, 3, device="cuda")
    before = layer.weight.numpy()
    layer.double()
    assert layer.weight.dtype == "float64" and layer.bias.dtype == "float64"
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    assert nn.Linear(2, 3, dtype=sg.float64).weight.dtype == "float64"
    norm = nn.BatchNorm1d(2).to(dtype="float64")
    assert norm.running_mean.dtype == "float64" and norm.num_batches_tracked.dtype == "int64"
    with pytest.raises(ArgumentError, match="floating"):
        layer.to("int32")
    with pytest.raises(DTypeError, match="floating"):
        nn.Linear(2, 3, dtype="int64")


def test_an_optimiser_of_parameters_that_a_conversion_replaced_says_so() -> None:
    layer = nn.Linear(2, 3)
    old = list(layer.parameters())
    optimizer = sg.optim.SGD(old, lr=0.1)
    assert layer.float() is layer and layer.weight is old[0]  # nothing to convert
    x32 = sg.input("x", (4, 2))
    program = sg.compile([x32], layer(x32))
    before = program(np.ones((4, 2), "float32"))
    layer.double()
    x = sg.input("x", (4, 2), dtype="float64")
    loss = layer(x).sum()
    replaced = r"'weight' .*float32\[3, 2\] was replaced .*\.double\(\).*after converting"
    for use in (
        lambda: optimizer.minimize(loss),
        lambda: optimizer.minimize(loss, unreachable="zeros"),
        lambda: optimizer.apply_gradients(sg.gradients(loss, list(layer.parameters()))),
        optimizer.step,
        lambda: sg.optim.Adam(old),
    ):
        with pytest.raises(ArgumentError, match=replaced):
            use()
    layer.weight.assign(np.zeros((3, 2)))
    # As `to` documents: a program keeps the parameters that it was built with.
    np.testing.assert_array_equal(program(np.ones((4, 2), "float32")), before)
    fresh = sg.optim.SGD(layer.parameters(), lr=0.1)
    step = sg.compile([x], loss, updates=fresh.minimize(loss))
    step(np.ones((4, 2)))
    np.testing.assert_allclose(layer.weight.numpy(), -0.4)


def test_a_module_with_backward_is_refused() -> None:
    class Custom(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

        def backward(self, g: Any) -> Any:
            return g

    with pytest.raises(UnsupportedError, match="Custom defines `backward`"):
        Custom()
    with pytest.raises(UnsupportedError, match="Module does not define `forward`"):
        nn.Module()(declare("x", (1,)))


def test_containers() -> None:
    a, b, c = nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3)
    model = nn.Sequential(OrderedDict(first=a, act=b, last=c))
    assert next(iter(model.state_dict())) == "first.weight"
    assert model.first is a and model[-1] is c and len(model) == 3
    assert len(model[:2]) == 2 and model[:2][0] is a
    modules = nn.ModuleList([a, b])
    modules.extend([c]).insert(0, b)
    assert [type(m).__name__ for m in modules] == ["ReLU", "Linear", "ReLU", "Linear"]
    modules[1] = c
    assert modules[1] is c
    del modules[0]
    assert len(modules) == 3 and modules[0] is c and list(modules._modules) == ["0", "1", "2"]
    by_name = nn.ModuleDict({"x": a})
    by_name["y"] = b
    assert "y" in by_name and list(by_name.keys()) == ["x", "y"] and by_name["x"] is a
    weights = nn.ParameterList([parameter(np.ones(2))])
    assert len(weights) == 1 and dict(weights.named_parameters())["0"] is weights[0]
    with pytest.raises(IndexError):
        _ = model[3]
    with pytest.raises(ArgumentTypeError, match="entry 1 is function"):
        nn.Sequential(a, F.relu)
    with pytest.raises(ArgumentTypeError, match="expected a Module"):
        modules.append(3)


def test_deep_copies_have_state_of_their_own() -> None:
    model = Model()
    copied = copy.deepcopy(model)
    pairs = list(zip(model.parameters(), copied.parameters(), strict=True))
    assert all(a is not b and a.cell is not b.cell for a, b in pairs)
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    copied.blocks[0].scale.assign(np.full(3, 5, "float32"))
    assert not (model.blocks[0].scale.numpy() == 5).any()
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 3)
    assert len(list(encoder.parameters())) == 36


def test_repr_is_pytorchs() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6, 10), nn.Dropout(0.1),
    )  # fmt: skip
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))\n"
        "  (1): BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)\n"
        "  (3): Flatten(start_dim=1, end_dim=-1)\n"
        "  (4): Linear(in_features=6, out_features=10, bias=True)\n"
        "  (5): Dropout(p=0.1, inplace=False)\n"
        ")"
    )


def test_first_values() -> None:
    sg.random.seed(0)
    layer = nn.Linear(300, 200)
    bound = 1 / math.sqrt(300)
    weight = layer.weight.numpy()
    assert weight.dtype == np.float32 and np.abs(weight).max() <= bound
    # The standard deviation of a uniform number is bound/sqrt(3); of 60,000 it is within 1%.
    np.testing.assert_allclose(weight.std(), bound / math.sqrt(3), rtol=0.01)
    assert np.abs(layer.bias.numpy()).max() <= bound
    conv = nn.Conv2d(16, 8, 5)
    assert 0.9 * 0.05 < np.abs(conv.weight.numpy()).max() <= 0.05  # 1/sqrt(16*25)
    table = nn.Embedding(1000, 50, padding_idx=3).weight.numpy()
    np.testing.assert_allclose(table.std(), 1.0, rtol=0.02)
    assert not table[3].any()
    attention = nn.MultiheadAttention(64, 4)
    projection = attention.in_proj_weight.numpy()
    assert 0.9 < np.abs(projection).max() / math.sqrt(6 / (64 + 192)) <= 1.0
    assert not attention.in_proj_bias.numpy().any() and not attention.out_proj.bias.numpy().any()
    sg.random.seed(0)
    np.testing.assert_array_equal(nn.Linear(300, 200).weight.numpy(), weight)


def test_initialisers() -> None:
    sg.random.seed(1)
    w = parameter(np.zeros((60, 40, 3), "float32"))
    assert init.fans((60, 40, 3)) == (120, 180)
    init.kaiming_normal_(w, nonlinearity="relu")
    np.testing.assert_allclose(w.numpy().std(), math.sqrt(2 / 120), rtol=0.03)
    init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")
    assert np.abs(w.numpy()).max() <= math.sqrt(6 / 180)
    init.xavier_normal_(w, gain=2.0)
    np.testing.assert_allclose(w.numpy().std(), 2 * math.sqrt(2 / 300), rtol=0.03)
    init.trunc_normal_(w, std=2.0, a=-1.0, b=1.5)
    assert w.numpy().min() >= -1 and w.numpy().max() <= 1.5
    init.orthogonal_(w, gain=3.0)
    rows = w.numpy().reshape(60, 120)
    np.testing.assert_allclose(rows @ rows.T, 9 * np.eye(60), atol=1e-4)
    square = init.eye_(parameter(np.zeros((2, 3), "float32")))
    np.testing.assert_array_equal(square.numpy(), np.eye(2, 3))
    assert (init.constant_(w, 0.5).numpy() == 0.5).all()
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("leaky_relu", 1.0) == 1.0
    with pytest.raises(ArgumentError, match="known are"):
        init.calculate_gain("swish")
    with pytest.raises(ArgumentTypeError, match="expected a parameter"):
        init.uniform_(np.zeros(3))
    with pytest.raises(ShapeError, match="at least 2 dims"):
        init.xavier_uniform_(parameter(np.zeros(3)))
    with pytest.raises(ArgumentError, match="less than"):
        init.trunc_normal_(w, a=9.0, b=10.0)


def test_layer_arguments_are_checked() -> None:
    x = declare("x", ("N", 4))
    with pytest.raises(ArgumentTypeError, match="in_features must be an int"):
        nn.Linear(2.0, 3)
    with pytest.raises(ArgumentError, match="at least 0"):
        nn.Linear(-1, 3)
    with pytest.raises(ShapeError):
        nn.Linear(3, 2)(x)
    with pytest.raises(ArgumentError, match="do not divide in_channels=3"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ArgumentError, match="padding_mode"):
        nn.Conv2d(3, 4, 3, padding_mode="mirror")
    with pytest.raises(ArgumentError, match="do not divide 4 channels"):
        nn.GroupNorm(3, 4)
    with pytest.raises(ShapeError, match="BatchNorm1d: expected 3 channels"):
        nn.BatchNorm1d(3)(x)
    with pytest.raises(ShapeError, match="BatchNorm2d: expected an input of 4 dims"):
        nn.BatchNorm2d(4)(x)
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        nn.BatchNorm1d(4).train()(declare("x", (1, 4)))
    with pytest.raises(ShapeError, match=r"last dims are \[3\]"):
        nn.LayerNorm(3)(x)
    with pytest.raises(ArgumentError, match="divisible"):
        nn.MultiheadAttention(6, 4)
    with pytest.raises(UnsupportedError, match="add_bias_kv"):
        nn.MultiheadAttention(6, 3, add_bias_kv=True)
    with pytest.raises(ArgumentError, match="activation"):
        nn.TransformerEncoderLayer(4, 2, activation="swish")
    with pytest.raises(ArgumentError, match="outside of the 5 rows"):
        nn.Embedding(5, 3, padding_idx=5)
    with pytest.raises(DTypeError, match="expected integers"):
        nn.Embedding(5, 3)(x)
    with pytest.raises(ArgumentError, match="num_classes must be"):
        F.one_hot(declare("i", (3,), "int64"), -1)
    with pytest.raises(ArgumentError, match="reduction must be one of"):
        nn.MSELoss(reduction="batchmean")


def test_symbolic_batches_through_a_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    x = declare("x", ("N", 1, "H", "W"))
    assert str(model(x).shape) == "(Dim('N'), 3)"
    (y,) = evaluate([model(x)], [x], [np.zeros((2, 1, 6, 5), "float32")])
    assert y.shape == (2, 3)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)
    tokens = declare("t", ("N", "L", 4))
    y = layer(tokens, is_causal=True)
    (full,) = evaluate([y], [tokens], [np.ones((2, 5, 4), "float32")])
    (head,) = evaluate([y], [tokens], [np.ones((2, 3, 4), "float32")])
    np.testing.assert_allclose(full[:, :3], head, rtol=1e-5, atol=1e-6)  # no look ahead


# --- losses ---------------------------------------------------------------------------------------


def test_labels_out_of_range_fail_the_run() -> None:
    x, y = declare("x", ("N", 3)), declare("y", ("N",), "int64")
    loss = F.cross_entropy(x, y)
    logits = np.zeros((2, 3), "float32")
    (value,) = evaluate([loss], [x, y], [logits, np.array([2, -100])])
    np.testing.assert_allclose(value, math.log(3), rtol=1e-6)
    program = sg.compile([x, y], loss)
    for label in (3, -1):
        with pytest.raises(ExecutionError):
            evaluate([loss], [x, y], [logits, np.array([0, label])])
        with pytest.raises(ExecutionError):
            program(logits, np.array([0, label]))
    table = nn.Embedding(3, 2)
    rows = table(y)
    with pytest.raises(ExecutionError):
        evaluate([rows], [y], [np.array([-1])])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint64"])
def test_labels_of_every_integer_type(dtype: str) -> None:
    x, y = declare("x", (3, 4), "float64"), declare("y", (3,), dtype)
    logits = np.random.default_rng(0).standard_normal((3, 4))
    labels = np.array([3, 0, 2], dtype)
    (value,) = evaluate([F.cross_entropy(x, y)], [x, y], [logits, labels])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(value, -np.log(p[np.arange(3), labels]).mean(), rtol=1e-12)


def test_extreme_logits_stay_finite() -> None:
    x, t = declare("x", (2, 2)), declare("t", (2, 2))
    huge = np.array([[1e4, -1e4], [-1e4, 1e4]], "float32")
    target = np.array([[1.0, 0.0], [1.0, 0.0]], "float32")
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    value, slope = evaluate([loss, gradients(loss.sum(), x)], [x, t], [huge, target])
    np.testing.assert_array_equal(value, [[0, 0], [1e4, 1e4]])
    np.testing.assert_array_equal(slope, [[0, 0], [-1, 1]])
    y = declare("y", (2,), "int64")
    loss = F.cross_entropy(x, y, reduction="none")
    value, slope = evaluate([loss, gradients(loss.sum(), x)], [x, y], [huge, np.array([0, 0])])
    np.testing.assert_array_equal(value, [0, 2e4])
    np.testing.assert_array_equal(slope, [[0, 0], [-1, 1]])


def test_bce_at_the_ends_is_held_at_100() -> None:
    p, t = declare("p", (4,)), declare("t", (4,))
    loss = F.binary_cross_entropy(p, t, reduction="none")
    arrays = [np.array([0, 1, 0, 1], "float32"), np.array([0, 1, 1, 0], "float32")]
    value, slope = evaluate([loss, gradients(loss.sum(), p)], [p, t], arrays)
    np.testing.assert_array_equal(value, [0, 0, 100, 100])
    assert np.isfinite(slope).all()


def test_gradients_at_kinks_are_pytorchs() -> None:
    x = declare("x", (3, 2), "float64")
    zero = np.zeros((3, 2))
    for loss in (F.normalize(x).sum(), F.l1_loss(x, x.detach()), F.huber_loss(x, x.detach())):
        (slope,) = evaluate([gradients(loss, x)], [x], [zero])
        assert np.isfinite(slope).all()


def test_losses_refuse_what_would_be_silently_wrong() -> None:
    column, row = declare("c", ("N", 1)), declare("r", ("N",))
    for loss in (F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits):
        with pytest.raises(ShapeError, match="same shape"):
            loss(column, row)
    F.mse_loss(row, 0.0)
    logits = declare("x", ("N", 3))
    with pytest.raises(ShapeError, match="labels must have the shape"):
        F.cross_entropy(logits, declare("y", ("N", 1), "int64"))
    with pytest.raises(DTypeError, match="must be integers"):
        F.cross_entropy(logits, declare("y", ("N",)))
    with pytest.raises(DTypeError, match="probabilities must be floating"):
        F.cross_entropy(logits, declare("y", ("N", 3), "int64"))
    with pytest.raises(ShapeError, match="one weight for each class"):
        F.cross_entropy(logits, declare("y", ("N",), "int64"), np.ones(4, "float32"))
    with pytest.raises(ArgumentError, match="label_smoothing"):
        F.cross_entropy(logits, declare("y", ("N",), "int64"), label_smoothing=2.0)
    with pytest.raises(ArgumentError, match="reduction"):
        F.mse_loss(row, row, reduction="avg")
    with pytest.raises(DTypeError, match="floating"):
        F.mse_loss(declare("i", (3,), "int64"), declare("j", (3,), "int64"))
    with pytest.raises(ArgumentError, match="not both"):
        q = declare("q", (2, 3, 4))
        F.scaled_dot_product_attention(q, q, q, np.ones((3, 3), bool), is_causal=True)


def test_batch_norm_called_twice_updates_one_after_the_other() -> None:
    norm = nn.BatchNorm1d(2, dtype="float64")
    x = declare("x", (8, 2), "float64")
    data = np.random.default_rng(0).standard_normal((8, 2)) + 3.0
    program = sg.compile([x], norm(norm(x) + 1.0).sum(), training=True)
    program(data)
    assert norm.num_batches_tracked.numpy() == 2
    # After the first norm (and + 1) the batch has mean 1 and, biased, variance 1 - 1e-5.
    mean = 0.9 * 0.1 * data.mean(0) + 0.1 * 1.0
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "order"),
    [
        (nn.Conv2d(3, 4, 3), ("N", 32, 32, 3), "0, 3, 1, 2"),
        (nn.Conv1d(3, 4, 3), ("N", 32, 3), "0, 2, 1"),
        (nn.BatchNorm2d(3), ("N", 8, 8, 3), "0, 3, 1, 2"),
        (nn.InstanceNorm2d(3), ("N", 8, 8, 3), "0, 3, 1, 2"),
    ],
)
def test_channels_that_stand_last_are_noticed(layer: Any, shape: Any, order: str) -> None:
    x = sg.input("x", shape)
    with pytest.raises(sg.ShapeError, match=rf"in dim 1.*here last: sg.permute_dims\(x, \({order}"):
        layer(x)
    layer(sg.permute_dims(x, tuple(int(i) for i in order.split(", "))))


def test_instance_norm_refuses_what_it_does_not_do() -> None:
    with pytest.raises(sg.UnsupportedError, match="track_running_stats=True is not supported"):
        nn.InstanceNorm1d(3, track_running_stats=True)
    with pytest.raises(sg.ShapeError, match="an input of 3 or 4 dims"):
        nn.InstanceNorm2d(3)(sg.input("x", (2, 3)))
    with pytest.raises(sg.ShapeError, match="expected 3 channels, got"):
        nn.InstanceNorm1d(3)(sg.input("x", (2, 5, 7)))
