"""Loads and stores of every other element: values against NumPy, and no gather or scatter."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.codegen.target import host_target

F = sg.nn.functional
ROOT = pathlib.Path(__file__).parents[1]
DTYPES = ["float32", "float64", "int8", "int64", "bool"]


def check_slices(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for width in (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 65, 71):
        x = (rng.standard_normal((3, width)) * 50).astype(dtype)
        for start in {0, min(1, width - 1)}:
            got = sg.jit(lambda v, start=start: v[:, start::2])(x)
            np.testing.assert_array_equal(got, x[:, start::2], f"{width}, {start}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_other_element(dtype: str) -> None:
    check_slices(dtype)


def test_on_narrower_vectors() -> None:
    code = "from tests.test_strided import DTYPES, check_pools, check_slices\n"
    code += "for d in DTYPES: check_slices(d)\ncheck_pools('float32'); check_pools('float64')"
    for bits in ("128", "256"):
        env = {**os.environ, "STATICGRAD_VECTOR_BITS": bits}
        subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=ROOT)


def check_pools(dtype: str) -> None:
    """2 x 2 windows, of which each row of them is loaded and stored in pairs."""
    rng = np.random.default_rng(1)
    for width in (2, 3, 14, 28, 33, 64, 70):
        x = rng.standard_normal((2, 3, 6, width)).astype(dtype)
        ct = rng.standard_normal((2, 3, 3, width // 2)).astype(dtype)
        windows = x[..., : width // 2 * 2].reshape(2, 3, 3, 2, -1, 2)
        value, grad = sg.jit(_pool_and_gradient)(x, ct)
        np.testing.assert_array_equal(value, windows.max((3, 5)))
        hit = windows == windows.max((3, 5), keepdims=True)
        expected = np.zeros_like(x)
        expected[..., : width // 2 * 2] = (hit * ct[:, :, :, None, :, None]).reshape(2, 3, 6, -1)
        np.testing.assert_array_equal(grad, expected)


def _pool_and_gradient(x: sg.Tensor, ct: sg.Tensor) -> tuple[sg.Tensor, sg.Tensor]:
    y = F.max_pool2d(x, 2)
    return y, sg.gradients(y, x, cotangent=ct)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pools(dtype: str) -> None:
    check_pools(dtype)


def test_no_lane_is_taken_alone() -> None:
    if not host_target().is_x86:
        pytest.skip("pairs are for CPUs with masked loads")
    x = sg.input("x", (2, 3, 28, 28))
    y = F.max_pool2d(sg.relu(x), 2)
    program = sg.compile([x], [y, sg.gradients(sg.sum(y * y), x)])
    assert not re.search(r"masked\.(gather|scatter)", program.llvm_ir)
