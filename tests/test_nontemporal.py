"""Which results are stored past the caches, and that nothing else changes by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad.api.compile import compile_stages
from staticgrad.codegen.target import host_target
from staticgrad.ir.dim import substitute
from staticgrad.kernels.ir import Buffer
from staticgrad.kernels.program import Program
from staticgrad.kernels.verify import verify_program
from staticgrad.passes.nontemporal import SHARE_OF_CACHE

ROW = 1000
ROWS = host_target().l3_bytes // SHARE_OF_CACHE // (4 * ROW) + 1  # the fewest that are enough


def made(inputs: list[Any], outputs: list[Any], **options: Any) -> Program:
    program = compile_stages(sg.Graph(inputs, outputs), **options).program
    verify_program(program)
    return program


def marked(program: Program) -> list[tuple[str, Buffer]]:
    """Names of the program's buffers, with the parameters that are them."""
    return [
        (program.buffers[i].name, b)
        for step in program.steps
        for i, b in zip(step.buffers, step.kernel.buffers)
        if b.nontemporal != 0
    ]


@pytest.mark.parametrize("rows", [ROWS, "N"])
def test_values_are_the_same(rows: Any) -> None:
    x = sg.input("x", (rows, ROW))
    outputs = [sg.softmax(x, axis=1), x * 2 + 1]
    programs = [sg.compile([x], outputs, disable=d) for d in ((), ("nontemporal",))]
    rng = np.random.default_rng(0)
    for count in (ROWS, 3) if rows == "N" else (ROWS,):
        data = rng.standard_normal((count, ROW), "float32")
        found = [[y.tobytes() for y in program(data)] for program in programs]
        assert found[0] == found[1]
        # Arrays of the caller's, at addresses that no whole vector fits.
        own = np.empty(2 * count * ROW + 32, "float32")
        for shift in (1, 3, 16):
            a = own[shift : shift + count * ROW].reshape(count, ROW)
            b = own[-count * ROW :].reshape(count, ROW)
            programs[0](data, out=(a, b))
            assert [a.tobytes(), b.tobytes()] == found[1]


def test_large_results_that_nothing_reads() -> None:
    x, y = sg.input("x", (ROWS, ROW)), sg.input("y", (ROWS // 2, ROW))
    program = made([x, y], [sg.softmax(x, axis=1), sg.exp(y), sg.sum(x, axis=1)])
    assert [name for name, b in marked(program) if b.nontemporal == 1] == ["out0"]
    text = sg.compile([x], sg.exp(x), cache=False).llvm_ir
    assert "!nontemporal" in text
    if host_target().is_x86:
        assert "sfence" in text
    assert not marked(made([x, y], [sg.exp(x)], disable=["nontemporal"]))


def test_what_is_read_again_stays_in_the_cache() -> None:
    """By another step, or as another output; and a product may read its result for the next K."""
    x, w = sg.input("x", (ROWS, ROW)), sg.input("w", (ROW, ROW))
    y = sg.softmax(x, axis=1)
    assert [name for name, _ in marked(made([x, w], [y, y @ w]))] == []
    assert not marked(made([x, w], [sg.relu(x @ w)]))


def test_state_is_stored_as_always() -> None:
    w = sg.parameter(np.zeros((ROWS, ROW), "float32"), name="w")
    x = sg.input("x", (ROWS, ROW))
    loss = sg.sum(w * x)
    updates = sg.optim.SGD([w], lr=0.1).minimize(loss)
    assert not marked(compile_stages(sg.Graph([x], [loss], updates=updates)).program)


def test_symbolic_sizes_tell_at_run_time() -> None:
    x = sg.input("x", ("N", ROW))
    program = made([x], [sg.exp(x)])
    ((_, b),) = marked(program)
    (step,) = program.steps
    value = dict(zip(step.kernel.sizes, step.sizes))[str(b.nontemporal)]
    assert [substitute(value, {"N": n}) for n in (0, 1, ROWS // 2, ROWS, 9 * ROWS)] == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_kernels_of_both_kinds_are_two_kernels_and_print_as_they_are_read() -> None:
    from staticgrad.kernels.key import kernel_key
    from staticgrad.kernels.parser import parse_kernel
    from staticgrad.kernels.printer import kernel_text

    x = sg.input("x", ("N", ROW))
    for size in ("N", ROWS):
        x = sg.input("x", (size, ROW))
        (with_it,), (without,) = (
            made([x], [sg.exp(x)], disable=d).steps for d in ((), ("nontemporal",))
        )
        assert kernel_key(with_it.kernel) != kernel_key(without.kernel)
        text = kernel_text(with_it.kernel)
        assert "nontemporal" in text
        assert kernel_key(parse_kernel(text)) == kernel_key(with_it.kernel)
