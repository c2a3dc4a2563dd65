"""`jit`: a function of arrays becomes compiled programs, one for each kind of call.

The function runs once with tensors in place of its arrays, which records a graph; the graph is
compiled and serves later calls of the same kind. What a call's kind is: the structure of its
arguments, dtypes, ranks and sizes of arrays, the types of Python numbers, and static values.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from staticgrad_runtime.executable import DECLINED
from staticgrad_runtime.forks import ForkSafeLock
from staticgrad_runtime.workers import thread_count

from staticgrad.ir.dim import Dim, size_reader
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, GraphError, StaticgradError
from staticgrad.ir.graph import Graph, reachable
from staticgrad.ir.node import Value
from staticgrad.ops import leaves as graph_leaves
from staticgrad.ops.convert import as_tensor, constant_array
from staticgrad.ops.public import checked_scalar, dynamic, locate, public, shown
from staticgrad.ops.tensor import Tensor
from staticgrad.ops.values import is_known, known_values
from staticgrad.ops.weak import weak_type

from . import pytree
from .call import (
    BY_TYPE,
    NUMBERS,
    Arguments,
    Static,
    as_static,
    glance,
    kind_text,
    name_at,
    normal,
    parameters,
    static_places,
    unwrapped,
)
from .captured import captured_by
from .compile import Executable, compile_graph
from .family import Entry, Family, Pattern, groups_of, symbols_of
from .fast_call import MOST_FORMS, Form, Served
from .foreign import foreign_of
from .recorder import Recorder
from .report import Report

if TYPE_CHECKING:
    from .profile import Profile

_MOST_ENTRIES = 256  # of one function; the oldest goes when a Python number is read in each call
_MOST_GLANCES = 4096
_PYTHON = {"b": "bool", "i": "int", "f": "float"}  # arguments that are weak numbers


def tracing() -> bool:
    """Whether a function is being traced: transforms that are called then build graph."""
    return size_reader.get() is not None


# An entry, which leaves are its inputs (None: all), its symbols' sizes, and what serves it fast.
_Known = tuple[Entry, list[int] | None, dict[str, int], Served | None]


class Traced:
    """A function that is traced and compiled when it is called with arrays, and that builds graph
    when it is called with tensors of a graph."""

    def __init__(
        self, fn: Callable[..., Any], build: Callable[..., Any], *, label: str = "jit",
        static_argnums: Sequence[int] = (), static_argnames: Sequence[str] = (),
        is_operation: bool = False, training: bool | None = None, threads: int | None = None,
    ) -> None:  # fmt: skip
        # An operation builds graph on constants too, as sg.sin does; a transform computes.
        self.is_operation = is_operation
        functools.update_wrapper(self, fn, updated=())
        self.__name__: str = getattr(fn, "__name__", type(fn).__name__)
        self.fn, self.build, self.label = fn, build, label
        self._training, self._threads = training, threads
        self._parameters = parameters(fn)
        self._static = static_places(label, fn, tuple(static_argnums), tuple(static_argnames))
        self._marks = any(self._static)
        self._families: dict[Hashable, Family] = {}
        self._forms: tuple[Form, ...] = ()  # of earlier calls, the last one first
        self._known: dict[Hashable, tuple[_Known, ...]] = {}  # calls by what is seen at a glance
        self._order: list[tuple[Family, Entry]] = []
        self._last: Arguments | None = None
        self._lock = ForkSafeLock()

    # Calls

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        forms = self._forms
        if forms and size_reader.get() is None:
            try:
                marked = self._mark_static(args, kwargs) if self._marks else (args, kwargs)
            except ArgumentTypeError:
                return self._call(args, kwargs)  # raises it at the user's line
            for form in forms:
                leaves = form.leaves(*marked)
                if leaves is None:
                    continue
                found = form.serve(leaves)
                if found is DECLINED:
                    found = self._served(form, leaves)
                if found is not DECLINED:
                    if form is not forms[0]:
                        self._forms = (form, *(f for f in forms if f is not form))
                    return found
        return self._call(args, kwargs)

    def _served(self, form: Form, leaves: Sequence[Any]) -> Any:
        """The result of a call that is known at a glance, else DECLINED."""
        try:
            known = self._known.get((form.structure, glance(leaves)), ())
        except TypeError:  # an unhashable leaf
            return DECLINED
        for entry, picked, sizes, served in known:
            inputs = leaves if picked is None else [leaves[i] for i in picked]
            if entry.captured and entry.changed_variable() is not None:
                continue
            if entry.number_guards and not entry.numbers_hold(sizes, inputs):
                continue
            arrays = entry.arrays(inputs)
            if arrays is not None:
                if served is not None:
                    form.add(served)
                return _run(entry, arrays)
        return DECLINED

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    @public
    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, structure = pytree.flatten(self._mark_static(args, kwargs))
        if tracing():
            return self.build(*args, **kwargs)
        if any(isinstance(v, Value) for v in leaves):
            evaluated = None if self.is_operation else _evaluated(leaves)
            if evaluated is None:
                return self.build(*args, **kwargs)
            leaves = evaluated
        flat = not kwargs and len(args) == len(leaves) and all(map(operator.is_, args, leaves))
        form = self._form(None if flat else structure, len(leaves))
        found = self._served(form, leaves)
        if found is not DECLINED:
            return found
        paths = pytree.call_paths(structure, self.name_of)
        foreign = foreign_of(leaves)
        given = [v if foreign is None else foreign.array_of(v) for v in leaves]
        usual = [normal(v, path, self.label) for v, path in zip(given, paths)]
        call = Arguments(usual, structure, paths, compiled=foreign is None)
        with self._lock:
            family, reason = self._family(call)
            entry = self._entry_for(family, call, reason)
        if entry is None:
            return self._inline(call)
        if foreign is not None:
            inputs = [v for v, n in zip(leaves, usual) if not isinstance(n, Static)]
            return pytree.unflatten(entry.form, foreign.run(entry.in_mode(self._training), inputs))
        if entry.executable is None:  # traced for foreign tensors
            self._compile(entry)
        self._remember(form, leaves, call, entry)
        arrays = entry.arrays(call.inputs)
        assert arrays is not None  # `normal` has refused numbers that do not fit
        return _run(entry, arrays)

    def _form(self, structure: pytree.Structure | None, count: int) -> Form:
        """What is known of calls of a structure, or of so many arguments that are leaves."""
        for form in self._forms:
            if form.count == count and form.structure == structure:
                return form
        made = Form(structure, count)
        self._forms = (made, *self._forms[: MOST_FORMS - 1])
        return made

    def _remember(self, form: Form, leaves: Sequence[Any], call: Arguments, entry: Entry) -> None:
        """Lets the next such call be known, at once or at a glance."""
        for leaf, usual in zip(leaves, call.leaves):
            told = type(leaf) in BY_TYPE or type(leaf) is np.ndarray
            static = type(usual) is Static
            if static == told or (leaf is not usual and not static and type(leaf) not in BY_TYPE):
                return  # a glance does not tell it, or it needs conversion
        positions = [i for i, v in enumerate(call.leaves) if not isinstance(v, Static)]
        picked = None if len(positions) == len(leaves) else positions
        key = (form.structure, glance(leaves))
        served = Served.of(entry, leaves, call)
        if served is not None:
            form.add(served)
        known = [k for k in self._known.get(key, ()) if k[0] is not entry]
        if len(self._known) >= _MOST_GLANCES:
            self._known.clear()
        self._known[key] = ((entry, picked, entry.sizes(call.shapes) or {}, served), *known)

    def _inline(self, call: Arguments) -> Any:
        """The graph of a call whose function reads tensors of a graph that is being declared."""
        values = [constant_array(v) if isinstance(v, np.ndarray) else v for v in call.leaves]
        args, kwargs = pytree.unflatten(call.form, map(unwrapped, values))
        return self.build(*args, **kwargs)

    def _mark_static(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._marks:
            return args, kwargs
        numbers, names = self._static
        marked = tuple(as_static(v, self.label, self.name_of(i)) if i in numbers else v
                       for i, v in enumerate(args))  # fmt: skip
        named = {k: as_static(v, self.label, k) if k in names else v for k, v in kwargs.items()}
        return marked, named

    # Kinds of calls

    def _family(self, call: Arguments) -> tuple[Family, str]:
        """The traces of calls of this kind, and if there are none yet the reason for one."""
        key = (call.form, call.kinds)
        family, reason = self._families.get(key), ""
        if family is None:
            family = self._families[key] = Family(call.array_names)
            reason = self._kind_change(call)
        self._last = call
        return family, reason

    def _kind_change(self, call: Arguments) -> str:
        last = self._last
        if last is None:
            return "first call"
        if call.form != last.form:
            change = pytree.difference(last.form, call.form, ("the last call", "this one"))
            return f"arguments: {change}"
        return "; ".join(
            f"argument {path}{' (static)' if isinstance(new, Static) else ''}: "
            f"{kind_text(old)} -> {kind_text(new)}"
            for path, old, new in zip(call.paths, last.kinds, call.kinds)
            if old != new
        )

    def _entry_for(self, family: Family, call: Arguments, reason: str) -> Entry | None:
        """The trace that serves a call, an old one or a new one; None as by `_trace`."""
        shapes, numbers = call.shapes, call.inputs
        failure = ""
        for entry in reversed(family.entries[:]):
            sizes = entry.sizes(shapes)
            if sizes is None:
                continue
            changed = entry.changed_variable()
            if changed is None:
                failed = entry.failed_guard(sizes, numbers)
                if failed is None:
                    return entry
            else:
                self._forget(family, entry)
                failed = (
                    f"the variable {changed}, which the function reads, changed; make it an "
                    "argument to trace only once"
                )
            failure = failure or failed
        family.observe(shapes)
        pattern = family.pattern(shapes)
        reason = reason or failure or family.change(shapes, pattern)
        made = self._traced(family, pattern, call, reason)
        if made is None:
            return None
        family.entries.append(made)
        self._order.append((family, made))
        if len(self._order) > _MOST_ENTRIES:
            oldest = self._order[0][0]
            self._forget(*self._order[0])
            if not oldest.entries:
                self._families = {k: f for k, f in self._families.items() if f is not oldest}
        return made

    def _forget(self, family: Family, entry: Entry) -> None:
        family.entries = [e for e in family.entries if e is not entry]
        self._order = [(f, e) for f, e in self._order if e is not entry]
        for key, known in list(self._known.items()):
            self._known[key] = tuple(k for k in known if k[0] is not entry)
        for form in self._forms:
            form.forget(entry)

    # Traces

    def _traced(
        self, family: Family, pattern: Pattern, call: Arguments, reason: str
    ) -> Entry | None:
        """A trace with symbols where the pattern has them, else at the call's own sizes."""
        symbolic, shapes = groups_of(pattern), call.shapes
        if not symbolic:
            return self._trace(pattern, call, reason)
        made = self._attempt(pattern, call, reason)
        if made is None or isinstance(made, Entry):
            return made
        if isinstance(made, str):  # the answers at this size are not those of the symbols
            return self._trace(shapes, call, f"{reason}; {made}, so traced with ints")
        failed = {axis for group in symbolic for axis in group}
        if len(symbolic) > 1:
            for group in symbolic:
                others = {axis for other in symbolic if other is not group for axis in other}
                alone = family.pattern(shapes, family.exact_axes | others)
                if not isinstance(self._attempt(alone, call, reason), Exception):
                    failed -= group
        why = f"{type(made).__name__}: {str(made).splitlines()[0] if str(made) else ''}"
        family.exact_axes |= failed
        reason = f"{reason}; tracing with symbols failed ({why}), so traced with ints"
        entry = self._attempt(family.pattern(shapes), call, reason)
        return entry if isinstance(entry, Entry) else self._trace(shapes, call, reason)

    def _attempt(
        self, pattern: Pattern, call: Arguments, reason: str
    ) -> Entry | Exception | str | None:
        """A trace, or why there is none: the error, or the answer that does not hold."""
        # Whatever the user's function raises over a symbol where it expects an int: the same call
        # is traced with ints then, which raises what is wrong with the program itself.
        try:
            entry = self._trace(pattern, call, reason)
        except Exception as error:
            return error
        if entry is None:
            return None
        failed = entry.failed_guard(symbols_of(pattern, call.shapes), call.inputs)
        return entry if failed is None else failed

    def _trace(self, pattern: Pattern, call: Arguments, reason: str) -> Entry | None:
        """Runs the function on tensors. None where the result reads inputs that somebody else
        declared, so that there is nothing to compile."""
        recorder = Recorder(symbols_of(pattern, call.shapes))
        fixed = [(p, v.value) for p, v in zip(call.paths, call.leaves) if isinstance(v, Static)]
        captured = captured_by(self.fn, self.label != "jit", fixed)
        inputs, values, numbers = _inputs_of(recorder, call, pattern)
        token = size_reader.set(recorder)
        eager = dynamic.inside.set(False)  # parameters are state, whoever calls
        try:
            args, kwargs = pytree.unflatten(call.form, values)
            result, form = pytree.flatten(self.build(*args, **kwargs))
            outputs = _outputs_of(result, form, self.label)
        finally:
            dynamic.inside.reset(eager)
            size_reader.reset(token)
        if _reads_others(inputs, outputs):
            return None
        captured = [c for c in captured if c.unchanged()]  # not what the function itself changes
        graph = Graph(inputs, outputs, single=form is pytree.LEAF)
        guards = list(recorder.guards.values())
        entry = Entry(pattern, graph, form, guards, numbers, captured, reason)
        if call.compiled:
            self._compile(entry)
        return entry

    def _compile(self, entry: Entry) -> None:
        if not entry.graph.outputs:
            entry.run = entry.executable = lambda *arrays: ()
            return
        made = compile_graph(entry.graph, training=self._training, threads=self._threads)
        made.declines = made.is_native
        entry.run = made.checked if made.declines else made
        entry.executable = made

    # Names

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The positional parameters."""
        return self._parameters[0]

    @property
    def static_positions(self) -> frozenset[int]:
        """The positions of static arguments."""
        return self._static[0]

    def name_of(self, position: int) -> str:
        """How a user would write the argument at a position."""
        return name_at(self._parameters, position)

    # What is known

    @property
    def cache_entries(self) -> list[str]:
        """The reason of each trace that is kept, in order."""
        return [entry.reason for _, entry in self._order]

    def explain_cache(self) -> str:
        """Each trace that is kept: what it serves, and why it was made."""
        if not self._order:
            return f"{self.__name__}: not traced yet"
        count = len(self._order)
        lines = [f"{self.__name__}: {count} trace{'' if count == 1 else 's'}"]
        for number, (_, entry) in enumerate(self._order, 1):
            weak = {at: np.dtype(dtype).kind for at, dtype in entry.numbers}
            inputs = ", ".join(
                f"{v.node.attrs['name']}: {_PYTHON[weak[at]] if at in weak else v.type}"
                for at, v in enumerate(entry.graph.inputs)
            )
            outputs = ", ".join(str(v.type) for v in entry.graph.outputs)
            lines.append(f"{number}. ({inputs}) -> ({outputs})")
            lines.append(f"   because: {entry.reason}")
            lines += [
                f"   only if: {g.text} is {g.answer!r}" + (f" ({g.where})" if g.where else "")
                for g in entry.guards
            ]
        return "\n".join(lines)

    @public
    def report(self, trace: int | None = None, /, **dims: int) -> Report:
        """The report of a compiled trace, as `sg.compile`'s program has it: kernels, flops, bytes,
        memory, compile time. Traces are numbered as in `explain_cache()`; without a number it is
        that of the last. Sizes in `dims` fill in symbolic ones, as in `report(x_0=128)`.

        Raises `ArgumentError` where nothing is compiled yet, and for a number that no program has,
        `BindError` for a name that is none of its sizes'.
        """
        entries = enumerate((entry.executable for _, entry in self._order), 1)
        programs = {n: found for n, found in entries if isinstance(found, Executable)}
        if not programs:
            raise ArgumentError(
                f"report: nothing of {self.__name__} is compiled yet: call it with arrays first"
            )
        number = max(programs) if trace is None else trace
        if number not in programs:
            known = ", ".join(map(str, programs))
            raise ArgumentError(
                f"report: {self.__name__} has no program {number}; of the traces that "
                f"explain_cache() lists these have one: {known}"
            )
        return programs[number].report(**dims)

    @public
    def profile(
        self, /, *args: Any, seconds: float = 0.5, threads: int | None = None, **kwargs: Any
    ) -> Profile:
        """Where the time of a call with these arguments goes, kernel by kernel, as the `profile` of
        `sg.compile`'s program has it; a call of a new kind is traced and compiled first."""
        leaves, form = pytree.flatten(self._mark_static(args, kwargs))
        if tracing() or any(isinstance(v, Value) for v in leaves):
            raise ArgumentTypeError(f"profile: {self.__name__} is to be given arrays, not tensors")
        paths = pytree.call_paths(form, self.name_of)
        usual = [normal(v, path, self.label) for v, path in zip(leaves, paths)]
        call = Arguments(usual, form, paths)
        with self._lock:
            family, reason = self._family(call)
            entry = self._entry_for(family, call, reason)
        if entry is not None and entry.executable is None:  # traced for foreign tensors
            self._compile(entry)
        if entry is None or not isinstance(entry.executable, Executable):
            raise ArgumentError(f"profile: {self.__name__} has no program of its own to be timed")
        arrays = entry.arrays(call.inputs)
        assert arrays is not None  # `normal` has refused numbers that do not fit
        return entry.executable.profile(*arrays, seconds=seconds, threads=threads)

    def __repr__(self) -> str:
        return f"<{self.label} of {self.__name__}>"


