"""`Variable` and `GradientTape`, as TensorFlow 2 has them, on the tape of eager tensors.

A variable is watched while a tape records; reading one gives a tensor of its present value, so an
assignment never changes what was computed before. A tape remembers which nodes were made while it
recorded: `gradient` walks back along those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import numpy as np

from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    ShapeError,
)
from staticgrad.ops import arithmetic
from staticgrad.ops.convert import to_array
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import public, public_class
from staticgrad.ops.tensor import Tensor as GraphTensor

from .dispatch import call
from .display import array_text
from .mode import no_grad, recording, tapes
from .parameters import leaf_of
from .static_values import value_of
from .tape import Leaf, number, walk
from .tensor import Array, Tensor

_active: ContextVar[tuple[GradientTape, ...]] = tapes


@public_class
class Variable:
    """A value that can be assigned to; tapes watch it unless `trainable=False`.

    In an operation it stands for its present value, and `value()` is that value as a tensor.
    """

    __slots__ = ("__weakref__", "_leaf", "_value", "name", "trainable")
    __array_priority__ = 2000
    __array_ufunc__ = None

    def __init__(
        self, initial_value: Any, trainable: bool = True, name: str | None = None, dtype: Any = None
    ) -> None:
        from .creation import tensor

        self._value = tensor(initial_value, dtype)
        self._leaf = Leaf(self._value._sig)
        self.trainable = trainable
        self.name = name or "Variable"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def dtype(self) -> Any:
        return self._value.dtype

    @property
    def ndim(self) -> int:
        return self._value.ndim

    @property
    def type(self) -> Any:
        return self._value.type

    def value(self) -> Tensor:
        """The present value as a tensor, watched if a tape records."""
        read = Tensor(self._value._array)
        if self._value._sig.is_float and any(t._watches(self) for t in _active.get()):
            read._node = self._leaf
        return read

    read_value = value

    def numpy(self) -> Array:
        """A copy of the value."""
        return self._value._array.copy()

    def assign(self, value: Any) -> Variable:
        """Sets the value; its shape and dtype stay."""
        given = value.value() if isinstance(value, Variable) else value
        if isinstance(given, Tensor):
            array = given._array
        elif isinstance(given, Parameter):
            array = given.numpy()
        else:
            array = to_array(given, self.dtype)
        if array.shape != self.shape:
            raise ShapeError(
                f"assign: the variable has shape {self.shape}, the value {array.shape}"
            )
        if array.dtype != self.dtype.numpy:
            raise ArgumentTypeError(
                f"assign: the variable is {self.type}, the value has dtype {array.dtype}"
            )
        self._value = Tensor(array.copy())
        return self

    def overwrite(self, array: Array) -> None:
        """Takes over an array of the same type as the value."""
        self._value = Tensor(array.copy())

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` in a tape's block has added up, None before the first."""
        return self._leaf.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        own = self._value._sig
        if value is not None and (not isinstance(value, Tensor) or value._sig is not own):
            came = value.type if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentTypeError(f"grad must be of type {self.type} or None, got {came}")
        self._leaf.grad = value

    def detach(self) -> Tensor:
        """The present value, which no tape watches."""
        return Tensor(self._value._array)

    def assign_add(self, delta: Any) -> Variable:
        """`self + delta` as the new value."""
        return self.assign(self._changed(arithmetic.add, delta))

    def assign_sub(self, delta: Any) -> Variable:
        """`self - delta` as the new value."""
        return self.assign(self._changed(arithmetic.subtract, delta))

    def _changed(self, function: Any, delta: Any) -> Tensor:
        with no_grad():
            given = delta.value() if isinstance(delta, Variable) else delta
            return call(function, (Tensor(self._value._array), given), {})  # type: ignore[no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._value._array, dtype=dtype)

    def __repr__(self) -> str:
        text = array_text(self._value._array)
        return f"<Variable '{self.name}' shape={self.shape} dtype={self.dtype!s}, numpy={text}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.value(), name)

    __hash__ = object.__hash__


def _operators() -> None:
    """The operators of tensors, for a variable's value."""

    def forwarded(name: str) -> Callable[..., Any]:
        def operator(self: Variable, *args: Any) -> Any:
            return getattr(Tensor, name)(
                self.value(), *(a.value() if isinstance(a, Variable) else a for a in args)
            )

        operator.__name__ = name
        return operator

    own = {"__array__", "__getattr__", "__hash__", "__repr__", "__str__", "__init__", "__setitem__"}
    for name in vars(Tensor):
        special = name.startswith("__") and callable(getattr(Tensor, name))
        in_place = name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}")
        given = special and not in_place and name not in own and name not in vars(object)
        if given or name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
            setattr(Variable, name, forwarded(name))


