"""LLVM text -> object code. No mid-end pass runs: the text is in its final form.

A long module is compiled in units (`split`) on several threads. Object code of units that other
programs have too is kept by their text.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from staticgrad_runtime.forks import no_fork
from staticgrad_runtime.loader import emit_object
from staticgrad_runtime.objects import pack

from .builder import Module
from .split import Splitter, Unit, split
from .target import Target

Load = Callable[[str], bytes | None]
Store = Callable[[str, bytes], object]


class Assembled(NamedTuple):
    """`object_code` is one object file or several, packed. Times are those of all threads."""

    object_code: bytes
    parse_ms: float
    codegen_ms: float


_local = threading.local()
_known: dict[str, bytes] = {}  # object code of shared units, by key


def _machine(target: Target, level: int) -> Any:
    """A target machine of this thread's own."""
    made: dict[Any, Any] = _local.__dict__.setdefault("machines", {})
    if (target, level) not in made:
        made[target, level] = _new_machine(target, level)
    return made[target, level]


def _new_machine(target: Target, level: int) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic"
    )


class Crew:
    """Threads that generate object code, each unit of it once.

    Units may be added as soon as their text stands, while Python is at work on the rest of the
    program: code generation does not hold the GIL. Of `threads` the caller's is one; it takes part
    from `objects` on. `load` is a cache's: what it has is not generated.
    """

    def __init__(
        self, target: Target, *, threads: int = 1, level: int = 2, load: Load | None = None
    ) -> None:
        self.target, self.threads = target, threads
        self.parse_ms = self.codegen_ms = 0.0
        self._level, self._load = level, load
        self._generate = _compile
        self._free = threads - 1  # helpers that can be started
        self._turn = threading.Condition()
        self._aside: collections.deque[Callable[[], object]] = collections.deque()
        self._todo: dict[str, Unit] = {}
        self._keys: set[str] = set()
        self._done: dict[str, bytes | BaseException] = {}

    def add(self, units: Iterable[Unit]) -> list[str]:
        """Units to be generated; -> their keys."""
        keys = []
        for unit in units:
            key = self._key(unit)
            keys.append(key)
            if key in self._keys:
                continue
            found = _known.get(key) or (self._load(key) if self._load is not None else None)
            with self._turn:
                if key in self._keys:
                    continue
                self._keys.add(key)
                if found is not None:
                    self._done[key] = found
                else:
                    self._todo[key] = unit
        with self._turn:
            wanted = min(self._free, len(self._todo))
        for _ in range(wanted):
            self._start()
        return keys

    def aside(self, job: Callable[[], object]) -> None:
        """Has a helper, where there is one, do something that will be wanted later: only a guess.
        What fails here will fail again where it is needed, or is not needed."""
        if self.threads == 1:
            return
        with self._turn:
            self._aside.append(job)
            wanted = self._free > 0
        if wanted:
            self._start()

    def objects(self, keys: Sequence[str]) -> list[bytes]:
        """The object code of these units and no others. Raises what code generation raised."""
        with self._turn:
            for key in self._todo.keys() - set(keys):
                del self._todo[key]
                self._keys.remove(key)
        while self._generate_next():
            pass
        with self._turn:
            while not all(key in self._done for key in keys):
                self._turn.wait()
        found = [self._done[key] for key in keys]
        for code in found:
            if isinstance(code, BaseException):
                raise code
        return [code for code in found if isinstance(code, bytes)]

    def rest(self) -> None:
        """Drops what nobody has begun and waits for the helpers: the process may end as soon as a
        program is compiled."""
        with self._turn:
            self._aside.clear()
            self._todo.clear()
            while self._free < self.threads - 1:
                self._turn.wait()

    def _start(self) -> None:
        """Starts a helper."""
        with self._turn:
            self._free -= 1

        # No daemon: LLVM must not be taken down with a thread in it.
        try:
            threading.Thread(target=self._help, name="staticgrad-codegen").start()
        except RuntimeError:  # "can't start new thread": others do the work
            self._leave()

    def _leave(self) -> None:
        with self._turn:
            self._free += 1
            self._turn.notify_all()

    @no_fork(helping=True)
    def _help(self) -> None:
        while True:
            with self._turn:
                job = self._aside.popleft() if self._aside else None
                if job is None and not self._todo:
                    self._leave()
                    return
            if job is None:
                self._generate_next()
            else:
                with contextlib.suppress(Exception):
                    job()

    def _generate_next(self) -> bool:
        """Generates a unit's code, a long one's first; -> whether there was one to begin."""
        with self._turn:
            if not self._todo:
                return False
            key = max(self._todo, key=lambda k: self._todo[k].effort)
            unit = self._todo.pop(key)
        try:
            level = 0 if unit.plain else self._level
            code, parse_ms, codegen_ms = self._generate(unit.text, self.target, level)
        except BaseException as error:  # raised again by the thread that asked
            self._finish(key, error, 0.0, 0.0)
        else:
            self._finish(key, code, parse_ms, codegen_ms)
        return True

    def _finish(
        self, key: str, result: bytes | BaseException, parse_ms: float, codegen_ms: float
    ) -> None:
        with self._turn:
            self._done[key] = result
            self.parse_ms += parse_ms
            self.codegen_ms += codegen_ms
            self._turn.notify_all()

    def _key(self, unit: Unit) -> str:
        import llvmlite

        t, level = self.target, "plain" if unit.plain else str(self._level)
        parts = ("unit", llvmlite.__version__, t.triple, t.cpu, t.features, level, unit.text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Stream:
    """Takes a module's functions as they are emitted, and has a crew at work on them."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._splitter = Splitter(crew.threads)
        self._taken = 0
        self._module: Module | None = None

    def __call__(self, module: Module) -> None:
        """Told after each kernel; first when what programs share stands."""
        first, self._module = self._module is None, module
        self._take(module)
        if first:
            self._crew.add(self._splitter.shared(module.declarations))
        self._crew.add(self._splitter.complete(module.declarations))

    def aside(self, job: Callable[[], object]) -> None:
        """Has the crew do something else while code is emitted."""
        self._crew.aside(job)

    def _take(self, module: Module) -> None:
        new = module.functions_after(self._taken)
        self._taken += len(new)
        self._splitter.add(new)

    def assembled(self, text: str, store: Store | None = None) -> Assembled:
        """Object code of the module, whose text this is now."""
        assert self._module is not None
        self._take(self._module)
        units = self._splitter.all(self._module.declarations)
        return _assembled(self._crew, units or [Unit(text)], store)


def assemble(
    text: str, target: Target, *, level: int = 2, threads: int = 1, load: Load | None = None,
    store: Store | None = None,
) -> Assembled:  # fmt: skip
    """Object code of a module, relocatable and without process addresses.

    `load` and `store` are a cache's: units that other programs share are looked up there.
    """
    crew = Crew(target, threads=threads, level=level, load=load)
    return _assembled(crew, split(text, threads), store)


def _assembled(crew: Crew, units: Sequence[Unit], store: Store | None) -> Assembled:
    keys = crew.add(units)
    objects = crew.objects(keys)
    if len(units) > 1:  # a single one is the program, which is kept by whoever asks
        _keep(keys, objects, store)
    return Assembled(pack(objects), crew.parse_ms, crew.codegen_ms)


_MOST_KNOWN = 64


def _keep(keys: list[str], objects: list[bytes], store: Store | None) -> None:
    for key, code in zip(keys, objects):
        if key not in _known:
            if len(_known) >= _MOST_KNOWN:
                _known.pop(next(iter(_known)))
            _known[key] = code
            if store is not None:
                store(key, code)


def _compile(text: str, target: Target, level: int) -> tuple[bytes, float, float]:
    """Object code of one unit, in a context of its own."""
    import llvmlite.binding as llvm

    machine = _machine(target, level)
    start = time.perf_counter()
    module = llvm.parse_assembly(text, llvm.create_context())
    parsed = time.perf_counter()
    code = emit_object(machine, module)
    done = time.perf_counter()
    return code, 1e3 * (parsed - start), 1e3 * (done - parsed)


def assembly_text(text: str, target: Target, *, level: int = 2) -> str:
    """The same module as the target's assembly, for reading."""
    import llvmlite.binding as llvm

    result: str = _machine(target, level).emit_assembly(llvm.parse_assembly(text))
    return result
