"""Parameters as matrix products read them: packed copies that outlive calls.

A program that only reads a parameter may have its products read a packed copy, whose place in the
buffer table is null as long as there is none: the products then do without. A copy belongs to one
version of the cell (`StateCell.version`, which every writer counts up), and is never read for
another: `sg_refresh` compares the two in each call, when the call has taken its cells and before
it runs. While it runs nobody writes to the cell, so nobody packs it anew either. All of that is
done with the GIL held, which makes it one step for all threads.

Packing takes as long as multiplying with 6 to 13 rows, so a parameter that changes with every call
is never packed: it is done by the fourth call (`codegen.entry.PATIENCE`) that finds one version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .arena import address, aligned_bytes, aligned_words
from .artifact import Manifest
from .context import PACK_RECORD_WORDS, PACK_SYMBOL, PackRecord
from .dims import evaluate_int
from .loader import Library
from .state import StateCell


class PackedCopies:
    """The copies of one executable and its twins. Their memory is not touched before it is used."""

    def __init__(self, manifest: Manifest, cells: Sequence[StateCell], library: Library) -> None:
        self._specs = manifest.packs
        self.buffers = np.array([spec.buffer for spec in self._specs], np.int64)
        self.function = library.address(PACK_SYMBOL) if self._specs else 0
        self._records = aligned_words(PACK_RECORD_WORDS * len(self._specs))
        self._memory = []
        cell_of = {spec.buffer: cell for spec, cell in zip(manifest.state, cells)}
        for i, spec in enumerate(self._specs):
            size_bytes = evaluate_int(manifest.buffers[spec.buffer].size_bytes, {})
            self._memory.append(aligned_bytes(size_bytes))
            record = self._records[PACK_RECORD_WORDS * i : PACK_RECORD_WORDS * (i + 1)]
            record[PackRecord.CELL] = cell_of[spec.state].words_address
            record[PackRecord.VERSION] = record[PackRecord.SEEN] = -1
            record[PackRecord.MEMORY] = address(self._memory[i])
            record[PackRecord.BUFFER] = spec.buffer
            record[PackRecord.NUMBER] = i

    def read_by(self, dims: Mapping[str, int]) -> list[int]:
        """The addresses of the records of those copies that a run at these sizes reads."""
        start, found = address(self._records), []
        for i, spec in enumerate(self._specs):
            least, most = spec.useful
            if least <= evaluate_int(spec.rows, dims) <= most:
                found.append(start + 8 * PACK_RECORD_WORDS * i)
        return found

    def versions(self) -> list[int]:
        """The version of its cell that each copy holds, -1 where there is none yet."""
        return [int(v) for v in self._records[PackRecord.VERSION :: PACK_RECORD_WORDS]]
