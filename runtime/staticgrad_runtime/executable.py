"""A loaded program that is called with arrays.

Two ways lead through a call. The native entry (`sg_entry`, part of the object code) serves what is
exactly as declared: ndarrays of the right dtype, dense, of sizes that the program has been called
with before (`frames`). Anything else (new sizes, lists, names, an `out=` that does not fit,
concurrent calls, errors) comes to `Executable.__call__`, which checks and converts in Python, and
then hands the sizes that it bound over to the native entry. With STATICGRAD_ENTRY=portable in the
environment every call takes that path.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NoReturn

import numpy as np

from .arena import address, aligned_bytes
from .arguments import allocate_outputs, check_out, gather, to_array
from .arrays import Array, byte_range, dense, overlaps
from .artifact import Artifact, Manifest
from .binding import Binder, Binding, Shape, dims_key
from .callcontext import CallContext
from .context import CALL_SYMBOL, ENTRY_SYMBOL, PACK_SYMBOL, REFRESH_SYMBOL, RUN_SYMBOL
from .dims import shape_text
from .environment import portable_entry
from .errors import BindError, ExecutionError, StateError
from .forks import no_fork
from .frames import Frames
from .interrupt import INTERRUPTED, raise_interrupt
from .layout import Head, is_native_class, native_class, native_interface, set_call
from .loader import Library, check_host
from .objects import unpack
from .packed import PackedCopies
from .state import CellLocks, StateCell
from .workers import thread_count

# What a call gives that an executable `declines`.
DECLINED: Any = object()

FailureHook = Callable[[int, int, int, Sequence[Array]], None]

# What an executable and its twins have in common.
_SHARED = (
    "_binder", "_cells", "_constants", "_frames", "_holding", "_library", "_locks", "_native",
    "_packed", "_refresh", "_releasing", "_state_ranges", "_written",
)  # fmt: skip

_executables: weakref.WeakSet[Executable] = weakref.WeakSet()


def _wants_native() -> bool:
    return not portable_entry() and native_interface() is not None


class Executable(Head):
    """A compiled program bound to its state: `executable(*arrays)` runs it once.

    `cells` are the state cells in the manifest's order. `extra_symbols` maps names that the object
    code may use beside the C library's three to addresses, which must outlive the executable.
    `native=False` keeps the native entry out (a program whose steps call back into Python).
    `threads` is how many a run may use, see `workers.thread_count`.

    A call takes the inputs in order or by name and returns an array, or a tuple of arrays, that
    own their memory. `out=` takes arrays to write to instead (one array for a single output, else
    a sequence with None where a new one is wanted). BindError says what does not fit;
    ExecutionError that a step failed, with state unchanged. `on_failure`, if set, is called with
    (code, element, value, arrays) before that error is raised, and may raise a better one.

    `declines`, if set, is for those who ask whether a call is like an earlier one and have ways of
    their own for others: what the native entry does not serve gives DECLINED; `checked` serves it.
    """

    __slots__ = (
        "__weakref__",
        "_binder",
        "_cells",
        "_constants",
        "_contexts",
        "_frames",
        "_free",
        "_holding",
        "_library",
        "_locks",
        "_mutex",
        "_native",
        "_packed",
        "_published",
        "_refresh",
        "_releasing",
        "_retired",
        "_state_ranges",
        "_written",
        "declines",
        "manifest",
        "on_failure",
    )

    def __new__(cls, *args: Any, **named: Any) -> Executable:
        if _wants_native() and not is_native_class(cls):
            cls = native_class(cls)
        return object.__new__(cls)

    def __init__(
        self,
        artifact: Artifact,
        cells: Sequence[StateCell] = (),
        *,
        extra_symbols: Mapping[str, int] | None = None,
        native: bool = True,
        threads: int | None = None,
    ) -> None:
        manifest = artifact.manifest
        check_host(manifest.triple, manifest.features)
        _check_cells(manifest, cells)
        self.manifest = manifest
        self.on_failure: FailureHook | None = None
        self.declines = False
        self._cells = tuple(cells)
        ranges = [byte_range(cell.view()) for cell in cells]
        self._state_ranges = sorted(mine for mine in ranges if mine[0] < mine[1])
        self._written = [cell for cell, spec in zip(cells, manifest.state) if spec.written]
        self._locks = CellLocks((cell, spec.written) for cell, spec in zip(cells, manifest.state))
        self._constants = _load_constants(artifact)
        self._binder = Binder(manifest, thread_count(threads))
        names = (RUN_SYMBOL, CALL_SYMBOL, ENTRY_SYMBOL, PACK_SYMBOL, REFRESH_SYMBOL)
        objects = [*unpack(artifact.object_code), artifact.entry_code]
        objects = [code for code in objects if code]
        self._library = Library(objects, names, extra_symbols or {})
        call = self._library.address(CALL_SYMBOL if CALL_SYMBOL in self._library else RUN_SYMBOL)
        self._releasing = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(call)
        self._holding = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(call)
        self._native = (
            native and _wants_native() and is_native_class(type(self))
            and ENTRY_SYMBOL in self._library
        )  # fmt: skip
        self._packed = PackedCopies(manifest, cells, self._library)
        interface = native_interface() if self._native else None
        self._frames = Frames(manifest, self._packed, interface)
        self._refresh = None  # elsewhere nothing keeps two threads from packing at once
        if manifest.packs and self._native:
            refresh = self._library.address(REFRESH_SYMBOL)
            self._refresh = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(refresh)
        self._contexts: list[CallContext] = []  # all, so that what native code uses stays alive
        self._reset_contexts()
        _executables.add(self)

    def twin(self) -> Executable:
        """Another executable of the same code and state, with contexts of its own: calls at other
        sizes do not take the native entry away from this one's."""
        made = object.__new__(type(self))
        for name in ("declines", "manifest", "on_failure", *_SHARED):
            object.__setattr__(made, name, getattr(self, name))
        if hasattr(self, "__dict__"):  # the compiler's subclass has more to say about itself
            made.__dict__.update(self.__dict__)
        made._contexts = []
        made._reset_contexts()
        _executables.add(made)
        return made

    # Sizes

    def dims_of(self, shapes: Sequence[Shape]) -> dict[str, int]:
        """The symbols' values for the inputs' shapes, one an input. Raises BindError."""
        return self._binder.bind_shapes(shapes)

    def bind(self, dims: Mapping[str, int]) -> Binding:
        """Shapes, memory plan and cost at given values of the symbols. Raises BindError."""
        self._binder.check(dims)
        key = dims_key(dims, self.manifest.dims)
        found = self._frames.get(key)
        if found is None:
            with no_fork():  # many temporaries are placed by native code
                found = self._binder.binding(dict(zip(self.manifest.dims, key)))
            self._frames.keep(key, found)
        return found

    def peak_bytes(self, **dims: int) -> int:
        """Bytes of temporary memory that a run at these sizes needs, known before it runs."""
        return self.bind(dims).plan.peak_bytes

    @property
    def sizes_bytes(self) -> int:
        """Bytes that are kept of the sizes seen so far, so that calls of these are bound at once;
        at most `frames.KEPT_BYTES`. Temporaries are no part of them: their block is a context's."""
        return self._frames.kept_bytes

    def _binding_for(self, shapes: list[Shape]) -> Binding:
        key = self._binder.key_of(shapes)
        found = None if key is None else self._frames.get(key)
        if found is not None and found.input_shapes == shapes:
            return found
        return self.bind(self._binder.bind_shapes(shapes))

    # Calls

    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        if self.declines:
            return DECLINED
        return self.checked(*arrays, out=out, **named)

    def checked(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        """A call by way of Python, which serves any.

        What the native entry can take from some point on is handed over there. It comes back, with
        nothing left to convert or to bind, where the entry can't: under contention, for errors.
        """
        manifest = self.manifest
        values = gather(manifest.inputs, arrays, named)
        inputs = [dense(to_array(spec, v)) for spec, v in zip(manifest.inputs, values)]
        if self._cells:
            inputs = self._without_overlaps(inputs, [])
        options = {} if out is None else {"out": out}
        if self._native and (named or not all(map(is_, inputs, arrays))):
            found = self(*inputs, **options)
            if found is not DECLINED:
                return found
        binding = self._binding_for([array.shape for array in inputs])
        if self._native and binding.frame is None:
            self._give_back(self._bound_context(binding))
            found = self(*inputs, **options)
            if found is not DECLINED:
                return found
        if out is None:
            outputs = allocate_outputs(manifest.outputs, binding.output_shapes)
        else:
            outputs = check_out(manifest, binding.output_shapes, out)
            inputs = self._without_overlaps(inputs, outputs)
        context = self._bound_context(binding)
        try:
            context.point(manifest.inputs, inputs)
            context.point(manifest.outputs, outputs)
            context.reset_status()
            with self._locks:
                if self._refresh is not None:
                    self._refresh(context.address)
                run = self._releasing if binding.release_gil else self._holding
                for cell in self._written:
                    cell.bump()
                failed = run(context.address) != 0
                if failed:
                    for cell in self._written:
                        cell.bump(-1)
            failure = context.failure() if failed else (0, 0, 0)
        finally:
            self._give_back(context)
        if failed:
            self._raise_failure(*failure, *inputs)
        return outputs[0] if manifest.single else tuple(outputs)

    def _without_overlaps(self, inputs: list[Array], outputs: list[Array]) -> list[Array]:
        """Copies each input that shares memory with state or `out`; refuses outputs that do."""
        state = self._state_ranges
        taken: list[tuple[int, int]] = []
        for array in outputs:
            mine = byte_range(array)
            if overlaps(mine, taken):
                raise BindError("out: two of the arrays share memory")
            if overlaps(mine, state):
                raise BindError("out: an array shares memory with the program's state")
            if mine[0] < mine[1]:
                insort(taken, mine)
        return [
            array.copy() if overlaps(mine, taken) or overlaps(mine, state) else array
            for array, mine in zip(inputs, map(byte_range, inputs))
        ]

    def _raise_failure(self, code: int, element: int, value: int, *arrays: Array) -> NoReturn:
        if code == INTERRUPTED:
            raise_interrupt()
        if self.on_failure is not None:
            self.on_failure(code, element, value, arrays)
        message = self.manifest.messages.get(code)
        if message is None:
            raise ExecutionError(
                f"{self.manifest.name}: step failed with the unlisted code {code}",
                code=code, element=element, value=value,
            )  # fmt: skip
        text = message.text.replace("{element}", str(element)).replace("{value}", str(value))
        where = f" ({message.location})" if message.location else ""
        raise ExecutionError(
            text + where, code=code, element=element, value=value, location=message.location
        )

    # Contexts

    def _reset_contexts(self) -> None:
        """Starts with no context at hand: at first, and in a forked child, where those of other
        threads' calls never come back."""
        if self._native:
            set_call(self, 0)
        self._mutex = threading.Lock()
        self._free: list[CallContext] = []
        self._retired: list[CallContext] = []  # once published, and busy when another took over
        self._published: CallContext | None = None
        self._words: Any = None

    def _take_context(self) -> CallContext:
        with self._mutex:
            self._reclaim()
            if not self._free:
                self._unpublish()
            if self._free:
                return self._free.pop()
            context = CallContext(
                self.manifest, self._cells, self._constants, self._packed, self._frames
            )
            if self._native:
                interface = native_interface()
                assert interface is not None
                cls = type(self)
                context.set_native(interface, cls.__call__, cls._raise_failure)
            self._contexts.append(context)
            return context

    def _bound_context(self, binding: Binding) -> CallContext:
        """A context that is set up for these sizes; who takes it gives it back."""
        context = self._take_context()
        if not context.is_bound_to(binding):
            try:
                context.bind(binding)
            except BaseException:
                self._give_back(context)
                raise
        return context

    def _reclaim(self) -> None:
        """Takes back retired contexts whose call has ended; under the mutex."""
        if self._retired:
            self._free += [context for context in self._retired if not context.busy]
            self._retired = [context for context in self._retired if context.busy]

    def _unpublish(self) -> None:
        """Takes the published context back from the native entry, if no call is using it; under
        the mutex. So calls that follow each other share one block of temporaries.

        Without a published context a call takes the checked path, which waits for the mutex. A
        native call that began before has marked its context busy, see `_give_back`.
        """
        context = self._published
        if context is None:
            return
        set_call(self, 0)
        if context.busy:
            set_call(self, self._library.address(ENTRY_SYMBOL))
        else:
            self._published = None
            self._free.append(context)

    def _give_back(self, context: CallContext) -> None:
        """Hands a context that just ran to the native entry; the one it had goes to the pool.

        One store of the slot publishes it. The native entry reads the slot and marks the context
        busy in one step under the GIL, so after the store no new call can start on the old one.
        """
        with self._mutex:
            if not self._native or context.binding is None:
                self._free.append(context)
                return
            old, self._published = self._published, context
            self._words = context.words
            if old is None:
                set_call(self, self._library.address(ENTRY_SYMBOL))
            elif old.busy:
                self._retired.append(old)
            else:
                self._free.append(old)

    def release_memory(self) -> None:
        """Frees the temporaries' memory of all calls that are not running; later ones make it
        anew."""
        # In the hands of this very thread, if a finaliser or a signal handler called.
        if not self._mutex.acquire(blocking=False):
            return
        try:
            if self._published is not None:
                set_call(self, 0)
                self._retired.append(self._published)
                self._published = None
            self._reclaim()
            for context in self._free:
                context.release()
        finally:
            self._mutex.release()

    # The rest

    @property
    def cells(self) -> tuple[StateCell, ...]:
        """The state cells, in the manifest's order."""
        return self._cells

    @property
    def is_native(self) -> bool:
        """Whether calls go through the native entry."""
        return self._native

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a compiled program cannot be copied or pickled: its code and memory are this "
            "process's. Save the state, e.g. sg.save(path, model.state_dict()), and compile again "
            "in the other process, which takes the code from the cache on disk; "
            "sg.Graph(inputs, outputs, updates).save('model.sgir') writes the graph itself, for "
            "`staticgrad run model.sgir`"
        )

    def __repr__(self) -> str:
        manifest = self.manifest
        inputs = ", ".join(f"{s.name}: {s.dtype}{shape_text(s.shape)}" for s in manifest.inputs)
        outputs = ", ".join(f"{s.dtype}{shape_text(s.shape)}" for s in manifest.outputs)
        return f"<Executable {manifest.name}({inputs}) -> ({outputs})>"


