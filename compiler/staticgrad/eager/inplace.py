"""Changes in place: `add_`, `x += y`, `zero_`, `x[i] = v`. Each counts as a new version of the
memory, so that a gradient that needs the old values can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from staticgrad.ir.errors import DifferentiationError, DTypeError, ShapeError
from staticgrad.ops import arithmetic, exponential, rounding, selection, trigonometric
from staticgrad.ops.activation import relu, sigmoid
from staticgrad.ops.convert import to_array
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.tensor import Tensor as GraphTensor

from . import operators  # noqa: F401  # attaches what is used below
from .dispatch import call
from .mode import no_grad, recording
from .parameters import eager_of
from .tape import Leaf, Node
from .tensor import Tensor
from .views import leaf_below, written


def check_changeable(t: Tensor) -> None:
    """Refuses a leaf that requires a gradient, where operations are recorded."""
    if recording.get() and (t._node.__class__ is Leaf or leaf_below(t)):
        raise DifferentiationError(
            "a leaf that requires a gradient can't be changed in place where operations are "
            "recorded: its gradient would be that of values which are gone. Do it under "
            "eager.no_grad(), or change .data"
        )


def become(t: Tensor, result: Tensor, what: str) -> Tensor:
    """Writes a result to the memory of `t`, whose history it takes over."""
    if result._sig is not t._sig:
        if result._sig.dtype != t._sig.dtype:
            raise DTypeError(
                f"{what}: the result is {result.type}, which a tensor of {t.dtype!s} can't hold; "
                "write it out of place"
            )
        raise ShapeError(f"{what}: the result is {result.type}, the tensor {t.type}")
    node = result._node
    if isinstance(node, Node) and node.saved and any(item is t for item in node.saved):
        # What the gradient needs of this tensor are its values from before.
        before = Tensor(t._array.copy())
        versions = node.versions or (0,) * len(node.saved)
        node.versions = tuple([0 if i is t else v for i, v in zip(node.saved, versions)])
        node.saved = tuple([before if i is t else i for i in node.saved])
    t.overwrite(result._array)
    if recording.get():
        t._node = node
    written(t)
    return t


def _in_place(name: str, function: Any) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_changeable(self)
        return become(self, call(function, (self, *args), kwargs), name)

    method.__doc__ = f"`{name.rstrip('_')}`, with the result in this tensor's own memory."
    method.__name__ = name
    return public(method)


def _scaled(name: str, plain: str) -> Callable[..., Tensor]:
    operator = vars(Tensor)[plain]

    def method(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
        check_changeable(self)
        return become(self, operator(self, other if alpha == 1 else other * alpha), name)

    method.__doc__ = f"`{name.rstrip('_')}` of `other * alpha`, in this tensor's own memory."
    method.__name__ = name
    return public(method)


def _operator(name: str) -> Callable[[Tensor, Any], Tensor]:
    plain = vars(Tensor)[f"__{name}__"]

    def operator(self: Tensor, other: Any, /) -> Tensor:
        check_changeable(self)
        return become(self, plain(self, other), f"{name} in place")

    operator.__name__ = f"__i{name}__"
    return public(operator)


@public
def addcmul_(self: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """`self += value * tensor1 * tensor2`, in this tensor's own memory."""
    check_changeable(self)
    return become(self, self + tensor1 * tensor2 * value, "addcmul_")


@public
def addcdiv_(self: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """`self += value * tensor1 / tensor2`, in this tensor's own memory."""
    check_changeable(self)
    return become(self, self + tensor1 / tensor2 * value, "addcdiv_")


@public
def fill_(self: Tensor, value: Any) -> Tensor:
    """Sets all elements to one number."""
    check_changeable(self)
    if isinstance(value, Tensor):
        return copy_(self, value)
    array = to_array(value, self._sig.dtype)
    if array.ndim:
        raise ShapeError(f"fill_: expected one number, got shape {array.shape}")
    self.change(lambda: self._array.fill(array))
    if recording.get():
        self._node = None
    written(self)
    return self


@public
def zero_(self: Tensor) -> Tensor:
    """Sets all elements to 0."""
    return fill_(self, 0)


@public
def copy_(self: Tensor, source: Any) -> Tensor:
    """Takes over the values of `source`, broadcast and converted to this tensor's dtype."""
    check_changeable(self)
    if isinstance(source, GraphTensor) or dynamic.is_tensor(source):
        source = eager_of(source, "copy_")
    else:
        source = Tensor(to_array(source, self._sig.dtype))
    if source._sig is not self._sig:
        from staticgrad.ops.convert import astype
        from staticgrad.ops.shape import broadcast_to

        source = broadcast_to(astype(source, self.dtype), self.shape)
    elif source is self:
        return self
    # A result of its own: the source's node belongs to the source.
    return become(self, source.clone() if source._node is not None else source, "copy_")


def random_(draw: Any) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_changeable(self)
        with no_grad():
            return become(self, draw(self, *args, **kwargs), draw.__name__)

    method.__doc__ = draw.__doc__
    method.__name__ = draw.__name__
    return public(method)


def uniform_(x: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fills the tensor with uniform numbers in [a, b)."""
    from staticgrad.ops import random

    return call(random.uniform, (x.shape, a, b), {"dtype": x.dtype})  # type: ignore[no-any-return]


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fills the tensor with normal numbers."""
    from staticgrad.ops import random

    keywords = {"dtype": x.dtype, "mean": mean, "std": std}
    return call(random.normal, (x.shape,), keywords)  # type: ignore[no-any-return]


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_SCALED = {"add_": "__add__", "sub_": "__sub__", "mul_": "__mul__", "div_": "__truediv__"}
_METHODS: dict[str, Any] = {
    "pow_": arithmetic.pow, "neg_": arithmetic.negative, "square_": arithmetic.square,
    "reciprocal_": arithmetic.reciprocal, "exp_": exponential.exp, "log_": exponential.log,
    "sqrt_": exponential.sqrt, "rsqrt_": exponential.rsqrt, "sin_": trigonometric.sin,
    "cos_": trigonometric.cos, "tanh_": trigonometric.tanh, "abs_": rounding.abs,
    "floor_": rounding.floor, "ceil_": rounding.ceil, "round_": rounding.round,
    "clamp_": selection.clamp, "clip_": selection.clip, "relu_": relu, "sigmoid_": sigmoid,
}  # fmt: skip


def attach() -> None:
    """Gives the class its methods that end in `_`, and `+=` and its kin."""
    for name in _OPERATORS:
        setattr(Tensor, f"__i{name}__", _operator(name))
    for name, function in _METHODS.items():
        setattr(Tensor, name, _in_place(name, function))
    for name, plain in _SCALED.items():
        setattr(Tensor, name, _scaled(name, plain))
    others: tuple[Any, ...] = (
        zero_, fill_, copy_, addcmul_, addcdiv_, random_(uniform_), random_(normal_)
    )  # fmt: skip
    for other in others:
        setattr(Tensor, other.__name__, other)


attach()
