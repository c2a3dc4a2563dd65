"""`Tensor`: an array with, where a gradient is wanted, the node of the tape that made it.

Operators and methods are attached by `methods`, `operators` and `inplace`, from the records that
serve the static graph too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from staticgrad_runtime.state import CellLocks, StateCell

from staticgrad.ir.dtype import DType
from staticgrad.ir.errors import StateError
from staticgrad.ir.types import TensorType
from staticgrad.ops.tensor import Size, size_of

from .signature import Signature, signature_of

if TYPE_CHECKING:
    from .tape import GradientEdge, Leaf

Array = np.ndarray[Any, Any]


class Storage:
    """What tensors that share memory share: a count of the changes made in place.

    `owned` says that the memory is a parameter's, which NumPy arrays don't share.
    """

    __slots__ = ("__weakref__", "version")
    owned = False

    def __init__(self) -> None:
        self.version = 0

    def change(self, action: Callable[[], None]) -> None:
        """Runs what writes to the memory, and counts it."""
        action()
        self.version += 1

    def unseen(self) -> Storage | None:
        """A count for tensors whose changes those of this one are not to hear of."""
        return None


class CellStorage(Storage):
    """The memory of a parameter: compiled programs write to it too, and lock it."""

    __slots__ = ("_cell", "_uncounted")
    owned = True

    def __init__(self, cell: StateCell) -> None:
        self._cell = weakref.ref(cell)
        self._uncounted = 0

    @property
    def version(self) -> int:  # type: ignore[override]
        cell = self._cell()
        return 0 if cell is None else cell.version - self._uncounted

    def changes(self) -> int:
        """All changes, those behind `.data` too."""
        cell = self._cell()
        return 0 if cell is None else cell.version

    def change(self, action: Callable[[], None]) -> None:
        cell = self._cell()
        if cell is None:  # its owner is gone, so nobody else writes
            action()
            return
        with CellLocks([(cell, True)]):
            cell.bump()
            action()

    def unseen(self) -> Storage:
        return _UnseenCellStorage(self)


class _UnseenCellStorage(Storage):
    """A parameter's memory behind `.data`."""

    __slots__ = ("_seen",)
    owned = True

    def __init__(self, seen: CellStorage) -> None:
        super().__init__()
        self._seen = seen

    def change(self, action: Callable[[], None]) -> None:
        self._seen.change(action)
        self._seen._uncounted += 1
        self.version += 1

    def unseen(self) -> Storage:
        return self._seen.unseen()


class Tensor:
    """An array that operations run on as they are called, with a gradient where one is wanted."""

    __slots__ = ("__weakref__", "_array", "_leaf", "_node", "_sig", "_store")

    _array: Array
    _sig: Signature
    _node: GradientEdge | None  # what made it, or its own `Leaf`, where it requires a gradient
    _store: Storage | None  # None: never changed in place, shares its memory with no tensor
    _leaf: Leaf | None  # holds `.grad`

    __array_priority__ = 2000

    def __init__(self, array: Array, store: Storage | None = None) -> None:
        self._array = array
        self._sig = signature_of(array)
        self._node = None
        self._store = store
        self._leaf = None

    # --- type ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._sig.shape

    @property
    def dtype(self) -> DType:
        return self._sig.dtype

    @property
    def type(self) -> TensorType:
        return self._sig.type

    @property
    def ndim(self) -> int:
        return len(self._sig.shape)

    @property
    def size(self) -> Size:
        """The number of elements; `size()` and `size(dim)` are sizes of dims."""
        found: Size = size_of(self._array.size, self._sig.shape)
        return found

    @property
    def device(self) -> str:
        return "cpu"

    def dim(self) -> int:
        """The number of dims."""
        return len(self._sig.shape)

    def numel(self) -> int:
        """The number of elements."""
        return self._array.size

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._sig.dtype.itemsize_bytes

    # --- memory -------------------------------------------------------------------------------

    def shared(self) -> Storage:
        """The count of changes that tensors of the same memory share."""
        if self._store is None:
            self._store = Storage()
        return self._store

    def change(self, action: Callable[[], None]) -> None:
        """Runs what writes to this tensor's memory. Raises StateError where it is read-only."""
        if not self._array.flags.writeable:
            raise StateError(
                "this tensor's memory can't be changed: it is that of a read-only NumPy array; "
                "use eager.tensor(array), which copies it"
            )
        self.shared().change(action)

    def overwrite(self, array: Array) -> None:
        """Takes over the values of an array of the same type, in place and not recorded."""
        store = self._store or self.shared()
        if store.__class__ is Storage and self._array.flags.writeable:
            np.copyto(self._array, array)
            store.version += 1
        else:
            self.change(lambda: np.copyto(self._array, array))

    @property
    def _version(self) -> int:
        return 0 if self._store is None else self._store.version

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        from staticgrad.ir.hints import TENSOR, missing

        raise AttributeError(missing("an eager tensor", name, TENSOR), name=name, obj=self)

    if TYPE_CHECKING:
        # Attached by `operators`, `methods`, `inplace` and `indexing`.

        grad: Any
        data: Any
        requires_grad: bool

        def __add__(self, other: Any, /) -> Tensor: ...
        def __radd__(self, other: Any, /) -> Tensor: ...
        def __sub__(self, other: Any, /) -> Tensor: ...
        def __rsub__(self, other: Any, /) -> Tensor: ...
        def __mul__(self, other: Any, /) -> Tensor: ...
        def __rmul__(self, other: Any, /) -> Tensor: ...
        def __truediv__(self, other: Any, /) -> Tensor: ...
        def __rtruediv__(self, other: Any, /) -> Tensor: ...
        def __pow__(self, other: Any, /) -> Tensor: ...
        def __matmul__(self, other: Any, /) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, key: Any, /) -> Tensor: ...
        def __setitem__(self, key: Any, value: Any, /) -> None: ...
        def __len__(self) -> int: ...
        def __float__(self) -> float: ...
        def __int__(self) -> int: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def backward(
            self, gradient: Any = None, retain_graph: bool | None = None,
            create_graph: bool = False, inputs: Any = None,
        ) -> None: ...  # fmt: skip
        def detach(self) -> Tensor: ...
        def clone(self) -> Tensor: ...
        def numpy(self, *, force: bool = False) -> Array: ...
        def item(self) -> Any: ...
        def requires_grad_(self, requires_grad: bool = True) -> Tensor: ...


def wrapped(array: Array, sig: Signature) -> Tensor:
    """A new tensor of an array whose signature is known."""
    found = _new(Tensor)
    found._array = array
    found._sig = sig
    found._node = found._store = found._leaf = None
    return found


_new = Tensor.__new__


__all__ = ["Array", "CellStorage", "Storage", "Tensor", "wrapped"]
