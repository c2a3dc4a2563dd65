"""Kernels as text: exact both ways; the verifier names what is broken; programs print whole."""

from __future__ import annotations

import re

import numpy as np
import pytest
from staticgrad.autodiff.reverse import gradients
from staticgrad.codegen.target import host_target
from staticgrad.ir.dim import Dim, DimCall
from staticgrad.ir.dtype import bool_, float32, float64, int64
from staticgrad.ir.errors import ParseError, VerifyError
from staticgrad.ir.graph import Graph
from staticgrad.kernels.ir import (
    Accumulator,
    Buffer,
    Call,
    Carry,
    Check,
    Expr,
    Index,
    Kernel,
    Let,
    Literal,
    Load,
    Loop,
    Next,
    Reduce,
    Ref,
    Store,
    Template,
    call,
)
from staticgrad.kernels.key import kernel_key
from staticgrad.kernels.parser import parse_kernel
from staticgrad.kernels.printer import kernel_text, program_text
from staticgrad.kernels.program import Program
from staticgrad.kernels.verify import verify_kernel, verify_program
from staticgrad.ops import registry
from staticgrad.ops.leaves import input as declare
from staticgrad.ops.leaves import parameter
from staticgrad.ops.linalg import matmul
from staticgrad.ops.reduction import sum as reduce_sum
from staticgrad.ops.registry import make
from staticgrad.ops.softmax import softmax
from staticgrad.passes.lowering import lower
from staticgrad.passes.pipeline import run_pipeline
from staticgrad.passes.schedule import schedule

N, D, ROW, COL = (Dim.symbol(s) for s in ("n0", "n1", "i", "j"))


def program_of(graph: Graph) -> Program:
    return schedule(lower(run_pipeline(graph), host_target()))


def round_trip(kernel: Kernel) -> Kernel:
    text = kernel_text(kernel)
    parsed = parse_kernel(text)
    assert kernel_key(parsed) == kernel_key(kernel), text
    assert kernel_text(parsed) == text
    assert [b.size for b in parsed.buffers] == [b.size for b in kernel.buffers]
    return parsed