_operators()


class GradientTape:
    """Records what is computed from watched values in a `with` block, for `gradient`.

    Trainable variables are watched unless `watch_accessed_variables=False`; leaves that require a
    gradient and parameters of models are, too; other tensors by `watch`. A tape serves one call of
    `gradient` unless it is `persistent`. Inside another tape's block the call is recorded there, so
    tapes nest for higher derivatives.
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True) -> None:
        self._persistent = persistent
        self._accessed = watch_accessed_variables
        self._watched: dict[int, Variable] = {}  # by identity: `==` compares values
        self._tensors: dict[int, tuple[Tensor, Any]] = {}  # watched, with the node they got
        self._spans: list[list[float]] = []  # numbers of the nodes made while it recorded
        self._used = False

    # --- recording ----------------------------------------------------------------------------

    def __enter__(self) -> GradientTape:
        if self._recording():
            raise ArgumentError("this tape is recording already")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._recording():
            self._stop()
        for t, node in self._tensors.values():
            if t._node is node:
                t._node = None

    def _recording(self) -> bool:
        return bool(self._spans) and self._spans[-1][1] == np.inf

    def _start(self) -> None:
        self._spans.append([number(), np.inf])
        _active.set((*_active.get(), self))

    def _stop(self) -> None:
        self._spans[-1][1] = number()
        _active.set(tuple(t for t in _active.get() if t is not self))

    @contextmanager
    def stop_recording(self) -> Iterator[None]:
        """A block of which this tape hears nothing."""
        if not self._recording():
            raise ArgumentError("stop_recording: the tape is not recording")
        self._stop()
        try:
            yield
        finally:
            self._start()

    def reset(self) -> None:
        """Forgets what was recorded and watched so far."""
        if self._recording():
            self._stop()
            self._spans = []
            self._start()
        else:
            self._spans = []

    @public
    def watch(self, tensor: Any) -> None:
        """Watches a tensor or variable, or all in a list, tuple or dict."""
        for t in _flat(tensor):
            if isinstance(t, Variable):
                self._watched[id(t)] = t
            elif isinstance(t, Parameter):
                continue  # it is, unless its gradient was switched off
            elif isinstance(t, Tensor):
                if not t._sig.is_float:
                    raise DifferentiationError(f"watch: {t.type} has no gradient")
                if t._node is None:
                    t._node = Leaf(t._sig)
                    self._tensors[id(t)] = (t, t._node)
            else:
                raise ArgumentTypeError(f"watch: expected eager tensors, got {type(t).__name__}")

    def _watches(self, variable: Variable) -> bool:
        return id(variable) in self._watched or (self._accessed and variable.trainable)

    def watched_variables(self) -> tuple[Variable, ...]:
        """The variables that `watch` was called for."""
        return tuple(self._watched.values())

    # --- gradients ----------------------------------------------------------------------------

    @public
    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None,
        unconnected_gradients: str = "none",
    ) -> Any:  # fmt: skip
        """The gradients of the sum of `target` by `sources`, in the structure of `sources`.

        None, or zeros with `unconnected_gradients="zero"`, for a source that the target does not
        depend on by what this tape recorded. `output_gradients` weigh the target.
        """
        mode = str(getattr(unconnected_gradients, "value", unconnected_gradients)).lower()
        if mode not in ("none", "zero"):
            raise ArgumentError(
                f'unconnected_gradients must be "none" or "zero", got {unconnected_gradients!r}'
            )
        self._use()
        flat = list(_flat(sources))
        grads = self._walk(list(_flat(target)), flat, output_gradients)
        if mode == "zero":
            grads = [
                Tensor(np.zeros(s.shape, s.dtype.numpy)) if g is None else g
                for s, g in zip(flat, grads)
            ]
        return _like(sources, iter(grads))

    def _use(self) -> None:
        if self._used and not self._persistent:
            raise DifferentiationError(
                "a tape that is not persistent serves one call of gradient; make it with "
                "GradientTape(persistent=True)"
            )
        self._used = True
        if self._recording() and not self._persistent:
            self._stop()

    def _node_of(self, source: Any) -> Any:
        """Where the walk ends for a source; None for one that is not watched."""
        if isinstance(source, Variable):
            return source._leaf if self._watches(source) else None
        if isinstance(source, Parameter):
            return leaf_of(source)._node
        if isinstance(source, Tensor):
            known = self._tensors.get(id(source))
            return known[1] if known is not None else source._node
        raise ArgumentTypeError(
            f"gradient: a source is an eager tensor, a variable or a parameter, got "
            f"{type(source).__name__}"
        )

    def _walk(self, targets: list[Any], sources: list[Any], weights: Any) -> list[Any]:
        spans = [(a, b) for a, b in self._spans]

        def within(serial: int) -> bool:
            return serial >= fresh or any(a < serial < b for a, b in spans)

        targets, fresh = self._present(targets)
        nodes = [self._node_of(s) for s in sources]
        given = list(_flat(weights)) if weights is not None else [None] * len(targets)
        if len(given) != len(targets):
            raise ArgumentError(
                f"gradient: {len(given)} output gradients for {len(targets)} targets"
            )
        create = bool(_active.get()) and recording.get()
        roots, seeds = [], []
        for t, w in zip(targets, given):
            t = t.value() if isinstance(t, Variable) else t
            node = self._node_of(t) if isinstance(t, Tensor) else None
            if node is None:
                if not isinstance(t, Tensor):
                    raise ArgumentTypeError(
                        f"gradient: the target must be an eager tensor, got {type(t).__name__}"
                    )
                continue
            seed = _weight(t, w)
            root = Tensor(t._array)
            root._node = node
            roots.append(root)
            seeds.append(Tensor(seed) if create else seed)
        wanted = [n for n in nodes if n is not None]
        found = iter(walk(roots, seeds, create=create, keep=True, targets=wanted, within=within))
        grads = [None if n is None else next(found) for n in nodes]
        return [g if g is None or create else Tensor(g.copy()) for g in grads]

    def _present(self, targets: list[Any]) -> tuple[list[Any], float]:
        """Targets that are static tensors by their values, and the number of the first node of the
        tape that this made: they were declared while the tape recorded."""
        if not any(isinstance(t, GraphTensor) for t in targets):
            return targets, np.inf
        token, first = tapes.set((*tapes.get(), self)), number()
        try:
            return [value_of(t) if isinstance(t, GraphTensor) else t for t in targets], first
        finally:
            tapes.reset(token)

    @public
    def jacobian(self, target: Any, sources: Any, unconnected_gradients: str = "none") -> Any:
        """The derivatives of each element of `target`: target's shape + source's shape, in the
        structure of `sources`. One walk back an element."""
        self._use()
        flat = list(_flat(sources))
        if not isinstance(target, Tensor):
            raise ArgumentTypeError("jacobian: the target must be an eager tensor")
        rows: list[list[Any]] = []
        for i in range(target.size):
            one = np.zeros(target.size, target.dtype.numpy)
            one[i] = 1
            rows.append(self._walk([target], flat, [Tensor(one.reshape(target.shape))]))
        from staticgrad.ops.joining import stack

        results: list[Any] = []
        for k, s in enumerate(flat):
            column = [row[k] for row in rows]
            if any(g is None for g in column):
                if str(unconnected_gradients).lower() != "zero":
                    results.append(None)
                    continue
                zeros = Tensor(np.zeros(s.shape, s.dtype.numpy))
                column = [zeros if g is None else g for g in column]
            results.append(stack(column).reshape((*target.shape, *s.shape)))
        return _like(sources, iter(results))


def _weight(t: Tensor, weight: Any) -> Array:
    if weight is None:
        return np.ones(t.shape, t._sig.numpy_dtype)
    if isinstance(weight, Variable):
        weight = weight.value()
    array = weight._array if isinstance(weight, Tensor) else to_array(weight, t.dtype)
    if array.shape != t.shape or array.dtype != t._sig.numpy_dtype:
        raise ArgumentError(
            f"gradient: an output gradient is {array.dtype}{list(array.shape)}, its target {t.type}"
        )
    return np.ascontiguousarray(array).reshape(t.shape)


def _flat(structure: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(structure, dict):
        for value in structure.values():
            yield from _flat(value)
    elif isinstance(structure, (list, tuple)) or hasattr(structure, "__next__"):
        for value in structure:
            yield from _flat(value)
    else:
        yield structure


def _like(structure: Any, values: Iterator[Any]) -> Any:
    if isinstance(structure, dict):
        return {key: _like(value, values) for key, value in structure.items()}
    if isinstance(structure, tuple):
        made = [_like(v, values) for v in structure]
        return type(structure)._make(made) if hasattr(structure, "_fields") else tuple(made)  # type: ignore[attr-defined]
    if isinstance(structure, list):
        return [_like(v, values) for v in structure]
    return next(values)


__all__ = ["GradientTape", "Variable"]
