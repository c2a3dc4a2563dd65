"""The context of one call at a time: the words, tables and arena that compiled code works on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arena import Arena, address, aligned_words
from .arrays import byte_range
from .artifact import InputSpec, Manifest, OutputSpec
from .binding import Binding
from .code_pages import give_back_code_pages
from .context import (
    CELL_RECORD_WORDS,
    CONTEXT_WORDS,
    RECORD_WORDS,
    STATUS_OK,
    ArrayRecord,
    CellRecord,
    Word,
)
from .interrupt import poll_addresses
from .kept_memory import array_new
from .layout import NativeInterface, data_address, descriptor_address
from .packed import PackedCopies
from .state import StateCell
from .workers import pool

Words = NDArray[np.int64]

OUT_NAME = sys.intern("out")  # as callers' `out=` is


class CallContext:
    """Everything that one running call owns; an executable keeps a pool of them.

    `words` is what `sg_run` gets a pointer to. `bind` sets it up for given sizes, and stays valid
    until the next `bind`; input and output pointers are set per call.
    """

    def __init__(
        self,
        manifest: Manifest,
        cells: Sequence[StateCell],
        constants: Mapping[int, int],
        packed: PackedCopies,
    ) -> None:
        self._dims = aligned_words(len(manifest.dims))
        self._buffers = aligned_words(len(manifest.buffers))
        self._arena = Arena()
        self.words = aligned_words(CONTEXT_WORDS)
        self.address = address(self.words)
        self.words[Word.BUFFERS] = address(self._buffers)
        self.words[Word.DIMS] = address(self._dims)
        ask = poll_addresses()
        self.words[Word.GIL_ENSURE] = ask[0]
        self.words[Word.INTERRUPT_OCCURRED], self.words[Word.GIL_RELEASE] = ask[1:]
        self.binding: Binding | None = None
        kinds = [buffer.kind for buffer in manifest.buffers]
        self._temps = np.array([i for i, kind in enumerate(kinds) if kind == "temp"], np.int64)
        for spec, cell in zip(manifest.state, cells):
            self._buffers[spec.buffer] = address(cell.view())
        for buffer, where in constants.items():
            self._buffers[buffer] = where
        self._packed = packed
        self._packs = aligned_words(len(manifest.packs))
        self.words[Word.PACKS] = address(self._packs)
        self.words[Word.PACK] = packed.function
        self._inputs, self._input_shapes = _records(manifest.inputs)
        self._outputs, self._output_shapes = _records(manifest.outputs)
        self._arrays = aligned_words(len(manifest.outputs))
        self._single = manifest.single
        self._interface: NativeInterface | None = None
        self._cells = aligned_words(CELL_RECORD_WORDS * len(cells))
        for i, (spec, cell) in enumerate(zip(manifest.state, cells)):
            self._cells[CELL_RECORD_WORDS * i + CellRecord.CELL] = cell.words_address
            self._cells[CELL_RECORD_WORDS * i + CellRecord.WRITTEN] = spec.written
            start, stop = byte_range(cell.view())
            self._cells[CELL_RECORD_WORDS * i + CellRecord.START] = start
            self._cells[CELL_RECORD_WORDS * i + CellRecord.STOP] = stop

    def set_native(
        self, interface: NativeInterface, checked_call: object, raise_failure: object
    ) -> None:
        """Fills the words that the native entry reads. The two functions must outlive the context.

        `checked_call(executable, *args, **named)` serves any call;
        `raise_failure(executable, code, element, value, *args)` raises.
        """
        words = self.words
        words[Word.N_INPUTS] = self._inputs.size // RECORD_WORDS
        words[Word.N_OUTPUTS] = self._outputs.size // RECORD_WORDS
        words[Word.N_CELLS] = self._cells.size // CELL_RECORD_WORDS
        words[Word.SINGLE] = self._single
        words[Word.ARRAYS] = address(self._arrays)
        words[Word.INPUTS] = address(self._inputs)
        words[Word.OUTPUTS] = address(self._outputs)
        words[Word.CELLS] = address(self._cells)
        words[Word.NDARRAY_TYPE] = interface.ndarray_type
        self._interface = interface
        words[Word.METHOD_NEW] = interface.method_new
        words[Word.VECTORCALL] = interface.vectorcall
        words[Word.DEC_REF] = interface.dec_ref
        words[Word.INC_REF] = interface.inc_ref
        words[Word.TUPLE_TYPE] = id(tuple)
        words[Word.LIST_TYPE] = id(list)
        words[Word.OUT_NAME] = id(OUT_NAME)
        words[Word.TUPLE_NEW] = interface.tuple_new
        words[Word.TUPLE_SET_ITEM] = interface.tuple_set_item
        words[Word.LONG_NEW] = interface.long_new
        words[Word.SAVE_THREAD] = interface.save_thread
        words[Word.RESTORE_THREAD] = interface.restore_thread
        words[Word.CHECKED_CALL] = id(checked_call)
        words[Word.RAISE_FAILURE] = id(raise_failure)

    @property
    def busy(self) -> bool:
        """Whether a native call is using this context now."""
        return bool(self.words[Word.BUSY])

    @property
    def arena_bytes(self) -> int:
        return self._arena.capacity_bytes

    def bind(self, binding: Binding) -> None:
        """Sets sizes and places the temporaries."""
        self.binding = None  # stays so if memory runs out half way
        self._arena.reserve(binding.plan.peak_bytes)
        self._buffers[self._temps] = self._arena.base + binding.plan.offsets
        self._dims[: len(binding.dims)] = list(binding.dims.values())
        self._buffers[self._packed.buffers] = 0
        read = self._packed.read_by(binding.dims)
        self._packs[: len(read)] = read
        self.words[Word.N_PACKS] = len(read)
        _fill(self._input_shapes, binding.input_shapes)
        _fill(self._output_shapes, binding.output_shapes)
        self._inputs[ArrayRecord.BYTES :: RECORD_WORDS] = binding.input_bytes
        self._outputs[ArrayRecord.BYTES :: RECORD_WORDS] = binding.output_bytes
        if self._interface is not None:
            largest = max(binding.output_bytes, default=0)
            self.words[Word.ARRAY_NEW] = array_new(self._interface, largest)
        self.words[Word.RELEASE_GIL] = binding.release_gil
        self.words[Word.THREADS] = binding.threads
        self.words[Word.PATIENT] = binding.patient
        self.words[Word.ESTIMATE] = int(min(binding.ns, 1 << 60))
        self.words[Word.TOGETHER] = self.words[Word.ALONE] = self.words[Word.SPENT] = 0
        if binding.threads > 1:
            workers = pool(binding.threads)
            self.words[Word.POOL] = workers.address
            self.words[Word.DISPATCH] = workers.dispatch
            self.words[Word.BARRIER] = workers.barrier
        self.binding = binding
        give_back_code_pages()  # all that a first call compiles has been compiled

    def release(self) -> None:
        """Frees the temporaries' memory; no call may be using it. `bind` makes it anew."""
        self.binding = None
        self._arena.release()

    def point(self, specs: Sequence[InputSpec | OutputSpec], arrays: Sequence[Any]) -> None:
        """Stores the arrays' data pointers in the buffer table."""
        for spec, array in zip(specs, arrays):
            self._buffers[spec.buffer] = data_address(array)

    def reset_status(self) -> None:
        self.words[Word.STATUS] = STATUS_OK

    def failure(self) -> tuple[int, int, int]:
        """(code, element, value) of the last run."""
        words = self.words
        return int(words[Word.STATUS]), int(words[Word.ELEMENT]), int(words[Word.VALUE])


def _records(specs: Sequence[InputSpec | OutputSpec]) -> tuple[Words, Words]:
    """The records of inputs or outputs, and the table of bound dims that they point into."""
    shapes = aligned_words(sum(len(spec.shape) for spec in specs))
    records = aligned_words(RECORD_WORDS * len(specs))
    at = 0
    for i, spec in enumerate(specs):
        record = records[RECORD_WORDS * i : RECORD_WORDS * (i + 1)]
        record[ArrayRecord.DESCR] = descriptor_address(spec.dtype)
        record[ArrayRecord.NDIM] = len(spec.shape)
        record[ArrayRecord.BUFFER] = spec.buffer
        record[ArrayRecord.SHAPE] = address(shapes) + 8 * at
        record[ArrayRecord.TYPE_NUM] = np.dtype(spec.dtype).num
        at += len(spec.shape)
    return records, shapes


def _fill(table: Words, shapes: Sequence[tuple[int, ...]]) -> None:
    flat = [size for shape in shapes for size in shape]
    table[: len(flat)] = flat
