"""`Module`: the base of layers and models, with PyTorch's names. Pure graph building, no kernel."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from reprlib import recursive_repr
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from staticgrad_runtime.arrays import ConversionError, cast_checked
from staticgrad_runtime.state import StateCell

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, StateError, UnsupportedError
from staticgrad.ops.convert import to_array
from staticgrad.ops.leaves import CHANGES, in_module, parameter, replaced_cells
from staticgrad.ops.leaves import Parameter as StateParameter
from staticgrad.ops.public import dynamic, public
from staticgrad.ops.tensor import Tensor

from .held import entry, held, may_hold, replaced
from .mode import SYMBOLIC, SymbolicMode, check_device, is_device, mode_of

# The cells whose name a module has given; a name that the user gave is kept.
_named: weakref.WeakSet[StateCell] = weakref.WeakSet()


# What a module keeps of its own.
_OWN = ("_parameters", "_buffers", "_modules", "_containers")


@public  # of values too: it is no operation of the dynamic mode
def Parameter(data: Any, requires_grad: bool = True) -> StateParameter:
    """State with a first value, as a module holds it: `sg.parameter`, by PyTorch's name."""
    return parameter(data, trainable=requires_grad)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base class of layers and models.

    A subclass calls `super().__init__()`, assigns parameters and modules as attributes, and defines
    `forward`, which builds graph; gradients are derived from it. A module's mode is symbolic until
    `train()` or `eval()` fixes it: an executable of `sg.compile` binds it.

    Those in plain lists, tuples and dicts, nested ones too, are parts of the module like those in
    `ModuleList` and `ModuleDict`, by the same names ("layers.0.weight"). PyTorch does not find them
    there; what is not to be a part is kept out by `object.__setattr__(self, name, value)`.
    """

    _parameters: dict[str, StateParameter | None]
    _buffers: dict[str, StateParameter | None]
    _modules: dict[str, Module | None]
    _transient: set[str]
    _containers: dict[str, None]  # attributes that may hold modules or state: lists, tuples, dicts
    _mode: bool | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Module:
        if getattr(cls, "backward", None) is not None:
            raise UnsupportedError(
                f"{cls.__name__} defines `backward`, which is never called: gradients are derived "
                "from `forward`. Remove it, or wrap a function with sg.custom_vjp and call that in "
                "`forward`"
            )
        return super().__new__(cls)

    def __init__(self) -> None:
        for name in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, name, OrderedDict())
        object.__setattr__(self, "_transient", set())
        object.__setattr__(self, "_mode", None)
        object.__setattr__(self, "_containers", {})
        for name, value in self.__dict__.items():  # set before this was called
            if name not in _OWN and may_hold(name, value, (Module, StateParameter)):
                self._containers[name] = None

    # --- calling ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's formula; every subclass defines it."""
        raise UnsupportedError(f"{type(self).__name__} does not define `forward`")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if dynamic.types and not dynamic.inside.get() and dynamic.among((*args, kwargs)):
            return self._call_eagerly(args, kwargs)
        if in_module.get():
            return self.forward(*args, **kwargs)
        self._registries()
        name_parameters(self)
        token = in_module.set(True)
        try:
            return self.forward(*args, **kwargs)
        finally:
            in_module.reset(token)

    def _call_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs `forward` as it stands: what it calls works on values, parameters are theirs."""
        token = dynamic.inside.set(True)
        calling = in_module.set(True)
        try:
            return self.forward(*args, **kwargs)
        finally:
            in_module.reset(calling)
            dynamic.inside.reset(token)

    # --- registration -------------------------------------------------------------------------

    def _registries(self) -> tuple[dict[str, Any], ...]:
        try:
            return self._parameters, self._buffers, self._modules
        except AttributeError:
            raise ArgumentError(
                f"{type(self).__name__}: call super().__init__() before assigning parameters or "
                "modules"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            self.train(value)
            return
        if name == "trainable" and isinstance(value, bool) and "_modules" in self.__dict__:
            self.requires_grad_(value)  # Keras's name for it
        if not isinstance(value, (StateParameter, Module)):
            self._set_plain(name, value)
            return
        if isinstance(getattr(type(self), name, None), FunctionType):
            raise ArgumentError(
                f"{type(self).__name__}.{name} is a method, which would hide the "
                f"{type(value).__name__}; choose another name"
            )
        parameters, buffers, modules = self._registries()
        home = modules
        if isinstance(value, StateParameter):
            home = parameters if value.trainable else buffers
        self.__dict__.pop(name, None)
        for registry in (parameters, buffers, modules):
            if registry is not home:
                registry.pop(name, None)
        home[name] = value
        if isinstance(value, Module):
            name_parameters(value, name)
        else:
            _set_name(value, name)

    def _set_plain(self, name: str, value: Any) -> None:
        for registry in ("_parameters", "_buffers", "_modules"):
            known = self.__dict__.get(registry)
            if known is not None and name in known:
                if isinstance(value, Tensor):
                    raise ArgumentTypeError(
                        f"{type(self).__name__}.{name} is state, which a tensor of a graph can't "
                        f"replace. {CHANGES}"
                    )
                if value is not None:
                    raise ArgumentTypeError(
                        f"{type(self).__name__}.{name} is registered state or a module; it can be "
                        f"replaced by such or None, not by {type(value).__name__}. To set its "
                        f"value, use {name}.assign(...)"
                    )
                known[name] = None
                return
        known = self.__dict__.get("_containers")
        kinds = (Module, StateParameter)
        if may_hold(f"{type(self).__name__}.{name}", value, kinds) and known is not None:
            for path, v in held(name, value, kinds):
                name_parameters(v, path) if isinstance(v, Module) else _set_name(v, path)
            known[name] = None
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        for registry in ("_parameters", "_buffers", "_modules"):
            known = self.__dict__.get(registry)
            if known is not None and name in known:
                return known[name]
        from staticgrad.ir.hints import MODEL, missing

        text = missing(f"{type(self).__name__!r} object", name, MODEL)
        raise AttributeError(text, name=name, obj=self)

    def __delattr__(self, name: str) -> None:
        for registry in self._registries():
            if name in registry:
                del registry[name]
                self._transient.discard(name)
                return
        object.__delattr__(self, name)
        self._containers.pop(name, None)

    def _held(self, kind: type) -> Iterator[tuple[str, Any]]:
        """What is in lists, tuples and dicts among the attributes, with its paths."""
        for name in self._containers:
            if name in self.__dict__:  # else a module or state has taken its place
                yield from held(name, self.__dict__[name], (kind,))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for r in self._registries() for n in r)})

    def register_parameter(self, name: str, param: StateParameter | None) -> None:
        """Adds trainable state under `name`; None keeps the name without state."""
        self._check_name(name)
        if param is not None and not isinstance(param, StateParameter):
            raise ArgumentTypeError(
                f"register_parameter: expected a parameter or None, got {type(param).__name__}"
            )
        self._registries()[0][name] = None
        if param is not None:
            setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Adds state that is not trained: an array or non-trainable parameter, or None.

        With `persistent=False` it is left out of `state_dict()`.
        """
        self._check_name(name)
        self._registries()[1][name] = None
        if tensor is not None:
            if not isinstance(tensor, StateParameter):
                tensor = parameter(tensor, trainable=False)
            elif tensor.trainable:
                raise ArgumentError(f"register_buffer: {name!r} is trainable; use an attribute")
            setattr(self, name, tensor)
        if not persistent:
            self._transient.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a sub-module under `name`, which may be a digit."""
        self._check_name(name)
        if module is not None and not isinstance(module, Module):
            raise ArgumentTypeError(
                f"{type(self).__name__}: expected a Module, got {type(module).__name__}"
            )
        self._registries()[2][name] = module
        if module is not None:
            name_parameters(module, name)

    register_module = add_module

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ArgumentError(f"a name of state or a module is a str without '.', got {name!r}")
        if name not in {n for r in self._registries() for n in r} and hasattr(self, name):
            raise ArgumentError(f"{type(self).__name__} already has an attribute {name!r}")

    # --- traversal ----------------------------------------------------------------------------

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it with their dotted paths; each once."""
        seen = set() if memo is None else memo
        if remove_duplicate and self in seen:
            return
        seen.add(self)
        yield prefix, self
        for name, module in self._registries()[2].items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(seen, path, remove_duplicate)
        for name, module in self._held(Module) if self._containers else ():
            if module not in seen:  # a list of layers that are attributes too names none of them
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(seen, path, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, in the order of `named_modules`."""
        # Each call of a traced function that reads a model asks: 5 us for ten layers, 12 by name.
        seen: set[Module] = set()
        pending: list[Module] = [self]
        while pending:
            module = pending.pop()
            if module in seen:
                continue
            seen.add(module)
            yield module
            registered = module._registries()[2]
            if module._containers:
                pending += reversed([m for _, m in module._held(Module)])
            if registered:
                pending += [m for m in reversed(registered.values()) if m is not None]

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one."""
        seen: set[Module] = set()
        for name, module in (*self._registries()[2].items(), *self._held(Module)):
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below this one."""
        return (m for _, m in self.named_children())

    def _named_state(
        self, which: int, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, StateParameter]]:
        owners = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        seen: set[StateParameter] = set()
        for path, module in owners:
            for name, value in module._own_state(which):
                if value is None or (remove_duplicate and value in seen):
                    continue
                seen.add(value)
                yield (f"{path}.{name}" if path else name), value

    def _own_state(self, which: int) -> Iterator[tuple[str, StateParameter | None]]:
        """The parameters (0) or the buffers (1) of this very module."""
        registry = self._registries()[which]
        yield from registry.items()
        known = {id(value) for value in registry.values()}
        for name, value in self._held(StateParameter):
            if value.trainable == (which == 0) and id(value) not in known:
                known.add(id(value))
                yield name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, StateParameter]]:
        """The trainable state with its dotted paths, as in PyTorch's state_dict; each once."""
        return self._named_state(0, prefix, recurse, remove_duplicate)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients that the dynamic mode has added up in the parameters."""
        for p in self.parameters():
            if p.grad is not None:
                if set_to_none:
                    p.grad = None
                else:
                    p.grad.data.zero_()

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freezes all parameters (False), or lets them be trained again (True).

        The dynamic mode records no gradients for frozen ones. `fit` and the `minimize` of
        optimisers leave them as they are; a program compiled before still trains what it did.
        """
        for p in self.parameters():
            p.requires_grad = requires_grad
        return self

    def parameters(self, recurse: bool = True) -> Iterator[StateParameter]:
        """The trainable state: what an optimiser is given."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, StateParameter]]:
        """The state that is not trained, such as running statistics, with its dotted paths."""
        return self._named_state(1, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[StateParameter]:
        """The state that is not trained."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; "" is this one. Raises AttributeError."""
        found: Any = self
        for name in target.split(".") if target else ():
            found = _part_of(found, name)
            if not isinstance(found, (Module, list, tuple, dict)):
                raise AttributeError(f"{target!r}: {name!r} is not a module")
        if not isinstance(found, Module):
            raise AttributeError(f"{target!r} is not a module")
        return found

    def get_parameter(self, target: str) -> StateParameter:
        """The parameter or buffer at a dotted path. Raises AttributeError."""
        found: Any = self
        for name in target.split("."):
            found = _part_of(found, name)
        if not isinstance(found, StateParameter):
            raise AttributeError(f"{target!r} is not a parameter")
        return found

    def apply(self, fn: Callable[[Module], None]) -> Module:
        """Calls `fn` on every module below this one, then on this one; returns this one."""
        self._apply_within(fn, set())
        return self

    def _apply_within(self, fn: Callable[[Module], None], around: set[Module]) -> None:
        around.add(self)
        for child in self.children():
            if child not in around:  # a list may hold what this is a part of
                child._apply_within(fn, around)
        around.discard(self)
        fn(self)

    # --- training -----------------------------------------------------------------------------

    def fit(
        self, xs: Any, ys: Any = None, *, loss: Any = None, optimizer: Any = None, epochs: int = 1,
        batch_size: int = 32, validation_data: Any = None, validation_split: float = 0.0,
        callbacks: Any = (), metrics: Any = None, shuffle: bool = True, progress: bool = True,
        seed: int | None = None, check: str | None = None, initial_epoch: int = 0,
        sample_weight: Any = None, class_weight: Any = None, clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> Any:  # fmt: skip
        """Trains the model and returns the `History` of its epochs.

            history = model.fit(xs, ys, loss="cross_entropy", optimizer="adam", epochs=5)

        xs, ys      arrays with samples along the first axis; a tuple or a dict of them for several
                    inputs (arguments or keywords of `forward`) or targets; a list is one array,
                    a list of arrays also the inputs of a `forward` that needs several.
                    Or xs alone: a loader, each iteration over which gives the batches (inputs,
                    targets) of an epoch, such as `sg.data.DataLoader`. Floating arrays are
                    converted to the dtype of the model's parameters
        loss        a name ("cross_entropy", "mse", "l1", "huber", "bce", "bce_with_logits", "nll",
                    ...), a loss of `sg.nn`, or a function (prediction, target) -> scalar tensor
        optimizer   "adam" (the default), "sgd", "adamw", "rmsprop", "adagrad" with the defaults of
                    `sg.optim`, or an optimiser over the model's parameters
        epochs, batch_size  as they say; the last batch of an epoch has the samples that are left,
                    and every figure is the mean over samples. A loader has batches of its own
        validation_data     (xs, ys) or a loader, evaluated after each epoch
        validation_split    instead of it: the share of the samples, from the end, to be held out
        callbacks   `sg.nn.Callback` objects, functions (epoch, logs) called after each epoch,
                    schedules of `sg.optim.lr_scheduler`
        metrics     names ("accuracy", "mae", "mse") or functions of arrays (prediction, target);
                    None: the accuracy of classifiers
        shuffle     whether each epoch has another order: `rng.permutation(n)` of one
                    `numpy.random.default_rng(seed)`; with seed None it comes from `sg.random.seed`
        progress    a bar on a terminal, else a line an epoch, on standard error
        check       "nan": a step that computes a NaN raises, names the line, and changes nothing
        initial_epoch   the number of the first epoch, to go on with a training
        sample_weight   a weight for each sample of arrays: a named loss is then sum(w * l) / n over
                        the n samples of a batch. Metrics take all alike
        class_weight    instead of it weights by label, {0: 1.0, 1: 5.0}, which count in training
                        alone; 1 for the others
        clip_norm, clip_value   bounds on the norm of all gradients together and on their elements,
                        as of an optimiser's `minimize`

        A step is one native call: forward, backward and update. What was compiled is kept: another
        `fit` with the same loss and optimiser compiles nothing and goes on where the optimiser was;
        without them it takes those of the last one. Whatever `train()` or `eval()` fixed for the
        whole model, it is in training mode here. An exception, Ctrl-C too, leaves the state of the
        last step that was done.

        Raises `ArgumentError`, `ArgumentTypeError` and `ShapeError` for arguments that don't fit,
        `ExecutionError` for a label out of range.
        """
        from .training import fit

        return fit(
            self, xs, ys, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size,
            validation_data=validation_data, validation_split=validation_split,
            callbacks=callbacks, metrics=metrics, shuffle=shuffle, progress=progress, seed=seed,
            check=check, initial_epoch=initial_epoch, sample_weight=sample_weight,
            class_weight=class_weight, clip_norm=clip_norm, clip_value=clip_value,
        )  # fmt: skip

    def evaluate(
        self, xs: Any, ys: Any = None, *, loss: Any = None, metrics: Any = None,
        batch_size: int = 32,
    ) -> Any:  # fmt: skip
        """The loss and the metrics, means over samples, with the model in evaluation mode.

        Arguments are those of `fit`, whose loss and metrics are taken where none are given. Returns
        `Scores`: `loss, accuracy = model.evaluate(xs, ys)`, or `scores["accuracy"]` by name.
        """
        from .training import evaluate

        return evaluate(self, xs, ys, loss=loss, metrics=metrics, batch_size=batch_size)

    def predict(self, xs: Any, *, batch_size: int = 32) -> Any:
        """What `forward` gives for arrays, as arrays, computed batch by batch in evaluation mode.

        xs is what `fit` takes, or a loader of inputs or of pairs (inputs, targets). Where `forward`
        gives a tuple, list or dict, so does this.
        """
        from .training import predict

        return predict(self, xs, batch_size=batch_size)

    # --- mode, device, dtype ------------------------------------------------------------------

    @property
    def training(self) -> bool | SymbolicMode:
        """True or False where `train()` or `eval()` fixed it, else the symbolic mode; in a call
        on eager tensors True until `eval()`."""
        if self._mode is None:
            return True if dynamic.inside.get() else SYMBOLIC
        return self._mode

    def train(self, mode: bool | None = True) -> Module:
        """Fixes the mode of this module and all below it; None makes it symbolic again."""
        fixed = mode_of(mode)
        for module in self.modules():
            object.__setattr__(module, "_mode", fixed)
        return self

    def eval(self) -> Module:
        """Fixes evaluation: `train(False)`."""
        return self.train(False)

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> Module:
        """`to("cpu")` changes nothing; `to("float64")` gives floating state another dtype.

        A change of dtype replaces the parameters by new ones, where PyTorch converts them in place.
        So it belongs before the optimiser and before any call: graphs and programs made earlier
        keep the old parameters and don't see what is assigned, loaded or trained afterwards, and an
        optimiser made earlier raises `ArgumentError`. Raises `UnsupportedError` for other devices.
        """
        for a in args:
            if isinstance(a, str) and is_device(a):
                device = a
            elif a is not None:
                dtype = a
        if device is not None:
            check_device(device)
        if dtype is not None:
            self._convert(dtype)
        return self

    def _convert(self, dtype: Any) -> None:
        from staticgrad.ir.dtype import dtype as as_dtype

        wanted = as_dtype(dtype)
        if not wanted.is_float:
            raise ArgumentError(f"a module's dtype must be floating, got {wanted}")
        converted: dict[StateParameter, StateParameter] = {}

        def new(value: StateParameter) -> StateParameter:
            if not value.dtype.is_float or value.dtype == wanted:
                return value
            if value not in converted:
                converted[value] = _like(value, value.numpy().astype(wanted.numpy))
                replaced_cells.add(value.cell)
            return converted[value]

        for module in self.modules():
            for registry in module._registries()[:2]:
                replaced(registry, (StateParameter,), new)
            for name in module._containers.keys() & module.__dict__.keys():
                made = replaced(module.__dict__[name], (StateParameter,), new)
                object.__setattr__(module, name, made)
        name_parameters(self)

    def cpu(self) -> Module:
        return self

    def cuda(self, device: Any = None) -> Module:
        return self.to(device="cuda")

    def double(self) -> Module:
        """`to("float64")`: before the optimiser and before any call, as `to` says."""
        return self.to(dtype="float64")

    def float(self) -> Module:
        """`to("float32")`: before the optimiser and before any call, as `to` says."""
        return self.to(dtype="float32")

    # --- state --------------------------------------------------------------------------------

    def _persistent_state(self) -> Iterator[tuple[str, StateParameter]]:
        for path, module in self.named_modules(remove_duplicate=False):
            kept = [b for b in module._own_state(1) if b[0] not in module._transient]
            for name, value in (*module._own_state(0), *kept):
                if value is not None:
                    yield (f"{path}.{name}" if path else name), value

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and persistent buffers by dotted path, for `sg.save`."""
        return {prefix + name: value.numpy() for name, value in self._persistent_state()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Sets parameters and buffers from arrays by dotted path.

        Nothing is written unless everything fits. Raises `StateError` that names every key that
        has another shape or dtype and, with `strict`, that is missing or surplus.
        """
        if not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(
                f"load_state_dict: expected a dict of arrays, got {type(state_dict).__name__}"
            )
        own = dict(self._persistent_state())
        missing = [name for name in own if name not in state_dict]
        surplus = [name for name in state_dict if name not in own]
        problems = []
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and surplus:
            problems.append(f"surplus keys: {', '.join(map(str, surplus))}")
        fitting: list[tuple[StateParameter, np.ndarray[Any, Any]]] = []
        for name, value in own.items():
            if name in state_dict:
                try:
                    fitting.append((value, _fitted(value, state_dict[name])))
                except ConversionError as error:
                    problems.append(f"{name}: expected {value.type}, got {error}")
        if problems:
            lines = "\n  ".join(problems)
            raise StateError(f"load_state_dict of {type(self).__name__}:\n  {lines}")
        for value, array in fitting:
            value.assign(array)
        return IncompatibleKeys(missing, surplus)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs are not pickled.
        return {name: v for name, v in self.__dict__.items() if name != "_trainer"}

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        """A copy with state of its own, of the same values."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for values in (self.parameters(), self.buffers()):
            for value in values:
                if id(value) not in memo:
                    memo[id(value)] = _like(value, value.numpy())
        for name, value in self.__dict__.items():
            if name != "_trainer":  # its compiled programs are the original's
                object.__setattr__(copied, name, copy.deepcopy(value, memo))
        return copied

    # --- printing -----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments in the module's repr."""
        return ""

    @recursive_repr()
    def __repr__(self) -> str:
        lines = []
        for name, module in (*self._registries()[2].items(), *self._held(Module)):
            text = "None" if module is None else repr(module).replace("\n", "\n  ")
            lines.append(f"  ({name}): {text}")
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        head = f"{type(self).__name__}({extra}" + ("," if extra else "")
        return "\n".join([head, *lines, ")"])


def _part_of(whole: Any, name: str) -> Any:
    """What a part of a dotted path names in a module, or in a list, tuple or dict of one."""
    if isinstance(whole, (list, tuple, dict)):
        return entry(whole, name)
    if not isinstance(whole, Module):
        raise AttributeError(f"{name!r}: {type(whole).__name__} has no modules or parameters")
    return getattr(whole, name)


def _like(value: StateParameter, array: np.ndarray[Any, Any]) -> StateParameter:
    """State of its own with these values, trainable and frozen as the other is."""
    made = parameter(array, trainable=value.trainable)
    if made.requires_grad != value.requires_grad:
        made.requires_grad = value.requires_grad
    return made


def _fitted(value: StateParameter, given: Any) -> np.ndarray[Any, Any]:
    array = given.numpy() if isinstance(given, StateParameter) else to_array(np.asarray(given))
    if array.shape != tuple(value.cell.shape):
        raise ConversionError(f"{array.dtype}{list(array.shape)}")
    return cast_checked(array, value.dtype.numpy)


def _set_name(value: StateParameter, name: str) -> None:
    """A name is a label, no part of what a node computes; it is all that changes here."""
    cell = value.cell
    if cell.name and cell not in _named:
        return
    _named.add(cell)
    if cell.name != name and not (cell.name or "").endswith(f".{name}"):
        cell.name = name
        value.node.attrs = {**value.node.attrs, "name": name}


def name_parameters(root: Module, prefix: str = "") -> None:
    """Names all state below `root` by its dotted path, so that errors and dumps can.

    A longer path that ends in the new one stays: it was given by a larger model.
    """
    for values in (root.named_parameters(prefix), root.named_buffers(prefix)):
        for name, value in values:
            _set_name(value, name)


__all__ = ["IncompatibleKeys", "Module", "Parameter", "name_parameters"]
