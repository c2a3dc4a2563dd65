"""`dir` of the public modules, which is what completion offers: public names, and all of them."""

from __future__ import annotations

from types import ModuleType

import pytest
import staticgrad as sg

MODULES = (
    sg, sg.nn, sg.nn.functional, sg.nn.init, sg.nn.utils, sg.optim, sg.optim.lr_scheduler, sg.data,
    sg.random, sg.debug, sg.tree,
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_dir_shows_public_names_alone(module: ModuleType) -> None:
    shown = {n for n in dir(module) if not n.startswith("__")}
    assert shown == set(module.__all__) | ({"eager"} if module is sg else set())
    assert all(hasattr(module, n) for n in dir(module))
    assert not shown & {"annotations", "np", "Any", "sys", "publish", "api", "ir", "module"}


def test_the_dynamic_mode_shows_its_own_and_those_of_sg() -> None:
    shown = {n for n in dir(sg.eager) if not n.startswith("__")}
    assert set(sg.eager.__all__) | {"exp", "float32"} <= shown
    assert shown - set(sg.eager.__all__) <= set(dir(sg))


def test_what_is_hidden_is_there_for_who_names_it() -> None:
    import staticgrad.nn.module
    import staticgrad.optim.optimizer

    assert staticgrad.nn.module.Module is sg.nn.Module
    assert staticgrad.optim.optimizer.Optimizer is sg.optim.Optimizer
    assert not hasattr(sg, "annotations")
