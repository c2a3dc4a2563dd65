"""Layers with a weight matrix or table: Linear, Bilinear, Embedding; and Identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.ir.dim import is_index
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError
from staticgrad.ops.leaves import Parameter as StateParameter
from staticgrad.ops.leaves import parameter
from staticgrad.ops.tensor import Tensor

from . import functional as F
from . import init
from .functional.linear import padding_row
from .mode import check_device
from .module import Module


def size(value: Any, what: str, least: int = 0) -> int:
    """A size argument of a layer."""
    if not is_index(value):
        raise ArgumentTypeError(f"{what} must be an int, got {value!r}")
    if int(value) < least:
        raise ArgumentError(f"{what} must be at least {least}, got {value}")
    return int(value)


def empty(shape: tuple[int, ...], device: Any, dtype: Any) -> StateParameter:
    """A floating parameter of zeros, to be initialised."""
    check_device(device)
    wanted = as_dtype("float32" if dtype is None else dtype)
    if not wanted.is_float:
        raise DTypeError(f"a layer's dtype must be floating, got {wanted}")
    if math.prod(shape) >= 2**40:
        raise ShapeError(f"a parameter of shape {shape} has {math.prod(shape)} elements")
    return parameter(np.zeros(shape, wanted.numpy))


class Identity(Module):
    """The input itself; arguments are accepted and not used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class Linear(Module):
    """`x @ weight.T + bias`. weight: [out_features, in_features]; x: [.., in_features].

    First values are uniform in +-1/sqrt(in_features), as in PyTorch.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features = size(in_features, "in_features")
        self.out_features = size(out_features, "out_features")
        self.weight = empty((self.out_features, self.in_features), device, dtype)
        self.register_parameter(
            "bias", empty((self.out_features,), device, dtype) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.linear_defaults(self.weight, self.bias)

    def forward(self, input: Any) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Bilinear(Module):
    """`y[.., o] = x1 weight[o] x2 + bias[o]`; weight: [out, in1, in2] features."""

    def __init__(
        self, in1_features: int, in2_features: int, out_features: int, bias: bool = True,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in1_features = size(in1_features, "in1_features", 1)
        self.in2_features = size(in2_features, "in2_features")
        self.out_features = size(out_features, "out_features")
        shape = (self.out_features, self.in1_features, self.in2_features)
        self.weight = empty(shape, device, dtype)
        self.register_parameter(
            "bias", empty((self.out_features,), device, dtype) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Any, input2: Any) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )


class Embedding(Module):
    """A table of vectors: integers [..] -> [.., embedding_dim]. weight: [num_embeddings,
    embedding_dim], first values normal(0, 1).

    The row `padding_idx` starts at 0 and gets no gradient. An index out of range fails the run.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_embeddings = size(num_embeddings, "num_embeddings")
        self.embedding_dim = size(embedding_dim, "embedding_dim")
        self.padding_idx = None if padding_idx is None else padding_row(padding_idx, num_embeddings)
        self.weight = empty((self.num_embeddings, self.embedding_dim), device, dtype)
        self.reset_parameters()

    @classmethod
    def from_pretrained(cls, embeddings: Any, padding_idx: int | None = None) -> Embedding:
        """A table with given values, [V, D]; unlike PyTorch's it is trained unless its parameters
        are left out of the optimiser."""
        table = np.asarray(embeddings)
        if table.ndim != 2:
            raise ArgumentError(f"from_pretrained: expected a table [V, D], got {table.shape}")
        found = cls(table.shape[0], table.shape[1], padding_idx, dtype=table.dtype)
        found.weight.assign(table)
        return found

    def reset_parameters(self) -> None:
        init.normal_(self.weight)
        if self.padding_idx is not None:
            table = self.weight.numpy()
            table[self.padding_idx] = 0
            self.weight.assign(table)

    def forward(self, input: Any) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"


__all__ = ["Bilinear", "Embedding", "Identity", "Linear"]
