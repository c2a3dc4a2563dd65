"""`Optimizer`: from gradients to updates of state, as graph.

An optimiser's step is part of the compiled program: `minimize` gives pairs (state, new value) for
`sg.compile(updates=...)`. The learning rate and the step count are state scalars, so that changing
them recompiles nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from staticgrad_runtime.arrays import ConversionError, cast_checked

from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.dim import equal_dims
from staticgrad.ir.dtype import DType
from staticgrad.ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    DifferentiationError,
    GraphError,
    StateError,
)
from staticgrad.ir.loc import locs_text
from staticgrad.ops.convert import astype, to_array
from staticgrad.ops.leaves import Parameter, parameter, replaced_cells
from staticgrad.ops.public import dynamic, list_of, shown
from staticgrad.ops.tensor import Tensor

from .clip import clip_by_global_norm, clip_by_value
from .groups import FIXED, LearningRate, ParamGroup, rate_of
from .step import Step

Pair = tuple[Parameter, Tensor]


class Updates(Sequence[Pair]):
    """Pairs (state, new value) that a program writes together at its end: what `updates=` takes.

    Raises `GraphError` where a target is no state, appears twice, or has another type than its
    new value. `a + b` joins two of them.
    """

    def __init__(self, pairs: Iterable[tuple[Any, Any]] = ()) -> None:
        self._pairs: list[Pair] = []
        seen: set[Parameter] = set()
        for pair in list_of(pairs, "updates", "pairs (state, new value)"):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ArgumentTypeError(f"updates: expected pairs (state, new value), got {pair!r}")
            target, value = pair
            _check_pair(target, value)
            if target in seen:
                raise GraphError(f"updates: {_label(target)} is updated twice")
            seen.add(target)
            self._pairs.append((target, value))

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    def __add__(self, other: Iterable[Pair]) -> Updates:
        return Updates((*self, *other))

    def __repr__(self) -> str:
        return f"Updates({', '.join(_label(target) for target, _ in self)})"


def _label(value: Any) -> str:
    name = getattr(value, "name", None)
    return repr(name) if name else repr(value)


def _check_pair(target: Any, value: Any) -> None:
    if not isinstance(target, Parameter):
        kind = f" (an {target.node.op})" if isinstance(target, Tensor) else ""
        raise GraphError(
            f"updates: {_label(target)}{kind} is no state; only sg.parameter(...) can be updated"
        )
    if not isinstance(value, Tensor):
        raise GraphError(f"updates: the new value of {_label(target)} is no tensor: {value!r}")
    same = value.ndim == target.ndim and all(
        equal_dims(a, b) is not False for a, b in zip(target.shape, value.shape)
    )
    if not same or value.dtype != target.dtype:
        raise GraphError(
            f"updates: {_label(target)} has type {target.type}, its new value {value.type}"
        )


Slots = dict[str, Tensor]
Scalars = dict[str, Tensor]


class Optimizer:
    """The base of optimisers.

    A subclass says which state it keeps for a parameter (`slots`), which scalars a step needs
    (`scalars`), and the formula (`rule`); all three build on public operations, so they hold for
    any tensors.
    """

    counts_steps = False

    def __init__(self, params: Any, defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[ParamGroup] = []
        self._slots: dict[Parameter, dict[str, Parameter]] = {}
        # Eager tensors among the parameters, with the state that stands for them in formulas.
        self._stand_ins: dict[Any, Parameter] = {}
        self._programs: dict[tuple[Parameter, ...], Any] = {}  # of `step`
        self._step: Parameter | None = None
        if self.counts_steps or self._needs_steps():
            self._step = parameter(np.zeros((), np.int64), "step", trainable=False)
        for group in _groups(params):
            self.add_param_group(group)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}  # copies compile their own

    # --- what a subclass defines ---

    def check(self, group: Mapping[str, Any]) -> None:
        """Raises ArgumentError for options out of range."""

    def _needs_steps(self) -> bool:
        return False

    def slots(self, group: Mapping[str, Any], p: Any) -> dict[str, float]:
        """The state of one parameter, of its type: names and first values."""
        return {}

    def scalars(self, group: Mapping[str, Any], lr: Tensor, step: Tensor | None) -> Scalars:
        """Float64 scalars that a step of a group needs, from its rate and the number of this step
        (1 for the first)."""
        return {"lr": lr}

    def rule(
        self, group: Mapping[str, Any], p: Tensor, g: Tensor, slots: Slots, scalars: Scalars
    ) -> tuple[Tensor, Slots]:
        """The parameter's and the slots' new values; scalars come in the parameter's dtype."""
        raise NotImplementedError

    # --- groups ---

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds {"params": parameters, option: value, ..}; other options are the defaults."""
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise ArgumentError('a parameter group is a dict with the key "params"')
        unknown = [k for k in param_group if k != "params" and k not in self.defaults]
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__}: unknown options {unknown} in a parameter group; known are "
                f"{list(self.defaults)}"
            )
        given = param_group["params"]
        params: list[Any] = (
            [given]
            if isinstance(given, Tensor) or dynamic.is_tensor(given)
            else list_of(given, f'{type(self).__name__}: "params"', "parameters")
        )
        for p in params:
            self._check_parameter(p)
        if len(set(params)) != len(params):
            raise ArgumentError(f"{type(self).__name__}: a parameter is given twice in one group")
        options = {**self.defaults, **param_group, "params": params}
        self.check(options)
        group = ParamGroup(options, len(self.param_groups))
        self.param_groups.append(group)
        for given_p in params:
            p = self._static(given_p)
            label = p.name or f"parameter{len(self._slots)}"
            self._slots[p] = {
                name: parameter(
                    np.full(tuple(p.shape), value, p.dtype.numpy),
                    f"{label}.{name}",
                    trainable=False,
                )
                for name, value in self.slots(group, p).items()
            }

    def _static(self, p: Any) -> Parameter:
        """A parameter as it is; for an eager tensor the state that stands for it."""
        if isinstance(p, Parameter):
            return p
        if p not in self._stand_ins:
            value = p.detach().numpy()
            self._stand_ins[p] = parameter(value, f"parameter{len(self._slots)}")
        return self._stand_ins[p]

    def _check_parameter(self, p: Any) -> None:
        name = type(self).__name__
        if dynamic.is_tensor(p):
            if not p.is_leaf:
                raise ArgumentError(
                    f"{name}: a tensor of type {p.type} is the result of an operation; only leaves "
                    "can be optimised, such as eager.tensor(..., requires_grad=True)"
                )
            if p in self._stand_ins:
                raise ArgumentError(f"{name}: a tensor is in more than one parameter group")
            if not p.dtype.is_float:
                raise ArgumentError(f"{name}: a tensor of type {p.type} is not trainable")
            return
        if not isinstance(p, Parameter):
            raise ArgumentTypeError(f"{name}: expected parameters (sg.parameter), got {p!r}")
        self._check_current([p])
        if not p.trainable or not p.dtype.is_float:
            raise ArgumentError(f"{name}: {_label(p)} of type {p.type} is not trainable")
        if p in self._slots:
            raise ArgumentError(f"{name}: {_label(p)} is in more than one parameter group")

    def _check_current(self, parameters: Iterable[Any]) -> None:
        """Refuses parameters that no module has any more: training them would change nothing."""
        if not replaced_cells:  # as always but after a conversion: `step` asks at every call
            return
        for p in parameters:
            if isinstance(p, Parameter) and p.cell in replaced_cells:
                raise ArgumentError(
                    f"{type(self).__name__}: {_label(p)} of type {p.type} was replaced when its "
                    "module was converted by .double(), .float() or .to(dtype); make the optimiser "
                    "after converting, from the module's parameters() of then"
                )

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of all groups, in order."""
        return [self._static(p) for group in self.param_groups for p in group["params"]]

    @property
    def lr(self) -> LearningRate:
        """The first group's rate. Assigning a number sets it in all groups; programs that were
        compiled before take it in their next step."""
        return LearningRate(self.param_groups[0].rate)

    @lr.setter
    def lr(self, value: float) -> None:
        rate = rate_of(value)
        for group in self.param_groups:
            group["lr"] = rate

    @property
    def learning_rate(self) -> LearningRate:
        """`lr`, by Keras's name."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.lr = value  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = name != "lr" and name in self.__dict__.get("defaults", ())
        # An optimiser of the user's may read its options from attributes.
        if fixed and type(self).__module__.startswith("staticgrad."):
            raise ArgumentError(f"{type(self).__name__}: {FIXED.format(name)}")
        object.__setattr__(self, name, value)

    # --- updates ---

    def minimize(
        self, loss: Tensor, parameters: Any = None, *, clip_norm: float | None = None,
        clip_value: float | None = None, unreachable: str = "error",
    ) -> Updates:  # fmt: skip
        """One step down the loss's gradient: the updates of parameters and of this optimiser.

        `parameters` (default: all) are some of this optimiser's. `clip_norm` scales all gradients
        together to at most this norm, `clip_value` holds their elements between -value and value,
        in that order. A parameter that the loss does not depend on is a `DifferentiationError`;
        with `unreachable="zeros"` its gradient is 0. Parameters that are frozen when this is called
        (`requires_grad` False) are left out: neither decay nor momentum moves them.
        """
        self._check_current(self._given())
        chosen = self._unfrozen(self._chosen(parameters))
        if self._stand_ins:
            raise ArgumentError(
                f"{type(self).__name__}.minimize: this optimiser's parameters are eager tensors; "
                "use loss.backward() and step(), or declare them by sg.parameter"
            )
        _check_loss(loss, f"{type(self).__name__}.minimize")
        for name, bound in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if bound is not None and not bound > 0:
                raise ArgumentError(
                    f"{type(self).__name__}.minimize: {name} must be positive, got {bound}"
                )
        try:
            grads = gradients(loss, chosen, unreachable=unreachable)
        except DifferentiationError as error:
            named = DifferentiationError(f"{type(self).__name__}.minimize: {error}")
            named.located = getattr(error, "located", False)  # type: ignore[attr-defined]
            raise named from None
        if clip_norm is not None:
            grads = clip_by_global_norm(grads, clip_norm)
        if clip_value is not None:
            grads = clip_by_value(grads, clip_value)
        return self.apply_gradients(zip(grads, chosen))

    def _chosen(self, parameters: Any) -> list[Parameter]:
        if parameters is None:
            return self.parameters
        given: list[Any] = (
            [parameters]
            if isinstance(parameters, Tensor)
            else list_of(parameters, f"{type(self).__name__}: parameters", "parameters")
        )
        if not given:
            raise ArgumentError(f"{type(self).__name__}: the list of parameters is empty")
        for p in given:
            if not isinstance(p, Parameter) or p not in self._slots:
                raise ArgumentError(
                    f"{type(self).__name__}: {_label(p)} is not among this optimiser's parameters"
                )
        return given

    def _unfrozen(self, parameters: list[Parameter]) -> list[Parameter]:
        found = [p for p in parameters if p.requires_grad]
        if parameters and not found:
            raise ArgumentError(
                f"{type(self).__name__}.minimize: all parameters are frozen (requires_grad is "
                "False), so there is nothing to train; p.requires_grad_(True) unfreezes one"
            )
        return found

    def apply_gradients(self, grads: Iterable[Any]) -> Updates:
        """One step along given gradients: one for each of `parameters`, in order, or pairs
        (gradient, parameter).

        Tensors of the dynamic mode, as `GradientTape.gradient` and `.grad` give them, are applied
        at once; a parameter whose gradient is None stays as it is.
        """
        self._check_current(self._given())
        grads = list_of(grads, f"{type(self).__name__}: grads", "tensors")
        given = [g[0] if isinstance(g, tuple) and g else g for g in grads]
        if given and all(g is None for g in given):
            raise ArgumentError(
                f"{type(self).__name__}.apply_gradients: every gradient is None: the loss does not "
                "depend on the parameters by what was recorded"
            )
        if any(dynamic.is_tensor(g) for g in given):
            self._apply_values(grads)
            return Updates()
        pairs = self._gradient_pairs(grads)
        step: Any = None if self._step is None else self._step + 1
        found: list[Pair] = []
        for group in self.param_groups:
            members = {self._static(p) for p in group["params"]}
            mine = [(g, p) for g, p in pairs if p in members]
            if not mine:
                continue
            scalars = self.scalars(
                group, group.rate, None if step is None else astype(step, "float64")
            )
            by_dtype: dict[DType, Scalars] = {}
            for g, p in mine:
                if p.dtype not in by_dtype:
                    by_dtype[p.dtype] = {n: astype(s, p.dtype) for n, s in scalars.items()}
                slots = self._slots[p]
                new, new_slots = self.rule(group, p, g, dict(slots), by_dtype[p.dtype])
                found.append((p, new))
                found += [(slots[name], value) for name, value in new_slots.items()]
        if self._step is not None and step is not None:
            found.append((self._step, step))
        return Updates(found)

    def _gradient_pairs(self, grads: Iterable[Any]) -> list[tuple[Tensor, Parameter]]:
        given = list_of(grads, f"{type(self).__name__}: grads", "tensors")
        name = type(self).__name__
        if given and all(isinstance(g, tuple) for g in given):
            pairs = [(g, p) for g, p in given]
            self._chosen([p for _, p in pairs])
        elif len(given) == len(self.parameters):
            pairs = list(zip(given, self.parameters))
        else:
            raise ArgumentError(
                f"{name}.apply_gradients: {len(given)} gradients for {len(self.parameters)} "
                "parameters"
            )
        for g, p in pairs:
            if not isinstance(g, Tensor) or g.dtype != p.dtype or g.ndim != p.ndim:
                raise ArgumentError(
                    f"{name}.apply_gradients: the gradient of {_label(p)} must have the type "
                    f"{p.type}, got {g!r} (declared at {locs_text(p.node.locs)})"
                )
        return pairs

    # --- the dynamic mode ---

    def step(self, closure: Any = None) -> Any:
        """Updates the parameters along their `.grad`, by one native call for all of them.

        Parameters whose gradient is None stay as they are. `closure`, if given, computes the loss
        and its gradients first; its result is returned.
        """
        self._check_current(self._given())
        loss = None if closure is None else closure()
        given = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if given:
            self._apply(given, [p.grad for p in given])
        elif all(dynamic.is_tensor(p) and hasattr(p, "assign") for p in self._given()):
            raise ArgumentError(
                f"{type(self).__name__}.step: no Variable has a gradient; use "
                "apply_gradients(zip(tape.gradient(loss, variables), variables))"
            )
        return loss

    def _given(self) -> list[Any]:
        return [p for group in self.param_groups for p in group["params"]]

    def _apply(self, params: list[Any], grads: list[Any]) -> None:
        chosen = tuple(self._static(p) for p in params)
        program = self._programs.get(chosen)
        if program is None:
            program = self._programs[chosen] = Step(self, params)
        program.run(params, grads)

    def _apply_values(self, grads: list[Any]) -> None:
        """One step along eager tensors."""
        name, own = type(self).__name__, self._given()
        if all(isinstance(g, tuple) and len(g) == 2 for g in grads):
            pairs = grads
        elif len(grads) == len(own):
            pairs = list(zip(grads, own))
        else:
            raise ArgumentError(
                f"{name}.apply_gradients: {len(grads)} gradients for {len(own)} parameters"
            )
        known, seen = {id(p) for p in own}, set()
        for g, p in pairs:
            if id(p) not in known:
                raise ArgumentError(f"{name}: {p!r} is not among this optimiser's parameters")
            if id(p) in seen:
                raise ArgumentError(f"{name}.apply_gradients: {p!r} is given twice")
            seen.add(id(p))
            if g is not None and not dynamic.is_tensor(g):
                raise ArgumentTypeError(
                    f"{name}.apply_gradients: expected eager tensors, got {g!r} beside them"
                )
        there = [(g, p) for g, p in pairs if g is not None]
        read = dynamic.package().eager_of
        self._apply([p for _, p in there], [read(g, "apply_gradients") for g, _ in there])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the parameters' `.grad`: to None, or to zeros in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if set_to_none:
                    p.grad = None
                else:
                    p.grad = p.grad.detach()
                    p.grad.zero_()

    # --- checkpoints ---

    def _state(self) -> dict[str, Parameter]:
        named: dict[str, Parameter] = {}
        if self._step is not None:
            named["step"] = self._step
        for i, group in enumerate(self.param_groups):
            named[f"param_groups.{i}.lr"] = group.rate
        for i, p in enumerate(self.parameters):
            for name, slot in self._slots[p].items():
                named[f"state.{i}.{name}"] = slot
        return named

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of this optimiser's state (step, rates, slots by the parameter's number) as a flat
        dict of arrays, for `sg.save`."""
        return {name: value.numpy() for name, value in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the state from `state_dict()`. Nothing is written unless everything fits; raises
        `StateError` that names what is missing, surplus, or of another type."""
        if not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(
                f"load_state_dict: expected a dict of arrays, got {type(state_dict).__name__}"
            )
        own = self._state()
        problems = [f"missing key: {name}" for name in own if name not in state_dict]
        problems += [f"surplus key: {name}" for name in state_dict if name not in own]
        fitting = []
        for name, value in own.items():
            if name not in state_dict:
                continue
            array = to_array(np.asarray(state_dict[name]))
            try:
                if array.shape != tuple(value.cell.shape):
                    raise ConversionError(f"{array.dtype}{list(array.shape)}")
                fitting.append((value, cast_checked(array, value.dtype.numpy)))
            except ConversionError as error:
                problems.append(f"{name}: expected {value.type}, got {error}")
        if problems:
            lines = "\n  ".join(problems)
            raise StateError(f"load_state_dict of {type(self).__name__}:\n  {lines}")
        for value, array in fitting:
            value.assign(array)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def _check_loss(loss: Any, what: str) -> None:
    """Refuses what is no scalar of a graph, with what serves instead."""
    if dynamic.is_tensor(loss):
        raise ArgumentTypeError(
            f"{what}: the loss is an eager tensor, which has a value already; use loss.backward() "
            "and step()"
        )
    if isinstance(loss, Tensor):
        mend = "" if loss.ndim == 0 else "; reduce it with .mean() or .sum()"
        if not loss.dtype.is_float:
            mend = "; only floats have a gradient"
        if mend:
            raise DifferentiationError(
                f"{what}: the loss must be a floating scalar, got {loss.type}{mend}"
            )
        return
    mend = ""
    if callable(loss):
        mend = (
            "; call it with inputs of the graph, minimize(f(x, y)), or take sg.value_and_grad(f) "
            "and apply_gradients"
        )
    elif isinstance(loss, (list, tuple)):
        mend = "; add the losses up, with a weight each"
    raise ArgumentTypeError(
        f"{what}: the loss must be a tensor of a graph, got {shown(loss)}{mend}"
    )


def _groups(params: Any) -> list[Mapping[str, Any]]:
    """PyTorch's `params`: parameters, or dicts with "params"."""
    if isinstance(params, Tensor) or dynamic.is_tensor(params):
        raise ArgumentTypeError("an optimiser is given a list of parameters, not one tensor")
    if isinstance(params, Mapping):
        raise ArgumentTypeError(
            "an optimiser is given a list of parameters, not a dict; pass its values()"
        )
    try:
        given = list(params)
    except TypeError:
        raise ArgumentTypeError(
            f"an optimiser is given a list of parameters, got {type(params).__name__}"
            + ("; pass its parameters()" if hasattr(params, "parameters") else "")
        ) from None
    if not given:
        raise ArgumentError("an optimiser got an empty list of parameters")
    if all(isinstance(g, Mapping) for g in given):
        return given
    return [{"params": given}]


__all__ = ["Optimizer", "Updates"]
