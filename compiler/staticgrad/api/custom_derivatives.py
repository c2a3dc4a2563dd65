"""`custom_vjp` and `custom_jvp`: functions whose derivative the user writes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.closing import close, placeholders
from staticgrad.ops.custom_rules import JvpRule, VjpRule
from staticgrad.ops.elementwise import zeros_as
from staticgrad.ops.public import public, shown
from staticgrad.ops.registry import make
from staticgrad.ops.tensor import Tensor

from . import pytree
from .arguments import ARRAYS, moved_like, output_leaf, output_leaves
from .trace import Traced

Function = Callable[..., Any]


class _Custom:
    """What both kinds share: the call, which makes a node that holds the function's graph."""

    kind: str

    def __init__(self, fn: Function, nondiff_argnums: int | Sequence[int] = ()) -> None:
        if not callable(fn):
            raise ArgumentTypeError(f"{self.kind}: expected a function, got {shown(fn)}")
        given = (nondiff_argnums,) if isinstance(nondiff_argnums, int) else tuple(nondiff_argnums)
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self._call = Traced(
            fn, self._build, label=self.kind, static_argnums=given, is_operation=True
        )
        self._fixed = sorted(self._call.static_positions)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._call(*self._positional(args, kwargs))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments in order, with defaults: the rules take them so."""
        if not kwargs and len(args) == len(self._call.parameter_names):
            return args
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise ArgumentTypeError(
                f"{self.kind}: {self._call.__name__} has arguments that can only be given by name "
                f"({', '.join(bound.kwargs)}), which its rules can't take"
            )
        return bound.args

    def _build(self, *args: Any) -> Any:
        rule_of = self._rule_maker()
        leaves, form = pytree.flatten([a for i, a in enumerate(args) if i not in self._fixed])
        fixed = {i: args[i] for i in self._fixed if i < len(args)}
        for v in leaves:
            if not isinstance(v, ARRAYS):
                raise ArgumentTypeError(
                    f"{self.kind}: {self._call.__name__} was called with {shown(v)}, which is no "
                    "array; name its argument in nondiff_argnums"
                )
        operands = [output_leaf(v, "an argument", self.kind) for v in leaves]
        inputs = placeholders("a", [v.type for v in operands])
        since = inputs[0].node.id if inputs else 0
        outputs, out_form, _ = output_leaves(
            self.fn(*_joined(fixed, pytree.unflatten(form, inputs))), self.kind
        )
        body, captured = close(inputs, outputs, since)
        rule = rule_of(_Signature(self._call.__name__, fixed, form, out_form, outputs))
        attrs = {"body": body, "arguments": len(inputs)}
        node = make(self.kind, [*operands, *captured], attrs, payload=rule)
        return pytree.unflatten(out_form, node.results)

    @property
    def rules(self) -> list[Function]:
        """The user's rules that were set."""
        given = (getattr(self, name, None) for name in ("_fwd", "_bwd", "_jvp"))
        return [f for f in given if f is not None]

    def _rule_maker(self) -> Callable[[_Signature], Any]:
        raise NotImplementedError


def _joined(fixed: dict[int, Any], others: Sequence[Any]) -> list[Any]:
    """The arguments in order, from those that are fixed and the others."""
    rest = iter(others)
    return [fixed[i] if i in fixed else next(rest) for i in range(len(fixed) + len(others))]


class _Signature:
    """One call of a custom function: what turns flat lists into what the user's rules take."""

    def __init__(
        self, name: str, fixed: dict[int, Any], form: pytree.Structure,
        out_form: pytree.Structure, outputs: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self.name, self.fixed, self.form, self.out_form = name, fixed, form, out_form
        self.types = [t.type for t in outputs]

    def arguments(self, leaves: Sequence[Any]) -> list[Any]:
        return _joined(self.fixed, pytree.unflatten(self.form, leaves))

    def outputs(self, result: Any, rule: str) -> list[Tensor]:
        """The flat results of a rule, which must be those of the function."""
        leaves, form, _ = output_leaves(result, rule)
        if form != self.out_form:
            raise ArgumentError(
                f"{rule} of {self.name} must return what the function returns; "
                f"{pytree.difference(self.out_form, form, ('the function', 'the rule'))}"
            )
        for t, wanted in zip(leaves, self.types):
            if t.dtype != wanted.dtype or t.ndim != wanted.ndim:
                raise ArgumentError(
                    f"{rule} of {self.name} returned {t.type} where the function returns {wanted}"
                )
        return leaves


class custom_vjp(_Custom):
    """A function with a reverse-mode derivative of its own.

        @sg.custom_vjp
        def f(x, y): ...
        def f_fwd(x, y): return f(x, y), residuals
        def f_bwd(residuals, ct): return ct_x, ct_y
        f.defvjp(f_fwd, f_bwd)

    f_fwd returns the function's result and a tree of what f_bwd needs; f_bwd gets that tree and the
    cotangent of the result, and returns a tuple with one cotangent for each argument (None: zero).
    Arguments in `nondiff_argnums` are taken as they are; f_bwd gets them first.

    Forward mode through the function raises `DifferentiationError`, as does differentiation by what
    it reads from outside; forward over reverse mode (a Hessian) goes through the rules, and through
    the function itself where they call it. The semantics of jax.custom_vjp.
    """

    kind = "custom_vjp"
    _fwd: Function | None = None
    _bwd: Function | None = None

    @public
    def defvjp(self, fwd: Function, bwd: Function) -> None:
        """Sets the rules; see the class."""
        for f in (fwd, bwd):
            if not callable(f):
                raise ArgumentTypeError(f"defvjp: expected two functions, got {shown(f)}")
        self._fwd, self._bwd = fwd, bwd

    def _rule_maker(self) -> Callable[[_Signature], VjpRule]:
        fwd, bwd = self._fwd, self._bwd
        if fwd is None or bwd is None:
            raise ArgumentError(
                f"custom_vjp: {self._call.__name__} has no rules yet; call "
                f"{self._call.__name__}.defvjp(fwd, bwd) first"
            )
        return lambda signature: _vjp_rule(signature, fwd, bwd)


def _vjp_rule(s: _Signature, fwd: Function, bwd: Function) -> VjpRule:
    def forward(operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Any], Any]:
        found = fwd(*s.arguments(operands))
        if not isinstance(found, tuple) or len(found) != 2:
            raise ArgumentTypeError(
                f"fwd of {s.name} must return a pair (result, residuals), got {shown(found)}"
            )
        residuals, form = pytree.flatten(found[1])
        return s.outputs(found[0], "fwd"), residuals, (form, list(operands))

    def backward(
        known: Any, residuals: Sequence[Any], cotangents: Sequence[Tensor]
    ) -> list[Tensor | None]:
        form, operands = known
        given = pytree.unflatten(s.out_form, cotangents)
        found = bwd(*s.fixed.values(), pytree.unflatten(form, residuals), given)
        count = len(s.form.children)
        if not isinstance(found, tuple) or len(found) != count:
            raise ArgumentTypeError(
                f"bwd of {s.name} must return a tuple with a cotangent for each of its {count} "
                f"arguments, got {shown(found) if not isinstance(found, tuple) else len(found)}"
            )
        return _cotangents(s, found, operands)

    return VjpRule(s.name, forward, backward)


