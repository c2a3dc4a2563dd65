"""What eager tensors have beside operations: gradients, values, memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from staticgrad.ir.errors import (
    ArgumentTypeError,
    DifferentiationError,
    DTypeError,
    ShapeError,
)
from staticgrad.ops import arithmetic, comparison, logical
from staticgrad.ops.joining import unstack
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.linalg import matmul
from staticgrad.ops.public import locate, public

from .backward import run_backward
from .dispatch import call
from .display import tensor_text
from .program import Program
from .tape import Handle, Leaf, Node, apply
from .tensor import Array, Tensor, wrapped

# --- gradients ------------------------------------------------------------------------------------


def _requires_grad(self: Tensor) -> bool:
    """Whether operations on this tensor are recorded."""
    return self._node is not None


def _set_requires_grad(self: Tensor, value: bool) -> None:
    set_requires_grad(self, value)


@public
def set_requires_grad(self: Tensor, requires_grad: bool = True) -> Tensor:
    """Sets whether a gradient is wanted for this leaf; returns the tensor."""
    if requires_grad:
        if not self._sig.is_float:
            raise DTypeError(
                f"only floating tensors can require a gradient, this one is {self.type}; convert "
                "it with .astype(sg.float32)"
            )
        if self._node is None:
            if self._leaf is None:
                self._leaf = Leaf(self._sig)
            self._node = self._leaf
    elif self._node is not None:
        if self._node.__class__ is not Leaf:
            raise DifferentiationError(
                "requires_grad can be changed for leaves only, this tensor is the result of an "
                "operation; use detach() for one that requires no gradient"
            )
        self._node = None
    return self


def _is_leaf(self: Tensor) -> bool:
    """Whether the tape ends here: the user made the tensor, or nothing about it is recorded."""
    return self._node is None or self._node.__class__ is Leaf


def _grad(self: Tensor) -> Tensor | None:
    """The gradient that backward passes have added up, None before the first."""
    leaf = self._leaf
    return None if leaf is None else leaf.grad


def _set_grad(self: Tensor, value: Any) -> None:
    if value is not None and (not isinstance(value, Tensor) or value._sig is not self._sig):
        came = value.type if isinstance(value, Tensor) else type(value).__name__
        raise DifferentiationError(f"grad must be a tensor of type {self.type} or None, got {came}")
    if self._leaf is None:
        if value is None:
            return
        self._leaf = Leaf(self._sig)
    self._leaf.grad = value


def _grad_fn(self: Tensor) -> Any:
    """The node of the tape that made this tensor; None for a leaf."""
    node = self._node
    return None if node is None or node.__class__ is Leaf else node


@public
def backward(
    self: Tensor, gradient: Any = None, retain_graph: bool | None = None,
    create_graph: bool = False, inputs: Any = None,
) -> None:  # fmt: skip
    """Adds the gradients of this tensor to the `.grad` of the leaves that it depends on.

    `gradient`, of this tensor's type, is the gradient of some scalar by this tensor; a scalar needs
    none. What the tape has saved is freed unless `retain_graph`. With `create_graph` the pass is
    recorded itself, so that the gradients can be differentiated. `inputs`: only to these leaves.
    """
    run_backward([self], None if gradient is None else [gradient], retain_graph, create_graph,
                 inputs)  # fmt: skip


@public
def register_hook(self: Tensor, hook: Any) -> Handle:
    """Calls `hook(grad)` when this tensor's gradient is computed; what it returns, unless None, is
    taken instead. `remove()` of the handle takes the hook off."""
    node = self._node
    if node is None:
        raise DifferentiationError("register_hook: this tensor does not require a gradient")
    if not callable(hook):
        raise ArgumentTypeError(f"register_hook: expected a function, got {hook!r}")
    if isinstance(node, Node):
        if node.hooks is None:
            node.hooks = {}
        hooks = node.hooks.setdefault(0, [])
    else:
        if node.hooks is None:
            node.hooks = []
        hooks = node.hooks
    hooks.append(hook)
    return Handle(hooks, hook)


@public
def retain_grad(self: Tensor) -> None:
    """Keeps the gradient of this result in its `.grad`, as a leaf's is."""
    node = self._node
    if node is None:
        raise DifferentiationError("retain_grad: this tensor does not require a gradient")
    if node.__class__ is Leaf or (self._leaf is not None and _retains(self)):
        return
    self._leaf = leaf = Leaf(self._sig)
    if isinstance(node, Node):
        node.retained = {**(node.retained or {}), 0: leaf}
    else:
        register_hook(self, lambda g: leaf.accumulate(g._array, False, False))


