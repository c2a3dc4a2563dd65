"""Values for inputs on the command line: JSON, .npy, .npz and .csv."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import numpy as np

from staticgrad.ir.types import TensorType

from .console import UsageError, shown

Array = np.ndarray[Any, Any]


def parse_input(name: str, text: str, declared: TensorType) -> Any:
    """The value of `NAME=text`: `@FILE` is an array, anything else JSON.

    Arrays of files keep their dtype (a .csv gets the declared one); numbers and lists are
    converted when the program is called, if they fit. Nothing is unpickled.
    """
    if text.startswith("@"):
        return _from_file(name, text[1:], declared)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--input {name}: {shown(text)!r} is neither JSON nor @FILE: {error}"
        ) from None
    if isinstance(value, (str, dict)) or value is None:
        raise UsageError(f"--input {name}: expected numbers, got {shown(text)}")
    if isinstance(value, list) and declared.ndim:
        return _from_list(name, value, declared)
    return value


def _from_list(name: str, value: list[Any], declared: TensorType) -> Any:
    """A list of lists; one without elements has the declared dtype and, up to zeros, its rank."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise UsageError(
            f"--input {name}: the list is not regular: rows differ in length"
        ) from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"--input {name}: expected a list of numbers or bools")
    return value


def _from_file(name: str, path: str, declared: TensorType) -> Array:
    member: str | None = None
    if not os.path.exists(path) and "#" in path:
        path, _, member = path.rpartition("#")
    where = f"--input {name}: {shown(path)}"
    if not os.path.isfile(path):
        raise UsageError(f"{where}: there is no such file")
    suffix = os.path.splitext(path)[1].lower()
    if member is not None and suffix != ".npz":
        raise UsageError(f"{where}: only .npz files hold several arrays (#{shown(member)})")
    try:
        if suffix == ".npy":
            return _npy(path)
        if suffix == ".npz":
            return _npz(where, path, None if member is None else shown(member))
        if suffix == ".csv":
            return _csv(where, path, declared)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{where}: {error}") from error
    raise UsageError(f"{where}: expected .npy, .npz or .csv")


def _npy(path: str) -> Array:
    with open(path, "rb") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _npz(where: str, path: str, member: str | None) -> Array:
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
        if member is None and len(names) == 1:
            member = names[0]
        if member is None:
            raise UsageError(f"{where}: choose one of its arrays by #NAME: {', '.join(names)}")
        if member not in names:
            raise UsageError(f"{where}: no array {member!r}; it holds {', '.join(names)}")
        array: Array = archive[member]
    return array


def _csv(where: str, path: str, declared: TensorType) -> Array:
    """Rows of numbers, of the declared dtype; a first line that holds no number is a header."""
    with open(path, encoding="utf-8-sig", newline=None) as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    if lines and not any(_is_number(cell) for cell in lines[0].split(",")):
        lines = lines[1:]
    if not lines:
        raise UsageError(f"{where}: holds no numbers")
    rows = [line.split(",") for line in lines]
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise UsageError(f"{where}: row {number} has {len(row)} cells, row 1 has {width}")
    array = _cells(where, rows, declared)
    if declared.ndim == 1 and 1 in array.shape:
        return array.reshape(-1)
    if declared.ndim == 0 and array.size == 1:
        return array.reshape(())
    return array


def _cells(where: str, rows: list[list[str]], declared: TensorType) -> Array:
    kind = declared.dtype.kind
    convert: Any = float if kind == "f" else _bool if kind == "b" else int
    try:
        return np.array([[convert(cell) for cell in row] for row in rows], declared.dtype.numpy)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{where}: expected {declared.dtype!s} in every cell: {error}") from None


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("0", "1", "true", "false"):
        raise ValueError(f"{text.strip()!r} is no bool")
    return word in ("1", "true")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("true", "false")
    return True
