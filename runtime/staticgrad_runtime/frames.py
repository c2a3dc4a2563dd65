"""The sizes that a program has been called with, each as a frame, which a context is bound to fast.

A frame holds all that depends on sizes: dims, bytes, places in the arena, threads. Contexts copy it
(`CallContext.bind`, and `sg_sizes` of the native entry), so a frame is never read by a running call
and can be dropped at any time. All memory of temporaries is the context's: a frame has none.

The native entry finds frames by the dims of the inputs in a hash table of addresses with linear
probing. Python alone changes the table: it adds a frame by one store, and replaces the table where
frames are dropped or many have come. Native code reads it with the GIL held, in one step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .arena import address, aligned_words
from .artifact import InputSpec, Manifest, OutputSpec
from .binding import Binding
from .context import (
    FRAME_HASH_FACTOR,
    FRAME_HASH_SHIFT,
    FRAMES_WORDS,
    FramesWord,
    FrameWord,
    Word,
)
from .forks import ForkSafeLock
from .kept_memory import array_new
from .layout import NativeInterface, data_address
from .packed import PackedCopies
from .workers import pool

if TYPE_CHECKING:
    from .callcontext import CallContext

Words = NDArray[np.int64]

# What a program may keep of the sizes that it has seen. One of a few inputs and temporaries takes
# 2 KB a size, a training step of 1,000 temporaries 20 KB.
KEPT_BYTES = 4 << 20
LEAST_KEPT = 16  # sizes, however much each takes
# Python's objects of one binding, and what they take more for each input and output.
_BINDING_BYTES, _ARRAY_BYTES = 1600, 160
_LEAST_SLOTS = 8


def dims_hash(dims: Iterable[int]) -> int:
    """The hash that frames are found by; `Sizes` in codegen/entry_sizes.py computes the same."""
    found = 0
    for dim in dims:
        found = (found + dim) * FRAME_HASH_FACTOR & (1 << 64) - 1
    return found >> FRAME_HASH_SHIFT


class Frames:
    """The bindings of one program by the values of its symbols, and their frames by shapes.

    Executables that share a program (twins) share its frames, and each context of theirs is
    registered. `interface` is None where no native entry will look for them.
    """

    def __init__(
        self, manifest: Manifest, packed: PackedCopies, interface: NativeInterface | None
    ) -> None:
        self._packed = packed
        self._interface = interface
        specs: list[InputSpec | OutputSpec] = [*manifest.inputs, *manifest.outputs]
        self.n_key = sum(len(spec.shape) for spec in manifest.inputs)
        self.n_shapes = sum(len(spec.shape) for spec in specs)
        self.n_sized = self.n_shapes + len(specs) + len(manifest.packs) + len(manifest.dims)
        temps = [i for i, buffer in enumerate(manifest.buffers) if buffer.kind == "temp"]
        self.temps = aligned_words(len(temps))
        self.temps[:] = temps
        frame_words = FrameWord.TABLES + self.n_sized + len(temps)
        each = 8 * (frame_words + len(temps)) + _BINDING_BYTES + _ARRAY_BYTES * len(specs)
        self.bytes_each = each
        self.most = max(LEAST_KEPT, KEPT_BYTES // each)
        self._contexts: weakref.WeakSet[CallContext] = weakref.WeakSet()
        self._lock = ForkSafeLock()
        self._words = aligned_words(FRAMES_WORDS)
        self.address = address(self._words) if manifest.dims else 0
        self._bindings: dict[tuple[int, ...], Binding] = {}
        self._place([])

    def __len__(self) -> int:
        return len(self._bindings)

    @property
    def kept_bytes(self) -> int:
        """What is kept of all sizes; the memory of temporaries is not part of it."""
        return len(self._bindings) * self.bytes_each

    def get(self, key: tuple[int, ...]) -> Binding | None:
        """The binding at these values of the symbols, if it is kept."""
        return self._bindings.get(key)

    def keep(self, key: tuple[int, ...], binding: Binding) -> None:
        """Keeps a binding; where there are too many, the quarter that was not used longest goes."""
        with self._lock:
            if len(self._bindings) >= self.most:
                by_use = sorted(self._bindings.items(), key=lambda item: _used(item[1]))
                self._drop([k for k, _ in by_use[: max(1, self.most // 4)]])
            self._bindings[key] = binding

    def clear(self) -> None:
        """Forgets all sizes: in a forked child, whose pool is another one."""
        with self._lock:
            self._drop(list(self._bindings))

    def _drop(self, keys: Sequence[tuple[int, ...]]) -> None:
        """In this order: no call finds the frames any more, no context refers to them, they go."""
        gone = [self._bindings.pop(key, None) for key in keys]
        self._place(self._framed())
        addresses = {b.frame_address for b in gone if b is not None and b.frame is not None}
        for context in self._contexts:
            if int(context.words[Word.FRAME]) in addresses:
                context.words[Word.FRAME] = 0

    def register(self, context: CallContext) -> None:
        """Takes note of a context that will be bound to these frames."""
        with self._lock:
            self._contexts.add(context)

    def _framed(self) -> list[Binding]:
        return [b for b in list(self._bindings.values()) if b.frame is not None]

    # Frames

    def frame_of(self, binding: Binding) -> Words:
        """The frame of a binding; made, and shown to the native entry, where it is first wanted."""
        frame = binding.frame
        if frame is None:
            frame = self._made(binding)
            with self._lock:
                if binding.frame is None:
                    binding.frame, binding.frame_address = frame, data_address(frame)
                    if self._bindings.get(tuple(binding.dims.values())) is binding:
                        self._add(binding)
                frame = binding.frame
        self._words[FramesWord.CLOCK] += 1
        frame[FrameWord.USED] = self._words[FramesWord.CLOCK]
        return frame

    def _made(self, binding: Binding) -> Words:
        dims = [size for shape in binding.input_shapes for size in shape]
        read = self._packed.read_by(binding.dims)
        frame = np.zeros(FrameWord.TABLES + self.n_sized + self.temps.size, np.int64)
        frame[FrameWord.HASH] = dims_hash(dims)
        frame[FrameWord.PEAK] = binding.plan.peak_bytes
        frame[FrameWord.N_PACKS] = len(read)
        if self._interface is not None:
            largest = max(binding.output_bytes, default=0)
            frame[FrameWord.ARRAY_NEW] = array_new(self._interface, largest)
        frame[FrameWord.RELEASE_GIL] = binding.release_gil
        frame[FrameWord.THREADS] = binding.threads
        frame[FrameWord.PATIENT] = binding.patient
        frame[FrameWord.ESTIMATE] = int(min(binding.ns, 1 << 60))
        if binding.threads > 1:
            workers = pool(binding.threads)
            frame[FrameWord.POOL] = workers.address
            frame[FrameWord.DISPATCH] = workers.dispatch
            frame[FrameWord.BARRIER] = workers.barrier
        dims += [size for shape in binding.output_shapes for size in shape]
        dims += [*binding.input_bytes, *binding.output_bytes]
        dims += [*read, *[0] * (self._packed.buffers.size - len(read)), *binding.dims.values()]
        frame[FrameWord.TABLES : FrameWord.TABLES + self.n_sized] = dims
        frame[FrameWord.TABLES + self.n_sized :] = binding.plan.offsets
        return frame

    # The table

    def _add(self, binding: Binding) -> None:
        self._count += 1
        if 2 * self._count >= self._table.size:  # at least half of the slots stay empty
            self._place(self._framed())
        else:
            _store(self._table, binding)

    def _place(self, framed: Sequence[Binding]) -> None:
        """A new table; contexts see it by one store."""
        slots = _LEAST_SLOTS
        while slots < 4 * len(framed):
            slots *= 2
        table = aligned_words(1 + slots)
        table[0] = slots - 1
        for binding in framed:
            _store(table, binding)
        self._words[FramesWord.TABLE] = address(table)
        self._table, self._count = table, len(framed)


def _store(table: Words, binding: Binding) -> None:
    assert binding.frame is not None
    mask = int(table[0])
    slot = int(binding.frame[FrameWord.HASH]) & mask
    while table[1 + slot]:
        slot = slot + 1 & mask
    table[1 + slot] = binding.frame_address


def _used(binding: Binding) -> int:
    return 0 if binding.frame is None else int(binding.frame[FrameWord.USED])


def sized_parts(frames: Frames, manifest: Manifest) -> Mapping[str, int]:
    """Where the tables of a frame begin, in words from FrameWord.TABLES on."""
    inputs, outputs = len(manifest.inputs), len(manifest.outputs)
    at = frames.n_shapes
    return {
        "input_dims": 0,
        "output_dims": frames.n_key,
        "input_bytes": at,
        "output_bytes": at + inputs,
        "packs": at + inputs + outputs,
        "dims": at + inputs + outputs + len(manifest.packs),
    }
