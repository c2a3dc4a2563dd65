"""Modules and parameters in lists, tuples and dicts of a module: found like registered ones."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import nn
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.nn import held

Pair = namedtuple("Pair", "left right")


class Plain(nn.Module):
    """Layers in everything that Python has for it, one list filled after it was assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Any] = []
        for _ in range(2):
            self.layers.append(nn.Linear(3, 3))
        self.pair = (nn.Linear(3, 3), "relu")
        self.heads = {"a": nn.Linear(3, 2), 1: [nn.Dropout(0.5), [nn.BatchNorm1d(3)]]}
        self.scales = [sg.parameter(np.ones(3, "float32"))]
        self.sizes = [3, 3]

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = sg.relu(layer(x)) * self.scales[0]
        x = self.pair[0](x)
        for layer in (self.heads[1][0], *self.heads[1][1]):
            x = layer(x)
        return self.heads["a"](x)


class Registered(nn.Module):
    """The same by the containers that PyTorch has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.pair = nn.ModuleList([nn.Linear(3, 3)])
        inner = nn.ModuleList([nn.Dropout(0.5), nn.ModuleList([nn.BatchNorm1d(3)])])
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "1": inner})
        self.scales = nn.ParameterList([sg.parameter(np.ones(3, "float32"))])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = sg.relu(layer(x)) * self.scales[0]
        x = self.pair[0](x)
        for layer in (self.heads["1"][0], *self.heads["1"][1]):
            x = layer(x)
        return self.heads["a"](x)


def models() -> tuple[Plain, Registered]:
    plain, registered = Plain(), Registered()
    plain.load_state_dict(registered.state_dict())
    return plain, registered


XS = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
YS = np.arange(8) % 2


def test_names_are_those_of_module_lists() -> None:
    plain, registered = models()
    assert plain.state_dict().keys() == registered.state_dict().keys()
    for which in ("named_parameters", "named_buffers"):
        names = [n for n, _ in getattr(plain, which)()]
        assert sorted(names) == sorted(n for n, _ in getattr(registered, which)())
    for model in (plain, registered):
        assert list(model.modules()) == [m for _, m in model.named_modules()]
    assert plain.get_submodule("heads.1.1.0") is plain.heads[1][1][0]
    assert plain.get_parameter("layers.1.weight") is plain.layers[1].weight
    assert plain.get_parameter("scales.0") is plain.scales[0]
    for wrong in ("layers", "layers.2", "sizes.0", "layers.x.weight"):
        with pytest.raises(AttributeError):
            plain.get_submodule(wrong)
    assert plain.layers[1].weight.name == "1.weight" or plain.layers[1].weight.name is not None
    plain(sg.input("x", ("N", 3)))
    assert {p.name for p in plain.parameters()} == {n for n, _ in plain.named_parameters()}
    assert "(layers.0): Linear(in_features=3" in repr(plain)
    assert [n for n, _ in plain.named_children()] == [
        "layers.0", "layers.1", "pair.0", "heads.a", "heads.1.0", "heads.1.1.0",
    ]  # fmt: skip


def test_training_has_the_bits_of_registered_layers() -> None:
    plain, registered = models()
    for model in (plain, registered):
        sg.random.seed(0)
        model.fit(XS, YS, loss="cross_entropy", optimizer="sgd", progress=False, seed=0, epochs=2)
    found, expected = plain.state_dict(), registered.state_dict()
    first = Plain().state_dict()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert name not in first or (value != first[name]).any()
    np.testing.assert_array_equal(plain.predict(XS), registered.predict(XS))


def test_modes_and_freezing_reach_them() -> None:
    plain, _ = models()
    plain.eval()
    assert all(m.training is False for m in plain.modules()) and not plain.heads[1][0].training
    plain.train()
    assert plain.heads[1][1][0].training is True
    plain.requires_grad_(False)
    assert not any(p.requires_grad for p in (plain.layers[0].weight, plain.scales[0]))
    plain.layers[0].requires_grad_(True)
    before = plain.state_dict()
    optimizer = sg.optim.SGD(plain.parameters(), lr=0.1)
    plain.fit(XS, YS, loss="cross_entropy", optimizer=optimizer, progress=False, seed=0)
    moved = {n for n, v in plain.state_dict().items() if (v != before[n]).any()}
    assert {n for n in moved if "running" not in n and "num_" not in n} == {
        "layers.0.weight", "layers.0.bias",
    }  # fmt: skip


def test_copies_pickles_and_conversion() -> None:
    plain, _ = models()
    for made in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert made.layers[0].weight is not plain.layers[0].weight
        assert made.state_dict().keys() == plain.state_dict().keys()
        np.testing.assert_array_equal(made.predict(XS), plain.predict(XS))
    model = nn.Module()
    model.both = Pair(nn.Linear(2, 2), [sg.parameter(np.ones(2, "float32"))])
    model.double()
    assert isinstance(model.both, Pair)
    assert {n: str(v.dtype) for n, v in model.state_dict().items()} == {
        "both.1.0": "float64", "both.0.weight": "float64", "both.0.bias": "float64",
    }  # fmt: skip
    nested = nn.Module()
    nested.weights = ((sg.parameter(np.ones(2, "float32")),), 3)
    nested.double()
    assert nested.weights[0][0].dtype == "float64" and nested.weights[1] == 3


def test_lists_of_attributes_and_cycles_add_no_names() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    model.layers = [model.first, model.second]
    model.first.others = [model, model.second]
    model.layers.append(model.layers)  # type: ignore[arg-type]
    assert sorted(n for n, _ in model.named_parameters()) == [
        "first.bias", "first.others.1.weight", "first.weight",
    ]  # fmt: skip
    assert set(model.state_dict()) >= {"first.weight", "first.bias", "second.weight"}
    assert list(model.modules()) == [m for _, m in model.named_modules()]
    assert "..." in repr(model)
    seen: list[nn.Module] = []
    model.apply(seen.append)
    assert seen[-1] is model and set(seen) == {model, model.first, model.second}
    model.double()
    assert {str(p.dtype) for p in model.parameters()} == {"float64"}
    model.layers = nn.ModuleList([nn.Linear(1, 1)])
    del model.layers
    model.layers = [nn.Linear(1, 1)]
    assert "layers.0.weight" in model.state_dict()
    del model.layers
    assert "layers.0.weight" not in model.state_dict()


def test_before_init_and_kept_out() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(2, 2)]
            super().__init__()
            object.__setattr__(self, "teacher", [nn.Linear(3, 3)])

    assert set(Early().state_dict()) == {"layers.0.weight", "layers.0.bias"}


def test_what_has_no_names_is_refused() -> None:
    model = nn.Module()
    with pytest.raises(ArgumentTypeError, match=r"Module\.layers is a set.*nn\.ModuleList"):
        model.layers = {nn.Linear(2, 2)}
    with pytest.raises(ArgumentError, match=r"layers: the key .* or an int, got 'a\.b'"):
        model.layers = {"a.b": nn.Linear(2, 2)}
    with pytest.raises(ArgumentError, match=r"layers\.1 names two entries"):
        model.layers = {1: nn.Linear(2, 2), "1": nn.Linear(2, 2)}
    assert not model.state_dict() and not hasattr(model, "layers")


def test_a_jitted_function_sees_a_layer_that_is_exchanged() -> None:
    model = Plain().eval()
    f = sg.jit(lambda x: model(x))
    first = f(XS)
    model.heads["a"] = nn.Linear(3, 2)
    second = f(XS)
    np.testing.assert_array_equal(second, model.predict(XS))
    assert (first != second).any()


def test_the_dynamic_mode_trains_them() -> None:
    plain, _ = models()
    plain(sg.eager.tensor(XS)).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_long_lists_of_numbers_are_passed_over() -> None:
    model = nn.Module()
    model.vocabulary = {f"word {i}": i for i in range(5000)}
    model.losses = [0.5] * 5000
    model.layers = [nn.Linear(1, 1, bias=False) for _ in range(300)]
    model.mixed = [3, *(nn.Linear(1, 1, bias=False) for _ in range(300))]
    assert len(list(model.parameters())) == 600
    assert [held._is_data(v) for v in (model.vocabulary, model.losses)] == [True, True]
