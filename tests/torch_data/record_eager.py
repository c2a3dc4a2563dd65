"""Writes `eager.json` with PyTorch's answers to `eager_cases`. Needs PyTorch; the tests don't."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from eager_cases import OPTIMIZERS, optimise, printed


def tensor(data: object, requires_grad: bool = True) -> torch.Tensor:
    return torch.tensor(data, dtype=torch.float64, requires_grad=requires_grad)


def main() -> None:
    found = {
        "version": torch.__version__,
        "printed": [repr(torch.tensor(a)) for a in printed()],
        "leaves": [
            repr(torch.tensor(a, requires_grad=True)) for a in printed() if a.dtype.kind == "f"
        ],
        "results": [
            repr(torch.tensor(a, requires_grad=True) * 2.0)
            for a in printed()
            if a.dtype.kind == "f"
        ],
        "optimizers": {
            label: optimise(torch.optim, tensor, name, options)
            for label, name, options in OPTIMIZERS
        },
    }
    path = Path(__file__).with_name("eager.json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
