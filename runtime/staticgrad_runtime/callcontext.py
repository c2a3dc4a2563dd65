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
    FRAME_TO_WORD,
    RECORD_WORDS,
    STATUS_OK,
    ArrayRecord,
    CellRecord,
    FrameWord,
    Word,
)
from .frames import Frames, sized_parts
from .interrupt import poll_addresses
from .layout import NativeInterface, data_address, descriptor_address
from .packed import PackedCopies
from .state import StateCell

Words = NDArray[np.int64]

_FRAME_WORDS = [int(word) for word, _ in FRAME_TO_WORD]
_BOUND_WORDS = [int(word) for _, word in FRAME_TO_WORD]

OUT_NAME = sys.intern("out")  # as callers' `out=` is


class CallContext:
    """Everything that one running call owns; an executable keeps a pool of them.

    `words` is what `sg_run` gets a pointer to. `bind` sets it up for given sizes, which stay until
    the next `bind` or a native call of other sizes; input and output pointers are set per call.
    """

    def __init__(
        self,
        manifest: Manifest,
        cells: Sequence[StateCell],
        constants: Mapping[int, int],
        packed: PackedCopies,
        frames: Frames,
    ) -> None:
        self._frames = frames
        self._sized = aligned_words(frames.n_sized)
        parts = {
            name: address(self._sized) + 8 * at
            for name, at in sized_parts(frames, manifest).items()
        }
        self._buffers = aligned_words(len(manifest.buffers))
        self._arena = Arena()
        self.words = aligned_words(CONTEXT_WORDS)
        self.address = address(self.words)
        self.words[Word.BUFFERS] = address(self._buffers)
        self.words[Word.DIMS] = parts["dims"]
        self.words[Word.SIZED], self.words[Word.N_SIZED] = address(self._sized), frames.n_sized
        self.words[Word.FRAMES], self.words[Word.N_KEY] = frames.address, frames.n_key
        self.words[Word.TEMPS], self.words[Word.N_TEMPS] = address(frames.temps), frames.temps.size
        self.words[Word.PACKED] = address(packed.buffers)
        self.words[Word.N_PACKED] = packed.buffers.size
        ask = poll_addresses()
        self.words[Word.GIL_ENSURE] = ask[0]
        self.words[Word.INTERRUPT_OCCURRED], self.words[Word.GIL_RELEASE] = ask[1:]
        self.binding: Binding | None = None
        for spec, cell in zip(manifest.state, cells):
            self._buffers[spec.buffer] = address(cell.view())
        for buffer, where in constants.items():
            self._buffers[buffer] = where
        self._packed = packed
        self.words[Word.PACKS] = parts["packs"]
        self.words[Word.PACK] = packed.function
        self._inputs = _records(manifest.inputs, parts["input_dims"], parts["input_bytes"])
        self._outputs = _records(manifest.outputs, parts["output_dims"], parts["output_bytes"])
        self._arrays = aligned_words(len(manifest.outputs))
        self._single = manifest.single
        frames.register(self)
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

    def is_bound_to(self, binding: Binding) -> bool:
        """Whether it is set up for these sizes; the native entry binds contexts as well."""
        return binding.frame is not None and int(self.words[Word.FRAME]) == binding.frame_address

    def bind(self, binding: Binding) -> None:
        """Sets sizes and places the temporaries; `sg_sizes` of the native entry does the same."""
        frame = self._frames.frame_of(binding)
        self.binding = None  # stays so if memory runs out half way
        self.words[Word.FRAME] = self.words[Word.ARENA_BYTES] = 0
        self._arena.reserve(binding.plan.peak_bytes)
        self.words[Word.ARENA] = base = self._arena.base
        self.words[Word.ARENA_BYTES] = self._arena.capacity_bytes
        end = FrameWord.TABLES + self._sized.size
        self._sized[:] = frame[FrameWord.TABLES : end]
        self._buffers[self._frames.temps] = base + frame[end:]
        self._buffers[self._packed.buffers] = 0
        self.words[_BOUND_WORDS] = frame[_FRAME_WORDS]
        self.binding = binding  # before the word: it keeps the frame alive
        self.words[Word.FRAME] = binding.frame_address
        give_back_code_pages()  # all that a first call compiles has been compiled

    def release(self) -> None:
        """Frees the temporaries' memory; no call may be using it. `bind` makes it anew."""
        self.binding = None
        self.words[Word.FRAME] = self.words[Word.ARENA_BYTES] = 0
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


def _records(specs: Sequence[InputSpec | OutputSpec], dims: int, sizes: int) -> Words:
    """The records of inputs or outputs; their bound dims and bytes stand at these addresses."""
    records = aligned_words(RECORD_WORDS * len(specs))
    for i, spec in enumerate(specs):
        record = records[RECORD_WORDS * i : RECORD_WORDS * (i + 1)]
        record[ArrayRecord.DESCR] = descriptor_address(spec.dtype)
        record[ArrayRecord.NDIM] = len(spec.shape)
        record[ArrayRecord.BUFFER] = spec.buffer
        record[ArrayRecord.SHAPE] = dims
        record[ArrayRecord.BYTES] = sizes + 8 * i
        record[ArrayRecord.TYPE_NUM] = np.dtype(spec.dtype).num
        dims += 8 * len(spec.shape)
    return records