def _retains(self: Tensor) -> bool:
    node = self._node
    return isinstance(node, Node) and self._leaf in (node.retained or {}).values()


def _retains_grad(self: Tensor) -> bool:
    """Whether `retain_grad` was called for this result."""
    return self._leaf is not None and _retains(self)


# --- memory and values ----------------------------------------------------------------------------


def detach(self: Tensor) -> Tensor:
    """The same values in the same memory, cut off the tape. Changes made in place are counted, so
    that a gradient which needs the old values says so."""
    found = wrapped(self._array, self._sig)
    found._store = self._store or self.shared()
    return found


def _data(self: Tensor) -> Tensor:
    """The same memory as a tensor whose changes the tape does not see: gradients of earlier results
    are computed with the values that are there then."""
    return Tensor(self._array, None if self._store is None else self._store.unseen())


@public
def _set_data(self: Tensor, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"data must be set to an eager tensor, got {value!r}")
    if value._sig is not self._sig and (self._leaf is not None or self._node is not None):
        raise ShapeError(
            f"data: this tensor is {self.type} and takes part in gradients, so it can't become "
            f"{value.type}"
        )
    if self._store is not None and self._store.owned:
        self.data.overwrite(value._array)  # a parameter keeps its memory
        return
    self._array = value._array
    self._sig = value._sig


@public
def numpy(self: Tensor, *, force: bool = False) -> Array:
    """The values as a NumPy array that shares the memory; of a parameter, a copy.

    A tensor that requires a gradient is refused: say `detach()` first, or `force=True`.
    """
    if self._node is not None and not force:
        raise DifferentiationError(
            "numpy() of a tensor that requires a gradient: what NumPy computes is not recorded. "
            "Use x.detach().numpy()"
        )
    if self._store is not None and self._store.owned:
        return self._array.copy()
    return self._array


@public
def item(self: Tensor) -> Any:
    """The value of a tensor of one element, as a Python number."""
    if self._array.size != 1:
        raise ShapeError(
            f"a tensor of {self._array.size} elements ({self.type}) is no Python number; use "
            "tolist() or numpy()"
        )
    return self._array.item()


def tolist(self: Tensor) -> Any:
    """The values as nested lists of Python numbers; a number for a 0-d tensor."""
    return self._array.tolist()


def _bool(self: Tensor) -> bool:
    if self._array.size != 1:
        error = ShapeError(
            f"the truth of a tensor of {self._array.size} elements ({self.type}) is ambiguous; use "
            ".any() or .all()"
        )
        locate(error)
        raise error
    return bool(self._array.item())


def _float(self: Tensor) -> float:
    return float(item(self))


def _int(self: Tensor) -> int:
    return int(item(self))


def _index(self: Tensor) -> int:
    if self._sig.dtype.kind == "f" or self._array.size != 1:
        error = ArgumentTypeError(f"only a tensor of one integer can be an index, got {self.type}")
        locate(error)
        raise error
    return int(self._array.item())


@public
def _len(self: Tensor) -> int:
    if not self._sig.shape:
        raise ShapeError("a 0-d tensor has no len()")
    return self._sig.shape[0]


@public
def _iter(self: Tensor) -> Iterator[Tensor]:
    if not self._sig.shape:
        raise ShapeError("a 0-d tensor can't be iterated over or unpacked")
    return (self[i] for i in range(self._sig.shape[0]))


def _contains(self: Tensor, value: Any) -> bool:
    array = value._array if isinstance(value, Tensor) else np.asarray(value)
    return bool((self._array == array).any())


@public
def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> Array:
    if self._node is not None:
        raise DifferentiationError(
            "a tensor that requires a gradient can't become a NumPy array: what NumPy computes is "
            "not recorded. Use x.detach().numpy()"
        )
    array = self._array
    if self._store is not None and self._store.owned:
        array = array.copy()
    return np.array(array, dtype=dtype, copy=copy)


