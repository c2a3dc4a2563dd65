"""Records what PyTorch computes for `cases.py`: python tests/torch_data/record.py.

Needs PyTorch (recorded with 2.13); the tests need only the files that it writes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.torch_data import cases as c  # noqa: E402

torch.set_default_dtype(torch.float64)


def _call(case: c.Case, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if case.init is None:
        return getattr(torch.nn.functional, case.target)(*args, **kwargs), None
    module = getattr(torch.nn, case.target)(*case.init, **case.options)
    module.train(case.training)
    with torch.no_grad():
        for name, p in (*module.named_parameters(), *module.named_buffers()):
            p.copy_(torch.tensor(c.parameter_value(case, name, tuple(p.shape))))
    return module(*args, **kwargs), module


def record_case(case: c.Case) -> dict[str, Any]:
    wanted: dict[str, torch.Tensor] = {}

    def wrap(name: str, spec: c.T, values: Any) -> Any:
        t = torch.tensor(values)
        if spec.differentiable:
            wanted[name] = t.requires_grad_(True)
        return t

    result, module = _call(case, *c.arguments(case, wrap))
    outputs = c.results(result)
    stored = {f"out{i}": o.detach().numpy() for i, o in enumerate(outputs)}
    loss = sum(
        (o * torch.tensor(c.random_array(f"{case.name}.ct{i}", c.T(tuple(o.shape))))).sum()
        for i, o in enumerate(outputs)
        if o.is_floating_point()
    )
    if module is not None:
        wanted |= dict(module.named_parameters())
        if case.training:
            stored |= {f"new.{n}": b.detach().numpy() for n, b in module.named_buffers()}
    if wanted:
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        stored |= {
            f"grad.{n}": np.zeros(t.shape) if g is None else g.numpy()
            for (n, t), g in zip(wanted.items(), grads)
        }
    return stored


def record_optimizer(name: str, options: dict[str, Any], clips: tuple[Any, Any]) -> list[Any]:
    data = c.optimizer_data()
    w, b = (torch.tensor(data[n], requires_grad=True) for n in ("w", "b"))
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    optimizer = getattr(torch.optim, name)([w, b], **options)
    history = []
    for _ in range(c.OPTIMIZER_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(torch.tanh(x @ w + b), y).backward()
        norm, value = clips
        if norm is not None:
            torch.nn.utils.clip_grad_norm_([w, b], norm)
        if value is not None:
            torch.nn.utils.clip_grad_value_([w, b], value)
        optimizer.step()
        history.append(np.concatenate([w.detach().numpy().ravel(), b.detach().numpy()]))
    return history


def _two_groups() -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in c.SCHEDULER_RATES]
    return torch.optim.SGD(groups)


def record_scheduler(name: str, options: dict[str, Any]) -> list[list[float]]:
    optimizer = _two_groups()
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    rates = [[g["lr"] for g in optimizer.param_groups]]
    for _ in range(c.SCHEDULER_STEPS):
        optimizer.step()
        scheduler.step()
        rates.append([g["lr"] for g in optimizer.param_groups])
    return rates


def record_plateau() -> list[list[float]]:
    optimizer = _two_groups()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **c.PLATEAU)
    rates = []
    for metric in c.PLATEAU_METRICS:
        scheduler.step(metric)
        rates.append([g["lr"] for g in optimizer.param_groups])
    return rates


def main() -> None:
    layers: dict[str, Any] = {}
    for case in c.CASES:
        layers |= {f"{case.name}/{key}": value for key, value in record_case(case).items()}
    # One array of all values and a table of where each one is: 800 entries of a zip are too large.
    values = [np.asarray(v, np.float64).ravel() for v in layers.values()]
    np.savez_compressed(
        HERE / "layers.npz",
        values=np.concatenate(values),
        names=np.array("\n".join(layers)),
        shapes=np.array("\n".join(",".join(map(str, np.shape(v))) for v in layers.values())),
    )
    steps = {str(i): record_optimizer(*o) for i, o in enumerate(c.OPTIMIZERS)}
    rates = {f"lr{i}": record_scheduler(*s) for i, s in enumerate(c.SCHEDULERS)}
    np.savez_compressed(HERE / "optim.npz", plateau=record_plateau(), **steps, **rates)


if __name__ == "__main__":
    main()
