"""The leaves of a graph: inputs and state. (Constants stand in `convert`.)"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
from staticgrad_runtime.state import StateCell

from staticgrad.ir.dim import as_shape
from staticgrad.ir.dtype import dtype as as_dtype
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ir.graph import reachable
from staticgrad.ir.types import TensorType

from .convert import to_array
from .lowering import Leaf
from .public import dynamic, public
from .registry import NotBatchable, NotDifferentiable, Op, apply, register
from .tensor import Tensor
from .values import is_known

_input_ids = itertools.count()

# State that a change of its module's dtype replaced by other state: see `Module.to`.
replaced_cells: weakref.WeakSet[StateCell] = weakref.WeakSet()

# Whether a module is being called; in the dynamic mode `dynamic.inside` is set as well.
in_module: ContextVar[bool] = ContextVar("in_module", default=False)

CHANGES = (
    "State changes when a program runs: name its new value in sg.compile(.., updates=[(state, "
    "new)]), in a layer in nn.functional.training_switch(.., updates=[(state, new)], "
    "training=self.training); or use the dynamic mode"
)


def input(name: str, shape: Any, dtype: Any = "float32") -> Tensor:
    """Declares an input: an array that each call brings.

    `shape` is a tuple of ints and symbolic dims: a str such as "N" accepts any size, 0 and 1
    included, and arithmetic such as "2*N+1" is checked when the program is called. The same name
    stands for the same size everywhere in a graph.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentTypeError(f"input: the name must be a non-empty str, got {name!r}")
    attrs = {
        "name": name,
        "id": next(_input_ids),
        "dtype": as_dtype(dtype),
        "shape": as_shape(shape),
    }
    return apply("input", **attrs)


class Parameter(Tensor):
    """A state value with an owner's handle: a trainable parameter or a buffer."""

    __slots__ = ("_eager",)
    _eager: Any  # the leaf that it is in the dynamic mode, once asked for

    @property
    def cell(self) -> StateCell:
        cell: StateCell = self.node.payload
        return cell

    @property
    def trainable(self) -> bool:
        return bool(self.node.attrs["trainable"])

    def __repr__(self) -> str:
        """The type and the present values, of large ones the edges."""
        label = f"{self.name!r}, " if self.name else ""
        head = f"Parameter({label}{self.type}"
        if not self.trainable:
            head += ", trainable=False"
        return f"{head},\n{dynamic.package().array_text(self.cell.view())})"

    def __format__(self, spec: str) -> str:
        return format(self.numpy()[()], spec) if spec else repr(self)

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy of the current value."""
        return self.cell.numpy()

    def assign(self, value: Any) -> None:
        """Sets the value; shape and dtype must fit. Programs compiled before see it."""
        if isinstance(value, Tensor) and not isinstance(value, Parameter) and not is_known(value):
            raise ArgumentTypeError(f"assign: {value!r} has no value yet. {CHANGES}")
        self.cell.assign(to_array(value, None))

    # --- in the dynamic mode ---

    @property
    def _leaf(self) -> Any:
        """The eager tensor that shares this state's memory."""
        return dynamic.package().leaf_of(self)

    @property
    def grad(self) -> Any:
        """The gradient that `backward` of the dynamic mode has added up here; None before."""
        return self._leaf.grad if dynamic.types else None

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None or dynamic.types:
            self._leaf.grad = value

    @property
    def data(self) -> Any:
        """The values as an eager tensor that shares the memory and is not recorded."""
        return self._leaf.data

    @data.setter
    def data(self, value: Any) -> None:
        self._leaf.data = value

    @property
    def requires_grad(self) -> bool:
        """False where it is frozen: `minimize` and `fit` leave it as it is, and the dynamic mode
        records no operations on it. At first what `trainable` is."""
        return self._leaf.requires_grad if dynamic.types else self.trainable and self.dtype.is_float

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._leaf.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> Parameter:
        """Sets `requires_grad`: False freezes. A program compiled before still trains what it did;
        `sg.gradients(loss, p)` gives the gradient of a frozen one too."""
        self._leaf.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        return True

    def item(self) -> Any:
        """The value of state of one element, as a Python number."""
        return self._leaf.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.numpy().tolist()

    def __setitem__(self, key: Any, value: Any) -> None:
        if dynamic.types and dynamic.package().meant():
            self._leaf[key] = value
        else:
            super().__setitem__(key, value)

    def register_hook(self, hook: Any) -> Any:
        """As an eager tensor's: `hook(grad)` is called when the gradient is computed."""
        return self._leaf.register_hook(hook)


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Parameter, *args: Any, **kwargs: Any) -> Parameter:
        given = reachable(v for v in args if isinstance(v, Tensor))
        if any(n.op == "input" for n in given) or (in_module.get() and not dynamic.inside.get()):
            raise ArgumentTypeError(f"{name} of state, while a graph is declared. {CHANGES}")
        getattr(self._leaf, name)(*args, **kwargs)
        return self

    method.__name__ = name
    method.__doc__ = f"An eager tensor's `{name}`, on this state: programs compiled before see it."
    return method


def _operator(name: str, plain: str) -> Callable[[Any, Any], Any]:
    """`p -= v`: changes the state where the dynamic mode is meant, a tensor of it on the right or
    a block of `no_grad`; else `p = p - v`, which is graph."""

    def operator(self: Parameter, other: Any, /) -> Any:
        if dynamic.is_tensor(other) or (dynamic.types and dynamic.package().meant()):
            getattr(self._leaf, name)(other)
            return self
        return getattr(self, plain)(other)

    operator.__name__ = name
    return operator


for _name in ("add_", "sub_", "mul_", "div_", "zero_", "fill_", "copy_", "clamp_", "normal_",
              "uniform_"):  # fmt: skip
    setattr(Parameter, _name, _in_place(_name))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(Parameter, f"__i{_name}__", _operator(f"__i{_name}__", f"__{_name}__"))


@public
def parameter(value: Any, name: str | None = None, *, trainable: bool = True) -> Parameter:
    """State with a first value: an array that programs read and update in place.

    The values are copied: those of an array, a tensor of the dynamic mode, or a static tensor that
    depends on no input, which is evaluated. `trainable=False` makes a buffer (a running statistic,
    a step count), which optimisers leave alone.
    """
    if isinstance(value, Tensor):
        value = value.numpy()
    elif dynamic.is_tensor(value):
        value = dynamic.package().eager_of(value, "parameter").detach().numpy()
    array = to_array(value)
    cell = StateCell(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return state_of(cell, trainable)


def state_of(cell: StateCell, trainable: bool = True) -> Parameter:
    """The graph value of a state cell."""
    if not isinstance(cell, StateCell):
        raise ArgumentError(f"expected a StateCell, got {type(cell).__name__}")
    attrs = {
        "name": cell.name,
        "id": cell.id,
        "dtype": as_dtype(str(cell.dtype)),
        "shape": tuple(cell.shape),
        "trainable": trainable,
    }
    result = apply("state", payload=cell, **attrs)
    parameter: Parameter = result
    return parameter


def _leaf(name: str, summary: str, reason: str) -> None:
    register(
        Op(
            name=name,
            summary=summary,
            infer=lambda types, attrs: (TensorType(attrs["dtype"], attrs["shape"]),),
            reference=lambda **attrs: attrs["payload"],
            vjp=NotDifferentiable(reason),
            jvp=NotDifferentiable(reason),
            batch=NotBatchable(reason),
            lower=Leaf(),
            samples=lambda: [],
            source="this project",
        )
    )


_leaf("input", "an array that each call brings", "an input has no operands")
_leaf("state", "an array that the program owns and may update", "state has no operands")