# Graphs


def _inputs_of(
    recorder: Recorder, call: Arguments, pattern: Pattern
) -> tuple[list[Tensor], list[Any], list[tuple[int, np.dtype[Any]]]]:
    """Inputs of the graph, what the function gets for each leaf, and which inputs are numbers."""
    inputs: list[Tensor] = []
    values: list[Any] = []
    numbers = []
    shapes = iter(pattern)
    for leaf, path in zip(call.leaves, call.paths):
        if isinstance(leaf, Static):
            values.append(leaf.value)
            continue
        if isinstance(leaf, np.ndarray):
            value: Tensor = graph_leaves.input(path, next(shapes), leaf.dtype)
        else:
            dtype = weak_type(leaf).dtype
            numbers.append((len(inputs), dtype.numpy))
            value = recorder.argument(path, len(inputs), leaf, graph_leaves.input(path, (), dtype))
        inputs.append(value)
        values.append(value)
    _traced_ids.update(v.node.attrs["id"] for v in inputs)
    return inputs, values, numbers


# Inputs of traces: one that turns up in another trace was kept by the function.
_traced_ids: set[int] = set()


def _evaluated(leaves: Sequence[Any]) -> list[Any] | None:
    """The leaves with arrays in place of tensors that follow from constants, such as random keys;
    None where there are others, which belong to a graph that is being declared."""
    tensors = [v for v in leaves if isinstance(v, Value)]
    if not all(map(is_known, tensors)):
        return None
    values = iter(known_values(tensors))
    return [next(values) if isinstance(v, Value) else v for v in leaves]


