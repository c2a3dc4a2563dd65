"""Softmax, log-softmax and log-sum-exp: shifted by the maximum, so that no exp overflows."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.ir.dtype import float32
from staticgrad.ir.errors import DTypeError

from .convert import as_tensor, astype, constant_array
from .lowering import Expand
from .reduction import drop_axes, infer_floating, normalize_axes, restore_axes
from .registry import Attrs, Op, Sample, Tolerance, Types, apply, register
from .samples import random_array
from .tensor import Tensor, method

_SOURCE = (
    "Goodfellow, Bengio, Courville: Deep Learning, 4.1; accuracy: Blanchard, Higham, Higham 2021, "
    "Accurately computing the log-sum-exp and softmax functions"
)


def _infer_same(types: Types, attrs: Attrs) -> Types:
    if not types[0].dtype.is_float:
        raise DTypeError(f"expected a floating dtype, got {types[0]}; convert with .astype first")
    return types


def _is_empty(x: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether the axes are known to hold no element, so that there is no maximum to shift by."""
    sizes = [x.shape[a] for a in axes]
    return any(isinstance(n, int) and n == 0 for n in sizes)


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    result: Tensor = apply("sum", x, axes=axes, keepdims=True)
    return result


def _shifted(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x - apply("max", x, axes=axes, keepdims=True)


def _build_softmax(operands: tuple[Any, ...], attrs: Attrs) -> Tensor:
    (x,), axes = operands, attrs["axes"]
    if _is_empty(x, axes):
        return x
    e = apply("exp", _shifted(x, axes))
    # One reciprocal a row: a division for each element took a third of the time (4096 x 1024).
    return e * apply("reciprocal", _sum(e, axes))


def _build_log_softmax(operands: tuple[Any, ...], attrs: Attrs) -> Tensor:
    (x,), axes = operands, attrs["axes"]
    if _is_empty(x, axes):
        return x
    d = _shifted(x, axes)
    return d - apply("log", _sum(apply("exp", d), axes))


def _without_minus_infinity(x: Tensor) -> Tensor:
    """`x` with 0 for -inf: what may be subtracted from -inf and leaves it -inf."""
    low = constant_array(np.asarray(-np.inf, x.dtype.numpy))
    zero = constant_array(np.zeros((), x.dtype.numpy))
    result: Tensor = apply("where", apply("equal", x, low), zero, x)
    return result


def _build_logsumexp(operands: tuple[Any, ...], attrs: Attrs) -> Tensor:
    (x,), axes = operands, attrs["axes"]
    if _is_empty(x, axes):
        return apply("log", apply("sum", x, axes=axes, keepdims=attrs["keepdims"]))
    # An infinite maximum is not subtracted: inf - inf would be NaN where the sum is inf or 0.
    m = apply("max", x, axes=axes, keepdims=True)
    m = apply("where", apply("isinf", m), constant_array(np.zeros((), m.dtype.numpy)), m)
    return drop_axes(apply("log", _sum(apply("exp", x - m), axes)) + m, attrs)


def _vjp_softmax(c: Any, ct: Tensor) -> tuple[Tensor]:
    y = c.results[0]
    return (y * (ct - _sum(ct * y, c.attrs["axes"])),)


def _vjp_log_softmax(c: Any, ct: Tensor) -> tuple[Tensor]:
    return (ct - apply("exp", c.results[0]) * _sum(ct, c.attrs["axes"]),)


def _vjp_logsumexp(c: Any, ct: Tensor) -> tuple[Tensor]:
    # Where all elements are -inf the result is too; each of them then weighs nothing.
    y = _without_minus_infinity(restore_axes(c.results[0], c))
    return (restore_axes(ct, c) * apply("exp", c.operands[0] - y),)


def _jvp_softmax(c: Any, tangents: Any) -> Tensor:
    (t,), y = tangents, c.results[0]
    return y * (t - _sum(y * t, c.attrs["axes"]))


def _jvp_log_softmax(c: Any, tangents: Any) -> Tensor:
    (t,) = tangents
    return t - _sum(apply("exp", c.results[0]) * t, c.attrs["axes"])


def _jvp_logsumexp(c: Any, tangents: Any) -> Tensor:
    (t,) = tangents
    y = _without_minus_infinity(restore_axes(c.results[0], c))
    return apply("sum", t * apply("exp", c.operands[0] - y), **c.attrs)


def _batch(c: Any) -> Tensor:
    """The same over the axes behind the batch's."""
    attrs = {**c.attrs, "axes": tuple(a + 1 for a in c.attrs["axes"])}
    result: Tensor = apply(c.node.op, *c.operands, **attrs)
    return result


def _reference_logsumexp(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    wide = x.astype(np.float64)
    m = np.max(wide, axis=axes, keepdims=True, initial=-np.inf)
    m = np.where(np.isinf(m), 0.0, m)
    total = np.log(np.sum(np.exp(wide - m), axis=axes, keepdims=True)) + m
    return np.asarray(total if keepdims else np.squeeze(total, axes), dtype=x.dtype)


def _reference_log_softmax(x: Any, axes: tuple[int, ...]) -> Any:
    wide = x.astype(np.float64)
    d = wide - np.max(wide, axis=axes, keepdims=True, initial=-np.inf)
    return np.asarray(d - np.log(np.sum(np.exp(d), axis=axes, keepdims=True)), dtype=x.dtype)


def _reference_softmax(x: Any, axes: tuple[int, ...]) -> Any:
    wide = x.astype(np.float64)
    e = np.exp(wide - np.max(wide, axis=axes, keepdims=True, initial=-np.inf))
    return np.asarray(e / np.sum(e, axis=axes, keepdims=True), dtype=x.dtype)


_SPECIAL = np.array([[0.0, -np.inf, 1], [1000, 999, -1000], [np.nan, 0, 1], [-5, -5, -5]])
_LOST = np.array([[-np.inf, -np.inf], [np.inf, 1]])


def _samples(keepdims: bool) -> list[Sample]:
    def attrs(*axes: int) -> list[dict[str, Any]]:
        if not keepdims:
            return [{"axes": axes}]
        return [{"axes": axes, "keepdims": k} for k in (False, True)]

    found = []
    for shape, axes in (
        ((7,), (0,)), ((5, 33), (1,)), ((5, 33), (0,)), ((2, 3, 19), (0, 2)), ((2, 3, 19), (1,)),
        ((3, 300), (1,)), ((1,), (0,)), ((), ()), ((0, 3), (1,)), ((3, 0), (1,)),
    ):  # fmt: skip
        x = random_array(shape, "float64", 1)
        found += [Sample((x,), a, differentiable=x.size > 0) for a in attrs(*axes)]
    for dtype in ("float32", "float64"):
        for x in (random_array((5, 33), dtype, 2) * 8, _SPECIAL.astype(dtype), _LOST.astype(dtype)):
            smooth = bool(np.isfinite(x).all())
            found += [Sample((x,), a, differentiable=smooth) for a in attrs(1)]
    return found


def _record(
    name: str, summary: str, reference: Any, vjp: Any, jvp: Any, build: Any, infer: Any,
    keepdims: bool,
) -> None:  # fmt: skip
    register(
        Op(
            name=name,
            summary=summary,
            infer=infer,
            reference=reference,
            vjp=vjp,
            jvp=jvp,
            batch=_batch,
            lower=Expand(build),
            samples=lambda: _samples(keepdims),
            source=_SOURCE,
            # x - max rounds relative to |x|, and exp turns that into a relative error of its size:
            # 40 in the samples.
            tolerance=Tolerance(2e-5, 2e-13 * 40),
        )
    )


_record(
    "softmax",
    "exp(x) / sum(exp(x)) over axes, shifted by the maximum",
    _reference_softmax,
    _vjp_softmax,
    _jvp_softmax,
    _build_softmax,
    _infer_same,
    False,
)
_record(
    "log_softmax",
    "x - log(sum(exp(x))) over axes, shifted by the maximum",
    _reference_log_softmax,
    _vjp_log_softmax,
    _jvp_log_softmax,
    _build_log_softmax,
    _infer_same,
    False,
)
_record(
    "logsumexp",
    "log(sum(exp(x))) over axes, shifted by the maximum; of nothing -inf",
    _reference_logsumexp,
    _vjp_logsumexp,
    _jvp_logsumexp,
    _build_logsumexp,
    infer_floating,
    True,
)


def _floating(x: Any, what: str) -> Tensor:
    x = as_tensor(x, what)
    return x if x.dtype.is_float else astype(x, float32)


@method("softmax")
def softmax(x: Any, /, axis: Any = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` over `axis` (an int, a tuple, or None for all axes).

    x: [.., C, ..] -> the same shape, each line along `axis` summing to 1. Shifted by the maximum,
    so nothing overflows; -inf gives 0, a line of nothing but -inf NaN, as in PyTorch and JAX.
    Integers are converted to float32.
    """
    x = _floating(x, "softmax")
    return apply("softmax", x, axes=normalize_axes(axis, x.ndim, "softmax"))


@method("log_softmax")
def log_softmax(x: Any, /, axis: Any = -1) -> Tensor:
    """`log(softmax(x))` over `axis` (an int, a tuple, or None for all axes), without its loss of
    digits: `x - max - log(sum(exp(x - max)))`.

    x: [.., C, ..] -> the same shape. Integers are converted to float32.
    """
    x = _floating(x, "log_softmax")
    return apply("log_softmax", x, axes=normalize_axes(axis, x.ndim, "log_softmax"))


@method("logsumexp")
def logsumexp(x: Any, /, axis: Any = None, *, keepdims: bool = False) -> Tensor:
    """`log(sum(exp(x)))` over `axis` (an int, a tuple, or None for all axes), without overflow.

    x: [..]; the reduced dims vanish, or stay as 1 with `keepdims`. Of nothing, and of nothing but
    -inf: -inf. Integers are converted to float32. The gradient is softmax(x).
    """
    x = _floating(x, "logsumexp")
    return apply(
        "logsumexp", x, axes=normalize_axes(axis, x.ndim, "logsumexp"), keepdims=bool(keepdims)
    )


__all__ = ["log_softmax", "logsumexp", "softmax"]