@pytest.mark.parametrize("name", sorted(registry.all_ops()))
def test_kernels_of_every_op(name: str) -> None:
    samples = list(registry.get(name).samples())
    for sample in samples[:: max(len(samples) // 3, 1)]:
        operands = [
            # what a switch updates is state
            parameter(a)
            if (name, i) == ("training_switch", 2)
            else declare(f"x{i}", np.shape(a), str(np.asarray(a).dtype))
            for i, a in enumerate(sample.operands)
        ]
        inputs = [v for v in operands if v.node.op == "input"]
        program = program_of(Graph(inputs, make(name, operands, sample.attrs).results))
        verify_program(program)
        assert program_text(program).startswith("program() {\n")
        for step in program.steps:
            round_trip(step.kernel)


def training_step() -> Program:
    x = declare("x", ("N", 4))
    w = parameter(np.ones((4, 3), "float32"), name="w")
    loss = reduce_sum(softmax(matmul(x, w), axis=-1) * 2.0)
    return program_of(Graph([x], [loss], [(w, w - gradients(loss, w))]))


def test_a_training_step() -> None:
    program = training_step()
    verify_program(program)
    for step in program.steps:
        round_trip(step.kernel)
    text = program_text(program)
    assert text.startswith("program(N) {\n  buffer 0: input x float32[4*N], 16*N bytes\n")
    assert re.search(r"buffer \d+: state w float32\[12\], 48 bytes, state \d+, written", text)
    assert re.search(r"temp \w+ float32\[\S+\], \S+ bytes, lives in steps \d+ to \d+", text)
    assert "  commit" in text and "  step 0: " in text and "\n\nkernel " in text
    assert "epilogue kernel epilogue(" in text or "call matmul(" in text


# --- everything that the language has -------------------------------------------------------------


def shared_expressions() -> Kernel:
    x = Load("b0", ROW * D + COL, float32)
    y = call("add", x, Literal(2.0, float32))
    store = Store("b1", ROW * D + COL, call("multiply", y, y))
    loops = Loop("i", N, (Loop("j", D, (store,), "vector"),), "parallel")
    buffers = (Buffer("b0", float32, "in", 0), Buffer("b1", float32, "out", 0))
    return Kernel("square_sum", buffers, ("n0", "n1"), (loops,))


def test_text_of_a_kernel() -> None:
    assert kernel_text(shared_expressions()) == (
        "kernel square_sum(b0: in float32, b1: out float32; n0, n1) {\n"
        "  parallel i in 0..n0 {\n"
        "    vector j in 0..n1 {\n"
        "      %0 = add(b0[i*n1+j], 2.0)\n"
        "      b1[i*n1+j] = multiply(%0, %0)\n"
        "    }\n"
        "  }\n"
        "}\n"
    )
    parsed = round_trip(shared_expressions())
    verify_kernel(parsed)
    store = parsed.body[0].body[0].body[0]  # type: ignore[union-attr]
    assert store.value.args[0] is store.value.args[1]


def everything() -> Kernel:
    """A gather with a guard, a check, carries, a reduction that stores, a guarded scatter."""
    at = Ref("at", int64)
    inside = call("less", at, Index(D), dtype=bool_)
    first = Load("x", 3, float32, ((at, D), (Index(ROW), N * 2 + 1)), inside, float("nan"))
    total = Ref("total", float32)
    scan = Loop(
        "j", Dim((((DimCall("//", N * D, D),), 2),)),
        (Next("total", call("add", total, first)), Next("count", Ref("count", int64))), "serial",
        (Carry("total", Literal(float("-inf"), float32)), Carry("count", Literal(0, int64))),
    )  # fmt: skip
    row = Load("s", Dim.symbol("k"), float64)
    fold = Reduce(
        ("r", "k"), (N, 8),
        (
            Let("cast", Call("cast", (total,), float64)),
            Store("s", Dim.symbol("k"), Ref("cast", float64)),
        ),
        (Accumulator("most", "max", row), Accumulator("least", "min", row)), True,
    )  # fmt: skip
    flags = Reduce((), (), (), (Accumulator("flag", "any", inside),), False)
    put = Store(
        "y", ROW, Call("cast", (Ref("most", float64),), float32), ((at, 4),), Ref("flag", bool_)
    )
    body = (
        Let("at", Load("index", ROW, int64)),
        Check(inside, 7, ROW * 2, at),
        scan, fold, flags, put,
        Store("y", 0, Call("select", (inside, Literal(-0.0, float32), first), float32)),
    )  # fmt: skip
    buffers = (
        Buffer("x", float32, "in", 0), Buffer("index", int64, "in", 0),
        Buffer("y", float32, "inout", 0), Buffer("s", float64, "scratch", N * 2 + 8),
    )  # fmt: skip
    return Kernel("all of it", buffers, ("n0", "n1"), (Loop("i", N, body, "parallel"),))


def test_every_form_of_the_language() -> None:
    parsed = round_trip(everything())
    verify_kernel(parsed)
    text = kernel_text(parsed)
    for piece in (
        'kernel "all of it"(', "s: scratch float64[2*n0+8]", "; n0, n1) {",
        "(x[3; at * n1, index(i) * (2*n0+1)] if %0 else nan)", "code 7 element 2*i value at",
        "carry total = -inf, count = 0 {", "reduce lanes r in 0..n0, k in 0..8 {",
        "fold least = min of", "fold flag = any of %0", "] = cast(most):float32 if flag",
        "reduce {",
    ):  # fmt: skip
        assert piece in text, text


def test_templates_and_epilogues() -> None:
    row, column = Dim.symbol("row"), Dim.symbol("column")
    rider = Store("c", row * N + column, call("maximum", Load("c", row * N + column, float32),
                                              Literal(0.0, float32)))  # fmt: skip
    inner = Loop("row", 1, (Loop("column", N, (rider,), "columns"),), "rows")
    c = Buffer("c", float32, "inout", 0)
    epilogue = Kernel("epilogue", (c,), ("n0",), (inner,))
    sizes = (N, 8, Dim.symbol("begin"), Dim.symbol("end"))
    attrs = {"dtype": "float32", "type": float64, "flags": (1, None, True)}
    kernel = Kernel("product", (c,), ("n0",), (Template("matmul", ("c",), sizes, attrs, epilogue),))
    verify_kernel(round_trip(kernel))
    assert 'call matmul(c; n0, 8, begin, end){dtype="float32", type=float64,' in kernel_text(kernel)


LITERALS = (0, 1, -5, 2**63 - 1, 0.0, -0.0, 2.5, 1e-45, 1e300, float("inf"), float("-inf"),
            float("nan"), 0.1, True, False)  # fmt: skip


@pytest.mark.parametrize("value", LITERALS, ids=repr)
def test_literals_of_every_dtype(value: object) -> None:
    buffers = (Buffer("y", float64, "out", 0),)
    for dtype in (float32, float64, int64, bool_):
        round_trip(Kernel("k", buffers, (), (Store("y", 0, Literal(value, dtype)),)))  # type: ignore[arg-type]


def test_a_quotient_is_not_simplified() -> None:
    """Arithmetic would make `(i*n0)//(n0)` an `i`: another kernel."""
    index = Dim((((DimCall("//", ROW * N, N), "n0"), 2),)) + 1
    store = Store("y", index, Literal(0.0, float32))
    kernel = Kernel("k", (Buffer("y", float32, "out", 0),), ("n0",), (Loop("i", N, (store,)),))
    parsed = round_trip(kernel)
    assert parsed.body[0].body[0].index == index  # type: ignore[union-attr]


def test_names_that_look_like_numbers() -> None:
    value: Expr = Call("add", (Ref("nan", float32), Ref("True", float32)), float32)
    body = (Let("nan", Literal(1.0, float32)), Let("True", Literal(2.0, float32)),
            Store("fold", 0, value), Store("let", 1, value))  # fmt: skip
    buffers = (Buffer("fold", float32, "out", 0), Buffer("let", float32, "out", 0))
    kernel = Kernel("k", buffers, (), body)
    verify_kernel(round_trip(kernel))
    assert "add($nan, $True)" in kernel_text(kernel)


def test_deep_expressions_are_split() -> None:
    e: Expr = Load("x", 0, float32)
    for _ in range(5000):
        e = call("sin", e)
    kernel = Kernel("k", (Buffer("x", float32, "in", 0), Buffer("y", float32, "out", 0)), (),
                    (Store("y", 0, e),))  # fmt: skip
    text = kernel_text(kernel)
    assert max(len(line) for line in text.splitlines()) < 100
    parsed = parse_kernel(text)
    assert kernel_text(parsed) == text
    verify_kernel(parsed)


# --- errors ---------------------------------------------------------------------------------------


def kernel_of(*lines: str, head: str = "x: in float32, y: out float32; n") -> str:
    return "\n".join((f"kernel k({head}) {{", *(f"  {line}" for line in lines), "}")) + "\n"


PARSE_ERRORS = {
    "buffer": (kernel_of("z[0] = 1.0"), 2, 3, "'z' is no buffer of this kernel"),
    "mode": (kernel_of(head="x: both float32"), 1, 13, "expected a mode .*got 'both'"),
    "dtype": (kernel_of(head="x: in float"), 1, 16, "expected a dtype"),
    "buffer twice": (kernel_of(head="x: in int8, x: in int8"), 1, 22, "given twice"),
    "name": (kernel_of("y[0] = v"), 2, 10, "'v' is not bound here"),
    "expression": (kernel_of("y[0] = %3"), 2, 10, "%3 is not defined above"),
    "expression twice": (kernel_of("%0 = x[0]", "%0 = x[0]"), 3, 3, "defined twice"),
    "statement": (kernel_of("store y"), 2, 3, "expected a statement.*got 'store'"),
    "start": (kernel_of("serial i in 1..n {}"), 2, 15, "a loop starts at 0"),
    "open": ("kernel k(y: out int8) {\n  serial i in 0..4 {\n", 2, 20, "`{` is not closed"),
    "bracket": (kernel_of("y[0 = 1.0"), 2, 7, "expected ']'"),
    "no dtype": (kernel_of("y[0] = f()"), 2, 10, "needs its dtype"),
    "fold": (kernel_of("serial i in 0..n { fold a = sum of x[i] }"), 2, 20, "in a reduce only"),
    "end": (kernel_of() + "kernel", 3, 1, "expected the end of the text"),
}


@pytest.mark.parametrize("case", PARSE_ERRORS)
def test_parse_errors_name_line_and_column(case: str) -> None:
    text, line, column, message = PARSE_ERRORS[case]
    with pytest.raises(ParseError, match=message) as raised:
        parse_kernel(text)
    assert str(raised.value).startswith(f"line {line}, column {column}: ")


LOOP = "parallel i in 0..n {{ {} }}"
BROKEN = {
    "store to an operand": (kernel_of("x[0] = 1.0"), r"store to x\[0\]: the buffer is only read"),
    "load of a result": (kernel_of("y[0] = y[1]"), "a load from y, which is only written"),
    "dtype of a store": (kernel_of("y[0] = 1"), "the value is int64, expected float32"),
    "dtype of a load": (kernel_of("y[0] = x[0]:float64"), "x is float32, it is loaded as float64"),
    "index": (kernel_of("y[i] = 1.0"), "the variable 'i' of the index i is not in scope"),
    "index of a load": (kernel_of("y[0] = x[i]"), "the index variable 'i' is not in scope"),
    "index after the loop": (kernel_of("serial i in 0..n { y[i] = 1.0 }", "y[i] = 1.0"),
                             "'i' of the index i is not in scope"),
    "extent": (kernel_of("serial i in 0..m { y[i] = 1.0 }"), "'m' of the index m is not in scope"),
    "variable twice": (kernel_of("serial i in 0..n { serial i in 0..n { y[i] = 1.0 } }"),
                       "the variable 'i' is in use already"),
    "a size as a variable": (kernel_of("serial n in 0..4 { y[n] = 1.0 }"), "'n' is in use already"),
    "unbound": (kernel_of("y[0] = v:float32"), "the name 'v' is not bound"),
    "bound inside": (kernel_of("serial i in 0..n { let v = x[i] }", "y[0] = v:float32"),
                     "the name 'v' is not bound"),
    "bound as another": (kernel_of("let v = x[0]", "y[0] = cast(v:float64):float32"),
                         "'v' is float32, it is used as float64"),
    "bound twice": (kernel_of("let v = x[0]", "let v = x[1]"), "the name 'v' is bound already"),
    "parallel inside": (kernel_of("serial j in 0..n { parallel i in 0..n { y[i] = 1.0 } }"),
                        "a parallel loop has to be outermost"),
    "two parallel": (kernel_of(LOOP.format("y[i] = 1.0"), LOOP.format("y[i] = 1.0")),
                     "a second parallel loop"),
    "lanes in lanes": (kernel_of("vector i in 0..n { vector j in 0..n { y[i*n+j] = 1.0 } }"),
                       "a loop in lanes inside of another"),
    "reduction in lanes": (kernel_of("vector i in 0..n { reduce lanes j in 0..n "
                                     "{ fold s = sum of x[j] } y[i] = s }"), "reduction in lanes"),
    "kind": (kernel_of("rows i in 0..n { y[i] = 1.0 }"), "stands in an epilogue only"),
    "check in lanes": (kernel_of("vector i in 0..n { check True code 0 element i value 1 }"),
                       "a check inside a loop in lanes"),
    "check's value": (kernel_of("check True code 0 element 0 value 1.0"), "its value is float32"),
    "no next": (kernel_of("serial i in 0..n carry s = 0.0 { y[i] = s }"), "s have no `next`"),
    "next of nothing": (kernel_of("serial i in 0..n { next s = 1.0 }"), "no such carry"),
    "next too deep": (kernel_of("serial i in 0..n carry s = 0.0 { serial j in 0..n "
                                "{ next s = s } }"), "no such carry"),
    "next twice": (kernel_of("serial i in 0..n carry s = 0.0 { next s = s next s = s }"),
                   "the carry is set twice"),
    "next's dtype": (kernel_of("serial i in 0..n carry s = 0.0 { next s = 1 }"),
                     "the value is int64, expected float32"),
    "carry in lanes": (kernel_of("vector i in 0..n carry s = 0.0 { next s = s }"),
                       "only a serial loop can"),
    "reduction": (kernel_of("reduce i in 0..n { fold s = mean of x[i] }"), "no reduction 'mean'"),
    "any of numbers": (kernel_of("reduce i in 0..n { fold s = any of x[i] }"), "expected bool"),
    "nothing to fold": (kernel_of("reduce i in 0..n { }"), "it has no accumulator"),
    "mixed lanes": (kernel_of("reduce lanes i in 0..n { fold s = sum of x[i] "
                              "fold t = sum of cast(x[i]):float64 }"), "of mixed widths"),
    "guard": (kernel_of("y[0] = 1.0 if x[0]"), "the guard is float32, expected bool"),
    "gather": (kernel_of("y[0] = x[0; x[0] * 4]"), "an index of x is float32, expected int64"),
    "number": (kernel_of("y[0] = cast(1.5:int64):float32"), "the number 1.5 is no int64"),
    "big number": (kernel_of("y[0] = cast(300:int8):float32"), "the number 300 is no int8"),
    "template in lanes": (kernel_of("vector i in 0..n { call sort(y; n) }"),
                          "a shared function is called inside of lanes"),
    "template's size": (kernel_of("call sort(y; m)"), "call of sort: .*'m'"),
    "epilogue's buffer": (kernel_of("call matmul(y; n) epilogue kernel e(z: out float32) { }"),
                          "the epilogue's buffer z is none of k's"),
    "epilogue's size": (kernel_of("call matmul(y; n) epilogue kernel e(y: out float32; m) { }"),
                        "the epilogue's size m is none of k's"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_kernels_are_named(case: str) -> None:
    text, message = BROKEN[case]
    with pytest.raises(VerifyError, match=message) as raised:
        verify_kernel(parse_kernel(text))
    assert str(raised.value).startswith(("kernel k: ", "kernel e: "))


def test_broken_programs_are_named() -> None:
    program = training_step()
    program.commit = len(program.steps)
    with pytest.raises(VerifyError, match="writes the state w before the commit point"):
        verify_program(program)
    program = training_step()
    for b in program.buffers:
        b.last = 0
    with pytest.raises(VerifyError, match=r"lives in steps (0|-1) to 0"):
        verify_program(program)