def _reads_others(inputs: Sequence[Value], outputs: Sequence[Value]) -> bool:
    """Whether outputs depend on inputs of a graph that is being declared around the call."""
    own = {v.node for v in inputs}
    others = [n for n in reachable(outputs) if n.op == "input" and n not in own]
    for n in others:
        if n.attrs["id"] in _traced_ids:
            raise GraphError(
                f"the result depends on {n.attrs['name']!r}, an argument of an earlier trace: a "
                "function that is traced must return what it computes, not keep it"
            )
    return bool(others)


def _outputs_of(result: Iterable[Any], form: pytree.Structure, label: str) -> list[Tensor]:
    outputs = []
    for value, path in zip(result, pytree.paths(form, "result")):
        if isinstance(value, (Tensor, Dim, np.ndarray, np.generic, *NUMBERS)):
            outputs.append(as_tensor(value))
        else:
            raise ArgumentTypeError(
                f"{label}: {path} is {shown(value)}; a traced function returns tensors, arrays and "
                "numbers, alone or in trees"
            )
    return outputs


# Running


def _run(entry: Entry, arrays: Sequence[Any]) -> Any:
    try:
        found = entry.run(*arrays)
    except StaticgradError as error:
        locate(error)
        raise
    form = entry.form
    if form is pytree.LEAF:
        return found
    return pytree.unflatten(form, found)