def _check_cells(manifest: Manifest, cells: Sequence[StateCell]) -> None:
    if len(cells) != len(manifest.state):
        raise StateError(
            f"{manifest.name}: {len(manifest.state)} cells expected, {len(cells)} given"
        )
    if len(set(cells)) != len(cells):
        raise StateError(f"{manifest.name}: a state cell is given twice")
    for spec, cell in zip(manifest.state, cells):
        if cell.dtype != np.dtype(spec.dtype) or cell.shape != tuple(spec.shape):
            raise StateError(
                f"state {spec.name!r}: expected {spec.dtype} {shape_text(spec.shape)}, "
                f"got {cell.dtype} {shape_text(cell.shape)}"
            )


class _Constants(dict[int, int]):
    """Addresses by buffer; keeps the memory alive."""

    memory: list[Array]


def _load_constants(artifact: Artifact) -> _Constants:
    """Copies the constants to aligned memory, equal blobs once."""
    table = _Constants()
    table.memory = []
    where: dict[int, int] = {}
    for spec in artifact.manifest.constants:
        if spec.blob not in where:
            blob = artifact.blobs[spec.blob]
            memory = aligned_bytes(len(blob))
            memory[: len(blob)] = np.frombuffer(blob, np.uint8)
            memory.flags.writeable = False
            table.memory.append(memory)
            where[spec.blob] = address(memory)
        table[spec.buffer] = where[spec.blob]
    return table


def release_arenas() -> None:
    """Frees the temporaries' memory of every executable's calls that are not running."""
    for executable in _live():
        executable.release_memory()


def _live() -> list[Executable]:
    while True:
        try:
            return list(_executables)
        except RuntimeError:  # another thread made one meanwhile
            continue


def _reset_after_fork() -> None:
    for executable in list(_executables):
        executable._reset_contexts()
        executable._frames.clear()  # they name the parent's pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
