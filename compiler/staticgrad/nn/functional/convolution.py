"""Convolutions with PyTorch's arguments, over the records of `ops.conv`."""

from __future__ import annotations

from typing import Any

from staticgrad.ir.dim import DimLike, is_index
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, ShapeError
from staticgrad.ops.conv import conv, conv_transpose
from staticgrad.ops.convert import as_tensor
from staticgrad.ops.shape import may_equal, reshape
from staticgrad.ops.tensor import Tensor


def ints(value: Any, count: int, what: str, least: int = 0) -> tuple[int, ...]:
    """An int, or a sequence of `count` ints, as a tuple of `count` ints of at least `least`."""
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(entries) == 1:
        entries = entries * count
    if not all(is_index(e) for e in entries):
        raise ArgumentTypeError(f"{what} must be an int or a tuple of ints, got {value!r}")
    if len(entries) != count:
        raise ShapeError(f"{what} must be one int or {count}, got {value!r}")
    if any(int(e) < least for e in entries):
        raise ArgumentError(f"{what} must be at least {least}, got {value!r}")
    if any(int(e) >= 2**31 for e in entries):
        raise ArgumentError(f"{what} must be less than 2**31, got {value!r}")
    return tuple(int(e) for e in entries)


def _batched(input: Any, dims: int, what: str) -> tuple[Tensor, bool]:
    """The input with a batch dim, and whether it was added."""
    x = as_tensor(input, what)
    if x.ndim == dims + 2:
        return x, False
    if x.ndim == dims + 1:
        return reshape(x, (1, *x.shape)), True
    sizes = "L" if dims == 1 else "H, W"
    raise ShapeError(f"{what}: expected [N, C, {sizes}] or [C, {sizes}], got {x.type}")


def _weight(weight: Any, dims: int, what: str) -> Tensor:
    w = as_tensor(weight, what)
    if w.ndim != dims + 2:
        raise ShapeError(f"{what}: expected a weight of {dims + 2} dims, got {w.type}")
    return w


def _finish(y: Tensor, bias: Any, added: bool, what: str) -> Tensor:
    if bias is not None:
        b = as_tensor(bias, what)
        if b.ndim != 1 or not may_equal(b.shape[0], y.shape[1]):
            raise ShapeError(f"{what}: expected a bias [{y.shape[1]}], got {b.type}")
        y = y + reshape(b, (b.shape[0], *(1,) * (y.ndim - 2)))
    return reshape(y, y.shape[1:]) if added else y


def _padding(
    padding: Any, kernel: tuple[DimLike, ...], stride: tuple[int, ...], dilation: tuple[int, ...],
    what: str,
) -> tuple[tuple[int, int], ...]:  # fmt: skip
    """PyTorch's `padding` (an int, ints, "valid" or "same") as pairs (before, after)."""
    if not isinstance(padding, str):
        return tuple((p, p) for p in ints(padding, len(stride), f"{what}: padding"))
    if padding == "valid":
        return ((0, 0),) * len(stride)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ArgumentError(f'{what}: padding="same" needs a stride of 1, got {stride}')
        total = [d * (int(k) - 1) for k, d in zip(kernel, dilation)]
        return tuple((t // 2, t - t // 2) for t in total)
    raise ArgumentError(f'{what}: padding must be ints, "same" or "valid", got {padding!r}')


def _conv(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int,
    dims: int,
) -> Tensor:  # fmt: skip
    what = f"conv{dims}d"
    x, added = _batched(input, dims, what)
    w = _weight(weight, dims, what)
    strides = ints(stride, dims, f"{what}: stride", 1)
    dilations = ints(dilation, dims, f"{what}: dilation", 1)
    pairs = _padding(padding, w.shape[2:], strides, dilations, what)
    y = conv(x, w, stride=strides, padding=pairs, dilation=dilations, groups=groups)
    return _finish(y, bias, added, what)


def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution in one dimension. input: [N, C, L] or [C, L], weight: [O, C/groups, K],
    bias: [O]; the result is [N, O, (L + 2*padding - dilation*(K - 1) - 1)//stride + 1].

    `padding` is an int, or "valid" (none), or "same" (the result has L, for a stride of 1).
    """
    return _conv(input, weight, bias, stride, padding, dilation, groups, 1)


def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution in two dimensions. input: [N, C, H, W] or [C, H, W], weight:
    [O, C/groups, KH, KW], bias: [O]; the result is [N, O, OH, OW] with
    OH = (H + 2*padding - dilation*(KH - 1) - 1)//stride + 1, and OW likewise.

    Arguments are an int or one for each dimension; `padding` also "valid" or "same".
    """
    return _conv(input, weight, bias, stride, padding, dilation, groups, 2)


def _trailing(padding: int, extra: int, stride: int, dilation: int, what: str) -> tuple[int, int]:
    """(the padding after, zeros to append) of one dim that is to have `extra` more elements.

    A convolution of the result must give the input's size back. That holds for extra < stride. More
    uncovers what padding cut off, and beyond that there are zeros.
    """
    if not 0 <= extra < max(stride, dilation):
        raise ArgumentError(
            f"{what}: output_padding must be at least 0 and smaller than the stride or the "
            f"dilation, got {extra} with stride {stride}, dilation {dilation}"
        )
    if extra < stride:
        return padding, 0
    return max(padding - extra, 0), max(extra - padding, 0)


def _conv_transpose(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
    groups: int, dilation: Any, dims: int,
) -> Tensor:  # fmt: skip
    what = f"conv_transpose{dims}d"
    x, added = _batched(input, dims, what)
    w = _weight(weight, dims, what)
    strides = ints(stride, dims, f"{what}: stride", 1)
    dilations = ints(dilation, dims, f"{what}: dilation", 1)
    before = ints(padding, dims, f"{what}: padding")
    extras = ints(output_padding, dims, f"{what}: output_padding")
    pairs, spatial, zeros = [], [], []
    for size, k, s, p, d, extra in zip(
        x.shape[2:], w.shape[2:], strides, before, dilations, extras
    ):
        after, appended = _trailing(p, extra, s, d, what)
        whole = (size - 1) * s + d * (k - 1) + 1
        result = whole - p - after + (extra if extra < s else 0)
        if isinstance(result, int) and result < 1:
            raise ShapeError(f"{what}: the result of {x.type} with {w.type} would be empty")
        pairs.append((p, after))
        spatial.append(result)
        zeros.append(appended)
    y = conv_transpose(
        x, w, stride=strides, padding=tuple(pairs), dilation=dilations, groups=groups,
        spatial=tuple(spatial),
    )  # fmt: skip
    if any(zeros):
        from staticgrad.ops.slicing import pad

        y = pad(y, ((0, 0), (0, 0), *((0, z) for z in zeros)))
    return _finish(y, bias, added, what)


def conv_transpose1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """The transposed convolution: the gradient of `conv1d` by its input.

    input: [N, C, L] or [C, L], weight: [C, O/groups, K]; the result is [N, O, (L - 1)*stride
    - 2*padding + dilation*(K - 1) + output_padding + 1].
    """
    return _conv_transpose(
        input, weight, bias, stride, padding, output_padding, groups, dilation, 1
    )


def conv_transpose2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """The transposed convolution: the gradient of `conv2d` by its input.

    input: [N, C, H, W] or [C, H, W], weight: [C, O/groups, KH, KW]; the result is [N, O, OH, OW]
    with OH = (H - 1)*stride - 2*padding + dilation*(KH - 1) + output_padding + 1.
    """
    return _conv_transpose(
        input, weight, bias, stride, padding, output_padding, groups, dilation, 2
    )


__all__ = ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]
