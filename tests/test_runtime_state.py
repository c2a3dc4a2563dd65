"""State cells: copies in and out, checked assignment, versions, locks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from staticgrad_runtime import StateCell, StateError
from staticgrad_runtime.arrays import byte_range
from staticgrad_runtime.state import CellLocks


def test_a_cell_owns_its_memory() -> None:
    source = np.arange(6, dtype="float32").reshape(2, 3)
    cell = StateCell(source, "w")
    source[:] = 9
    np.testing.assert_array_equal(cell.numpy(), np.arange(6).reshape(2, 3))
    copy = cell.numpy()
    copy[:] = 7
    np.testing.assert_array_equal(cell.numpy(), np.arange(6).reshape(2, 3))
    assert byte_range(cell.view())[0] % 64 == 0
    assert (cell.dtype, cell.shape, cell.name) == (np.dtype("float32"), (2, 3), "w")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float32", "float64"])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: str) -> None:
    value = np.ones(shape, dtype)
    cell = StateCell(np.zeros(shape, dtype))
    cell.assign(value)
    found = cell.numpy()
    np.testing.assert_array_equal(found, value, strict=True)


def test_ids_increase() -> None:
    first, second = StateCell(0.0), StateCell(0.0)
    assert first.id < second.id


def test_assign_keeps_the_buffer_and_counts_versions() -> None:
    cell = StateCell(np.zeros(3, "float32"))
    before = byte_range(cell.view())
    cell.assign([1.0, 2.0, 3.0])
    cell.assign(np.array([1, 2, 3], "int64"))
    cell.assign(np.arange(6, dtype="float64")[::2])
    assert byte_range(cell.view()) == before
    assert cell.version == 3
    np.testing.assert_array_equal(cell.numpy(), np.array([0, 2, 4], "float32"), strict=True)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", np.zeros(4, "float32"), r"expected float32 \(3,\), got float32 \(4,\)"),
        ("float32", np.float32(0), r"got float32 \(\)"),
        ("float32", np.zeros(3, "complex64"), "got complex64"),
        ("float32", ["a", "b", "c"], "got <U1"),
        ("float32", [1e300, 0, 0], "overflows"),
        ("int32", np.zeros(3, "float32"), r"expected int32 \(3,\), got float32"),
        ("int8", [1, 2, 300], "got the value 300"),
        ("uint8", [-1, 2, 3], "got the value -1"),
        ("bool", [1, 0, 1], "got int64"),
    ],
)
def test_what_does_not_fit_is_refused(dtype: str, value: object, message: str) -> None:
    cell = StateCell(np.ones(3, dtype), "weight")
    with pytest.raises(StateError, match=message) as caught:
        cell.assign(value)
    assert "'weight'" in str(caught.value)
    np.testing.assert_array_equal(cell.numpy(), np.ones(3, dtype))
    assert cell.version == 0


@pytest.mark.parametrize("dtype", ["complex64", "float16", "object", "U3", ">f4", "datetime64[s]"])
def test_dtypes_that_no_cell_has(dtype: str) -> None:
    with pytest.raises(StateError, match="not supported"):
        StateCell(np.zeros(2, dtype), "w")


def test_infinities_and_nans_may_be_assigned() -> None:
    cell = StateCell(np.zeros(3, "float32"))
    cell.assign(np.array([np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(cell.numpy(), [np.inf, -np.inf, np.nan])


def test_readers_share_and_a_writer_waits_for_them() -> None:
    cell = StateCell(np.zeros(2))
    wrote = threading.Event()

    def write() -> None:
        cell.assign([1.0, 2.0])
        wrote.set()

    with CellLocks([(cell, False)]), CellLocks([(cell, False)]):
        thread = threading.Thread(target=write)
        thread.start()
        assert not wrote.wait(0.05)
        np.testing.assert_array_equal(cell.numpy(), [0, 0])  # a reader may read again
    thread.join()
    np.testing.assert_array_equal(cell.numpy(), [1, 2])


def test_a_thread_that_would_wait_for_itself_is_told() -> None:
    cell = StateCell(np.zeros(2), "w")
    with CellLocks([(cell, True)]), pytest.raises(StateError, match="'w' is in use"):
        cell.numpy()
    with CellLocks([(cell, False)]), pytest.raises(StateError, match="'w' is in use"):
        cell.assign([1.0, 2.0])
    cell.assign([3.0, 4.0])


def test_locks_in_any_order_of_request_do_not_deadlock() -> None:
    cells = [StateCell(np.zeros(1)) for _ in range(3)]

    def work(order: list[int]) -> None:
        for _ in range(200):
            with CellLocks((cells[i], True) for i in order):
                for cell in cells:
                    cell.view()[0] += 1

    orders = ([0, 1, 2], [2, 1, 0], [1, 2, 0])
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(cell.numpy()[0]) for cell in cells] == [600.0] * 3


def test_reading_and_writing_one_cell_is_writing() -> None:
    cell = StateCell(np.zeros(1))
    with CellLocks([(cell, False), (cell, True)]), pytest.raises(StateError):
        cell.numpy()