# What `array + tensor` comes as.
_UFUNCS = {
    np.add: arithmetic.add, np.subtract: arithmetic.subtract, np.multiply: arithmetic.multiply,
    np.true_divide: arithmetic.divide, np.floor_divide: arithmetic.floor_divide,
    np.remainder: arithmetic.remainder, np.power: arithmetic.pow, np.matmul: matmul,
    np.equal: comparison.equal, np.not_equal: comparison.not_equal, np.less: comparison.less,
    np.less_equal: comparison.less_equal, np.greater: comparison.greater,
    np.greater_equal: comparison.greater_equal, np.bitwise_and: logical.bitwise_and,
    np.bitwise_or: logical.bitwise_or, np.bitwise_xor: logical.bitwise_xor,
    np.left_shift: logical.bitwise_left_shift, np.right_shift: logical.bitwise_right_shift,
}  # fmt: skip


@public
def _array_ufunc(self: Tensor, ufunc: Any, method: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Operators between arrays and tensors give tensors; NumPy's other functions compute with the
    values and give arrays, as `array += tensor` does."""
    function = _UFUNCS.get(ufunc)
    if function is not None and method == "__call__" and not kwargs:
        given = tuple(np.asarray(x) if isinstance(x, np.generic) else x for x in inputs)
        return call(function, given, {})
    plain = [_array(x) if isinstance(x, Tensor) else x for x in inputs]
    return getattr(ufunc, method)(*plain, **kwargs)


@functools.lru_cache(maxsize=256)
def _copy(dtype: Any, ndim: int) -> Program:
    x = declare("x", tuple(f"N{i}" for i in range(ndim)), dtype)
    return Program("clone", [x], [x])


@public
def clone(self: Tensor) -> Tensor:
    """A copy in memory of its own, through which gradients flow."""
    return apply(_copy(self._sig.dtype, len(self._sig.shape)), (self,))[0]


def nonzero(self: Tensor) -> Tensor:
    """The places of elements that are not 0, one a row: integers [count, ndim]."""
    return Tensor(np.argwhere(self._array))


def unbind(self: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along a dim."""
    return tuple(call(unstack, (self,), {"axis": dim}))


def _format(self: Tensor, spec: str) -> str:
    if self._array.ndim == 0:
        return format(self._array.item(), spec)
    return format(tensor_text(self), spec)


def _reduce(self: Tensor, protocol: Any) -> Any:
    return _from_array, (self._array.copy(), self._node is not None)


def _from_array(array: Array, requires_grad: bool) -> Tensor:
    return set_requires_grad(Tensor(array), requires_grad)


def attach() -> None:
    """Gives the class its members; they stand apart so that each file has one subject."""
    for name, member in {
        "__array__": _array, "__array_ufunc__": _array_ufunc, "__bool__": _bool,
        "__contains__": _contains, "__float__": _float,
        "__format__": _format, "__index__": _index, "__int__": _int, "__iter__": _iter,
        "__len__": _len, "__reduce_ex__": _reduce, "__repr__": tensor_text, "__str__": tensor_text,
        "backward": backward, "clone": clone, "cpu": lambda self: self, "detach": detach,
        "contiguous": lambda self: self, "item": item, "nonzero": nonzero,
        "unbind": unbind, "numpy": numpy, "register_hook": register_hook,
        "requires_grad_": set_requires_grad, "retain_grad": retain_grad,
        "tolist": tolist, "data": property(_data, _set_data, doc=_data.__doc__),
        "grad": property(_grad, _set_grad, doc=_grad.__doc__),
        "grad_fn": property(_grad_fn, doc=_grad_fn.__doc__),
        "is_leaf": property(_is_leaf, doc=_is_leaf.__doc__),
        "requires_grad": property(
            _requires_grad, _set_requires_grad, doc=_requires_grad.__doc__
        ),
        "retains_grad": property(_retains_grad, doc=_retains_grad.__doc__),
    }.items():  # fmt: skip
        setattr(Tensor, name, member)


attach()