# jit


def _listed(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (int, str)) else tuple(value)


def jit(
    fn: Callable[..., Any] | None = None, *, static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (), training: bool | None = None,
    threads: int | None = None,
) -> Any:  # fmt: skip
    """`fn`, traced and compiled: a call with arrays runs one native program.

    fn               a function of arrays and numbers, alone or in trees (`sg.tree`), that returns
                     the same and has no other effect, since it runs only when it is traced
    static_argnums   positions of arguments that the function gets as they are; a call with another
    static_argnames  value is traced again. They must be hashable. Strings, functions, None and
                     other hashable objects that are no numbers are static by themselves
    training         the mode of dropout and batch norm in the function, as `compile` has it: True
                     also writes running statistics; None and False: evaluation, as nothing is
                     updated. What `model.train()` or `model.eval()` fixed stays. Where the function
                     is traced as a part of another one, that one's mode
    threads          how many a call may use, as `compile` has it; None: STATICGRAD_NUM_THREADS,
                     else all cores that this process may use. Where the function is traced as a
                     part of another one, that one's count

    Python numbers are values of the program (a new learning rate is not traced again) and stay
    weak: they take the dtype of arrays beside them. Where the function reads one (`range(n)`,
    `if n > 3` with an int n), the trace holds for calls that read the same. Sizes are ints in the
    first trace; an axis that comes with a second size is made symbolic, with the same rule where
    its size is read. Variables from outside that the function reads are watched: when one is bound
    to something else, it is traced again. `fn.explain_cache()` tells each trace and its reason,
    `fn.report()` what the last one's program does and takes, `fn.report(1)` the first one's.

    Called with tensors of a graph, or inside another transform, it builds graph; tensors that
    follow from constants alone, such as `sg.random.key(0)`, are taken as arrays. Raises
    `ArgumentTypeError` for arguments and results that are neither arrays nor trees of them, and
    what the function raises.
    """
    if threads is not None:
        threads = thread_count(checked_scalar(threads, ("int",), "jit: threads"))
    training = checked_scalar(training, ("bool", "None"), "jit: training")
    if fn is None:
        return functools.partial(
            jit, static_argnums=static_argnums, static_argnames=static_argnames,
            training=training, threads=threads,
        )  # fmt: skip
    if not callable(fn):
        raise ArgumentTypeError(f"jit: expected a function, got {shown(fn)}")
    return Traced(
        fn, fn, static_argnums=_listed(static_argnums), static_argnames=_listed(static_argnames),
        training=training, threads=threads,
    )  # fmt: skip


__all__ = ["Traced", "jit", "tracing"]
