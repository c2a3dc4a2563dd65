"""The names that do not mean what they do in PyTorch: the guide lists them, and what it says of
each is so. PyTorch's side of the table was compared with PyTorch 2.13: of all methods and functions
that both have, called with arrays of every kind, these were the ones with other values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staticgrad as sg

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
A = np.array([[3.0, 1.0, 2.0], [6.0, 5.0, 5.0]])
B = np.array([[3.0, 0.0, 2.0], [0.0, 5.0, 0.0]])
C = np.arange(24.0).reshape(2, 3, 4)
COUNTS = {"nine": 9, "ten": 10, "eleven": 11, "twelve": 12}


def both(function: Any, *arrays: np.ndarray[Any, Any]) -> list[Any]:
    """The result in the dynamic mode and in the static one, as NumPy's."""
    eager = function(*map(sg.eager.tensor, arrays))
    static = sg.jit(function)(*arrays)
    as_arrays = [np.asarray(v) for v in (eager, static)]
    return [(v.shape, v.tolist()) for v in as_arrays]


EXPECTED = {
    "std": (lambda x: x.std(axis=1), A, np.std(A, axis=1)),
    "var": (lambda x: x.var(axis=1), A, np.var(A, axis=1)),
    "max": (lambda x: x.max(axis=1), A, A.max(axis=1)),
    "min": (lambda x: x.min(axis=1), A, A.min(axis=1)),
    "sort": (lambda x: x.sort(axis=1), A, np.sort(A, axis=1)),
    "diagonal": (lambda x: x.diagonal(), C, np.diagonal(C, axis1=1, axis2=2)),
    "equal": (lambda x: sg.equal(x, x), A, A == A),
    "meshgrid": (lambda x: sg.meshgrid(x[0], x[1, :2])[0], A, np.meshgrid(A[0], A[1, :2])[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_name_gives(name: str) -> None:
    function, array, expected = EXPECTED[name]
    for shape, values in both(function, array):
        assert shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=1e-14)


def test_type_is_no_conversion_and_nonzero_has_two_forms() -> None:
    x = sg.eager.tensor(B)
    assert str(x.type) == str(sg.input("x", (2, 3), dtype="float64").type) == "float64[2, 3]"
    assert str(x.to("int32").dtype) == "int32"
    for found, expected in zip(sg.eager.nonzero(x), np.nonzero(B), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(x.nonzero().numpy(), np.argwhere(B))


def test_what_the_guide_says_gives_pytorchs() -> None:
    def corrected(x: Any) -> Any:
        return x.std(axis=1, correction=1)

    for _, values in both(corrected, A):
        np.testing.assert_allclose(values, np.std(A, axis=1, ddof=1), rtol=1e-14)
    for _, value in both(lambda a, b: sg.all(sg.equal(a, b)), A, A):
        assert value is True
    for _, values in both(lambda x: sg.meshgrid(x[0], x[1, :2], indexing="ij")[0], A):
        np.testing.assert_array_equal(values, np.meshgrid(A[0], A[1, :2], indexing="ij")[0])


@pytest.mark.parametrize("name", ["std", "var", "max", "min", "sort"])
def test_pytorchs_spelling_is_refused_where_it_would_give_something_else(name: str) -> None:
    x, g = sg.eager.tensor(A), sg.input("g", (2, 3))
    for tensor in (x, g):
        with pytest.raises(sg.ArgumentTypeError, match="PyTorch's"):
            getattr(tensor, name)(dim=1)
    with pytest.raises(sg.ArgumentTypeError, match=r"PyTorch's|positional"):
        getattr(x, name)(1)


def test_dtypes_are_the_array_api_s() -> None:
    numbers = sg.eager.tensor(np.array([200, 100], np.uint8))
    assert numbers.sum().dtype == sg.uint64
    x = sg.eager.tensor(np.float32([1, 2]))
    assert sg.clip(x, sg.eager.tensor(np.array([1.5, 1.5]))).dtype == sg.float32


def test_every_page_gives_the_same_number_of_names() -> None:
    (count, table) = re.findall(r"\*\*(\w+) names do not mean.*?\n\n(\|.*?)\n\n", GUIDE, re.DOTALL)[
        0
    ]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(names) == len({*names}) == COUNTS[count.lower()]
    assert {*names} == {*EXPECTED, "type", "nonzero"}
    for page in ("README.md", "samples/from_other_frameworks/README.md"):
        told = re.findall(
            r"\[(\w+) names\]\([./]*docs/guide\.md#", (ROOT / page).read_text("utf-8")
        )
        assert [t.lower() for t in told] == [count.lower()]