def _cotangents(
    s: _Signature, found: tuple[Any, ...], operands: Sequence[Tensor]
) -> list[Tensor | None]:
    """What bwd returned, flat; None for integers and where it says None."""
    result: list[Tensor | None] = []
    for given, child in zip(found, s.form.children):
        own = operands[len(result) : len(result) + child.num_leaves]
        if given is None:
            result += [None] * child.num_leaves
            continue
        names = pytree.paths(child, f"argument {len(result)} of {s.name}")
        holes = [not v.dtype.is_float for v in own]
        if any(holes):  # None stands where an integer has no cotangent
            leaves = pytree.leaves(given, lambda v: v is None)
            result += [None if hole else v for v, hole in zip(leaves, holes)]
            continue
        result += moved_like(given, own, child, names, "cotangent", "bwd")
    return result


class custom_jvp(_Custom):
    """A function with a forward-mode derivative of its own, which serves reverse mode as well.

        @sg.custom_jvp
        def f(x, y): ...
        @f.defjvp
        def f_jvp(primals, tangents): return f(*primals), tangent

    The rule gets the arguments and their tangents as tuples, and returns the result and its
    tangent, linear in the tangents. `f.defjvps(rule_x, rule_y)` takes one rule (tangent, result,
    *arguments) for each argument instead (None: zero). Arguments in `nondiff_argnums` are taken as
    they are; the rule gets them first. The semantics of jax.custom_jvp.
    """

    kind = "custom_jvp"
    _jvp: Function | None = None

    @public
    def defjvp(self, jvp: Function) -> Function:
        """Sets the rule; see the class. Returns it, so that this is a decorator."""
        if not callable(jvp):
            raise ArgumentTypeError(f"defjvp: expected a function, got {shown(jvp)}")
        self._jvp = jvp
        return jvp

    @public
    def defjvps(self, *jvps: Function | None) -> None:
        """Sets one rule for each argument: (tangent, result, *arguments) -> tangent."""
        if self._fixed:
            raise ArgumentError("defjvps: a function with nondiff_argnums takes defjvp")
        count = len(self._call.parameter_names)
        if len(jvps) != count or not all(j is None or callable(j) for j in jvps):
            raise ArgumentTypeError(
                f"defjvps: expected a function or None for each of {count} arguments, got {jvps!r}"
            )

        def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
            out = self(*primals)
            terms = [j(t, out, *primals) for j, t in zip(jvps, tangents) if j is not None]
            if not terms:
                return out, pytree.map(lambda v: zeros_as(v.type), out)
            total = terms[0]
            for term in terms[1:]:
                total = pytree.map(lambda a, b: a + b, total, term)
            return out, total

        self._jvp = jvp

    def _rule_maker(self) -> Callable[[_Signature], JvpRule]:
        jvp = self._jvp
        if jvp is None:
            raise ArgumentError(
                f"custom_jvp: {self._call.__name__} has no rule yet; call "
                f"{self._call.__name__}.defjvp(rule) first"
            )
        return lambda signature: _jvp_rule(signature, jvp)


def _jvp_rule(s: _Signature, jvp: Function) -> JvpRule:
    def push(operands: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        primals = tuple(pytree.unflatten(s.form, operands))
        moved = tuple(pytree.unflatten(s.form, tangents))
        found = jvp(*s.fixed.values(), primals, moved)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ArgumentTypeError(
                f"the rule of {s.name} must return a pair (result, tangent), got {shown(found)}"
            )
        s.outputs(found[0], "the rule")
        return s.outputs(found[1], "the rule (its tangent)")

    return JvpRule(s.name, push)


__all__ = ["custom_jvp", "custom_vjp"]
